"""Losses per example or token, and the mixing of examples that goes with them.

b batch · c classes · n tokens · v vocabulary · h w height, width. Mixing partners an example with
the one before it in the batch, `roll(x, 1)`: batches are shuffled anyway, no example meets itself,
and of a batch that is sharded over devices only the border rows move. One draw serves the whole
batch. Under a compiler that maps over devices, the batch is each device's own part.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float = 0.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """−Σ_c target · log softmax(logits), float32 [b], computed in float32.

    logits: [b, c], any floating dtype.
    labels: classes, int [b], or shares that sum to 1, float [b, c].
    smoothing: share ε of the target that is spread evenly over all classes: (1 − ε) · label + ε / c
        (Szegedy et al., 1512.00567, section 7).
    mask: [b] weights; the loss is exactly 0, and without gradient, where it is 0.

    A class outside of 0 … c − 1 gives NaN rather than a plausible number.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    loss = -_expected(log_p, labels)
    if smoothing:  # and not 0 · mean, which is NaN where a class is ruled out by a logit of −∞
        loss = (1 - smoothing) * loss - smoothing * log_p.mean(axis=-1)
    if mask is None:
        return loss
    return jnp.where(mask > 0, loss * mask.astype(jnp.float32), 0)


def _expected(log_p: jax.Array, labels: jax.Array) -> jax.Array:
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return (labels.astype(jnp.float32) * log_p).sum(axis=-1)
    index = jnp.where(labels < 0, log_p.shape[-1], labels)  # else −1 would be the last class
    return jnp.take_along_axis(log_p, index[:, None], axis=-1, mode="fill")[:, 0]


def token_scores(logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """What a prediction of tokens is worth, float32 [b, n] each, 0 where nothing is scored.

    logits: [b, n, v], any floating dtype; all is computed in float32.
    targets: int [b, n], below 0 where nothing is scored.

        nats   −log softmax(logits)[target]
        log_z  log Σ exp(logits), the logarithm of the normaliser
        hit    1 where the largest logit is the target's, else 0

    A target of v or more gives NaN rather than a plausible number.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # Not take_along_axis: a vocabulary that is split over devices would be collected for it.
    token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    chosen = jnp.where(token == targets[..., None], logits, 0).sum(axis=-1)
    known = targets < logits.shape[-1]
    found = {
        "nats": jnp.where(known, log_z - chosen, jnp.nan),
        "log_z": log_z,
        "hit": (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32),
    }
    return {name: jnp.where(targets >= 0, x, 0) for name, x in found.items()}


def in_chunks(
    score: Callable[[jax.Array, jax.Array], Any], chunk: int, x: jax.Array, targets: jax.Array
) -> Any:
    """`score(x, targets)`, for `chunk` tokens of every row at a time.

    x: [b, n, d]; targets: int [b, n]; score gives a tree of [b, n], each token by itself.
    What it makes on the way, such as logits [b, n, v], exists for one chunk only, and is computed
    again for the backward pass. Rows are not cut, so that a batch stays split over its devices.
    """
    n = targets.shape[1]
    rest = (0, -n % chunk)
    x = jnp.pad(x, ((0, 0), rest, (0, 0)))
    targets = jnp.pad(targets, ((0, 0), rest), constant_values=-1)
    pieces = [rearrange(a, "b (k c) ... -> k b c ...", c=chunk) for a in (x, targets)]
    found = jax.lax.map(jax.checkpoint(lambda piece: score(*piece), prevent_cse=False), pieces)
    return jax.tree.map(lambda y: rearrange(y, "k b c -> b (k c)")[:, :n], found)


def token_loss(
    scores: dict[str, jax.Array], targets: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """(mean loss, share of hits) over what is scored, float32 scalars; 0 where nothing is.

    scores: as `token_scores` gives them. z_loss: coefficient of log² Z, which keeps the normaliser
    near 1 (PaLM: Chowdhery et al., 2204.02311, section 5, has 1e-4).
    """
    count = jnp.maximum((targets >= 0).sum(), 1)
    loss = scores["nats"] + z_loss * jnp.square(scores["log_z"])
    return loss.sum() / count, scores["hit"].sum() / count


def mix(
    rng: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """mixup, cutmix, one of the two with probability 1/2 where both are on, or neither (alpha 0).

    images: floating [b, h, w, channels]; labels: shares, float [b, c]. Returns both, mixed by
    λ ~ Beta(α, α). Raises ValueError for integers, which cannot be mixed.
    """
    on = [(f, alpha) for f, alpha in ((mixup, mixup_alpha), (cutmix, cutmix_alpha)) if alpha > 0]
    if not on:
        return images, labels
    for x in (images, labels):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"cannot mix {x.dtype} {x.shape}: normalise images, one-hot labels")
    functions, alphas = zip(*on, strict=True)
    choose, draw, place = jax.random.split(rng, 3)
    index = jax.random.randint(choose, (), 0, len(on))
    alpha = jnp.array(alphas)[index]
    share = jax.random.beta(draw, alpha, alpha)
    return jax.lax.switch(index, functions, place, images, labels, share)


def mixup(
    rng: jax.Array, images: jax.Array, labels: jax.Array, share: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """λ · example + (1 − λ) · partner, λ = share (Zhang et al., 1710.09412). Draws nothing."""
    return _blend(images, share), _blend(labels, share)


def cutmix(
    rng: jax.Array, images: jax.Array, labels: jax.Array, share: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A `box` of the partner pasted in; labels by area (Yun et al., 1905.04899, eq. 1 and 2)."""
    height, width = images.shape[1:3]
    top, bottom, left, right = box(rng, height, width, share)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (top <= y) & (y < bottom) & (left <= x) & (x < right)
    pasted = jnp.where(inside[None, :, :, None], jnp.roll(images, 1, axis=0), images)
    return pasted, _blend(labels, 1 - inside.mean(dtype=jnp.float32))


def box(rng: jax.Array, height: int, width: int, share: jax.Array) -> jax.Array:
    """top, bottom, left, right of a box, int [4], the ends excluded.

    Its sides are √(1 − share) of the image's, its centre is anywhere in the image, and what sticks
    out is cut off.
    """
    sides = jnp.array([height, width])
    half = (jnp.sqrt(1 - share) * sides).astype(jnp.int32) // 2
    centre = jax.random.randint(rng, (2,), 0, sides)
    low, high = jnp.maximum(centre - half, 0), jnp.minimum(centre + half, sides)
    return jnp.stack([low, high], axis=1).ravel()


def _blend(x: jax.Array, share: jax.Array) -> jax.Array:
    share = share.astype(x.dtype)
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)
