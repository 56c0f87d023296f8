"""Scaled dot-product attention (Vaswani et al., 2017, arXiv:1706.03762, section 3.2).

    q [b, n, h, c], k v [b, m, h, c] → softmax(q kᵀ / √c) v [b, n, h, c]

b batch · n m queries, keys · h heads · c channels of a head. Masks are a flag and lengths, never an
array [n, m], so that a fused kernel has none to read.
"""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """Equation 1 in every head: q [b, n, h, c], k and v [b, m, h, c] → [b, n, h, c], in q's dtype.

    causal: query i sees keys 0 … i alone.
    lengths: int32 [b], how many keys come before the padding; where that is 0, so is the result.

    cuDNN's flash attention runs where it can: on an NVIDIA GPU since Ampere, for float16 and
    bfloat16, and for c a multiple of 8 up to 256.
    """
    # No kernel agrees with another on a row without keys: show it one, and drop what comes of it.
    seen = None if lengths is None else jnp.maximum(lengths, 1)
    try:
        y = (flash if _fits_flash(q) else plain)(q, k, v, causal=causal, lengths=seen)
    except NotImplementedError:  # older GPUs and cuDNNs take less
        y = plain(q, k, v, causal=causal, lengths=seen)
    return y if lengths is None else jnp.where((lengths > 0)[:, None, None, None], y, 0)


def flash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, lengths: jax.Array | None
) -> jax.Array:
    """One fused kernel, whose memory grows with n, not with n · m.

    JAX refuses to differentiate it at odd lengths, though only a bias needs even ones, and a class
    token makes most lengths odd: they are padded by one.
    """
    b, n, m = len(q), q.shape[1], k.shape[1]
    if m % 2 and lengths is None:
        lengths = jnp.full(b, m, jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    y = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return y[:, :n]


def plain(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, lengths: jax.Array | None
) -> jax.Array:
    """All scores [b, h, n, m] at once, and their softmax, in float32.

    Not `jax.nn.dot_product_attention`: its bfloat16 does not compile for GPUs before Ampere.
    """
    at_least_float32 = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bnhc,bmhc->bhnm", q, k, preferred_element_type=at_least_float32)
    scores = scores * q.shape[-1] ** -0.5
    query, key = (jax.lax.broadcasted_iota(jnp.int32, (1, 1, *scores.shape[2:]), i) for i in (2, 3))
    if causal:
        scores = jnp.where(key <= query, scores, -jnp.inf)
    if lengths is not None:
        scores = jnp.where(key < lengths[:, None, None, None], scores, -jnp.inf)
    return jnp.einsum("bhnm,bmhc->bnhc", nn.softmax(scores).astype(v.dtype), v)


def _fits_flash(q: jax.Array) -> bool:
    half, width = q.dtype in (jnp.float16, jnp.bfloat16), q.shape[-1]
    return half and width % 8 == 0 and width <= 256 and _has_flash()


@cache
def _has_flash() -> bool:
    """Whether this process computes on NVIDIA GPUs of compute capability 8 (Ampere) or more, by
    its first device. On such a machine, half precision on `jax.default_device(cpu)` is not for it.
    """
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    major = capability.partition(".")[0]
    return major.isdecimal() and int(major) >= 8  # AMD's are words: gfx942


class Attention(nn.Module):
    """Multi-head self-attention (section 3.2.2), [b, n, d] → [b, n, d]; q, k and v are heads-major.

    bias: of q, k and v; `out` always has one.
    qk_norm: LayerNorm over the channels of each head's q and k, without which the scores of large
    models grow until training diverges (Dehghani et al., 2023, arXiv:2302.05442, section 2).
    """

    heads: int
    bias: bool = True
    qk_norm: bool = False
    epsilon: float = 1e-6  # of qk_norm
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, causal: bool = False, lengths: jax.Array | None = None
    ) -> jax.Array:
        dense = partial(nn.Dense, x.shape[-1], kernel_init=self.kernel_init)
        q, k, v = (
            rearrange(dense(use_bias=self.bias, name=name)(x), "b n (h c) -> b n h c", h=self.heads)
            for name in ("q", "k", "v")
        )
        if self.qk_norm:
            q = nn.LayerNorm(epsilon=self.epsilon, name="q_norm")(q)
            k = nn.LayerNorm(epsilon=self.epsilon, name="k_norm")(k)
        y = attend(q, k, v, causal=causal, lengths=lengths)
        return dense(name="out")(rearrange(y, "b n h c -> b n (h c)"))
