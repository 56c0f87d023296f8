"""Golden files replayed: the recorded model is rebuilt by our page, and every number is compared.

A case goes the way of a user's checkpoint: tensors under foreign names, filled by name (`fill.py`),
through the family's table into variables. Differences are max |ours − reference| / max |reference|.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.golden.fill import fill, image
from zoo import tree
from zoo.weights import convert, store

HERE = Path(__file__).parent

# Measured: 7e-7 for hidden states and running statistics, 4e-6 for logits, and 2e-5 for gradients,
# which go through batch statistics of as few as 8 values; the reference computes in float64.
LAYER, MODEL = 1e-5, 1e-4

Tap = Callable[[Mapping[str, Any]], jax.Array]  # from what every module returned, by path


@dataclass(frozen=True)
class Case:
    """One golden file and the page and format that it is replayed with.

    taps: how recorded states that no module of ours returns come from those that one returns.
    rows: the table of a format that the zoo does not read (an ONNX graph).
    """

    name: str
    page: ModuleType
    format: str = ""
    taps: Mapping[str, Tap] = field(default_factory=dict)
    rows: Sequence[convert.Row] = ()

    @cached_property
    def recorded(self) -> Mapping[str, np.ndarray]:
        with np.load(HERE / f"{self.name}.npz") as file:
            return dict(file)

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads(str(self.recorded["meta"]))

    @property
    def image(self) -> jax.Array:
        name, shape = self.meta["image"]
        return jnp.asarray(image(name, tuple(shape)))

    def model(self) -> Any:
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in self.meta["config"].items()}
        return zoo.module_class(self.page)(self.page.Config(**config))

    def table(self, model: Any) -> Sequence[convert.Row]:
        return self.rows or self._format().rows(model.config)

    def variables(self, model: Any) -> dict[str, Any]:
        """The filled foreign tensors as our variables."""
        tensors = {name: fill(name, tuple(shape)) for name, shape, _ in self.meta["tensors"]}
        shapes = tree.flatten(jax.eval_shape(model.init, jax.random.key(0), self.image))
        ignored = () if self.rows else self._format().ignored
        loaded = convert.load(tensors, self.table(model), shapes, ignored)
        return tree.unflatten({path: jnp.asarray(loaded[path]) for path in shapes})

    def _format(self) -> convert.Format:
        return store.table(self.page.__name__.rpartition(".")[2]).FORMATS[self.format]


def difference(ours: Any, reference: np.ndarray) -> float:
    """max |ours − reference| / max |reference|; infinite for other shapes or a NaN."""
    ours = np.asarray(ours, np.float64)
    if ours.shape != reference.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def check(differences: Mapping[str, float], bound: float) -> None:
    """Raises AssertionError with every name whose difference is above the bound."""
    wrong = {name: value for name, value in differences.items() if not value <= bound}
    lines = [f"{name}: {value:.1e}, more than {bound:.0e}" for name, value in wrong.items()]
    assert not wrong, "\n".join(["differs from the reference:", *lines])


def check_evaluation(case: Case) -> dict[str, float]:
    """Hidden states within 1e-5 and logits within 1e-4, or AssertionError; returns the
    differences."""
    model, recorded = case.model(), case.recorded

    @jax.jit
    def run(variables: Any, image: jax.Array) -> tuple[jax.Array, Any]:
        logits, seen = model.apply(variables, image, capture_intermediates=True)
        return logits, seen["intermediates"]

    logits, seen = run(case.variables(model), case.image)
    seen = {path.removesuffix("/__call__/0"): value for path, value in tree.flatten(seen).items()}
    hidden = {}
    for key in recorded:
        kind, _, name = key.partition("/")
        if kind in REDUCTIONS:
            value = case.taps[name](seen) if name in case.taps else seen[name.replace(".", "/")]
            hidden[key] = difference(REDUCTIONS[kind](value), recorded[key])
    assert hidden, f"{case.name} holds no hidden state"
    check(hidden, LAYER)
    outputs = {"logits": difference(logits, recorded["logits"])}
    print(f"{case.name}: hidden states {max(hidden.values()):.0e}, logits {outputs['logits']:.0e}")
    check(outputs, MODEL)
    return hidden | outputs


REDUCTIONS = {"hidden": lambda x: x, "mean": lambda x: x.mean((1, 2))}


def check_training(case: Case) -> dict[str, float]:
    """Loss, logits and all gradients within 1e-4 and the running statistics after the step within
    1e-5, or AssertionError; returns the differences."""
    model, recorded = case.model(), case.recorded
    variables = case.variables(model)
    labels = jnp.asarray(recorded["labels"], jnp.int32)

    def loss_of(params: Any, stats: Any, image: jax.Array) -> tuple[jax.Array, Any]:
        both = {"params": params, "batch_stats": stats}
        logits, moved = model.apply(both, image, train=True, mutable=["batch_stats"])
        entropy = jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(len(labels)), labels]
        return entropy.mean(), (logits, moved["batch_stats"])

    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, (logits, stats)), grads = step(variables["params"], variables["batch_stats"], case.image)
    ours = tree.flatten({"params": grads, "batch_stats": stats})
    compared = {
        row.foreign: difference(ours[row.ours], row.op.load(recorded[f"{kind}/{row.foreign}"]))
        for row in case.table(model)
        for kind in [{"params": "grad", "batch_stats": "stats"}[row.ours.partition("/")[0]]]
    }
    assert set(compared) == {
        name.partition("/")[2] for name in recorded if name.startswith(("grad/", "stats/"))
    }
    moved = {name: value for name, value in compared.items() if ".running_" in name}
    others = {
        "loss": difference(loss, recorded["loss"]),
        "logits": difference(logits, recorded["logits"]),
        **{name: value for name, value in compared.items() if name not in moved},
    }
    grads = max(value for name, value in others.items() if name not in ("loss", "logits"))
    print(f"{case.name}: gradients {grads:.0e}, running statistics {max(moved.values()):.0e}")
    check(moved, LAYER)
    check(others, MODEL)
    return moved | others


def plant(
    monkeypatch: pytest.MonkeyPatch, fault: tuple[ModuleType, str, str], *users: ModuleType
) -> None:
    """A fault `(module, old, new)`: its source with one passage changed takes the module's place in
    the modules that use it. Fails where the passage is not found once, so that none goes stale."""
    module, old, new = fault
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{module.__name__} holds {source.count(old)} × {old!r}"
    sound = dict(vars(module))
    faulty = dict(sound)
    exec(compile(source.replace(old, new), f"<{module.__name__} with a fault>", "exec"), faulty)
    for user in (module, *users):
        for name, value in sound.items():
            if faulty[name] is not value and vars(user).get(name) is value:
                monkeypatch.setattr(user, name, faulty[name])
