"""Tokenizers that were trained: whatever a `tokenizer.json` says, run by the tokenizers library."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from zoo.text.errors import TokenizerError
from zoo.text.spelling import BYTE_CHARS, spelling
from zoo.text.tokenizer import ROLES, Specials, Tokenizer, check_text

FILE = "tokenizer.json"
# What tokens with a role are called where no file says so: most of the hub's older repositories
# leave it to the class in transformers. The first that is an added token counts.
USUAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "sep": ("[SEP]",),
    "pad": ("<pad>", "[PAD]"),
    "cls": ("[CLS]",),
    "mask": ("<mask>", "[MASK]"),
}


class Subword(Tokenizer):
    """A `tokenizers.Tokenizer` and what `tokenizer_config.json` says of it.

    Truncation and padding that the file has switched on are switched off: `encode` gives all of a
    text and nothing else. Raises TokenizerError for a file that contradicts itself.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: Mapping[str, Any] | None = None):
        self.config = dict(config or {})
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        _add(backend, self.config)
        self._ids = backend.get_vocab(with_added_tokens=True)
        self._tokens = {i: token for token, i in self._ids.items()}
        if not self._tokens:
            raise TokenizerError("the tokenizer has no vocabulary")
        added = {i: token.special for i, token in backend.get_added_tokens_decoder().items()}
        suffix = getattr(backend.model, "end_of_word_suffix", None)
        self.vocab_size = max(self._tokens) + 1
        self.spelling = spelling(self._tokens, added, _facts(backend.decoder), suffix)
        self.specials = _specials(self._ids, self.spelling.special, self.config, self._around)
        _set_around(backend, self.config, self.specials, self._tokens)

    def id(self, token: str) -> int | None:
        return self._ids.get(token)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        encoded = self._backend.encode(check_text(first), check_text(second))
        return encoded.ids, encoded.type_ids

    def save(self, directory: str | Path) -> None:
        super().save(directory)
        content = self._backend.to_str(pretty=True) + "\n"
        (Path(directory) / FILE).write_text(content, encoding="utf-8", newline="\n")

    def _encode(self, texts: list[str], add_special: bool, parse_special: bool) -> list[list[int]]:
        backend = self._backend if parse_special else self._plain
        try:
            found = backend.encode_batch_fast(texts, add_special_tokens=add_special)
        except Exception as error:  # an unknown word where the vocabulary has no unknown token
            raise TokenizerError(f"the tokenizer cannot encode this text: {error}") from error
        return [encoding.ids for encoding in found]

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same, to which special tokens in a text are text."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def _token(self, index: int) -> str:
        return self._tokens[index]

    @cached_property
    def _byte_ids(self) -> Sequence[int]:
        pre = json.dumps(_facts(self._backend.pre_tokenizer))
        plain = self._backend.normalizer is None and '"add_prefix_space": true' not in pre
        byte_level = (_facts(self._backend.decoder) or {}).get("type") == "ByteLevel"
        found = [self._ids[char] for char in BYTE_CHARS if char in self._ids]
        if not (plain and byte_level and len(found) == 256):
            raise TokenizerError(
                "this tokenizer changes texts or has no token for each byte, so that bytes that "
                "are no text cannot come back: use a byte-level one, or decode them before"
            )
        return found

    @property
    def _around(self) -> Mapping[str, Any]:
        return _facts(self._backend.post_processor) or {}


def _facts(component: Any) -> dict[str, Any] | None:
    """What `tokenizer.json` says of a component of the library."""
    return None if component is None else json.loads(component.__getstate__())


def _specials(
    ids: Mapping[str, int], special: frozenset[int], config: Mapping[str, Any], around: Any
) -> Specials:
    """Roles as the config states them (null: none), then as what is put around a text has them,
    then by their usual names."""
    own = {key: around[key][0] for key in ("sep", "cls") if isinstance(around.get(key), list)}
    found = {}
    for role in ROLES:
        usual = (token for token in USUAL[role] if ids.get(token) in special)
        token = own.get(role) or next(usual, None)
        if f"{role}_token" in config:
            token = _content(config[f"{role}_token"])
        found[role] = ids[token] if token else None
    return Specials(**found)


# Tokens that other files than tokenizer.json add.


def _content(token: Any) -> str | None:
    """Of a token as a text, or as {"content": …} as transformers also writes it."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is not None and not isinstance(text, str):
        raise TokenizerError(f"{token!r} is no token: a text, or an object with its content")
    return text


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def _added(token: Any, special: bool) -> AddedToken:
    facts = token if isinstance(token, Mapping) else {}
    flags = {flag: bool(facts[flag]) for flag in FLAGS if flag in facts}
    return AddedToken(_content(token) or "", special=bool(facts.get("special", special)), **flags)


def _add(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Adds what the config knows beyond the vocabulary: tokens with ids, then those with a role.

    Raises TokenizerError where a token does not get the id that is stated."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or ()
    extra = extra.values() if isinstance(extra, Mapping) else extra
    roles = [config.get(f"{role}_token") for role in ROLES]
    special = [_added(token, special=True) for token in (*roles, *extra) if _content(token)]
    numbered = (config.get("added_tokens_decoder") or {}).items()
    by_id = {int(i): _added(token, special=False) for i, token in numbered}
    named = {token.content for token in special}
    for token in (*(by_id[i] for i in sorted(by_id)), *special):
        if token.content not in known:
            known.add(token.content)
            token.special = token.special or token.content in named
            backend.add_tokens([token])
    wrong = {i: t.content for i, t in by_id.items() if backend.token_to_id(t.content) != i}
    if wrong:
        i, token = next(iter(wrong.items()))
        raise TokenizerError(
            f"tokenizer_config.json gives {token!r} the id {i}, but the vocabulary gives it "
            f"{backend.token_to_id(token)}: these files are not of one tokenizer"
        )


def _set_around(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    specials: Specials,
    tokens: Mapping[int, str],
) -> None:
    """`add_bos_token` and `add_eos_token` overrule what tokenizer.json puts around a text, but not
    [CLS] and [SEP]."""
    stated = {role: config.get(f"add_{role}_token") for role in ("bos", "eos")}
    own = (_facts(backend.post_processor) or {}).get("type")
    if set(stated.values()) == {None} or own in ("BertProcessing", "RobertaProcessing"):
        return
    ids = {role: getattr(specials, role) if wanted else None for role, wanted in stated.items()}
    bos, eos = ([] if i is None else [tokens[i]] for i in ids.values())
    first, second = (
        [f"{part}:{kind}" for part in (*bos, text, *eos)] for kind, text in enumerate(("$A", "$B"))
    )
    backend.post_processor = processors.TemplateProcessing(
        single=first,
        pair=[*first, *second],
        special_tokens=[(tokens[i], i) for i in {*ids.values()} if i is not None],
    )
