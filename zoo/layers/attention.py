"""Scaled dot-product attention (Vaswani et al., 2017, arXiv:1706.03762, section 3.2).

    q [b, n, h, c], k v [b, m, k, c] → softmax(q kᵀ / √c) v [b, n, h, c]

b batch · n m queries, keys · h heads · k heads of keys and values, g queries' heads to each · c
channels of a head. Masks are a flag, lengths and numbers, never an array [n, m] from outside, so
that a fused kernel has none to read where it needs none.
"""

from functools import cache as memoised
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from zoo.layers.rope import rotate


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
    window: int | None = None,
    start: jax.Array | None = None,
) -> jax.Array:
    """Equation 1 in every head: q [b, n, h, c], k and v [b, m, k, c] → [b, n, h, c], in q's dtype.

    Keys and values may have fewer heads, each for h / k neighbouring heads of queries (grouped
    queries: Ainslie et al., 2023, arXiv:2305.13245).

    causal: query i sees keys 0 … i alone.
    lengths: int32 [b], how many keys come before the padding; where that is 0, so is the result.
    segments: int32 [b, n], n = m: a query sees the keys that have its own number.
    window: with causal, of those keys the last so many (Mistral: arXiv:2310.06825, section 2).
    start: int32 [b], the key at which the first query stands, 0 where it is None.

    cuDNN's flash attention runs where it can: on an NVIDIA GPU since Ampere, for float16 and
    bfloat16, and for c a multiple of 8 up to 256. Segments alone need a mask [n, m] there.
    """
    if window is not None and not causal:
        raise ValueError(f"window {window} looks back from each query: it needs causal=True")
    # No kernel agrees with another on a row without keys: show it one, and drop what comes of it.
    seen = None if lengths is None else jnp.maximum(lengths, 1)
    masks: dict[str, Any] = {"causal": causal, "lengths": seen, "segments": segments}
    try:
        run = flash if start is None and _fits_flash(q) else partial(plain, start=start)
        y = run(q, k, v, window=window, **masks)
    except NotImplementedError:  # older GPUs and cuDNNs take less
        y = plain(q, k, v, window=window, start=start, **masks)
    return y if lengths is None else jnp.where((lengths > 0)[:, None, None, None], y, 0)


def flash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
    window: int | None = None,
) -> jax.Array:
    """One fused kernel, whose memory grows with n, not with n · m.

    JAX refuses to differentiate it at odd lengths, though only a bias needs even ones, and a class
    token makes most lengths odd: they are padded by one.
    """
    b, n, m = len(q), q.shape[1], k.shape[1]
    if m % 2 and lengths is None:
        lengths = jnp.full(b, m, jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    mask = None
    if segments is not None:
        segments = jnp.pad(segments, ((0, 0), (0, n % 2)))
        mask = visible(*q.shape[1:2] * 2, segments=segments)[:, None]
    y = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return y[:, :n]


def plain(q: jax.Array, k: jax.Array, v: jax.Array, **masks: Any) -> jax.Array:
    """All scores [b, k, g, n, m] at once, and their softmax, in float32.

    Not `jax.nn.dot_product_attention`: its bfloat16 does not compile for GPUs before Ampere.
    """
    at_least_float32 = jnp.promote_types(q.dtype, jnp.float32)
    q = rearrange(q, "b n (k g) c -> b n k g c", k=k.shape[2])
    scores = jnp.einsum("bnkgc,bmkc->bkgnm", q, k, preferred_element_type=at_least_float32)
    scores = scores * q.shape[-1] ** -0.5
    seen = visible(*scores.shape[-2:], **masks)
    if seen is not None:
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    y = jnp.einsum("bkgnm,bmkc->bnkgc", nn.softmax(scores).astype(v.dtype), v)
    return rearrange(y, "b n k g c -> b n (k g) c")


def visible(
    n: int,
    m: int,
    *,
    causal: bool = False,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
    window: int | None = None,
    start: jax.Array | None = None,
) -> Any:
    """Which of m keys each of n queries sees, bool [b or 1, n, m]; None where all are seen."""
    query, key = (jax.lax.broadcasted_iota(jnp.int32, (1, n, m), axis) for axis in (1, 2))
    if start is not None:
        query = query + start[:, None, None]
    rules = []
    if causal:
        rules.append(key <= query)
    if window is not None:
        rules.append(key > query - window)
    if lengths is not None:
        rules.append(key < lengths[:, None, None])
    if segments is not None:
        rules.append(segments[:, :, None] == segments[:, None, :])
    return reduce(jnp.logical_and, rules) if rules else None


def _fits_flash(q: jax.Array) -> bool:
    half, width = q.dtype in (jnp.float16, jnp.bfloat16), q.shape[-1]
    return half and width % 8 == 0 and width <= 256 and _has_flash()


@memoised
def _has_flash() -> bool:
    """Whether this process computes on NVIDIA GPUs of compute capability 8 (Ampere) or more, by
    its first device. On such a machine, half precision on `jax.default_device(cpu)` is not for it.
    """
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    major = capability.partition(".")[0]
    return major.isdecimal() and int(major) >= 8  # AMD's are words: gfx942


class Attention(nn.Module):
    """Multi-head self-attention (section 3.2.2), [b, n, d] → [b, n, d]; q, k and v are heads-major.

    kv_heads: of keys and values, None for as many as `heads`; head_width: c, None for d / heads.
    bias: of q, k and v; out_bias: of `out`.
    qk_norm: LayerNorm over the channels of each head's q and k, without which the scores of large
    models grow until training diverges (Dehghani et al., 2023, arXiv:2302.05442, section 2).
    """

    heads: int
    bias: bool = True
    qk_norm: bool = False
    epsilon: float = 1e-6  # of qk_norm
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    kv_heads: int | None = None
    head_width: int | None = None
    out_bias: bool = True
    out_init: nn.initializers.Initializer | None = None  # None: kernel_init

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        causal: bool = False,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
        window: int | None = None,
        rotary: tuple[jax.Array, jax.Array] | None = None,
        cache: dict[str, jax.Array] | None = None,
        start: jax.Array | None = None,
    ) -> Any:
        """rotary: (cos, sin) of each token's angles, [b or 1, n, c / 2] (zoo.layers.rope).

        cache: {"k", "v"} of [b, m, k, c], as `read` takes it with start; then (y, the new cache).
        """
        width, heads = x.shape[-1], {"q": self.heads, "k": self._kv_heads, "v": self._kv_heads}
        c = self.head_width or width // self.heads
        dense = partial(nn.Dense, kernel_init=self.kernel_init)
        q, k, v = (
            rearrange(
                dense(count * c, use_bias=self.bias, name=name)(x), "b n (h c) -> b n h c", h=count
            )
            for name, count in heads.items()
        )
        if self.qk_norm:
            q = nn.LayerNorm(epsilon=self.epsilon, name="q_norm")(q)
            k = nn.LayerNorm(epsilon=self.epsilon, name="k_norm")(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        out_init = self.out_init or self.kernel_init
        out = nn.Dense(width, use_bias=self.out_bias, kernel_init=out_init, name="out")
        if cache is None:
            y = attend(q, k, v, causal=causal, lengths=lengths, segments=segments, window=window)
            return out(rearrange(y, "b n h c -> b n (h c)"))
        y, cache = read(q, k, v, cache, start, window)
        return out(rearrange(y, "b n h c -> b n (h c)")), cache

    @property
    def _kv_heads(self) -> int:
        return self.kv_heads or self.heads


Cache = dict[str, jax.Array]


def read(
    q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache, start: Any, window: int | None
) -> tuple[jax.Array, Cache]:
    """Causal attention that remembers: (y, the cache {"k", "v"} [b, m, k, c] with k and v in it).

    Several tokens are the first ones: they go to rows 0 … n − 1 and see each other alone. A single
    one goes to row start [b] of its example, and sees the rows up to it; what lies behind is not
    read, and may be anything. Raises ValueError for more tokens than the cache has rows.
    """
    n, rows = q.shape[1], jnp.arange(len(q))
    if n > cache["k"].shape[1]:
        raise ValueError(f"{n} tokens do not fit into a cache of {cache['k'].shape[1]} rows")
    new = {"k": k.astype(cache["k"].dtype), "v": v.astype(cache["v"].dtype)}
    if n > 1:
        cache = {name: cache[name].at[:, :n].set(new[name]) for name in new}
        return attend(q, k, v, causal=True, window=window), cache
    cache = {name: cache[name].at[rows, start].set(new[name][:, 0]) for name in new}
    y = attend(q, cache["k"], cache["v"], causal=True, window=window, start=start)
    return y.astype(q.dtype), cache
