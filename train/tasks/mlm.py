"""Masked language modelling: what was hidden, from both sides."""

from dataclasses import dataclass
from typing import Any

from train.config import ConfigError, Setup, Task, Text


@dataclass(frozen=True)
class MLM(Task):
    """Cross-entropy of the tokens that the data have hidden (Devlin et al., 2018,
    arXiv:1810.04805, section 3.1), a share of `data.mask`.

    Batches are those of LM, the targets −1 where nothing was hidden. Reports `loss`, in nats per
    hidden token, `accuracy`, and in evaluations `perplexity`. The best checkpoint is that of the
    lowest validation loss.

    The loss is the mean over the hidden tokens of what is computed together: with step.accumulate
    or pmap each part counts the same, also where a last row hides fewer.
    """

    takes = Text
    model = "encoder of text"

    chunk: int = 0  # tokens of a row whose logits exist at a time; 0: all, fastest where they fit

    def check(self) -> None:
        if self.chunk < 0:
            raise ConfigError(f"task.chunk is {self.chunk}, but must be 0 or more")

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax

        from train import language, metrics, supervised

        data = setup.data
        if not data.cfg.mask:
            raise ConfigError(
                "data.mask is 0, so that nothing is hidden for task MLM to guess; BERT hides 0.15"
            )
        model = language.create(setup, {"head": "mlm"})

        def quantities(forward: Any, batch: Any) -> dict[str, jax.Array]:
            return language.judged(language.score(forward, batch, self.chunk), batch)

        task = supervised.build(
            setup,
            model,
            inputs=language.inputs,
            objective=language.objective(self.chunk),
            quantities=quantities,
            metric=metrics.collection(language.METRICS),
            best="-loss",
            draw=lambda found: {},
            card=supervised.card(setup, model),
        )
        return task._replace(tokenizer=data.tokenizer)
