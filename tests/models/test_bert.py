"""BERT and RoBERTa against transformers, what a fault would look like, what padding and packing may
not do, and what files say."""

import json
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
from tests.golden.replay import HERE, Case, assert_seen, check, check_case, difference, plant
from zoo import registry, tree
from zoo.layers import attention
from zoo.models import bert
from zoo.weights import bert as table
from zoo.weights import convert, formats, store
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

FORMATS = {  # of every golden file
    "bert_hf_base": "hf_base",
    "bert_hf_mlm": "hf",
    "bert_hf_sequence": "hf",
    "bert_hf_tokens": "hf",
    "bert_hf_2018": "hf_2018",
    "roberta_hf_base": "hf_base",
    "roberta_hf_mlm": "hf",
    "roberta_hf_sequence": "hf",
    "roberta_hf_tokens": "hf",
    "bert_flax": "hf_flax",
    "bert_flax_mlm": "hf_flax",
    "bert_flax_sequence": "hf_flax",
}
CASES = {name: Case(name, bert, format) for name, format in FORMATS.items()}
TRAINING = {name: Case(name, bert, "hf") for name in ("bert_hf_train", "roberta_hf_train")}


@pytest.mark.parametrize("name", CASES)
def test_every_block_agrees_with_the_reference(name):
    check_case(CASES[name])


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_agrees_with_the_reference(name):
    check_case(TRAINING[name])


# A fault is one passage of a source changed. With it the claims above must not hold, and the part
# that is wrong first tells where it is: the case, the fault, that part.
E, B0 = "hidden/embed_norm", "hidden/block_0"
FAULTS = {
    "q and k swapped": (
        "bert_hf_base",
        (table, "self.{name}", "self.{dict(query='key', key='query').get(name, name)}"),
        B0,
    ),
    "a square kernel not transposed": (
        "bert_hf_mlm",
        (table, '/attn/out")\n', '/attn/out")\n        rows[-2] = rows[-2]._replace(op=SAME)\n'),
        B0,
    ),
    "no kernel transposed": (
        "bert_hf_base",
        (convert, 'DENSE = layout("o i", "i o")', "DENSE = SAME"),
        "",
    ),
    "tanh GELU": ("roberta_hf_mlm", (bert, '"erf": gelu,', '"erf": gelu_tanh,'), B0),
    "no GELU before the guesses": (
        "bert_hf_mlm",
        (bert, "y = GELUS[c.gelu](dense(", "y = (dense("),
        "logits",
    ),
    "norms first": (
        "bert_hf_tokens",
        (
            bert,
            'x = norm(c, name="norm1")(x + drop(name="drop1")(y))',
            'x = x + norm(c, name="norm1")(y)',
        ),
        B0,
    ),
    "ε of 1e-12": ("bert_hf_base", (bert, "(epsilon=config.epsilon", "(epsilon=1e-12"), E),
    "no norm of the embeddings": (
        "bert_hf_base",
        (bert, 'x = norm(c, name="embed_norm")(self', "x = (self"),
        "",
    ),
    "types ignored": (
        "bert_hf_sequence",
        (bert, "types = jnp.zeros_like(tokens) if types is None else types", "types = 0 * tokens"),
        E,
    ),
    "the mask ignored": ("bert_hf_base", (bert, '"lengths": lengths', '"lengths": None'), B0),
    "no offset of RoBERTa's positions": (
        "roberta_hf_mlm",
        (bert, "positions + c.position_offset", "positions"),
        E,
    ),
    "no pooler": ("bert_hf_base", (bert, "if c.pooler else x[:, 0]", "if False else x[:, 0]"), ""),
    "a pooler without tanh": (
        "bert_hf_base",
        (bert, "pooled = jnp.tanh(", "pooled = ("),
        "representation",
    ),
    "a decoder of its own": (
        "bert_hf_mlm",
        (bert, "self.embed.attend(", 'dense(c.vocab, use_bias=False, name="decoder")('),
        "",
    ),
    "no bias of the decoder": (
        "roberta_hf_mlm",
        (bert, "bias.astype(logits.dtype)", "0 * bias.astype(logits.dtype)"),
        "logits",
    ),
    "gamma and beta swapped": (
        "bert_hf_2018",
        (table, '("gamma", "beta")', '("beta", "gamma")'),
        E,
    ),
    "RoBERTa's classifier with layers swapped": (
        "roberta_hf_sequence",
        (table, '"classifier.dense" if own', '"classifier.out_proj" if own'),
        "",
    ),
    "Flax's kernels transposed": ("bert_flax", (table, "(DENSE, TIE)", "(TIE,)"), ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_sees(name, monkeypatch):
    case, fault, where = FAULTS[name]
    plant(monkeypatch, fault, bert, table, convert, attention)
    assert_seen(CASES[case], where)


TRAINING_FAULTS = {
    "no gradient to the positions": (
        bert,
        "jnp.take(table, ",
        "jnp.take(jax.lax.stop_gradient(table), ",
    ),
    "no gradient to the embeddings from the head": (
        bert,
        "self.embed.attend(norm(",
        "(lambda x: x @ jax.lax.stop_gradient(self.embed.embedding).T)(norm(",
    ),
}


@pytest.mark.parametrize("name", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(name, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[name], bert)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(TRAINING["bert_hf_train"])


# The page.


def tiny(**changes):
    """A tiny model of one block that has no classes unless asked, with random variables."""
    changes = {"head": "none", "num_classes": 0, "depth": 1} | changes
    model = bert.BERT(replace(bert.TINY, **changes))
    return model, jax.tree.map(lambda x: np.float32(0.3) * x, random_variables(model))


TEXTS = np.random.default_rng(0).integers(bert.TINY.vocab, size=(2, 10), dtype=np.int32)


def compiled(model, variables, **options):
    return np.asarray(jax.jit(partial(model.apply, **options))(variables, TEXTS))


def test_padding_has_no_influence_on_real_tokens():
    """By gradient: of all that real tokens become, with respect to each token's embedding."""
    model, variables = tiny(vocab=20)
    tokens, lengths = jnp.arange(20).reshape(2, 10), jnp.array([6, 10])
    real = jnp.arange(10)[None] < lengths[:, None]

    def total(table):
        changed = {"params": {**variables["params"], "embed": {"embedding": table}}}
        hidden = model.apply(changed, tokens, lengths=lengths, method="hidden")
        return jnp.where(real[:, :, None], hidden**2, 0).sum()

    slopes = jax.jit(jax.grad(total))(variables["params"]["embed"]["embedding"])
    reached = jnp.abs(slopes).max(axis=1).reshape(2, 10) > 0
    np.testing.assert_array_equal(reached, real)


def test_packed_texts_are_as_if_each_were_alone():
    model, variables = tiny(head="tokens", num_classes=3)
    apply = jax.jit(partial(model.apply, variables))
    packed = apply(
        TEXTS[:1],
        segments=jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2]]),
        positions=jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]),
        types=jnp.array([[0, 0, 1, 1, 0, 0, 0, 1, 1, 1]]),
    )
    first = apply(TEXTS[:1, :4], types=jnp.array([[0, 0, 1, 1]]))
    second = apply(TEXTS[:1, 4:], types=jnp.array([[0, 0, 0, 1, 1, 1]]))
    np.testing.assert_allclose(packed[:, :4], first, atol=1e-5)
    np.testing.assert_allclose(packed[:, 4:], second, atol=1e-5)
    crossing = apply(TEXTS[:1])
    assert np.abs(crossing[:, :4] - first).max() > 1e-2


def test_the_methods_are_the_parts_of_the_call():
    model, variables = tiny(head="mlm")
    hidden = compiled(model, variables, method="hidden")
    assert hidden.shape == (2, 10, bert.TINY.width)
    chosen = jax.jit(partial(model.apply, method="logits"))(variables, hidden[:, 3])
    np.testing.assert_allclose(chosen, compiled(model, variables)[:, 3], atol=1e-5)


def test_what_a_model_without_classes_returns():
    model, variables = tiny()
    first = compiled(model, variables, method="hidden")[:, 0]
    pooler = variables["params"]["pooler"]
    pooled = np.tanh(first @ pooler["kernel"] + pooler["bias"][None])
    np.testing.assert_allclose(compiled(model, variables), pooled, atol=1e-5)
    bare, variables = tiny(pooler=False)
    first = compiled(bare, variables, method="hidden")[:, 0]
    np.testing.assert_allclose(compiled(bare, variables), first, atol=1e-5)


def test_dropout_is_drawn_in_training_alone_and_at_every_place_of_the_paper():
    model, variables = tiny(head="sequence", num_classes=3, dropout=0.5)

    def step(key, train=True):
        options = {"rngs": {"dropout": key}, "capture_intermediates": True}
        logits, seen = model.apply(variables, TEXTS, train=train, **options)
        return logits, tree.flatten(seen["intermediates"])

    places = ("drop", "block_0/drop1", "block_0/drop2", "head_drop")
    run = jax.jit(step, static_argnames="train")
    (first, seen), (again, _), (other, _) = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    for place in places:
        assert 0.25 < (seen[f"{place}/__call__/0"] == 0).mean() < 0.75, place
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    _, seen = run(jax.random.key(0), train=False)
    assert all((seen[f"{place}/__call__/0"] != 0).all() for place in places)


def test_a_text_longer_than_the_context_is_refused_with_both_numbers():
    model, variables = tiny(context=9)
    with pytest.raises(ValueError, match="10 tokens are more than the context of 9"):
        model.apply(variables, TEXTS)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 5}, "width 32 is no multiple of 5 heads"),
        ({"dropout": 1.0}, r"in \[0, 1\), not 1.0"),
        ({"head": "mlm"}, 'num_classes=3, but head="mlm" has no classes'),
        ({"pooler": False}, 'head="sequence" reads the pooler'),
        ({"head": "words"}, "is one of 'none', 'mlm', 'sequence', 'tokens'"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        registry.check_config("bert", replace(bert.TINY, **changes))


# What files say.


BARE = {"head": "none", "num_classes": 0}
MLM = {"head": "mlm", "num_classes": 0}
TAGGER = {"head": "tokens", "pooler": False}
ROBERTA = {"position_offset": 2, "types": 1, "epsilon": 1e-5}
ODD = {"width": 30, "heads": 3, "depth": 1, "mlp": 49, "context": 7, "vocab": 13, "types": 3}
HELD = {  # what each format holds beside the sizes
    "hf": [
        {},
        BARE,
        MLM | {"gelu": "tanh", "epsilon": 1e-3, "dropout": 0.1},
        MLM | {"pooler": False},
        TAGGER,
        {"head": "tokens"},
        ROBERTA,
        ROBERTA | BARE,
        ROBERTA | MLM,
        ROBERTA | TAGGER,
        ODD,
    ],
    "hf_base": [BARE, ROBERTA | BARE | {"pooler": False}],
    "hf_2018": [{}, BARE, MLM],
    "hf_flax": [{}, BARE, MLM | {"pooler": False}, TAGGER, ODD],
}
HELD_CASES = [(format, changes) for format, cases in HELD.items() for changes in cases]


@pytest.mark.parametrize("format, changes", HELD_CASES, ids=str)
def test_what_a_format_holds_loads_bitwise(format, changes, tmp_path):
    model, variables = saved(bert, tmp_path, format, **changes)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == model.config
    assert_same(loaded, variables)


REFUSED = {
    "hf": [
        ({"num_classes": 0}, 'head="sequence" without classes'),
        (ROBERTA | MLM | {"gelu": "tanh"}, "hidden_act is 'gelu_new', only 'gelu'"),
    ],
    "hf_base": [({}, "only a model without a head is saved alone")],
    "hf_2018": [(ROBERTA, "these names are of BERT alone")],
    "hf_flax": [(ROBERTA, "these names are of BERT alone")],
}
REFUSED_CASES = [(format, *case) for format, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize("format, changes, message", REFUSED_CASES)
def test_what_a_format_cannot_hold_is_refused(format, changes, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        saved(bert, tmp_path / "out", format, **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("tie_word_embeddings", False),
    ],
)
def test_a_config_that_we_do_not_have_is_refused_by_key(key, value, tmp_path):
    saved(bert, tmp_path, "hf")
    edit_facts(tmp_path, **{key: value})
    with pytest.raises(WeightsError, match=f"{key} is {value!r}"):
        zoo.load(tmp_path)


def test_a_null_of_config_json_is_refused_by_key_or_is_as_if_it_were_not_there(tmp_path):
    saved(bert, tmp_path, "hf", types=1, position_offset=2, head="none", num_classes=0)
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**facts, "id2label": None}))
    zoo.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**facts, "pad_token_id": None}))
    with pytest.raises(WeightsError, match="pad_token_id is None, not a number"):
        zoo.load(tmp_path)


def test_a_config_of_other_tensors_is_refused(tmp_path):
    saved(bert, tmp_path, "hf")
    edit_facts(tmp_path, num_hidden_layers=5)
    with pytest.raises(WeightsError, match="5 layers, but the tensors are of 2"):
        zoo.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="need the config.json that belongs to them"):
        zoo.load(tmp_path)


def test_a_file_of_pre_training_loads_without_the_head_for_the_next_sentence(tmp_path, caplog):
    """As bert-base-uncased is: names of 2018, both heads, buffers, copies of what is tied."""
    model, variables = saved(bert, tmp_path, "hf_2018", **MLM)
    extra = {
        "cls.seq_relationship.weight": np.ones((2, 32), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
        "bert.embeddings.position_ids": np.arange(16)[None],
    }
    edit_tensors(tmp_path, extra)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model.config == model.config and model.config.pooler
    assert_same(loaded, variables)
    assert "cls.seq_relationship: left out" in caplog.text


COPIES = {
    "bert": ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", {}),
    "roberta": ("lm_head.decoder.weight", "lm_head.decoder.bias", ROBERTA),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_decoder_is_a_copy_that_a_file_need_not_have(kind, tmp_path):
    *copies, changes = COPIES[kind]
    _, variables = saved(bert, tmp_path, "hf", **MLM, **changes)
    params = variables["params"]
    assert not set(copies) & formats.read(tmp_path).keys()
    edit_tensors(
        tmp_path,
        dict(zip(copies, (params["embed"]["embedding"], params["head_bias"]), strict=True)),
    )
    assert_same(zoo.load(tmp_path)[1], variables)
    edit_tensors(tmp_path, {copies[0]: np.ones((61, 32), np.float32)})
    with pytest.raises(WeightsError, match=f"{copies[0]} should be one tensor, but differ"):
        zoo.load(tmp_path)


def test_a_pooler_that_robertas_classifier_does_not_read_is_left_out(tmp_path):
    _, variables = saved(bert, tmp_path, "hf", **ROBERTA)
    pooler = {"weight": np.ones((32, 32), np.float32), "bias": np.ones(32, np.float32)}
    edit_tensors(tmp_path, {f"roberta.pooler.dense.{name}": x for name, x in pooler.items()})
    assert_same(zoo.load(tmp_path)[1], variables)


def test_a_base_models_names_may_have_a_prefix_or_none(tmp_path):
    for format in ("hf", "hf_base", "hf_2018"):
        _, variables = saved(bert, tmp_path / format, format, **BARE)
        names = formats.read(tmp_path / format).keys()
        assert all(name.startswith("bert.") != (format == "hf_base") for name in names)
        assert_same(zoo.load(tmp_path / format)[1], variables)
    tensors = dict(formats.read(tmp_path / "hf_2018"))
    bare = {name.removeprefix("bert."): x for name, x in tensors.items()}
    edit_tensors(tmp_path / "hf_2018", dict.fromkeys(tensors) | bare)
    assert_same(zoo.load(tmp_path / "hf_2018")[1], variables)


def test_without_a_pooler_it_is_said_what_the_model_returns(tmp_path, caplog):
    saved(bert, tmp_path, "hf_base", **BARE, pooler=False)
    zoo.load(tmp_path)
    assert "no pooler: the model returns the first token" in caplog.text


@pytest.mark.parametrize("changes", [{}, TAGGER, ROBERTA, ROBERTA | TAGGER], ids=str)
def test_a_classifier_without_a_class_name_is_known_by_the_pooler(changes, tmp_path):
    model, _ = saved(bert, tmp_path, "hf", **changes)
    edit_facts(tmp_path, architectures=None)
    assert zoo.load(tmp_path)[0].config == model.config


def test_fine_tuning_begins_with_the_encoder_and_pooler_of_a_masked_language_model(tmp_path):
    """The pooler stays with a model whose head does not read it, for the head that does."""
    _, variables = saved(bert, tmp_path, "hf", **MLM)
    model, loaded, _ = store.load(tmp_path, head="sequence", num_classes=4)
    theirs, ours = variables["params"], loaded["params"]
    assert model.config.head == "sequence" and ours["head"]["kernel"].shape == (32, 4)
    assert theirs.keys() - ours.keys() == {"transform", "transform_norm", "head_bias"}
    assert ours.keys() - theirs.keys() == {"head"} and "pooler" in ours
    kept = ours.keys() & theirs
    assert_same(*({name: x[name] for name in sorted(kept)} for x in (ours, theirs)))


# The Flax classes.


@pytest.mark.parametrize("name", [name for name in CASES if "flax" in name])
def test_what_a_flax_class_saved_loads_and_is_saved_again_bitwise(name, tmp_path):
    case, old, new = CASES[name], tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for file in ("flax_model.msgpack", "config.json"):
        case.recorded[f"file/{file}"].tofile(old / file)
    model, variables = zoo.load(old)
    assert model.config == case.model().config
    key = "logits" if "logits" in case.recorded else "representation"
    output = jax.jit(model.apply)(variables, **case.inputs)
    check({"output": difference(output, case.recorded[key])}, 1e-5)
    zoo.save(model, variables, new, format="hf_flax")
    theirs, ours = formats.read(old), formats.read(new)
    prefix = "bert/" if key == "representation" else ""  # what the class of a base model leaves out
    assert {prefix + name: theirs[name].tobytes() for name in theirs} == {
        name: ours[name].tobytes() for name in ours
    }


# Published files.


MANIFEST = json.loads((HERE / "bert_manifests.json").read_text())["transformers"]
PUBLISHED = {  # variant, and how the file differs from it
    "google-bert/bert-base-uncased": ("bert_base", {"head": "mlm", "dropout": 0.1}),
    "FacebookAI/roberta-base": (
        "roberta_base",
        {"head": "mlm", "dropout": 0.1, "pooler": False},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_names_of_a_published_file_are_those_of_its_variant(name):
    variant, changes = PUBLISHED[name]
    listed = MANIFEST["tensors"][name]
    tensors = {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, shape, dtype in listed}
    form = table.FORMATS["hf"]
    config = form.config(tensors, MANIFEST["config"][name])
    assert config == zoo.create(variant, **changes).config
    ours = file_shapes(bert, form.rows(config), config)
    theirs = {n: spec.shape for n, spec in tensors.items() if "seq_relationship" not in n}
    assert ours == theirs
