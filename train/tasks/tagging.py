"""Tagging: one label a word, such as its part of speech or the name that it belongs to."""

from dataclasses import dataclass
from typing import Any

from train.config import LabelledText, Setup, Task


@dataclass(frozen=True)
class Tagging(Task):
    """Softmax cross-entropy over the tags of the data, at the first token of every word.

    Batches are {"tokens" int32 [b, n], "lengths" int32 [b], "labels" int32 [b, n], −1 at what is no
    first token}. Reports `loss` and `accuracy` per word, and in evaluations `macro_f1`, the plain
    mean of the F1 of the tags that the split has or the model gives; draws the confusion matrix.
    The best checkpoint is that of the highest validation macro F1.

    The loss is the mean over the words of what is computed together: with step.accumulate or pmap
    each part counts the same, however many words it has, which is not quite the large batch.
    """

    takes = LabelledText
    tagging = True
    model = "encoder of text"

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax
        import jax.numpy as jnp

        from train import evaluation, language, losses, metrics, supervised

        data, labels = setup.data, setup.data.labels
        model = language.create(setup, {"head": "tokens", "num_classes": len(labels)})

        def objective(forward: Any, batch: Any, rng: jax.Array) -> Any:
            logits = forward(batch["tokens"], **language.seen(batch))
            scores = losses.token_scores(logits, batch["labels"])
            value, hits = losses.token_loss(scores, batch["labels"])
            return value, {"accuracy": hits}

        def quantities(forward: Any, batch: Any) -> dict[str, jax.Array]:
            logits = forward(batch["tokens"], **language.seen(batch))
            words = {**batch, "targets": batch["labels"]}
            scores = language.judged(losses.token_scores(logits, batch["labels"]), words)
            return {**scores, "logits": logits, "labels": jnp.maximum(batch["labels"], 0)}

        def draw(found: dict[str, Any]) -> dict[str, Any]:
            rows = metrics.per_class(found["confusion"], labels)
            found["macro_f1"] = metrics.macro(rows).f1
            return evaluation.draw_classes(labels)(found)

        task = supervised.build(
            setup,
            model,
            inputs=language.inputs,
            objective=objective,
            quantities=quantities,
            metric=metrics.collection(
                {
                    "loss": metrics.mean("nats"),
                    "accuracy": metrics.mean("hit"),
                    "confusion": metrics.confusion(len(labels)),
                }
            ),
            best="macro_f1",
            draw=draw,
            card=supervised.card(setup, model, labels),
        )
        return task._replace(tokenizer=data.tokenizer)
