"""BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al., 2018, arXiv:1810.04805).

Hide words of a text and guess them from both sides: an encoder that serves any task by a new head.

    tokens [b, n] → sum of token, position and type embeddings, norm [b, n, d]
                  → depth × Block → a head: guesses [b, n, v], or classes of the text or its tokens

b batch · n tokens · d width · v vocabulary. The paper's L is depth, its H is d, its A is heads.
RoBERTa (Liu et al., 2019, arXiv:1907.11692) is the same model trained for longer, with one type.
Differs from the paper: no dropout on the attention weights, no head for the next sentence; for
RoBERTa also no dropout on what enters the dense layer of a classifier.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers.attention import Attention
from zoo.layers.mlp import Mlp, gelu, gelu_tanh
from zoo.layers.stack import Mode, Remat, stack
from zoo.spec import TRANSFORMER, Count, Input, Variant


@dataclass(frozen=True)
class Config:
    """Section 3's sizes, and what published checkpoints vary beside them."""

    width: int
    depth: int
    heads: int
    mlp: int  # hidden width of the MLP, 4 d in the paper
    vocab: int = 30522
    context: int = 512
    types: int = 2  # of tokens: those of sentence A, those of sentence B
    position_offset: Count = 0  # rows in front of the first position; RoBERTa's 2 are never read
    head: Literal["none", "mlm", "sequence", "tokens"] = "none"
    pooler: bool = True  # tanh layer on the first token; kept for later where the head has no use
    gelu: Literal["erf", "tanh"] = "erf"
    epsilon: float = 1e-12  # of every LayerNorm
    dropout: float = 0.0  # after embeddings and branches and before classes; trained with 0.1
    layers: Mode = "loop"
    remat: Remat = False
    num_classes: Count = 0  # of the heads "sequence" and "tokens"; 0: what would enter the head

    def check(self) -> None:
        """Raises ValueError for values that do not fit together."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"a rate of dropout is in [0, 1), not {self.dropout}")
        if self.num_classes and self.head not in ("sequence", "tokens"):
            raise ValueError(
                f'num_classes={self.num_classes}, but head="{self.head}" has no classes: '
                'say head="sequence" or head="tokens"'
            )
        if self.head == "sequence" and not self.pooler:
            raise ValueError('head="sequence" reads the pooler: say pooler=True')


class BERT(nn.Module):
    """Figure 1. Takes ids [b, n], n up to the context; by `config.head` it returns

        none      the pooler's output [b, d], without a pooler the first token
        mlm       logits [b, n, vocab]: of what stands at each place
        sequence  logits [b, classes]
        tokens    logits [b, n, classes]

    types int32 [b, n]: 0 if not given. lengths int32 [b]: how many tokens are real, from the left.
    segments int32 [b, n]: numbers of packed texts, which do not see each other. positions int32
    [b, n]: 0 … n − 1 if not given. In training, dropout draws from the "dropout" rng.
    Raises ValueError for more tokens than the context.
    """

    config: Config

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(c.vocab, c.width, embedding_init=init)

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        types: jax.Array | None = None,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        c = self.config
        x = self.hidden(tokens, types, lengths, segments, positions, train=train)
        pooled = jnp.tanh(dense(c.width, name="pooler")(x[:, 0])) if c.pooler else x[:, 0]
        if c.head == "mlm":
            return self.logits(x)
        y = x if c.head == "tokens" else pooled
        if not c.num_classes:
            return y
        y = nn.Dropout(c.dropout, name="head_drop")(y, deterministic=not train)
        return dense(c.num_classes, name="head")(y)

    @nn.compact
    def hidden(
        self,
        tokens: jax.Array,
        types: jax.Array | None = None,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """[b, n, d] after the last block, padding included."""
        c = self.config
        x = norm(c, name="embed_norm")(self._enter(tokens, types, positions))
        x = nn.Dropout(c.dropout, name="drop")(x, deterministic=not train)
        options: dict[str, Any] = {"lengths": lengths, "segments": segments, "train": train}
        return stack(partial(Block, c), c.depth, x, mode=c.layers, remat=c.remat, **options)

    # A property that gives a method: where both have a name, NNX's bridge takes a module's method
    # for its parameters.
    @nn.compact
    def logits(self, hidden: jax.Array) -> jax.Array:
        """The masked-LM head: […, d] → logits […, vocab], the embeddings again, transposed."""
        c = self.config
        y = GELUS[c.gelu](dense(c.width, name="transform")(hidden))
        logits = self.embed.attend(norm(c, name="transform_norm")(y))
        bias = self.param("head_bias", nn.initializers.zeros, (c.vocab,))
        return logits + jnp.broadcast_to(bias.astype(logits.dtype), logits.shape)

    @nn.compact
    def _enter(
        self, tokens: jax.Array, types: jax.Array | None, positions: jax.Array | None
    ) -> jax.Array:
        """Figure 2."""
        c, (_, n) = self.config, tokens.shape
        if n > c.context:
            raise ValueError(f"{n} tokens are more than the context of {c.context}: cut the text")
        types = jnp.zeros_like(tokens) if types is None else types
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(n), tokens.shape)
        type_table = self.param("types", init, (c.types, c.width))
        table = self.param("positions", init, (c.position_offset + c.context, c.width))
        x = self.embed(tokens) + jnp.take(type_table, types, axis=0)
        return x + jnp.take(table, positions + c.position_offset, axis=0)


class Block(nn.Module):
    """Attention between all tokens, then an MLP on each, added to the input; norms last."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool,
    ) -> jax.Array:
        c = self.config
        drop = partial(nn.Dropout, c.dropout, deterministic=not train)
        attn = Attention(c.heads, kernel_init=init, name="attn")
        y = attn(x, lengths=lengths, segments=segments)
        x = norm(c, name="norm1")(x + drop(name="drop1")(y))
        zeros = nn.initializers.zeros
        mlp = Mlp(c.mlp, GELUS[c.gelu], kernel_init=init, bias_init=zeros, name="mlp")
        return norm(c, name="norm2")(x + drop(name="drop2")(mlp(x)))


def norm(config: Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.epsilon, name=name)


init = nn.initializers.truncated_normal(0.02)  # as in the authors' code
dense = partial(nn.Dense, kernel_init=init)
GELUS = {"erf": gelu, "tanh": gelu_tanh}
_roberta = partial(Config, vocab=50265, types=1, position_offset=2, epsilon=1e-5)
VARIANTS = {  # section 3; RoBERTa, section 5; with pooler, as transformers counts them
    "bert_base": Variant(Config(768, 12, 12, 3072), params=109_482_240),
    "bert_large": Variant(Config(1024, 24, 16, 4096), params=335_141_888),
    "roberta_base": Variant(_roberta(768, 12, 12, 3072), params=124_645_632),
    "roberta_large": Variant(_roberta(1024, 24, 16, 4096), params=355_359_744),
}
TINY = Config(
    width=32, depth=2, heads=4, mlp=64, vocab=61, context=16, head="sequence", num_classes=3
)
PARTITION = TRANSFORMER


def example(config: Config) -> dict[str, Input]:
    n = min(config.context, 12)
    return {"tokens": Input(("b", n), "int32", low=0, high=config.vocab)}
