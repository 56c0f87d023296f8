"""Identity Mappings in Deep Residual Networks (He et al., 2016, arXiv:1603.05027).

Norm and ReLU move in front of each convolution, so that nothing stands on the path of the sum and
a signal passes a thousand layers unchanged.

    image [b, H, W, 3] → stem [b, H/4, W/4, d] → stages of bottlenecks, each half the size and twice
                       the width → norm, ReLU → mean over h, w → logits [b, classes]

b batch · h w height, width · d channels. The CIFAR form keeps H × W in the stem and has 3 stages.
Differs from the paper: where a block changes size or width, which the paper leaves open, its
shortcut is a 1×1 convolution of the pre-activated input, as in the authors' code and in timm.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax

from zoo.layers.conv import Conv, global_average_pool, max_pool
from zoo.layers.norm import BatchNorm
from zoo.layers.stack import Mode, Remat, stack
from zoo.spec import Count, Input, Variant


@dataclass(frozen=True)
class Config:
    """Section 4 and the appendix; `widths` leave the stages. `layers="scan"` compiles one block a
    stage instead of all of them: 1001 layers then cost what 11 do."""

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem: Literal["imagenet", "cifar"] = "imagenet"
    stem_width: int = 64
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
        if any(width % 4 for width in self.widths):
            raise ValueError(f"widths {self.widths}: bottlenecks need multiples of 4")


class ResNetV2(nn.Module):
    """Takes images [b, H, W, in_channels], normalised; returns logits [b, classes]."""

    config: Config
    axis: str | None = None  # the mapped axis of devices over which batch statistics are taken

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.features(image, train=train)[-1]
        x = nn.relu(BatchNorm(axis=self.axis, name="norm")(x, train=train))
        x = global_average_pool(x)
        if not self.config.num_classes:
            return x
        init = nn.initializers.lecun_normal()
        return nn.Dense(self.config.num_classes, kernel_init=init, name="head")(x)

    @nn.compact
    def features(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """The sum that leaves each stage, finest first; the sides are ⌈H, W / strides⌉."""
        c = self.config
        if image.shape[-1] != c.in_channels:
            raise ValueError(
                f"image has {image.shape[-1]} channels, but this ResNetV2 takes {c.in_channels}: "
                f"convert the image, or create the model with in_channels={image.shape[-1]}"
            )
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1)}[c.stem]
        x = Conv(c.stem_width, kernel, stride, name="stem")(image)
        x = max_pool(x, 3, stride=2) if c.stem == "imagenet" else x
        maps = []
        for i, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
            stage = Stage(c, depth, width, 1 if i == 0 else 2, self.axis, name=f"stage{i + 1}")
            x = stage(x, train=train)
            maps.append(x)
        return tuple(maps)

    @property
    def strides(self) -> tuple[int, ...]:
        first = {"imagenet": 4, "cifar": 1}[self.config.stem]
        return tuple(first * 2**i for i in range(len(self.config.depths)))


class Stage(nn.Module):
    """The first block changes size and width, the others are equal."""

    config: Config
    depth: int
    width: int
    stride: int
    axis: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        c = self.config
        block = partial(Block, self.width, self.axis)
        x = stack(partial(block, self.stride), 1, x, remat=c.remat, train=train)
        rest = self.depth - 1
        return stack(block, rest, x, start=1, mode=c.layers, remat=c.remat, train=train)


class Block(nn.Module):
    """Figure 1(b) with the bottleneck of section 4: norm, ReLU, convolution, three times."""

    width: int
    axis: str | None
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(BatchNorm, axis=self.axis)
        y = nn.relu(norm(name="norm1")(x, train=train))
        if self.stride != 1 or x.shape[-1] != self.width:
            x = Conv(self.width, 1, self.stride, name="shortcut")(y)
        y = Conv(self.width // 4, 1, name="conv1")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = Conv(self.width // 4, 3, self.stride, name="conv2")(y)
        y = nn.relu(norm(name="norm3")(y, train=train))
        return x + Conv(self.width, 1, name="conv3")(y)


_cifar = partial(
    Config, widths=(64, 128, 256), stem="cifar", stem_width=16, image_size=32, num_classes=10
)
VARIANTS = {  # ImageNet: counts as timm prints them; CIFAR: table 3, 1.7 M and 10.2 M there
    "resnetv2_50": Variant(Config((3, 4, 6, 3)), params=25_549_352),
    "resnetv2_101": Variant(Config((3, 4, 23, 3)), params=44_541_480),
    "resnetv2_152": Variant(Config((3, 8, 36, 3)), params=60_185_128),
    "resnetv2_164": Variant(_cifar((18, 18, 18)), params=1_703_258),
    "resnetv2_1001": Variant(_cifar((111, 111, 111), layers="scan"), params=10_327_706),
}

TINY = Config((1, 3), (16, 24), stem_width=8, image_size=32, num_classes=10)


def example(config: Config) -> dict[str, Input]:
    size = config.image_size
    return {"image": Input(("b", size, size, config.in_channels), low=-1, high=1)}
