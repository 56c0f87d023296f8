"""One picture, opened: what `Picture.open` gives to the trainer.

    to train   {"pixel" int32 [b], "colour" uint8 [b, 3]}, drawn from the pixels that train
    to judge   the same, every pixel of the picture in order, and "mask" float32 [b], which is 1 on
               the pixels of the split: what is judged, within a picture that is drawn whole

b: pixels of this process. A pixel is a number, row by row; where it lies is computed on the device
(`Dataset.points`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from train.config import Picture
from train.data import picture, pipeline, sources


@dataclass(frozen=True)
class Dataset:
    """A picture, and which of its pixels train, validate and test.

    splits: by name, int64 numbers of pixels, ascending; no two share one.
    """

    cfg: Picture
    source: picture.Source
    splits: Mapping[str, np.ndarray]

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width)."""
        height, width, _ = self.source.pixels.shape
        return height, width

    @cached_property
    def colours(self) -> np.ndarray:
        """uint8 [h · w, 3], row by row."""
        return self.source.pixels.reshape(-1, 3)

    def train(self) -> pipeline.Stream:
        """Endless batches whose position can be stored: pixels that train, drawn with
        replacement."""
        return self.stream(**pipeline.this_process())

    def stream(self, process_index: int = 0, process_count: int = 1) -> pipeline.Stream:
        """The same for one process of several: its part of batches that all of them draw."""
        part = pipeline.share(self.cfg, self.cfg.batch_size, process_index, process_count)
        known, size = self.splits["train"], self.cfg.batch_size

        def draw(number: int) -> pipeline.Batch:
            rng = np.random.default_rng((self.cfg.seed, number))
            return self._take(known[rng.integers(len(known), size=size)[part]])

        digest = hashlib.sha256(repr(self.sides).encode() + self.colours.tobytes()).hexdigest()
        return pipeline.drawn_stream(draw, self.cfg, pipeline.Skips("train", len(known)), digest)

    def evaluate(self, split: str) -> tuple[Iterator[pipeline.Batch], pipeline.Skips]:
        """Every pixel of the picture in order; those of "validation" or "test" have a `mask`."""
        batches = self.in_order(split, **pipeline.this_process())
        return batches, pipeline.Skips(split, len(self.splits[split]))

    def in_order(
        self, split: str, process_index: int = 0, process_count: int = 1
    ) -> Iterator[pipeline.Batch]:
        """The same for one process of several, each of which has its part of every batch."""
        part = pipeline.share(self.cfg, self.cfg.batch_size, process_index, process_count)
        count, size = len(self.colours), self.cfg.batch_size
        mask = np.zeros(-(-count // size) * size, np.float32)
        mask[self.splits[split]] = 1
        for start in range(0, count, size):
            number = np.arange(start, start + size)[part]
            yield self._take(np.minimum(number, count - 1)) | {"mask": mask[number]}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global training batch."""
        b = self.cfg.batch_size
        return {
            "pixel": jax.ShapeDtypeStruct((b,), jnp.int32),
            "colour": jax.ShapeDtypeStruct((b, 3), jnp.uint8),
        }

    def points(self, pixel: jax.Array) -> jax.Array:
        """The centres of pixels [b] in the unit square, float32 [b, 2]: x to the right, y down."""
        height, width = self.sides
        corner = jnp.stack([pixel % width, pixel // width], axis=1).astype(jnp.float32)
        return (corner + 0.5) / jnp.array([[width, height]], jnp.float32)

    def between_neighbours(self) -> np.ndarray:
        """What can be said without a field, float32 [h · w, 3] in [0, 1]: each pixel as the mean of
        those of its four neighbours that train; where none does, as the mean of all that train."""
        height, width = self.sides
        known = np.zeros((len(self.colours), 1), np.float32)
        known[self.splits["train"]] = 1
        colours = known * (self.colours / np.float32(255))
        total, count = (around(x.reshape(height, width, -1)) for x in (colours, known))
        mean = (colours.sum(axis=0) / known.sum()).reshape(1, 1, 3)
        return np.where(count > 0, total / np.maximum(count, 1), mean).reshape(-1, 3)

    def _take(self, pixel: np.ndarray) -> pipeline.Batch:
        return {"pixel": pixel.astype(np.int32), "colour": self.colours[pixel]}


def around(x: np.ndarray) -> np.ndarray:
    """The sum of the four neighbours within the borders, [h, w, c]."""
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]


def open_picture(cfg: Picture) -> Dataset:
    """Raises ConfigError for a source that cannot be used, and a `data.holdout` that leaves a split
    without pixels."""
    source = picture.open_source(cfg)
    height, width, _ = source.pixels.shape
    every: Any = range(height * width)
    parts = sources.hold_out({"train": every}, cfg)
    splits = {name: cast(sources.Subset, part).indices for name, part in parts.items()}
    return Dataset(cfg, source, splits)
