"""Generation on the host: prompts become ids, and what the device draws becomes text.

    prompts → ids [b, p] → decode.start, decode.extend (or beams.search) → tokens → text

The device runs alone until all has been drawn; where it is streamed, or a stop string may end it,
it pauses every few tokens. Lengths are rounded up to powers of two, and programs are compiled once
for each of these.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Integral, Number
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from zoo import beams, decode
from zoo.buckets import bucket
from zoo.decode import Decoder, Rule, Settings
from zoo.text import Stream, Tokenizer

CHUNK = 32  # tokens that are drawn between two looks for a stop string
Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """What was generated after one prompt.

    tokens: all of it, with the one that stopped it. text: of these, without special tokens and cut
    before what stopped it; "" without a tokenizer. logprobs: of each token, in nats, by the model
    itself, before temperature, penalty and filters. reason: "stop" for a stop token or string,
    "length" for `max_new_tokens`.
    """

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    reason: Reason


@dataclass(frozen=True)
class Options:
    """How tokens are chosen, and when that ends.

    The filters act in the order of these fields, from the repetition penalty on, which is the
    order of transformers.
    """

    max_new_tokens: int = 64  # if not given: fewer where the context has less room
    repetition_penalty: float = 1.0  # above 1: what is there already becomes less likely
    temperature: float | None = None  # 0: always the likeliest token; None: 1
    top_k: int | None = None  # of so many likeliest tokens
    top_p: float | None = None  # of the likeliest that have this probability together
    min_p: float | None = None  # of those with this share of the likeliest one's probability
    beams: int = 1  # above 1: the best of so many continuations, and nothing is drawn
    length_penalty: float = 1.0  # of beams: above 0 favours long ones
    stop: Any = ()  # a string, a token id, or several; the tokenizer's eos stops anyway
    seed: int = 0  # the same seed, the same text

    def check(self) -> None:
        """Raises ValueError for a value that an option cannot have, and for two that exclude each
        other."""
        for name, (holds, wanted) in VALID.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if not isinstance(value, int | float) or not holds(value):
                raise ValueError(f"{name} is {value!r}: give {wanted}")
        drawn = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        drawn += ["temperature"] if self.temperature else []
        if self.beams > 1 and drawn:
            raise ValueError(
                f"beams={self.beams} takes the best, {' and '.join(drawn)} is for drawing: "
                "leave one of them out"
            )


def _whole(low: int, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and low <= x <= high


# What the device has as a number of its own: float32 below is 0 or as good as 0, above infinite.
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
POWER = 30.0  # of ten, that lengths to the power of `length_penalty` may reach
VALID: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (_whole(1), "a whole number of tokens, 1 or more"),
    # Logits that are divided or multiplied by it stay finite.
    "repetition_penalty": (lambda x: 1e-6 <= x <= 1e6, "a number from 1e-6 to 1e6; 1 for none"),
    "temperature": (
        lambda x: x == 0 or SMALLEST <= x <= LARGEST,
        "0 for the likeliest token, or a number above it that float32 holds",
    ),
    "top_k": (_whole(1), "a whole number, 1 or more, or None for all tokens"),
    "top_p": (lambda x: SMALLEST <= x <= 1, "a probability above 0 and up to 1"),
    "min_p": (lambda x: 0 <= x <= 1, "a share from 0 to 1"),
    "beams": (_whole(1), "a whole number, 1 or more"),
    "length_penalty": (lambda x: -LARGEST <= x <= LARGEST, "a finite number"),
    "seed": (_whole(0, 2**32 - 1), "a whole number from 0 to 2³² − 1"),
}
OPTIONAL = ("temperature", "top_k", "top_p", "min_p")


def generate(
    decoder: Decoder,
    variables: Any,
    prompts: Any,
    *,
    tokenizer: Tokenizer | None = None,
    stream: Callable[[int, Any], None] | None = None,
    **options: Any,
) -> list[Completion]:
    """What the model writes after each prompt, in their order.

    prompts: a text, ids [n], or several of either, of any lengths. tokenizer: for texts; without
    one, prompts are ids. stream: called with the number of the example and each new piece of its
    text (without a tokenizer: a list of its new tokens); the pieces together are the whole.
    options: see `Options`.

    Raises ValueError for an empty prompt, an id that the model has not, a prompt that leaves no
    room in the context for `max_new_tokens`, and what an option cannot be; TokenizerError for a
    tokenizer that has ids which the model has not.
    """
    chosen = _options(options)
    if tokenizer is not None:
        tokenizer.check(decoder.vocab)
    strings, stops = _stops(chosen.stop, tokenizer, decoder.vocab)
    if chosen.beams > 1 and (strings or stream):
        raise ValueError("beams are known when all are done: no stop strings, and no stream")
    needed = 1 if options.get("max_new_tokens") is None else chosen.max_new_tokens
    ids = [_checked(row, i, decoder, needed) for i, row in enumerate(_ids(prompts, tokenizer))]
    chosen = _limited(chosen, max(map(len, ids)), decoder.context, options)
    limit = chosen.max_new_tokens
    examples = [Example(row, tokenizer, strings, stops, limit) for row in ids]
    inputs = _inputs(ids, decoder, chosen)
    settings = _settings(chosen, decoder.vocab, tokenizer, stops)
    run = partial(_draw, stream=stream, pause=1 if stream else CHUNK if strings else limit)
    run = _search if chosen.beams > 1 else run
    run(decoder, variables, inputs, settings, chosen, examples)
    return [example.completion() for example in examples]


def _draw(
    decoder: Decoder,
    variables: Any,
    inputs: "Inputs",
    settings: Settings,
    options: Options,
    examples: Sequence["Example"],
    *,
    stream: Callable[[int, Any], None] | None,
    pause: int,
) -> None:
    """Fills the examples with what is drawn, `pause` tokens at a time."""
    rule, step = _rule(options, decoder.vocab), 0
    state = decode.start(decoder, rule, inputs.rows, variables, *inputs[1:], settings)
    while True:
        tokens, logprobs, stop = jax.device_get((state.tokens, state.logprobs, state.step))
        for i, example in enumerate(examples):
            example.extend(tokens[i, step:stop].tolist(), logprobs[i, step:stop].tolist())
            if stream and (piece := example.take()):
                stream(i, piece)
        step = int(stop)
        if all(example.ended for example in examples):
            return
        state = state._replace(done=np.array([example.ended for example in examples]))
        limit = np.int32(min(step + pause, options.max_new_tokens))
        state = decode.extend(decoder, rule, variables, state, settings, limit)


def _search(
    decoder: Decoder,
    variables: Any,
    inputs: "Inputs",
    settings: Settings,
    options: Options,
    examples: Sequence["Example"],
) -> None:
    """Fills the examples with the best that is found for each."""
    penalise = options.repetition_penalty != 1
    search = beams.Search(options.beams, max(int(settings.stops.sum()), 1), penalise)
    limits = np.int32(options.max_new_tokens), np.float32(options.length_penalty)
    found = beams.search(decoder, search, inputs.rows, variables, *inputs[1:], settings, *limits)
    best = jax.device_get((found.tokens[:, 0], found.logprobs[:, 0], found.counts[:, 0]))
    for example, tokens, logprobs, count in zip(examples, *best, strict=True):
        example.extend(tokens[:count].tolist(), logprobs[:count].tolist())


class Example:
    """One completion as it comes.

    ended: whether there is no more of it; stopped: whether a stop token or string is why.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        tokenizer: Tokenizer | None,
        strings: Sequence[str],
        stops: frozenset[int],
        limit: int,
    ):
        self._stream = None if tokenizer is None else Stream(tokenizer, after=prompt)
        self._strings, self._stops, self._limit = strings, stops, limit
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._text, self._given = "", 0
        self.stopped = self.ended = False

    def extend(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """What was drawn next, until it ends."""
        for token, logprob in zip(tokens, logprobs, strict=True):
            if not self.ended:
                self._tokens.append(token)
                self._logprobs.append(logprob)
                self._read(token)

    def _read(self, token: int) -> None:
        self.stopped = token in self._stops
        if self._stream is not None and not self.stopped:
            self._text += self._stream.feed(token)
        places = [self._text.find(string) for string in self._strings]
        cut = min((place for place in places if place >= 0), default=None)
        self.stopped |= cut is not None
        self.ended = self.stopped or len(self._tokens) == self._limit
        if self._stream is not None and self.ended:
            self._text = (self._text + self._stream.end())[:cut]

    def take(self) -> Any:
        """What is new since the last call: text, or without a tokenizer a list of tokens. What may
        be the beginning of a stop string is held back."""
        whole = self._tokens if self._stream is None else self._text
        end = len(whole) - (0 if self.ended else self._held())
        piece, self._given = whole[self._given : end], end
        return piece

    def _held(self) -> int:
        """How many characters at the end of the text may be the first of a stop string."""
        beginnings = (string[:n] for string in self._strings for n in range(1, len(string)))
        return max((len(b) for b in beginnings if self._text.endswith(b)), default=0)

    def completion(self) -> Completion:
        reason: Reason = "stop" if self.stopped else "length"
        return Completion(tuple(self._tokens), self._text, tuple(self._logprobs), reason)


# What was asked for, checked.


def _options(options: Mapping[str, Any]) -> Options:
    """NumPy's numbers become Python's, and None becomes the default."""
    known = [field.name for field in fields(Options)]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"generation has no {', '.join(unknown)}; it has {', '.join(known)}")
    given = {key: value for key, value in options.items() if value is not None}
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items()}
    chosen = Options(**plain)
    chosen.check()
    return chosen


def _limited(chosen: Options, longest: int, context: int, given: Mapping[str, Any]) -> Options:
    """With as many tokens as there is room for, unless their number was given. Raises ValueError
    for a power of lengths that float32 does not hold."""
    if given.get("max_new_tokens") is None:
        chosen = replace(chosen, max_new_tokens=min(chosen.max_new_tokens, context - longest))
    tokens, power = chosen.max_new_tokens, chosen.length_penalty
    if abs(power) * math.log10(tokens) > POWER:
        limit = POWER / math.log10(tokens)
        raise ValueError(
            f"length_penalty is {power}, but {tokens} tokens to this power are no number of "
            f"float32: give one from {-limit:.1f} to {limit:.1f}"
        )
    return chosen


def _stops(stop: Any, tokenizer: Tokenizer | None, vocab: int) -> tuple[list[str], frozenset[int]]:
    """The strings and the ids that end an example. Raises ValueError for what is neither."""
    several = [_token(one, tokenizer) for one in (stop if _several(stop) else [stop])]
    strings = [one for one in several if isinstance(one, str)]
    others = [one for one in several if not isinstance(one, str)]
    for one in others:
        if not isinstance(one, Integral) or isinstance(one, bool):
            raise ValueError(f"stop is {one!r}: give a string, a token id, or several of these")
        if not 0 <= int(one) < vocab:
            raise ValueError(f"stop is token id {one}, but those of the model are 0 to {vocab - 1}")
    if "" in strings:
        raise ValueError("stop is an empty string, which is everywhere: give one with characters")
    if strings and tokenizer is None:
        raise ValueError(f"stop is {strings[0]!r}, but only a tokenizer makes text: give one")
    eos = None if tokenizer is None else tokenizer.specials.eos
    return strings, frozenset(map(int, others if eos is None else [*others, eos]))


def _token(stop: Any, tokenizer: Tokenizer | None) -> Any:
    """The id of a string that is a special token, which no text has; anything else as it is."""
    found = tokenizer.id(stop) if tokenizer is not None and isinstance(stop, str) else None
    return found if tokenizer is not None and found in tokenizer.spelling.special else stop


def _ids(prompts: Any, tokenizer: Tokenizer | None) -> list[list[Any]]:
    """The ids of each prompt, as they were given. Raises ValueError for what is no prompt."""
    prompts = _listed(prompts)
    several = [prompts] if _single(prompts) else prompts
    if not _several(several) or not len(several):
        raise ValueError(f"prompts are {prompts!r}: give a text, ids, or several of either")
    return [_encoded(_listed(prompt), tokenizer) for prompt in several]


def _encoded(prompt: Any, tokenizer: Tokenizer | None) -> list[Any]:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("a prompt is text, but only a tokenizer makes ids of it: give one")
        return tokenizer.encode(prompt)
    if not _several(prompt):
        raise ValueError(f"a prompt is {prompt!r}: give text, or token ids")
    return list(prompt)


def _single(prompts: Any) -> bool:
    """Whether it is one prompt: a text, or ids."""
    return isinstance(prompts, str) or (
        _several(prompts) and len(prompts) > 0 and all(isinstance(x, Number) for x in prompts)
    )


def _several(value: Any) -> bool:
    return isinstance(value, Sequence | Set) and not isinstance(value, str | bytes)


def _listed(value: Any) -> Any:
    """Arrays as lists, which are far faster to go through."""
    return np.asarray(value).tolist() if isinstance(value, np.ndarray | jax.Array) else value


def _checked(ids: list[Any], number: int, decoder: Decoder, needed: int) -> list[int]:
    """As Python integers. Raises ValueError for none, for one that the model has not, and for more
    than leave room for the `needed` new ones."""
    if not ids:
        raise ValueError(
            f"prompt {number} is empty, and nothing comes after nothing: begin with a token, such "
            "as the tokenizer's specials.eos"
        )
    for place, one in enumerate(ids):
        if not isinstance(one, Integral):
            raise ValueError(f"prompt {number} has {one!r} at position {place}, which is no id")
        if not 0 <= int(one) < decoder.vocab:
            raise ValueError(
                f"prompt {number} has id {one} at position {place}, but those of the model are "
                f"0 to {decoder.vocab - 1}"
            )
    if len(ids) + needed > decoder.context:
        raise ValueError(
            f"prompt {number} has {len(ids)} tokens, and the context of {decoder.context} has no "
            f"room for {needed} more: shorten it, or lower max_new_tokens"
        )
    return [int(one) for one in ids]


# What the device takes.


class Inputs(NamedTuple):
    """rows: of the cache. prompts: int32 [b, p], padded with 0. lengths: int32 [b]."""

    rows: int
    prompts: np.ndarray
    lengths: np.ndarray


def _inputs(ids: Sequence[Sequence[int]], decoder: Decoder, options: Options) -> Inputs:
    lengths = np.array([len(row) for row in ids], np.int32)
    longest = int(lengths.max())
    prompts = np.zeros((len(ids), bucket(longest, decoder.context)), np.int32)
    for row, known in zip(prompts, ids, strict=True):
        row[: len(known)] = known
    return Inputs(bucket(longest + options.max_new_tokens, decoder.context), prompts, lengths)


def _rule(options: Options, vocab: int) -> Rule:
    """Sorting is for what needs it, and of no more than a power of two above top_k."""
    sort = 0 if options.top_p is None else vocab
    if options.top_k is not None:
        sort = bucket(options.top_k, vocab)
    return Rule(
        greedy=options.temperature == 0,
        sort=0 if options.temperature == 0 else sort,
        penalise=options.repetition_penalty != 1,
    )


def _settings(
    options: Options, vocab: int, tokenizer: Tokenizer | None, stops: frozenset[int]
) -> Settings:
    """Of a vocabulary that was padded, only ids that are tokens are allowed."""
    allowed = np.ones(vocab, bool) if tokenizer is None else np.zeros(vocab, bool)
    allowed[[] if tokenizer is None else list(tokenizer.spelling.pieces)] = True
    ends = np.zeros(vocab, bool)
    ends[list(stops)] = True
    return Settings(
        temperature=np.float32(options.temperature or 1),
        top_k=np.int32(min(options.top_k or vocab, vocab)),
        top_p=np.float32(options.top_p or 2),
        min_p=np.float32(options.min_p or 0),
        repetition_penalty=np.float32(options.repetition_penalty),
        seed=np.uint32(options.seed),
        allowed=allowed,
        stops=ends,
    )
