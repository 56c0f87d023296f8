"""ViT and DeiT against transformers, timm and Google's own code, what a fault would look like, and
what files say."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import zoo
from tests.checkpoints import (
    assert_same,
    edit_facts,
    edit_tensors,
    file_shapes,
    random_variables,
    saved,
)
from tests.golden.fill import fill
from tests.golden.replay import HERE, Case, assert_seen, check_case, plant
from zoo import tree
from zoo.layers import attention, mlp, posemb
from zoo.models import vit
from zoo.weights import convert, facts
from zoo.weights import vit as table
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

FORMATS = {  # of every golden file
    "vit_hf": "hf",
    "vit_hf_up": "hf",
    "vit_hf_down": "hf",
    "vit_hf_pooler": "hf",
    "deit_hf_token": "hf",
    "deit_hf_head": "hf",
    "deit_hf_pooler": "hf",
    "vit_timm_up": "timm",
    "vit_timm_down": "timm",
    "vit_timm_mean": "timm",
    "deit_timm_head": "timm",
    "vit_vit_jax": "vit_jax",
    "vit_vit_jax_pre_logits": "vit_jax",
    "vit_vit_jax_linen": "vit_jax_linen",
    "vit_big_vision": "big_vision",
    "vit_big_vision_scan": "big_vision_scan",
    "vit_big_vision_tok": "big_vision",
    "vit_big_vision_rep_size": "big_vision",
}
CASES = {name: Case(name, vit, format) for name, format in FORMATS.items()}
TRAINING = Case("vit_hf_train", vit, "hf")


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
        "vit_hf",
        (table, "attention.{name}", "attention.{dict(query='key', key='query').get(name, name)}"),
        B0,
    ),
    "q and v swapped in the fused tensor": (
        "vit_timm_up",
        (facts, '/kernel" for name in "qkv"', '/kernel" for name in "vkq"'),
        B0,
    ),
    "a square kernel not transposed": (
        "vit_hf",
        (table, '/attn/out")\n', '/attn/out")\n        rows[-2] = rows[-2]._replace(op=SAME)\n'),
        B0,
    ),
    "no kernel transposed": (
        "vit_hf",
        (convert, 'DENSE = layout("o i", "i o")', "DENSE = SAME"),
        "",
    ),
    "heads minor": (
        "vit_hf",
        (attention, '(x), "b n (h c) -> b n h c"', '(x), "b n (c h) -> b n h c"'),
        B0,
    ),
    "heads minor in JAX's layout": (
        "vit_vit_jax",
        (table, 'layout("d h c", "d (h c)"', 'layout("d h c", "d (c h)"'),
        B0,
    ),
    "q and k swapped in JAX's layout": (
        "vit_vit_jax_linen",
        (
            table,
            '"q"), ("key", "k"), ("value", "v")):\n        rows += [',
            '"k"), ("key", "q"), ("value", "v")):\n        rows += [',
        ),
        B0,
    ),
    "a position of the class token where there is none": (
        "vit_big_vision_tok",
        (facts, "np.zeros_like(cls[0])", "np.ones_like(cls[0])"),
        B0,
    ),
    "a class token's position for a patch's": (
        "vit_vit_jax",
        (table, "1, 3, 2, True", "1, 3, 2, False"),
        "",
    ),
    "no hidden layer before JAX's head": (
        "vit_vit_jax_pre_logits",
        (vit, "y = jnp.tanh(", "y = ("),
        "logits",
    ),
    "the class token for the mean": (
        "vit_big_vision_rep_size",
        (vit, "x[:, prefix:].mean(axis=1, dtype=jnp.float32).astype(x.dtype)", "x[:, 0]"),
        "representation",
    ),
    "the layers of a scan in another order": (
        "vit_big_vision_scan",
        (table, "(config.depth))\n        rows.a", "(config.depth)[::-1])\n        rows.a"),
        B0,
    ),
    "another scale in the softmax": ("vit_hf", (attention, "[-1] ** -0.5", "[-1] ** -1.0"), B0),
    "a bias left out": (
        "vit_hf",
        (
            mlp,
            "nn.Dense, use_bias=self.bias, bias_init=self.bias_init)\n        drop",
            "nn.Dense, use_bias=False)\n        drop",
        ),
        "",
    ),
    "tanh GELU": ("vit_hf", (vit, '"erf": gelu,', '"erf": gelu_tanh,'), B0),
    "erf GELU": ("vit_hf_pooler", (vit, '"tanh": gelu_tanh', '"tanh": gelu'), B0),
    "ε of 1e-6": (
        "vit_hf",
        (vit, "(nn.LayerNorm, epsilon=c.epsilon", "(nn.LayerNorm, epsilon=1e-6"),
        B0,
    ),
    "ε of 1e-6 in the last norm": (
        "vit_hf",
        (vit, "return nn.LayerNorm(epsilon=c.epsilon", "return nn.LayerNorm(epsilon=1e-6"),
        "hidden/norm",
    ),
    "a pooler without tanh": ("vit_hf_pooler", (vit, "y = jnp.tanh(", "y = ("), "representation"),
    "no pooler": ("vit_hf_pooler", (vit, "if c.representation:", "if False:"), ""),
    "the heads of DeiT swapped": (
        "deit_hf_head",
        (
            table,
            '*dense(head, "head"), *dense("distillation_classifier", "head_distillation")]',
            '*dense(head, "head_distillation"), *dense("distillation_classifier", "head")]',
        ),
        "logits",
    ),
    "both heads of DeiT on one token": ("deit_hf_head", (vit, "(x[:, 1])", "(x[:, 0])"), "logits"),
    "the sum of DeiT's heads": (
        "deit_hf_head",
        (vit, "(logits + distilled) / 2", "logits"),
        "logits",
    ),
    "DeiT's tokens in another order": (
        "deit_hf_token",
        (vit, "in has if", "in [*has][::-1] if"),
        B0,
    ),
    "positions shifted by a row": (
        "vit_hf",
        (vit, "+ positions[None, prefix:]", "+ jnp.roll(positions, 1, axis=0)[None, prefix:]"),
        B0,
    ),
    "antialiased positions": ("vit_hf_down", (posemb, 'ic": bicubic', 'ic": antialias'), B0),
    "aliased positions": ("vit_timm_down", (posemb, 'as": antialias', 'as": bicubic'), B0),
    "positions with rows for columns": ("vit_hf_up", (posemb, "Ww,hwd->", "Ww,whd->"), B0),
    "no norm of k": ("vit_timm_down", (attention, 'name="k_norm")(k)', 'name="k_norm")(q)'), B0),
    "the mean of all patches but one": (
        "vit_timm_mean",
        (vit, "x[:, prefix:].mean", "x[:, prefix + 1 :].mean"),
        "logits",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_sees(name, monkeypatch):
    case, fault, where = FAULTS[name]
    plant(monkeypatch, fault, vit, table, convert, facts)
    assert_seen(CASES[case], where)


TRAINING_FAULTS = {
    "no gradient through the values": (
        attention,
        "attend(q, k, v, causal=causal, lengths",
        "attend(q, k, jax.lax.stop_gradient(v), causal=causal, lengths",
    ),
    "no gradient to the positions": (
        vit,
        "positions = resize_positions(positions,",
        "positions = resize_positions(jax.lax.stop_gradient(positions),",
    ),
}


@pytest.mark.parametrize("name", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(name, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[name], vit)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(TRAINING)


# What files say in other ways.


ERF, TANH = {}, {"gelu": "tanh"}
BARE = {"num_classes": 0}
ODD = {"width": 30, "heads": 3, "depth": 1, "mlp": 49, "patch": 4, "image_size": (12, 20)}
HELD = {  # what each format holds beside the sizes
    "hf": [
        ERF,
        BARE,
        TANH | {"epsilon": 1e-3, "qkv_bias": False, "dropout": 0.1},
        BARE | {"representation": 9},
        {"distillation": "token"},
        {"distillation": "head"},
        BARE | {"distillation": "token", "representation": 9},
        ODD | {"num_classes": 5},
    ],
    "hf_flax": [ERF, BARE, BARE | {"representation": 9}, ODD],
    "timm": [
        ERF,
        BARE,
        TANH | {"pool": "mean"},
        {"pool": "mean", "class_token": False, "qk_norm": True, "qkv_bias": False},
        {"distillation": "head"},
        ODD | {"num_classes": 5},
    ],
    "vit_jax": [TANH, TANH | BARE, TANH | {"representation": 9}],
    "vit_jax_linen": [TANH, TANH | BARE | {"pool": "mean", "class_token": False}],
    "big_vision": [TANH, TANH | {"pool": "mean", "class_token": False}],
    "big_vision_scan": [TANH, TANH | BARE],
}
HELD_CASES = [(format, changes) for format, cases in HELD.items() for changes in cases]


@pytest.mark.parametrize("format, changes", HELD_CASES, ids=str)
def test_what_a_format_holds_loads_bitwise(format, changes, tmp_path):
    model, variables = saved(vit, tmp_path, format, **changes)
    loaded_model, loaded = zoo.load(tmp_path)
    kernels = {"timm": "antialias", "hf": "bicubic", "hf_flax": "bicubic"}
    kernel = {"positions": kernels.get(format, "linear")}
    assert loaded_model.config == replace(model.config, **kernel)
    assert_same(loaded, as_held(format, model.config, variables))


def as_held(format, config, variables):
    """big_vision gives the class token no position: what is in it is added to the token."""
    params = variables["params"]
    if format.startswith("big_vision") and config.class_token:
        params["class_token"] += params["positions"][0]
        params["positions"][0] = 0
    return variables


GOOGLES = [name for name, format in FORMATS.items() if format.startswith(("vit_jax", "big_vision"))]


@pytest.mark.parametrize("name", GOOGLES)
def test_a_file_of_googles_code_is_known_by_its_names_and_written_again_bitwise(
    name, tmp_path, monkeypatch
):
    # One format alone knows it, so their order, which all other tests have as it is, is nothing.
    monkeypatch.setattr(table, "FORMATS", dict(reversed(table.FORMATS.items())))
    case = CASES[name]
    tensors = {name: fill(name, tuple(shape)) for name, shape, _ in case.meta["tensors"]}
    np.savez(tmp_path / "theirs.npz", **tensors)
    model, variables = zoo.load(tmp_path / "theirs.npz")
    assert model.config == case.model().config
    zoo.save(model, variables, tmp_path / "ours", format=case.format)
    with np.load(tmp_path / "ours" / "model.npz") as file:
        assert {name: file[name].tobytes() for name in file} == {
            name: array.tobytes() for name, array in tensors.items()
        }


def test_a_position_of_big_visions_class_token_is_refused(tmp_path):
    """Its code of before added one, and has renamed nothing."""
    saved(vit, tmp_path, "big_vision", gelu="tanh")
    with np.load(tmp_path / "model.npz") as file:
        tensors = dict(file)
    tensors["params/pos_embedding"] = np.zeros((1, 17, 32), np.float32)
    np.savez(tmp_path / "model.npz", **tensors)
    with pytest.raises(WeightsError, match="17 positions are of no square image"):
        zoo.load(tmp_path)


REFUSED = {
    "hf": [
        ({"pool": "mean"}, "pool 'mean', but would load as 'class'"),
        ({"class_token": False, "pool": "mean"}, "class_token False, but would load as True"),
        ({"qk_norm": True}, "no row in the table"),
        ({"representation": 9}, "representation 9, but would load as 0"),
    ],
    "hf_flax": [({"distillation": "head"}, "no DeiT in Flax")],
    "timm": [
        ({"epsilon": 1e-12}, "epsilon 1e-12, but would load as 1e-06"),
        ({"distillation": "token"}, "has not a distillation token without"),
        ({"distillation": "head", "num_classes": 0}, "has not two tokens without heads"),
        ({"representation": 9}, "has not a layer before the head"),
    ],
    "vit_jax": [({}, "gelu 'erf', but would load as 'tanh'")],
    "big_vision": [(TANH | {"image_size": (16, 32)}, "8 positions are of no square image")],
}
REFUSED_CASES = [(format, *case) for format, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize("format, changes, message", REFUSED_CASES)
def test_what_a_format_cannot_hold_is_refused(format, changes, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        saved(vit, tmp_path / "out", format, **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_act", "quick_gelu"),
        ("pooler_act", "gelu"),
        ("attention_probs_dropout_prob", 0.1),
    ],
)
def test_a_hugging_face_config_that_we_do_not_have_is_refused_by_key(key, value, tmp_path):
    saved(vit, tmp_path, "hf")
    edit_facts(tmp_path, **{key: value})
    with pytest.raises(WeightsError, match=f"{key} is {value!r}"):
        zoo.load(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "vit_small_patch16_18x2_224"}, "architecture is 'vit_small_patch16_18x2"),
        ({"architecture": "deit3_small_patch16_224"}, "architecture is 'deit3_small"),
        ({"model_args": {"num_heads": 2, "no_embed_class": True}}, "no_embed_class=True"),
        ({"model_args": {"num_heads": 2, "act_layer": "quick_gelu"}}, "act_layer is 'quick_gelu'"),
        ({"model_args": {"num_heads": 2}, "global_pool": "map"}, "global_pool is 'map'"),
        ({"model_args": {}}, "how many heads share the width 32"),
        ({"num_classes": 3}, "3 classes, but the file's head has 10"),
    ],
)
def test_a_timm_config_that_we_do_not_have_is_refused_by_key(changes, message, tmp_path):
    saved(vit, tmp_path, "timm")
    edit_facts(tmp_path, **changes)
    with pytest.raises(WeightsError, match=message):
        zoo.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["fc_norm.weight", "reg_token", "blocks.0.ls1.gamma", "attn_pool.q"]
)
def test_a_part_that_this_page_has_not_is_refused_by_name(name, tmp_path):
    saved(vit, tmp_path, "timm")
    edit_tensors(tmp_path, {name: np.zeros(32, np.float32)})
    with pytest.raises(WeightsError, match=rf"\+ {name}|architecture is 'vit_base"):
        zoo.load(tmp_path)


def test_a_classifier_that_was_promised_must_be_there(tmp_path):
    saved(vit, tmp_path, "hf")
    edit_tensors(tmp_path, {"classifier.weight": None, "classifier.bias": None})
    with pytest.raises(WeightsError, match="architectures is .*but the file has no classifier"):
        zoo.load(tmp_path)


def test_labels_that_are_not_the_classifiers_are_refused(tmp_path):
    saved(vit, tmp_path, "hf")
    edit_facts(tmp_path, id2label={"0": "cat", "1": "dog"})
    with pytest.raises(WeightsError, match="2 labels, but the classifier has 10"):
        zoo.load(tmp_path)


def test_names_without_a_config_are_refused_where_they_do_not_show_the_heads(tmp_path):
    saved(vit, tmp_path, "hf")
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="need the config.json that belongs to them"):
        zoo.load(tmp_path)


def test_a_pooler_beside_a_classifier_is_refused_by_name(tmp_path):
    """transformers leaves it out with a warning, and so would hide that a file is another's."""
    saved(vit, tmp_path, "hf")
    edit_tensors(tmp_path, {"vit.pooler.dense.weight": np.zeros((32, 32), np.float32)})
    with pytest.raises(WeightsError, match=r"\+ vit.pooler.dense.weight: no place"):
        zoo.load(tmp_path)


def test_sizes_come_as_numbers_or_as_pairs(tmp_path):
    model, variables = saved(vit, tmp_path, "hf")
    edit_facts(tmp_path, image_size=[32, 32], patch_size=[8, 8], id2label=None, label2id=None)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == replace(model.config, image_size=(32, 32))
    assert_same(loaded, variables)
    edit_facts(tmp_path, patch_size=[8, 4])
    with pytest.raises(WeightsError, match=r"\[8, 4\] are not square"):
        zoo.load(tmp_path)


def test_files_of_timm_before_its_own_config_keep_their_hidden_layer(tmp_path):
    """`pre_logits` and no config.json: as torch.hub had them; the heads are those of the width."""
    model = vit.ViT(vit.Config(8, 192, 1, 3, 16, representation=7, image_size=16, num_classes=2))
    variables = random_variables(model)
    rows = table.timm(model.config)
    leaves = tree.flatten(variables)
    save_file(convert.save(leaves, rows, leaves), tmp_path / "model.safetensors")
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == replace(model.config, positions="antialias")
    assert_same(loaded, variables)


def test_big_vision_names_may_come_without_params(tmp_path):
    model, variables = saved(vit, tmp_path, "big_vision", gelu="tanh")
    with np.load(tmp_path / "model.npz") as file:
        bare = {name.removeprefix("params/"): file[name] for name in file}
    np.savez(tmp_path / "model.npz", **bare)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == replace(model.config, positions="linear")
    assert_same(loaded, as_held("big_vision", model.config, variables))


def test_a_map_head_of_big_vision_is_refused_by_name(tmp_path):
    saved(vit, tmp_path, "big_vision", gelu="tanh")
    with np.load(tmp_path / "model.npz") as file:
        tensors = dict(file)
    np.savez(tmp_path / "model.npz", **tensors, **{"params/MAPHead_0/probe": np.zeros((1, 1, 32))})
    with pytest.raises(WeightsError, match=r"\+ params/MAPHead_0/probe: no place"):
        zoo.load(tmp_path)


# Published files.


MANIFEST = json.loads((HERE / "vit_manifests.json").read_text())
PUBLISHED = {  # library, name, format, variant, and how the file differs from it
    "google/vit-base-patch16-224": ("transformers", "hf", "vit_b16", {"epsilon": 1e-12}),
    "google/vit-base-patch16-224-in21k": (
        "transformers",
        "hf",
        "vit_b16",
        {"epsilon": 1e-12, "num_classes": 0, "representation": 768},
    ),
    "facebook/deit-base-distilled-patch16-224": (
        "transformers",
        "hf",
        "deit_b16_distilled",
        {"epsilon": 1e-12},
    ),
    "vit_base_patch16_224.augreg_in21k_ft_in1k": (
        "timm",
        "timm",
        "vit_b16",
        {"positions": "antialias"},
    ),
    "deit_tiny_distilled_patch16_224.fb_in1k": (
        "timm",
        "timm",
        "deit_ti16_distilled",
        {"positions": "antialias"},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_names_of_a_published_file_are_those_of_its_variant(name):
    library, format, variant, changes = PUBLISHED[name]
    listed = MANIFEST[library]["tensors"][name]
    tensors = {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, shape, dtype in listed}
    facts = MANIFEST[library].get("config", {}).get(name, {"architecture": name.partition(".")[0]})
    form = table.FORMATS[format]
    config = form.config(tensors, facts)
    assert config == zoo.create(variant, **changes).config
    ours = file_shapes(vit, form.rows(config), config)
    assert ours == {name: spec.shape for name, spec in tensors.items()}


def test_heads_of_published_widths():
    """Where a file of timm's has no config.json, its width says how many heads there are."""
    for variant in vit.VARIANTS.values():
        assert facts.HEADS[variant.config.width] == variant.config.heads
