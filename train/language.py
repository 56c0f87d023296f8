"""What the tasks on text share: a model that fits the data, the scores of tokens, samples.

b batch · n tokens of a row. Targets are int32 [b, n], below 0 where nothing is scored: padding, and
what the task does not predict.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import zoo
from train import losses, metrics, parallel, supervised
from train.config import ConfigError, Setup, short_context
from train.data import tokens
from train.metrics import Metric
from train.state import Batch, State

Scores = dict[str, jax.Array]
SEEN = ("segments", "positions", "lengths")  # keys of a batch that say what a token may see
TEMPERATURE = 0.8  # of samples: a little less noise than the model's own distribution has


def create(setup: Setup, facts: Mapping[str, Any]) -> Any:
    """The experiment's model with the vocabulary of the data, and `facts`, which the task decides.

    Raises ConfigError for options that contradict them, a vocabulary that is smaller than the
    tokenizer's, and a context that is shorter than the rows.
    """
    cfg, data = setup.experiment.model, setup.data
    vocab = cfg.options.get("vocab", data.vocab_size)
    model = supervised.create(cfg, {"vocab": vocab, **facts})
    if vocab < data.vocab_size:
        raise ConfigError(
            f"model.options: vocab is {vocab}, but the tokenizer has {data.vocab_size} ids; leave "
            "it out, or give as many or more"
        )
    if data.length > model.config.context:
        raise short_context(cfg, data.length, model.config.context)
    return supervised.over(model, setup.axis)


def inputs(batch: Batch) -> tuple[jax.Array, ...]:
    """What the model is initialised with."""
    return (batch["tokens"],)


def seen(batch: Batch) -> dict[str, jax.Array]:
    """The keywords of the model that the batch has."""
    return {key: batch[key] for key in SEEN if key in batch}


# Prediction of tokens.


def score(forward: Callable[..., Any], batch: Batch, chunk: int, **mode: bool) -> Scores:
    """`losses.token_scores` of the batch's targets; with a chunk, the logits of so many tokens of
    every row at a time. mode: `train=True` while training."""
    tokens, targets = batch["tokens"], batch["targets"]
    if not chunk:
        return losses.token_scores(forward(tokens, **seen(batch)), targets)

    def head(hidden: jax.Array, targets: jax.Array) -> Scores:
        return losses.token_scores(forward(hidden, method="logits"), targets)

    hidden = forward(tokens, method="hidden", **seen(batch), **mode)
    return losses.in_chunks(head, chunk, hidden, targets)


def objective(chunk: int, z_loss: float = 0.0) -> Callable[..., Any]:
    """The loss of `supervised.build`, and the share of tokens that are guessed."""

    def loss(forward: Any, batch: Batch, rng: jax.Array) -> Any:
        scores = score(forward, batch, chunk, train=True)
        value, hits = losses.token_loss(scores, batch["targets"], z_loss)
        return value, {"accuracy": hits}

    return loss


def judged(scores: Scores, batch: Batch) -> dict[str, jax.Array]:
    """The quantities that METRICS take, of an evaluation's batch."""
    scored = (batch["targets"] >= 0) & (batch["mask"][:, None] > 0)
    return {**scores, "mask": scored.astype(jnp.float32)}


def exponential(nats: float) -> float:
    """e to the nats; 10^304 for all that is near infinity, NaN for NaN."""
    return math.exp(min(nats, 700.0))


METRICS: dict[str, Metric] = {
    "loss": metrics.mean("nats"),
    "perplexity": metrics.mapped(metrics.mean("nats"), exponential),
    "accuracy": metrics.mean("hit"),
}


# Samples.


def sampler(
    model: Any, tokenizer: Any, prompt: str, count: int
) -> Callable[[State], dict[str, str]]:
    """state -> {"samples": what the model writes after the prompt, up to `count` tokens of it or to
    the end of its text}; always from the same random numbers.

    The prompt stands at the beginning of a document. Raises ConfigError where it fills the context.
    """
    start = [tokens.ends(tokenizer)[0], *tokenizer.encode(prompt, add_special=False)]
    room = model.config.context - len(start)
    if room < 1:
        way = "shorten it" if prompt else "set --task.sample 0, or a longer context"
        raise ConfigError(
            f"task.prompt has {len(start) - 1} tokens, but the context of the model is "
            f"{model.config.context}; {way}"
        )
    options = {"max_new_tokens": min(count, room), "temperature": TEMPERATURE, "seed": 0}

    def sample(state: State) -> dict[str, str]:
        variables = parallel.whole(state.variables())
        if jax.process_index() > 0:
            return {}
        [written] = zoo.generate(model, variables, [start], tokenizer=tokenizer, **options)
        return {"samples": prompt + written.text}

    return sample
