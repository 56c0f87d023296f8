"""Where the leaves of a tree live on a mesh: tables of regex → axes over paths.

The mesh has the axes ("data", "fsdp", "tensor"). A row of a table gives a `PartitionSpec` as a
tuple of axis names; what no row covers is split over "fsdp" along its largest divisible axis.
"""

import re
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo import registry, tree

AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[str, tuple[str | None, ...]]]


def rules(model: Any) -> Rules:
    """The page's own rows (`PARTITION`), none for most."""
    return getattr(registry.page_of(model), "PARTITION", ())


def shardings(shapes: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """A `NamedSharding` for every leaf of a tree of shapes. A rule matches the end of a path, so
    that one table serves the parameters, their moving average and the optimizer's moments; its axes
    are of the last dimensions, and one that does not divide its dimension is left out."""

    def place(path: str, leaf: Any) -> NamedSharding:
        for pattern, axes in rules:
            if re.search(rf"(^|/)({pattern})$", path):
                return NamedSharding(mesh, split(leaf.shape, axes, mesh))
        return NamedSharding(mesh, fsdp(leaf.shape, mesh.shape.get("fsdp", 1)))

    return tree.map_named(place, shapes)


def split(shape: tuple[int, ...], axes: Sequence[str | None], mesh: Mesh) -> PartitionSpec:
    """The axes of a rule on a leaf of that shape, the last ones where it has fewer dimensions."""
    padded = (*(None,) * len(shape), *axes)[len(axes) :]
    return PartitionSpec(
        *(
            axis if axis in mesh.shape and n % mesh.shape[axis] == 0 else None
            for n, axis in zip(shape, padded, strict=True)
        )
    )


def fsdp(shape: tuple[int, ...], size: int) -> PartitionSpec:
    """The largest axis that `size` divides, the last of equals; none where none does."""
    divisible = [(n, i) for i, n in enumerate(shape) if n % size == 0 and n >= size]
    if size == 1 or not divisible:
        return PartitionSpec()
    _, axis = max(divisible)
    return PartitionSpec(*(None,) * axis, "fsdp")
