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
    The initialisation is that of the authors' ViT.
    """

    hidden: int
    activation: Callable[[jax.Array], jax.Array] = gelu
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.normal(1e-6)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        dense = partial(nn.Dense, kernel_init=self.kernel_init, bias_init=self.bias_init)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        y = drop(name="drop1")(self.activation(dense(self.hidden, name="fc1")(x)))
        return drop(name="drop2")(dense(x.shape[-1], name="fc2")(y))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) · up(x)), […, d] → […, d] (Shazeer, 2020, arXiv:2002.05202, equation 6,
    with biases)."""

    hidden: int
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, kernel_init=self.kernel_init, bias_init=self.bias_init)
        y = nn.silu(dense(self.hidden, name="gate")(x)) * dense(self.hidden, name="up")(x)
        return dense(x.shape[-1], name="down")(y)
