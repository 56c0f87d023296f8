"""Feed-forward blocks: each token by itself, through a wider layer and back."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

gelu = partial(nn.gelu, approximate=False)  # x Φ(x) (Hendrycks & Gimpel, 2016, arXiv:1606.08415)
gelu_tanh = partial(nn.gelu, approximate=True)  # section 2 there: Φ by a tanh, up to 5e-4 away


class Mlp(nn.Module):
    """Two dense layers around an activation, […, d] → […, hidden] → […, d].

    dropout: rate after each layer in training; draws from the "dropout" rng unless it is 0.
    The initialisation is that of the authors' ViT; out_init: of fc2's kernel, where it differs.
    """

    hidden: int
    activation: Callable[[jax.Array], jax.Array] = gelu
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.normal(1e-6)
    bias: bool = True
    out_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        dense = partial(nn.Dense, use_bias=self.bias, bias_init=self.bias_init)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        into, out = self.kernel_init, self.out_init or self.kernel_init
        y = self.activation(dense(self.hidden, kernel_init=into, name="fc1")(x))
        y = dense(x.shape[-1], kernel_init=out, name="fc2")(drop(name="drop1")(y))
        return drop(name="drop2")(y)


class SwiGlu(nn.Module):
    """down(silu(gate(x)) · up(x)), […, d] → […, d] (Shazeer, 2020, arXiv:2002.05202, equation 6,
    with biases where `bias`)."""

    hidden: int
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    bias: bool = True
    out_init: nn.initializers.Initializer | None = None  # of `down`, where it differs

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, use_bias=self.bias, bias_init=self.bias_init)
        into, out = self.kernel_init, self.out_init or self.kernel_init
        gate, up = (dense(self.hidden, kernel_init=into, name=name)(x) for name in ("gate", "up"))
        return dense(x.shape[-1], kernel_init=out, name="down")(nn.silu(gate) * up)
