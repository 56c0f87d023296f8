"""Convolution and pooling with explicit, symmetric padding (XLA's "SAME" pads unevenly)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

# He et al., 2015, arXiv:1502.01852: variance 2 / fan-out keeps the gradient's scale through ReLUs.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A k × k convolution [b, h, w, c] → [b, ⌈h / stride⌉, ⌈w / stride⌉, width] for odd k: pads
    k // 2 on every side. No bias: a norm follows."""

    width: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, pad = self.kernel, self.kernel // 2
        kernel = self.param("kernel", he_fan_out, (k, k, x.shape[-1], self.width))
        x, kernel = promote_dtype(x, kernel)
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def max_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Maximum over window × window, padded by window // 2 with −∞ on every side."""
    pad = window // 2
    size, step = (1, window, window, 1), (1, stride, stride, 1)
    sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, step, sides)


def global_average_pool(x: jax.Array) -> jax.Array:
    """[b, h, w, c] → [b, c], summed in float32."""
    return x.mean(axis=(1, 2), dtype=jnp.float32).astype(x.dtype)
