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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.golden.fill import fill, image
from zoo import tree
from zoo.weights import convert, store

HERE = Path(__file__).parent

# Measured: 2e-6 for hidden states and running statistics, 4e-6 for logits, and 2e-5 for gradients,
# which go through batch statistics of as few as 8 values; the reference computes in float64.
BOUNDS = {
    "hidden states": 1e-5,
    "running statistics": 1e-5,
    "output": 1e-4,
    "gradients": 1e-4,
}

Tap = Callable[[Mapping[str, Any]], jax.Array]  # from what every module returned, by path


class Measured(NamedTuple):
    """One difference, beside the bound of its kind."""

    kind: str
    name: str
    error: float

    @property
    def bound(self) -> float:
        return BOUNDS[self.kind]


CASES: dict[str, "Case"] = {}  # every one that was made, by name


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

    def __post_init__(self) -> None:
        CASES[self.name] = self

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

    @property
    def inputs(self) -> dict[str, jax.Array]:
        """What a model takes, by keyword: text, or images, and for a masked model what of them is
        hidden; a pair of towers takes both, and one of distances two images."""
        text = {key: x for key, x in self.recorded.items() if key.startswith("inputs/")}
        text = {key.removeprefix("inputs/"): jnp.asarray(x) for key, x in text.items()}
        drawn = {key: self.meta[key] for key in ("image", "other") if key in self.meta}
        images = {key: jnp.asarray(image(name, tuple(n))) for key, (name, n) in drawn.items()}
        masked = "mask" in self.recorded
        mask = {"mask": jnp.asarray(self.recorded["mask"])} if masked else {}
        return {**images, **mask, **text}

    def model(self) -> Any:
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in self.meta["config"].items()}
        return zoo.module_class(self.page)(self.page.Config(**config))

    def table(self, model: Any) -> Sequence[convert.Row]:
        return self.rows or self._format().rows(model.config)

    def variables(self, model: Any) -> dict[str, Any]:
        """The filled foreign tensors as our variables."""
        tensors = {name: fill(name, tuple(shape)) for name, shape, _ in self.meta["tensors"]}
        shapes = tree.flatten(jax.eval_shape(model.init, jax.random.key(0), **self.inputs))
        ignored = () if self.rows else self._format().ignored
        named = tensors if self.rows else store._prefixed(tensors, self._format())
        loaded = convert.load(named, self.table(model), shapes, ignored)
        return tree.unflatten({path: jnp.asarray(loaded[path]) for path in shapes})

    def _format(self) -> convert.Format:
        return store.table(self.page.__name__.rpartition(".")[2]).FORMATS[self.format]


def difference(ours: Any, reference: np.ndarray, scale: float | None = None) -> float:
    """max |ours − reference| / scale, which is max |reference| unless given; infinite for other
    shapes or a NaN."""
    ours = np.asarray(ours, np.float64)
    if ours.shape != reference.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - reference).max() / (scale or np.abs(reference).max()))


def check(differences: Mapping[str, float], bound: float) -> None:
    """Raises AssertionError with every name whose difference is above the bound."""
    wrong = {name: value for name, value in differences.items() if not value <= bound}
    lines = [f"{name}: {value:.1e}, more than {bound:.0e}" for name, value in wrong.items()]
    assert not wrong, "\n".join(["differs from the reference:", *lines])


def measure(case: Case) -> list[Measured]:
    """Every difference of a case, of the hidden states first, in the order of the layers."""
    if "labels" in case.recorded:
        return measure_training(case)
    differentiated = any(key.startswith("grad/") for key in case.recorded)
    return measure_evaluation(case) + (measure_gradients(case) if differentiated else [])


def check_case(case: Case) -> None:
    """Raises AssertionError with every difference above its bound, of one kind after the other."""
    found = measure(case)
    for kind in BOUNDS:
        check({row.name: row.error for row in found if row.kind == kind}, BOUNDS[kind])


def measure_evaluation(case: Case) -> list[Measured]:
    """Hidden states, and what the model returns."""
    model, recorded = case.model(), case.recorded

    @jax.jit
    def run(variables: Any, inputs: Any) -> tuple[jax.Array, Any]:
        output, seen = model.apply(variables, **inputs, capture_intermediates=True)
        return outputs(case, model, variables, output), seen["intermediates"]

    output, seen = run(case.variables(model), case.inputs)
    seen = {path.removesuffix("/__call__/0"): value for path, value in tree.flatten(seen).items()}
    found = []
    for key in recorded:
        kind, _, name = key.partition("/")
        if kind in REDUCTIONS:
            value = case.taps[name](seen) if name in case.taps else seen[name.replace(".", "/")]
            error = difference(REDUCTIONS[kind](value), recorded[key])
            found.append(Measured("hidden states", key, error))
    assert found, f"{case.name} holds no hidden state"
    returned = ((name, difference(x, recorded[name])) for name, x in output.items())
    return [*found, *(Measured("output", *row) for row in returned)]


REDUCTIONS = {"hidden": lambda x: x, "mean": lambda x: x.mean((1, 2))}
OUTPUTS = {"logits", "representation", "distances"}  # of a model with and without classes; of pairs


def outputs(case: Case, model: Any, variables: Any, output: Any) -> dict[str, jax.Array]:
    """What a model returns, by the name that it was recorded under. Of a pair of towers that is
    both embeddings, the logits of the pairs that belong together, and those of all."""
    if not hasattr(model, "similarity"):
        (name,) = OUTPUTS & case.recorded.keys()
        return {name: output}
    image, text, pairs = output
    logits = model.apply(variables, image, text, method="similarity")
    return {"image": image, "text": text, "pairs": pairs, "logits": logits}


def measure_gradients(case: Case) -> list[Measured]:
    """Of the sum of what a model in evaluation mode returns, by the first image and by all
    parameters."""
    model, variables, inputs = case.model(), case.variables(case.model()), case.inputs

    def total(params: Any, first: jax.Array) -> jax.Array:
        return model.apply({**variables, "params": params}, **{**inputs, "image": first}).sum()

    params, first = jax.jit(jax.grad(total, (0, 1)))(variables["params"], inputs["image"])
    theirs = foreign(case.table(model), tree.flatten({"params": params}))
    found = compare({**theirs, "image": np.asarray(first)}, case.recorded, "grad/")
    assert found.keys() == {*theirs, "image"}, "not everything was recorded"
    return [Measured("gradients", name, error) for name, error in found.items()]


def measure_training(case: Case) -> list[Measured]:
    """Loss, logits, all gradients, and the running statistics after the step if there are any."""
    model, recorded = case.model(), case.recorded
    variables = case.variables(model)
    labels = jnp.asarray(recorded["labels"], jnp.int32)
    loss_from = LOSSES[case.meta.get("loss", "entropy")]

    def loss_of(params: Any, others: Any, inputs: Any) -> tuple[jax.Array, Any]:
        both = {"params": params, **others}
        output, moved = model.apply(both, **inputs, train=True, mutable=list(others))
        logits = outputs(case, model, both, output)["logits"]
        return loss_from(logits, labels), (logits, moved)

    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    others = {name: leaves for name, leaves in variables.items() if name != "params"}
    (loss, (logits, moved)), grads = step(variables["params"], others, case.inputs)
    theirs = foreign(case.table(model), tree.flatten({"params": grads, **moved}))
    theirs = {name: x for name, x in theirs.items() if name not in copies(case, model)}
    stats = compare(theirs, recorded, "stats/")
    grads = compare(theirs, recorded, "grad/")
    assert stats.keys() | grads.keys() == theirs.keys(), "not everything was recorded"
    output = {key: difference(x, recorded[key]) for key, x in (("loss", loss), ("logits", logits))}
    kinds = {"running statistics": stats, "output": output, "gradients": grads}
    return [
        Measured(kind, name, error)
        for kind, found in kinds.items()
        for name, error in found.items()
    ]


def entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the labels that are not −1."""
    right = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - right).mean(where=labels >= 0)


def softmax(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of pictures and texts, both ways: CLIP, figure 3."""
    return (entropy(logits, labels) + entropy(logits.T, labels)) / 2


def sigmoid(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Each pair by itself: SigLIP, equation 1."""
    signs = 2 * jax.nn.one_hot(labels, logits.shape[1]) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum(axis=1).mean()


LOSSES = {"entropy": entropy, "softmax": softmax, "sigmoid": sigmoid}


def foreign(rows: Sequence[convert.Row], ours: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our leaves by the names and in the layouts of the reference."""
    rows = [row for row in rows if set(convert.names(row.ours)) <= set(ours)]
    return convert.save({path: np.asarray(leaf) for path, leaf in ours.items()}, rows, ours)


def copies(case: Case, model: Any) -> set[str]:
    """The further names of tied tensors, which the reference's files leave out."""
    tied = (row.foreign for row in case.table(model) if row.op.some)
    in_file = {name for name, *_ in case.meta["tensors"]}
    return {name for foreign in tied for name in convert.names(foreign)} - in_file


def compare(
    ours: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray], kind: str
) -> dict[str, float]:
    """The differences of all that was recorded under a kind; where 0 was, as shares of the largest
    value of all."""
    named = {key.removeprefix(kind): x for key, x in recorded.items() if key.startswith(kind)}
    largest = {name: np.abs(x).max() for name, x in named.items()}
    return {
        name: difference(ours[name], x, largest[name] or max(largest.values()))
        for name, x in named.items()
    }


def assert_seen(case: Case, where: str) -> None:
    """Of a fault that was planted: the comparison fails, and names that part first; "" is for a
    checkpoint that does not load."""
    try:
        check_case(case)
    except (AssertionError, ValueError) as error:
        story = str(error)
    else:
        raise AssertionError("the comparison does not see the fault")
    differs = "differs from the reference" if where else "the checkpoint and the model differ"
    assert f"{differs}:\n{where}" in story, story


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
