"""Bytes as tokens: nothing to train, nothing to load, every file has ids."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.text.spelling import Spelling
from zoo.text.tokenizer import Specials, Tokenizer

EOS = "<|endoftext|>"


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8, 256 is the end of a text; `vocab_size` 257. With
    `add_eos_token` in its config it ends each text.

    Nothing in a text is a special token: "<|endoftext|>" is thirteen bytes.
    Bytes are written "A" where they are visible ASCII, else "<0x0A>".
    """

    vocab_size = 257
    specials = Specials(eos=256)

    def __init__(self, config: Mapping[str, Any] | None = None):
        self.config = {**(config or {}), "flax_zoo": "byte"}
        pieces = {byte: bytes([byte]) for byte in range(256)}
        self.spelling = Spelling({**pieces, 256: EOS.encode()}, special=frozenset({256}))

    def id(self, token: str) -> int | None:
        return _IDS.get(token)

    def _encode(self, texts: list[str], add_special: bool, parse_special: bool) -> list[list[int]]:
        end = [256] if add_special and self.config.get("add_eos_token") else []
        return [[*text.encode(), *end] for text in texts]

    def _token(self, index: int) -> str:
        return _TOKENS[index]

    @property
    def _byte_ids(self) -> Sequence[int]:
        return range(256)


def _written(byte: int) -> str:
    return chr(byte) if re.match("[!-~]", chr(byte)) else f"<0x{byte:02X}>"


_TOKENS = (*map(_written, range(256)), EOS)
_IDS = {token: i for i, token in enumerate(_TOKENS)}
