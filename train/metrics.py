"""Metrics that are right over uneven last batches and over any split of the data.

A `Metric` is four pure functions over an accumulator, a tree of arrays that is summed:

    metric = collection({"loss": mean("loss"), "accuracy": topk(1), "confusion": confusion(10)})
    total = metric.init()
    for batch in batches:  # update may be jitted; `merge` adds totals from elsewhere
        total = metric.update(total, loss=…, logits=…, labels=…, mask=…)
    metric.compute(total)  # {"loss": 0.31, "accuracy": 0.92, "confusion": int array [10, 10]}

b batch · c classes. Quantities go by keyword, each metric takes those it needs; `mask` [b] weighs
the examples, 0 on padding, and may be None. Labels are int [b]. Where tokens are judged, all of
these are [b, n] instead, and the logits [b, n, c].
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Total = Any


class Metric(NamedTuple):
    """init() -> total; update(total, **quantities) -> total; merge(total, total) -> total.

    compute(total) runs on the host and gives a float, an array, or a dict of them.
    """

    init: Callable[[], Total]
    update: Callable[..., Total]
    merge: Callable[[Total, Total], Total]
    compute: Callable[[Total], Any]


def mean(name: str) -> Metric:
    """The weighted mean of the quantity `name`, float [b]; NaN over no examples."""
    return _mean(lambda quantities: quantities[name])


def ratio(top: str, bottom: str) -> Metric:
    """The sum of the quantity `top` over the sum of `bottom`, both weighted; NaN over nothing."""
    return _quotient(lambda quantities: quantities[top], lambda quantities: quantities[bottom])


def mapped(metric: Metric, f: Callable[[Any], Any]) -> Metric:
    """`f` of what the metric finds."""
    return metric._replace(compute=lambda total: f(metric.compute(total)))


def topk(k: int) -> Metric:
    """The share of examples whose label is among the k largest of `logits` [b, c]."""

    def hit(quantities: Mapping[str, Any]) -> jax.Array:
        logits = quantities["logits"]
        _, best = jax.lax.top_k(logits, min(k, logits.shape[-1]))
        return jnp.any(best == quantities["labels"][:, None], axis=1)

    return _mean(hit)


def confusion(classes: int) -> Metric:
    """Counts int32 [c, c]: row = true class, column = class of the largest of `logits` [b, c].

    An example counts where its mask is not 0.
    """

    def update(total: Total, **quantities: Any) -> Total:
        labels = quantities["labels"]
        predicted = jnp.argmax(quantities["logits"], axis=-1)
        counted = (_mask(quantities, labels) != 0).astype(jnp.int32)
        return total.at[labels, predicted].add(counted)

    return Metric(lambda: jnp.zeros((classes, classes), jnp.int32), update, _add, np.asarray)


def collection(metrics: Mapping[str, Metric]) -> Metric:
    """Several metrics as one, over dicts by name."""

    def each(function: str) -> Callable[..., dict[str, Any]]:
        def apply(*totals: Mapping[str, Total], **quantities: Any) -> dict[str, Any]:
            return {
                name: getattr(metric, function)(*(total[name] for total in totals), **quantities)
                for name, metric in metrics.items()
            }

        return apply

    return Metric(each("init"), each("update"), each("merge"), each("compute"))


def _mean(values: Callable[[Mapping[str, Any]], jax.Array]) -> Metric:
    return _quotient(values, lambda quantities: jnp.ones_like(values(quantities), jnp.float32))


def _quotient(top: Callable[..., jax.Array], bottom: Callable[..., jax.Array]) -> Metric:
    def init() -> Total:
        return {"sum": jnp.zeros((), jnp.float32), "weight": jnp.zeros((), jnp.float32)}

    def update(total: Total, **quantities: Any) -> Total:
        def weighted(values: jax.Array) -> jax.Array:
            mask = _mask(quantities, values)
            # Not values · mask: what a model makes of padding may be NaN.
            return jnp.where(mask > 0, values.astype(jnp.float32) * mask, 0).sum()

        added = {"sum": weighted(top(quantities)), "weight": weighted(bottom(quantities))}
        return _add(total, added)

    def compute(total: Total) -> float:
        return _share(float(total["sum"]), float(total["weight"]))

    return Metric(init, update, _add, compute)


def _mask(quantities: Mapping[str, Any], like: jax.Array) -> jax.Array:
    mask = quantities.get("mask")
    return jnp.ones(like.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)


def _add(a: Total, b: Total) -> Total:
    return jax.tree.map(jnp.add, a, b)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


class Class(NamedTuple):
    """A row of the table per class; a share of nothing is NaN. `support` counts its examples."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def per_class(counts: np.ndarray, labels: Sequence[str]) -> list[Class]:
    """Precision, recall and F1 of each class, from counts [c, c] with rows = true class."""
    hits = np.diagonal(counts)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    return [
        Class(label, _share(hit, p), _share(hit, t), _share(2 * hit, t + p), int(t))
        for label, hit, t, p in zip(labels, hits, true, predicted, strict=True)
    ]


def macro(rows: Sequence[Class]) -> Class:
    """The plain mean of the rows, over the classes where a share is defined."""

    def average(shares: Sequence[float]) -> float:
        known = [share for share in shares if not math.isnan(share)]
        return _share(sum(known), len(known))

    _, precision, recall, f1, support = zip(*rows, strict=True)
    return Class("macro average", average(precision), average(recall), average(f1), sum(support))


def format_per_class(rows: Sequence[Class]) -> str:
    """The rows and their macro average as an aligned plain-text table; "–" where undefined."""
    rows = [*rows, macro(rows)]
    width = max(len("class"), *(len(row.label) for row in rows))
    lines = [f"{'class':<{width}}  precision  recall      f1  support"]
    for label, precision, recall, f1, support in rows:
        p, r, f = ("–" if math.isnan(x) else f"{x:.4f}" for x in (precision, recall, f1))
        lines.append(f"{label:<{width}}  {p:>9}  {r:>6}  {f:>6}  {support:>7}")
    return "\n".join(lines)


# Pictures.


def mean_square(error: np.ndarray) -> float:
    """Summed in float64."""
    return float((error.astype(np.float64) ** 2).mean())


def psnr(found: np.ndarray, truth: np.ndarray) -> float:
    """The peak signal-to-noise ratio of values in [0, 1], dB; 120 where all are equal."""
    return -10 * math.log10(max(mean_square(found.astype(np.float64) - truth), 1e-12))
