"""Normalisation, with statistics in float32 whatever the precision of the rest."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy, 2015, arXiv:1502.03167, algorithm 1) over all but the
    last axis.

    `train=True` normalises with the batch's mean and biased variance, computed in two passes (the
    one-pass E[x²] − E[x]² cancels when the mean is large), and moves the running statistics, whose
    variance is unbiased, as torch's is: running ← momentum · running + (1 − momentum) · batch.
    Under a compiler that maps a function over devices, `axis` names the mapped axis and the
    statistics are those of the global batch; under jit the batch is global already.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        width = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,), jnp.float32)
        scale = self.param("scale", self.scale_init, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))

        y = x.astype(jnp.float32)
        if train:
            mean = self._average(y)
            var = self._average(jnp.square(y - _row(mean, y)))
            if not self.is_initializing():
                n = y.size // width * (1 if self.axis is None else jax.lax.axis_size(self.axis))
                self._move(running_mean, mean)
                self._move(running_var, var * (n / max(n - 1, 1)))
        else:
            mean, var = running_mean.value, running_var.value
        y = (y - _row(mean, y)) * _row(jax.lax.rsqrt(var + self.epsilon), y)
        return (y * _row(scale, y) + _row(bias, y)).astype(x.dtype)

    def _average(self, y: jax.Array) -> jax.Array:
        mean = y.mean(axis=tuple(range(y.ndim - 1)))
        return mean if self.axis is None else jax.lax.pmean(mean, self.axis)

    def _move(self, running: nn.Variable, batch: jax.Array) -> None:
        running.value = self.momentum * running.value + (1 - self.momentum) * batch


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · scale over the last axis (Zhang & Sennrich, 2019, arXiv:1910.07467,
    equation 4, without its bias). As in Llama, what is scaled is in x's dtype again."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        return y.astype(x.dtype) * _row(scale, y).astype(x.dtype)


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., e] as float32 of length 1; one that is 0 stays 0, its gradient finite."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _row(vector: jax.Array, like: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))
