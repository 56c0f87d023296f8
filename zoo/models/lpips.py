"""The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (2018, arXiv:1801.03924).

How different two pictures look to people is how far apart the features lie that a classifier
computes of them (Zhang et al., LPIPS).

    picture [b, H, W, 3] → 5 × Stage → features [b, h, w, c] of each, of length 1 at every point
    two of them → squared differences, weighted by channel → mean over h, w → sum over stages [b]

b batch · h w height, width · c channels of a stage.
Differs from the paper: as in version 0.1 of the authors' package, the weights stand outside the
square of equation 1; AlexNet and VGG-16 alone, without SqueezeNet. The package's dropout in front
of the weights, which acted while these were fitted, is left out: `train` changes nothing.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers.conv import he_fan_out
from zoo.spec import Input, Variant

# Of ImageNet, for colours in [0, 1]. The package's scaling layer takes [−1, 1], where these are
# 2 · MEAN − 1 and 2 · STD.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
EPSILON = 1e-10  # beside the length of a feature


@dataclass(frozen=True)
class Config:
    """Which classifier, and how many channels leave its stages. Pictures have any size; that of
    examples is `image_size`."""

    net: Literal["alex", "vgg"] = "alex"
    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    image_size: int = 64

    def check(self) -> None:
        """Raises ValueError for another number of stages, and for examples that are too small."""
        stages, least = len(NETS[self.net].depths), NETS[self.net].least
        if len(self.widths) != stages:
            raise ValueError(f"widths for {len(self.widths)} stages, but {self.net} has {stages}")
        if self.image_size < least:
            raise ValueError(f"image_size is {self.image_size}, but {self.net} needs {least}")


class LPIPS(nn.Module):
    """Figure 3. Takes two batches of pictures [b, H, W, 3], colours in [0, 1] as floating numbers,
    not normalised; returns their distances [b], float32 at least, which are 0 for equal pictures.

    The authors' package takes the same pictures p as 2p − 1, or as p with `normalize=True`.
    Raises ValueError for other shapes, for pictures that are too small, and for whole numbers.
    """

    config: Config

    @nn.compact
    def __call__(self, image: jax.Array, other: jax.Array, *, train: bool = False) -> jax.Array:
        c = self.config
        check_pictures(c.net, image, other)
        x, y = normalise(image), normalise(other)
        found = []
        for i, width in enumerate(c.widths):
            stage = Stage(NETS[c.net], i, width, name=f"stage{i + 1}")
            x, y = stage(x), stage(y)
            found.append(Distance(name=f"distance{i + 1}")(x, y))
        return sum(found[1:], start=found[0])


class Net(NamedTuple):
    """The convolutions of a classifier, in five stages that each end behind a ReLU."""

    depths: tuple[int, ...]  # convolutions of a stage
    kernels: tuple[int, ...]
    pads: tuple[int, ...]
    stride: int  # of the first convolution
    pool: int  # side of the window of a pooling, whose stride is 2
    pooled: tuple[int, ...]  # stages that begin with one, counted from 0
    least: int  # side of the smallest picture that leaves something to every stage


NETS = {
    "alex": Net((1, 1, 1, 1, 1), (11, 5, 3, 3, 3), (2, 2, 1, 1, 1), 4, 3, (1, 2), least=31),
    "vgg": Net((2, 2, 3, 3, 3), (3,) * 5, (1,) * 5, 1, 2, (1, 2, 3, 4), least=16),
}


class Stage(nn.Module):
    """Pooling where there is one, and convolutions with ReLU, [b, h, w, …] → [b, h', w', width]."""

    net: Net
    index: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        net, i = self.net, self.index
        if i in net.pooled:
            x = nn.max_pool(x, (net.pool, net.pool), strides=(2, 2), padding="VALID")
        for j in range(net.depths[i]):
            x = nn.Conv(
                self.width,
                (net.kernels[i], net.kernels[i]),
                strides=net.stride if i == 0 else 1,
                padding=net.pads[i],
                kernel_init=he_fan_out,
                name=f"conv{j + 1}",
            )(x)
            x = nn.relu(x)
        return x


class Distance(nn.Module):
    """Equation 1 of one stage: features of two pictures [b, h, w, c] → [b].

    With all weights 1, as they begin, it is twice the mean cosine distance (section 3).
    """

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones, x.shape[-1:])
        squares = (unit(x) - unit(y)) ** 2
        return jnp.einsum("bc,c->b", squares.mean((1, 2)), _float32(weight), precision="highest")


def unit(x: jax.Array) -> jax.Array:
    """Features of length 1 at every point; where all are 0 they stay so."""
    x = _float32(x)
    squares = (x**2).sum(axis=-1, keepdims=True)
    # √ has no finite slope at 0, and the gradient of the features would be NaN.
    return x / (jnp.sqrt(jnp.where(squares > 0, squares, 1)) + EPSILON)


def normalise(image: jax.Array) -> jax.Array:
    """Colours as the classifiers were trained on, [b, H, W, 3] in the dtype that came."""
    mean, std = (jnp.asarray(x)[None, None, None] for x in (MEAN, STD))
    return ((_float32(image) - mean) / std).astype(image.dtype)


def check_pictures(net: str, image: jax.Array, other: jax.Array) -> None:
    if image.shape != other.shape or image.ndim != 4 or image.shape[-1] != 3:
        raise ValueError(
            f"pictures {image.shape} and {other.shape}: LPIPS compares those of one shape, "
            "[b, H, W, 3]; resize the one, or repeat its channel of grey"
        )
    height, width = image.shape[1:3]
    if min(height, width) < NETS[net].least:
        raise ValueError(
            f"pictures {height}×{width}, but {net} needs {NETS[net].least}×{NETS[net].least}: "
            "enlarge them"
        )
    for x in (image, other):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"colours are {x.dtype}, but LPIPS takes [0, 1]: divide them by 255")


def _float32(x: jax.Array) -> jax.Array:
    """Lengths and distances are float32 at least: near pictures differ in the last digits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


VARIANTS = {  # the package's counts: of the convolutions, and one weight for each of the widths
    "lpips_alex": Variant(Config(), params=2_470_848),
    "lpips_vgg": Variant(Config("vgg", (64, 128, 256, 512, 512)), params=14_716_160),
}

TINY = Config(widths=(8, 12, 16, 12, 8), image_size=47)

KEEP_FLOAT32 = (r"distance\d/weight",)
CLAMP = {r"distance\d/weight": (0.0, math.inf)}  # in training: a difference makes no picture nearer


def example(config: Config) -> dict[str, Input]:
    shape = ("b", config.image_size, config.image_size, 3)
    return {"image": Input(shape), "other": Input(shape)}
