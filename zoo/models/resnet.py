"""Deep Residual Learning for Image Recognition (He et al., 2015, arXiv:1512.03385).

A block learns what to add to its input, so that a hundred layers train as easily as ten.

    image [b, H, W, 3] → stem [b, H/4, W/4, d] → 4 stages, each half the size and twice the width
                       → mean over h, w → logits [b, classes]

b batch · h w height, width · d channels. The CIFAR form keeps H × W in the stem and has 3 stages.
Differs from the paper: a bottleneck strides in its 3×3 convolution, not in the first 1×1 ("v1.5",
as all published weights do, and 0.5 % more accurate); each block's last γ starts at zero.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers.conv import Conv, global_average_pool, max_pool
from zoo.layers.norm import BatchNorm
from zoo.layers.stack import Mode, Remat, stack
from zoo.spec import Count, Input, Variant


@dataclass(frozen=True)
class Config:
    """A column of table 1, or of section 4.2 with `stem="cifar"`; `widths` leave the stages."""

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    stem_width: int = 64
    shortcut: Literal["projection", "pad"] = "projection"  # options B and A of section 3.3
    zero_init: bool = True  # of each block's last γ: blocks start as the identity (1706.02677, 5.1)
    layers: Mode = "loop"
    remat: Remat = False
    image_size: int = 224
    in_channels: int = 3
    num_classes: Count = 1000  # 0: no head, the model returns the pooled features

    def check(self) -> None:
        """Raises ValueError for sizes that do not fit together."""
        stages = len(self.depths), len(self.widths)
        if stages[0] != stages[1]:
            raise ValueError(f"depths for {stages[0]} stages, but widths for {stages[1]}")
        if self.block == "bottleneck" and any(width % 4 for width in self.widths):
            raise ValueError(f"widths {self.widths}: bottlenecks need multiples of 4")
        steps = (self.stem_width, *self.widths)
        if self.shortcut == "pad" and list(steps) != sorted(steps):
            raise ValueError(f"stem and widths {steps}: padded shortcuts cannot grow narrower")


class ResNet(nn.Module):
    """Table 1. Takes images [b, H, W, in_channels], normalised; returns logits [b, classes]."""

    config: Config
    axis: str | None = None  # the mapped axis of devices over which batch statistics are taken

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = global_average_pool(self.features(image, train=train)[-1])
        if not self.config.num_classes:
            return x
        init = nn.initializers.lecun_normal()
        return nn.Dense(self.config.num_classes, kernel_init=init, name="head")(x)

    @nn.compact
    def features(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """The map that leaves each stage, finest first; the sides are ⌈H, W / strides⌉."""
        c = self.config
        if image.shape[-1] != c.in_channels:
            raise ValueError(
                f"image has {image.shape[-1]} channels, but this ResNet takes {c.in_channels}: "
                f"convert the image, or create the model with in_channels={image.shape[-1]}"
            )
        x = Stem(c.stem_width, c.stem, self.axis, name="stem")(image, train=train)
        maps = []
        for i, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
            x = Stage(c, depth, width, 1 if i == 0 else 2, self.axis, name=f"stage{i + 1}")(
                x, train=train
            )
            maps.append(x)
        return tuple(maps)

    @property
    def strides(self) -> tuple[int, ...]:
        first = {"imagenet": 4, "cifar": 1}[self.config.stem]
        return tuple(first * 2**i for i in range(len(self.config.depths)))


class Stem(nn.Module):
    """conv1 of table 1 and its pooling; for CIFAR one 3×3 convolution."""

    width: int
    kind: str
    axis: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1)}[self.kind]
        x = Conv(self.width, kernel, stride, name="conv")(x)
        x = nn.relu(BatchNorm(axis=self.axis, name="norm")(x, train=train))
        return max_pool(x, 3, stride=2) if self.kind == "imagenet" else x


class Stage(nn.Module):
    """conv2_x … conv5_x: the first block changes size and width, the others are equal."""

    config: Config
    depth: int
    width: int
    stride: int
    axis: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        c = self.config
        block = partial(BLOCKS[c.block], self.width, c.shortcut, c.zero_init, self.axis)
        x = stack(partial(block, self.stride), 1, x, remat=c.remat, train=train)
        block = partial(block, 1)
        return stack(block, self.depth - 1, x, start=1, mode=c.layers, remat=c.remat, train=train)


class Basic(nn.Module):
    """Figure 5, left: two 3×3 convolutions."""

    width: int
    shortcut: str
    zero_init: bool
    axis: str | None
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(BatchNorm, axis=self.axis)
        y = Conv(self.width, 3, self.stride, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = Conv(self.width, 3, name="conv2")(y)
        y = norm(scale_init=last_scale(self.zero_init), name="norm2")(y, train=train)
        shortcut = Shortcut(self.width, self.stride, self.shortcut, self.axis, name="shortcut")
        return nn.relu(y + shortcut(x, train=train))


class Bottleneck(nn.Module):
    """Figure 5, right: 1×1 to a quarter of the width, 3×3, 1×1 back."""

    width: int
    shortcut: str
    zero_init: bool
    axis: str | None
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(BatchNorm, axis=self.axis)
        y = Conv(self.width // 4, 1, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = Conv(self.width // 4, 3, self.stride, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = Conv(self.width, 1, name="conv3")(y)
        y = norm(scale_init=last_scale(self.zero_init), name="norm3")(y, train=train)
        shortcut = Shortcut(self.width, self.stride, self.shortcut, self.axis, name="shortcut")
        return nn.relu(y + shortcut(x, train=train))


class Shortcut(nn.Module):
    """Identity where the shape allows, else option A (zeros for new channels) or B (1×1, norm)."""

    width: int
    stride: int
    kind: str
    axis: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.stride == 1 and x.shape[-1] == self.width:
            return x
        if self.kind == "pad":
            x = x[:, :: self.stride, :: self.stride]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.width - x.shape[-1])))
        x = Conv(self.width, 1, self.stride, name="conv")(x)
        return BatchNorm(axis=self.axis, name="norm")(x, train=train)


def last_scale(zero: bool) -> nn.initializers.Initializer:
    return nn.initializers.zeros if zero else nn.initializers.ones


BLOCKS = {"basic": Basic, "bottleneck": Bottleneck}

_deep = partial(Config, widths=(256, 512, 1024, 2048), block="bottleneck")
_cifar = partial(
    Config,
    widths=(16, 32, 64),
    stem="cifar",
    stem_width=16,
    shortcut="pad",
    image_size=32,
    num_classes=10,
)
VARIANTS = {  # table 1, counts as torchvision prints them; section 4.2 and table 6 for CIFAR
    "resnet18": Variant(Config((2, 2, 2, 2)), params=11_689_512),
    "resnet34": Variant(Config((3, 4, 6, 3)), params=21_797_672),
    "resnet50": Variant(_deep((3, 4, 6, 3)), params=25_557_032),
    "resnet101": Variant(_deep((3, 4, 23, 3)), params=44_549_160),
    "resnet152": Variant(_deep((3, 8, 36, 3)), params=60_192_808),
    "resnet20": Variant(_cifar((3, 3, 3)), params=269_722),
    "resnet32": Variant(_cifar((5, 5, 5)), params=464_154),
    "resnet44": Variant(_cifar((7, 7, 7)), params=658_586),
    "resnet56": Variant(_cifar((9, 9, 9)), params=853_018),
    "resnet110": Variant(_cifar((18, 18, 18)), params=1_727_962),
}

TINY = Config((1, 3), (16, 24), "bottleneck", stem_width=8, image_size=32, num_classes=10)


def example(config: Config) -> dict[str, Input]:
    size = config.image_size
    return {"image": Input(("b", size, size, config.in_channels), low=-1, high=1)}
