"""Learning Transferable Visual Models From Natural Language Supervision (2021, arXiv:2103.00020).

CLIP (Radford et al.): of a batch of pictures and captions, guess which caption belongs to which
picture. What is learned that way knows pictures by any words.

    image  [b, H, W, C] → patches and a class token [b, 1 + n, d] → norm → depth × Block → norm
                        → class token → [b, e]; or, in the ResNets, maps [b, H/p, W/p, c] → [b, e]
    tokens [b, m] → embeddings and positions [b, m, t] → text_depth × Block, each token seeing
                    those before it → norm → the token that ends the text → [b, e]
    both to length 1 → exp(log_scale) · ⟨image, text⟩ [b]

b pictures or texts · n patches, H/p · W/p · m tokens · d t widths of the towers · e of the common
space · c channels of the last map · p side of a patch, or what a ResNet strides in all.
Differs from the paper: log_scale stays in [0, ln 100], where the paper has the upper bound alone;
the initialisation, which the authors' code leaves open for the ViT, is for both towers that of its
text tower, and of a ResNet's convolutions that of our ResNet.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from zoo.layers.attention import Attention, attend
from zoo.layers.conv import Conv
from zoo.layers.drop import keep_patches
from zoo.layers.mlp import Mlp, gelu, gelu_tanh
from zoo.layers.norm import BatchNorm, unit
from zoo.layers.posemb import Grid, check_image, cut, prepend, resize_positions, stretch
from zoo.layers.stack import Mode, Remat, stack
from zoo.spec import TRANSFORMER, Count, Input, Size, Variant, sides


@dataclass(frozen=True)
class Config:
    """A row of table 19 (ResNet) or 20 (ViT), and what published checkpoints vary beside it."""

    embed: int  # width of the common space
    patch: int  # of a ResNet: what it strides in all, 32 with four stages
    width: int  # of the ViT; of a ResNet's stem
    heads: int  # of the ViT; of a ResNet's attention pooling
    depth: Count = 0  # of the ViT
    mlp: Count = 0  # hidden width of the ViT's MLP
    stages: tuple[int, ...] = ()  # blocks of each stage of a ResNet; none: a ViT
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    text_mlp: int = 2048
    vocab: int = 49408
    context: int = 77  # tokens of a text at most
    end: Literal["argmax", "id"] = "argmax"  # of a text: its largest id, or the first that is eos
    eos: Count = 49407
    gelu: Literal["quick", "erf", "tanh"] = "quick"
    epsilon: float = 1e-5  # of every LayerNorm
    positions: Literal["bicubic", "antialias"] = "bicubic"  # of patches, resized by this kernel
    patch_dropout: float = 0.0  # share of the patches left out in training (arXiv:2212.00794)
    layers: Mode = "loop"
    remat: Remat = False
    image_size: Size = 224
    in_channels: int = 3

    def check(self) -> None:
        """Raises ValueError for values that do not fit together."""
        for width, heads in ((self.features, self.heads), (self.text_width, self.text_heads)):
            if width % heads:
                raise ValueError(f"width {width} is no multiple of {heads} heads")
        if any(side % self.patch for side in sides(self.image_size)):
            raise ValueError(f"image_size {self.image_size} is no multiple of patch {self.patch}")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"a rate of dropout is in [0, 1), not {self.patch_dropout}")
        if not self.stages and not (self.depth and self.mlp):
            raise ValueError("a ViT has a depth and an mlp, a ResNet has stages: say either")
        if self.stages and (self.depth or self.mlp or self.patch_dropout or self.width % 2):
            raise ValueError("a ResNet has an even width, and no depth, mlp or patch_dropout")
        if self.stages and self.patch != 2 ** (len(self.stages) + 1):
            raise ValueError(f"{len(self.stages)} stages stride by other than patch {self.patch}")

    @property
    def features(self) -> int:
        """Channels that leave the image tower before the common space."""
        return 4 * self.width * 2 ** (len(self.stages) - 1) if self.stages else self.width

    @property
    def grid(self) -> Grid:
        height, width = sides(self.image_size)
        return height // self.patch, width // self.patch


class CLIP(nn.Module):
    """Figure 3. Takes images [b, H, W, in_channels], normalised, H and W multiples of the patch,
    and tokens int32 [b, m], m up to the context; returns (image [b, e], text [b, e], logits [b]),
    float32: embeddings of length 1, and how well each picture fits its own text.

    In training, patch dropout draws from the "dropout" rng; at a rate of 0 none is needed.
    """

    config: Config
    axis: str | None = None  # the mapped axis of devices over which batch statistics are taken

    def setup(self) -> None:
        c = self.config
        self.image = ResNet(c, self.axis) if c.stages else ViT(c)
        self.text = TextTower(c)
        # Section 2.5: a temperature of 0.07.
        self.log_scale = self.param("log_scale", nn.initializers.constant(math.log(1 / 0.07)), ())

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
        """[b, e], float32, of length 1; what follows the end of a text changes nothing. Raises
        ValueError for more tokens than the context."""
        return unit(self.text(tokens, train=train))

    def temperature(self) -> tuple[jax.Array, jax.Array]:
        """(scale, bias) of the logits, float32 scalars; CLIP has no bias: 0."""
        return jnp.exp(self.log_scale.astype(jnp.float32)), jnp.zeros((), jnp.float32)

    def similarity(self, image: jax.Array, text: jax.Array) -> jax.Array:
        """Logits of all pairs, float32 [i, t], of embeddings [i, e] and [t, e]."""
        scale, bias = self.temperature()
        return scale * jnp.einsum("id,td->it", image, text, precision="highest") + bias


class TextTower(nn.Module):
    """The text tower of section 2.4, GPT-2's: [b, m] → [b, e], of the token that ends the text."""

    config: Config

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        c, n, normal = self.config, tokens.shape[1], nn.initializers.normal
        if n > c.context:
            raise ValueError(
                f"{n} tokens are more than the context of {c.context}: cut the texts, "
                f"or load the model with context={n}"
            )
        x = nn.Embed(c.vocab, c.text_width, embedding_init=normal(0.02), name="embed")(tokens)
        positions = self.param("positions", normal(0.01), (c.context, c.text_width))
        block = partial(Block, c, c.text_heads, c.text_mlp, c.text_depth, causal=True)
        x = x + positions[None, :n]
        x = stack(block, c.text_depth, x, mode=c.layers, remat=c.remat, train=train)
        x = norm(c, name="norm")(x)
        ends = ENDS[c.end](tokens, c.eos)
        x = jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]
        return project(c, x)


class ViT(nn.Module):
    """The ViT of section 2.4, with a norm in front of its blocks: [b, H, W, C] → [b, e]."""

    config: Config

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        c, normal = self.config, nn.initializers.normal(self.config.width**-0.5)
        into = partial(nn.DenseGeneral, c.width, axis=(-3, -2, -1), use_bias=False)
        x = into(kernel_init=as_torch, name="embed")(cut(image, c.patch, c.in_channels))
        _, rows, columns, _ = x.shape

        positions = self.param("positions", normal, (1 + c.grid[0] * c.grid[1], c.width))
        positions = resize_positions(positions, 1, c.grid, (rows, columns), c.positions)
        x = rearrange(x, "b h w d -> b (h w) d") + positions[None, 1:]
        if train and c.patch_dropout:
            x = keep_patches(self.make_rng("dropout"), x, c.patch_dropout)
        x = prepend([self.param("class_token", normal, (c.width,)) + positions[0]], x)

        block = partial(Block, c, c.heads, c.mlp, c.depth)
        x = norm(c, name="norm_pre")(x)
        x = stack(block, c.depth, x, mode=c.layers, remat=c.remat, train=train)
        return project(c, norm(c, name="norm")(x[:, 0]))


class Block(nn.Module):
    """Attention between the tokens, then an MLP on each, added to the input, [b, n, d]; norms
    first. depth: of its tower."""

    config: Config
    heads: int
    mlp: int
    depth: int
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        c, normal = self.config, nn.initializers.normal
        # What is added to the input 2 depth times is made so much smaller (GPT-2, section 2.3).
        std = x.shape[-1] ** -0.5
        added = normal(std * (2 * self.depth) ** -0.5)
        attn = Attention(self.heads, kernel_init=normal(std), out_init=added, name="attn")
        x = x + attn(norm(c, name="norm1")(x), causal=self.causal)
        inits: dict[str, Any] = {"kernel_init": normal(std * 2**-0.5), "out_init": added}
        zeros = nn.initializers.zeros
        mlp = Mlp(self.mlp, GELUS[c.gelu], **inits, bias_init=zeros, name="mlp")
        return x + mlp(norm(c, name="norm2")(x), train=train)


class ResNet(nn.Module):
    """The ResNet of section 2.4: a stem of three convolutions, averages wherever it strides
    (arXiv:1812.01187, section 4.2), attention for the last pooling: [b, H, W, C] → [b, e]."""

    config: Config
    axis: str | None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        c = self.config
        check_image(image, c.patch, c.in_channels)
        x = Stem(c.width, self.axis, name="stem")(image, train=train)
        for i, depth in enumerate(c.stages):
            width, stride = c.width * 2**i, 1 if i == 0 else 2
            x = Stage(c, depth, width, stride, self.axis, name=f"stage{i + 1}")(x, train=train)
        return AttentionPool(c, name="pool")(x)


class Stem(nn.Module):
    """[b, H, W, C] → [b, H/4, W/4, width]."""

    width: int
    axis: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        half = self.width // 2
        for i, (width, stride) in enumerate(((half, 2), (half, 1), (self.width, 1)), start=1):
            x = Conv(width, 3, stride, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(axis=self.axis, name=f"norm{i}")(x, train=train))
        return average(x, 2)


class Stage(nn.Module):
    """The `first` block changes size and width, the others are equal."""

    config: Config
    depth: int
    width: int
    stride: int
    axis: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        c, block = self.config, partial(Bottleneck, self.width, self.axis)
        x = block(self.stride, name="first")(x, train=train)
        return stack(block, self.depth - 1, x, mode=c.layers, remat=c.remat, train=train)


class Bottleneck(nn.Module):
    """1×1 to the width, 3×3, 1×1 to four times the width (arXiv:1512.03385, figure 5, right)."""

    width: int
    axis: str | None
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(BatchNorm, axis=self.axis)
        y = Conv(self.width, 1, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = Conv(self.width, 3, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = Conv(4 * self.width, 1, name="conv3")(average(y, self.stride))
        # Zero-init: each block starts as its shortcut.
        y = norm(scale_init=nn.initializers.zeros, name="norm3")(y, train=train)
        if x.shape != y.shape:
            x = Conv(4 * self.width, 1, name="shortcut_conv")(average(x, self.stride))
            x = norm(name="shortcut_norm")(x, train=train)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """What the mean of a map asks of its places and of itself, [b, h, w, c] → [b, e]."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, (_, rows, columns, width) = self.config, x.shape
        normal = nn.initializers.normal(width**-0.5)
        positions = self.param("positions", normal, (1 + c.grid[0] * c.grid[1], width))
        positions = resize_positions(positions, 1, c.grid, (rows, columns), c.positions)
        x = rearrange(x, "b h w c -> b (h w) c")
        mean = x.mean(axis=1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
        x = jnp.concatenate([mean, x], axis=1) + positions[None]
        dense = partial(nn.Dense, kernel_init=normal)
        q, k, v = (
            rearrange(dense(width, name=name)(y), "b n (h c) -> b n h c", h=c.heads)
            for name, y in (("q", x[:, :1]), ("k", x), ("v", x))
        )
        y = rearrange(attend(q, k, v), "b 1 h c -> b (h c)")
        return dense(c.embed, name="out")(y)


def norm(config: Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.epsilon, name=name)


def project(config: Config, x: jax.Array) -> jax.Array:
    """Into the common space, [b, d] → [b, e]."""
    init = nn.initializers.normal(x.shape[-1] ** -0.5)
    return nn.Dense(config.embed, use_bias=False, kernel_init=init, name="proj")(x)


def average(x: jax.Array, side: int) -> jax.Array:
    """Means over side × side, [b, h, w, c] → [b, h/side, w/side, c]."""
    return reduce(x, "b (h s) (w t) c -> b h w c", "mean", s=side, t=side)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x σ(1.702 x) (Hendrycks & Gimpel, 2016, arXiv:1606.08415, section 2), up to 0.02 from x Φ(x):
    OpenAI's models were trained with it."""
    return x * nn.sigmoid(1.702 * x)


as_torch = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # of its convolutions
GELUS = {"quick": quick_gelu, "erf": gelu, "tanh": gelu_tanh}
ENDS = {  # (tokens [b, m], eos) → where each text ends, [b]; the first place where it has no end
    "argmax": lambda tokens, eos: tokens.argmax(axis=1),
    "id": lambda tokens, eos: (tokens == eos).argmax(axis=1),
}


def resize(path: str, leaf: jax.Array, held: Config, wanted: Config) -> jax.Array:
    """A parameter of the model `held` for the model `wanted` of another image_size or context."""
    if path in ("image/positions", "image/pool/positions"):
        return resize_positions(leaf, 1, held.grid, wanted.grid, held.positions)
    return stretch(leaf, wanted.context) if path == "text/positions" else leaf


_base = partial(Config, 512, width=768, heads=12, depth=12, mlp=3072)
_large = partial(
    Config,
    768,
    patch=14,
    width=1024,
    heads=16,
    depth=24,
    mlp=4096,
    text_width=768,
    text_heads=12,
    text_mlp=3072,
)
VARIANTS = {  # tables 19 and 20; counts as open_clip prints them
    "clip_b32": Variant(_base(patch=32), params=151_277_313),
    "clip_b16": Variant(_base(patch=16), params=149_620_737),
    "clip_l14": Variant(_large(), params=427_616_513),
    "clip_l14_336": Variant(_large(image_size=336), params=427_944_193),
    "clip_rn50": Variant(
        Config(1024, patch=32, width=64, heads=32, stages=(3, 4, 6, 3)), params=102_007_137
    ),
}
TINY = Config(
    embed=4,
    patch=8,
    width=32,
    heads=2,
    depth=2,
    mlp=64,
    text_width=24,
    text_depth=2,
    text_heads=4,
    text_mlp=40,
    vocab=61,
    context=12,
    image_size=32,
)
KEEP_FLOAT32 = ("log_scale",)
PARTITION = TRANSFORMER
CLAMP = {"log_scale": (0.0, math.log(100))}  # bounds of parameters in training (section 2.5)


def example(config: Config) -> dict[str, Input]:
    height, width = sides(config.image_size)
    n = min(config.context, 12)
    return {
        "image": Input(("b", height, width, config.in_channels), low=-1, high=1),
        "tokens": Input(("b", n), "int32", low=0, high=config.vocab),
    }
