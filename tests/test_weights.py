"""Weights: what is saved is what loads, bit for bit; what differs is listed, and nothing loads."""

import errno
import json
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import zoo
from tests.checkpoints import assert_same, random_variables
from zoo import tree
from zoo.card import Card, Preprocess
from zoo.weights import convert, formats, store
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

# A tiny picture tower has no name of timm's, by which open_clip knows it: test_siglip.py makes one.
NAMED = {("siglip", "open_clip")}
FORMATS = [
    (page, format)
    for page in store.families()
    for format in (*store.table(page).FORMATS, "flax")
    if (page, format) not in NAMED
]
HELD = {  # what a format needs to be otherwise than in TINY
    ("bert", "hf_base"): {"head": "none", "num_classes": 0},
    ("dinov2", "timm"): {"mask_token": False, "num_classes": 0},
    ("dinov2", "meta"): {"num_classes": 0},
    ("resnet", "timm"): {"depths": (1, 3, 1, 1), "widths": (16, 24, 8, 8), "stem_width": 64},
    ("resnetv2", "timm"): {"widths": (32, 64)},
    **{
        ("vit", name): {"gelu": "tanh"}
        for name in ("vit_jax", "vit_jax_linen", "big_vision", "big_vision_scan")
    },
}
# They add the class token's position to the token: a sum that cannot be undone.
SUMMED = {("dinov2", "timm"), ("vit", "big_vision"), ("vit", "big_vision_scan")}
GOLDEN = Path(__file__).parent / "golden"


def tiny(page: str, **changes):
    module = import_module(f"zoo.models.{page}")
    return zoo.module_class(module)(replace(module.TINY, **changes))


def held(page, format):
    """A tiny model, and variables, that the format holds."""
    model = tiny(page, **HELD.get((page, format), {}))
    variables = random_variables(model)
    if (page, format) in SUMMED:
        variables["params"]["positions"][0] = 0
    return model, variables


# There and back.


@pytest.mark.parametrize("page, format", FORMATS)
def test_what_is_saved_loads_bitwise(page, format, tmp_path):
    model, variables = held(page, format)
    labels = tuple("abcdefghij"[: getattr(model.config, "num_classes", 0)])
    card = Card(page, {}, labels=labels, licence="Apache-2.0")
    zoo.save(model, variables, tmp_path / "out", format=format, card=card)
    loaded_model, loaded = zoo.load(tmp_path / "out")
    form = store.table(page).FORMATS.get(format)
    # Foreign formats hold tensors, and not how the model is run or which pictures it was shown.
    lost = [key for key in form.lost if hasattr(model.config, key)] if form else []
    lost = {key: getattr(loaded_model.config, key) for key in lost}
    assert loaded_model == model.clone(config=replace(model.config, **lost))
    assert_same(loaded, variables)
    assert zoo.card(tmp_path / "out") == card
    file = form.file if form else "model.safetensors"
    facts = [form.facts_file] * bool(form.facts) if form else ["config.json"]
    expected = ["card.json", file, *facts]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)


@pytest.mark.parametrize("page, format", HELD)
def test_what_a_format_cannot_hold_of_the_tiny_model_is_refused(page, format, tmp_path):
    with pytest.raises(WeightsError):
        zoo.save(tiny(page), random_variables(tiny(page)), tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("page", store.families())
def test_our_format_keeps_every_field_and_dtype(page, tmp_path):
    stacked = {"layers": "scan", "remat": True} if hasattr(tiny(page).config, "layers") else {}
    model = tiny(page, **stacked)
    variables = random_variables(model)
    variables["params"] = tree.cast(variables["params"], jnp.bfloat16)
    zoo.save(model, variables, tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        loaded_model, loaded = zoo.load(source)
        assert loaded_model == model
        assert_same(loaded, variables)


OPS = {  # (op, how many of ours, their rank, what divides their sides)
    "same": (convert.SAME, 1, 3, 1),
    "convolution": (convert.CONV, 1, 4, 1),
    "dense": (convert.DENSE, 1, 2, 1),
    "heads": (convert.layout("d h c", "d (h c)", h=3), 1, 2, 3),
    "fused qkv": (convert.split(convert.DENSE, 3), 3, 2, 1),
    "fused last axis": (convert.split(convert.SAME, 2, axis=-1), 2, 3, 1),
    "scanned layers": (convert.stacked(convert.layout("d h c", "d (h c)", h=2)), 4, 2, 2),
    "tied": (convert.TIE, 1, 2, 1),
    "tied and transposed": (convert.tie(convert.DENSE, 3), 1, 2, 1),
}


def several(value):
    return value if isinstance(value, tuple) else (value,)


def assert_undone(op, ours):
    """ours → foreign → ours → foreign, bit for bit; NaN payloads and signed zeros included."""
    foreign = several(op.save(*ours))
    back = several(op.load(*foreign))
    for x, y in [
        *zip(back, ours, strict=True),
        *zip(several(op.save(*back)), foreign, strict=True),
    ]:
        assert (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes())


@pytest.mark.parametrize("op, count, rank, factor", OPS.values(), ids=OPS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_op_is_undone_by_its_inverse(op, count, rank, factor, data):
    shape = data.draw(st.tuples(*[st.integers(1, 5).map(lambda n: n * factor)] * rank))
    dtype = data.draw(st.sampled_from(["float32", "float16", "int64", jnp.bfloat16]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    assert_undone(op, [(100 * rng.normal(size=shape)).astype(dtype) for _ in range(count)])


@pytest.mark.parametrize("page, format", [(p, f) for p, f in FORMATS if f != "flax"])
def test_every_row_of_a_table_is_undone_by_its_inverse(page, format):
    model, variables = held(page, format)
    leaves = tree.flatten(variables)
    for row in store.table(page).FORMATS[format].rows(model.config):
        if all(path in leaves for path in convert.names(row.ours)):
            assert_undone(row.op, [leaves[path] for path in convert.names(row.ours)])


def one_row(op, foreign, ours, tensors, shape):
    expected = {path: np.zeros(shape, np.float32) for path in convert.names(ours)}
    return convert.load(tensors, [convert.Row(foreign, ours, op)], expected)


def test_a_fused_tensor_becomes_its_parts_in_their_order():
    q, k, v = (np.full((2, 5), i, np.float32) for i in range(3))
    fused = np.concatenate([q.T, k.T, v.T])
    ours = ("params/q", "params/k", "params/v")
    loaded = one_row(convert.split(convert.DENSE, 3), "qkv", ours, {"qkv": fused}, (2, 5))
    for path, part in zip(ours, (q, k, v), strict=True):
        np.testing.assert_array_equal(loaded[path], part)
    with pytest.raises(WeightsError, match=r"~ qkv: \(14, 2\), but params/q, params/k, params/v"):
        one_row(convert.split(convert.DENSE, 3), "qkv", ours, {"qkv": fused[:14]}, (2, 5))


@pytest.mark.parametrize("present", [("a",), ("b",), ("a", "b")])
def test_of_tied_tensors_one_is_enough(present):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    loaded = one_row(convert.TIE, ("a", "b"), "params/x", dict.fromkeys(present, x), (2, 3))
    np.testing.assert_array_equal(loaded["params/x"], x)


def test_tied_tensors_that_differ_are_refused_by_name():
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.ones((2, 3), np.float32)}
    with pytest.raises(WeightsError, match="a, b should be one tensor, but differ"):
        one_row(convert.TIE, ("a", "b"), "params/x", tensors, (2, 3))
    with pytest.raises(WeightsError, match=r"- params/x: no tensor a\n- params/x: no tensor b"):
        one_row(convert.TIE, ("a", "b"), "params/x", {}, (2, 3))


def test_a_scalar_stays_a_scalar():
    row, leaf = convert.Row("logit_scale", "params/scale"), np.float32(2.5).reshape(())
    saved = convert.save({"params/scale": leaf}, [row], {"params/scale": leaf})
    assert saved["logit_scale"].shape == ()


# Options.


def test_another_head_is_new_and_told_and_nothing_else_changes(tmp_path, caplog):
    model = tiny("resnet")
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path, card=Card("resnet", {}, labels=tuple("abcdefghij")))
    other, loaded = zoo.load(tmp_path, num_classes=3)
    assert other.config == replace(model.config, num_classes=3)
    assert loaded["params"]["head"]["kernel"].shape == (24, 3)
    assert not np.array_equal(*loaded["params"]["head"]["kernel"].T[:2])
    assert [record.getMessage() for record in caplog.records] == [
        "params/head/bias: new, (3,) instead of (10,)",
        "params/head/kernel: new, (24, 3) instead of (24, 10)",
    ]
    del loaded["params"]["head"], variables["params"]["head"]
    assert_same(loaded, variables)


def test_the_same_number_of_classes_keeps_the_head(tmp_path, caplog):
    model = tiny("resnet")
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path)
    assert_same(zoo.load(tmp_path, num_classes=10)[1], variables)
    assert not caplog.records


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16])
def test_a_dtype_is_that_of_parameters_and_not_of_statistics(dtype, tmp_path):
    model = tiny("resnet")
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path)
    _, loaded = zoo.load(tmp_path, dtype=dtype)
    assert_same(loaded["params"], tree.cast(variables["params"], dtype))
    assert_same(loaded["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(
    "option, message",
    [
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"dtype": "float33"}, "dtype is 'float33'"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"num_classes": 2.0}, "num_classes=2.0"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(option, message, tmp_path):
    model = tiny("resnet")
    zoo.save(model, random_variables(model), tmp_path)
    with pytest.raises(WeightsError, match=message):
        zoo.load(tmp_path, **option)


def test_counters_are_written_as_integers_and_never_read(tmp_path):
    model = tiny("resnet")
    zoo.save(model, random_variables(model), tmp_path, format="torchvision")
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.get_slice("bn1.num_batches_tracked").get_dtype() == "I64"
        assert file.get_tensor("bn1.num_batches_tracked").shape == ()


# Strictness.


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with a tiny ResNet under torchvision's names."""
    model = tiny("resnet")
    zoo.save(model, random_variables(model), tmp_path, format="torchvision")
    return tmp_path


def edit(directory, **changes):
    """Replaces tensors of a checkpoint, with `__` for a dot; None leaves one out."""
    file = directory / "model.safetensors"
    tensors = load_file(file) | {name.replace("__", "."): x for name, x in changes.items()}
    save_file({name: x for name, x in tensors.items() if x is not None}, file)


def test_all_differences_are_listed_at_once(checkpoint):
    edit(
        checkpoint,
        layer9__bogus=np.zeros(3, np.float32),
        ema__decay=np.zeros((), np.float32),
        fc__bias=None,
        layer1__0__bn2__weight=np.zeros(3, np.float32),
        layer2__0__conv2__weight=np.zeros((6, 6), np.float32),
    )
    with pytest.raises(WeightsError) as error:
        zoo.load(checkpoint)
    assert sorted(str(error.value).splitlines()[1:]) == [
        "+ ema.decay: no place in the model",
        "+ layer9.bogus: no place in the model",
        "- params/head/bias: no tensor fc.bias",
        "~ layer1.0.bn2.weight: (3,), but params/stage1/block_0/norm2/scale needs (4,)",
        "~ layer2.0.conv2.weight: (6, 6), but params/stage2/block_0/conv2/kernel needs "
        "(6, 6, 3, 3)",
    ]


@pytest.mark.parametrize("name", ["fc__weight", "conv1__weight"])
def test_a_missing_tensor_that_gives_the_sizes_is_named(checkpoint, name):
    edit(checkpoint, **{name: None})
    with pytest.raises(WeightsError, match=name.replace("__", r"\.")):
        zoo.load(checkpoint)


def test_a_tensor_of_another_rank_that_gives_the_sizes_is_refused(checkpoint):
    edit(checkpoint, conv1__weight=np.zeros((8, 3), np.float32))
    with pytest.raises(WeightsError, match="sizes of the model cannot be read"):
        zoo.load(checkpoint)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "bool", "complex64"])
@pytest.mark.parametrize("name", ["fc.weight", "bn1.running_var"])
def test_a_wrong_dtype_is_refused_by_name(name, dtype, checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    edit(checkpoint, **{name.replace(".", "__"): tensors[name].astype(dtype)})
    with pytest.raises(WeightsError, match=f"~ {name}: {dtype}, but .* needs floating numbers"):
        zoo.load(checkpoint)


def test_a_file_of_float64_is_told(checkpoint, caplog):
    file = checkpoint / "model.safetensors"
    save_file({name: x.astype("float64") for name, x in load_file(file).items()}, file)
    _, variables = zoo.load(checkpoint)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert "float64, loaded as float32" in caplog.text
    with pytest.raises(WeightsError, match="only with jax_enable_x64"):
        zoo.load(checkpoint, dtype="float64")


def test_a_depth_that_the_tensors_have_not_is_refused_at_once(tmp_path):
    model = tiny("vit")
    zoo.save(model, random_variables(model), tmp_path, format="hf")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 30_000}))
    with pytest.raises(WeightsError, match="30000 layers, but the tensors are of 3"):
        zoo.load(tmp_path)


def test_of_very_many_differences_the_first_are_listed():
    tensors = {f"x{i}": np.zeros(1, np.float32) for i in range(2000)}
    with pytest.raises(WeightsError) as error:
        convert.load(tensors, [], {})
    lines = str(error.value).splitlines()
    assert len(lines) == 502 and lines[-1] == "… and 1,500 more"


PROCESSOR = {"size": 224, "resample": 2, "image_mean": [0.5], "image_std": [0.5]}
REGISTERS = "dinov2_with_registers.embeddings.register_tokens"


@pytest.mark.parametrize(
    "page, format, changes",
    [
        ("vit", "timm", {"pos_embed": np.zeros(3, np.float32)}),
        ("vit", "timm", {"pos_embed": np.zeros((), np.float32)}),
        ("dinov2", "hf", {REGISTERS: np.zeros(3, np.float32)}),
        ("vit", "timm", {"config": {"model_args": [1]}}),
        ("vit", "timm", {"config": {"pretrained_cfg": "x"}}),
        ("vit", "hf", {"preprocessor_config": PROCESSOR | {"rescale_factor": 0}}),
        ("vit", "flax", {"config": {"flax_zoo": "x"}}),
        ("vit", "flax", {"config": {"flax_zoo": {"page": "vit", "config": []}}}),
    ],
)
def test_values_of_the_wrong_kind_are_refused_with_the_path(page, format, changes, tmp_path):
    model, variables = held(page, format)
    zoo.save(model, variables, tmp_path, format=format)
    (tmp_path / "card.json").unlink()
    for name, value in changes.items():
        if isinstance(value, dict):
            file = tmp_path / f"{name}.json"
            old = formats.read_json(file) if file.exists() else {}
            file.write_text(json.dumps(old | value))
        else:
            file = tmp_path / "model.safetensors"
            tensors = load_file(file)
            assert name in tensors
            save_file(tensors | {name: value}, file)
    with pytest.raises(WeightsError, match=str(tmp_path)):
        zoo.load(tmp_path)


@pytest.mark.parametrize("source", [None, 5, "x" * 5000, "~nobody-here/x"])
def test_what_cannot_name_weights_is_refused(source):
    with pytest.raises(WeightsError):
        zoo.load(source)


def test_a_base_model_without_its_pooler_is_told(tmp_path, caplog):
    model = tiny("vit", num_classes=0, representation=32)
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path, format="hf")
    assert zoo.load(tmp_path)[0].config.representation == 32 and not caplog.records
    edit(tmp_path, pooler__dense__weight=None, pooler__dense__bias=None)
    assert zoo.load(tmp_path)[0].config.representation == 0
    assert "no pooler" in caplog.text


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused_by_name(checkpoint, kept):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors.*fetch the file again"):
        zoo.load(checkpoint)


def shard(directory) -> list[str]:
    """Splits the checkpoint into two files and an index; returns the shards' names."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = sorted(tensors)
    parts = dict(zip(shards, (names[::2], names[1::2]), strict=True))
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return shards


def test_shards_are_read_as_one(checkpoint):
    _, whole = zoo.load(checkpoint)
    shard(checkpoint)
    assert_same(zoo.load(checkpoint)[1], whole)


def test_a_missing_shard_is_named(checkpoint):
    _, second = shard(checkpoint)
    (checkpoint / second).unlink()
    with pytest.raises(WeightsError, match=rf"index\.json.*missing.*{second}"):
        zoo.load(checkpoint)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("model.safetensors.index.json", "{", "index.json is not JSON"),
        ("model.safetensors.index.json", "{}", "neither config.json"),
        ("config.json", "not JSON", "config.json is not JSON"),
    ],
)
def test_a_damaged_json_file_is_named(checkpoint, file, content, message):
    if "index" in file:
        shard(checkpoint)
    (checkpoint / file).write_text(content)
    with pytest.raises(WeightsError, match=message):
        zoo.load(checkpoint)


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor"):
        zoo.load(tmp_path)


def test_an_unknown_family_is_named_with_the_known_ones(tmp_path):
    save_file({"bert.embeddings.weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"model_type 'bert'.*known family: .*resnet"):
        zoo.load(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"page": "resnext"}, "'resnext', which this version has not"),
        ({"config": {"depths": [1, 2], "groups": 32}}, "groups"),
    ],
)
def test_what_another_version_wrote_is_refused_by_name(change, message, tmp_path):
    model = tiny("resnet")
    zoo.save(model, random_variables(model), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["flax_zoo"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        zoo.load(tmp_path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("downsample_in_bottleneck", True),
        ("downsample_in_first_stage", True),
        ("hidden_act", "gelu"),
    ],
)
def test_a_hugging_face_config_that_we_do_not_have_is_refused_by_key(key, value, tmp_path):
    model = tiny("resnet")
    zoo.save(model, random_variables(model), tmp_path, format="hf")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(WeightsError, match=f"{key} is {value!r}"):
        zoo.load(tmp_path)


# Cards.


def test_labels_and_preprocessing_of_a_hugging_face_directory_reach_the_card(tmp_path):
    labels = tuple(f"digit {i}" for i in range(10))  # "10" sorts before "2" as text, 10 after 2
    model = tiny("resnet", num_classes=12)
    named = Card("resnet", {}, labels=(*labels, "ten", "eleven"))
    zoo.save(model, random_variables(model), tmp_path, format="hf", card=named)
    (tmp_path / "card.json").unlink()
    processor = {"size": {"shortest_edge": 384}, "crop_pct": 1.0, "resample": 3}
    processor |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    card = zoo.card(tmp_path)
    assert card.labels == named.labels
    # What ConvNextImageProcessor, which ResNet has there, does from 384 on: nothing is cut.
    half, quarter = (0.5,) * 3, (0.25,) * 3
    expected = Preprocess(384, 1.0, "bicubic", half, quarter, "squash", "transformers")
    assert card.preprocess == expected
    assert zoo.load(tmp_path)[0].config.num_classes == 12


def test_a_variants_card_states_its_paper_and_size():
    card = zoo.card("resnet20")
    assert "arXiv:1512.03385" in card.paper
    assert card.config == asdict(zoo.create("resnet20").config)
    assert card.preprocess is None  # no weights, so nobody has said how their pictures were scaled


@pytest.mark.parametrize("name", ["resnetv2_50.a1h_in1k", "resnetv2_101.a1h_in1k"])
def test_the_card_of_a_timm_directory_is_what_timm_states(name, tmp_path):
    published = json.loads((GOLDEN / "resnet_counts.json").read_text())["timm"]["published"][name]
    zoo.save(*held("resnetv2", "timm"), tmp_path, format="timm")
    (tmp_path / "card.json").unlink()
    facts = {"architecture": name.partition(".")[0], "pretrained_cfg": published}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    card = zoo.card(tmp_path)
    half = (0.5,) * 3
    assert card.preprocess == Preprocess(224, 0.95, "bicubic", half, half, convention="timm")
    assert card.licence == "apache-2.0"


def test_a_card_goes_to_json_and_back(tmp_path):
    config = asdict(zoo.create("resnet18").config)
    card = Card("resnet18", config, "paper", Preprocess(), ("a", "b"), "MIT", "here", {"x": 1.5})
    written = json.loads(json.dumps(card.to_json()))
    assert Card.from_json(written) == card
    assert Card.from_json({**written, "of_a_later_version": 1}) == card


@pytest.mark.parametrize(
    "name, text",
    [
        ("card.json", '{"preprocess": {"size": 224}}'),  # no model
        ("card.json", "[]"),
        ("config.json", "[]"),
        ("config.json", '{"flax_zoo": {}}'),
        ("config.json", '{"flax_zoo": null}'),
    ],
)
def test_a_damaged_text_beside_weights_is_named(name, text, tmp_path):
    model = tiny("resnet")
    zoo.save(model, random_variables(model), tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=str(tmp_path)):
        zoo.load(tmp_path)


# Saving.


def test_variables_that_are_not_the_models_are_not_saved(tmp_path):
    model = tiny("resnet", num_classes=3)
    variables = random_variables(tiny("resnet"))
    del variables["batch_stats"]["stem"]
    variables["params"]["bogus"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError) as error:
        zoo.save(model, variables, tmp_path / "out", format="torchvision")
    assert sorted(str(error.value).splitlines()[1:]) == [
        "+ params/bogus: no place in the model",
        "- batch_stats/stem/norm/mean: no array in the variables",
        "- batch_stats/stem/norm/var: no array in the variables",
        "~ params/head/bias: (10,), but the model has (3,)",
        "~ params/head/kernel: (24, 10), but the model has (24, 3)",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, format, message",
    [
        ({}, "onnx", "no format 'onnx'; it has flax, hf, hf_flax, timm, torchvision"),
        ({"stem": "cifar"}, "hf", "neither the CIFAR stem"),
        ({"num_classes": 4}, "hf", "3 labels, but the model 4 classes"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(changes, format, message, tmp_path):
    model, card = tiny("resnet", **changes), Card("resnet", {}, labels=("a", "b", "c"))
    with pytest.raises(WeightsError, match=message):
        zoo.save(model, random_variables(model), tmp_path / "out", format=format, card=card)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("page, format", [("resnet", "torchvision")])
def test_an_export_that_would_load_as_another_model_is_refused(page, format, tmp_path):
    model = tiny(page, stem="cifar")
    with pytest.raises(WeightsError, match="stem 'cifar', but would load as 'imagenet'"):
        zoo.save(model, random_variables(model), tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["timm", "vit_jax"])
def test_a_square_that_was_given_as_a_pair_is_held_as_a_side(format, tmp_path):
    model = tiny("vit", gelu="tanh", image_size=(32, 32))
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path, format=format)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config.image_size == 32
    assert_same(loaded, variables)


def test_a_rectangle_with_as_many_patches_as_a_square_is_refused(tmp_path):
    model = tiny("vit", gelu="tanh", image_size=(16, 64))
    with pytest.raises(WeightsError, match=r"\(16, 64\), but would load as \(32, 32\)"):
        zoo.save(model, random_variables(model), tmp_path / "out", format="vit_jax")
    assert not (tmp_path / "out").exists()


SCANNED = [("resnet", "hf"), ("resnetv2", "timm"), ("vit", "hf"), ("dinov2", "meta")]


@pytest.mark.parametrize("page, format", SCANNED)
def test_a_scan_is_exported_layer_by_layer(page, format, tmp_path):
    loop, variables = held(page, format)
    scan = loop.clone(config=replace(loop.config, layers="scan"))
    start = store.table(page).SCAN_START
    stacked = {name: tree.stacked(leaves, start) for name, leaves in variables.items()}
    zoo.save(scan, stacked, tmp_path, format=format)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config.layers == "loop"
    assert_same(loaded, variables)


def test_another_format_in_the_same_directory_leaves_no_stale_text(tmp_path):
    model = tiny("resnet")
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path)
    zoo.save(model, variables, tmp_path, format="torchvision")
    assert_same(zoo.load(tmp_path)[1], variables)


PAIRS = [
    (page, first, second)
    for page, first in FORMATS
    for other, second in FORMATS
    if page == other and first != second and page in ("gpt", "siglip")
]


@pytest.mark.parametrize("page, first, second", PAIRS)
def test_an_export_leaves_nothing_of_an_earlier_one(page, first, second, tmp_path):
    """Whatever `zoo.load` would prefer: it is gone, so that no path finds other weights."""
    for format, folder in ((first, "both"), (second, "both"), (second, "alone")):
        zoo.save(*held(page, format), tmp_path / folder, format=format)
    both, alone = ({x.name for x in (tmp_path / y).iterdir()} for y in ("both", "alone"))
    assert both == alone


def test_another_architecture_with_the_same_tensors_is_refused(tmp_path):
    """timm's anti-aliased resnetaa50 has the names and shapes of resnet50."""
    model = tiny("resnet")
    zoo.save(model, random_variables(model), tmp_path, format="torchvision")
    (tmp_path / "config.json").write_text('{"architecture": "resnetaa50"}')
    with pytest.raises(WeightsError, match="architecture is 'resnetaa50'"):
        zoo.load(tmp_path)


def test_a_file_is_read_with_the_texts_beside_it(tmp_path):
    model = tiny("resnet")
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path, format="hf")
    file = (tmp_path / formats.FILE).rename(tmp_path / "other.safetensors")
    assert_same(zoo.load(file)[1], variables)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="config.json that belongs to them"):
        zoo.load(file)


def full_disk(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_save_leaves_the_old_files_as_they_were(tmp_path, monkeypatch):
    model = tiny("resnet")
    zoo.save(model, random_variables(model), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = tiny("resnet", num_classes=3)
    unwritable = Card("resnet", {}, results={"accuracy": object()})
    with pytest.raises(TypeError):
        zoo.save(other, random_variables(other), tmp_path, card=unwritable)
    monkeypatch.setattr(formats, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        zoo.save(other, random_variables(other), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# The hub.


def test_without_a_network_the_error_says_what_was_wanted_and_how_to_go_on():
    with pytest.raises(WeightsError) as error:
        zoo.load("no/such-repo", revision="v2")
    message = str(error.value)
    assert "no/such-repo (revision v2)" in message
    assert "pass the path of a directory that holds its config.json" in message


@pytest.mark.parametrize("source", ["resnet50", "no/such/folder", "no such/repo"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused(source):
    with pytest.raises(WeightsError, match="neither a path that exists nor a hub id"):
        zoo.load(source)
