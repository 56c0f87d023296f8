"""A run of equal blocks: as a loop or as one scan, rematerialised or not.

The one place that knows how. A loop names its blocks `block_0`, `block_1`, …; a scan holds one tree
`blocks` whose leaves have the depth as their first axis, and compiles once for all of them.
`zoo.tree.stacked` and `unstacked` turn one layout into the other, so that a checkpoint serves both.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax

Mode = Literal["loop", "scan"]
# What of a block the backward pass computes again: nothing, all but its input, or all but what its
# matrix products with parameters gave, which costs more memory and hardly any time.
Remat = Literal[False, True, "dots"]
POLICIES = {True: None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def stack(
    block: Callable[..., nn.Module],
    depth: int,
    x: jax.Array,
    *,
    start: int = 0,
    mode: Mode = "loop",
    remat: Remat = False,
    each: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> jax.Array:
    """`depth` blocks in a row over x; to be called inside a compact method.

    block: makes one block, `block(name=…)`, whose input and output have one shape.
    start: number of the first block in a loop's names.
    remat: what is not kept for the backward pass, but computed again.
    each: keywords whose arrays [depth, …] are handed out, one row to each block.
    keywords: handed to every block, such as `train=True`.
    """
    each = dict(each or {})

    def call(module: nn.Module, x: jax.Array, row: dict[str, Any]) -> jax.Array:
        return module(x, **row, **keywords)

    keep = {"prevent_cse": mode == "loop", "policy": POLICIES.get(remat)}
    run = nn.remat(call, **keep) if remat else call
    if mode == "loop":
        for i in range(depth):
            row = jax.tree.map(lambda rows, i=i: rows[i], each)
            x = run(block(name=f"block_{start + i}"), x, row)
        return x
    if depth == 0:
        return x
    scan = nn.scan(
        lambda module, x, row: (run(module, x, row), None),
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=depth,
        check_constancy_invariants=False,  # nothing is broadcast: so blocks are traced once
    )
    x, _ = scan(block(name="blocks"), x, each)
    return x


def cached_stack(
    block: Callable[..., nn.Module],
    depth: int,
    x: jax.Array,
    caches: Mapping[str, Any],
    **keywords: Any,
) -> tuple[jax.Array, dict[str, Any]]:
    """The loop of `stack` over blocks that remember: `block_i` takes `cache=caches["block_i"]` and
    returns its new one beside x. One array per layer: a slice of a stacked one would be copied at
    every token."""
    new = {}
    for i in range(depth):
        name = f"block_{i}"
        x, new[name] = block(name=name)(x, cache=caches[name], **keywords)
    return x, new
