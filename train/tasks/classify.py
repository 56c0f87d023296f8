"""Classification: one label a picture."""

from dataclasses import dataclass
from typing import Any

from train.config import ConfigError, Images, Setup, Task


@dataclass(frozen=True)
class Classify(Task):
    """Softmax cross-entropy over the classes of the data.

    Batches are {"image" uint8 [b, h, w, c], "label" int32 [b]}. Reports `loss` (in evaluations
    without smoothing), `accuracy` and `top5`, and draws the confusion matrix. The best checkpoint
    is that of the highest validation accuracy.
    """

    takes = Images

    label_smoothing: float = 0.0
    mixup: float = 0.0  # α of the Beta distribution; 0: off
    cutmix: float = 0.0

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"task.label_smoothing is {self.label_smoothing}, not in [0, 1)")
        for key in ("mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise ConfigError(f"task.{key} is {getattr(self, key)}, but must be 0 or more")

    def plain(self) -> Task:
        return Classify()

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax
        import jax.numpy as jnp

        from train import evaluation, losses, metrics, supervised

        cfg, data, labels = setup.experiment, setup.data, setup.data.labels
        height, width, channels = data.shape
        if height != width:
            raise ConfigError(f"data.image_size: pictures are {height}×{width}; set it to one size")
        facts = {"num_classes": len(labels), "in_channels": channels, "image_size": height}
        model = supervised.over(supervised.create(cfg.model, facts), setup.axis)

        def objective(forward: Any, batch: Any, rng: jax.Array) -> Any:
            image, label = data.normalise(batch["image"]), batch["label"]
            target = jax.nn.one_hot(label, len(labels))
            image, target = losses.mix(rng, image, target, self.mixup, self.cutmix)
            heads = jax.tree.leaves(forward(image))  # a ViT with DeiT's token may have two
            hit = (jnp.argmax(sum(heads), axis=-1) == label).mean(dtype=jnp.float32)
            found = [losses.cross_entropy(head, target, self.label_smoothing) for head in heads]
            return jnp.stack(found).mean(), {"accuracy": hit}

        def quantities(forward: Any, batch: Any) -> dict[str, jax.Array]:
            logits = forward(data.normalise(batch["image"]))
            known = {"logits": logits, "labels": batch["label"], "mask": batch["mask"]}
            return {"loss": losses.cross_entropy(logits, batch["label"]), **known}

        return supervised.build(
            setup,
            model,
            inputs=lambda batch: (data.normalise(batch["image"]),),
            objective=objective,
            quantities=quantities,
            metric=metrics.collection(
                {
                    "loss": metrics.mean("loss"),
                    "accuracy": metrics.topk(1),
                    "top5": metrics.topk(5),
                    "confusion": metrics.confusion(len(labels)),
                }
            ),
            best="accuracy",
            draw=evaluation.draw_classes(labels),
            card=supervised.card(setup, model, labels),
        )
