"""Texts as vectors, and words for the gaps in them: what an encoder answers without being trained.

Both functions know a model as `apply(variables, tokens int32 [b, n], lengths int32 [b])`, of which
`lengths` tokens a row are real, and returns hidden states [b, n, d]. Texts are padded to few
lengths and always to `batch` rows, so that a program is compiled once for each of these lengths;
give the same `apply` again, and not at all.

b batch · n tokens · d width · v vocabulary · m gaps.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.buckets import bucket
from zoo.text.errors import TokenizerError
from zoo.text.tokenizer import Tokenizer

Apply = Callable[[Any, jax.Array, jax.Array], jax.Array]
Head = Callable[[Any, jax.Array], jax.Array]


def embed(
    apply: Apply,
    variables: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch: int = 32,
    normalise: bool = True,
    length: int | None = None,
    context: int | None = None,
    vocab: int | None = None,
) -> np.ndarray:
    """float32 [texts, d]: the mean of the hidden states over the tokens of each text, special ones
    among them.

    normalise: to a length of 1, so that products are cosines. length: cut texts to so many tokens.
    context, vocab: the model's limits.
    Raises ValueError for no texts, for one without tokens and for one longer than the context;
    TokenizerError for ids that the model has no embedding for.
    """
    ids = encoded(tokenizer, texts, vocab, special_text=False)
    ids = ids if length is None else [cut(tokenizer, row, length) for row in ids]
    check_lengths(ids, context, f"cut it, or say length={context}")
    found: dict[int, np.ndarray] = {}
    for places, tokens, lengths in batches(tokenizer, ids, batch, context):
        vectors = np.asarray(_mean(apply, normalise)(variables, tokens, lengths))
        found |= zip(places, vectors, strict=False)  # rows behind the texts are empty
    return np.stack([found[place] for place in range(len(ids))])


def fill_mask(
    apply: Apply,
    head: Head,
    variables: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    top: int = 5,
    batch: int = 8,
    context: int | None = None,
    vocab: int | None = None,
) -> list[list[list[tuple[str, float]]]]:
    """For each text, for each mask in it, the `top` likeliest tokens with their probabilities;
    tokens as the vocabulary writes them. head: (variables, hidden […, d]) → logits […, v]; it is
    for the gaps alone, since of all tokens it may cost more than the model.

    context, vocab: the model's limits.
    Raises ValueError for no texts, for one without a mask, for one longer than the context and for
    a `top` that the tokenizer has not as many tokens for; TokenizerError where it has no mask, or
    ids that the model has no embedding for.
    """
    mask = tokenizer.specials.mask
    if mask is None:
        raise TokenizerError(
            "this tokenizer has no mask token: it belongs to another kind of model"
        )
    tokens_known = np.array(sorted(tokenizer.spelling.pieces), np.int32)
    if not 1 <= top <= len(tokens_known):
        raise ValueError(f"top={top}, but the tokenizer has 1 to {len(tokens_known)} tokens")
    ids = encoded(tokenizer, texts, vocab, special_text=True)
    check_lengths(ids, context, "cut it")
    gaps = [[at for at, i in enumerate(row) if i == mask] for row in ids]
    for place, found in enumerate(gaps):
        if not found:
            raise ValueError(
                f"text {place} has no mask: write {tokenizer.token(mask)} where a word is missing"
            )
    answers: dict[int, list[list[tuple[str, float]]]] = {}
    for places, tokens, lengths in batches(tokenizer, ids, batch, context):
        at = padded([gaps[place] for place in places], batch)
        guess = _likeliest(apply, head, top)(variables, tokens, lengths, at, tokens_known)
        shares, likeliest = map(np.asarray, guess)
        for row, place in enumerate(places):
            answers[place] = [
                [(tokenizer.token(i), float(p)) for i, p in zip(*both, strict=True)]
                for both in zip(likeliest[row], shares[row], strict=True)
            ][: len(gaps[place])]
    return [answers[place] for place in range(len(ids))]


@lru_cache
def applied(model: Any) -> tuple[Apply, Head]:
    """A Linen encoder with methods `hidden` and `logits` as both functions know it; the same for
    the same model, so that nothing is compiled again."""

    def apply(variables: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        return model.apply(variables, tokens, lengths=lengths, method="hidden")

    def head(variables: Any, hidden: jax.Array) -> jax.Array:
        return model.apply(variables, hidden, method="logits")

    return apply, head


@lru_cache(8)
def _mean(apply: Apply, normalise: bool) -> Callable[..., jax.Array]:
    def run(variables: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        hidden = apply(variables, tokens, lengths).astype(jnp.float32)
        real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        total = jnp.where(real[:, :, None], hidden, 0).sum(axis=1)
        if not normalise:
            return total / lengths[:, None]
        norm = jnp.linalg.norm(total, axis=1, keepdims=True)
        return total / jnp.where(norm > 0, norm, 1)

    return jax.jit(run)


@lru_cache(8)
def _likeliest(apply: Apply, head: Head, top: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def run(
        variables: Any, tokens: jax.Array, lengths: jax.Array, at: jax.Array, known: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(probabilities, ids), [b, m, top], at the places `at` [b, m] of each row; of the ids that
        are `known`, since vocabularies of models may be padded."""
        hidden = jnp.take_along_axis(apply(variables, tokens, lengths), at[:, :, None], axis=1)
        shares = jax.nn.softmax(head(variables, hidden).astype(jnp.float32))
        best, index = jax.lax.top_k(shares[:, :, known], top)
        return best, known[index]

    return jax.jit(run)


# Rows of a few lengths.


def encoded(
    tokenizer: Tokenizer, texts: Sequence[str], vocab: int | None, *, special_text: bool
) -> list[list[int]]:
    """The ids of all texts. special_text: "[MASK]" in a text is that token."""
    if vocab is not None:
        tokenizer.check(vocab)
    ids = tokenizer.encode_batch(texts, parse_special=special_text)
    if not ids:
        raise ValueError("there are no texts: give at least one")
    return ids


def cut(tokenizer: Tokenizer, row: list[int], length: int) -> list[int]:
    """Its first `length` ids, a closing token kept."""
    if length < 1:
        raise ValueError(f"length={length}: keep at least 1 token of a text")
    kept, mask = tokenizer.pad([row], length, truncate=True, pad=0)
    return kept[0, mask[0]].tolist()


def check_lengths(ids: Sequence[Sequence[int]], context: int | None, hint: str) -> None:
    for place, row in enumerate(ids):
        if not row:
            raise ValueError(f"text {place} has no tokens: leave it out")
        if context is not None and len(row) > context:
            raise ValueError(
                f"text {place} has {len(row)} tokens, more than the model's context of {context}: "
                f"{hint}"
            )


def batches(
    tokenizer: Tokenizer, ids: Sequence[Sequence[int]], batch: int, context: int | None
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """(places of texts in `ids`, their tokens [batch, n], lengths [batch]); texts of one length
    together, and rows of one padding token where texts are missing."""
    if batch < 1:
        raise ValueError(f"batch={batch}: a batch has at least 1 row")
    sizes = [bucket(len(row), context) for row in ids]
    for n in sorted(set(sizes)):
        of_size = [place for place, size in enumerate(sizes) if size == n]
        for start in range(0, len(of_size), batch):
            places = of_size[start : start + batch]
            rows = [ids[place] for place in places] + [[0]] * (batch - len(places))
            tokens, real = tokenizer.pad(rows, n, pad=tokenizer.specials.pad or 0)
            yield places, tokens, real.sum(axis=1, dtype=np.int32)


def padded(rows: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """Rows of different lengths as int32 [count, m] with m a power of two, filled up with 0."""
    longest = max(map(len, rows))
    filled = np.zeros((count, 1 << (longest - 1).bit_length()), np.int32)
    for row, values in zip(filled, rows, strict=False):
        row[: len(values)] = values
    return filled
