"""Generation on the device: a prompt is read once, then one loop draws token after token.

    prompts [b, p] → remember → cache and the last hidden state [b, d] → head → draw
                   → while any example goes on: remember [b, 1] → head → draw

b batch · p prompt, padded on the right · m rows of the cache · v vocabulary · c candidates.
A `Decoder` is the model: two functions and its sizes. Programs are compiled once for each decoder,
b, p and m; how many tokens are drawn, and by which temperature, is no part of them.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Decoder(NamedTuple):
    """What generation needs of a model.

    remember: (variables, tokens int32 [b, n], cache, lengths int32 [b]) → (hidden [b, n, d], the
    new cache); several tokens begin a text, the first `lengths` of them are real, one continues it.
    head: (variables, hidden […, d]) → logits […, vocab].
    empty_cache: (batch, length, dtype) → a cache with room for so many tokens.
    context: the most tokens that it takes. vocab: how many logits there are.
    """

    remember: Callable[..., Any]
    head: Callable[..., jax.Array]
    empty_cache: Callable[..., Any]
    context: int
    vocab: int


@lru_cache
def decoder(model: Any, empty_cache: Callable[..., Any]) -> Decoder:
    """Of a Linen module with methods `remember` and `logits`; the same one for the same arguments,
    so that nothing is compiled again."""

    def remember(variables: Any, tokens: jax.Array, cache: Any, lengths: jax.Array) -> Any:
        return model.apply(variables, tokens, cache, lengths=lengths, method="remember")

    return Decoder(
        remember=remember,
        head=partial(model.apply, method="logits"),
        empty_cache=partial(empty_cache, model.config),
        context=model.config.context,
        vocab=model.config.vocab,
    )


class Rule(NamedTuple):
    """What of the drawing is compiled. greedy: take the likeliest. sort: how many of the likeliest
    are put in order, as top-k and top-p need it; 0 for none. penalise: what was there before."""

    greedy: bool = False
    sort: int = 0
    penalise: bool = False


class Settings(NamedTuple):
    """What of the drawing is not compiled: scalars, float32 but for top_k int32 and seed uint32;
    allowed, stops: bool [v], the tokens that may be drawn and those that end an example."""

    temperature: Any
    top_k: Any  # v: all
    top_p: Any  # above 1: all
    min_p: Any  # 0: all
    repetition_penalty: Any
    seed: Any
    allowed: Any
    stops: Any


class State(NamedTuple):
    """What the loop carries; row i of an array is example i.

    step: int32, tokens drawn so far. tokens int32, logprobs float32 [b, m]: of the first `step`
    columns, and of no meaning behind a token that stops. done: bool [b], those that have stopped.
    seen: bool [b, v], the tokens that are there, None where nobody asks.
    """

    step: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    done: Any
    seen: jax.Array | None
    cache: Any


@partial(jax.jit, static_argnames=("decoder", "rule", "rows"))
def start(
    decoder: Decoder,
    rule: Rule,
    rows: int,
    variables: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    settings: Settings,
) -> State:
    """Reads prompts int32 [b, p], padded on the right, of `lengths` int32 [b] tokens, and draws the
    first token of each. rows: m, how many tokens a prompt and what follows may have."""
    b = len(prompts)
    last, cache = read(decoder, rows, variables, prompts, lengths)
    state = State(
        step=jnp.int32(0),
        tokens=jnp.zeros((b, rows), jnp.int32),
        logprobs=jnp.zeros((b, rows), jnp.float32),
        done=jnp.zeros(b, bool),
        seen=occurring(prompts, lengths, decoder.vocab) if rule.penalise else None,
        cache=cache,
    )
    return _drawn(rule, decoder.head(variables, last), state, settings)


@partial(jax.jit, static_argnames=("decoder", "rule"), donate_argnames=("state",))
def extend(
    decoder: Decoder,
    rule: Rule,
    variables: Any,
    state: State,
    settings: Settings,
    limit: jax.Array,
) -> State:
    """Draws until each example has stopped or `limit` int32 tokens. The state is donated: the cache
    stays where it is."""

    def goes_on(state: State) -> jax.Array:
        return (state.step < limit) & ~state.done.all()

    def step(state: State) -> State:
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        hidden, cache = decoder.remember(variables, token, state.cache, None)
        logits = decoder.head(variables, hidden[:, 0])
        return _drawn(rule, logits, state._replace(cache=cache), settings)

    return jax.lax.while_loop(goes_on, step, state)


def read(
    decoder: Decoder, rows: int, variables: Any, prompts: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, Any]:
    """(the hidden state [b, d] of each prompt's last token, the cache). The head is for these
    alone: of all tokens it would cost more than the model."""
    compute = partial(decoder.remember, variables, prompts)
    dtype = jax.eval_shape(compute, decoder.empty_cache(len(prompts), rows), lengths)[0].dtype
    hidden, cache = compute(decoder.empty_cache(len(prompts), rows, dtype), lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return last, cache


def _drawn(rule: Rule, logits: jax.Array, state: State, settings: Settings) -> State:
    """The state with one more token, which the logits [b, v] are of."""
    logits = logits.astype(jnp.float32)
    token = draw(rule, logits, state.seen, state.step, settings)
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=state.step, axis=1)
    seen, rows = state.seen, jnp.arange(len(token))
    return state._replace(
        step=state.step + 1,
        tokens=write(state.tokens, token[:, None]),
        logprobs=write(state.logprobs, logprob),
        done=state.done | settings.stops[token],
        seen=None if seen is None else seen.at[rows, token].set(True),
    )


def draw(
    rule: Rule, logits: jax.Array, seen: jax.Array | None, step: jax.Array, settings: Settings
) -> jax.Array:
    """One token of each example, int32 [b], by logits float32 [b, v].

    The random numbers of an example come from the seed, its place in the batch and the step: what
    stands beside it is nothing to it.
    """
    if seen is not None:
        logits = penalised(logits, seen, settings.repetition_penalty)
    logits = jnp.where(settings.allowed[None], logits, -jnp.inf)
    if rule.greedy:
        return logits.argmax(axis=-1).astype(jnp.int32)
    logits, ids = candidates(rule, logits, settings)
    chosen = jax.vmap(jax.random.categorical)(keys(settings.seed, len(logits), step), logits)
    return chosen.astype(jnp.int32) if ids is None else _pick(ids, chosen)


def keys(seed: jax.Array, batch: int, step: jax.Array) -> jax.Array:
    """[b], of the random numbers of one step."""
    base = jax.random.key(seed)
    fold = jax.random.fold_in
    return jax.vmap(lambda example: fold(fold(base, example), step))(jnp.arange(batch))


def candidates(
    rule: Rule, logits: jax.Array, settings: Settings
) -> tuple[jax.Array, jax.Array | None]:
    """(logits [b, c], of which the highest is 0, and −∞ where a token may not be drawn; their ids
    [b, c], None for 0 … v − 1).

    In this order: temperature; the `top_k` likeliest; of these the likeliest whose sum reaches the
    probability `top_p` (Holtzman et al., 2020, arXiv:1904.09751, section 3.1); of these all that
    have at least `min_p` of the probability of the first (Nguyen et al., 2024, arXiv:2407.01082,
    section 3). The likeliest token is always left.
    """
    # Nothing overflows from 0 downwards, however low the temperature is.
    logits, ids = (logits - logits.max(axis=-1, keepdims=True)) / settings.temperature, None
    if rule.sort:
        logits, ids = jax.lax.top_k(logits, rule.sort)
        rank = jnp.arange(rule.sort)[None]
        logits = jnp.where(rank < settings.top_k, logits, -jnp.inf)
        share = jax.nn.softmax(logits)
        before = share.cumsum(axis=-1) - share
        logits = jnp.where((before < settings.top_p) | (rank == 0), logits, -jnp.inf)
    return jnp.where(logits >= jnp.log(settings.min_p), logits, -jnp.inf), ids


def penalised(logits: jax.Array, seen: jax.Array, penalty: Any) -> jax.Array:
    """Logits of the tokens that were seen: divided by the penalty where positive, multiplied by it
    where negative (Keskar et al., 2019, arXiv:1909.05858, section 4.1, has the first alone)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def occurring(prompts: jax.Array, lengths: jax.Array, vocab: int) -> jax.Array:
    """bool [b, v]: which tokens there are before the padding."""
    b, p = prompts.shape
    real = jnp.arange(p)[None] < lengths[:, None]
    return jnp.zeros((b, vocab), bool).at[jnp.arange(b)[:, None], prompts].max(real)


def _pick(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.take_along_axis(rows, columns[:, None], axis=1)[:, 0]
