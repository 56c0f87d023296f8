"""An Image is Worth 16x16 Words (Dosovitskiy et al., 2020, arXiv:2010.11929).

Cut an image into patches and read them as the words of a sentence: a Transformer learns to see.

    image [b, H, W, C] → patches [b, n, d] → class token and positions [b, 1 + n, d]
                       → depth × Block → norm → class token [b, d] → logits [b, classes]

b batch · n patches, H/p · W/p · d width · p side of a patch. The paper's D is d, its N is n.
DeiT (Touvron et al., 2020, arXiv:2012.12877) adds a second token, which answers as a teacher does.
Differs from the paper: its head has a hidden tanh layer in pre-training, ours where
`representation` gives it a width; GELU is exact, as in PyTorch's ports, where `gelu` is not "tanh",
as in the authors' code, which the initialisation follows.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from zoo.layers.attention import Attention
from zoo.layers.drop import drop_path, keep_patches, stochastic_depth
from zoo.layers.mlp import Mlp, gelu, gelu_tanh
from zoo.layers.posemb import Grid, cut, prepend, resize_positions
from zoo.layers.stack import Mode, Remat, stack
from zoo.spec import Count, Input, Size, Variant, sides


@dataclass(frozen=True)
class Config:
    """A row of table 1, and what published checkpoints vary beside it."""

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int  # hidden width of the MLP
    pool: Literal["class", "mean"] = "class"  # mean: of the patches, after the final norm
    class_token: bool = True
    distillation: Literal["none", "token", "head"] = "none"  # DeiT's token; its own head as well
    representation: Count = 0  # width of the tanh layer before the head; 0: none
    qkv_bias: bool = True
    qk_norm: bool = False  # LayerNorm over each head's q and k (ViT-22B, arXiv:2302.05442)
    gelu: Literal["erf", "tanh"] = "erf"
    epsilon: float = 1e-6  # of every LayerNorm
    positions: Literal["bicubic", "antialias", "linear"] = "bicubic"  # resized by this kernel
    dropout: float = 0.0  # after the positions and all dense layers but q, k and v (appendix B.1)
    drop_path: float = 0.0  # stochastic depth: 0 in the first block, growing evenly to this
    patch_dropout: float = 0.0  # share of the patches left out in training (arXiv:2212.00794)
    layers: Mode = "loop"
    remat: Remat = False
    image_size: Size = 224
    in_channels: int = 3
    num_classes: Count = 1000  # 0: no head, the model returns what would enter it

    def check(self) -> None:
        """Raises ValueError for values that do not fit together."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if any(side % self.patch for side in sides(self.image_size)):
            raise ValueError(f"image_size {self.image_size} is no multiple of patch {self.patch}")
        if not self.class_token and (self.pool, self.distillation) != ("mean", "none"):
            raise ValueError('without a class token only pool="mean", distillation="none" is left')
        for rate in (self.dropout, self.drop_path, self.patch_dropout):
            if not 0 <= rate < 1:
                raise ValueError(f"a rate of dropout is in [0, 1), not {rate}")

    @property
    def prefix(self) -> tuple[str, ...]:
        """The tokens in front of the patches."""
        has = {"class_token": self.class_token, "distillation_token": self.distillation != "none"}
        return tuple(token for token in has if has[token])

    @property
    def grid(self) -> Grid:
        height, width = sides(self.image_size)
        return height // self.patch, width // self.patch


class ViT(nn.Module):
    """Figure 1. Takes images [b, H, W, in_channels], normalised, H and W multiples of the patch;
    returns logits [b, classes], the mean of both heads where there are two, or in training both.

    What is left out in training is drawn from the "dropout" rng; at rates of 0 none is needed.
    """

    config: Config

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        c = self.config
        x = self.tokens(image, train=train)
        y = POOLS[c.pool](x, len(c.prefix))
        if c.representation:
            y = jnp.tanh(nn.Dense(c.representation, name="representation")(y))
        if not c.num_classes:
            return y
        # Zero-init: the first prediction is uniform.
        head = partial(nn.Dense, c.num_classes, kernel_init=nn.initializers.zeros)
        logits = head(name="head")(y)
        if c.distillation != "head":
            return logits
        distilled = head(name="head_distillation")(x[:, 1])
        return (logits, distilled) if train else (logits + distilled) / 2

    def tokens(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """[b, prefix + n, d] after the final norm: `config.prefix`, then the patches row by row,
        fewer where patch dropout is on in training."""
        return self._encode(self._embed(image, train, self.config.patch_dropout), train)

    def features(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """One map, [b, H/p, W/p, d]: all patches after the final norm, without patch dropout."""
        x = self._encode(self._embed(image, train, patch_dropout=0), train)
        rows = image.shape[1] // self.config.patch
        return (rearrange(x[:, len(self.config.prefix) :], "b (h w) d -> b h w d", h=rows),)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.config.patch,)

    @nn.compact
    def _embed(self, image: jax.Array, train: bool, patch_dropout: float) -> jax.Array:
        """Equation 1."""
        c, prefix = self.config, len(self.config.prefix)
        patches = cut(image, c.patch, c.in_channels)
        x = nn.DenseGeneral(c.width, axis=(-3, -2, -1), name="embed")(patches)
        _, rows, columns, _ = x.shape

        shape = (prefix + c.grid[0] * c.grid[1], c.width)
        positions = self.param("positions", nn.initializers.normal(0.02), shape)
        positions = resize_positions(positions, prefix, c.grid, (rows, columns), c.positions)
        x = rearrange(x, "b h w d -> b (h w) d") + positions[None, prefix:]
        if train and patch_dropout:
            x = keep_patches(self.make_rng("dropout"), x, patch_dropout)

        first = [self.param(token, nn.initializers.zeros, (c.width,)) for token in c.prefix]
        x = prepend([token + positions[i] for i, token in enumerate(first)], x)
        return nn.Dropout(c.dropout, name="drop")(x, deterministic=not train)

    @nn.compact
    def _encode(self, x: jax.Array, train: bool) -> jax.Array:
        """Equations 2 to 4."""
        c, each = self.config, {}
        if train and c.drop_path:
            rates = jnp.linspace(0, c.drop_path, c.depth)
            each["survival"] = stochastic_depth(self.make_rng("dropout"), rates, 2, len(x))
        block = partial(Block, c)
        x = stack(block, c.depth, x, mode=c.layers, remat=c.remat, each=each, train=train)
        return nn.LayerNorm(epsilon=c.epsilon, name="norm")(x)


class Block(nn.Module):
    """Equations 2 and 3: attention between the tokens, then an MLP on each, added to the input.

    survival: [2, b], factors of both branches from stochastic depth.
    """

    config: Config

    @nn.compact
    def __call__(
        self, x: jax.Array, *, survival: jax.Array | None = None, train: bool
    ) -> jax.Array:
        c = self.config
        of_attn, of_mlp = (None, None) if survival is None else survival
        norm = partial(nn.LayerNorm, epsilon=c.epsilon)
        y = Attention(c.heads, c.qkv_bias, c.qk_norm, c.epsilon, name="attn")(norm(name="norm1")(x))
        y = nn.Dropout(c.dropout, name="drop")(y, deterministic=not train)
        x = x + drop_path(y, of_attn)
        y = Mlp(c.mlp, GELUS[c.gelu], c.dropout, name="mlp")(norm(name="norm2")(x), train=train)
        return x + drop_path(y, of_mlp)


GELUS = {"erf": gelu, "tanh": gelu_tanh}
POOLS = {
    "class": lambda x, prefix: x[:, 0],
    "mean": lambda x, prefix: x[:, prefix:].mean(axis=1, dtype=jnp.float32).astype(x.dtype),
}


def resize(path: str, leaf: jax.Array, held: Config, wanted: Config) -> jax.Array:
    """A parameter of the model `held` for the model `wanted` of another image_size."""
    if path != "positions":
        return leaf
    return resize_positions(leaf, len(held.prefix), held.grid, wanted.grid, held.positions)


_deit = partial(Config, 16, distillation="head")
VARIANTS = {  # table 1; Ti and S are DeiT's, g is arXiv:2106.04560's; counts as timm prints them
    "vit_ti16": Variant(Config(16, 192, 12, 3, 768), params=5_717_416),
    "vit_s32": Variant(Config(32, 384, 12, 6, 1536), params=22_878_952),
    "vit_s16": Variant(Config(16, 384, 12, 6, 1536), params=22_050_664),
    "vit_b32": Variant(Config(32, 768, 12, 12, 3072), params=88_224_232),
    "vit_b16": Variant(Config(16, 768, 12, 12, 3072), params=86_567_656),
    "vit_b8": Variant(Config(8, 768, 12, 12, 3072), params=86_576_872),
    "vit_l32": Variant(Config(32, 1024, 24, 16, 4096), params=306_535_400),
    "vit_l16": Variant(Config(16, 1024, 24, 16, 4096), params=304_326_632),
    "vit_h14": Variant(Config(14, 1280, 32, 16, 5120), params=632_045_800),
    "vit_g14": Variant(Config(14, 1408, 40, 16, 6144), params=1_012_611_432),
    "deit_ti16_distilled": Variant(_deit(192, 12, 3, 768), params=5_910_800),
    "deit_s16_distilled": Variant(_deit(384, 12, 6, 1536), params=22_436_432),
    "deit_b16_distilled": Variant(_deit(768, 12, 12, 3072), params=87_338_192),
}

TINY = Config(8, 32, 3, 2, 64, image_size=32, num_classes=10)


def example(config: Config) -> dict[str, Input]:
    height, width = sides(config.image_size)
    return {"image": Input(("b", height, width, config.in_channels), low=-1, high=1)}
