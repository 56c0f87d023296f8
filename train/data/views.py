"""Views of one scene, opened: what `Views.open` gives to the trainer.

    to train   {"slot" int32 [b]}, numbers from which a device draws rays (`Dataset.drawn`), or with
               data.draw = "host" the rays, {"ray" int32 [b], "colour" uint8 [b, c]}: of all pixels
               of the training views, with replacement
    to judge   {"ray", "colour"} of every pixel of every view of a split in order, and
               "mask" float32 [b]

b: rays of this process · c: 3, or 4 with alpha. A ray is the number of its pixel, view by view and
row by row; where it lies is computed on the device (`Dataset.pixels`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from train.config import ConfigError, Views
from train.data import pipeline, posed, raytrace
from train.data.posed import Scene

LARGEST = 2**31 - 1  # pixels that int32 counts
SMALLEST = 11  # the side of SSIM's window


@dataclass(frozen=True)
class Dataset:
    """A scene and how its rays are drawn."""

    cfg: Views
    scene: Scene

    @property
    def source(self) -> Scene:
        """What the licence is of."""
        return self.scene

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) of every picture."""
        _, height, width, _ = self.scene.images.shape
        return height, width

    def train(self) -> pipeline.Stream:
        """Endless batches, drawn with replacement, whose position can be stored."""
        return self.stream(**pipeline.this_process())

    def stream(self, process_index: int = 0, process_count: int = 1) -> pipeline.Stream:
        """The same for one process of several: its share of batches that all of them draw."""
        known, size = self.scene.splits["train"], self.cfg.batch_size
        own = pipeline.share(self.cfg, size, process_index, process_count)
        each = self.sides[0] * self.sides[1]

        def slots(number: int) -> pipeline.Batch:
            return {"slot": np.arange(size, dtype=np.int32)[own]}

        def draw(number: int) -> pipeline.Batch:
            rng = np.random.default_rng((self.cfg.seed, number))
            view, pixel = rng.choice(known, size), rng.integers(each, size=size)
            return self.take((view * each + pixel)[own])

        how = slots if self.cfg.draw == "device" else draw
        return pipeline.drawn_stream(
            how, self.cfg, pipeline.Skips("train", len(known)), self.digest()
        )

    def resident(self) -> dict[str, np.ndarray]:
        """What a device draws from: the pixels of the training views, uint8 [pixels, c]."""
        if self.cfg.draw == "host":
            return {}
        images = self.scene.images[self.scene.splits["train"]]
        return {"pictures": images.reshape(-1, images.shape[-1])}

    def drawn(self, batch: Mapping[str, jax.Array], key: jax.Array) -> Mapping[str, jax.Array]:
        """A batch with the rays that its slots draw by a key, the same on any mesh; as it is where
        it has rays. On the device."""
        if "ray" in batch:
            return batch
        pictures, known = batch["pictures"], jnp.asarray(self.scene.splits["train"], jnp.int32)

        def one(slot: jax.Array) -> jax.Array:
            return jax.random.randint(jax.random.fold_in(key, slot), (), 0, len(pictures))

        place = jax.vmap(one)(batch["slot"])
        each = self.sides[0] * self.sides[1]
        ray = known[place // each] * each + place % each
        return {**batch, "ray": ray, "colour": pictures[place]}

    def digest(self) -> str:
        """Of pictures, cameras and what trains."""
        scene, found = self.scene, hashlib.sha256(repr(self.scene.images.shape).encode())
        for part in (scene.images, *scene.cameras, scene.splits["train"]):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()

    def evaluate(self, split: str) -> tuple[Iterator[pipeline.Batch], pipeline.Skips]:
        """Every pixel of the views of "validation" or "test", in order."""
        batches = self.in_order(split, **pipeline.this_process())
        return batches, pipeline.Skips(split, len(self.scene.splits[split]))

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global training batch."""
        b = self.cfg.batch_size
        if self.cfg.draw == "device":
            return {"slot": jax.ShapeDtypeStruct((b,), jnp.int32)}
        return {
            "ray": jax.ShapeDtypeStruct((b,), jnp.int32),
            "colour": jax.ShapeDtypeStruct((b, self.scene.images.shape[-1]), jnp.uint8),
        }

    def pixels(self, ray: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The views int32 [b] of rays, and the centres of their pixels, [b, 2]. On the device."""
        height, width = self.sides
        view, pixel = ray // (height * width), ray % (height * width)
        return view, jnp.stack([pixel % width, pixel // width], axis=-1) + 0.5

    def take(self, ray: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of these rays."""
        pixels = self.scene.images.reshape(-1, self.scene.images.shape[-1])
        return {"ray": ray.astype(np.int32), "colour": pixels[ray]}

    def in_order(
        self, split: str, process_index: int = 0, process_count: int = 1
    ) -> Iterator[pipeline.Batch]:
        """The same for one process of several, each of which has its share of every batch."""
        views, batch = self.scene.splits[split], self.cfg.batch_size
        each = self.sides[0] * self.sides[1]
        size = -(-self.cfg.judged // batch) * batch  # what devices divide
        own = pipeline.share(self.cfg, size, process_index, process_count)
        for start in range(0, len(views) * each, size):
            number = np.arange(start, start + size)[own]
            mask = (number < len(views) * each).astype(np.float32)
            number = np.minimum(number, len(views) * each - 1)
            yield self.take(views[number // each] * each + number % each) | {"mask": mask}


def open_views(cfg: Views) -> Dataset:
    """Raises ConfigError for a source that cannot be used."""
    train, validation, test = cfg.views
    scene = posed.open_scene(
        cfg.source,
        factor=cfg.factor,
        background=cfg.background,
        holdout=cfg.holdout,
        seed=cfg.seed,
        recipe=raytrace.Recipe(cfg.size, cfg.samples, train, validation, test),
        cache=cfg.cache,
    )
    if scene.images[..., 0].size > LARGEST:
        raise ConfigError(
            f"data.source = {cfg.source!r} has {scene.images[..., 0].size} pixels, more than "
            f"{LARGEST}: raise data.factor"
        )
    data = Dataset(cfg, scene)
    if min(data.sides) < SMALLEST:
        raise ConfigError(
            f"data.source = {cfg.source!r}: pictures of {data.sides[0]}×{data.sides[1]} pixels "
            f"cannot be compared in windows of {SMALLEST}: lower data.factor or raise data.size"
        )
    return data
