"""Language modelling: what comes next, at every token of a text."""

import math
from dataclasses import dataclass
from typing import Any

from train.config import ConfigError, Setup, Task, Text


@dataclass(frozen=True)
class LM(Task):
    """Cross-entropy of the next token.

    Batches are {"tokens" int32 [b, n], "targets" int32 [b, n], −1 where nothing is scored}, and
    where documents are packed {"segments", "positions"} int32 [b, n]. Reports `loss`, in nats per
    token, and `accuracy`; in evaluations, which have no z-loss, also `perplexity`, and
    `bits_per_byte`: all bits of the split over the bytes of its text, whatever the tokenizer.
    Beside them stands what zlib and xz need for the split, and what xz needs that has read the
    training split (`xz_seen`); and a sample, in samples.txt. The best checkpoint is that of the
    lowest validation loss.
    """

    takes = Text
    model = "decoder of text"

    z_loss: float = 0.0  # coefficient of log² Z; PaLM's is 1e-4
    chunk: int = 0  # tokens of a row whose logits exist at a time; 0: all, fastest where they fit
    sample: int = 200  # tokens of a sample at each evaluation; 0: none
    prompt: str = ""  # what a sample begins with

    def check(self) -> None:
        for key in ("z_loss", "chunk", "sample"):
            if getattr(self, key) < 0:
                raise ConfigError(f"task.{key} is {getattr(self, key)}, but must be 0 or more")

    def plain(self) -> Task:
        return LM(chunk=self.chunk, sample=0)

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax
        import jax.numpy as jnp

        from train import language, metrics, supervised
        from train.data import tokens

        data = setup.data
        if data.cfg.mask:
            raise ConfigError("data.mask hides tokens, which is for task MLM; set it to 0 for LM")
        model = language.create(setup, {})

        def quantities(forward: Any, batch: Any) -> dict[str, jax.Array]:
            scores = language.score(forward, batch, self.chunk)
            lengths = jnp.asarray(data.byte_lengths, jnp.float32)
            size = lengths[jnp.maximum(batch["targets"], 0)]
            if data.tokenizer.spelling.leading_space:  # of which the text itself has nothing
                size -= batch["tokens"] == tokens.ends(data.tokenizer)[0]
            known = {"bits": scores["nats"] / math.log(2), "bytes": jnp.maximum(size, 0)}
            return language.judged({**scores, **known}, batch)

        def beside(split: str) -> dict[str, float]:
            return {f"{name}_bits_per_byte": x for name, x in data.compressors(split).items()}

        task = supervised.build(
            setup,
            model,
            inputs=language.inputs,
            objective=language.objective(self.chunk, self.z_loss),
            quantities=quantities,
            metric=metrics.collection(
                {**language.METRICS, "bits_per_byte": metrics.ratio("bits", "bytes")}
            ),
            best="-loss",
            draw=lambda found: {},
            card=supervised.card(setup, model),
        )
        task = task._replace(tokenizer=data.tokenizer, beside=beside)
        if not self.sample:
            return task
        sample = language.sampler(task.model, data.tokenizer, self.prompt, self.sample)

        def evaluate(state: Any, batches: Any) -> tuple[dict[str, float], dict[str, Any]]:
            found, drawn = task.evaluate(state, batches)
            return found, {**drawn, **sample(state)}

        return task._replace(evaluate=evaluate)
