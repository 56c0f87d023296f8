"""Beam search: of all continuations the few that are likeliest so far, token after token.

    logits [b w, v] → of w · v continuations the best k → those that end: found; the best w others
                    → one more token of each

b batch · w beams · k candidates · v vocabulary · m tokens at most. The scores are sums of log-
probabilities; what has ended is ranked by its sum over its length to the power `length_penalty`
(Wu et al., 2016, arXiv:1609.08144, equation 14, has (5 + length) / 6 for the length).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from zoo.decode import Decoder, Settings, occurring, penalised, read


class Beams(NamedTuple):
    """Continuations, best first. score float32 [b, w], −∞ where there is none; tokens int32 and
    logprobs float32 [b, w, m], of which the first counts int32 [b, w] count."""

    score: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    counts: jax.Array


class State(NamedTuple):
    """running: those that go on, whose cache and seen tokens (bool [b w, v], or None) these are.
    found: those that have ended. open: bool [b], whether one that goes on may become better."""

    step: jax.Array
    running: Beams
    found: Beams
    open: jax.Array
    seen: jax.Array | None
    cache: Any


class Search(NamedTuple):
    """What is compiled: w, how many tokens there are that end a text, at least 1, and whether those
    that were there are penalised."""

    beams: int
    stops: int
    penalise: bool


@partial(jax.jit, static_argnames=("decoder", "search", "rows"))
def search(
    decoder: Decoder,
    search: Search,
    rows: int,
    variables: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    settings: Settings,
    limit: jax.Array,
    length_penalty: jax.Array,
) -> Beams:
    """What is found for each prompt, best first; prompts, lengths and rows as `decode.start` takes
    them, limit int32: tokens at most. Semantics of transformers with `early_stopping=False`: an
    example is done when w are found, and the best that goes on, as it is, is worse than all."""
    b, w = len(prompts), search.beams
    last, cache = read(decoder, rows, variables, prompts, lengths)
    none = Beams(
        score=jnp.full((b, w), -jnp.inf),
        tokens=jnp.zeros((b, w, rows), jnp.int32),
        logprobs=jnp.zeros((b, w, rows), jnp.float32),
        counts=jnp.zeros((b, w), jnp.int32),
    )
    seen = occurring(prompts, lengths, decoder.vocab) if search.penalise else None
    state = State(
        step=jnp.int32(0),
        # One beam at first: w equal ones would all go on alike.
        running=none._replace(score=none.score.at[:, 0].set(0.0)),
        found=none,
        open=jnp.ones(b, bool),
        seen=None if seen is None else jnp.repeat(seen, w, axis=0),
        cache=jax.tree.map(lambda x: jnp.repeat(x, w, axis=0), cache),
    )
    logits = jnp.repeat(decoder.head(variables, last), w, axis=0)
    advance = partial(_advance, search, settings, limit, length_penalty)

    def goes_on(state: State) -> jax.Array:
        return (state.step < limit) & state.open.any()

    def step(state: State) -> State:
        tokens = jax.lax.dynamic_slice_in_dim(state.running.tokens, state.step - 1, 1, axis=2)
        tokens = rearrange(tokens, "b w 1 -> (b w) 1")
        hidden, cache = decoder.remember(variables, tokens, state.cache, None)
        return advance(decoder.head(variables, hidden[:, 0]), state._replace(cache=cache))

    return jax.lax.while_loop(goes_on, step, advance(logits, state)).found


def _advance(
    search: Search,
    settings: Settings,
    limit: jax.Array,
    length_penalty: jax.Array,
    logits: jax.Array,
    state: State,
) -> State:
    """The state with every beam one token longer, which the logits [b w, v] are of."""
    w, v = search.beams, logits.shape[-1]
    own = jax.nn.log_softmax(logits.astype(jnp.float32))
    scored = own if state.seen is None else penalised(own, state.seen, settings.repetition_penalty)
    scored = jnp.where(settings.allowed[None], scored, -jnp.inf)
    total = rearrange(scored, "(b w) v -> b w v", w=w) + state.running.score[:, :, None]
    # Should all beams end in all ways that there are, w more are left to go on.
    k = min((1 + search.stops) * w, w * v)
    score, index = jax.lax.top_k(rearrange(total, "b w v -> b (w v)"), k)
    beam, token = index // v, index % v
    logprob = jnp.take_along_axis(rearrange(own, "(b w) v -> b (w v)", w=w), index, axis=1)
    grown = _grow(state.running, beam, score, token, logprob, state.step)

    ends = settings.stops[token] | (state.step + 1 >= limit)
    goes_on, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, score), w)
    running = _take(grown, kept)._replace(score=goes_on)

    length = (state.step + 1).astype(jnp.float32) ** length_penalty
    counted = ends & (jnp.arange(k)[None] < w) & state.open[:, None]
    ended = grown._replace(score=jnp.where(counted, score / length, -jnp.inf))
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), state.found, ended)
    found = _take(both, jax.lax.top_k(both.score, w)[1])
    # The last of the found is the worst, −∞ until there are w.
    better = running.score[:, 0] / length > found.score[:, -1]

    rows = _rows(_pick(beam, kept))
    seen, cache = jax.tree.map(lambda x: x[rows], (state.seen, state.cache))
    if seen is not None:
        chosen = _pick(token, kept).reshape(-1)
        seen = seen.at[jnp.arange(len(chosen)), chosen].set(True)
    return State(state.step + 1, running, found, state.open & better, seen, cache)


def _grow(
    beams: Beams,
    beam: jax.Array,
    score: jax.Array,
    token: jax.Array,
    logprob: jax.Array,
    step: jax.Array,
) -> Beams:
    """The beams [b, k] again, each with a token more."""
    grown = _take(beams, beam)
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=step, axis=2)
    return Beams(
        score=score,
        tokens=write(grown.tokens, token[:, :, None].astype(jnp.int32)),
        logprobs=write(grown.logprobs, logprob[:, :, None]),
        counts=grown.counts + 1,
    )


def _take(beams: Beams, index: jax.Array) -> Beams:
    return jax.tree.map(lambda x: _pick(x, index), beams)


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [b, w, …] at index [b, k]: [b, k, …]."""
    return jax.vmap(lambda rows, chosen: rows[chosen])(x, index)


def _rows(beam: jax.Array) -> jax.Array:
    """The number of each beam [b, w] of its example among all of the batch: [b w]."""
    first = repeat(jnp.arange(len(beam)) * beam.shape[1], "b -> b w", w=beam.shape[1])
    return (first + beam).reshape(-1)
