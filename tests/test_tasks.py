"""The contract carries what is not one loss: two networks, two optimizers, one loop."""

import json
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train import loop, step, workdir
from train.config import Checkpoint, Experiment, Images, Parallel, Setup, Task
from train.state import State
from train.state import Task as Built


@dataclass(frozen=True)
class Gan(Task):
    """A toy GAN (Goodfellow et al., 2014, arXiv:1406.2661): two MLPs, each with its optimizer."""

    lr: float = 1e-3

    def build(self, setup: Setup) -> Built:
        data, size = setup.data, int(np.prod(setup.data.shape))
        generator = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(size), nn.tanh])
        critic = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(1)])
        optimizers = {"g": optax.adam(self.lr, b1=0.5), "d": optax.sgd(10 * self.lr)}

        def pixels(batch):
            return data.normalise(batch["image"]).reshape(-1, size)

        def init(rng, batch):
            g, d = jax.random.split(rng)
            params = {"g": generator.init(g, jnp.zeros((1, 4))), "d": critic.init(d, pixels(batch))}
            opt = {key: optimizers[key].init(params[key]) for key in params}
            return State.create(rng, params, opt)

        def logit(d, x):
            return critic.apply(d, x)[:, 0]

        def d_loss(d, g, z, real):
            fake, true = logit(d, generator.apply(g, z)), logit(d, real)
            return (nn.softplus(fake) + nn.softplus(-true)).mean()

        def g_loss(g, d, z):
            return nn.softplus(-logit(d, generator.apply(g, z))).mean()

        def update(state, batch):
            z = jax.random.normal(step.step_rng(state, setup.axis), (len(batch["image"]), 4))
            p, opt, losses = dict(state.params), dict(state.opt), {}
            for key, loss, rest in (
                ("d", d_loss, ("g", z, pixels(batch))),
                ("g", g_loss, ("d", z)),
            ):
                other, *given = rest
                losses[key], grads = jax.value_and_grad(loss)(p[key], p[other], *given)
                if setup.axis is not None:
                    losses[key], grads = jax.lax.pmean((losses[key], grads), setup.axis)
                change, opt[key] = optimizers[key].update(grads, opt[key], p[key])
                p[key] = optax.apply_updates(p[key], change)
            metrics = {"loss": losses["d"], "generator_loss": losses["g"]}
            return state.replace(step=state.step + 1, params=p, opt=opt), metrics

        def evaluate(state, batches):
            d = state.params["d"]
            scores = [
                nn.sigmoid(logit(d, pixels(b))) @ b["mask"] / b["mask"].sum() for b in batches
            ]
            return {"realness": float(np.mean(scores))}, {}

        return Built(init, step.guarded(update), evaluate, best="-realness")


def experiment() -> Experiment:
    return Experiment(
        data=Images(batch_size=64, mean=(0.5,), std=(0.5,)),
        task=Gan(),
        steps=12,
        evaluate_every=4,
        log_every=2,
        log="plain",
        tensorboard=False,
    )


@pytest.mark.quick
def test_two_networks_with_two_optimizers_train_evaluate_and_resume(tmp_path, monkeypatch):
    whole = loop.fit(experiment(), tmp_path / "whole")
    assert whole is not None and set(whole["test"]) == {"realness"}
    before = loop.prepare(experiment()).first().params

    stopped = replace(experiment(), checkpoint=Checkpoint(every=3))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Interrupts, "check", lambda self, step: step == 7)
        assert loop.fit(stopped, tmp_path / "parts") is None
    parts = loop.fit(stopped, tmp_path / "parts")
    assert parts is not None

    def state(name):
        run = loop.prepare(experiment())
        with loop.checkpoints(run, tmp_path / name, writable=False) as saved:
            return saved.restore(run.abstract).state

    a, b = state("whole"), state("parts")
    jax.tree.map(np.testing.assert_array_equal, (a.params, a.opt), (b.params, b.opt))
    assert parts["test"] == whole["test"] and parts["best_step"] == whole["best_step"]
    for name in ("g", "d"):  # both were trained
        moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a.params[name], before[name])
        assert min(jax.tree.leaves(moved)) > 0
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)
    assert workdir.result(tmp_path / "parts") == parts


def test_the_same_task_agrees_under_pmap(monkeypatch):
    """With one noise for all, since each device draws its own under pmap."""
    monkeypatch.setattr(jax.random, "normal", lambda rng, shape: jnp.ones(shape))

    def stepped(compiler):
        run = loop.prepare(replace(experiment(), parallel=Parallel(compiler=compiler)))
        stream = run.data.train()
        state, metrics = run.update(run.first(), run.put(next(stream)))
        stream.close()
        assert int(state.step) == 1 and int(metrics["skipped"]) == 0
        return jax.device_get(state.params)

    def check(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5)

    jax.tree.map(check, stepped("pmap"), stepped("jit"))
