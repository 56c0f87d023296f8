"""The families of tokenizers, put together from their parts: for training one, and for files that
are older than `tokenizer.json`.

GPT-2 (Radford et al., 2019): bytes as characters, words by a pattern, merges in order of rank.
RoBERTa: GPT-2's with <s> and </s> around a text. CLIP: lower case, words end in "</w>".
BERT (Devlin et al., 2018): words and punctuation, each the longest pieces that are known.
SigLIP: SentencePiece's likeliest pieces (Unigram) of lower-case texts without punctuation.
"""

import base64
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

from zoo.text.errors import TokenizerError
from zoo.text.read import reading, utf8
from zoo.text.spelling import BYTE_CHARS
from zoo.text.subword import Subword
from zoo.text.tokenizer import check_text

logger = logging.getLogger("zoo")
EOS = "<|endoftext|>"
# What CLIP cuts a text into, white space left out.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
CLIP_SPACE = r"[\s\x1c-\x1f]+"  # to Python, the separators of files and records are space too
CLIP_MERGES = 48_894
CLIP_LENGTH = 77
GPT2_RANKS = 50_256
# What SigLIP leaves out of a text, and what is space to it: SentencePiece's sign of a space, too.
SIGLIP_PUNCTUATION = r"[!-/:-@\[-`{-~]"
SIGLIP_SPACE = r"[\s\x1c-\x1f▁]+"

Vocabulary = Mapping[str, int]
Merges = Sequence[tuple[str, str]]


# One's own.


def train_bpe(
    texts: Iterable[str | Path],
    vocab_size: int,
    *,
    specials: Sequence[str] = (EOS,),
    pattern: str | None = None,
    min_frequency: int = 2,
    closed: bool = False,
) -> Subword:
    """A byte-level BPE of one's own text: the 256 bytes, merges, then the special tokens.

    texts: each a str, or a Path to a UTF-8 file. vocab_size: of all ids. specials: the first ends
    a text (eos). pattern: a regular expression of words, which no merge crosses; None is GPT-2's.
    min_frequency: how often a pair must be there to be merged. closed: whether the eos is put
    after each text.
    The same texts give the same tokenizer. Raises TokenizerError for what is no text, and where the
    texts have too few pairs for that many ids.
    """
    smallest = 256 + len(specials)
    if vocab_size < smallest:
        raise TokenizerError(
            f"vocab_size is {vocab_size}: the 256 bytes and {len(specials)} special tokens "
            f"need {smallest}"
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = _byte_words(pattern), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        min_frequency=min_frequency,
        initial_alphabet=list(BYTE_CHARS),
        show_progress=False,
    )
    backend.train_from_iterator(_contents(texts), trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    facts = {"eos_token": specials[0] if specials else None}
    tokenizer = Subword(backend, {**facts, "add_eos_token": True} if closed else facts)
    if tokenizer.vocab_size < vocab_size:
        raise TokenizerError(
            f"these texts give a vocabulary of {tokenizer.vocab_size}, not {vocab_size}: give more "
            "text, or ask for fewer"
        )
    return tokenizer


WORDS = r"[\w'’-]+|[^\w\s]"  # and each sign by itself
MOST_WORDS = 2**20  # [PAD] and [UNK] among them


def train_words(texts: Iterable[str | Path], *, eos: str = EOS) -> Subword:
    """Every word of the texts as a token, in lower case, and a sign of punctuation as one.

    Ids: [PAD], [UNK] for words that were not there, the words from the most frequent on (with these
    two at most MOST_WORDS), and last `eos`, which it puts after each text. Raises TokenizerError
    for what is no text, and for an `eos` that is a word of the texts.
    """
    backend = Backend(models.WordLevel(unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=MOST_WORDS, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    backend.train_from_iterator(_contents(texts), trainer)
    if backend.token_to_id(eos) is not None:
        raise TokenizerError(
            f"eos {eos!r} is a word of the texts, [PAD] or [UNK]: name another, such as {EOS}"
        )
    backend.add_special_tokens([AddedToken(eos, special=True)])
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": eos}
    return Subword(backend, {**roles, "add_eos_token": True})


def _contents(texts: Iterable[str | Path]) -> Iterator[str]:
    if isinstance(texts, str | Path):
        raise TokenizerError("a tokenizer learns from several texts or paths: give it a list")
    for text in texts:
        yield utf8(text) if isinstance(text, Path) else check_text(text)


def _byte_words(pattern: str | None, prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])


# Byte-level BPE of others.


def byte_level(vocabulary: Vocabulary, merges: Merges, config: Mapping[str, Any]) -> Subword:
    """Of `vocab.json` and `merges.txt`: CLIP's, RoBERTa's or GPT-2's, as the vocabulary shows.

    Raises TokenizerError where `tokenizer_config.json` names a class that is none of these, and so
    cuts texts in another way."""
    stated = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if stated not in {"", *BYTE_LEVEL}:
        raise TokenizerError(
            f"vocab.json and merges.txt of a {stated} do not say how it cuts words: fetch its "
            "tokenizer.json, or have transformers write one (save_pretrained)"
        )
    ends = any(token.endswith("</w>") for token in vocabulary)
    kind = "CLIPTokenizer" if ends else "RobertaTokenizer" if "<s>" in vocabulary else ""
    return BYTE_LEVEL[kind or "GPT2Tokenizer"](vocabulary, merges, config)


def gpt2(
    vocabulary: Vocabulary, merges: Merges, config: Mapping[str, Any], pattern: str | None = None
) -> Subword:
    backend = Backend(models.BPE(dict(vocabulary), list(merges)))
    prefix_space = bool(config.get("add_prefix_space"))
    backend.pre_tokenizer, backend.decoder = (
        _byte_words(pattern, prefix_space),
        decoders.ByteLevel(),
    )
    roles = {"bos_token": EOS, "eos_token": EOS, "unk_token": EOS} if EOS in vocabulary else {}
    return Subword(backend, {"tokenizer_class": "GPT2Tokenizer", **roles, **config})


def roberta(vocabulary: Vocabulary, merges: Merges, config: Mapping[str, Any]) -> Subword:
    backend = Backend(models.BPE(dict(vocabulary), list(merges)))
    prefix_space = bool(config.get("add_prefix_space"))
    backend.pre_tokenizer, backend.decoder = _byte_words(None, prefix_space), decoders.ByteLevel()
    bos, eos = (_part(vocabulary, token) for token in ("<s>", "</s>"))
    backend.post_processor = processors.RobertaProcessing(
        eos, bos, trim_offsets=True, add_prefix_space=prefix_space
    )
    plain = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    roles: dict[str, Any] = {f"{role}_token": token for role, token in plain.items()}
    # A mask stands for a word with its space.
    roles["mask_token"] = {"content": "<mask>", "lstrip": True}
    return Subword(backend, {"tokenizer_class": "RobertaTokenizer", **roles, **config})


def clip(vocabulary: Vocabulary, merges: Merges, config: Mapping[str, Any]) -> Subword:
    """Differs from OpenAI's code: texts are not repaired (ftfy) and HTML entities not resolved,
    which is the caller's, and a sigma that ends a word is lower-cased as any other."""
    bos, eos = (_part(vocabulary, token) for token in ("<|startoftext|>", EOS))
    backend = Backend(
        models.BPE(dict(vocabulary), list(merges), end_of_word_suffix="</w>", unk_token=eos[0])
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(CLIP_SPACE), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        eos, bos, trim_offsets=False, add_prefix_space=False
    )
    named = {"bos_token": bos[0], "eos_token": eos[0], "unk_token": eos[0], "pad_token": eos[0]}
    facts = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CLIP_LENGTH, **named}
    facts |= {"cls_token": None, "sep_token": None}
    return Subword(backend, {**facts, **config})


BYTE_LEVEL = {"GPT2Tokenizer": gpt2, "RobertaTokenizer": roberta, "CLIPTokenizer": clip}


def _part(vocabulary: Vocabulary, token: str) -> tuple[str, int]:
    if token not in vocabulary:
        raise TokenizerError(f"the vocabulary has no {token}: it is not the whole of one")
    return token, vocabulary[token]


def clip_merges(content: str) -> Subword:
    """Of OpenAI's list of merges, `bpe_simple_vocab_16e6.txt`: CLIP uses the first 48,894. Pads
    with id 0, as OpenAI's and open_clip's code does."""
    found = merges(content)[:CLIP_MERGES]
    # OpenAI counts the bytes that are printable first.
    printable = [char for byte, char in enumerate(BYTE_CHARS) if ord(char) == byte]
    chars = [*printable, *(char for char in BYTE_CHARS if char not in printable)]
    tokens = [*chars, *(f"{char}</w>" for char in chars), *map("".join, found)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", EOS])}
    return clip(vocabulary, found, {"pad_token": tokens[0]})


def merges(content: str) -> list[tuple[str, str]]:
    """Of `merges.txt`: two tokens a line, after a line with the version."""
    lines = content.split("\n")
    first = 1 if lines[0].startswith(("#version", '"bpe_simple')) else 0
    found = []
    for number, line in enumerate(lines[first:], first + 1):
        parts = line.rstrip("\r").split(" ")
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
        elif parts != [""]:
            raise TokenizerError(f"line {number} is {line[:80]!r}, not two tokens")
    return found


# tiktoken's ranks.


def from_tiktoken(
    path: str | Path, *, pattern: str | None = None, specials: Sequence[str] = (EOS,)
) -> Subword:
    """Of a file of ranks as tiktoken reads it: a token in base64 and its rank, which is its id, a
    line. The special tokens follow.

    pattern: how it cuts words, which the file does not say; None is GPT-2's.
    Raises TokenizerError for a damaged file, and for ranks that no merges can give.
    """
    with reading(Path(path)):
        ranks = _ranks(utf8(Path(path)))
        pairs = [_halves(token, ranks) for token in sorted(ranks, key=ranks.__getitem__)]
    own = {_written(token): i for token, i in ranks.items()}
    vocabulary = {**own, **{token: len(ranks) + n for n, token in enumerate(specials)}}
    merged = [(_written(left), _written(right)) for left, right in filter(None, pairs)]
    roles = {"eos_token": specials[0] if specials else None}
    extra = {"additional_special_tokens": list(specials)} if specials else {}
    return gpt2(vocabulary, merged, {**roles, **extra}, pattern)


def _written(token: bytes) -> str:
    return "".join(BYTE_CHARS[byte] for byte in token)


def _ranks(content: str) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        found = re.fullmatch(r"([A-Za-z0-9+/]+=*) (\d+)", line)
        if found is None or len(found[1]) % 4:
            raise TokenizerError(
                f"line {number} is {line[:80]!r}, not a token in base64 and a rank"
            )
        ranks[base64.b64decode(found[1])] = int(found[2])
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing or sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(
            f"the ranks are not 0 to {len(ranks) - 1}, each once, or {missing} bytes have none: "
            "the file is cut short or damaged; fetch it again"
        )
    return ranks


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens whose merge gave this one: what is left of it when all merges of a lower rank
    are done. None of a byte."""
    if len(token) == 1:
        return None
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [left + right for left, right in zip(parts, parts[1:], strict=False)]
        at = min(range(len(joined)), key=lambda i: ranks.get(joined[i], len(ranks)))
        if ranks.get(joined[at], len(ranks)) >= ranks[token]:
            raise TokenizerError(f"no merge of lower ranks gives {token!r}, rank {ranks[token]}")
        parts[at : at + 2] = [joined[at]]
    left, right = parts
    return left, right


# Unigram.


def canonical(backend: Backend, config: Mapping[str, Any], open_clip: Mapping[str, Any]) -> Backend:
    """Of a `tokenizer.json` beside which `tokenizer_config.json` names SiglipTokenizer: one that
    changes texts first as that class does (transformers 4.57.6, `canonicalize_text`, after that of
    big_vision's prompt_engineering.py): without ASCII punctuation, of single spaces, none at the
    ends, and in lower case where `do_lower_case`. Where `open_clip_config.json` says `clean:
    canonicalize`, of any class: as open_clip does before it, which also reads "_" as a space. Any
    other stays as it is, as does one that does so already; beside a SigLIP of open_clip's with a
    warning.

    Differs from both: white space before the first word leaves no token of its own, as in the
    authors' tokenizer, and a sigma that ends a word is lower-cased as any other; and from
    open_clip: texts are not repaired (ftfy) and HTML entities not resolved."""
    named = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    model = _object(open_clip, "model_cfg")
    kwargs = _object(_object(model, "text_cfg"), "tokenizer_kwargs")
    cleaned, own = kwargs.get("clean") == "canonicalize", backend.normalizer
    clean = [
        normalizers.Replace(Regex(SIGLIP_PUNCTUATION), ""),
        normalizers.Replace(Regex(SIGLIP_SPACE), " "),
        normalizers.Strip(),
    ]
    if not cleaned and named != "SiglipTokenizer":
        trunk = str(_object(model, "vision_cfg").get("timm_model_name"))
        if "siglip" in trunk and not _holds(own, normalizers.Sequence(clean)):
            logger.warning(
                "open_clip_config.json has a SigLIP (%s) without tokenizer_kwargs "
                '{"clean": "canonicalize"}: texts keep their case and punctuation',
                trunk,
            )
        return backend
    spaces = [normalizers.Replace("_", " ")] if cleaned else []
    lower = [normalizers.Lowercase()] if cleaned or config.get("do_lower_case", True) else []
    first = normalizers.Sequence([*spaces, *lower, *clean])
    if not _holds(own, first):
        backend.normalizer = first if own is None else normalizers.Sequence([first, own])
    return backend


def _object(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = facts.get(key)
    return found if isinstance(found, Mapping) else {}


def _holds(normalizer: normalizers.Normalizer | None, part: normalizers.Normalizer) -> bool:
    """Whether it does all of `part` already, in that order."""
    steps, known = _steps(normalizer), _steps(part)
    return any(steps[i : i + len(known)] == known for i in range(len(steps)))


def _steps(normalizer: normalizers.Normalizer | None) -> list[Any]:
    """Of a sequence what it does, as JSON."""
    facts = {} if normalizer is None else json.loads(normalizer.__getstate__())
    return facts.get("normalizers", [])


# WordPiece.


def wordpiece(tokens: Sequence[str], config: Mapping[str, Any]) -> Subword:
    """Of BERT's `vocab.txt`, a token a line. `do_lower_case` (then without accents),
    `strip_accents` and `tokenize_chinese_chars` of the config count."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    sep, cls, unk = (_part(vocabulary, token) for token in ("[SEP]", "[CLS]", "[UNK]"))
    backend = Backend(models.WordPiece(vocabulary, unk_token=unk[0]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls[0]} $A {sep[0]}",
        pair=f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1",
        special_tokens=[sep, cls],
    )
    backend.decoder = decoders.WordPiece(prefix="##")
    roles = ("unk", "sep", "pad", "cls", "mask")
    known = [role for role in roles if f"[{role.upper()}]" in vocabulary]
    named = {f"{role}_token": f"[{role.upper()}]" for role in known}
    return Subword(backend, {"tokenizer_class": "BertTokenizer", **named, **config})
