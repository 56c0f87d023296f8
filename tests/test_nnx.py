"""The README's recipe for NNX: its block is executed as it stands, on tiny models."""

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from tests.checkpoints import assert_same, random_variables
from tests.test_migration import snippets
from zoo import tree
from zoo.models import resnet, vit

pytestmark = pytest.mark.quick

SOURCE = "google/vit-base-patch16-224"  # loaded by the recipe; a folder of that name comes first
HEAD = 'nnx.All(nnx.Param, nnx.PathContains("head"))'
MODELS = {"vit": (vit.ViT, vit.TINY), "resnet": (resnet.ResNet, resnet.TINY)}
IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(4, 32, 32, 3)), jnp.float32)
LABELS = jnp.array([3, 1, 4, 1])


@pytest.fixture(scope="module", params=MODELS)
def ran(request, tmp_path_factory):
    """What the block leaves behind; the file has seven classes, and the recipe asks for ten."""
    return execute(request.param, tmp_path_factory.mktemp(request.param), num_classes=7)


def execute(name, folder, *, num_classes, trained=HEAD):
    """The block's names, and the variables that it loaded (`held`) and saved (`saved`)."""
    page, config = MODELS[name]
    model = page(replace(config, num_classes=num_classes))
    [block] = snippets("NNX")
    assert block.count(HEAD) == 1
    names = {"zoo": zoo, "images": IMAGES, "labels": LABELS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        zoo.save(model, tree.map_named(tamed, random_variables(model)), SOURCE, format="hf")
        exec(block.replace(HEAD, trained), names)
        held, saved = zoo.load(SOURCE, num_classes=10)[1], zoo.load("out")[1]
    return SimpleNamespace(**names, held=held, saved=saved)


def tamed(path, leaf):
    """Small, and as variances above 0."""
    return np.abs(leaf) + 0.5 if path.endswith("/var") else leaf / 10


def part(variables, *prefixes):
    """The leaves below these paths, by path."""
    flat = tree.flatten(variables)
    return {path: flat[path] for path in sorted(flat) if path.startswith(prefixes)}


def test_the_module_computes_what_apply_does_bit_for_bit(ran):
    np.testing.assert_array_equal(ran.logits, ran.model.apply(ran.held, IMAGES))
    maps = ran.model.apply(ran.held, IMAGES, method="features")
    assert len(maps) == len(ran.maps)
    for ours, theirs in zip(ran.maps, maps, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_steps_lower_the_loss(ran):
    net = nnx.clone(ran.net)  # other tests look at what the block left
    optimizer = nnx.Optimizer(net, ran.optimizer.tx, wrt=ran.trained)
    losses = [ran.loss] + [ran.step(net, optimizer, IMAGES, LABELS) for _ in range(3)]
    assert all(after < before for before, after in zip(losses, losses[1:], strict=False))


def test_what_is_not_trained_is_saved_bit_for_bit(ran):
    changed = ("params/head/", "batch_stats/")
    kept = [path for path in tree.flatten(ran.held) if not path.startswith(changed)]
    assert len(kept) > 20
    assert_same(part(ran.held, *kept), part(ran.saved, *kept))
    head, trained = part(ran.held, "params/head/"), part(ran.saved, "params/head/")
    assert all((head[path] != trained[path]).any() for path in head)


def test_running_statistics_move_as_apply_moves_them(ran):
    _, moved = ran.model.apply(ran.held, IMAGES, train=True, mutable=["batch_stats"])
    before, after = part(ran.held, "batch_stats/"), part(ran.saved, "batch_stats/")
    expected = part(dict(moved), "batch_stats/")
    assert before.keys() == after.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(after[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
        assert (after[path] != before[path]).any(), path


def test_the_parts_that_the_module_was_split_into_make_it_again(ran):
    again = nnx.merge(ran.graph, ran.params, ran.stats, ran.rngs)
    np.testing.assert_array_equal(again(IMAGES), ran.net(IMAGES))
    np.testing.assert_array_equal(again(IMAGES), ran.model.apply(ran.variables, IMAGES))
    assert (again(IMAGES) != ran.logits).any()


def test_nnx_param_trains_every_parameter(tmp_path):
    ran = execute("vit", tmp_path, num_classes=10, trained="nnx.Param")
    held, saved = tree.flatten(ran.held["params"]), tree.flatten(ran.saved["params"])
    assert [path for path in held if not (held[path] != saved[path]).any()] == []
