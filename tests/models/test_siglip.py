"""SigLIP against transformers and the authors' own code, what a fault would look like, what files
say, and what its towers promise."""

import json
import re
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
    random_variables,
    saved,
)
from tests.golden.fill import fill
from tests.golden.replay import HERE, Case, assert_seen, check_case, plant
from zoo import registry, tree
from zoo.card import Card, Preprocess
from zoo.layers import norm, posemb
from zoo.models import siglip
from zoo.spec import Variant
from zoo.weights import convert
from zoo.weights import siglip as table
from zoo.weights import vit as vit_table
from zoo.weights.convert import WeightsError

FORMATS = {  # of every golden file
    "siglip_hf": "hf",
    "siglip_hf_up": "hf",
    "siglip_hf_down": "hf",
    "siglip_hf_rest": "hf",
    "siglip_open_clip": "open_clip",
    "siglip_big_vision": "big_vision",
    "siglip_big_vision_scan": "big_vision_scan",
}
CASES = {name: Case(name, siglip, format) for name, format in FORMATS.items()}
TRAINING = Case("siglip_hf_train", siglip, "hf")


@pytest.mark.parametrize("name", CASES)
def test_every_block_of_both_towers_agrees_with_the_reference(name):
    with jax.disable_jit():  # so that operations are compiled once for all cases and faults
        check_case(CASES[name])


def test_a_training_step_agrees_with_the_reference():
    check_case(TRAINING)


# A fault is one passage of a source changed. With it the claims above must not hold, and the part
# that is wrong first tells where it is: the case, the fault, that part.
IMAGE, TEXT, POOL = "hidden/image/block_0", "hidden/text/block_0", "hidden/image/pool"
FAULTS = {
    "q and k swapped": (
        "siglip_hf",
        (
            table,
            'q_proj.", "q"), ("self_attn.k_proj.", "k")',
            'q_proj.", "k"), ("self_attn.k_proj.", "q")',
        ),
        IMAGE,
    ),
    "q and v swapped in the fused tensor": (
        "siglip_hf",
        (table, '/attn", "qkv")', '/attn", "vkq")'),
        POOL,
    ),
    "a square kernel not transposed": (
        "siglip_hf",
        (
            table,
            '*dense(f"{theirs}.attention.out_proj", f"{ours}/attn/out"),',
            '*(row._replace(op=SAME) for row in dense(f"{theirs}.attention.out_proj", '
            'f"{ours}/attn/out")),',
        ),
        POOL,
    ),
    "no kernel transposed": (
        "siglip_hf",
        (convert, 'DENSE = layout("o i", "i o")', "DENSE = SAME"),
        "",
    ),
    "erf GELU": ("siglip_hf", (siglip, '"tanh": gelu_tanh', '"tanh": gelu'), IMAGE),
    "tanh GELU": ("siglip_hf_up", (siglip, '"erf": gelu}', '"erf": gelu_tanh}'), IMAGE),
    "the mean for the attention pooling": (
        "siglip_hf",
        (
            siglip,
            'x = Probe(self.heads, name="attn")(x)',
            'x = 0 * Probe(self.heads, name="attn")(x) + x.mean(axis=1)',
        ),
        POOL,
    ),
    "no residual around the pool's MLP": (
        "siglip_hf",
        (
            siglip,
            'return x + Mlp(self.hidden, GELUS[self.gelu], name="mlp")(y)',
            'return Mlp(self.hidden, GELUS[self.gelu], name="mlp")(y)',
        ),
        POOL,
    ),
    "heads minor in the pool": (
        "siglip_hf",
        (siglip, '(y), "b n (h c) -> b n h c"', '(y), "b n (c h) -> b n h c"'),
        POOL,
    ),
    "the first token for the last": (
        "siglip_hf",
        (siglip, "(x[:, -1])", "(x[:, 0])"),
        "hidden/text/proj",
    ),
    "a causal mask in the text": (
        "siglip_hf",
        (siglip, '(norm(name="norm1")(x))', '(norm(name="norm1")(x), causal=x.shape[1] == 7)'),
        TEXT,
    ),
    "no positions in the text": (
        "siglip_hf",
        (
            siglip,
            'x = x + self.param("positions", init',
            'x = x + 0 * self.param("positions", init',
        ),
        TEXT,
    ),
    "the text's head without its bias": (
        "siglip_hf",
        (
            siglip,
            'nn.Dense(c.embed, name="proj")',
            'nn.Dense(c.embed, use_bias=False, name="proj")',
        ),
        "",
    ),
    "ε of 1e-6": (
        "siglip_hf",
        (
            siglip,
            "partial(nn.LayerNorm, epsilon=self.epsilon)",
            "partial(nn.LayerNorm, epsilon=1e-6)",
        ),
        IMAGE,
    ),
    "ε of 1e-6 in the last norm": (
        "siglip_hf",
        (siglip, "nn.LayerNorm(epsilon=c.epsilon", "nn.LayerNorm(epsilon=1e-6"),
        "hidden/image/norm",
    ),
    "ε of 1e-6 in the pool's norm": (
        "siglip_hf",
        (siglip, "nn.LayerNorm(epsilon=self.epsilon, name", "nn.LayerNorm(epsilon=1e-6, name"),
        POOL,
    ),
    "antialiased positions": ("siglip_hf_down", (posemb, 'ic": bicubic', 'ic": antialias'), IMAGE),
    "positions with rows for columns": ("siglip_hf_up", (posemb, "Ww,hwd->", "Ww,whd->"), IMAGE),
    "the first pixels left out, not the last": (
        "siglip_hf_rest",
        (siglip, "image[:, :height, :width]", "image[:, -height:, -width:]"),
        IMAGE,
    ),
    "embeddings of any length": (
        "siglip_hf",
        (norm, "return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))", "return x"),
        "image",
    ),
    "the scale for its logarithm": (
        "siglip_hf",
        (siglip, "jnp.exp(self.log_scale.astype(jnp.float32))", "self.log_scale"),
        "pairs",
    ),
    "no bias of the pairs": ("siglip_hf", (siglip, "sum(axis=-1) + bias", "sum(axis=-1)"), "pairs"),
    "no bias of all pairs": (
        "siglip_hf",
        (siglip, 'precision="highest") + bias', 'precision="highest")'),
        "logits",
    ),
    "texts for pictures": ("siglip_hf", (siglip, '"id,td->it"', '"id,td->ti"'), "logits"),
    "scale and bias swapped": (
        "siglip_hf",
        (
            table,
            'logit_scale", "params/log_scale", SCALAR),\n        Row("logit_bias"',
            'logit_bias", "params/log_scale", SCALAR),\n        Row("logit_scale"',
        ),
        "pairs",
    ),
    "k and v swapped in open_clip's pool": (
        "siglip_open_clip",
        (table, '"{theirs}.kv.", f"{ours}/attn", "kv")', '"{theirs}.kv.", f"{ours}/attn", "vk")'),
        POOL,
    ),
    "q and k swapped in open_clip's text": (
        "siglip_open_clip",
        (table, '"attn.in_proj_", "qkv"', '"attn.in_proj_", "kqv"'),
        TEXT,
    ),
    "aliased positions": ("siglip_open_clip", (posemb, 'as": antialias', 'as": bicubic'), IMAGE),
    "heads minor in JAX's layout": (
        "siglip_big_vision",
        (vit_table, 'layout("d h c", "d (h c)"', 'layout("d h c", "d (c h)"'),
        IMAGE,
    ),
    "the layers of a scan in another order": (
        "siglip_big_vision_scan",
        (table, "for i in range(depth)), stacked", "for i in range(depth)[::-1]), stacked"),
        IMAGE,
    ),
    "the heads of the other tower": (
        "siglip_big_vision",
        (table, "config.text_depth, config.text_heads)", "config.text_depth, config.heads)"),
        "",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_sees(name, monkeypatch):
    case, fault, where = FAULTS[name]
    plant(monkeypatch, fault, siglip, table, convert)
    with jax.disable_jit():
        assert_seen(CASES[case], where)


def test_the_comparison_of_a_training_step_sees_a_probe_without_gradient(monkeypatch):
    probe = 'self.param("probe", init, (1, width))'
    fault = (siglip, f"{probe}[None]", f"jax.lax.stop_gradient({probe})[None]")
    plant(monkeypatch, fault, siglip)
    with pytest.raises(
        AssertionError, match=r"differs from the reference:\nvision_model.head.probe"
    ):
        check_case(TRAINING)


# What the model promises.


@pytest.fixture(scope="module")
def tiny():
    """(model, variables, inputs of 4, what it returns and the logits of all pairs)."""
    model = siglip.SigLIP(siglip.TINY)
    variables = jax.tree.map(lambda x: 0.3 * x, random_variables(model))
    rng = np.random.default_rng(0)
    inputs = {
        "image": rng.normal(size=(4, 32, 32, 3)).astype(np.float32),
        "tokens": rng.integers(0, 61, (4, 8), np.int32),
    }
    return model, variables, inputs, jax.jit(pairs_of(model))(variables, inputs)


def pairs_of(model):
    def run(variables, inputs):
        image, text, pairs = model.apply(variables, **inputs)
        temperature = model.apply(variables, method="temperature")
        every = model.apply(variables, image, text, method="similarity")
        return image, text, pairs, every, temperature

    return run


def test_logits_are_those_of_the_pairs_among_all(tiny):
    _, variables, _, (image, text, pairs, every, (scale, bias)) = tiny
    np.testing.assert_allclose(pairs, every.diagonal(), rtol=1e-5)
    params = variables["params"]
    np.testing.assert_allclose((scale, bias), (np.exp(params["log_scale"]), params["bias"]), 1e-6)
    np.testing.assert_allclose(every, scale * np.asarray(image) @ np.asarray(text).T + bias, 1e-5)


def test_all_pairs_are_multiplied_in_full_precision(tiny):
    """An accelerator rounds the factors to fewer bits unless it is told not to."""
    model, variables, _, (image, text, *_) = tiny
    with jax.default_matmul_precision("default"):
        pairs = jax.make_jaxpr(partial(model.apply, method="similarity"))(variables, image, text)
    assert "HIGHEST" in str(pairs)


def test_an_embedding_of_zeros_has_finite_gradients():
    gradient = jax.grad(lambda x: siglip.unit(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all() and not np.asarray(siglip.unit(jnp.zeros((2, 3)))).any()


def test_embeddings_are_float32_and_of_length_1_in_bfloat16_too(tiny):
    model, variables, inputs, (image, text, *_) = tiny
    keep = [f"params/{pattern}" for pattern in siglip.KEEP_FLOAT32]
    half = jax.eval_shape(partial(tree.cast, dtype=jnp.bfloat16, keep=keep), variables)
    pictures = {**inputs, "image": inputs["image"].astype(jnp.bfloat16)}
    returned = jax.tree.leaves(jax.eval_shape(pairs_of(model), half, pictures))
    assert {str(x.dtype) for x in returned} == {"float32"}
    for x in (image, text):
        assert x.shape == (4, 32)
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)


def test_every_token_of_a_text_matters_wherever_it_stands(tiny):
    """Its padding too."""
    model, variables, inputs, _ = tiny
    text = inputs["tokens"][:1]
    others = np.where(np.eye(8, dtype=bool), (text + 1) % 61, text)
    embed = jax.jit(partial(model.apply, method="embed_text"))
    embedded = embed(variables, np.concatenate([text, others]))
    assert (np.abs(embedded[1:] - embedded[:1]).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("n", [7, 9])
def test_a_text_of_another_length_is_refused_with_both_numbers(n, tiny):
    model, variables, *_ = tiny
    with pytest.raises(ValueError, match=rf"shape \(2, {n}\), but this model takes \[b, 8\]"):
        model.apply(variables, np.zeros((2, n), np.int32), method="embed_text")


def test_the_initial_temperature_is_the_papers():
    model = siglip.SigLIP(siglip.TINY)
    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zoo.example(model))

    @jax.jit  # which leaves out the towers
    def temperature(rng):
        params = model.init(rng, **inputs)["params"]
        return {path: params[path] for path in siglip.KEEP_FLOAT32}

    found = temperature(jax.random.key(0))
    assert (found["log_scale"], found["bias"]) == (np.float32(np.log(10)), -10)


def test_what_stays_float32_is_the_temperature_alone(tiny):
    paths = tree.flatten(tiny[1]["params"])
    kept = [path for path in paths if any(re.fullmatch(k, path) for k in siglip.KEEP_FLOAT32)]
    assert sorted(kept) == ["bias", "log_scale"]


def test_patches_are_left_out_in_training_alone(tiny):
    _, variables, inputs, (image, *_) = tiny
    dropping = siglip.SigLIP(replace(siglip.TINY, patch_dropout=0.5))

    @partial(jax.jit, static_argnames="train")
    def embed(rng, *, train):
        embed = partial(dropping.apply, method="embed_image", rngs={"dropout": rng})
        return embed(variables, inputs["image"], train=train)

    first, second = (embed(jax.random.key(i), train=True) for i in range(2))
    assert min(np.abs(first - second).max(), np.abs(first - image).max()) > 1e-3
    np.testing.assert_allclose(embed(jax.random.key(0), train=False), image, atol=1e-6)


def test_only_a_picture_of_the_models_own_size_may_have_a_rest(tiny):
    _, variables, *_ = tiny
    model = siglip.SigLIP(replace(siglip.TINY, image_size=36))
    embed = partial(jax.eval_shape, partial(model.apply, method="embed_image"), variables)
    assert embed(np.zeros((1, 36, 36, 3), np.float32)).shape == (1, 32)
    with pytest.raises(ValueError, match="image 44×44 is not a multiple of patch 8"):
        embed(np.zeros((1, 44, 44, 3), np.float32))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 3}, "width 32 is no multiple of 3 heads"),
        ({"text_heads": 5}, "width 24 is no multiple of 5 heads"),
        ({"image_size": 7}, "image_size 7 is smaller than patch 8"),
        ({"patch_dropout": 1.0}, r"in \[0, 1\), not 1.0"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        registry.check_config("siglip", replace(siglip.TINY, **changes))


# What files say in other ways.


ODD = {"embed": 30, "heads": 3, "mlp": 49, "patch": 4, "image_size": 18, "depth": 1, "context": 5}
HELD = {  # what each format holds beside the sizes
    "hf": [{}, {"gelu": "erf", "epsilon": 1e-3, "in_channels": 1}, ODD],
    "big_vision": [{}, ODD | {"image_size": 16}],
    "big_vision_scan": [{}],
}
HELD_CASES = [(format, changes) for format, cases in HELD.items() for changes in cases]


@pytest.mark.parametrize("format, changes", HELD_CASES, ids=str)
def test_what_a_format_holds_loads_bitwise(format, changes, tmp_path):
    model, variables = saved(siglip, tmp_path, format, **changes)
    loaded_model, loaded = zoo.load(tmp_path)
    kernel = {"positions": "bicubic" if format == "hf" else "linear"}
    assert loaded_model.config == replace(model.config, **kernel)
    assert_same(loaded, variables)


@pytest.mark.parametrize("prefix", ["params/", ""])
@pytest.mark.parametrize("name", ["siglip_big_vision", "siglip_big_vision_scan"])
def test_a_file_of_the_authors_is_known_by_its_names_and_written_again_bitwise(
    name, prefix, tmp_path
):
    case = CASES[name]
    tensors = {name: fill(name, tuple(shape)) for name, shape, _ in case.meta["tensors"]}
    theirs = {prefix + name.removeprefix("params/"): array for name, array in tensors.items()}
    np.savez(tmp_path / "theirs.npz", **theirs)
    model, variables = zoo.load(tmp_path / "theirs.npz")
    assert model.config == case.model().config
    zoo.save(model, variables, tmp_path / "ours", format=case.format)
    with np.load(tmp_path / "ours" / "model.npz") as file:
        assert {name: file[name].tobytes() for name in file} == {
            name: array.tobytes() for name, array in tensors.items()
        }


@pytest.fixture
def trunk(monkeypatch):
    """timm's name of a tiny picture tower."""
    monkeypatch.setitem(siglip.VARIANTS, "siglip_tiny", Variant(siglip.TINY, params=0))
    monkeypatch.setitem(table.TRUNKS, "vit_tiny_siglip", "siglip_tiny")


def test_what_open_clip_holds_loads_bitwise(trunk, tmp_path):
    model, variables = saved(siglip, tmp_path, "open_clip", gelu="erf", text_mlp=49)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == replace(model.config, positions="antialias")
    assert_same(loaded, variables)


def test_what_open_clip_has_no_name_for_is_refused(trunk, tmp_path):
    with pytest.raises(WeightsError, match="timm's name of its size, and none is of this size"):
        saved(siglip, tmp_path, "open_clip", gelu="erf", depth=2)
    with pytest.raises(WeightsError, match="gelu 'tanh', but would load as 'erf'"):
        saved(siglip, tmp_path, "open_clip")


@pytest.mark.parametrize(
    "tower, key, value, message",
    [
        ("vision_cfg", "timm_model_name", "vit_base_patch16_clip_224", "timm_model_name is 'vit_b"),
        ("vision_cfg", "timm_pool", "avg", "timm_pool is 'avg'"),
        ("text_cfg", "pool_type", "argmax", "pool_type is 'argmax'"),
        ("text_cfg", "act_kwargs", {"approximate": "tanh"}, "act_kwargs is {'approximate'"),
        ("text_cfg", "norm_kwargs", None, "eps is 1e-05"),
        ("text_cfg", "layers", 3, "3 layers, but the tensors are of 2"),
    ],
)
def test_an_open_clip_config_that_we_do_not_have_is_refused_by_key(
    tower, key, value, message, trunk, tmp_path
):
    saved(siglip, tmp_path, "open_clip", gelu="erf")
    file = tmp_path / "open_clip_config.json"
    facts = json.loads(file.read_text())
    facts["model_cfg"][tower][key] = value
    file.write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match=message):
        zoo.load(tmp_path)
    file.unlink()
    with pytest.raises(WeightsError, match="need the open_clip_config.json that belongs to them"):
        zoo.load(tmp_path)


REFUSED = {
    "hf": [({"image_size": (16, 32)}, "no pictures of 16×32, only square ones")],
    "big_vision": [
        ({"gelu": "erf"}, "gelu 'erf', but would load as 'tanh'"),
        ({"epsilon": 1e-3}, "epsilon 0.001, but would load as 1e-06"),
        ({"image_size": 36}, r"image_size \(36, 36\), but would load as \(32, 32\)"),
        ({"image_size": (16, 32)}, "8 positions are of no square image"),
    ],
}
REFUSED_CASES = [(format, *case) for format, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize("format, changes, message", REFUSED_CASES)
def test_what_a_format_cannot_hold_is_refused(format, changes, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        saved(siglip, tmp_path / "out", format, **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "tower, key, value, message",
    [
        ("vision_config", "hidden_act", "relu", "hidden_act is 'relu'"),
        ("text_config", "hidden_act", "gelu", "hidden_act is not the same in vision_config and"),
        ("text_config", "layer_norm_eps", 1e-5, "layer_norm_eps is not the same"),
        ("text_config", "attention_dropout", 0.1, "attention_dropout is 0.1"),
        ("vision_config", "vision_use_head", False, "vision_use_head is False"),
        ("vision_config", "patch_size", [8, 4], r"\[8, 4\] are not square"),
        ("text_config", "num_hidden_layers", 3, "3 layers, but the tensors are of 2"),
        ("text_config", "max_position_embeddings", 9, r"~ text_model.*\(8, 24\)"),
    ],
)
def test_a_hugging_face_config_that_we_do_not_have_is_refused_by_key(
    tower, key, value, message, tmp_path
):
    saved(siglip, tmp_path, "hf")
    facts = json.loads((tmp_path / "config.json").read_text())
    edit_facts(tmp_path, **{tower: facts[tower] | {key: value}})
    with pytest.raises(WeightsError, match=message):
        zoo.load(tmp_path)


def test_names_without_a_config_are_refused_since_they_do_not_show_the_heads(tmp_path):
    saved(siglip, tmp_path, "hf")
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="need the config.json that belongs to them"):
        zoo.load(tmp_path)


def test_positions_that_count_are_nothing_to_load(tmp_path):
    _, variables = saved(siglip, tmp_path, "hf")
    ids = {"text_model": np.arange(8)[None], "vision_model": np.arange(16)[None]}
    edit_tensors(tmp_path, {f"{k}.embeddings.position_ids": x for k, x in ids.items()})
    assert_same(zoo.load(tmp_path)[1], variables)


def test_another_context_is_refused(tmp_path):
    saved(siglip, tmp_path, "hf")
    with pytest.raises(WeightsError, match="siglip cannot resize params/text/positions"):
        zoo.load(tmp_path, context=9)


def test_another_image_size_resizes_the_pictures_positions_and_nothing_else(tmp_path):
    saved(siglip, tmp_path, "hf")
    held, before = zoo.load(tmp_path)
    resized, after = zoo.load(tmp_path, image_size=(48, 16))
    assert resized.config == replace(held.config, image_size=(48, 16))
    moved = after["params"]["image"].pop("positions")
    positions = before["params"]["image"].pop("positions")
    expected = posemb.resize_positions(positions, 0, (4, 4), (6, 2), "bicubic")
    np.testing.assert_array_equal(moved, expected)
    assert_same(after, before)


# Published files.


MANIFEST = json.loads((HERE / "siglip_manifests.json").read_text())["transformers"]
SOURCES = {variant: table.TAGS[f"{variant}.webli"].source for variant in siglip.VARIANTS}


def test_what_a_published_config_leaves_out_is_as_in_the_base_model():
    """google/siglip-base-patch16-224 says no size at all."""
    listed = MANIFEST["tensors"][SOURCES["siglip_b16"]]
    tensors = {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, shape, dtype in listed}
    facts = {"architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip"}
    facts |= {f"{x}_config": {"model_type": f"siglip_{x}_model"} for x in ("text", "vision")}
    assert table.hf_config(tensors, facts) == zoo.create("siglip_b16").config


def test_how_pictures_are_prepared_is_exported_and_read_again(trunk, tmp_path, caplog):
    half = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    squash = Preprocess(32, 1.0, "bicubic", **half, mode="squash")
    model = siglip.SigLIP(replace(siglip.TINY, gelu="erf"))
    for format, convention in (("hf", "transformers"), ("open_clip", "timm")):
        for i, known in enumerate((squash, replace(squash, crop=0.9), None)):
            folder, card = tmp_path / f"{format}{i}", Card("siglip", {}, preprocess=known)
            zoo.save(model, random_variables(model), folder, format=format, card=card)
            (folder / "card.json").unlink()
            expected = replace(squash, convention=convention)
            if known is None or (format == "hf" and known != squash):
                expected = None
            assert zoo.card(folder).preprocess == expected
    assert caplog.text.count("no words for crop 0.9 of") == 1


def test_grey_pictures_are_exported_as_grey(tmp_path):
    model = siglip.SigLIP(replace(siglip.TINY, in_channels=1))
    grey = Preprocess(32, 1.0, "bicubic", (0.5,), (0.25,), "squash", "transformers")
    card = Card("siglip", {}, preprocess=grey)
    zoo.save(model, random_variables(model), tmp_path, format="hf", card=card)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (written["do_convert_rgb"], written["image_mean"]) == (False, [0.5])
    (tmp_path / "card.json").unlink()
    assert zoo.card(tmp_path).preprocess == grey


def test_what_open_clip_cannot_resize_by_is_left_out_with_a_warning(trunk, tmp_path, caplog):
    model = siglip.SigLIP(replace(siglip.TINY, gelu="erf"))
    known = Preprocess(32, 1.0, "lanczos", (0.5,) * 3, (0.25,) * 3, "squash")
    card = Card("siglip", {}, preprocess=known)
    zoo.save(model, random_variables(model), tmp_path, format="open_clip", card=card)
    assert "no words for interpolation 'lanczos' of" in caplog.text
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["preprocess_cfg"] == {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "resize_mode": "squash",
    }


@pytest.mark.parametrize("first, second", [("hf", "open_clip"), ("open_clip", "hf")])
def test_an_export_leaves_nothing_of_an_earlier_one(first, second, trunk, tmp_path):
    model = siglip.SigLIP(replace(siglip.TINY, gelu="erf"))
    squash = Preprocess(32, 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3, "squash")
    card = Card("siglip", {}, preprocess=squash)
    for format, folder in ((first, "both"), (second, "both"), (second, "alone")):
        zoo.save(model, random_variables(model), tmp_path / folder, format=format, card=card)
    both, alone = ({x.name for x in (tmp_path / y).iterdir()} for y in ("both", "alone"))
    assert both == alone


def test_counts_are_those_of_the_reference():
    ours = {source: registry.entry(name).params for name, source in SOURCES.items()}
    assert ours == MANIFEST["params"]


@pytest.mark.parametrize("variant", ["siglip_b16", "siglip_so400m14_384"])
def test_a_published_file_is_of_its_variant(variant):
    name = SOURCES[variant]
    listed = MANIFEST["tensors"][name]
    tensors = {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, shape, dtype in listed}
    assert table.hf_config(tensors, MANIFEST["config"][name]) == zoo.create(variant).config
