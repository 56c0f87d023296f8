"""The removed Flax classes of transformers: what they saved loads to the same outputs, and what the
README tells their users works."""

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from tests.golden.fill import fill
from tests.golden.replay import Case, check, difference
from zoo import tree
from zoo.models import resnet, vit
from zoo.weights import formats
from zoo.weights.convert import WeightsError

BOUND = 1e-5  # measured: 4e-7; the other GELU is 1e-4 away
README = Path(__file__).parent.parent / "README.md"
CASES = (  # recorded from those classes, with the files that they saved
    Case("vit_flax", vit, "hf_flax"),
    Case("vit_flax_pooler", vit, "hf_flax"),
    Case("resnet_flax", resnet, "hf_flax"),
    Case("resnet_flax_basic", resnet, "hf_flax"),
)
VIT, POOLER, RESNET, BASIC = CASES
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def write(case: Case, folder: Path) -> Path:
    """What `save_pretrained` of the class left, byte for byte."""
    folder.mkdir()
    for name in ("flax_model.msgpack", "config.json"):
        case.recorded[f"file/{name}"].tofile(folder / name)
    return folder


def applied(model, variables, case: Case, **options):
    return jax.jit(partial(model.apply, **options))(variables, case.image)


def output(case: Case) -> np.ndarray:
    recorded = case.recorded
    return recorded["logits"] if "logits" in recorded else recorded["representation"]


@every_case
def test_a_file_of_the_class_loads_to_its_outputs(case, tmp_path):
    model, variables = zoo.load(write(case, tmp_path / "old"))
    assert model == case.model()
    check({"output": difference(applied(model, variables, case), output(case))}, BOUND)


@every_case
def test_the_names_and_tensors_of_the_file_are_those_recorded(case, tmp_path):
    tensors = formats.read(write(case, tmp_path / "old"))
    assert {name: list(spec.shape) for name, spec in tensors.specs.items()} == {
        name: shape for name, shape, _ in case.meta["tensors"]
    }
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, fill(name, tensor.shape))


@every_case
def test_what_is_saved_for_the_class_is_what_it_saved(case, tmp_path):
    old, new = write(case, tmp_path / "old"), tmp_path / "new"
    model, variables = zoo.load(old)
    zoo.save(model, variables, new, format="hf_flax", card=zoo.card(old))
    assert {path.name for path in new.iterdir()} > {"flax_model.msgpack", "config.json"}
    theirs, ours = formats.read(old), formats.read(new)
    assert theirs.keys() == ours.keys()
    for name in theirs:
        assert theirs[name].tobytes() == ours[name].tobytes() and ours[name].dtype == np.float32
    stated, written = (formats.read_json(folder / "config.json") for folder in (old, new))
    same = {key for key in written if stated.get(key) is not None}
    assert {"architectures", "model_type"} <= same
    assert {key: written[key] for key in same} == {key: stated[key] for key in same}


# Damage. Each edit is of the tensors or of `config.json`, and is refused with these words.


EDITS = {
    "a missing bias": (
        VIT,
        lambda tensors, facts: tensors.pop("vit/encoder/layer/1/attention/attention/key/bias"),
        "- params/block_1/attn/k/bias: no tensor vit/encoder/layer/1/attention/attention/key/bias",
    ),
    "an extra tensor": (
        RESNET,
        lambda tensors, facts: tensors.update({"params/resnet/extra": np.zeros(2, np.float32)}),
        "+ params/resnet/extra: no place in the model",
    ),
    "no statistics": (
        RESNET,
        lambda tensors, facts: [
            tensors.pop(name) for name in list(tensors) if name.startswith("batch_stats/")
        ],
        "- batch_stats/stem/norm/mean: no tensor batch_stats/resnet/embedder",
    ),
    "the numbering of bottlenecks in basic blocks": (
        BASIC,
        lambda tensors, facts: tensors.update(
            {n.replace("/layer_", "/"): tensors.pop(n) for n in list(tensors) if "/layer_" in n}
        ),
        "+ params/encoder/stages/0/layers/0/layer/0/convolution/kernel: no place",
    ),
    "a kernel in torch's layout": (
        RESNET,
        lambda tensors, facts: tensors.update(
            {"params/classifier/1/kernel": tensors["params/classifier/1/kernel"].T}
        ),
        "~ params/classifier/1/kernel: (5, 24), but params/head/kernel needs (24, 5)",
    ),
    "no classifier": (
        VIT,
        lambda tensors, facts: [tensors.pop(f"classifier/{leaf}") for leaf in ("kernel", "bias")],
        "no classifier",
    ),
    "no classifier of a ResNet": (
        RESNET,
        lambda tensors, facts: [
            tensors.pop(f"params/classifier/1/{leaf}") for leaf in ("kernel", "bias")
        ],
        "no classifier",
    ),
    "another activation": (
        RESNET,
        lambda tensors, facts: facts.update(hidden_act="gelu"),
        "hidden_act is 'gelu', only 'relu' is supported",
    ),
    "another GELU": (
        VIT,
        lambda tensors, facts: facts.update(hidden_act="quick_gelu"),
        "hidden_act is 'quick_gelu'",
    ),
    "no config": (VIT, lambda tensors, facts: facts.clear(), "these names need the config.json"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_damaged_file_is_refused_by_name(edit, tmp_path):
    case, change, words = EDITS[edit]
    old, new = write(case, tmp_path / "old"), tmp_path / "new"
    tensors, facts = dict(formats.read(old)), formats.read_json(old / "config.json")
    change(tensors, facts)
    formats.write(new, tensors, {"config.json": facts} if facts else {}, "flax_model.msgpack")
    with pytest.raises(WeightsError, match=re.escape(words)):
        zoo.load(new)


def test_the_old_gelu_is_exact_unless_the_config_says_otherwise(tmp_path):
    """`hidden_act="gelu"` was `nn.gelu(approximate=False)`; the other GELU moves the outputs."""
    old = write(VIT, tmp_path / "old")
    facts = formats.read_json(old / "config.json")
    assert facts["hidden_act"] == "gelu" and zoo.load(old)[0].config.gelu == "erf"
    (old / "config.json").write_text(json.dumps(facts | {"hidden_act": "gelu_new"}))
    model, variables = zoo.load(old)
    assert model.config.gelu == "tanh"
    assert difference(applied(model, variables, VIT), output(VIT)) > 5 * BOUND


# The README.


def snippets(heading: str) -> list[str]:
    """The Python blocks of a section of the README."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README.read_text("utf-8"), re.S | re.M)
    assert section, f"README.md has no section {heading!r}"
    return re.findall(r"^```python\n(.*?)^```$", section[1], re.S | re.M)


def test_the_readme_leads_from_a_flax_vit_to_here_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = write(POOLER, tmp_path / "my-flax-vit")
    load, save, bridge = snippets("Coming from FlaxViTModel")
    names = {"pixel_values": jnp.moveaxis(POOLER.image, -1, 1)}
    exec(load, names)
    states = difference(names["last_hidden_state"], POOLER.recorded["hidden/norm"])
    pooled = difference(names["pooler_output"], output(POOLER))
    check({"last_hidden_state": states, "pooler_output": pooled}, BOUND)

    exec(save, names)
    for folder in ("for-pytorch", "for-flax"):
        check(
            {folder: difference(applied(*zoo.load(tmp_path / folder), POOLER), output(POOLER))},
            BOUND,
        )
    assert (tmp_path / "for-pytorch" / "model.safetensors").is_file()
    assert formats.read(tmp_path / "for-flax").keys() == formats.read(old).keys()

    exec(bridge, names)
    check({"NNX": difference(names["pooler_output"], output(POOLER))}, BOUND)


def test_what_the_readme_says_of_a_resnet_holds(tmp_path):
    model, variables = zoo.load(write(BASIC, tmp_path / "old"))
    assert set(variables) == {"params", "batch_stats"}
    last = applied(model, variables, BASIC, method="features")[-1]
    check({"features": difference(last, BASIC.recorded["hidden/stage4.block_0"])}, BOUND)
    _, moved = applied(model, variables, BASIC, train=True, mutable=["batch_stats"])
    assert moved.keys() == {"batch_stats"}


def test_the_nnx_recipe_also_takes_two_collections(tmp_path):
    model, variables = zoo.load(write(RESNET, tmp_path / "old"))
    module = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(RESNET.image)
    for collection in variables.values():
        nnx.update(module, collection)
    run = nnx.jit(lambda module, image: module(image))
    check({"NNX": difference(run(module, RESNET.image), output(RESNET))}, BOUND)


def test_fewer_classes_and_another_dtype_are_options(tmp_path):
    old = write(VIT, tmp_path / "old")
    model, variables = zoo.load(old, num_classes=3, dtype="bfloat16")
    assert model.config.num_classes == 3
    assert variables["params"]["head"]["kernel"].shape == (16, 3)
    assert {leaf.dtype for leaf in tree.flatten(variables).values()} == {jnp.dtype("bfloat16")}
