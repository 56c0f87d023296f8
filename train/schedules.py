"""Learning rates over the steps of a run: warm-up, then a row of `SCHEDULES`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from train.config import ConfigError, Optim

Schedule = Callable[[ArrayLike], jax.Array]


def schedule(cfg: Optim, steps: int) -> Schedule:
    """The learning rate at a step (an int or an int array, traced or not) as float32.

    It rises linearly from 0 to `cfg.lr` at step `cfg.warmup`, where the row of `SCHEDULES` takes
    over until `steps`. Raises ConfigError where the warm-up leaves no steps.
    """
    if cfg.warmup >= steps:
        raise ConfigError(
            f"optim.warmup is {cfg.warmup} steps of a run of {steps}: shorten it or raise `steps`"
        )
    share = SCHEDULES[cfg.schedule](cfg, steps - cfg.warmup)
    if cfg.warmup:
        rise = optax.linear_schedule(0.0, 1.0, cfg.warmup)
        share = optax.join_schedules([rise, share], [cfg.warmup])
    return lambda step: jnp.asarray(cfg.lr * share(step), jnp.float32)


# Schedules: (cfg, n steps after the warm-up) → (t = 0 … n → share of the peak), 1 at t = 0. The two
# that rise by themselves, cyclic and one_cycle, do so only where there is no warm-up to do it.


def constant(cfg: Optim, n: int) -> optax.Schedule:
    """The peak all along."""
    return lambda t: jnp.ones(jnp.shape(t))


def cosine(cfg: Optim, n: int) -> optax.Schedule:
    """Half a period of a cosine down to `final` (Loshchilov & Hutter, 1608.03983, eq. 5)."""
    return optax.cosine_decay_schedule(1.0, n, alpha=cfg.final)


def linear(cfg: Optim, n: int) -> optax.Schedule:
    """A straight line down to `final`."""
    return optax.linear_schedule(1.0, cfg.final, n)


def rsqrt(cfg: Optim, n: int) -> optax.Schedule:
    """√(w / step) with w = max(warmup, 1) (Vaswani et al., 1706.03762, eq. 3).

    It has no end of its own, so `final` is a floor here.
    """
    w = max(cfg.warmup, 1)
    return lambda t: jnp.maximum(cfg.final, jax.lax.rsqrt(1 + jnp.maximum(t, 0) / w))


def wsd(cfg: Optim, n: int) -> optax.Schedule:
    """Warm-up, stable, decay: the last `cooldown` share of all steps falls linearly to `final`.

    Hu et al., 2404.06395, section 4; the linear cooldown is that of Hägele et al., 2405.18392.
    """
    steps = n + cfg.warmup
    fall = round(cfg.cooldown * steps)
    if fall > n:
        raise ConfigError(
            f"optim.cooldown is {fall} of {steps} steps, but optim.warmup leaves only {n}: "
            "shorten one of them"
        )
    down = optax.linear_schedule(1.0, cfg.final, max(fall, 1))
    return optax.join_schedules([constant(cfg, n), down], [n - fall])


def cyclic(cfg: Optim, n: int) -> optax.Schedule:
    """Triangles between `final` and the peak, one every `cycle` steps (Smith, 1506.01186)."""
    start = 1.0 if cfg.warmup else 0.0

    def share(t: ArrayLike) -> jax.Array:
        x = (start + 2 * jnp.mod(t, cfg.cycle) / cfg.cycle) % 2  # a period is [0, 2), its top at 1
        return cfg.final + (1 - cfg.final) * (1 - jnp.abs(1 - x))

    return share


def one_cycle(cfg: Optim, n: int) -> optax.Schedule:
    """One rise, linear, from 1/25 of the peak over the `rise` share of the steps; then a cosine to
    `final` (Smith & Topin, 1708.07120: there the fall is linear and a short annihilation follows).
    """
    top = 0 if cfg.warmup else round(cfg.rise * n)
    fall = optax.cosine_decay_schedule(1.0, max(n - top, 1), alpha=cfg.final)
    return optax.join_schedules([optax.linear_schedule(1 / 25, 1.0, top), fall], [top])


SCHEDULES: dict[str, Callable[[Optim, int], optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "rsqrt": rsqrt,
    "wsd": wsd,
    "cyclic": cyclic,
    "one_cycle": one_cycle,
}
