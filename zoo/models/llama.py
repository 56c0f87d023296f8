"""LLaMA: Open and Efficient Foundation Language Models (Touvron et al., 2023, arXiv:2302.13971).

A decoder whose parts were each found to train better: a norm without means in front of each branch,
positions as rotations of queries and keys, a gated MLP, and no biases. Those that came after keep
its figure: Llama 2 (arXiv:2307.09288) and 3 (arXiv:2407.21783), Mistral (arXiv:2310.06825), Qwen2
(arXiv:2407.10671) and SmolLM2 (arXiv:2502.02737).

    tokens [b, n] → embeddings [b, n, d] → depth × Block → norm → head: logits [b, n, v]

b batch · n tokens · d width · v vocabulary · m rows of a cache · h heads of queries · k heads of
keys and values, each for h / k of queries (arXiv:2305.13245) · c channels of a head.
Differs from the paper: its initialisation is not stated, so it is that of GPT-2.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import rope
from zoo.layers.attention import Attention
from zoo.layers.mlp import SwiGlu
from zoo.layers.norm import RMSNorm
from zoo.layers.stack import Mode, Remat, cached_stack, stack
from zoo.spec import TRANSFORMER, Input, Variant


@dataclass(frozen=True)
class Config:
    """A column of a paper's table of sizes, and what published checkpoints vary beside it."""

    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp: int  # hidden width of the MLP
    context: int
    base: float = 10_000.0  # of the rotary frequencies
    scaling: tuple[Any, ...] = ()  # of them: a kind of `rope.SCALINGS` and its numbers
    head_width: int | None = None  # None: width / heads
    epsilon: float = 1e-5  # of every norm
    qkv_bias: bool = False  # Qwen2
    tied: bool = False  # the head is the embeddings, transposed
    window: int | None = None  # how many keys a query sees, itself included; None: all (Mistral)
    layers: Mode = "loop"
    remat: Remat = False

    @property
    def channels(self) -> int:
        """c, of one head."""
        return self.width // self.heads if self.head_width is None else self.head_width

    def check(self) -> None:
        """Raises ValueError for values that do not fit together."""
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads of queries cannot share {self.kv_heads} of keys")
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"heads of {self.channels} channels are not pairs that could turn")
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window of {self.window} keys shows nothing: 1 or more, or None")
        rope.check(self.scaling, self.channels)


class Llama(nn.Module):
    """Takes ids [b, n], n up to the context; returns logits [b, n, vocab]: of what follows each.

    segments int32 [b, n]: numbers of packed documents, which do not see each other. positions
    int32 [b, n]: 0 … n − 1 if not given. cache: see `empty_cache`; then (logits, the new cache).
    lengths int32 [b]: with a cache, how many of the tokens are real, from the left.
    Raises ValueError for more tokens than the context.
    """

    config: Config

    def setup(self) -> None:
        c, init = self.config, nn.initializers.normal(0.02)
        self.embed = nn.Embed(c.vocab, c.width, embedding_init=init)
        if not c.tied:
            self.head = nn.Dense(c.vocab, use_bias=False, kernel_init=init)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: dict[str, Any] | None = None,
        lengths: jax.Array | None = None,
        train: bool = False,
    ) -> Any:
        if cache is None:
            return self.logits(self.hidden(tokens, segments, positions, train=train))
        x, cache = self.remember(tokens, cache, positions, lengths)
        return self.logits(x), cache

    @nn.compact
    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """[b, n, d] after the final norm. train: nothing of Llama differs."""
        c, n = self.config, tokens.shape[1]
        default = jnp.arange(n)[None]
        x, rotary = self._enter(tokens, default if positions is None else positions)
        block = partial(Block, c)
        options = {"segments": segments, "rotary": rotary}
        x = stack(block, c.depth, x, mode=c.layers, remat=c.remat, **options)
        return RMSNorm(c.epsilon, name="norm")(x)

    @nn.compact
    def remember(
        self,
        tokens: jax.Array,
        cache: dict[str, Any],
        positions: jax.Array | None = None,
        lengths: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """`hidden` with a cache, and the new cache. Several tokens are the first of their text, one
        is the next."""
        c, (b, n), start = self.config, tokens.shape, cache["length"]
        if c.layers == "scan":
            raise ValueError('a cache needs layers="loop": zoo.tree.unstacked turns the weights')
        default = start[:, None] if n == 1 else jnp.arange(n)[None]
        x, rotary = self._enter(tokens, default if positions is None else positions)
        block = partial(Block, c)
        x, new = cached_stack(block, c.depth, x, cache, start=start, rotary=rotary)
        added = jnp.full(b, n, jnp.int32) if lengths is None else lengths
        return RMSNorm(c.epsilon, name="norm")(x), {"length": start + added, **new}

    # A property that gives a method: where both have a name, NNX's bridge takes a module's method
    # for its parameters.
    def logits(self, hidden: jax.Array) -> jax.Array:
        """[…, d] → logits […, vocab]."""
        if not self.config.tied:
            return self.head(hidden)
        # Not `embed.attend`: XLA on CPUs takes six times as long for its transposed table.
        return jnp.einsum("...d,vd->...v", hidden, self.embed.embedding)

    def _enter(
        self, tokens: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The embeddings, and the angles by which all blocks turn queries and keys."""
        c, n = self.config, tokens.shape[1]
        if n > c.context:
            raise ValueError(f"{n} tokens are more than the context of {c.context}: cut the text")
        turns = rope.scaled(c.channels, c.base, c.scaling, c.context)
        return self.embed(tokens), rope.angles(positions, *turns)


class Block(nn.Module):
    """Attention to what came before, then a gated MLP on each token, added to the input; norms
    first. With a cache also its new one."""

    config: Config

    @nn.compact
    def __call__(
        self, x: jax.Array, *, cache: dict[str, jax.Array] | None = None, **seen: Any
    ) -> Any:
        c = self.config
        normal = nn.initializers.normal
        inits: dict[str, Any] = {
            "kernel_init": normal(0.02),
            "out_init": normal(0.02 / (2 * c.depth) ** 0.5),
        }
        shape = {"heads": c.heads, "kv_heads": c.kv_heads, "head_width": c.head_width}
        attn = Attention(**shape, bias=c.qkv_bias, out_bias=False, **inits, name="attn")
        y = RMSNorm(c.epsilon, name="norm1")(x)
        found = attn(y, causal=True, window=c.window, cache=cache, **seen)
        y, cache = (found, None) if cache is None else found
        x = x + y
        mlp = SwiGlu(c.mlp, bias=False, **inits, name="mlp")
        x = x + mlp(RMSNorm(c.epsilon, name="norm2")(x))
        return x if cache is None else (x, cache)


def empty_cache(
    config: Config, batch: int, length: int, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Room for the keys and values of `length` tokens: {"length" int32 [b], how many there are,
    "block_i": {"k", "v"} [b, length, k, c]}."""
    shape = (batch, length, config.kv_heads, config.channels)
    blocks = {
        f"block_{i}": {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
        for i in range(config.depth)
    }
    return {"length": jnp.zeros(batch, jnp.int32), **blocks}


# factor, original context, and the turns over it between which the scaling goes from all to none.
LLAMA3_2 = ("llama3", 32.0, 8192, 1.0, 4.0)
QWEN2 = {"base": 1e6, "epsilon": 1e-6, "qkv_bias": True}
SMOLLM2 = {"base": 1e5, "tied": True}
# LLaMA, table 2; Llama 3, table 3; Mistral, table 1; Qwen2, table 1. What they leave out (a
# vocabulary, a context, base, ε), SmolLM2 and the counts are as published with the weights.
VARIANTS = {  # vocab, width, depth, heads, kv_heads, mlp, context
    "llama_7b": Variant(
        Config(32000, 4096, 32, 32, 32, 11008, 2048, epsilon=1e-6), params=6_738_415_616
    ),
    "llama_13b": Variant(
        Config(32000, 5120, 40, 40, 40, 13824, 2048, epsilon=1e-6), params=13_015_864_320
    ),
    "llama2_70b": Variant(Config(32000, 8192, 80, 64, 8, 28672, 4096), params=68_976_648_192),
    "llama3_8b": Variant(
        Config(128256, 4096, 32, 32, 8, 14336, 8192, base=5e5), params=8_030_261_248
    ),
    "llama3_2_1b": Variant(
        Config(128256, 2048, 16, 32, 8, 8192, 131072, base=5e5, scaling=LLAMA3_2, tied=True),
        params=1_235_814_400,
    ),
    "mistral_7b": Variant(
        Config(32000, 4096, 32, 32, 8, 14336, 32768, window=4096), params=7_241_732_096
    ),
    "qwen2_0_5b": Variant(
        Config(151936, 896, 24, 14, 2, 4864, 131072, tied=True, **QWEN2), params=494_032_768
    ),
    "qwen2_1_5b": Variant(
        Config(151936, 1536, 28, 12, 2, 8960, 131072, tied=True, **QWEN2), params=1_543_714_304
    ),
    "smollm2_135m": Variant(
        Config(49152, 576, 30, 9, 3, 1536, 8192, **SMOLLM2), params=134_515_008
    ),
    "smollm2_360m": Variant(
        Config(49152, 960, 32, 15, 5, 2560, 8192, **SMOLLM2), params=361_821_120
    ),
    "smollm2_1_7b": Variant(
        Config(49152, 2048, 24, 32, 32, 8192, 8192, base=1.3e5, tied=True), params=1_711_376_384
    ),
}
TINY = Config(61, width=32, depth=2, heads=4, kv_heads=2, mlp=48, context=16)
PARTITION = TRANSFORMER


def example(config: Config) -> dict[str, Input]:
    n = min(config.context, 12)
    return {"tokens": Input(("b", n), "int32", low=0, high=config.vocab)}
