"""Sigmoid Loss for Language Image Pre-Training (Zhai et al., 2023, arXiv:2303.15343).

SigLIP: a picture and its caption get embeddings that point the same way. Each pair of a batch is a
question of its own, whether the two belong together, so the loss needs no sum over the batch.

    image  [b, H, W, C] → patches [b, n, e] + positions → depth × Block → norm → Pool → [b, e]
    tokens [b, m] → embeddings [b, m, d] + positions → depth × Block → norm → the last → [b, e]
    both to length 1 → scale · ⟨image, text⟩ + bias [b]

b pictures or texts · n patches, H/p · W/p · m tokens, always as many as the context · e width of
the common space and of the image tower, which has no projection · d width of the text tower.
All tokens of a text see each other, its padding too, which it was trained with.
Differs from the paper: nothing; what it leaves to the authors' code is as there
(github.com/google-research/big_vision at 0127fb6: models/vit.py, models/proj/image_text), but that
a length is kept from 0 by a bound of 1e-12, where they add 1e-8 to it.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from zoo.layers.attention import Attention, attend
from zoo.layers.drop import keep_patches
from zoo.layers.mlp import Mlp, gelu, gelu_tanh
from zoo.layers.norm import unit
from zoo.layers.posemb import Grid, cut, resize_positions
from zoo.layers.stack import Mode, Remat, stack
from zoo.spec import TRANSFORMER, Input, Size, Variant, sides


@dataclass(frozen=True)
class Config:
    """Two Transformers: of the image tower, whose width is `embed`, and of the text tower."""

    embed: int  # width of the common space
    patch: int
    depth: int
    heads: int
    mlp: int  # hidden width of the MLP
    text_width: int
    text_depth: int
    text_heads: int
    text_mlp: int
    vocab: int = 32_000
    context: int = 64  # tokens of a text
    gelu: Literal["tanh", "erf"] = "tanh"  # erf: as open_clip runs the first SigLIPs
    epsilon: float = 1e-6  # of every LayerNorm
    positions: Literal["bicubic", "antialias", "linear"] = "bicubic"  # resized by this kernel
    patch_dropout: float = 0.0  # share of the patches left out in training (arXiv:2212.00794)
    layers: Mode = "loop"
    remat: Remat = False
    image_size: Size = 224
    in_channels: int = 3

    def check(self) -> None:
        """Raises ValueError for values that do not fit together."""
        for width, heads in ((self.embed, self.heads), (self.text_width, self.text_heads)):
            if width % heads:
                raise ValueError(f"width {width} is no multiple of {heads} heads")
        if min(self.grid) < 1:
            raise ValueError(f"image_size {self.image_size} is smaller than patch {self.patch}")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"a rate of dropout is in [0, 1), not {self.patch_dropout}")

    @property
    def grid(self) -> Grid:
        height, width = sides(self.image_size)
        return height // self.patch, width // self.patch


class SigLIP(nn.Module):
    """Takes images [b, H, W, in_channels], normalised, and tokens int32 [b, context]; returns
    (image [b, e], text [b, e], logits [b]), float32: embeddings of length 1, and how well each
    picture fits its own text.

    In training, patch dropout draws from the "dropout" rng; at a rate of 0 none is needed.
    """

    config: Config

    def setup(self) -> None:
        self.image, self.text = ImageTower(self.config), TextTower(self.config)
        # Section 3.2: at first every pair is taken for what most pairs are, a mismatch.
        self.log_scale = self.param("log_scale", nn.initializers.constant(math.log(10)), ())
        self.bias = self.param("bias", nn.initializers.constant(-10.0), ())

    def __call__(
        self, image: jax.Array, tokens: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        of_image = self.embed_image(image, train=train)
        of_text = self.embed_text(tokens, train=train)
        scale, bias = self.temperature()
        return of_image, of_text, scale * (of_image * of_text).sum(axis=-1) + bias

    def embed_image(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """[b, e], float32, of length 1."""
        return unit(self.image(image, train=train))

    def embed_text(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """[b, e], float32, of length 1. Raises ValueError for another number of tokens than the
        context: the last one is read, wherever the text ends."""
        return unit(self.text(tokens))

    def temperature(self) -> tuple[jax.Array, jax.Array]:
        """(scale, bias) of the logits, float32 scalars; algorithm 1 calls them t and b."""
        return jnp.exp(self.log_scale.astype(jnp.float32)), self.bias.astype(jnp.float32)

    def similarity(self, image: jax.Array, text: jax.Array) -> jax.Array:
        """Logits of all pairs, float32 [i, t], of embeddings [i, e] and [t, e]."""
        scale, bias = self.temperature()
        return scale * jnp.einsum("id,td->it", image, text, precision="highest") + bias


class ImageTower(nn.Module):
    """A ViT without class token (Dosovitskiy et al., 2020, arXiv:2010.11929) and its pooling:
    [b, H, W, C] → [b, e].

    A picture of exactly `image_size` loses what is left of it, at the right and below, beyond whole
    patches (384 = 27 · 14 + 6); another must be a multiple of the patch.
    """

    config: Config

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        c = self.config
        x = self._embed(image)
        if train and c.patch_dropout:
            x = keep_patches(self.make_rng("dropout"), x, c.patch_dropout)
        x = encode(c, x, c.depth, c.heads, c.mlp)
        return Pool(c.heads, c.mlp, c.gelu, c.epsilon, name="pool")(x)

    @nn.compact
    def _embed(self, image: jax.Array) -> jax.Array:
        """Patches row by row with their positions, [b, n, e]."""
        c = self.config
        if image.shape[1:3] == sides(c.image_size):
            height, width = (side * c.patch for side in c.grid)
            image = image[:, :height, :width]
        x = nn.DenseGeneral(c.embed, axis=(-3, -2, -1), name="embed")(
            cut(image, c.patch, c.in_channels)
        )
        _, rows, columns, _ = x.shape
        shape = (c.grid[0] * c.grid[1], c.embed)
        positions = self.param("positions", nn.initializers.normal(c.embed**-0.5), shape)
        positions = resize_positions(positions, 0, c.grid, (rows, columns), c.positions)
        return rearrange(x, "b h w d -> b (h w) d") + positions[None]


class TextTower(nn.Module):
    """A Transformer whose tokens all see each other: [b, context] → [b, e], of the last token."""

    config: Config

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c, init = self.config, nn.initializers.normal(self.config.text_width**-0.5)
        if tokens.ndim != 2 or tokens.shape[1] != c.context:
            raise ValueError(
                f"tokens have shape {tokens.shape}, but this model takes [b, {c.context}]: "
                f"pad or cut every text to {c.context} tokens"
            )
        x = nn.Embed(c.vocab, c.text_width, embedding_init=init, name="embed")(tokens)
        x = x + self.param("positions", init, (c.context, c.text_width))[None]
        x = encode(c, x, c.text_depth, c.text_heads, c.text_mlp)
        return nn.Dense(c.embed, name="proj")(x[:, -1])


def encode(config: Config, x: jax.Array, depth: int, heads: int, hidden: int) -> jax.Array:
    """The blocks of a tower and the norm behind them; to be called inside a compact method."""
    c = config
    block = partial(Block, heads, hidden, c.gelu, c.epsilon)
    x = stack(block, depth, x, mode=c.layers, remat=c.remat)
    return nn.LayerNorm(epsilon=c.epsilon, name="norm")(x)


class Block(nn.Module):
    """Attention between the tokens, then an MLP on each, added to the input, [b, n, d]."""

    heads: int
    hidden: int
    gelu: str
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=self.epsilon)
        x = x + Attention(self.heads, name="attn")(norm(name="norm1")(x))
        return x + Mlp(self.hidden, GELUS[self.gelu], name="mlp")(norm(name="norm2")(x))


class Pool(nn.Module):
    """Multi-head attention pooling (Zhai et al., 2021, arXiv:2106.04560, section 3.2; after Lee et
    al., 2018, arXiv:1810.00825): what a probe reads from all tokens, [b, n, d] → [b, d], and an MLP
    on it."""

    heads: int
    hidden: int
    gelu: str
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Probe(self.heads, name="attn")(x)
        y = nn.LayerNorm(epsilon=self.epsilon, name="norm")(x)
        return x + Mlp(self.hidden, GELUS[self.gelu], name="mlp")(y)


class Probe(nn.Module):
    """Attention of one learned query, the same for all examples, to tokens: [b, n, d] → [b, d]."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, _, width = x.shape
        init = nn.initializers.xavier_uniform()
        dense = partial(nn.Dense, width, kernel_init=init)
        probe = jnp.broadcast_to(self.param("probe", init, (1, width))[None], (b, 1, width))
        q, k, v = (
            rearrange(dense(name=name)(y), "b n (h c) -> b n h c", h=self.heads)
            for name, y in (("q", probe), ("k", x), ("v", x))
        )
        return dense(name="out")(rearrange(attend(q, k, v), "b 1 h c -> b (h c)"))


GELUS = {"tanh": gelu_tanh, "erf": gelu}


def resize(path: str, leaf: jax.Array, held: Config, wanted: Config) -> jax.Array:
    """A parameter of the model `held` for the model `wanted` of another image_size."""
    if path != "image/positions":
        return leaf
    return resize_positions(leaf, 0, held.grid, wanted.grid, held.positions)


def _pair(size: str, patch: int, image_size: int, context: int = 64) -> Config:
    """Two towers of one size."""
    width, depth, heads, mlp = SIZES[size]
    text = (width, depth, heads, mlp)
    return Config(width, patch, depth, heads, mlp, *text, context=context, image_size=image_size)


SIZES = {  # width, depth, heads, MLP (arXiv:2106.04560, table 2; So400m: arXiv:2305.13035)
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "So400m": (1152, 27, 16, 4304),
}
VARIANTS = {  # the English models that the authors published; counts as transformers prints them
    "siglip_b16": Variant(_pair("B", 16, 224), params=203_155_970),
    "siglip_b16_256": Variant(_pair("B", 16, 256), params=203_202_050),
    "siglip_b16_384": Variant(_pair("B", 16, 384), params=203_447_810),
    "siglip_b16_512": Variant(_pair("B", 16, 512), params=203_791_874),
    "siglip_l16_256": Variant(_pair("L", 16, 256), params=652_150_786),
    "siglip_l16_384": Variant(_pair("L", 16, 384), params=652_478_466),
    "siglip_so400m14": Variant(_pair("So400m", 14, 224, context=16), params=877_360_306),
    "siglip_so400m14_384": Variant(_pair("So400m", 14, 384), params=877_960_498),
}

TINY = Config(
    embed=32,
    patch=8,
    depth=3,
    heads=2,
    mlp=64,
    text_width=24,
    text_depth=2,
    text_heads=4,
    text_mlp=40,
    vocab=61,
    context=8,
    image_size=32,
)
KEEP_FLOAT32 = ("log_scale", "bias")
PARTITION = TRANSFORMER
CLAMP: dict[str, tuple[float, float]] = {}  # bounds of parameters in training: the paper has none


def example(config: Config) -> dict[str, Input]:
    height, width = sides(config.image_size)
    return {
        "image": Input(("b", height, width, config.in_channels), low=-1, high=1),
        "tokens": Input(("b", config.context), "int32", low=0, high=config.vocab),
    }
