"""Losses that bring pictures and their own texts together, and move all others apart.

    image [b, e], text [b, e] → logits scale · ⟨image_i, text_j⟩ [b, b] → loss, scalar

b pairs of the global batch · r of them on this device · e width of the common space · c chunk of
the batch. Embeddings have length 1; all is computed in float32.

Every device judges its own r rows against all b: the others' embeddings are small, [b, e]. With a
`chunk`, which must divide b, only [r, c] of the logits exist at a time, and are computed again for
the backward pass, so that no device ever holds [b, b].
Under jit arrays are global. Under pmap each device has its own r pairs, `axis` names the mapped
axis, and the mean over devices of the losses, and of their gradients, is that of the global batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

# score(products [r, c], whether a column is the row's own partner, bool [r, c]) -> tree of [r]
Score = Callable[[jax.Array, jax.Array], Any]
# embed(vars, batch, rng) -> (tree of [b, …], new vars)
Embed = Callable[[Any, Any, jax.Array], tuple[Any, Any]]


def softmax_loss(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    *,
    chunk: int = 0,
    axis: str | None = None,
) -> jax.Array:
    """InfoNCE: −log of the share that each picture gives to its text, among all texts, and each
    text to its picture; the mean of both (CLIP: Radford et al., 2103.00020, figure 3)."""
    of_texts = _nats(image, text, scale, chunk, axis)
    of_pictures = _nats(text, image, scale, chunk, axis)
    return (of_texts + of_pictures) / 2


def _nats(
    own: jax.Array, others: jax.Array, scale: jax.Array, chunk: int, axis: str | None
) -> jax.Array:
    """Mean of −log softmax over `others`, at the partner of each row."""

    def score(products: jax.Array, partner: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = scale * products
        return jax.nn.logsumexp(logits, axis=1), jnp.where(partner, logits, 0).sum(axis=1)

    log_z, right = _against_all(score, own, others, chunk, axis)
    return (jax.nn.logsumexp(log_z, axis=0) - right.sum(axis=0)).mean()


def sigmoid_loss(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    chunk: int = 0,
    axis: str | None = None,
) -> jax.Array:
    """Each of the b² pairs by itself: −log σ(±(scale · ⟨image_i, text_j⟩ + bias)), + for partners,
    − for strangers; summed, over b (SigLIP: Zhai et al., 2303.15343, equation 1)."""

    def score(products: jax.Array, partner: jax.Array) -> jax.Array:
        logits = scale * products + bias
        return jax.nn.softplus(jnp.where(partner, -logits, logits)).sum(axis=1)

    return _against_all(score, image, text, chunk, axis).sum(axis=0).mean()


def accuracy(
    image: jax.Array, text: jax.Array, *, chunk: int = 0, axis: str | None = None
) -> jax.Array:
    """The share of pictures that their own text fits better than any other; a tie is a miss.
    Without gradient."""

    def score(products: jax.Array, partner: jax.Array) -> tuple[jax.Array, jax.Array]:
        others = jnp.where(partner, -jnp.inf, products).max(axis=1)
        return jnp.where(partner, products, 0).sum(axis=1), others

    image, text = jax.lax.stop_gradient((image, text))
    right, others = _against_all(score, image, text, chunk, axis)
    return (right.sum(axis=0) > others.max(axis=0)).mean(dtype=jnp.float32)


def _against_all(
    score: Score, own: jax.Array, others: jax.Array, chunk: int, axis: str | None
) -> Any:
    """`score` of own rows [r, e] against `chunk` of the others at a time: its tree, [b / c, r]."""
    own, others = own.astype(jnp.float32), others.astype(jnp.float32)
    rows = jnp.arange(len(own))
    if axis is not None:
        # Its transpose sums what all devices find for a row: so the mean over devices of the
        # gradients is the global one.
        others = jax.lax.all_gather(others, axis, tiled=True)
        rows += jax.lax.axis_index(axis) * len(own)
    if chunk and len(others) % chunk:
        raise ValueError(f"a batch of {len(others)} pairs is no multiple of chunk {chunk}")

    def piece(others: jax.Array, columns: jax.Array) -> Any:
        # Not in less: the scale, up to 100, multiplies its error.
        products = jnp.einsum("re,ce->rc", own, others, precision="highest")
        return score(products, rows[:, None] == columns[None, :])

    columns = jnp.arange(len(others))
    if not chunk:
        return jax.tree.map(lambda x: x[None], piece(others, columns))
    pieces = [rearrange(x, "(k c) ... -> k c ...", c=chunk) for x in (others, columns)]
    return jax.lax.map(jax.checkpoint(lambda x: piece(*x), prevent_cse=False), pieces)


LOSSES = {  # by name: (image, text, scale, bias, chunk=, axis=) -> scalar
    "softmax": lambda image, text, scale, bias, **how: softmax_loss(image, text, scale, **how),
    "sigmoid": sigmoid_loss,
}


def in_micro_batches(
    embed: Embed, count: int, vars: Any, batch: Any, rng: jax.Array
) -> tuple[Any, Any]:
    """`embed(vars, batch, rng)`, made of `count` micro-batches, one after another.

    A contrastive loss needs all embeddings at once, but not what was computed on the way. So a
    micro-batch keeps its embeddings alone, and the backward pass, which begins with the gradient
    of the whole batch's loss, computes the rest again, with the same random numbers: the two passes
    of GradCache (Gao et al., 2101.06983, section 3) are a scan that is rematerialised.

    `vars` go from one micro-batch to the next: batch statistics are those of a micro-batch, and the
    running ones move `count` times, as in `train.step.gradients`.
    """
    if count == 1:
        return embed(vars, batch, rng)

    def micro(vars: Any, part: Any) -> tuple[Any, Any]:
        found, vars = embed(vars, *part)
        return vars, found

    # Every k-th example, not k slices: each device keeps its own examples.
    parts = jax.tree.map(lambda x: rearrange(x, "(b k) ... -> k b ...", k=count), dict(batch))
    keys = jax.random.split(rng, count)
    vars, found = jax.lax.scan(jax.checkpoint(micro, prevent_cse=False), vars, (parts, keys))
    return jax.tree.map(lambda x: rearrange(x, "k b ... -> (b k) ..."), found), vars
