"""Learning Robust Visual Features without Supervision (Oquab et al., 2023, arXiv:2304.07193).

DINOv2: a ViT that learned without labels, whose frozen features serve whole images and pixels.

    image [b, H, W, C] → patches [b, n, d] → class token, positions, registers [b, 1 + r + n, d]
                       → depth × Block → norm → class token [b, d], or logits [b, classes]

b batch · n patches, H/p · W/p · d width · p side of a patch · r registers (Darcet et al., 2023,
arXiv:2309.16588), tokens for what a ViT would otherwise keep in patches of background.
Differs from the paper: the heads and losses of pre-training are left out; a branch that stochastic
depth leaves out is computed all the same, and multiplied by 0.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from zoo.layers.attention import Attention
from zoo.layers.drop import drop_path, stochastic_depth
from zoo.layers.mlp import Mlp, SwiGlu
from zoo.layers.posemb import Grid, cut, prepend, resize_positions
from zoo.layers.stack import Mode, Remat, stack
from zoo.spec import Count, Input, Size, Variant, sides


@dataclass(frozen=True)
class Config:
    """A row of table 17, and registers; `hidden` is the width inside the feed-forward, for SwiGLU
    that of each half."""

    patch: int
    width: int
    depth: int
    heads: int
    ffn: Literal["mlp", "swiglu"]
    hidden: int
    registers: Count = 0
    mask_token: bool = True
    qkv_bias: bool = True
    epsilon: float = 1e-6  # of every LayerNorm
    positions: Literal["bicubic", "antialias"] = "bicubic"  # resized by this kernel
    drop_path: float = 0.0  # stochastic depth, the same in all blocks (as the authors train)
    layers: Mode = "loop"
    remat: Remat = False
    image_size: Size = 518
    in_channels: int = 3
    num_classes: Count = 0  # 0: no head, the model returns the class token

    def check(self) -> None:
        """Raises ValueError for values that do not fit together."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if any(side % self.patch for side in sides(self.image_size)):
            raise ValueError(f"image_size {self.image_size} is no multiple of patch {self.patch}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"a rate of dropout is in [0, 1), not {self.drop_path}")

    @property
    def grid(self) -> Grid:
        height, width = sides(self.image_size)
        return height // self.patch, width // self.patch


class DINOv2(nn.Module):
    """Takes images [b, H, W, in_channels], normalised, H and W multiples of the patch; returns the
    class token [b, d], or logits [b, classes] of one linear layer on it and the mean patch.

    mask: bool [b, n], which patches the mask token stands for.
    Stochastic depth draws from the "dropout" rng; at a rate of 0 none is needed.
    """

    config: Config

    @nn.compact
    def __call__(
        self, image: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        c = self.config
        x = self.tokens(image, mask=mask, train=train)
        token, patches = x[:, 0], x[:, 1 + c.registers :]
        if not c.num_classes:
            return token
        mean = patches.mean(axis=1, dtype=jnp.float32).astype(x.dtype)
        head = nn.Dense(c.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")
        return head(jnp.concatenate([token, mean], axis=1))

    def tokens(
        self, image: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """[b, 1 + r + n, d] after the final norm: class token, registers, patches row by row."""
        return self._encode(self._embed(image, mask), train)

    def features(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """One map, [b, H/p, W/p, d]: the patches after the final norm."""
        x = self.tokens(image, train=train)[:, 1 + self.config.registers :]
        return (rearrange(x, "b (h w) d -> b h w d", h=image.shape[1] // self.config.patch),)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.config.patch,)

    @nn.compact
    def _embed(self, image: jax.Array, mask: jax.Array | None) -> jax.Array:
        c = self.config
        patches = cut(image, c.patch, c.in_channels)
        x = nn.DenseGeneral(c.width, (-3, -2, -1), kernel_init=torch_conv, name="embed")(patches)
        _, rows, columns, _ = x.shape
        x = rearrange(x, "b h w d -> b (h w) d")
        if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != bool):
            raise ValueError(
                f"mask is {mask.dtype} {mask.shape}, but must be bool {x.shape[:2]}: one a patch"
            )
        if c.mask_token:
            token = self.param("mask_token", nn.initializers.zeros, (c.width,))
            x = x if mask is None else jnp.where(mask[:, :, None], token[None, None], x)
        elif mask is not None:
            raise ValueError("mask needs a mask token: create the model with mask_token=True")

        shape = (1 + c.grid[0] * c.grid[1], c.width)
        positions = self.param("positions", normal, shape)
        positions = resize_positions(positions, 1, c.grid, (rows, columns), c.positions)
        first = [self.param("class_token", tiny, (c.width,)) + positions[0]]
        if c.registers:  # they have no positions
            first += [*self.param("registers", tiny, (c.registers, c.width))]
        return prepend(first, x + positions[None, 1:])

    @nn.compact
    def _encode(self, x: jax.Array, train: bool) -> jax.Array:
        c, each = self.config, {}
        if train and c.drop_path:
            rates = jnp.full(c.depth, c.drop_path)
            each["survival"] = stochastic_depth(self.make_rng("dropout"), rates, 2, len(x))
        x = stack(partial(Block, c), c.depth, x, mode=c.layers, remat=c.remat, each=each)
        return nn.LayerNorm(epsilon=c.epsilon, name="norm")(x)


class Block(nn.Module):
    """A ViT's block with LayerScale: each channel of a branch has a factor of its own, tiny at
    first (Touvron et al., 2021, arXiv:2103.17239, equation 4).

    survival: [2, b], factors of both branches from stochastic depth.
    """

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, *, survival: jax.Array | None = None) -> jax.Array:
        c = self.config
        of_attn, of_ffn = (None, None) if survival is None else survival
        norm = partial(nn.LayerNorm, epsilon=c.epsilon)
        scale1, scale2 = (
            self.param(name, nn.initializers.constant(1e-5), (c.width,))[None, None]
            for name in ("scale1", "scale2")
        )
        attn = Attention(c.heads, c.qkv_bias, kernel_init=normal, name="attn")
        x = x + drop_path(scale1 * attn(norm(name="norm1")(x)), of_attn)
        ffn = FFNS[c.ffn](c.hidden, kernel_init=normal, bias_init=nn.initializers.zeros, name="mlp")
        return x + drop_path(scale2 * ffn(norm(name="norm2")(x)), of_ffn)


FFNS = {"mlp": Mlp, "swiglu": SwiGlu}

# As the authors' code draws them; torch's convolutions are uniform in ±1/√fan-in.
normal, tiny = nn.initializers.normal(0.02), nn.initializers.normal(1e-6)
torch_conv = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def resize(path: str, leaf: jax.Array, held: Config, wanted: Config) -> jax.Array:
    """A parameter of the model `held` for the model `wanted` of another image_size."""
    if path != "positions":
        return leaf
    return resize_positions(leaf, 1, held.grid, wanted.grid, held.positions)


_reg = partial(Config, registers=4, positions="antialias")
VARIANTS = {  # table 17; counts as transformers prints them, with positions for 518 × 518
    "dinov2_s14": Variant(Config(14, 384, 12, 6, "mlp", 1536), params=22_056_576),
    "dinov2_b14": Variant(Config(14, 768, 12, 12, "mlp", 3072), params=86_580_480),
    "dinov2_l14": Variant(Config(14, 1024, 24, 16, "mlp", 4096), params=304_368_640),
    "dinov2_g14": Variant(Config(14, 1536, 40, 24, "swiglu", 4096), params=1_136_480_768),
    "dinov2_s14_reg": Variant(_reg(14, 384, 12, 6, "mlp", 1536), params=22_058_112),
    "dinov2_b14_reg": Variant(_reg(14, 768, 12, 12, "mlp", 3072), params=86_583_552),
    "dinov2_l14_reg": Variant(_reg(14, 1024, 24, 16, "mlp", 4096), params=304_372_736),
    "dinov2_g14_reg": Variant(_reg(14, 1536, 40, 24, "swiglu", 4096), params=1_136_486_912),
}

TINY = Config(8, 32, 3, 2, "swiglu", 48, registers=2, image_size=32, num_classes=10)


def example(config: Config) -> dict[str, Input]:
    height, width = sides(config.image_size)
    return {"image": Input(("b", height, width, config.in_channels), low=-1, high=1)}
