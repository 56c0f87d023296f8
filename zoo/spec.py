"""The two facts that a model page states beside its code: what is published, and what goes in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

Count = Annotated[int, 0]  # a whole number that may be 0; an `int` of a Config is 1 or more
Size = int | tuple[int, int]  # of a picture: the side of a square, or (height, width)


def sides(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class Variant:
    """A published size of a model: its `Config`, and the parameter count that its source prints.

    `parts` names the variants that fill the page's `nn.Module` fields, for models made of models:
    `parts={"backbone": "resnet50"}`.
    """

    config: Any
    params: int
    parts: Mapping[str, str] = field(default_factory=dict)


class Input(NamedTuple):
    """One input of a model: `"b"` in the shape is the batch, values lie in [low, high]."""

    shape: tuple[str | int, ...]
    dtype: str = "float32"
    low: float = 0.0
    high: float = 1.0


# Rows of a page's PARTITION: a Transformer's matrices split over its heads and hidden channels, and
# over the vocabulary (Shoeybi et al., 2019, arXiv:1909.08053, section 3). The axes are of the last
# dimensions, so that blocks that are stacked for a scan are split alike.
TRANSFORMER = (
    (r".*/(q|k|v|fc1|gate|up)/kernel", ("fsdp", "tensor")),
    (r".*/(out|fc2|down)/kernel", ("tensor", "fsdp")),
    (r"embed/embedding", ("tensor", "fsdp")),
    (r"head/kernel", ("fsdp", "tensor")),
)
