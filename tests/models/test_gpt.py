"""GPT-2 against transformers, what a fault would look like, what a token must not see, and what
files say."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

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
from zoo.layers import attention, mlp
from zoo.models import gpt
from zoo.weights import convert
from zoo.weights import gpt as table
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

FORMATS = {"gpt_hf": "hf", "gpt_hf_erf": "hf", "gpt_flax": "hf_flax"}  # of every golden file
CASES = {name: Case(name, gpt, format) for name, format in FORMATS.items()}
TRAINING = Case("gpt_hf_train", gpt, "hf")


@pytest.mark.parametrize("name", CASES)
def test_every_block_agrees_with_the_reference(name):
    check_case(CASES[name])


def test_a_training_step_agrees_with_the_reference():
    check_case(TRAINING)


# A fault is one passage of a source changed. With it the claims above must not hold, and the part
# that is wrong first tells where it is: the case, the fault, that part.
B0 = "hidden/block_0"
FAULTS = {
    "the causal mask shifted": ("gpt_hf", (attention, "key <= query)", "key <= query + 1)"), B0),
    "no causal mask": ("gpt_hf", (gpt, "causal=True", "causal=False"), B0),
    "erf GELU": ("gpt_hf", (gpt, '"tanh": gelu_tanh', '"tanh": gelu'), B0),
    "tanh GELU": ("gpt_hf_erf", (gpt, '"erf": gelu,', '"erf": gelu_tanh,'), B0),
    "another ε": ("gpt_hf", (gpt, "epsilon=config.epsilon", "epsilon=1e-5"), B0),
    "positions off by one": (
        "gpt_hf",
        (gpt, "default = jnp.arange(n)", "default = 1 + jnp.arange(n)"),
        B0,
    ),
    "no positions": (
        "gpt_hf",
        (gpt, "x + jnp.broadcast_to(rows", "x + 0 * jnp.broadcast_to(rows"),
        B0,
    ),
    "q and k swapped": ("gpt_hf", (table, 'for part in "qkv")', 'for part in "kqv")'), B0),
    "k and v swapped in Flax's tensor": (
        "gpt_flax",
        (table, 'for part in "qkv")', 'for part in "qvk")'),
        B0,
    ),
    "a square kernel transposed": (
        "gpt_hf",
        (table, '/kernel", KERNEL))', '/kernel", DENSE if "out" in leaf else KERNEL))'),
        B0,
    ),
    "a kernel transposed": ("gpt_hf", (table, '/kernel", KERNEL))', '/kernel", DENSE))'), ""),
    "a square kernel not transposed": (
        "gpt_flax",
        (
            table,
            "FLAX.get(row.op, row.op)",
            'SAME if "out/kernel" in row.ours else FLAX.get(row.op, row.op)',
        ),
        B0,
    ),
    "heads minor": (
        "gpt_hf",
        (attention, '(x), "b n (h c) -> b n h c"', '(x), "b n (c h) -> b n h c"'),
        B0,
    ),
    "another scale in the softmax": ("gpt_hf", (attention, "[-1] ** -0.5", "[-1] ** -1.0"), B0),
    "no norm of the attention": (
        "gpt_hf",
        (gpt, 'attn(norm(c, name="norm1")(x)', 'attn(0 * norm(c, name="norm1")(x) + x'),
        B0,
    ),
    "no last norm": (
        "gpt_hf",
        (
            gpt,
            'return norm(c, name="norm")(x)\n\n    @nn.compact\n    def remember',
            'return 0 * norm(c, name="norm")(x) + x\n\n    @nn.compact\n    def remember',
        ),
        "logits",
    ),
    "an untied head": (
        "gpt_hf",
        (
            table,
            'Row(("transformer.wte.weight", "lm_head.weight"), "params/embed/embedding", TIE)',
            'Row("lm_head.weight", "params/embed/embedding")',
        ),
        "",
    ),
    "a bias left out": ("gpt_hf", (mlp, 'name="fc2"', 'use_bias=False, name="fc2"'), ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_sees(name, monkeypatch):
    case, fault, where = FAULTS[name]
    plant(monkeypatch, fault, gpt, table, convert)
    assert_seen(CASES[case], where)


TRAINING_FAULTS = {
    "no gradient to the positions": (
        gpt,
        "table.at[positions]",
        "jax.lax.stop_gradient(table).at[positions]",
    ),
    "no gradient through the keys": (
        attention,
        "y = attend(q, k, v, causal=causal",
        "y = attend(q, jax.lax.stop_gradient(k), v, causal=causal",
    ),
}


@pytest.mark.parametrize("name", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(name, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[name], gpt)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(TRAINING)


# What a token may not see.


@pytest.fixture(scope="module")
def tiny():
    model = zoo.module_class(gpt)(gpt.TINY)
    return model, jax.tree.map(jnp.asarray, random_variables(model))


def influence(model, variables, tokens, **inputs):
    """bool [n, n]: whether the logits of a place, in a row, depend on the embedding of each token,
    in a column. Places have different tokens, so each has a row of the embedding of its own."""
    assert len(set(np.asarray(tokens[0]).tolist())) == tokens.shape[1]

    def logits(rows):
        params = variables["params"]
        table = params["embed"]["embedding"].at[tokens[0]].set(rows)
        # The head is the same table: it is kept, so that only what goes in is looked at.
        hidden = model.apply(
            {"params": {**params, "embed": {"embedding": table}}}, tokens, method="hidden", **inputs
        )
        return hidden[0] @ weights

    weights = np.random.default_rng(0).normal(size=model.config.width).astype(np.float32)
    rows = variables["params"]["embed"]["embedding"][tokens[0]]
    return np.abs(jax.jit(jax.jacrev(logits))(rows)).max(-1) > 0


def test_no_logit_depends_on_a_later_token(tiny):
    tokens = jnp.arange(3, 15)[None]
    seen = influence(*tiny, tokens)
    np.testing.assert_array_equal(seen, np.tril(np.ones((12, 12), bool)))


def test_packed_documents_do_not_see_each_other(tiny):
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    seen = influence(*tiny, jnp.arange(3, 15)[None], segments=segments)
    same = np.asarray(segments[0])[:, None] == np.asarray(segments[0])[None]
    np.testing.assert_array_equal(seen, np.tril(same))


def test_the_gradient_sees_a_token_of_the_future(tiny, monkeypatch):
    plant(monkeypatch, (attention, "key <= query)", "key <= query + 1)"), gpt)
    assert influence(*tiny, jnp.arange(3, 15)[None])[3, 4]


def test_a_packed_row_is_its_documents_one_by_one(tiny):
    model, variables = tiny
    tokens = np.random.default_rng(0).integers(0, 61, (1, 12)).astype(np.int32)
    places = np.concatenate([np.arange(5), np.arange(7)])[None]
    segments = np.array([[1] * 5 + [2] * 7])
    run = jax.jit(lambda *x: model.apply(variables, x[0], segments=x[1], positions=x[2]))
    whole = run(tokens, segments, places)
    one, row = np.ones((1, 12), np.int32), np.arange(12)[None]
    first, second = (run(np.roll(tokens, -start), one, row) for start in (0, 5))
    alone = np.concatenate([first[:, :5], second[:, :7]], axis=1)
    np.testing.assert_allclose(whole, alone, atol=1e-4)
    assert np.abs(run(tokens, one, places) - whole).max() > 0.1


def test_more_tokens_than_the_context_are_refused(tiny):
    model, variables = tiny
    with pytest.raises(ValueError, match="17 tokens are more than the context of 16"):
        model.apply(variables, jnp.zeros((1, 17), jnp.int32))


def test_a_position_beyond_the_table_is_no_number(tiny):
    model, variables = tiny
    tokens = jnp.zeros((1, 2), jnp.int32)
    last, beyond = (
        model.apply(variables, tokens, positions=jnp.array([[14, place]])) for place in (15, 16)
    )
    assert np.isfinite(last).all() and np.isnan(beyond[0, 1]).all()


def test_more_tokens_than_a_cache_has_rows_are_refused(tiny):
    model, variables = tiny
    cache = gpt.empty_cache(model.config, 1, 4)
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache of 4 rows"):
        model.apply(variables, jnp.zeros((1, 5), jnp.int32), cache=cache)


# What files say in other ways.


ODD = {"width": 30, "heads": 3, "depth": 1, "mlp": 49, "vocab": 50, "context": 9}
HELD = {
    "hf": [{}, {"gelu": "erf", "epsilon": 1e-3, "dropout": 0.1}, ODD],
    "hf_flax": [{}, {"gelu": "erf", "dropout": 0.1}, ODD],
}
HELD_CASES = [(format, changes) for format, cases in HELD.items() for changes in cases]


@pytest.mark.parametrize("format, changes", HELD_CASES, ids=str)
def test_what_a_format_holds_loads_bitwise(format, changes, tmp_path):
    model, variables = saved(gpt, tmp_path, format, **changes)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == model.config
    assert_same(loaded, variables)


def test_the_files_of_the_flax_class_load_and_are_written_again(tmp_path):
    case = CASES["gpt_flax"]
    for name in ("flax_model.msgpack", "config.json"):
        (tmp_path / name).write_bytes(case.recorded[f"file/{name}"].tobytes())
    model, variables = zoo.load(tmp_path)
    assert model.config == case.model().config
    zoo.save(model, variables, tmp_path / "ours", format="hf_flax")
    assert_same(zoo.load(tmp_path / "ours")[1], variables)


def test_a_file_of_before_loads_too(tmp_path):
    """As the hub's own: no prefix, no head, and the causal mask as a tensor of each layer."""
    _, variables = saved(gpt, tmp_path, "hf", mlp=128)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors  # the head is the embedding, and written once
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
        tensors[f"h.{i}.attn.masked_bias"] = np.float32([-1e4])
    save_file(tensors, tmp_path / "model.safetensors")
    edit_facts(tmp_path, n_inner=None, n_ctx=None, tie_word_embeddings=None)
    assert_same(zoo.load(tmp_path)[1], variables)


def test_a_head_that_is_not_the_embedding_is_refused(tmp_path):
    saved(gpt, tmp_path, "hf")
    edit_tensors(tmp_path, {"lm_head.weight": np.zeros((61, 32), np.float32)})
    with pytest.raises(WeightsError, match="lm_head.weight should be one tensor, but differ"):
        zoo.load(tmp_path)


@pytest.mark.parametrize("format", FORMATS.values())
def test_a_model_without_biases_is_refused(format, tmp_path):
    with pytest.raises(WeightsError, match="bias False, but would load as True"):
        saved(gpt, tmp_path / "out", format, bias=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key, value",
    [
        ("activation_function", "relu"),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
    ],
)
def test_a_hugging_face_config_that_we_do_not_have_is_refused_by_key(key, value, tmp_path):
    saved(gpt, tmp_path, "hf")
    edit_facts(tmp_path, **{key: value})
    with pytest.raises(WeightsError, match=f"{key} is {value!r}"):
        zoo.load(tmp_path)


def test_another_number_of_layers_is_refused(tmp_path):
    saved(gpt, tmp_path, "hf")
    edit_facts(tmp_path, n_layer=3)
    with pytest.raises(WeightsError, match="3 layers, but the tensors are of 2"):
        zoo.load(tmp_path)


@pytest.mark.parametrize("vocab, end", [(50257, 50256), (61, None), (60000, None)])
def test_an_export_states_the_end_of_a_text_where_it_is_known(vocab, end):
    facts = table.hf_facts(replace(gpt.TINY, vocab=vocab), None)
    assert (facts["bos_token_id"], facts["eos_token_id"]) == (end, end)


def test_names_without_a_config_are_refused(tmp_path):
    saved(gpt, tmp_path, "hf")
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="need the config.json that belongs to them"):
        zoo.load(tmp_path)


def test_a_head_of_another_task_is_refused_by_name(tmp_path):
    saved(gpt, tmp_path, "hf")
    edit_tensors(tmp_path, {"score.weight": np.zeros((5, 32), np.float32)})
    with pytest.raises(WeightsError, match=r"\+ score.weight: no place"):
        zoo.load(tmp_path)


def test_dropouts_that_differ_are_told(tmp_path, caplog):
    saved(gpt, tmp_path, "hf")
    edit_facts(tmp_path, embd_pdrop=0.3, resid_pdrop=0.2)
    model, _ = zoo.load(tmp_path)
    assert model.config.dropout == 0.2
    assert "dropout: 0.2 everywhere, though after the embeddings 0.3" in caplog.text


# Published files.


MANIFEST = json.loads((HERE / "gpt_manifests.json").read_text())["transformers"]
PUBLISHED = {"openai-community/gpt2": "gpt2", "openai-community/gpt2-medium": "gpt2_medium"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_names_of_a_published_file_are_those_of_its_variant(name):
    listed = MANIFEST["tensors"][name]
    tensors = {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, shape, dtype in listed}
    form = table.FORMATS["hf"]
    config = form.config(tensors, MANIFEST["config"][name])
    assert replace(config, dropout=0.0) == zoo.create(PUBLISHED[name]).config
    assert config.dropout == 0.1
    ours = file_shapes(gpt, form.rows(config), config)
    assert ours == {name: spec.shape for name, spec in tensors.items()}
