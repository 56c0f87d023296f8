"""What every tokenizer can do, and what it does when it cannot.

    text ── encode ──→ ids [n] ── decode_bytes ──→ bytes ── UTF-8 ──→ text

Decoding goes through bytes: a token may be a part of a character, and only all of them together
are text. So what is streamed, piece by piece, is what is decoded at once.
"""

import codecs
import json
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zoo.text import chat
from zoo.text.errors import TokenizerError
from zoo.text.spelling import Spelling

CONFIG = "tokenizer_config.json"
SPECIALS = "special_tokens_map.json"


@dataclass(frozen=True)
class Specials:
    """Ids of the tokens that have a role, None where a tokenizer has none for it."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    cls: int | None = None
    mask: int | None = None


ROLES = tuple(role.name for role in fields(Specials))


class Tokenizer(ABC):
    """Text ↔ ids. All errors are `TokenizerError`, a ValueError.

    vocab_size: one more than the largest id. specials: ids by role. spelling: the bytes of each id.
    config: what `tokenizer_config.json` says, also where that is nothing to us; it is saved again.
    """

    vocab_size: int
    specials: Specials
    spelling: Spelling
    config: Mapping[str, Any]

    # Text to ids.

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """The ids of a text.

        add_special: with the tokens that the tokenizer puts around a text (BERT's [CLS] and [SEP],
        Llama's <s>). parse_special: "<|endoftext|>" in the text is that token; say False for the
        text of strangers, where it is text like any other. Raises TokenizerError unless `text`
        is a str that has a UTF-8 form.
        """
        return self._encode([check_text(text)], add_special, parse_special)[0]

    def encode_batch(
        self, texts: Iterable[str], *, add_special: bool = True, parse_special: bool = True
    ) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        if isinstance(texts, str):
            raise TokenizerError("encode_batch takes several texts; this is one: use encode")
        return self._encode([check_text(text) for text in texts], add_special, parse_special)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """(ids, token types) of two texts as one sequence: types are 0, from the second text on 1
        where the tokenizer tells them apart (BERT)."""
        raise TokenizerError(f"{type(self).__name__} has no form for pairs of texts")

    def encode_bytes(self, content: bytes) -> list[int]:
        """The ids whose `decode_bytes` is `content`, whether that is UTF-8 or not; without special
        tokens. Raises TokenizerError for a tokenizer that has no token for each byte."""
        byte_ids = self._byte_ids
        # Surrogateescape leaves each byte that is no UTF-8 as one character of its own.
        runs = re.split("([\udc80-\udcff])", content.decode("utf-8", "surrogateescape"))
        texts = iter(self.encode_batch(runs[::2], add_special=False, parse_special=False))
        ids = next(texts)
        for byte, text in zip(runs[1::2], texts, strict=True):
            ids += [byte_ids[ord(byte) - 0xDC00], *text]
        return ids

    def pad(
        self,
        batch: Sequence[Sequence[int]],
        length: int | None = None,
        *,
        truncate: bool = False,
        pad: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [b, n], mask bool [b, n], True on tokens), padded on the right to `length`,
        else to the longest.

        truncate: cut what is longer, but keep a closing eos or sep, as CLIP and BERT were trained.
        pad: the id to fill with, else the tokenizer's. Raises TokenizerError where there is
        neither, and for a sequence that is longer unless it may be cut.
        """
        longest = max(map(len, batch), default=0)
        n = longest if length is None else length
        fill = self.specials.pad if pad is None else pad
        if fill is None:
            raise TokenizerError("this tokenizer has no pad token: say pad=ID; the mask hides it")
        if longest > n and not truncate:
            raise TokenizerError(
                f"a sequence of {longest} tokens is longer than {n}: "
                "shorten it, or say truncate=True"
            )
        ids = np.full((len(batch), n), fill, np.int32)
        mask = np.zeros((len(batch), n), bool)
        for row, sequence in enumerate(batch):
            kept = self._cut(sequence, n)
            ids[row, : len(kept)], mask[row, : len(kept)] = kept, True
        return ids, mask

    def _cut(self, sequence: Sequence[int], length: int) -> Sequence[int]:
        if len(sequence) <= length:
            return sequence
        closing = [i for i in sequence[-1:] if i in (self.specials.eos, self.specials.sep)]
        return [*sequence[: length - len(closing)], *closing][:length]

    # Ids to text.

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. skip_special: leave out special
        tokens. Raises TokenizerError for an id that is none."""
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """The bytes that ids stand for, before they are read as text."""
        return self.spelling.writer(skip_special=skip_special).feed(self.check_ids(ids))

    def token(self, index: int) -> str:
        """How the vocabulary writes an id: "Ġthe", "##ing", "▁the"."""
        return self._token(self.check_ids([index])[0])

    @abstractmethod
    def id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, None where it is not there."""

    # What a caller can rely on.

    def check_ids(self, ids: Iterable[int]) -> list[int]:
        """As Python integers. Raises TokenizerError for what is no integer, and for one that no
        token has."""
        try:
            found = [operator.index(i) for i in ids]
        except TypeError as error:
            raise TokenizerError(f"ids are a sequence of integers: {error}") from error
        for place, i in enumerate(found):
            if i not in self.spelling.pieces:
                raise TokenizerError(
                    f"id {i} at position {place} is no token: the tokenizer's ids are "
                    f"0 to {self.vocab_size - 1}"
                )
        return found

    def check(self, model_vocab: int) -> None:
        """Raises TokenizerError where the tokenizer has ids that a model of `model_vocab` has no
        embedding for. Fewer are fine: many models pad their vocabulary."""
        if self.vocab_size > model_vocab:
            raise TokenizerError(
                f"the tokenizer's ids go up to {self.vocab_size - 1}, but the model has embeddings "
                f"for 0 to {model_vocab - 1}: load the tokenizer that belongs to the model, or "
                f"create the model with vocab={self.vocab_size}"
            )

    @property
    def max_length(self) -> int | None:
        """The longest sequence that `tokenizer_config.json` says the model takes."""
        stated = self.config.get("model_max_length")
        # transformers writes 1e30 where it knows of no limit.
        return int(stated) if isinstance(stated, int | float) and 0 < stated < 1e9 else None

    # Chats.

    def apply_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as the model was trained to read it, by the tokenizer's chat template.

        messages: {"role": "user", "content": "…"} each. add_generation_prompt: end with what opens
        the model's answer. variables: others that the template reads, such as `tools`.
        The template writes bos itself: encode with `add_special=False`, or use `encode_chat`.
        Raises TokenizerError without a template or jinja2, and for what the template refuses.
        """
        name = "tool_use" if variables.get("tools") else "default"
        template = chat.choose(self.config.get("chat_template"), name)
        names = {f"{role}_token": text for role, text in self.special_tokens.items()}
        known = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        absent = {"tools": None, "documents": None}
        return chat.render(template, {**names, **absent, **variables, **known})

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The ids of `apply_chat`."""
        return self.encode(self.apply_chat(messages, **options), add_special=False)

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens by role: {"eos": "<|endoftext|>"}."""
        ids = asdict(self.specials)
        return {role: self._token(i) for role, i in ids.items() if i is not None}

    # Files.

    def save(self, directory: str | Path) -> None:
        """Writes what `zoo.text.load(directory)` and transformers read: `tokenizer_config.json`,
        `special_tokens_map.json`, and `tokenizer.json` where there is one."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        named = {f"{role}_token": text for role, text in self.special_tokens.items()}
        unset = {f"{role}_token": None for role in ROLES if role not in self.special_tokens}
        for file, facts in ((CONFIG, {**self.config, **unset, **named}), (SPECIALS, named)):
            content = json.dumps(facts, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
            (directory / file).write_text(content, encoding="utf-8", newline="\n")

    # What a kind of tokenizer defines.

    @abstractmethod
    def _encode(
        self, texts: list[str], add_special: bool, parse_special: bool
    ) -> list[list[int]]: ...

    @abstractmethod
    def _token(self, index: int) -> str: ...

    @property
    @abstractmethod
    def _byte_ids(self) -> Sequence[int]:
        """The id of each of the 256 bytes."""


class Stream:
    """Decodes ids as they come, and holds back bytes until they are whole characters.

        stream = Stream(tokenizer, after=prompt)
        for i in generated: print(stream.feed(i), end="")
        print(stream.end())

    after: ids that stand before and are written already: a word that follows keeps its space.
    All that is fed, with `end`, is the rest of what `decode(after + ids)` begins with `after`.
    """

    def __init__(self, tokenizer: Tokenizer, *, after: Iterable[int] = (), skip_special=True):
        self._tokenizer = tokenizer
        self._writer = tokenizer.spelling.writer(skip_special=skip_special)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.feed(after)

    def feed(self, ids: int | Iterable[int]) -> str:
        """The characters that these ids complete."""
        several = ids if isinstance(ids, Iterable) else [ids]
        return self._decoder.decode(self._writer.feed(self._tokenizer.check_ids(several)))

    def end(self) -> str:
        """What was held back: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


def check_text(text: Any) -> str:
    """Raises TokenizerError unless it is a str, without half a surrogate pair."""
    if not isinstance(text, str):
        hint = "; bytes go through encode_bytes" if isinstance(text, bytes) else ""
        raise TokenizerError(f"text is of type {type(text).__name__}, not str{hint}")
    if not text.isascii() and (found := re.search("[\ud800-\udfff]", text)):
        raise TokenizerError(
            f"text has half a surrogate pair, {found[0]!r}, at position {found.start()}: "
            "it is no Unicode text; read the file as UTF-8"
        )
    return text
