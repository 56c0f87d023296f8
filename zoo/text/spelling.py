"""The bytes that each token stands for, and how they are put together to a text.

The decoders of a `tokenizer.json` are read here as rules for one token at a time. Its own library
runs them over a list of strings instead, where a token that is a part of a character is lost.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from zoo.text.errors import TokenizerError

Facts = Mapping[str, Any]


def _byte_chars() -> str:
    """GPT-2's character for each byte: itself where it is printable, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_CHARS = _byte_chars()
CHAR_BYTES = {char: byte for byte, char in enumerate(BYTE_CHARS)}


@dataclass(frozen=True)
class Spelling:
    """pieces: what each id adds to a text. special: ids that may be left out. leading_space: one
    at the beginning of a text belongs to no word. word_ends: ids that a space follows, unless
    the text ends there."""

    pieces: Mapping[int, bytes]
    special: frozenset[int] = frozenset()
    leading_space: bool = False
    word_ends: frozenset[int] = frozenset()

    def writer(self, *, skip_special: bool) -> "Writer":
        return Writer(self, self.special if skip_special else frozenset())


class Writer:
    """Writes the bytes of ids, a few at a time."""

    def __init__(self, spelling: Spelling, skip: frozenset[int]):
        self.spelling, self.skip = spelling, skip
        self.at_start, self.owed = True, b""

    def feed(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._write(i) for i in ids if i not in self.skip)

    def _write(self, index: int) -> bytes:
        piece = self.owed + self.spelling.pieces[index]
        self.owed = b" " if index in self.spelling.word_ends else b""
        if self.at_start and self.spelling.leading_space:
            self.at_start = not piece
            return piece.removeprefix(b" ")
        return piece


def spelling(
    tokens: Mapping[int, str],
    added: Mapping[int, bool],
    decoder: Facts | None,
    suffix: str | None,
) -> Spelling:
    """The spelling of a vocabulary.

    tokens: all by id. added: whether each id that was added to the model's vocabulary is special;
    where tokens are written in bytes, these are not. decoder: that of `tokenizer.json`. suffix: the
    end of a token that ends a word, "</w>". Raises TokenizerError for a decoder that is not known.
    """
    rule = _rule(decoder)
    suffix = suffix or rule.suffix
    ends = {i for i, t in tokens.items() if suffix and t.endswith(suffix) and i not in added}
    own = {i: t.removesuffix(suffix) if i in ends else t for i, t in tokens.items()}
    verbatim = added if rule.in_bytes else ()
    pieces = {i: (t if i in verbatim else rule.piece(t)) for i, t in own.items()}
    return Spelling(
        pieces={i: p if isinstance(p, bytes) else p.encode() for i, p in pieces.items()},
        special=frozenset(i for i, is_special in added.items() if is_special),
        leading_space=rule.leading_space,
        word_ends=frozenset(ends),
    )


class Rule(NamedTuple):
    """What a decoder does to a token inside a text (bytes are final), and to the whole text.

    in_bytes: tokens are written in `BYTE_CHARS`, but those that were added are as they stand."""

    piece: Callable[[str], str | bytes]
    leading_space: bool = False
    suffix: str = ""
    in_bytes: bool = False


def _rule(facts: Facts | None) -> Rule:
    name = facts["type"] if facts else None
    if name not in DECODERS:
        known = ", ".join(filter(None, DECODERS))
        raise TokenizerError(f"tokenizer.json: decoder {name} is none of those known: {known}")
    return DECODERS[name](facts)


def _words(facts: Facts | None) -> Rule:
    return Rule(lambda token: f" {token}", leading_space=True)


def _byte_level(facts: Facts) -> Rule:
    def piece(token: str) -> str | bytes:
        known = all(char in CHAR_BYTES for char in token)
        return bytes(CHAR_BYTES[char] for char in token) if known else token

    return Rule(piece, in_bytes=True)


def _replace(facts: Facts) -> Rule:
    if "String" not in facts["pattern"]:
        raise TokenizerError(f"tokenizer.json: its decoder replaces {facts['pattern']}, no string")
    return Rule(lambda token: token.replace(facts["pattern"]["String"], facts["content"]))


def _byte_fallback(facts: Facts) -> Rule:
    def piece(token: str) -> str | bytes:
        byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
        return bytes.fromhex(byte[1]) if byte else token

    return Rule(piece)


def _fuse(facts: Facts) -> Rule:
    return Rule(lambda token: token)  # what joins tokens; we never had them apart


def _strip(facts: Facts) -> Rule:
    if (facts["content"], facts["start"], facts["stop"]) not in {(" ", 0, 0), (" ", 1, 0)}:
        raise TokenizerError(f"tokenizer.json: its decoder strips {dict(facts)}, not one space")
    return Rule(lambda token: token, leading_space=facts["start"] == 1)


def _metaspace(facts: Facts) -> Rule:
    prepends = facts.get("prepend_scheme", "always") != "never"
    prepends = prepends and facts.get("add_prefix_space", True)  # how older files say it
    return Rule(lambda token: token.replace(facts["replacement"], " "), leading_space=prepends)


CLOSING = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")  # stand close to what is before


def _wordpiece(facts: Facts) -> Rule:
    prefix, closing = facts["prefix"], CLOSING if facts["cleanup"] else ()

    def piece(token: str) -> str:
        if token.startswith(prefix):
            return token.removeprefix(prefix)
        return token if token.startswith(closing) else f" {token}"

    return Rule(piece, leading_space=True)


def _bpe(facts: Facts) -> Rule:
    return Rule(lambda token: token, suffix=facts["suffix"])


def _sequence(facts: Facts) -> Rule:
    names = [step["type"] for step in facts["decoders"]]
    if "Strip" in names and "Fuse" not in names[: names.index("Strip")]:
        raise TokenizerError("tokenizer.json: its decoder strips tokens before they are one text")
    rules = [_rule(step) for step in facts["decoders"]]

    def piece(token: str) -> str | bytes:
        text: str | bytes = token
        for rule in rules:
            text = rule.piece(text) if isinstance(text, str) else text
        return text

    return Rule(
        piece,
        leading_space=any(rule.leading_space for rule in rules),
        suffix=next((rule.suffix for rule in rules if rule.suffix), ""),
        in_bytes=any(rule.in_bytes for rule in rules),
    )


DECODERS: Mapping[str | None, Callable[..., Rule]] = {
    None: _words,
    "ByteLevel": _byte_level,
    "Replace": _replace,
    "ByteFallback": _byte_fallback,
    "Fuse": _fuse,
    "Strip": _strip,
    "Metaspace": _metaspace,
    "WordPiece": _wordpiece,
    "BPEDecoder": _bpe,
    "Sequence": _sequence,
}
