"""Language Models are Few-Shot Learners (Brown et al., 2020, arXiv:2005.14165), section 2.1: GPT-2.

Predict the next word of everything: a decoder, trained on text alone, learns what it speaks of.
The sizes here are those of GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask
Learners", table 2), whose model section 2.1 describes.

    tokens [b, n] → embeddings and positions [b, n, d] → depth × Block → norm
                  → the embeddings again, transposed: logits [b, n, v]

b batch · n tokens · d width · v vocabulary · m rows of a cache · h heads · c channels of a head.
Differs from the paper: no dropout on the attention weights; GPT-3's sparse layers are dense.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers.attention import Attention
from zoo.layers.mlp import Mlp, gelu, gelu_tanh
from zoo.layers.stack import Mode, Remat, cached_stack, stack
from zoo.spec import TRANSFORMER, Input, Variant


@dataclass(frozen=True)
class Config:
    """A row of GPT-2's table 2, and what published checkpoints vary beside it."""

    width: int
    depth: int
    heads: int
    mlp: int  # hidden width of the MLP
    vocab: int = 50257
    context: int = 1024
    gelu: Literal["erf", "tanh"] = "tanh"
    bias: bool = True  # of all dense layers and norms
    epsilon: float = 1e-5  # of every LayerNorm
    dropout: float = 0.0  # after the embeddings and each branch; GPT-2 was trained with 0.1
    layers: Mode = "loop"
    remat: Remat = False

    def check(self) -> None:
        """Raises ValueError for values that do not fit together."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"a rate of dropout is in [0, 1), not {self.dropout}")


class GPT(nn.Module):
    """Takes ids [b, n], n up to the context; returns logits [b, n, vocab]: of what follows each.

    segments int32 [b, n]: numbers of packed documents, which do not see each other. positions
    int32 [b, n]: 0 … n − 1 if not given. cache: see `empty_cache`; then (logits, the new cache).
    lengths int32 [b]: with a cache, how many of the tokens are real, from the left.
    Raises ValueError for more tokens than the context.
    """

    config: Config

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(c.vocab, c.width, embedding_init=nn.initializers.normal(0.02))

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
        """[b, n, d] after the final norm."""
        c, n = self.config, tokens.shape[1]
        default = jnp.arange(n)[None]
        x = self._enter(tokens, default if positions is None else positions)
        x = nn.Dropout(c.dropout, name="drop")(x, deterministic=not train)
        block = partial(Block, c)
        options = {"segments": segments, "train": train}
        x = stack(block, c.depth, x, mode=c.layers, remat=c.remat, **options)
        return norm(c, name="norm")(x)

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
        x = self._enter(tokens, default if positions is None else positions)
        x, new = cached_stack(partial(Block, c), c.depth, x, cache, start=start)
        added = jnp.full(b, n, jnp.int32) if lengths is None else lengths
        return norm(c, name="norm")(x), {"length": start + added, **new}

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[…, d] → logits […, vocab]."""
        # Not `embed.attend`: XLA on CPUs takes six times as long for its transposed table.
        return jnp.einsum("...d,vd->...v", hidden, self.embed.embedding)

    @nn.compact
    def _enter(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        c, n = self.config, tokens.shape[1]
        if n > c.context:
            raise ValueError(f"{n} tokens are more than the context of {c.context}: cut the text")
        table = self.param("positions", nn.initializers.normal(0.02), (c.context, c.width))
        x = self.embed(tokens)
        # A position beyond the table is NaN, where an index alone would take the last row.
        rows = table.at[positions].get(mode="fill", fill_value=jnp.nan)
        return x + jnp.broadcast_to(rows, x.shape)


class Block(nn.Module):
    """Attention to what came before, then an MLP on each token, added to the input; norms first.
    With a cache also its new one."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        cache: dict[str, jax.Array] | None = None,
        train: bool = False,
        **seen: Any,
    ) -> Any:
        c = self.config
        # "scale the weights of residual layers at initialization by 1/√N" (GPT-2, section 2.3).
        normal = nn.initializers.normal
        init, out_init = normal(0.02), normal(0.02 / (2 * c.depth) ** 0.5)
        drop = partial(nn.Dropout, c.dropout, deterministic=not train)
        inits: dict[str, Any] = {"kernel_init": init, "out_init": out_init}
        attn = Attention(c.heads, c.bias, out_bias=c.bias, **inits, name="attn")
        found = attn(norm(c, name="norm1")(x), causal=True, cache=cache, **seen)
        y, cache = (found, None) if cache is None else found
        x = x + drop(name="drop1")(y)
        zeros = nn.initializers.zeros
        mlp = Mlp(c.mlp, GELUS[c.gelu], bias=c.bias, bias_init=zeros, **inits, name="mlp")
        x = x + drop(name="drop2")(mlp(norm(c, name="norm2")(x)))
        return x if cache is None else (x, cache)


def norm(config: Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.epsilon, use_bias=config.bias, name=name)


def empty_cache(
    config: Config, batch: int, length: int, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Room for the keys and values of `length` tokens: {"length" int32 [b], how many there are,
    "block_i": {"k", "v"} [b, length, h, c]}."""
    shape = (batch, length, config.heads, config.width // config.heads)
    blocks = {
        f"block_{i}": {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
        for i in range(config.depth)
    }
    return {"length": jnp.zeros(batch, jnp.int32), **blocks}


GELUS = {"erf": gelu, "tanh": gelu_tanh}
VARIANTS = {  # GPT-2, table 2; its counts are of the published weights
    "gpt2": Variant(Config(width=768, depth=12, heads=12, mlp=3072), params=124_439_808),
    "gpt2_medium": Variant(Config(width=1024, depth=24, heads=16, mlp=4096), params=354_823_168),
    "gpt2_large": Variant(Config(width=1280, depth=36, heads=20, mlp=5120), params=774_030_080),
    "gpt2_xl": Variant(Config(width=1600, depth=48, heads=25, mlp=6400), params=1_557_611_200),
}
TINY = Config(width=32, depth=2, heads=4, mlp=64, vocab=61, context=16)
PARTITION = TRANSFORMER


def example(config: Config) -> dict[str, Input]:
    n = min(config.context, 12)
    return {"tokens": Input(("b", n), "int32", low=0, high=config.vocab)}
