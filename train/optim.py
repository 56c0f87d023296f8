"""Optimizers, and the tables of regex over parameter paths that steer them.

`optimizer` is one chain: clip by global norm → a row of `OPTIMIZERS` → a factor per parameter; what
`freeze` names stays outside of it, without gradient norm, moments or update.

A run of equal blocks may be a loop (`block_0`, `block_1`, …) or one scan (`blocks`, the depth being
the first axis of its leaves, see zoo.layers.stack). Everything here treats the layers of a scan one
by one, so that both train alike.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from train.config import ConfigError, Optim
from train.schedules import Schedule, schedule
from zoo import tree

Tree = Any


def optimizer(cfg: Optim, params: Tree, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` updates over `params` (arrays or ShapeDtypeStructs).

    Every leaf of its state is an array; a frozen parameter has none, counts for no clipping, and
    its update is exactly zero. Raises ConfigError, naming the key, for a regex that does not
    compile or matches no parameter, and for a schedule that does not fit into the steps.
    """
    decays = _table("decay", params, _marks(cfg.decay), False, strict=cfg.weight_decay != 0)
    trained = optax.chain(
        optax.identity() if cfg.clip is None else optax.clip_by_global_norm(cfg.clip),
        OPTIMIZERS[cfg.name](cfg, schedule(cfg, steps), decays),
        _scale(rates(cfg, params)),
    )
    labels = jax.tree.map(lambda ice: "frozen" if ice else "trained", frozen(cfg, params))
    if "trained" not in jax.tree.leaves(labels):
        raise ConfigError(
            f"optim.freeze: {cfg.freeze} freezes every parameter; leave some to train"
        )
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


# Optimizers: (cfg, lr, mask of what decays) → signed updates. Weight decay is decoupled, that is
# lr · decay · parameter, except in sgd and lars, where it is a part of the gradient.


def adamw(cfg: Optim, lr: Schedule, decays: Tree) -> optax.GradientTransformation:
    """Loshchilov & Hutter, 1711.05101, algorithm 2."""
    return optax.adamw(lr, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=decays)


def sgd(cfg: Optim, lr: Schedule, decays: Tree) -> optax.GradientTransformation:
    """As torch.optim.SGD: g ← g + λ θ, v ← μ v + g; the step is lr · v, or lr · (g + μ v) with
    `nesterov`."""
    return optax.chain(
        optax.add_decayed_weights(cfg.weight_decay, decays),
        optax.trace(cfg.momentum, cfg.nesterov),
        optax.scale_by_learning_rate(lr),
    )


def lamb(cfg: Optim, lr: Schedule, decays: Tree) -> optax.GradientTransformation:
    """You et al., 1904.00962, algorithm 2; as in its code, only what decays is rescaled."""
    rescaled = optax.chain(optax.add_decayed_weights(cfg.weight_decay), per_layer(_trust))
    return optax.chain(
        optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps),
        optax.masked(rescaled, decays),
        optax.scale_by_learning_rate(lr),
    )


def lars(cfg: Optim, lr: Schedule, decays: Tree) -> optax.GradientTransformation:
    """You et al., 1708.03888, algorithm 1 with η = 0.001. Only what decays is rescaled."""

    def local(gradient: jax.Array, param: jax.Array) -> jax.Array:
        norm = _norm(gradient) + cfg.weight_decay * _norm(param)
        ratio = _ratio(0.001 * _norm(param), norm)
        return ratio * (gradient + cfg.weight_decay * param)

    return optax.chain(
        optax.masked(per_layer(local), decays),
        optax.scale_by_learning_rate(lr),
        optax.trace(cfg.momentum),  # after the rate: v ← m v + γ λ (g + β w)
    )


def lion(cfg: Optim, lr: Schedule, decays: Tree) -> optax.GradientTransformation:
    """Chen et al., 2302.06675, program 1. Its b2 is 0.99, its lr a third to a tenth of AdamW's."""
    return optax.lion(lr, cfg.b1, cfg.b2, weight_decay=cfg.weight_decay, mask=decays)


def adafactor(cfg: Optim, lr: Schedule, decays: Tree) -> optax.GradientTransformation:
    """Shazeer & Stern, 1804.04235, algorithm 4: lr is relative to the parameter's RMS, and the
    decay of the second moment is 1 − t^−0.8; b1, b2 and eps are not used."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        per_layer(lambda update, _: update / jnp.maximum(1.0, _rms(update))),
        per_layer(lambda update, param: update * jnp.maximum(1e-3, _rms(param))),
        optax.add_decayed_weights(cfg.weight_decay, decays),
        optax.scale_by_learning_rate(lr),
    )


def muon(cfg: Optim, lr: Schedule, decays: Tree) -> optax.GradientTransformation:
    """Jordan et al., 2024 (github.com/KellerJordan/Muon; its momentum is 0.95), for hidden kernels.

    As the source has it, a convolution [h, w, i, o] is the matrix [h · w · i, o], and everything
    else is Adam's: biases, norms, and whatever is in `stem`, `embed` or `head`. A matrix's update
    has RMS 0.2, as AdamW's does, so that one lr and one decay serve both (Liu et al., 2502.16982).
    """
    matrices = optax.chain(
        optax.contrib.scale_by_muon(
            beta=cfg.momentum,
            nesterov=cfg.nesterov,
            weight_dimension_numbers=lambda updates: tree.map_named(_matrix, updates),
        ),
        optax.stateless(lambda updates, _: tree.map_named(_as_large_as_adam, updates)),
    )
    adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
    return optax.chain(
        # Not optax.contrib.muon: its Adam has Nesterov momentum, and decays without a mask.
        optax.partition(
            {"muon": matrices, "adam": adam}, lambda params: tree.map_named(_part, params)
        ),
        optax.add_decayed_weights(cfg.weight_decay, decays),
        optax.scale_by_learning_rate(lr),
    )


OPTIMIZERS: dict[str, Callable[[Optim, Schedule, Tree], optax.GradientTransformation]] = {
    "adamw": adamw,
    "sgd": sgd,
    "lamb": lamb,
    "lars": lars,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
}


def _matrix(path: str, param: Any) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a hidden kernel are its input and its output; None for what is Adam's."""
    first = 1 if STACKED.fullmatch(path) else 0  # a scan's depth is no part of its matrices
    if OUTER.fullmatch(path) or not path.endswith("kernel") or param.ndim - first < 2:
        return None
    axes = range(first, param.ndim)
    return optax.contrib.MuonDimensionNumbers(tuple(axes[:-1]), axes[-1])


def _part(path: str, param: Any) -> str:
    return "adam" if _matrix(path, param) is None else "muon"


def _as_large_as_adam(path: str, update: jax.Array) -> jax.Array:
    """An orthogonal [m, n] has RMS 1 / √max(m, n); AdamW's is 0.2 (2502.16982, section 2.2)."""
    n = update.shape[-1]
    depth = update.shape[0] if STACKED.fullmatch(path) else 1
    return update * (0.2 * math.sqrt(max(update.size // (n * depth), n)))


def per_layer(f: Callable[[jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """`f(update, param) -> update` at every tensor; a scan's are mapped over its layers."""

    def apply(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
        function = jax.vmap(f) if STACKED.fullmatch(tree.name(path)) else f
        return function(update, param)

    return optax.stateless(lambda updates, params: jax.tree.map_with_path(apply, updates, params))


def _trust(update: jax.Array, param: jax.Array) -> jax.Array:
    return update * _ratio(_norm(param), _norm(update))


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, or 1 where either is 0: a parameter that starts at zero must be able to leave it."""
    defined = (a > 0) & (b > 0)
    return jnp.where(defined, a / jnp.where(defined, b, 1), 1)


# Tables over paths.

STACKED = re.compile(r"(.*/)?blocks/.*")
OUTER = re.compile(r"(.*/)?(stem|embed|head)\w*/.*")  # the first and the last parameters
# Those of a trunk that follow its last layer.
TOP = re.compile(r"(head|norm|pool|representation)\w*(/.*)?")
LAYER = re.compile(
    r"(?P<trunk>([^/]+/)*?)"
    r"(?P<layer>(stage|layer|block)_?\d+(/((layer|block)_?\d+|blocks))?|blocks)/.*"
)


def frozen(cfg: Optim, params: Tree) -> Tree:
    """True where a regex of `freeze` matches the path. Raises ConfigError as `optimizer` does."""
    return _table("freeze", params, _marks(cfg.freeze), False)


def rates(cfg: Optim, params: Tree) -> Tree:
    """The factor on the learning rate of each parameter: `lr_scale` times `layer_decay`."""
    scales = _table("lr_scale", params, cfg.lr_scale, 1.0)
    if cfg.layer_decay is None:
        return scales
    return jax.tree.map(lambda a, b: a * b, scales, layer_rates(params, cfg.layer_decay))


def layer_rates(params: Tree, decay: float) -> Tree:
    """decay^k for a parameter with k layers between it and the head, itself included.

    1 for the head and the last norm, decay for the last block, and the least for stem, embedding
    and positions (Bao et al., 2106.08254). A layer is a scope `stage1/block_0`, `block_0` or
    `layer_0`, or one of those in a scan's `blocks`. Layers are ordered by name, numbers as numbers,
    within their trunk: what precedes them in the path, such as `text/` and `image/` where there are
    two towers. Outside of the layers, what TOP matches (`head…`, `norm…`) is a trunk's top and all
    else is its bottom; what is in no trunk keeps its rate.

    A leaf is a float, or for a scan an array [depth, 1, …] that broadcasts to the parameter.
    Raises ConfigError where no path has a layer.
    """
    trunks: dict[str, dict[str, int]] = {}  # trunk → layer → how many it stands for
    for path, leaf in tree.flatten(params).items():
        if found := LAYER.fullmatch(path):
            depth = leaf.shape[0] if STACKED.fullmatch(path) else 1
            trunks.setdefault(found["trunk"], {})[found["layer"]] = depth
    if not trunks:
        raise ConfigError(
            "optim.layer_decay: no parameter is in a layer (stage1/block_0, block_0, layer_0); "
            "use optim.lr_scale"
        )
    trunks = {trunk: dict(sorted(layers.items(), key=_natural)) for trunk, layers in trunks.items()}

    def rate(path: str, leaf: Any) -> float | np.ndarray:
        if found := LAYER.fullmatch(path):
            layers = trunks[found["trunk"]]
            names = list(layers)
            above = sum(layers[name] for name in names[names.index(found["layer"]) + 1 :])
            if not STACKED.fullmatch(path):
                return decay ** (above + 1)
            powers = above + np.arange(leaf.shape[0], 0, -1)
            return (decay**powers).reshape(-1, *[1] * (len(leaf.shape) - 1))
        trunk = max((t for t in trunks if path.startswith(t)), key=len, default=None)
        if trunk is None or TOP.fullmatch(path.removeprefix(trunk)):
            return 1.0
        return decay ** (sum(trunks[trunk].values()) + 1)

    return tree.map_named(rate, params)


def _natural(item: tuple[str, Any]) -> list[str | int]:
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", item[0])]


def _scale(factors: Tree) -> optax.GradientTransformation:
    """Updates times factors; a frozen parameter has a factor but, masked, no update."""

    def scale(factor: Any, updates: Any) -> Any:
        return jax.tree.map(lambda update: update * jnp.asarray(factor, update.dtype), updates)

    return optax.stateless(lambda updates, _: jax.tree.map(scale, factors, updates))


def _marks(patterns: Iterable[str]) -> list[tuple[str, bool]]:
    return [(pattern, True) for pattern in patterns]


def _table(
    key: str, leaves: Tree, rows: Iterable[tuple[str, Any]], default: Any, *, strict: bool = True
) -> Tree:
    try:
        return tree.match(leaves, rows, default, strict=strict)
    except re.error as error:
        raise ConfigError(f"optim.{key}: regex {error.pattern!r}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"optim.{key}: {error}") from None


# The moving average.


def ema(average: Tree, new: Tree, decay: float, updates: ArrayLike) -> Tree:
    """d · average + (1 − d) · new on floating leaves; others are copied from `new`.

    d = min(decay, (1 + t) / (10 + t)) after t updates, so that the start is soon forgotten, as
    `num_updates` does in TensorFlow's ExponentialMovingAverage.
    """
    t = jnp.asarray(updates, jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + t) / (10 + t))

    def move(old: jax.Array, leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return leaf
        return (old + rate * (leaf - old)).astype(old.dtype)

    return jax.tree.map(move, average, new)
