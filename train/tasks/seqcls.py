"""Classification of texts: one label a text, from a model that may have been trained on others."""

from dataclasses import dataclass
from typing import Any

from train.config import ConfigError, LabelledText, Setup, Task


@dataclass(frozen=True)
class SequenceClassification(Task):
    """Softmax cross-entropy over the classes of the data.

    Batches are {"tokens" int32 [b, n], "lengths" int32 [b], "label" int32 [b]}. Reports `loss` (in
    evaluations without smoothing) and `accuracy`, and draws the confusion matrix. The best
    checkpoint is that of the highest validation accuracy.
    """

    takes = LabelledText
    tagging = False
    model = "encoder of text"

    label_smoothing: float = 0.0

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"task.label_smoothing is {self.label_smoothing}, not in [0, 1)")

    def plain(self) -> Task:
        return SequenceClassification()

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax
        import jax.numpy as jnp

        from train import evaluation, language, losses, metrics, supervised

        data, labels = setup.data, setup.data.labels
        model = language.create(setup, {"head": "sequence", "num_classes": len(labels)})

        def objective(forward: Any, batch: Any, rng: jax.Array) -> Any:
            logits, label = forward(batch["tokens"], **language.seen(batch)), batch["label"]
            hit = (jnp.argmax(logits, axis=-1) == label).mean(dtype=jnp.float32)
            loss = losses.cross_entropy(logits, label, self.label_smoothing)
            return loss.mean(), {"accuracy": hit}

        def quantities(forward: Any, batch: Any) -> dict[str, jax.Array]:
            logits = forward(batch["tokens"], **language.seen(batch))
            known = {"logits": logits, "labels": batch["label"], "mask": batch["mask"]}
            return {"loss": losses.cross_entropy(logits, batch["label"]), **known}

        task = supervised.build(
            setup,
            model,
            inputs=language.inputs,
            objective=objective,
            quantities=quantities,
            metric=metrics.collection(
                {
                    "loss": metrics.mean("loss"),
                    "accuracy": metrics.topk(1),
                    "confusion": metrics.confusion(len(labels)),
                }
            ),
            best="accuracy",
            draw=evaluation.draw_classes(labels),
            card=supervised.card(setup, model, labels),
        )
        return task._replace(tokenizer=data.tokenizer)
