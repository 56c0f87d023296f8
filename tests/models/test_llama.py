"""Llama, Mistral and Qwen2 against transformers, what a fault would look like, what a cache and a
mask may not change, and what files say."""

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import zoo
from tests.checkpoints import assert_same, edit_facts, edit_tensors, file_shapes, saved
from tests.golden.replay import HERE, Case, assert_seen, check_case, plant
from zoo.layers import attention, mlp, norm, rope
from zoo.models import llama
from zoo.weights import formats
from zoo.weights import llama as table
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

NAMES = ("gqa", "llama3", "yarn", "mistral", "qwen2", "packed")
CASES = {name: Case(f"llama_hf_{name}", llama, "hf") for name in NAMES}
TRAINING = Case("llama_hf_train", llama, "hf")


@pytest.mark.parametrize("name", CASES)
def test_every_block_agrees_with_the_reference(name):
    check_case(CASES[name])


def test_a_training_step_agrees_with_the_reference():
    check_case(TRAINING)


# A fault is one passage of a source changed. With it the claims above must not hold, and the part
# that is wrong first tells where it is: the case, the fault, that part.
B0 = "hidden/block_0"
FAULTS = {
    "neighbours turned instead of halves": (
        "gqa",
        (
            rope,
            "first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)",
            "first, second = (x.astype(jnp.float32)[..., i::2] for i in (0, 1))",
        ),
        B0,
    ),
    "turned the other way": (
        "gqa",
        (
            rope,
            "[first * cos - second * sin, second * cos + first * sin]",
            "[first * cos + second * sin, second * cos - first * sin]",
        ),
        B0,
    ),
    "frequencies of odd exponents": (
        "gqa",
        (rope, "np.arange(0, width, 2,", "np.arange(1, width, 2,"),
        B0,
    ),
    "another base": ("llama3", (llama, "c.channels, c.base,", "c.channels, 10_000.0,"), B0),
    "no scaling": ("llama3", (llama, "c.base, c.scaling,", "c.base, (),"), B0),
    "no band between those of Llama 3": (
        "llama3",
        (rope, "np.clip((turns - low) / (high - low), 0, 1)", "(turns > low)"),
        B0,
    ),
    "YaRN's scores not grown": ("yarn", (rope, "return factor * jnp.cos", "return jnp.cos"), B0),
    "YaRN's ramp turned": ("yarn", (rope, "1 - np.clip(ramp, 0, 1)", "np.clip(ramp, 0, 1)"), B0),
    "documents that see each other": (
        "packed",
        (llama, '{"segments": segments, "rotary"', '{"rotary"'),
        B0,
    ),
    "a window of one more": (
        "mistral",
        (attention, "key > query - window", "key >= query - window"),
        B0,
    ),
    "no window": ("mistral", (llama, "window=c.window", "window=None"), B0),
    "a causal mask that is late by one": (
        "gqa",
        (attention, "key <= query", "key <= query + 1"),
        B0,
    ),
    "queries that share keys by turns": (
        "gqa",
        (attention, '(q, "b n (k g) c -> b n k g c"', '(q, "b n (g k) c -> b n k g c"'),
        B0,
    ),
    "ε outside the root": (
        "gqa",
        (
            norm,
            "jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)",
            "(1 / (jnp.sqrt(jnp.square(y).mean(axis=-1, keepdims=True)) + self.epsilon))",
        ),
        B0,
    ),
    "ε of 1e-5 in the last norm": (
        "gqa",
        (
            llama,
            'return RMSNorm(c.epsilon, name="norm")(x)\n\n    @',
            'return RMSNorm(1e-5, name="norm")(x)\n\n    @',
        ),
        "hidden/norm",
    ),
    "GELU for SiLU": ("gqa", (mlp, "nn.silu(gate)", "gelu(gate)"), B0),
    "gate and up swapped": (
        "gqa",
        (table, '"gate_proj": "gate", "up_proj": "up"', '"gate_proj": "up", "up_proj": "gate"'),
        B0,
    ),
    "k and v swapped": (
        "qwen2",
        (table, '"k_proj": "k", "v_proj": "v"', '"k_proj": "v", "v_proj": "k"'),
        B0,
    ),
    "q and k swapped": (
        "gqa",
        (table, '"q_proj": "q", "k_proj": "k"', '"q_proj": "k", "k_proj": "q"'),
        "",
    ),
    "the norms of a block swapped": (
        "gqa",
        (
            table,
            'post_attention_layernorm", f"{ours}/norm2"))',
            'post_attention_layernorm", f"{ours}/norm2"))\n'
            "        rows[-6:] = [r._replace(ours=r.ours.replace('norm2', 'norm1')) "
            "if 'norm2' in r.ours else r._replace(ours=r.ours.replace('norm1', 'norm2')) "
            "for r in rows[-6:]]",
        ),
        B0,
    ),
    "a square kernel not transposed": (
        "gqa",
        (
            table,
            '/attn/out", bias=False)\n',
            '/attn/out", bias=False)\n        rows[-1] = Row(*rows[-1][:2])\n',
        ),
        B0,
    ),
    "no biases of q, k and v": ("qwen2", (llama, "bias=c.qkv_bias", "bias=False"), ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_sees(name, monkeypatch):
    case, fault, where = FAULTS[name]
    plant(monkeypatch, fault, llama, table, attention)
    assert_seen(CASES[case], where)


TRAINING_FAULTS = {
    "no gradient through the values": (
        attention,
        "attend(q, k, v, causal=causal,",
        "attend(q, k, jax.lax.stop_gradient(v), causal=causal,",
    ),
    "no gradient of the head to the embeddings": (
        llama,
        "hidden, self.embed.embedding)",
        "hidden, jax.lax.stop_gradient(self.embed.embedding))",
    ),
}


@pytest.mark.parametrize("name", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(name, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[name], llama, attention)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(TRAINING)


# Rotary frequencies.


ROTARY = dict(np.load(HERE / "llama_rope.npz"))
SCALED = json.loads(str(ROTARY["meta"]))["cases"]
DEFAULT_YARN = (0.1 * np.log(4.0) + 1, 32, 1)  # attention, fast, slow; the file leaves them out


@pytest.mark.parametrize("name", SCALED)
def test_frequencies_are_those_of_the_reference(name):
    case = SCALED[name]
    scaling = tuple(x for x in case["scaling"] if x is not None)
    scaling += DEFAULT_YARN if name == "yarn" else ()
    found, factor = rope.scaled(case["width"], case["base"], scaling, case["length"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ROTARY[f"{name}/frequencies"], rtol=5e-7)
    np.testing.assert_allclose(factor, ROTARY[f"{name}/factor"], rtol=1e-6)


def test_a_rotation_turns_pairs_by_their_angles():
    """Against complex numbers, and so that scores depend on distances alone."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 3, 2, 8)).astype(np.float32)
    speeds = rope.frequencies(8, 100.0)
    scores = []
    for start in (0, 5):
        positions = start + np.arange(3)[None]
        turned = rope.rotate(jnp.asarray(q), *rope.angles(jnp.asarray(positions), speeds))
        spun = (q[..., :4] + 1j * q[..., 4:]) * np.exp(1j * positions[0, :, None, None] * speeds)
        expected = np.concatenate([spun.real, spun.imag], axis=-1)
        np.testing.assert_allclose(turned, expected, atol=1e-5)
        keys = rope.rotate(jnp.asarray(k), *rope.angles(jnp.asarray(positions), speeds))
        scores.append(np.einsum("bnhc,bmhc->bhnm", turned, keys))
    np.testing.assert_allclose(*scores, atol=1e-5)


WRONG = {
    "a rotary scaling begins with one of linear, .* not with 'longrope'": ("longrope", 2.0),
    "'linear' takes positive numbers, factor; not": ("linear", 2.0, 3.0),
    "'llama3' takes positive numbers, factor, original, low, high; not": ("llama3", 8.0, 8192, 1.0),
    "'dynamic' takes positive numbers": ("dynamic", -1.0, 2048),
    "'llama3' goes from low to high turns": ("llama3", 8.0, 8192, 4.0, 4.0),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_scaling_that_is_none_is_answered_with_what_it_takes(message):
    with pytest.raises(ValueError, match=message):
        zoo.create("llama3_2_1b", scaling=WRONG[message])


# Caches and masks.


@cache
def built(name):
    """A case's model with the weights of its file, a text, and what the model says of it."""
    case = CASES[name]
    model = case.model()
    variables, tokens = case.variables(model), case.inputs["tokens"]
    return SimpleNamespace(
        model=model,
        variables=variables,
        tokens=tokens,
        logits=np.asarray(jax.jit(model.apply)(variables, tokens)),
    )


LENGTHS = np.array([7, 3])  # of the prompts; the rest of each row comes token by token


def decoded(name, dtype):
    """(row, position, logits) of every real token, from a cache that held other things before."""
    of = built(name)
    room = of.tokens.shape[1]
    step = jax.jit(of.model.apply, donate_argnames="cache")
    cache = llama.empty_cache(of.model.config, len(LENGTHS), room, dtype)
    assert {str(x.dtype) for x in jax.tree.leaves(cache["block_0"])} == {jnp.dtype(dtype).name}
    cache = {key: x if key == "length" else jax.tree.map(dirty, x) for key, x in cache.items()}
    longest = LENGTHS.max()
    padded = jnp.where(np.arange(longest) < LENGTHS[:, None], of.tokens[:, :longest], 1)
    prompts = {"cache": cache, "lengths": jnp.asarray(LENGTHS, jnp.int32)}
    logits, cache = step(of.variables, padded, **prompts)
    yield from ((b, i, logits[b, i]) for b in range(2) for i in range(LENGTHS[b]))
    for _ in range(room - longest):
        at = np.array(cache["length"])
        logits, cache = step(of.variables, of.tokens[np.arange(2), at][:, None], cache=cache)
        np.testing.assert_array_equal(cache["length"], at + 1)
        yield from ((b, at[b], logits[b, 0]) for b in range(2))


def dirty(x):
    return jnp.full_like(x, 1e4)


# A cache in bfloat16 rounds keys and values by up to 2⁻⁹.
@pytest.mark.parametrize(
    "name, dtype, bound",
    [
        *((name, jnp.float32, 1e-4) for name in ("gqa", "llama3", "mistral")),
        ("mistral", jnp.bfloat16, 2e-2),
    ],
)
def test_cached_decoding_of_ragged_prompts_is_the_uncached_forward(name, dtype, bound):
    expected, seen = built(name).logits, 0
    for b, i, logits in decoded(name, dtype):
        difference = np.abs(np.asarray(logits) - expected[b, i]).max()
        assert difference <= bound * np.abs(expected[b, i]).max(), (b, i)
        seen += 1
    assert seen == LENGTHS.sum() + 2 * (12 - LENGTHS.max())


DECODING_FAULTS = {
    "a window that forgets where the text is": (
        "mistral",
        (attention, "window=window, start=start)", "window=window, start=0 * start)"),
    ),
    "a key at the next row": ("gqa", (attention, "at[rows, start]", "at[rows, start + 1]")),
    "all rows at one position": (
        "gqa",
        (llama, "default = start[:, None] if", "default = start[:1, None] if"),
    ),
    "the length of the padding": ("gqa", (llama, "if lengths is None else", "if True else")),
}


@pytest.mark.parametrize("name", DECODING_FAULTS)
def test_the_comparison_of_decoding_sees(name, monkeypatch):
    case, fault = DECODING_FAULTS[name]
    built(case)
    plant(monkeypatch, fault, llama, attention)
    of = SimpleNamespace(**vars(built(case)))
    of.model = llama.Llama(of.model.config)
    monkeypatch.setitem(globals(), "built", lambda name: of)
    with pytest.raises(AssertionError):
        test_cached_decoding_of_ragged_prompts_is_the_uncached_forward(case, jnp.float32, 1e-4)


@cache
def influence(window=None):
    """A function of segments: [n, n], the norm of the derivative of the logits at i by the
    embedding at j. The tokens are all different, so that each has a row of the table for itself."""
    model, tokens = llama.Llama(replace(llama.TINY, window=window)), jnp.arange(12)[None]
    variables = zoo.init(model, jax.random.key(0))
    weights = np.random.default_rng(0).normal(size=llama.TINY.vocab)

    def scores(embedding, segments):
        params = {**variables["params"], "embed": {"embedding": embedding}}
        return model.apply({"params": params}, tokens, segments=segments)[0] @ weights

    table, derive = variables["params"]["embed"]["embedding"], jax.jit(jax.jacrev(scores))
    return lambda segments: np.linalg.norm(derive(table, segments[None])[:, :12], axis=-1)


ONE = np.ones(12, np.int32)


def test_no_logit_depends_on_what_comes_later():
    np.testing.assert_array_equal(influence()(ONE) > 0, np.tri(12, dtype=bool))


def test_packed_documents_do_not_see_each_other():
    segments = np.repeat([1, 2, 3], [5, 1, 6])
    own = segments[:, None] == segments
    np.testing.assert_array_equal(influence()(segments) > 0, np.tri(12, dtype=bool) & own)


def test_two_layers_of_a_window_see_twice_as_far_and_no_further():
    distance = np.arange(12)[:, None] - np.arange(12)
    near = (0 <= distance) & (distance <= 2 * (3 - 1))
    np.testing.assert_array_equal(influence(window=3)(ONE) > 0, near)


def test_positions_are_those_that_are_given():
    """Twice as far apart is as at twice the frequencies."""
    of, places = built("gqa"), np.arange(12)[None]
    halved = jax.jit(llama.Llama(replace(of.model.config, scaling=("linear", 2.0))).apply)
    found = halved(of.variables, of.tokens, positions=2 * places)
    np.testing.assert_allclose(found, of.logits, atol=1e-4)
    assert np.abs(halved(of.variables, of.tokens, positions=places) - of.logits).max() > 0.1


def test_a_cache_of_scanned_layers_and_a_text_beyond_the_context_are_refused():
    cache = llama.empty_cache(llama.TINY, 1, 4)
    scanned = llama.Llama(replace(llama.TINY, layers="scan"))
    with pytest.raises(ValueError, match='a cache needs layers="loop"'):
        scanned.apply({}, jnp.zeros((1, 4), jnp.int32), cache=cache)
    with pytest.raises(ValueError, match="17 tokens are more than the context of 16"):
        llama.Llama(llama.TINY).init(jax.random.key(0), jnp.zeros((1, 17), jnp.int32))


SIZES = {
    "width 30 is no multiple of 4 heads": {"width": 30},
    "4 heads of queries cannot share 3 of keys": {"kv_heads": 3},
    "heads of 7 channels are not pairs": {"head_width": 7},
    "a window of 0 keys": {"window": 0},
    "heads of 0 channels are not pairs": {"head_width": 0},
    "'dynamic' needs heads of more than 2": {"head_width": 2, "scaling": ("dynamic", 2.0, 16)},
}


@pytest.mark.parametrize("message", SIZES)
def test_sizes_that_do_not_fit_together_are_refused(message):
    with pytest.raises(ValueError, match=message):
        replace(llama.TINY, **SIZES[message]).check()


# What files say in other ways.


LLAMA3 = {"scaling": ("llama3", 8.0, 8192, 1.0, 4.0), "base": 5e5}
HELD = [
    {},
    {"tied": True, "kv_heads": 4, "epsilon": 1e-6},
    LLAMA3 | {"head_width": 6},
    {"scaling": ("linear", 4.0)},
    {"scaling": ("dynamic", 2.0, 16)},
    {"scaling": ("yarn", 4.0, 32768, 1.25, 32, 1)},
    {"window": 4, "tied": True},
    {"qkv_bias": True, "tied": True},
    {"qkv_bias": True, "window": 4},
]
KINDS = [*["llama"] * 6, "mistral", "qwen2", "qwen2"]


@pytest.mark.parametrize("format", ["hf", "flax"])
@pytest.mark.parametrize("changes", HELD, ids=str)
def test_what_a_format_holds_loads_bitwise(format, changes, tmp_path):
    model, variables = saved(llama, tmp_path, format, **changes)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == model.config
    assert_same(loaded, variables)
    if format == "hf":
        kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
        assert kind == KINDS[HELD.index(changes)]


def test_a_dynamic_scaling_from_another_length_than_the_context_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"would load as \('dynamic', 2.0, 16\)"):
        saved(llama, tmp_path, "hf", scaling=("dynamic", 2.0, 8))


@pytest.mark.parametrize("changes", [LLAMA3, {}], ids=str)
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_old_and_new_forms_of_config_json_are_one(kind, changes, tmp_path):
    model, _ = saved(llama, tmp_path, "hf", **changes)
    facts = json.loads((tmp_path / "config.json").read_text())
    scaling = facts["rope_scaling"] or {"rope_type": "default"}
    scaling = {kind if key == "rope_type" else key: x for key, x in scaling.items()}
    edit_facts(tmp_path, rope_scaling=scaling)
    assert zoo.load(tmp_path)[0].config == model.config
    new = {**scaling, "rope_theta": facts["rope_theta"]}
    edit_facts(tmp_path, rope_theta=None, rope_scaling=None, rope_parameters=new)
    assert zoo.load(tmp_path)[0].config == model.config


@pytest.mark.parametrize(
    "stated, expected",
    [
        ({"factor": 4.0}, 0.1 * np.log(4.0) + 1),
        ({"factor": 0.5}, 1.0),
        ({"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5}, 1.1386294 / 1.0693147),
        ({"factor": 4.0, "attention_factor": 1.5}, 1.5),
    ],
)
def test_what_yarn_leaves_out_is_as_its_paper_has_it(stated, expected, tmp_path):
    saved(llama, tmp_path, "hf")
    edit_facts(tmp_path, rope_scaling={"type": "yarn", **stated})
    kind, factor, original, attention, fast, slow = zoo.load(tmp_path)[0].config.scaling
    assert (kind, factor, original, fast, slow) == ("yarn", stated["factor"], 16, 32, 1)
    assert attention == pytest.approx(expected)


@pytest.mark.parametrize(
    "kind, inside, beside, expected",
    [
        ("yarn", None, 8, 8),
        ("yarn", 4, None, 4),
        ("yarn", 4, 8, 8),
        ("dynamic", 8, None, 16),
        ("dynamic", None, 8, 16),
    ],
)
def test_the_original_length_is_that_of_the_reference(kind, inside, beside, expected, tmp_path):
    """Of transformers 5.23: what stands beside a scaling comes first, and a dynamic one begins at
    the context."""
    saved(llama, tmp_path, "hf")
    stated = {"type": kind, "factor": 2.0, table.ORIGINAL: inside}
    edit_facts(tmp_path, rope_scaling=stated, **{table.ORIGINAL: beside})
    assert zoo.load(tmp_path)[0].config.scaling[:3] == (kind, 2.0, expected)


def test_an_export_states_no_end_of_a_text_that_it_does_not_know(tmp_path):
    """Else the classes of transformers would take the ids 1 and 2."""
    saved(llama, tmp_path, "hf")
    facts = json.loads((tmp_path / "config.json").read_text())
    assert facts["bos_token_id"] is facts["eos_token_id"] is None


def test_keys_that_config_json_may_leave_out(tmp_path):
    model, _ = saved(llama, tmp_path, "hf", kv_heads=4)
    edit_facts(tmp_path, num_key_value_heads=None, head_dim=None, rope_theta=None)
    edit_facts(tmp_path, rms_norm_eps=None, tie_word_embeddings=None, pretraining_tp=2)
    assert zoo.load(tmp_path)[0].config == replace(model.config, epsilon=1e-6)


def qwen2(tmp_path, **changes):
    saved(llama, tmp_path, "hf", qkv_bias=True)
    edit_facts(tmp_path, **changes)
    return zoo.load(tmp_path)[0].config.window


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    "changes, window",
    [
        ({"sliding_window": 5}, None),
        ({"use_sliding_window": True, "sliding_window": 5}, None),
        ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}, 5),
        ({"use_sliding_window": True, "sliding_window": 5, "layer_types": [SLIDING] * 2}, 5),
        ({"use_sliding_window": False, "max_window_layers": 1}, None),
        ({"layer_types": [FULL] * 2}, None),
    ],
)
def test_qwen2_has_its_window_on_all_layers_or_none(changes, window, tmp_path):
    assert qwen2(tmp_path, **changes) == window


@pytest.mark.parametrize("changes", [{"max_window_layers": 1}, {"layer_types": [FULL, SLIDING]}])
def test_a_window_on_some_layers_is_refused_by_key(changes, tmp_path):
    with pytest.raises(WeightsError, match="max_window_layers is .* of 2, or layer_types differ"):
        qwen2(tmp_path, use_sliding_window=True, sliding_window=5, **changes)


REFUSED = {
    "hidden_act": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "partial_rotary_factor": 0.5,
    "model_type": "gemma",
    "head_dim": 0,
    "rope_theta": "x",
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_config_that_we_do_not_have_is_refused_by_key(key, tmp_path):
    saved(llama, tmp_path, "hf")
    edit_facts(tmp_path, **{key: REFUSED[key]})
    with pytest.raises(WeightsError, match=f"{key} (is )?{REFUSED[key]!r}"):
        zoo.load(tmp_path)


SCALINGS = {
    "rope_type is 'longrope', only": {"rope_type": "longrope", "factor": 4.0},
    "truncate is False": {"rope_type": "yarn", "factor": 4.0, "truncate": False},
    "'linear' knows no low_freq_factor": {
        "rope_type": "linear",
        "factor": 4.0,
        "low_freq_factor": 1.0,
    },
    "'llama3' lacks low_freq_factor, high_freq_factor": {"rope_type": "llama3", "factor": 4.0},
    "factor is 'x', not a number": {"rope_type": "yarn", "factor": "x"},
    "'default' knows no full_attention": {"full_attention": {"rope_type": "default"}},
}


@pytest.mark.parametrize("message", SCALINGS)
def test_a_scaling_that_we_do_not_have_is_refused_by_key(message, tmp_path):
    saved(llama, tmp_path, "hf")
    edit_facts(tmp_path, rope_scaling=SCALINGS[message])
    with pytest.raises(WeightsError, match=message):
        zoo.load(tmp_path)


def test_another_number_of_layers_is_refused(tmp_path):
    saved(llama, tmp_path, "hf")
    edit_facts(tmp_path, num_hidden_layers=3)
    with pytest.raises(WeightsError, match="3 layers, but the tensors are of 2"):
        zoo.load(tmp_path)


def test_names_without_a_config_are_refused(tmp_path):
    saved(llama, tmp_path, "hf")
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="need the config.json that belongs to them"):
        zoo.load(tmp_path)


def test_a_bias_of_the_output_is_refused_by_name(tmp_path):
    saved(llama, tmp_path, "hf", qkv_bias=True)
    name = "model.layers.0.self_attn.o_proj.bias"
    edit_tensors(tmp_path, {name: np.zeros(32, np.float32)})
    with pytest.raises(WeightsError, match=rf"\+ {name}: no place"):
        zoo.load(tmp_path)


def test_frequencies_in_old_files_and_a_tied_head_that_is_not_there_do_not_matter(tmp_path):
    _, variables = saved(llama, tmp_path, "hf", tied=True)
    old = {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    edit_tensors(tmp_path, old)
    assert_same(zoo.load(tmp_path)[1], variables)


def test_a_head_that_should_be_tied_and_differs_is_refused(tmp_path):
    saved(llama, tmp_path, "hf", tied=True)
    edit_tensors(tmp_path, {"lm_head.weight": np.zeros((61, 32), np.float32)})
    with pytest.raises(WeightsError, match="lm_head.weight should be one tensor, but differ"):
        zoo.load(tmp_path)


def test_a_base_model_loads_where_its_head_is_tied(tmp_path):
    model, variables = saved(llama, tmp_path, "hf", tied=True)
    tensors = load_file(tmp_path / "model.safetensors")
    edit_tensors(tmp_path, {name: None for name in tensors})
    bare = {n.removeprefix("model."): x for n, x in tensors.items() if n != "lm_head.weight"}
    edit_tensors(tmp_path, bare)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == model.config
    assert_same(loaded, variables)


def test_a_base_model_without_a_head_is_refused_where_none_is_tied(tmp_path):
    saved(llama, tmp_path, "hf")
    edit_tensors(tmp_path, {"lm_head.weight": None})
    with pytest.raises(WeightsError, match="lm_head.weight is missing: .*LlamaForCausalLM"):
        zoo.load(tmp_path)


def test_shards_load_as_one_file(tmp_path):
    _, variables = saved(llama, tmp_path / "one", "hf")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    facts = json.loads((tmp_path / "one" / "config.json").read_text())
    formats.write(tmp_path / "many", tensors, {"config.json": facts}, shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert_same(zoo.load(tmp_path / "many")[1], variables)


# Published files.


MANIFEST = json.loads((HERE / "llama_manifests.json").read_text())["transformers"]
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M": "smollm2_135m",
    "meta-llama/Llama-3.2-1B": "llama3_2_1b",
    "mistralai/Mistral-7B-v0.1": "mistral_7b",
    "Qwen/Qwen2-0.5B": "qwen2_0_5b",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_names_of_a_published_file_are_those_of_its_variant(name):
    listed = MANIFEST["tensors"][name]
    tensors = {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, shape, dtype in listed}
    config = table.hf_config(tensors, MANIFEST["config"][name])
    assert config == zoo.create(PUBLISHED[name]).config
    ours = file_shapes(llama, table.hf(config), config)
    assert ours == {name: spec.shape for name, spec in tensors.items()}
    assert PUBLISHED[name] in {tag.partition(".")[0] for tag in table.TAGS}
