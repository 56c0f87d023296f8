"""From a metric and a prediction to an evaluator over a whole split."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from train import metrics, pictures
from train.metrics import Metric
from train.state import Batch, Evaluate, State

# quantities(variables, batch) -> what the metric's update takes by keyword
Quantities = Callable[[Any, Batch], dict[str, jax.Array]]
Draw = Callable[[dict[str, Any]], dict[str, Any]]


def evaluator(quantities: Quantities, metric: Metric, draw: Draw) -> Evaluate:
    """Sums the metric over the batches, one jitted call each, and draws what it found.

    draw: makes the pictures, and takes from the metrics what is no number.
    """

    @jax.jit
    def add(total: Any, variables: Any, batch: Batch) -> Any:
        return metric.update(total, **quantities(variables, batch))

    def evaluate(state: State, batches: Iterable[Batch]) -> tuple[dict[str, float], dict]:
        total, variables = metric.init(), state.variables()
        for batch in batches:
            total = add(total, variables, batch)
        found = metric.compute(jax.device_get(total))
        drawn = draw(found)
        return found, drawn

    return evaluate


def draw_classes(labels: Sequence[str]) -> Draw:
    """Takes the counts of `metrics.confusion`, "confusion", and draws them, as a picture and as the
    table per class."""

    def draw(found: dict[str, Any]) -> dict[str, Any]:
        counts = found.pop("confusion")
        table = metrics.format_per_class(metrics.per_class(counts, labels))
        return {
            "confusion_matrix": pictures.confusion_matrix(counts, labels),
            "per_class": table,
        }

    return draw
