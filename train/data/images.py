"""Pictures with a class, opened: what `Images.open` gives to the trainer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.config import ConfigError, Images, Pictures
from train.data import pipeline, sources
from train.data.augment import CROP_RATIO
from train.data.sources import Example
from zoo.card import Preprocess
from zoo.preprocess import Picture


@dataclass(frozen=True)
class Pictured:
    """A source of pictures, whatever else there is of each, seen by this process of the run.

    `shape` is (height, width, channels) as the model gets it.
    """

    cfg: Pictures
    source: Any

    def read(self, example: Example, rng: np.random.Generator) -> tuple[Picture, Mapping[str, Any]]:
        """What is trained on, as `pipeline.Read` has it."""
        return pipeline.labelled(example, rng)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        return pipeline.picture_shape(self.source.splits["train"], self.cfg, read=self.read)

    def normalise(self, image: jax.Array) -> jax.Array:
        """uint8 [b, h, w, c] → float32, less the mean, over the standard deviation; on device."""
        row = (1, 1, 1, -1)
        mean, std = jnp.array(self.cfg.mean).reshape(row), jnp.array(self.cfg.std).reshape(row)
        return (image.astype(jnp.float32) / 255 - mean) / std

    @property
    def preprocess(self) -> Preprocess:
        """The same for users of the trained weights."""
        crop = 1.0 if self.cfg.image_size is None else CROP_RATIO
        return Preprocess(self.shape[0], crop, mean=self.cfg.mean, std=self.cfg.std)

    def check(self) -> None:
        """Raises ConfigError for a mean or std that does not fit the pictures."""
        for key in ("mean", "std"):
            values = getattr(self.cfg, key)
            if len(values) not in (1, self.shape[-1]):
                raise ConfigError(
                    f"data.{key} has {len(values)} values, but pictures have {self.shape[-1]} "
                    "channels; give one value or one per channel"
                )


@dataclass(frozen=True)
class Dataset(Pictured):
    """`labels` name the classes."""

    cfg: Images
    source: sources.Source

    @property
    def labels(self) -> tuple[str, ...]:
        return self.source.labels

    def train(self) -> pipeline.Stream:
        """Endless shuffled batches whose position can be stored."""
        return pipeline.train_stream(
            self.source.splits["train"], self.cfg, **pipeline.this_process()
        )

    def evaluate(self, split: str) -> tuple[Iterator[pipeline.Batch], pipeline.Skips]:
        """Every example of "validation" or "test" once, with a `mask`; and what was unreadable."""
        examples = self.source.splits[split]
        skips = pipeline.Skips(split, len(examples))
        return pipeline.eval_batches(
            examples, self.cfg, skips=skips, **pipeline.this_process()
        ), skips

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global training batch."""
        b = self.cfg.batch_size
        return {
            "image": jax.ShapeDtypeStruct((b, *self.shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((b,), jnp.int32),
        }


def open_images(cfg: Images) -> Dataset:
    """Raises ConfigError for a source that cannot be used, a mean or std that does not fit."""
    data = Dataset(cfg, sources.open_source(cfg))
    data.check()
    return data
