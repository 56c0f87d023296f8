"""A tokenizer from its files, as the hub has them.

tokenizer.json                          all of it: the newer form
vocab.json + merges.txt                 byte-level BPE: GPT-2, RoBERTa, CLIP
vocab.txt                               WordPiece: BERT
bpe_simple_vocab_16e6.txt.gz            CLIP's merges as OpenAI published them
*.tiktoken                              ranks: GPT-2
tokenizer_config.json                   roles of tokens, chat template; beside each of these
open_clip_config.json                   beside a tokenizer.json: how texts are cleaned
special_tokens_map.json, added_tokens.json, chat_template.jinja    older and newer parts of it
"""

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import tokenizers

from zoo.text import families
from zoo.text.byte import ByteTokenizer
from zoo.text.errors import TokenizerError
from zoo.text.read import json_object, reading, utf8
from zoo.text.subword import FILE, Subword
from zoo.text.tokenizer import CONFIG, SPECIALS, Tokenizer

Config = Mapping[str, Any]
OPEN_CLIP = "open_clip_config.json"


def load(source: str | Path) -> Tokenizer:
    """The tokenizer of a directory, or of one file and what lies beside it.

    Raises TokenizerError for files that are missing, damaged or of a form that is not known.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise TokenizerError(f"{path} does not exist: give a directory with a {FILE}")
    folder = path if path.is_dir() else path.parent
    facts = config(folder)
    if facts.get("flax_zoo") == "byte" and (path == folder or path.name == CONFIG):
        return ByteTokenizer(facts)
    file = _found(path) if path == folder else path
    with reading(file):
        return _reader(file)(file, facts)


def config(folder: Path) -> dict[str, Any]:
    """What the files of a directory say beside the vocabulary, as one `tokenizer_config.json`."""
    facts = {**_optional(folder / SPECIALS), **_optional(folder / CONFIG)}
    if added := _optional(folder / "added_tokens.json"):
        by_id = {str(i): {"content": token, "special": False} for token, i in added.items()}
        facts["added_tokens_decoder"] = {**by_id, **(facts.get("added_tokens_decoder") or {})}
    if template := _template(folder, facts.get("chat_template")):
        facts["chat_template"] = template
    return facts


def _optional(path: Path) -> dict[str, Any]:
    return json_object(path) if path.is_file() else {}


def _template(folder: Path, stated: Any) -> Any:
    """One template, or several by name; those in files of their own count."""
    named = {entry["name"]: entry["template"] for entry in stated} if type(stated) is list else {}
    named |= {"default": stated} if isinstance(stated, str) else {}
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    named |= {name: utf8(path) for name, path in files.items() if path.is_file()}
    return named["default"] if named.keys() == {"default"} else named


# One function per form.


def _json(path: Path, facts: Config) -> Subword:
    json_object(path)  # whose errors say more
    backend, beside = tokenizers.Tokenizer.from_str(utf8(path)), path.with_name(OPEN_CLIP)
    return Subword(families.canonical(backend, facts, _optional(beside)), facts)


def _vocab_and_merges(path: Path, facts: Config) -> Subword:
    vocabulary = json_object(path.with_name("vocab.json"))
    with reading(path.with_name("merges.txt")):
        merges = families.merges(utf8(path.with_name("merges.txt")))
    return families.byte_level(vocabulary, merges, facts)


def _vocab_txt(path: Path, facts: Config) -> Subword:
    # Not splitlines: line separators of other scripts are tokens.
    lines = utf8(path).removesuffix("\n").split("\n")
    return families.wordpiece([line.removesuffix("\r") for line in lines], facts)


def _clip_merges(path: Path, facts: Config) -> Subword:
    return families.clip_merges(utf8(path))


def _tiktoken(path: Path, facts: Config) -> Subword:
    tokenizer = families.from_tiktoken(path)
    if tokenizer.vocab_size != families.GPT2_RANKS + 1:
        raise TokenizerError(
            f"{tokenizer.vocab_size - 1} ranks are not GPT-2's, and the file does not say how it "
            "cuts words: zoo.text.from_tiktoken(path, pattern=…)"
        )
    return tokenizer


READERS: Mapping[str, Callable[[Path, Config], Tokenizer]] = {  # the first that a directory has
    FILE: _json,
    "vocab.json": _vocab_and_merges,
    "merges.txt": _vocab_and_merges,
    "vocab.txt": _vocab_txt,
    "bpe_simple_vocab_16e6.txt*": _clip_merges,
    "*.tiktoken": _tiktoken,
}
KNOWN = "tokenizer.json, vocab.json with merges.txt, vocab.txt, *.tiktoken"


def _found(folder: Path) -> Path:
    for pattern in READERS:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise TokenizerError(f"{folder} has no file of a tokenizer ({KNOWN}){_sentencepiece(folder)}")


def _reader(path: Path) -> Callable[[Path, Config], Tokenizer]:
    readers = (READERS[pattern] for pattern in READERS if fnmatch(path.name, pattern))
    if (reader := next(readers, None)) is None:
        hint = _sentencepiece(path.parent)
        raise TokenizerError(f"its name is none of those known ({KNOWN}){hint}")
    return reader


def _sentencepiece(folder: Path) -> str:
    found = next(iter(sorted(folder.glob("*.model"))), None)
    hint = "; transformers makes a tokenizer.json of {}: AutoTokenizer.from_pretrained(…)"
    return f"{hint.format(found.name)}.save_pretrained(…)" if found else ""
