"""The story of a run, top to bottom."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

import zoo
from train import log, parallel, pretrained, workdir
from train.check import check_together
from train.checkpoint import Checkpoints
from train.config import ConfigError, Experiment, Setup
from train.data.pipeline import background, prefetch
from train.interrupt import Interrupts, Stopped
from train.state import State, Task


def fit(cfg: Experiment, directory: Path) -> dict[str, Any] | None:
    """Trains, evaluates and checkpoints into `directory`, resuming where it holds a checkpoint.

    Returns the result, also in result.json: the best step, its validation metrics, and the test
    metrics, read once, at the end. None if a signal came first: then all is saved, and the same
    call goes on. On the same devices a resumed run is, bit for bit, the run that never stopped.
    `directory` must have been claimed for this experiment: `train.workdir.claim`.
    """
    parallel.join_processes()
    with Interrupts() as signals, checkpoints(run := prepare(cfg), directory) as saved:
        state, step, position, judged = start(run, saved)
        stream = run.data.train()
        stream.restore(position or stream.state())
        with (
            log.Logger(directory, cfg, step) as record,
            closing(stream),
            closing(prefetch(stream, run.put, cfg.data.prefetch)) as batches,
        ):
            newest = step
            while not signals.check(step):
                if evaluation_due(cfg, step) and not judged:
                    check_finite(cfg, record.flush(step))
                    with record.paused():
                        metrics = evaluate(run, state, "validation", step, record, signals)
                        if metrics is None:
                            break
                        saved.save(step, state, position, metrics)
                    newest, judged = step, True
                if step == cfg.steps:
                    return finish(run, saved, directory, record, signals)

                batch, position = next(batches)
                state, metrics = run.update(state, batch)
                step, judged = step + 1, False

                check_finite(cfg, record.train(step, metrics))
                record.skips(step, stream.skips)
                saved.poll()
                if save_due(cfg, step):
                    check_finite(cfg, record.flush(step))
                    saved.save(step, state, position)
                    newest = step
            check_finite(cfg, record.flush(step))
            if step != newest:
                saved.save(step, state, position)
            return None


class Run(NamedTuple):
    """Everything that is fixed during a run."""

    cfg: Experiment
    data: Any  # train.data.images.Dataset or another kind's
    task: Task
    mesh: jax.sharding.Mesh
    first: Callable[[], State]  # computes the first state
    abstract: State  # its shapes and shardings
    update: parallel.Update

    def put(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """To the devices, without what only the host needs."""
        return parallel.put(self.mesh, {k: v for k, v in batch.items() if k != "index"})


def prepare(cfg: Experiment) -> Run:
    """Opens the data, builds the task, compiles nothing yet. Raises ConfigError."""
    check_together(cfg)  # for those who call it without `train.check.check`
    mesh = parallel.make_mesh(cfg.parallel)
    parallel.check_batch(mesh, cfg.data.batch_size, cfg.step.accumulate)
    data = cfg.data.open()
    task = cfg.task.build(Setup(cfg, data, parallel.axis(cfg.parallel)))
    rng = jax.random.key(cfg.seed)
    if mesh.shape["tensor"] > 1 and not task.rules:
        raise ConfigError(
            f"parallel.tensor is {mesh.shape['tensor']}, but {cfg.model.name} has no rows that say "
            "what to split; use parallel.fsdp"
        )
    first, abstract = parallel.initialise(task.init, rng, data.spec(), mesh, task.rules)
    update = parallel.compile_update(task.update, abstract, mesh, cfg.parallel)
    if task.resident:
        update = beside(update, parallel.everywhere(mesh, dict(task.resident)))
    return Run(cfg, data, task, mesh, first, abstract, update)


def beside(update: parallel.Update, resident: Mapping[str, Any]) -> parallel.Update:
    return lambda state, batch: update(state, {**batch, **resident})


def checkpoints(run: Run, directory: Path, *, writable: bool = True) -> Checkpoints:
    policy = run.cfg.checkpoint
    return Checkpoints(
        directory / "checkpoints",
        keep=policy.keep,
        best=run.task.best,
        asynchronous=policy.asynchronous,
        strict=policy.strict,
        warn=log.say,
        writable=writable,
    )


def start(run: Run, saved: Checkpoints) -> tuple[State, int, Any, bool]:
    """(state, step, position in the data, whether that step is evaluated) of the newest checkpoint,
    or of a new run."""
    found = saved.restore(run.abstract)
    if found is None:
        return begin(run), 0, None, False
    log.say(f"resuming from step {found.step} of {run.cfg.steps}")
    return found.state, found.step, found.data, bool(found.metrics)


def begin(run: Run) -> State:
    """The state before the first step: random, or with the weights of `init`."""
    return pretrained.start(run.cfg.init, run.first(), run.task)


def evaluation_due(cfg: Experiment, step: int) -> bool:
    return step == cfg.steps or (step > 0 and step % cfg.evaluate_every == 0)


def save_due(cfg: Experiment, step: int) -> bool:
    """Between evaluations, which save by themselves."""
    every = cfg.checkpoint.every
    return every is not None and step % every == 0 and not evaluation_due(cfg, step)


def evaluate(
    run: Run, state: State, split: str, step: int, record: Any, signals: Interrupts | None = None
) -> dict[str, float] | None:
    """The metrics of a whole split, logged and drawn; None if a signal came."""
    found, skips = run.data.evaluate(split)
    with closing(background(map(run.put, found), depth=2)) as batches:
        try:
            metrics, artifacts = run.task.evaluator(split)(state, watched(batches, signals))
        except Stopped:
            return None
    metrics |= run.task.beside(split)
    record.evaluation(step, split, metrics)
    record.skips(step, skips)
    record.artifacts(step, {f"{split}_{name}": found for name, found in artifacts.items()})
    return metrics


def watched(batches: Iterable[Any], signals: Interrupts | None) -> Iterator[Any]:
    for batch in batches:
        # Several processes may see a signal at different batches: they finish the evaluation.
        if signals is not None and signals.pending and jax.process_count() == 1:
            raise Stopped
        yield batch


def check_finite(cfg: Experiment, row: Mapping[str, float]) -> None:
    """Raises NonFinite under `step.nonfinite=abort`. The state never holds such an update."""
    if cfg.step.nonfinite == "abort" and row.get("skipped", 0) > 0:
        raise NonFinite(
            f"{row['skipped']:.0f} updates had a loss or gradient that was not finite; none was "
            "applied, and the newest checkpoint is good. Lower optim.lr, set optim.clip, or go on "
            "past them with --step.nonfinite skip"
        )


class NonFinite(RuntimeError):
    """A loss or gradient was NaN or infinite."""


def finish(
    run: Run, saved: Checkpoints, directory: Path, record: Any, signals: Interrupts
) -> dict[str, Any] | None:
    """Chooses the checkpoint by validation, reads the test split with it, writes the result."""
    saved.wait()
    best = saved.restore(run.abstract, best=True)
    assert best is not None, "the last step was evaluated and saved"
    test = evaluate(run, best.state, "test", run.cfg.steps, record, signals)
    if test is None:
        return None
    result = {
        "steps": run.cfg.steps,
        "best_step": best.step,
        "training_seconds": record.seconds,
        "validation": best.metrics,
        "test": test,
    }
    record.curves()
    if run.task.model is not None:
        export(run, best.state, directory, result)
    if jax.process_index() == 0:
        workdir.write(directory, workdir.RESULT, result)
    return result


def export(run: Run, state: State, directory: Path, result: dict[str, Any]) -> None:
    """The evaluated weights, as `zoo.load(directory / "model")` reads them."""
    variables, companion = run.task.saved(parallel.whole(state.variables()))
    if jax.process_index() == 0:
        card = replace(run.task.card, results=result)
        zoo.save(run.task.model, variables, directory / "model", card=card)
        for beside in (run.task.tokenizer, companion):
            if beside is not None:
                beside.save(directory / "model")


def overfit(cfg: Experiment, steps: int = 200) -> bool:
    """The sanity check: trains on its first batch alone, and says whether the loss fell to a tenth.
    Writes nothing."""
    run = prepare(replace(cfg, task=cfg.task.plain(), data=cfg.data.plain()))
    with closing(run.data.train()) as stream:
        batch = run.put(next(stream))
    state, losses = begin(run), []
    for step in range(1, min(steps, cfg.steps) + 1):
        state, metrics = run.update(state, batch)
        losses.append(float(metrics["loss"]))
        if step == 1 or step % cfg.log_every == 0:
            log.say(f"step {step}: loss {losses[-1]:.4f}")
    learned = losses[-1] < losses[0] / 10
    verdict = "the model can learn this batch" if learned else "the loss did not fall to a tenth"
    log.say(f"one batch, {len(losses)} steps: loss {losses[0]:.4f} → {losses[-1]:.4f}: {verdict}")
    return learned
