"""DINOv2 against transformers, timm and Meta's code, what faults look like, what files say."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import zoo
from tests.checkpoints import assert_same, edit_facts, edit_tensors, file_shapes, saved
from tests.golden.replay import HERE, Case, assert_seen, check_case, plant
from zoo.layers import mlp, posemb
from zoo.models import dinov2
from zoo.weights import convert, facts
from zoo.weights import dinov2 as table
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

FORMATS = {  # of every golden file
    "dinov2_hf_up": "hf",
    "dinov2_hf_swiglu": "hf",
    "dinov2_hf_registers": "hf",
    "dinov2_hf_masked": "hf",
    "dinov2_timm": "timm",
    "dinov2_timm_registers": "timm",
    "dinov2_meta_masked": "meta",
    "dinov2_meta_registers": "meta",
}
CASES = {name: Case(name, dinov2, format) for name, format in FORMATS.items()}
TRAINING = Case("dinov2_hf_train", dinov2, "hf")


@pytest.mark.parametrize("name", CASES)
def test_every_block_agrees_with_the_reference(name):
    check_case(CASES[name])


def test_a_training_step_agrees_with_the_reference():
    check_case(TRAINING)


# A fault is one passage of a source changed. With it the claims above must not hold, and the part
# that is wrong first tells where it is: the case, the fault, that part.
B0 = "hidden/block_0"
FAULTS = {
    "q and k swapped": (
        "dinov2_hf_up",
        (table, "attention.{name}", "attention.{dict(query='key', key='query').get(name, name)}"),
        B0,
    ),
    "q and v swapped in the fused tensor": (
        "dinov2_timm",
        (facts, '/kernel" for name in "qkv"', '/kernel" for name in "vkq"'),
        B0,
    ),
    "gate and up swapped": (
        "dinov2_timm_registers",
        (table, '/gate/kernel", f"params/{ours}/up/k', '/up/kernel", f"params/{ours}/gate/k'),
        B0,
    ),
    "the halves of w12 swapped": (
        "dinov2_meta_registers",
        (table, '/gate/kernel", f"params/{ours}/up/k', '/up/kernel", f"params/{ours}/gate/k'),
        B0,
    ),
    "no LayerScale of attention": ("dinov2_hf_up", (dinov2, "scale1 * attn(", "attn("), B0),
    "no LayerScale of the MLP": ("dinov2_hf_swiglu", (dinov2, "scale2 * ffn(", "ffn("), B0),
    "ε of 1e-6": (
        "dinov2_hf_up",
        (dinov2, "(nn.LayerNorm, epsilon=c.epsilon", "(nn.LayerNorm, epsilon=1e-6"),
        B0,
    ),
    "the mask for its opposite": (
        "dinov2_hf_masked",
        (dinov2, "mask[:, :, None]", "~mask[:, :, None]"),
        B0,
    ),
    "no mask": ("dinov2_hf_masked", (dinov2, "if mask is None else", "if True else"), B0),
    "registers behind the patches": (
        "dinov2_hf_registers",
        (
            dinov2,
            "return prepend(first, x + positions[None, 1:])",
            "return prepend(first, x + positions[None, 1:])[:, jnp.r_[0, 4:16, 1:4]]",
        ),
        B0,
    ),
    "registers among the mean patch": (
        "dinov2_hf_registers",
        (dinov2, "x[:, 0], x[:, 1 + c.registers :]", "x[:, 0], x[:, 1:]"),
        "logits",
    ),
    "the mean patch first": (
        "dinov2_hf_swiglu",
        (dinov2, "[token, mean]", "[mean, token]"),
        "logits",
    ),
    "antialiased positions": ("dinov2_hf_swiglu", (posemb, 'ic": bicubic', 'ic": antialias'), B0),
    "aliased positions": ("dinov2_hf_registers", (posemb, 'as": antialias', 'as": bicubic'), B0),
    "positions of a class token that timm has not": (
        "dinov2_timm_registers",
        (facts, "np.zeros_like(cls[0])", "np.ones_like(cls[0])"),
        B0,
    ),
    "no transposing": (
        "dinov2_timm_registers",
        (convert, 'DENSE = layout("o i", "i o")', "DENSE = SAME"),
        "",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_sees(name, monkeypatch):
    case, fault, where = FAULTS[name]
    plant(monkeypatch, fault, dinov2, table, convert, facts)
    assert_seen(CASES[case], where)


def test_the_comparison_sees_gelu_for_silu(monkeypatch):
    monkeypatch.setattr(mlp.nn, "silu", mlp.gelu)
    with pytest.raises(AssertionError, match=f"differs from the reference:\n{B0}"):
        check_case(CASES["dinov2_hf_swiglu"])


# What files say in other ways.


PLAIN = {"registers": 0, "num_classes": 0}
MLP = {"ffn": "mlp", "hidden": 64}
HELD = {  # what each format holds beside the sizes
    "hf": [
        {},
        {"num_classes": 0},
        {"registers": 0, "drop_path": 0.1},
        PLAIN | MLP | {"mask_token": False, "qkv_bias": False, "epsilon": 1e-3},
        {"width": 30, "heads": 3, "depth": 1, "hidden": 40, "patch": 4, "image_size": (12, 20)},
    ],
    "timm": [PLAIN | {"mask_token": False}, PLAIN | MLP | {"mask_token": False, "in_channels": 1}],
    "meta": [PLAIN, PLAIN | MLP, {"num_classes": 0}],
}
HELD_CASES = [(format, changes) for format, cases in HELD.items() for changes in cases]


@pytest.mark.parametrize("format, changes", HELD_CASES, ids=str)
def test_what_a_format_holds_loads_bitwise(format, changes, tmp_path):
    model, variables = saved(dinov2, tmp_path, format, **changes)
    loaded_model, loaded = zoo.load(tmp_path)
    antialiased = format == "timm" or model.config.registers
    kernel = {"positions": "antialias" if antialiased else "bicubic"}
    assert loaded_model.config == replace(model.config, **kernel)
    assert_same(loaded, variables)


def test_a_class_tokens_position_is_added_to_it_for_timm(tmp_path):
    """timm's models with registers give the class token no position: the sum is what enters."""
    changes = {"num_classes": 0, "mask_token": False}
    _, variables = saved(dinov2, tmp_path / "first", "timm", **changes)
    model, loaded = zoo.load(tmp_path / "first")
    ours, theirs = variables["params"], loaded["params"]
    np.testing.assert_array_equal(theirs["class_token"], ours["class_token"] + ours["positions"][0])
    np.testing.assert_array_equal(theirs["positions"][1:], ours["positions"][1:])
    assert not theirs["positions"][0].any()
    zoo.save(model, loaded, tmp_path / "again", format="timm")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert files[0] == files[1]  # from there on bit for bit


REFUSED = {
    "hf": [
        ({"hidden": 50}, "no hidden width 50 at width 32"),
        ({"mask_token": False}, "with registers has a mask token"),
    ],
    "timm": [
        ({"num_classes": 0}, "params/mask_token: no row in the table"),
        ({"mask_token": False}, "params/head/kernel: no row in the table"),
    ],
    "meta": [({}, "params/head/kernel: no row in the table")],
}
REFUSED_CASES = [(format, *case) for format, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize("format, changes, message", REFUSED_CASES)
def test_what_a_format_cannot_hold_is_refused(format, changes, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        saved(dinov2, tmp_path / "out", format, **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key, value",
    [("hidden_act", "relu"), ("hidden_dropout_prob", 0.1), ("attention_probs_dropout_prob", 0.1)],
)
def test_a_hugging_face_config_that_we_do_not_have_is_refused_by_key(key, value, tmp_path):
    saved(dinov2, tmp_path, "hf")
    edit_facts(tmp_path, **{key: value})
    with pytest.raises(WeightsError, match=f"{key} is {value!r}"):
        zoo.load(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "vit_medium_patch16_gap_256"}, "architecture is 'vit_medium_patch16_gap"),
        ({"model_args": {"num_heads": 2, "no_embed_class": True}}, "no_embed_class=True"),
        ({"model_args": {"num_heads": 2, "global_pool": "avg"}}, "global_pool='avg'"),
        ({"model_args": {}}, "how many heads share the width 32"),
    ],
)
def test_a_timm_config_that_we_do_not_have_is_refused_by_key(changes, message, tmp_path):
    saved(dinov2, tmp_path, "timm", **PLAIN, mask_token=False)
    edit_facts(tmp_path, **changes)
    with pytest.raises(WeightsError, match=message):
        zoo.load(tmp_path)


def test_a_head_on_timms_class_token_is_refused(tmp_path):
    saved(dinov2, tmp_path, "timm", **PLAIN, mask_token=False)
    edit_facts(tmp_path, num_classes=None)
    edit_tensors(tmp_path, {"head.weight": np.zeros((5, 32), np.float32)})
    with pytest.raises(WeightsError, match="reads the class token alone"):
        zoo.load(tmp_path)


def test_a_classifier_that_was_promised_must_be_there(tmp_path):
    saved(dinov2, tmp_path, "hf")
    edit_tensors(tmp_path, {"classifier.weight": None, "classifier.bias": None})
    with pytest.raises(WeightsError, match="architectures is .*but the file has no classifier"):
        zoo.load(tmp_path)


# Published files.


MANIFEST = json.loads((HERE / "dinov2_manifests.json").read_text())
TIMM = {"positions": "antialias", "mask_token": False}
PUBLISHED = {  # library, variant, and how the file differs from it
    "facebook/dinov2-small": ("transformers", "dinov2_s14", {}),
    "facebook/dinov2-giant": ("transformers", "dinov2_g14", {}),
    "vit_small_patch14_dinov2.lvd142m": ("timm", "dinov2_s14", TIMM),
    "vit_small_patch14_reg4_dinov2.lvd142m": ("timm", "dinov2_s14_reg", TIMM),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_names_of_a_published_file_are_those_of_its_variant(name):
    library, variant, changes = PUBLISHED[name]
    listed = MANIFEST[library]["tensors"][name]
    tensors = {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, shape, dtype in listed}
    stated = MANIFEST[library].get("config", {}).get(name, {"architecture": name.partition(".")[0]})
    form = table.FORMATS[{"transformers": "hf"}.get(library, library)]
    config = form.config(tensors, stated)
    assert config == zoo.create(variant, **changes).config
    ours = file_shapes(dinov2, form.rows(config), config)
    assert ours == {name: spec.shape for name, spec in tensors.items()}
