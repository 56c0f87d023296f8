"""Pictures with a class, opened: what `Images.open` gives to the trainer."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

from train.config import ConfigError, Images
from train.data import pipeline, sources
from train.data.augment import CROP_RATIO
from zoo.card import Preprocess


@dataclass(frozen=True)
class Dataset:
    """A source, seen by this process of the run.

    `labels` name the classes, `shape` is (height, width, channels) as the model gets it.
    """

    cfg: Images
    source: sources.Source

    @property
    def labels(self) -> tuple[str, ...]:
        return self.source.labels

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        return pipeline.picture_shape(self.source.splits["train"], self.cfg)

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
    for key in ("mean", "std"):
        if len(getattr(cfg, key)) not in (1, data.shape[-1]):
            raise ConfigError(
                f"data.{key} has {len(getattr(cfg, key))} values, but pictures have "
                f"{data.shape[-1]} channels; give one value or one per channel"
            )
    return data
