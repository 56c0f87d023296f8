"""CLIP against transformers and open_clip, what a fault would look like, what files say, and what
its towers promise."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.checkpoints import (
    assert_same,
    edit_facts,
    edit_tensors,
    file_shapes,
    random_variables,
    saved,
)
from tests.golden.replay import HERE, Case, assert_seen, check_case, plant
from zoo import preprocess, tree
from zoo.card import OPENAI, Card, Preprocess
from zoo.layers import norm, posemb
from zoo.models import clip, gpt
from zoo.weights import clip as table
from zoo.weights import convert
from zoo.weights.convert import WeightsError

FORMATS = {  # of every golden file
    "clip_hf": "hf",
    "clip_hf_up": "hf",
    "clip_hf_down": "hf",
    "clip_openai": "openai",
    "clip_openai_id": "openai",
    "clip_openai_resnet": "openai",
}
CASES = {name: Case(name, clip, format) for name, format in FORMATS.items()}
TRAINING = Case("clip_hf_train", clip, "hf")
RESNET_TRAINING = Case("clip_openai_resnet_train", clip, "openai")


@pytest.mark.parametrize("name", CASES)
def test_every_block_of_both_towers_agrees_with_the_reference(name):
    check_case(CASES[name])


@pytest.mark.parametrize("case", [TRAINING, RESNET_TRAINING], ids=lambda case: case.name)
def test_a_training_step_agrees_with_the_reference(case):
    check_case(case)


# A fault is one passage of a source changed. With it the claims above must not hold, and the part
# that is wrong first tells where it is: the case, the fault, that part.
IMAGE, TEXT = "hidden/image.block_0", "hidden/text.block_0"
FAULTS = {
    "erf for quick GELU": ("clip_hf", (clip, '"quick": quick_gelu', '"quick": gelu'), IMAGE),
    "tanh for erf GELU": ("clip_hf_up", (clip, '"erf": gelu,', '"erf": gelu_tanh,'), IMAGE),
    "the tokenizer's end for the largest id": (
        "clip_hf",
        (clip, "eos: tokens.argmax(axis=1)", "eos: (tokens == 49407).argmax(axis=1)"),
        "hidden/text.proj",
    ),
    "the largest id for the first end": (
        "clip_hf_up",
        (clip, "eos: (tokens == eos).argmax(axis=1)", "eos: tokens.argmax(axis=1)"),
        "hidden/text.proj",
    ),
    "no causal mask": ("clip_hf", (clip, "causal=True)", "causal=False)"), TEXT),
    "the last positions of texts": (
        "clip_hf",
        (clip, "positions[None, :n]", "positions[None, -n:]"),
        TEXT,
    ),
    "antialiased positions": (
        "clip_hf_down",
        (posemb, 'ic": bicubic', 'ic": antialias'),
        "hidden/image.norm_pre",
    ),
    "no norm in front of the blocks": (
        "clip_hf",
        (clip, 'norm(c, name="norm_pre")(x)', '0 * norm(c, name="norm_pre")(x) + x'),
        IMAGE,
    ),
    "no norm behind them": (
        "clip_hf",
        (clip, 'norm(c, name="norm")(x[:, 0])', '0 * norm(c, name="norm")(x[:, 0]) + x[:, 0]'),
        "hidden/image.proj",
    ),
    "ε of 1e-5": (
        "clip_hf",
        (clip, "nn.LayerNorm(epsilon=config.epsilon", "nn.LayerNorm(epsilon=1e-5"),
        "hidden/image.norm_pre",
    ),
    "q and k swapped": (
        "clip_hf",
        (table, "self_attn.{name}_proj", "self_attn.{dict(q='k', k='q').get(name, name)}_proj"),
        IMAGE,
    ),
    "q and v swapped in the fused tensor": (
        "clip_openai",
        (table, 'for name in "qkv"', 'for name in "vkq"'),
        IMAGE,
    ),
    "a square projection transposed": (
        "clip_openai_id",
        (
            table,
            'Row("text_projection", "params/text/proj/kernel"),',
            'Row("text_projection", "params/text/proj/kernel", DENSE),',
        ),
        "logits",
    ),
    "another projection transposed": (
        "clip_openai",
        (
            table,
            'Row("visual.proj", "params/image/proj/kernel"),',
            'Row("visual.proj", "params/image/proj/kernel", DENSE),',
        ),
        "",
    ),
    "a square kernel not transposed": (
        "clip_openai",
        (
            table,
            'rows += layer_norm(f"{layer}.ln_2"',
            'rows[-2] = rows[-2]._replace(op=SAME)\n        rows += layer_norm(f"{layer}.ln_2"',
        ),
        IMAGE,
    ),
    "a bias left out": (
        "clip_openai",
        (clip, "Attention(self.heads, ", "Attention(self.heads, bias=False, "),
        "",
    ),
    "embeddings of another length": (
        "clip_hf",
        (norm, "return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))", "return 2 * x"),
        "image",
    ),
    "log_scale as it is": (
        "clip_hf",
        (clip, "jnp.exp(self.log_scale.astype(jnp.float32))", "1 * self.log_scale"),
        "logits",
    ),
    "the largest for the average": (
        "clip_openai_resnet",
        (
            clip,
            'return reduce(x, "b (h s) (w t) c -> b h w c", "mean"',
            'return reduce(x, "b (h s) (w t) c -> b h w c", "max"',
        ),
        "hidden/image.stem",
    ),
    "a mean that is asked for, but not asked": (
        "clip_openai_resnet",
        (clip, '("k", x), ("v", x))', '("k", x[:, 1:]), ("v", x[:, 1:]))'),
        "hidden/image.pool",
    ),
    "heads minor in the pooling": (
        "clip_openai_resnet",
        (clip, '(y), "b n (h c) -> b n h c"', '(y), "b n (c h) -> b n h c"'),
        "hidden/image.pool",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_sees(name, monkeypatch):
    case, fault, where = FAULTS[name]
    plant(monkeypatch, fault, clip, table, convert)
    assert_seen(CASES[case], where)


TRAINING_FAULTS = {
    "no gradient to the temperature": (
        clip,
        "jnp.exp(self.log_scale.astype(jnp.float32))",
        "jnp.exp(jax.lax.stop_gradient(self.log_scale))",
    ),
    "no gradient through the length": (
        norm,
        "square = jnp.square(x)",
        "square = jnp.square(jax.lax.stop_gradient(x))",
    ),
}


@pytest.mark.parametrize("name", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(name, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[name], clip)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(TRAINING)


# What its towers promise.

RESNET = {
    "patch": 32,
    "width": 4,
    "heads": 4,
    "depth": 0,
    "mlp": 0,
    "stages": (1, 3, 1, 2),
    "image_size": 64,
}


@pytest.fixture(scope="module")
def tiny():
    model = clip.CLIP(clip.TINY)
    return model, jax.tree.map(jnp.asarray, random_variables(model))


@pytest.fixture(scope="module")
def resnet():
    """With running variances that are positive, and of 1e-2, so that statistics matter."""
    small = {"stages": (1, 3), "patch": 8, "image_size": 16}
    model = clip.CLIP(replace(clip.TINY, **RESNET | small))
    variables = random_variables(model)
    variables["batch_stats"] = jax.tree.map(lambda x: 0.01 + x**2, variables["batch_stats"])
    return model, jax.tree.map(jnp.asarray, variables)


def embed(model, variables, inputs, tower, **options):
    """Of one tower, compiled: these are many small operations."""
    run = partial(model.apply, method=f"embed_{tower}", **options)
    return jax.jit(run)(variables, jnp.asarray(inputs))


def embed_text(model, variables, tokens):
    return embed(model, variables, tokens, "text")


def test_what_follows_the_end_of_a_text_changes_nothing(tiny):
    model, variables = tiny
    tokens = np.array([[3, 9, 60, 0, 0, 0], [60, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 60]], np.int32)
    ends = tokens.argmax(1)
    found = embed_text(model, variables, tokens)
    behind = np.arange(6) > ends[:, None]
    other = np.where(behind, 17, tokens)
    np.testing.assert_allclose(embed_text(model, variables, other), found, atol=1e-6)
    longer = np.pad(tokens, ((0, 0), (0, 6)))
    np.testing.assert_allclose(embed_text(model, variables, longer), found, atol=1e-6)
    before = np.where(np.arange(6) == ends[:, None] - 1, 17, tokens)  # the second has none
    moved = np.abs(embed_text(model, variables, before) - found).max(axis=1)
    assert (moved > 1e-3).tolist() == [True, False, True]


@pytest.mark.parametrize("end", ["argmax", "id"])
def test_the_end_of_a_text_is_where_a_loop_finds_it(end):
    tokens = np.random.default_rng(0).integers(0, 9, (200, 7))

    def loop(row):
        wanted = max(row) if end == "argmax" else 5
        return next((i for i, token in enumerate(row) if token == wanted), 0)

    ends = clip.ENDS[end](jnp.asarray(tokens), 5)
    assert ends.tolist() == [loop(row) for row in tokens.tolist()]


def test_more_tokens_than_the_context_are_refused(tiny):
    with pytest.raises(ValueError, match="13 tokens are more than the context of 12: .*context=13"):
        embed_text(*tiny, np.zeros((1, 13), np.int32))


def test_logits_are_scaled_products_of_embeddings(tiny):
    model, variables = tiny
    variables = {"params": {**variables["params"], "log_scale": jnp.float32(math.log(20))}}
    inputs = {
        "image": np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32),
        "tokens": np.random.default_rng(1).integers(0, 61, (3, 12)),
    }
    image, text, pairs = jax.jit(model.apply)(variables, **inputs)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-6)
    logits = model.apply(variables, image, text[:2], method="similarity")
    np.testing.assert_allclose(logits, 20 * np.asarray(image) @ np.asarray(text[:2]).T, rtol=1e-4)
    np.testing.assert_allclose(np.diag(logits), pairs[:2], rtol=1e-4)
    scale, bias = model.apply(variables, method="temperature")
    np.testing.assert_allclose((scale, bias), (20, 0), rtol=1e-6)


def test_all_pairs_are_multiplied_in_full_precision(tiny):
    """An accelerator rounds the factors to fewer bits unless it is told not to."""
    model, variables = tiny
    of_both = jnp.ones((2, 2, 4))
    with jax.default_matmul_precision("default"):
        pairs = jax.make_jaxpr(partial(model.apply, method="similarity"))(variables, *of_both)
    assert "HIGHEST" in str(pairs)


def test_training_starts_from_and_stays_within_the_published_temperatures():
    model = clip.CLIP(clip.TINY)
    start = model.init(jax.random.key(0), method="temperature")["params"]["log_scale"]
    np.testing.assert_allclose(np.exp(start), 1 / 0.07, rtol=1e-6)
    np.testing.assert_allclose(np.exp(clip.CLAMP["log_scale"]), (1, 100), rtol=1e-12)
    assert clip.CLAMP["log_scale"][0] < start < clip.CLAMP["log_scale"][1]


def test_an_embedding_of_zeros_has_finite_gradients():
    gradient = jax.grad(lambda x: clip.unit(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all() and not np.asarray(clip.unit(jnp.zeros((2, 3)))).any()


def test_patch_dropout_leaves_out_patches_in_training_alone(tiny):
    model, variables = tiny
    dropping = model.clone(config=replace(model.config, patch_dropout=0.5))
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    drop = {"train": True, "rngs": {"dropout": jax.random.key(0)}}
    whole = embed(model, variables, image, "image", **drop)
    np.testing.assert_array_equal(embed(dropping, variables, image, "image"), whole)
    dropped, seen = embed(dropping, variables, image, "image", capture_intermediates=True, **drop)
    assert seen["intermediates"]["image"]["block_0"]["__call__"][0].shape == (2, 1 + 8, 32)
    assert np.abs(dropped - whole).max(axis=1).min() > 1e-3


def test_the_resnet_is_the_same_scanned_and_rematerialised(resnet):
    model, variables = resnet
    image = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)

    def step(model, variables):
        def loss(params):
            found, moved = model.apply(
                {**variables, "params": params},
                image,
                train=True,
                method="embed_image",
                mutable=["batch_stats"],
            )
            return (found * jnp.arange(found.size).reshape(found.shape)).sum(), moved

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    scanned = model.clone(config=replace(model.config, layers="scan", remat=True))
    (loss, moved), grads = step(model, variables)
    (other, other_moved), other_grads = step(
        scanned, {name: tree.stacked(leaves) for name, leaves in variables.items()}
    )
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    moved, grads = tree.stacked(moved["batch_stats"]), tree.stacked(grads)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads["image"]))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), moved, other_moved["batch_stats"]
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * scale), grads, other_grads
    )


def test_batch_statistics_are_of_the_whole_batch_under_a_mapped_axis(resnet):
    model, variables = resnet
    image = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    run = {"train": True, "method": "embed_image", "mutable": ["batch_stats"]}
    whole, moved = jax.jit(partial(model.apply, **run))(variables, image)
    part = partial(model.clone(axis="data").apply, variables, **run)
    parts, each = jax.jit(jax.vmap(part, axis_name="data"))(image.reshape(2, 2, 16, 16, 3))
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-4)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y[1], rtol=1e-4, atol=1e-5), moved, each
    )


WRONG = {
    "width 32 is no multiple of 5 heads": {"heads": 5},
    "width 24 is no multiple of 5 heads": {"text_heads": 5},
    "width 128 is no multiple of 3 heads": RESNET | {"heads": 3},
    "image_size 30 is no multiple of patch 8": {"image_size": 30},
    "a rate of dropout is in": {"patch_dropout": 1.0},
    "a ViT has a depth and an mlp": {"depth": 0},
    "and no depth, mlp or patch_dropout": RESNET | {"patch_dropout": 0.5},
    "an even width": RESNET | {"width": 3, "heads": 1},
    "4 stages stride by other than patch 16": RESNET | {"patch": 16},
}


@pytest.mark.parametrize("message", WRONG)
def test_values_that_do_not_fit_together_are_refused(message):
    with pytest.raises(ValueError, match=message):
        replace(clip.TINY, **WRONG[message]).check()


@pytest.mark.parametrize("changes", [{}, RESNET], ids=["vit", "resnet"])
def test_pictures_that_do_not_fit_are_refused(changes):
    model = clip.CLIP(replace(clip.TINY, **changes))
    inputs = zoo.example(model)
    for shape, message in (
        ((1, 64, 64, 1), "1 channels, but this model takes 3: .*in_channels=1"),
        ((1, 60, 64, 3), f"image 60×64 is not a multiple of patch {model.config.patch}"),
    ):
        wrong = {**inputs, "image": jax.ShapeDtypeStruct(shape, "float32")}
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), **wrong)


# What files say in other ways.


ODD = {"width": 30, "heads": 3, "mlp": 49, "text_width": 20, "text_heads": 5, "text_mlp": 27}
HELD = {  # what each format holds beside the sizes
    "hf": [
        {},
        {"gelu": "erf", "end": "id", "eos": 7, "epsilon": 1e-3},
        ODD | {"gelu": "tanh", "image_size": (32, 16), "in_channels": 1, "vocab": 50, "context": 9},
    ],
    "openai": [
        {},
        {"gelu": "erf", "end": "id", "eos": 7, "patch_dropout": 0.5},
        ODD | {"image_size": (32, 16), "vocab": 50, "context": 9, "embed": 7},
        RESNET,
        RESNET | {"gelu": "erf", "heads": 2},
    ],
}
HELD_CASES = [(format, changes) for format, cases in HELD.items() for changes in cases]
KERNELS = {"hf": "bicubic", "openai": "antialias"}


@pytest.mark.parametrize("format, changes", HELD_CASES, ids=str)
def test_what_a_format_holds_loads_bitwise(format, changes, tmp_path):
    model, variables = saved(clip, tmp_path, format, **changes)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == replace(model.config, positions=KERNELS[format])
    assert_same(loaded, variables)


REFUSED = {
    "hf": [
        (RESNET, "transformers' CLIP has no ResNet"),
        ({"end": "id", "eos": 2}, "end 'id', but would load as 'argmax'"),
        ({"eos": 5}, "eos 5, but would load as 49407"),
    ],
    "openai": [
        ({"gelu": "tanh"}, "gelu 'tanh', but would load as 'erf'"),
        ({"epsilon": 1e-3}, "epsilon 0.001, but would load as 1e-05"),
        ({"in_channels": 1}, "pictures of 3 channels, and a ResNet of 4 stages"),
        (
            RESNET | {"stages": (1, 2, 1), "patch": 16},
            "pictures of 3 channels, and a ResNet of 4 stages",
        ),
    ],
}
REFUSED_CASES = [(format, *case) for format, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize("format, changes, message", REFUSED_CASES)
def test_what_a_format_cannot_hold_is_refused(format, changes, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        saved(clip, tmp_path / "out", format, **changes)
    assert not (tmp_path / "out").exists()


def read(path):
    return json.loads(path.read_text())


def edit_tower(directory, tower, file="config.json", **changes):
    """Changes keys of one tower's facts; None takes one out."""
    facts = read(directory / file)
    part = facts["model_cfg"] if "model_cfg" in facts else facts
    stated = part[tower] | changes
    part[tower] = {key: value for key, value in stated.items() if value is not None}
    (directory / file).write_text(json.dumps(facts))


def test_a_file_of_before_says_everything_twice(tmp_path):
    """As openai/clip-vit-large-patch14: `…_dict` has what is no default, and counts."""
    model, variables = saved(clip, tmp_path, "hf")
    facts = read(tmp_path / "config.json")
    towers = {key: facts[key] for key in ("text_config", "vision_config")}
    again = {f"{key}_dict": stated for key, stated in towers.items()}
    wrong = {key: {**stated, "hidden_size": 7} for key, stated in towers.items()}
    edit_facts(tmp_path, **again, **wrong)
    positions = {
        f"{tower}_model.embeddings.position_ids": np.arange(n)[None]
        for tower, n in (("text", 12), ("vision", 17))
    }
    edit_tensors(tmp_path, positions)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == model.config
    assert_same(loaded, variables)


def test_what_transformers_takes_for_granted_may_be_left_out(tmp_path):
    model, _ = saved(clip, tmp_path, "hf", text_heads=8, end="id")
    out = ("hidden_act", "layer_norm_eps", "attention_dropout", "eos_token_id")
    edit_tower(tmp_path, "text_config", **dict.fromkeys((*out, "num_attention_heads")))
    edit_tower(tmp_path, "vision_config", **dict.fromkeys((*out, "num_channels")))
    assert zoo.load(tmp_path)[0].config == model.config


@pytest.mark.parametrize(
    "tower, key, value, message",
    [
        ("text_config", "hidden_act", "gelu", "hidden_act is 'gelu' for texts and 'quick_gelu'"),
        ("vision_config", "layer_norm_eps", 1e-6, "layer_norm_eps is 1e-05 for texts and 1e-06"),
        ("text_config", "attention_dropout", 0.1, "attention_dropout is 0.1"),
        ("vision_config", "num_hidden_layers", 4, "4 layers, but the tensors are of 2"),
        ("text_config", "num_hidden_layers", 4, "4 layers, but the tensors are of 2"),
        ("text_config", "eos_token_id", [3], r"eos_token_id is \[3\], not a number"),
        ("vision_config", "patch_size", [8, 4], "are not square"),
    ],
)
def test_a_hugging_face_config_that_we_do_not_have_is_refused_by_key(
    tower, key, value, message, tmp_path
):
    saved(clip, tmp_path, "hf")
    edit_tower(tmp_path, tower, **{key: value})
    with pytest.raises(WeightsError, match=message):
        zoo.load(tmp_path)


def test_the_heads_that_an_open_clip_config_leaves_out_are_8(tmp_path):
    model, variables = saved(clip, tmp_path, "openai", text_width=64, text_heads=8)
    edit_tower(tmp_path, "text_cfg", **OPEN_CLIP, heads=None)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == replace(model.config, positions="antialias")
    assert_same(loaded, variables)


def test_names_without_a_config_are_refused(tmp_path):
    saved(clip, tmp_path, "hf")
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="need the config.json that belongs to them"):
        zoo.load(tmp_path)


OPEN_CLIP = {"file": "open_clip_config.json"}


@pytest.mark.parametrize(
    "tower, key, value",
    [
        ("vision_cfg", "ls_init_value", 0.1),
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "timm_model_name", "vit_base"),
        ("vision_cfg", "pool_type", "avg"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "hf_model_name", "roberta"),
    ],
)
def test_an_open_clip_config_that_we_do_not_have_is_refused_by_key(tower, key, value, tmp_path):
    saved(clip, tmp_path, "openai")
    edit_tower(tmp_path, tower, **OPEN_CLIP, **{key: value})
    with pytest.raises(WeightsError, match=f"{tower} has {key}={value!r}: not supported"):
        zoo.load(tmp_path)


def test_switches_that_are_off_are_no_difference(tmp_path):
    model, _ = saved(clip, tmp_path, "openai")
    edit_tower(tmp_path, "vision_cfg", **OPEN_CLIP, no_ln_pre=False, pos_embed_type="learnable")
    edit_tower(tmp_path, "text_cfg", **OPEN_CLIP, qk_norm=False, hf_tokenizer_name="other/name")
    assert zoo.load(tmp_path)[0].config == replace(model.config, positions="antialias")


HEADS = {"width": 128, "heads": 2, "text_width": 64, "text_heads": 1}


@pytest.mark.parametrize("changes", [HEADS, HEADS | RESNET | {"heads": 2}], ids=["vit", "resnet"])
def test_openais_weights_stand_alone(changes, tmp_path, caplog):
    """Their names and shapes say all but the heads and the GELU, which are OpenAI's."""
    model, variables = saved(clip, tmp_path, "openai", **changes)
    (tmp_path / "open_clip_config.json").unlink()
    (tmp_path / "card.json").unlink()
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "model.safetensors")
    numbers = ("input_resolution", "context_length", "vocab_size")
    edit_tensors(tmp_path, {name: np.array(7) for name in numbers})
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == replace(model.config, positions="antialias")
    assert_same(loaded, variables)
    assert "heads of 64 channels and QuickGELU" in caplog.text


def test_a_repository_with_both_layouts_gives_one_model(tmp_path):
    """As LAION's: transformers' files, and open_clip's beside them."""
    model, variables = saved(clip, tmp_path, "hf", gelu="erf")
    saved(clip, tmp_path / "other", "openai", gelu="erf")
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        shutil.copy(tmp_path / "other" / name, tmp_path)
    for path, kernel in (
        (tmp_path, "bicubic"),
        (tmp_path / "open_clip_model.safetensors", "antialias"),
    ):
        loaded_model, loaded = zoo.load(path)
        assert loaded_model.config == replace(model.config, positions=kernel)
        assert_same(loaded, variables)


EXPORTED = {  # beside a card
    "hf": {"config.json", "model.safetensors", "preprocessor_config.json"},
    "openai": {"open_clip_config.json", "open_clip_model.safetensors"},
    "flax": {"config.json", "model.safetensors"},
}


@pytest.mark.parametrize("second", EXPORTED)
@pytest.mark.parametrize("first", EXPORTED)
def test_an_export_leaves_nothing_of_an_earlier_one(first, second, tmp_path):
    """Also where the earlier one knew how pictures are prepared, and this one does not."""
    model, card = clip.CLIP(clip.TINY), Card("clip", {}, preprocess=PUBLISHED_PICTURES)
    erf, none = clip.CLIP(replace(clip.TINY, gelu="erf")), Card("clip", {})
    zoo.save(model, random_variables(model), tmp_path, format=first, card=card)
    for known, unwritten in ((card, set()), (none, {"preprocessor_config.json"})):
        zoo.save(erf, random_variables(erf), tmp_path, format=second, card=known)
        found = {path.name for path in tmp_path.iterdir()}
        assert found == {"card.json"} | EXPORTED[second] - unwritten
        kernel = KERNELS.get(second, "bicubic")
        assert zoo.load(tmp_path)[0].config == replace(erf.config, positions=kernel)


# How pictures are prepared.


PUBLISHED_PICTURES = Preprocess(32, 1.0, "bicubic", **OPENAI, convention="transformers")


def test_published_preprocessing_is_read(tmp_path):
    """As in openai/clip-vit-base-patch32, whose file names no class of today."""
    saved(clip, tmp_path, "hf")
    (tmp_path / "card.json").unlink()
    processor = {
        "crop_size": 32,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(OPENAI["mean"]),
        "image_std": list(OPENAI["std"]),
        "resample": 3,
        "size": 32,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert zoo.card(tmp_path).preprocess == PUBLISHED_PICTURES
    del processor["feature_extractor_type"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert zoo.card(tmp_path).preprocess == PUBLISHED_PICTURES


@pytest.mark.parametrize(
    "pictures",
    [
        PUBLISHED_PICTURES,
        replace(PUBLISHED_PICTURES, crop=0.8, interpolation="bilinear"),
        replace(PUBLISHED_PICTURES, mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
        replace(PUBLISHED_PICTURES, size=(32, 16), mode="squash"),
    ],
    ids=["published", "cut", "squashed", "rectangle"],
)
def test_preprocessing_is_exported_for_transformers(pictures, tmp_path):
    model = clip.CLIP(clip.TINY)
    card = Card("clip", {}, preprocess=pictures)
    zoo.save(model, random_variables(model), tmp_path, format="hf", card=card)
    (tmp_path / "card.json").unlink()
    assert zoo.card(tmp_path).preprocess == pictures


@pytest.mark.parametrize("convention", preprocess.CONVENTIONS)
@pytest.mark.parametrize("crop", [0.9, 0.85, 1.0])
def test_a_picture_is_exported_as_large_as_it_is_here_before_the_cut(crop, convention, tmp_path):
    """32 / 0.9 = 35.6 and 32 / 0.85 = 37.6: 36 and 38 where sides are rounded, 35 and 37 where they
    are rounded down."""
    model = clip.CLIP(clip.TINY)
    pictures = replace(PUBLISHED_PICTURES, crop=crop, convention=convention)
    card = Card("clip", {}, preprocess=pictures)
    zoo.save(model, random_variables(model), tmp_path, format="hf", card=card)
    edge = read(tmp_path / "preprocessor_config.json")["size"]["shortest_edge"]
    assert edge == preprocess.resized((100, 100), pictures)[0]
    (tmp_path / "card.json").unlink()
    assert preprocess.resized((100, 100), zoo.card(tmp_path).preprocess) == (edge, edge)


def test_a_rectangle_in_a_picture_that_keeps_its_shape_is_not_exported(tmp_path):
    model = clip.CLIP(clip.TINY)
    card = Card("clip", {}, preprocess=replace(PUBLISHED_PICTURES, size=(32, 16)))
    zoo.save(model, random_variables(model), tmp_path, format="hf", card=card)
    assert not (tmp_path / "preprocessor_config.json").exists()


def test_grey_pictures_are_exported_as_grey(tmp_path):
    model = clip.CLIP(replace(clip.TINY, in_channels=1))
    pictures = replace(PUBLISHED_PICTURES, mean=(0.5,), std=(0.25,))
    card = Card("clip", {}, preprocess=pictures)
    zoo.save(model, random_variables(model), tmp_path, format="hf", card=card)
    written = read(tmp_path / "preprocessor_config.json")
    assert (written["do_convert_rgb"], written["image_mean"]) == (False, [0.5])
    (tmp_path / "card.json").unlink()
    assert zoo.card(tmp_path).preprocess == pictures


def test_what_open_clip_has_no_words_for_is_left_out_with_a_warning(tmp_path, caplog):
    """And nothing else: the mean and std are not those of OpenAI in its place."""
    model = clip.CLIP(clip.TINY)
    half = {"mean": (0.5,), "std": (0.25,) * 3}
    pictures = Preprocess(64, 0.9, "lanczos", **half, mode="squash")
    card = Card("clip", {}, preprocess=pictures)
    zoo.save(model, random_variables(model), tmp_path, format="openai", card=card)
    assert "no words for size 64, crop 0.9, interpolation 'lanczos' of" in caplog.text
    assert read(tmp_path / "open_clip_config.json")["preprocess_cfg"] == {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "resize_mode": "squash",
    }
    caplog.clear()
    bilinear = replace(pictures, size=32, crop=1.0, interpolation="bilinear")
    card = Card("clip", {}, preprocess=bilinear)
    zoo.save(model, random_variables(model), tmp_path, format="openai", card=card)
    written = read(tmp_path / "open_clip_config.json")["preprocess_cfg"]
    assert written["interpolation"] == "bilinear" and not caplog.records


@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_preprocessing_is_exported_for_open_clip(mode, tmp_path):
    model = clip.CLIP(clip.TINY)
    pictures = replace(PUBLISHED_PICTURES, mode=mode, mean=(0.5,) * 3, convention="timm")
    card = Card("clip", {}, preprocess=pictures)
    zoo.save(model, random_variables(model), tmp_path, format="openai", card=card)
    (tmp_path / "card.json").unlink()
    assert zoo.card(tmp_path).preprocess == pictures


def test_what_open_clip_leaves_out_is_openais(tmp_path):
    saved(clip, tmp_path, "openai")
    (tmp_path / "card.json").unlink()
    expected = replace(PUBLISHED_PICTURES, convention="timm")
    assert zoo.card(tmp_path).preprocess == expected
    edit_facts_of_pictures(tmp_path, resize_mode="longest")
    card = zoo.card(tmp_path)
    assert card.preprocess is None and "resize_mode 'longest' pads" in card.notes[0]


def edit_facts_of_pictures(directory, **changes):
    facts = read(directory / "open_clip_config.json")
    facts["preprocess_cfg"] |= changes
    (directory / "open_clip_config.json").write_text(json.dumps(facts))


# Other sizes of pictures and texts.


@pytest.mark.parametrize("changes", [{}, RESNET], ids=["vit", "resnet"])
def test_another_image_size_resizes_positions_and_nothing_else(changes, tmp_path, caplog):
    model, _ = saved(clip, tmp_path, "openai", **changes)
    _, before = zoo.load(tmp_path)
    height, width = 3 * model.config.patch, model.config.patch
    resized, after = zoo.load(tmp_path, image_size=(height, width))
    assert resized.config.image_size == (height, width) and not caplog.records
    where = "image/pool/positions" if changes else "image/positions"
    kept, moved = (tree.flatten(x["params"]) for x in (before, after))
    positions = moved.pop(where)
    assert positions.shape[0] == 1 + 3
    np.testing.assert_array_equal(positions[0], kept.pop(where)[0])
    assert_same(moved, kept)


@pytest.mark.parametrize("context", [5, 12, 13, 30, 77])
def test_text_positions_are_cut_or_stretched_as_numpy_interpolates(context):
    positions = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    expected = positions[:context]
    if context > 12:
        points = (np.arange(context) + 0.5) * 12 / context - 0.5
        columns = [np.interp(points, np.arange(12), column) for column in positions.T]
        expected = np.stack(columns, axis=1)
    found = posemb.stretch(jnp.asarray(positions), context)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_context_is_loaded_and_told(tmp_path, caplog):
    model, variables = saved(clip, tmp_path, "hf")
    tokens = np.array([[3, 9, 60, 0, 0]], np.int32)
    before = embed_text(model, variables, tokens)
    shorter, cut = zoo.load(tmp_path, context=5)
    np.testing.assert_allclose(embed_text(shorter, cut, tokens), before, atol=1e-6)
    assert "params/text/positions: resized, (5, 24) instead of (12, 24)" in caplog.text
    longer, stretched = zoo.load(tmp_path, context=20)
    assert longer.config == replace(model.config, context=20)
    assert "params/text/positions: resized, (20, 24) instead of (12, 24)" in caplog.text
    flat, kept = tree.flatten(stretched), tree.flatten(variables)
    positions = flat.pop("params/text/positions")
    expected = posemb.stretch(jnp.asarray(kept.pop("params/text/positions")), 20)
    np.testing.assert_array_equal(positions, expected)
    assert_same(flat, kept)
    assert embed_text(longer, stretched, np.zeros((1, 20), np.int32)).shape == (1, 4)


def test_a_context_that_a_page_cannot_resize_is_refused(tmp_path):
    saved(gpt, tmp_path, "hf")
    with pytest.raises(WeightsError, match="context 20 instead of 16: gpt cannot resize params/po"):
        zoo.load(tmp_path, context=20)


# Published files.


MANIFEST = read(HERE / "clip_manifests.json")
VARIANTS = {
    "ViT-B-32": "clip_b32",
    "ViT-B-16": "clip_b16",
    "ViT-L-14": "clip_l14",
    "ViT-L-14-336": "clip_l14_336",
    "RN50": "clip_rn50",
}


def listed(library, name):
    rows = MANIFEST[library]["tensors"][name]
    return {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, shape, dtype in rows}


def names_and_shapes(form, config):
    rows = form.rows(config)
    counted = {name: x.shape for name, x in form.constants(rows).items()}
    return file_shapes(clip, rows, config) | counted


def test_the_names_of_transformers_are_those_of_the_variant():
    name = "openai/clip-vit-base-patch32"
    tensors, form = listed("transformers", name), table.FORMATS["hf"]
    config = form.config(tensors, MANIFEST["transformers"]["config"][name])
    assert config == zoo.create("clip_b32", end="id").config
    assert names_and_shapes(form, config) == {n: x.shape for n, x in tensors.items()}


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_the_names_of_open_clip_are_those_of_the_variant(name):
    tensors, form = listed("open_clip", name), table.FORMATS["openai"]
    config = form.config(tensors, MANIFEST["open_clip"]["config"][name])
    assert config == zoo.create(VARIANTS[name], gelu="erf", positions="antialias").config
    assert names_and_shapes(form, config) == {n: x.shape for n, x in tensors.items()}


def test_the_counts_that_open_clip_prints_are_ours():
    counts = {VARIANTS[name]: count for name, count in MANIFEST["open_clip"]["params"].items()}
    assert counts == {name: variant.params for name, variant in clip.VARIANTS.items()}
