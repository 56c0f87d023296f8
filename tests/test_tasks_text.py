"""The tasks on text report what a loop over tokens finds, and they learn.

That they resume bit for bit is a claim of test_configs.
"""

import json
import math
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.test_text import llama_json
from train import language, loop, metrics, workdir
from train.check import check
from train.config import (
    ConfigError,
    Experiment,
    Init,
    LabelledText,
    Model,
    Optim,
    Setup,
    Text,
)
from train.tasks.lm import LM
from train.tasks.mlm import MLM
from train.tasks.seqcls import SequenceClassification
from train.tasks.tagging import Tagging
from zoo import text, tree
from zoo.text import families

LENGTH, BATCH = 16, 8
SIZES = {"width": 32, "depth": 1, "heads": 4, "mlp": 64, "context": 24}
VOCAB = 264  # more than the 257 ids of bytes
GPT = Model("gpt2", {**SIZES, "vocab": VOCAB, "dropout": 0.1})
BERT = Model("bert_base", SIZES)
FORWARD = jax.jit(
    lambda model, variables, tokens, seen: model.apply(variables, tokens, **seen),
    static_argnums=0,
)
WORDS = "the model reads a page and writes the next word of it ".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of small documents, and labelled examples."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for i in range(60):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(WORDS, 12)) + "é\n")
    reviews = [{"text": f"{w} {i}", "label": w} for i in range(45) for w in ("good", "bad")]
    tagged = [
        {"words": [w, str(i)], "tags": ["word", "number"]} for i in range(45) for w in WORDS[:2]
    ]
    for name, rows in (("reviews", reviews), ("tagged", tagged)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def experiment(folder):
    """Makes experiments on the corpus: experiment(task, model, data={…}, **changes)."""

    def experiment(task, model, data=(), kind=Text, **changes):
        source = {"source": f"text:{folder}/*.txt", "cache": str(folder / "cache"), "holdout": 0.2}
        sizes = {"batch_size": BATCH, "length": LENGTH, "threads": 0}
        own = source if kind is Text else {}
        fields = {
            "model": model,
            "data": kind(**{**own, **sizes, **dict(data)}),
            "task": task,
            "optim": Optim(lr=1e-2, schedule="constant"),
            "steps": 2,
            "evaluate_every": 2,
            "log_every": 1,
            "log": "plain",
            "tensorboard": False,
        }
        return Experiment(**fields | changes)

    return experiment


@pytest.fixture(scope="module")
def lm(experiment):
    return loop.prepare(experiment(LM(z_loss=0.01, sample=12, prompt="the "), GPT))


@pytest.fixture(scope="module")
def mlm(experiment):
    data = {"tokenizer": "bpe:300", "mask": 0.15}
    return loop.prepare(experiment(MLM(), BERT, data))


def judge(run, state, split="validation"):
    batches, _ = run.data.evaluate(split)
    metrics, artifacts = run.task.evaluate(state, map(run.put, batches))
    return metrics, artifacts


def rows_of(run, split="validation"):
    """All rows of a split as one batch, without padding rows."""
    batches, _ = run.data.evaluate(split)
    found = list(batches)
    whole = {key: np.concatenate([b[key] for b in found]) for key in found[0]}
    assert 0 < (whole["mask"] == 0).sum() < len(whole["mask"]), "the last batch is uneven"
    return {key: x[whole["mask"] > 0] for key, x in whole.items()}


def apply(run, state, batch):
    seen = {key: batch[key] for key in language.SEEN if key in batch}
    logits = FORWARD(run.task.model, state.variables(), batch["tokens"], seen)
    return np.asarray(logits, np.float64)


def nats_of(logits, targets):
    """−log softmax at each scored target, by NumPy; and whether it is the largest."""
    logits, targets = logits[targets >= 0], targets[targets >= 0]
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(targets)), targets], logits.argmax(axis=-1) == targets


@pytest.mark.parametrize("name", ["lm", "mlm"])
def test_an_evaluation_over_uneven_batches_equals_one_pass(name, request):
    run = request.getfixturevalue(name)
    state, whole = run.first(), rows_of(run)
    found, _ = judge(run, state)
    nats, hits = nats_of(apply(run, state, whole), whole["targets"])
    expected = {
        "loss": nats.mean(),
        "perplexity": math.exp(nats.mean()),
        "accuracy": hits.mean(),
    }
    if name == "lm":
        size = run.data.statistics("validation")["bytes"]
        expected["bits_per_byte"] = nats.sum() / math.log(2) / size
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert math.isclose(found[key], value, rel_tol=1e-5), key


def test_a_uniform_model_needs_the_bits_of_its_vocabulary(lm):
    """And those of the ends of documents, which have no bytes."""
    state = lm.first()
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    found, _ = judge(lm, state)
    known = lm.data.statistics("validation")
    tokens = known["bytes"] + known["documents"]
    expected = math.log2(VOCAB) * tokens / known["bytes"]
    assert math.isclose(found["bits_per_byte"], expected, rel_tol=1e-6)
    assert math.isclose(found["perplexity"], VOCAB, rel_tol=1e-5)

    with closing(lm.data.evaluate("validation")[0]) as batches:  # the first token is no target
        batch = next(batches)
    found, _ = lm.task.evaluate(state, [lm.put(batch)])
    size = (batch["targets"] != 256).sum()
    expected = math.log2(VOCAB) * batch["targets"].size / size
    assert math.isclose(found["bits_per_byte"], expected, rel_tol=1e-6)


def test_bits_per_byte_leave_out_the_space_before_a_document(experiment, tmp_path):
    """Which Llama's tokenizer writes: it is no byte of the text."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    facts = llama_json({token: i for i, token in enumerate(vocabulary)}, [])
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
    run = loop.prepare(experiment(LM(sample=0), GPT, {"tokenizer": str(tmp_path)}))
    state = run.first()
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    known = run.data.statistics("validation")
    assert known["tokens"] == known["bytes"] + 3 * known["documents"]  # <s>, ▁ and </s>
    expected = math.log2(VOCAB) * known["tokens"] / known["bytes"]
    assert math.isclose(judge(run, state)[0]["bits_per_byte"], expected, rel_tol=1e-6)


def test_a_sample_begins_as_documents_do(monkeypatch):
    """Also by a tokenizer that has no end of text, as BERT's."""
    bert = families.wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"], {})
    model, begun = zoo.create("gpt2", **SIZES, vocab=6), []

    def generate(model, variables, prompts, **options):
        begun.extend(prompts)
        return zoo.generate(model, variables, prompts, **options)

    state = SimpleNamespace(variables=lambda: zoo.init(model, jax.random.key(0)))
    sample = language.sampler(model, bert, "a", 2)
    monkeypatch.setattr(language, "zoo", SimpleNamespace(generate=generate))
    assert sample(state)["samples"].startswith("a") and begun == [[2, 5]]


def test_a_run_reports_what_compressors_need_and_writes_samples(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "prepare", lambda _: lm)
    workdir.claim(tmp_path, lm.cfg)
    result = loop.fit(lm.cfg, tmp_path)
    for split in ("validation", "test"):
        theirs = {f"{k}_bits_per_byte": x for k, x in lm.data.compressors(split).items()}
        assert len(theirs) == 3 and theirs.items() <= result[split].items()
        written = (tmp_path / f"{split}_samples.txt").read_text(encoding="utf-8")
        assert written.startswith("the ") and 4 < len(written) <= 4 + 12 + 1
    assert text.load(tmp_path / "model").encode("é") == [195, 169]
    model, variables = zoo.load(tmp_path / "model")
    assert (
        model.config.vocab == VOCAB and model.apply(variables, np.zeros((1, 3), int)).shape[1] == 3
    )


@pytest.mark.parametrize("name", ["lm", "mlm"])
def test_one_batch_is_learned_by_heart(name, request):
    run = request.getfixturevalue(name)
    with closing(run.data.train()) as stream:
        batch = run.put(next(stream))
    state, found = run.first(), []
    for _ in range(100):
        state, shown = run.update(state, batch)
        found.append(float(shown["loss"]))
    assert found[0] > 5 and found[-1] < 1 and float(shown["accuracy"]) > 0.8


@pytest.mark.parametrize("chunk", [0, 5])
def test_packed_documents_do_not_see_each_other(chunk, lm):
    state, batch = lm.first(), rows_of(lm)
    forward = partial(lm.task.model.apply, state.variables())
    score = jax.jit(lambda batch: language.score(forward, batch, chunk)["nats"])
    first = batch["segments"] == 1
    assert first.any() and not first.all()
    changed = {**batch, "tokens": np.where(first, 7, batch["tokens"])}
    before, after = (np.asarray(score(b)) for b in (batch, changed))
    assert np.array_equal(before[~first], after[~first])
    assert not np.array_equal(before[first], after[first])


def test_an_update_in_chunks_is_the_update(lm, experiment):
    """Over eight devices, with dropout and a z-loss: the moments of Adam hold the gradients."""
    found = []
    for run in (lm, loop.prepare(experiment(LM(z_loss=0.01, chunk=5, sample=0), GPT))):
        with closing(run.data.train()) as stream:
            state, shown = run.update(run.first(), run.put(next(stream)))
        found.append((state.opt, shown))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), *found)
    z_loss = 0.01 * math.log(VOCAB) ** 2  # the first logits are near 0
    assert math.isclose(found[0][1]["loss"], math.log(VOCAB) + z_loss, rel_tol=0.01)


@pytest.fixture(scope="module")
def classes(experiment, folder):
    data = {"source": f"jsonl:{folder}/reviews.jsonl", "length": 12, "holdout": 0.2}
    return loop.prepare(experiment(SequenceClassification(), BERT, data, LabelledText))


def trained(run, updates):
    state = run.first()
    with closing(run.data.train()) as stream:
        for _ in range(updates):
            state, shown = run.update(state, run.put(next(stream)))
    return state, shown


def test_classes_of_texts_are_learned(classes):
    state, whole = classes.first(), rows_of(classes)
    found, artifacts = judge(classes, state)
    nats, hits = nats_of(apply(classes, state, whole), whole["label"])
    assert math.isclose(found["loss"], nats.mean(), rel_tol=1e-5)
    assert math.isclose(found["accuracy"], hits.mean(), rel_tol=1e-6)
    assert "good" in artifacts["per_class"] and artifacts["confusion_matrix"].dtype == np.uint8

    state, shown = trained(classes, 30)
    assert judge(classes, state)[0]["accuracy"] == float(shown["accuracy"]) == 1
    task = classes.task
    assert task.card.labels == ("bad", "good") and task.tokenizer is classes.data.tokenizer


def test_padding_does_not_change_a_class(classes):
    batch, state = rows_of(classes), classes.first()
    behind = np.arange(12)[None] >= batch["lengths"][:, None]
    changed = {**batch, "tokens": np.where(behind, 7, batch["tokens"])}
    assert behind.any()
    assert np.array_equal(*(apply(classes, state, b) for b in (batch, changed)))


def test_tags_of_words_are_learned(experiment, folder):
    data = {
        "source": f"jsonl:{folder}/tagged.jsonl",
        "field": "words",
        "label_field": "tags",
        "tagging": True,
    }
    run = loop.prepare(experiment(Tagging(), BERT, data, LabelledText))
    whole = rows_of(run)
    assert (whole["labels"] < 0).any()

    found, artifacts = judge(run, run.first())
    logits = apply(run, run.first(), whole)
    nats, hits = nats_of(logits, whole["labels"])
    assert math.isclose(found["loss"], nats.mean(), rel_tol=1e-4)
    assert math.isclose(found["accuracy"], hits.mean(), rel_tol=1e-6)
    scored = whole["labels"] >= 0
    counts = np.zeros((2, 2), int)
    np.add.at(counts, (whole["labels"][scored], logits.argmax(axis=-1)[scored]), 1)
    f1 = metrics.macro(metrics.per_class(counts, ("number", "word"))).f1
    assert math.isclose(found["macro_f1"], f1) and "macro average" in artifacts["per_class"]

    state, _ = trained(run, 30)
    assert judge(run, state)[0]["macro_f1"] == 1


@pytest.mark.parametrize("kind", ["mlm", "sequence"])
def test_a_classifier_begins_with_the_weights_of_another_head(kind, classes, tmp_path, capsys):
    """All but the head is theirs, also where the other has as many classes."""
    run = classes
    head = {"mlm": {}, "sequence": {"num_classes": 2}}[kind]
    source = zoo.create("bert_base", **SIZES, vocab=257, head=kind, **head)
    variables = zoo.init(source, jax.random.key(3))
    zoo.save(source, variables, tmp_path)
    tagger = replace(run.task.model.config, head="tokens")
    if kind == "sequence":  # the same shapes, another head
        run = run._replace(task=run.task._replace(model=run.task.model.clone(config=tagger)))
    started = loop.begin(run._replace(cfg=replace(run.cfg, init=Init(str(tmp_path)))))

    ours, theirs = (tree.flatten(x) for x in (started.params, variables["params"]))
    fresh = tree.flatten(run.first().params)
    for path, leaf in ours.items():
        taken = fresh if path.startswith("head") else theirs
        np.testing.assert_array_equal(leaf, taken[path], err_msg=path)
    assert "head: new, 2 classes" in capsys.readouterr().out


def test_weights_of_another_tokenizer_are_refused_with_the_way_out(classes, tmp_path, capsys):
    source = zoo.create("bert_base", **SIZES, vocab=257, head="mlm")
    zoo.save(source, zoo.init(source, jax.random.key(3)), tmp_path)
    run = classes._replace(cfg=replace(classes.cfg, init=Init(str(tmp_path))))
    text.ByteTokenizer().save(tmp_path)
    loop.begin(run)
    (tmp_path / "tokenizer_config.json").unlink()
    text.train_bpe([" ".join(WORDS)], 257).save(tmp_path)  # as many ids
    with pytest.raises(ConfigError, match=f"another tokenizer .* --data.tokenizer {tmp_path}"):
        loop.begin(run)


WRONG = {
    "negative z": (LM(z_loss=-1.0), GPT, {}, r"task\.z_loss is -1"),
    "negative chunk": (MLM(chunk=-1), BERT, {"mask": 0.1}, r"task\.chunk is -1"),
    "negative sample": (LM(sample=-1), GPT, {}, r"task\.sample is -1"),
    "small vocabulary": (
        LM(),
        Model("gpt2", {"vocab": 256}),
        {},
        r"vocab is 256.* tokenizer has 257",
    ),
    "short context": (LM(), GPT, {"length": 25}, r"data\.length is 25 .* gpt2 is 24"),
    "no room": (
        LM(),
        Model("gpt2", {**SIZES, "context": 1}),
        {"length": 1},
        r"task\.prompt has 0 tokens.* is 1; set --task\.sample 0",
    ),
    "long prompt": (LM(prompt="a" * 24), GPT, {}, r"task\.prompt has 24 tokens.* 24"),
    "masked": (LM(), GPT, {"mask": 0.15, "tokenizer": "bpe:300"}, r"data\.mask .* MLM"),
    "not masked": (MLM(), BERT, {}, r"data\.mask is 0"),
    "encoder": (LM(), BERT, {}, r"bert_base is no decoder of text"),
    "decoder": (MLM(), GPT, {"mask": 0.15, "tokenizer": "bpe:300"}, r"gpt2 is no encoder"),
    "pictures": (LM(), Model("resnet20"), {}, r"resnet20 is no decoder"),
    "another head": (
        MLM(),
        Model("bert_base", {"head": "none"}),
        {"mask": 0.15, "tokenizer": "bpe:300"},
        r"head is 'none'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_with_its_key(case, experiment):
    task, model, data, message = WRONG[case]
    cfg = experiment(task, model, data)
    with pytest.raises(ConfigError, match=message):
        check(cfg)
        cfg.task.build(Setup(cfg, cfg.data.open(), None))
