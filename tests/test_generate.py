"""Generation against transformers, the model without a cache, exact distributions and loops."""

import json
from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.golden.fill import fill
from tests.golden.replay import HERE
from zoo import decode, generation, tree
from zoo.models import gpt
from zoo.text import ByteTokenizer, TokenizerError
from zoo.weights import convert
from zoo.weights import gpt as table

# A tiny GPT-2 and what transformers wrote with it (tests/golden/references/gpt.py).


class Writer:
    """The recorded model by our page."""

    def __init__(self):
        with np.load(HERE / "gpt_generate.npz") as file:
            self.recorded = dict(file)
        meta = json.loads(str(self.recorded["meta"]))
        self.runs = meta["runs"]
        self.model = gpt.GPT(gpt.Config(**meta["config"]))
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), **zoo.example(self.model))
        tensors = {name: fill(name, tuple(shape)) for name, shape, _ in meta["tensors"]}
        tensors["transformer.wte.weight"] *= np.float32(meta["gain"])
        loaded = convert.load(tensors, table.hf(self.model.config), tree.flatten(shapes))
        self.variables = tree.unflatten({k: jnp.asarray(loaded[k]) for k in tree.flatten(shapes)})
        self.decoder = decode.decoder(self.model, gpt.empty_cache)
        lengths = self.recorded["inputs/lengths"]
        rows = self.recorded["inputs/prompts"]
        self.prompts = [row[:n].tolist() for row, n in zip(rows, lengths, strict=True)]

    @cached_property
    def whole(self):
        """Logits without a cache, one program for all: ids [n] → [n, v]."""
        run = jax.jit(self.model.apply)

        def logits(ids):
            padded = np.zeros((1, self.model.config.context), np.int32)
            padded[0, : len(ids)] = ids
            return np.asarray(run(self.variables, padded)[0, : len(ids)])

        return logits

    def generate(self, prompts=None, **options):
        prompts = self.prompts if prompts is None else prompts
        return generation.generate(self.decoder, self.variables, prompts, **options)


@pytest.fixture(scope="module")
def writer():
    return Writer()


def test_cached_decoding_is_the_uncached_forward_pass(writer):
    """A ragged batch: 12 steps, of given tokens, after prompts of 6, 11 and 3."""
    model, variables = writer.model, writer.variables
    steps = np.random.default_rng(0).integers(0, 97, (3, 12)).astype(np.int32)
    lengths = np.array([len(prompt) for prompt in writer.prompts], np.int32)
    padded = np.full((3, 16), 96, np.int32)
    for row, prompt in zip(padded, writer.prompts, strict=True):
        row[: len(prompt)] = prompt
    run = jax.jit(model.apply)
    cache = gpt.empty_cache(model.config, 3, 32)
    logits, cache = run(variables, padded, cache=cache, lengths=lengths)
    for i, (prompt, n) in enumerate(zip(writer.prompts, lengths, strict=True)):
        np.testing.assert_allclose(logits[i, :n], writer.whole(prompt), atol=1e-4)
    texts = [[*prompt, *row] for prompt, row in zip(writer.prompts, steps, strict=True)]
    expected = [writer.whole(text) for text in texts]
    for step in range(12):
        logits, cache = run(variables, steps[:, step : step + 1], cache=cache)
        for i, n in enumerate(lengths):
            np.testing.assert_allclose(logits[i, 0], expected[i][n + step], atol=1e-4)
    np.testing.assert_array_equal(cache["length"], lengths + 12)


@pytest.mark.parametrize("name", ["greedy", "penalised"])
def test_the_likeliest_tokens_are_those_of_transformers(writer, name):
    expected, margins = (writer.recorded[f"{name}/{key}"] for key in ("tokens", "margins"))
    assert expected.shape == (3, 64) and margins.min() > 1e-3
    assert all(len(set(row.tolist())) >= 20 for row in expected)
    penalty = writer.runs[name].get("repetition_penalty", 1.0)
    found = writer.generate(temperature=0, repetition_penalty=penalty)
    assert [list(one.tokens) for one in found] == expected.tolist()
    assert {one.reason for one in found} == {"length"}


BEAMS = (
    "beams",
    "beams_penalised",
    "beams_eos",
    "beams_short",
    "beams_long",
    "beams_two",
)


def test_every_recorded_search_is_replayed(writer):
    assert set(writer.runs) == {"greedy", "penalised", *BEAMS}


@pytest.mark.parametrize("name", BEAMS)
def test_four_beams_find_what_those_of_transformers_find(writer, name):
    run, expected = writer.runs[name], writer.recorded[f"{name}/tokens"]
    ends, power = run.get("eos_token_id", []), run.get("length_penalty", 1.0)
    found = writer.generate(
        beams=run["num_beams"],
        length_penalty=power,
        stop=ends,
        repetition_penalty=run.get("repetition_penalty", 1.0),
    )
    assert [list(one.tokens) for one in found] == [row[row >= 0].tolist() for row in expected]
    assert ends or all(len(set(row.tolist())) >= 20 for row in expected)
    lengths = (expected >= 0).sum(axis=1)
    best, second = writer.recorded[f"{name}/scores"].T
    assert ((best - second) * lengths**power).min() > 1e-3  # of the sums of log-probabilities
    for one, score in zip(found, best, strict=True):
        assert one.reason == ("stop" if one.tokens[-1] in ends else "length")
        if run.get("repetition_penalty", 1.0) == 1:  # else the score is of other numbers
            total = sum(one.logprobs)
            np.testing.assert_allclose(total / len(one.tokens) ** power, score, atol=1e-4)


DRAWN = {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3}


def test_log_probabilities_are_those_of_the_model_itself(writer):
    """Whatever is done to the distribution before a token is drawn from it."""
    found = writer.generate(**DRAWN)
    for prompt, one in zip(writer.prompts, found, strict=True):
        logits = writer.whole([*prompt, *one.tokens])[len(prompt) - 1 : -1]
        expected = jax.nn.log_softmax(logits)[np.arange(64), list(one.tokens)]
        np.testing.assert_allclose(one.logprobs, expected, atol=1e-4)


def test_a_seed_fixes_what_is_drawn(writer):
    first, again, other = (writer.generate(**DRAWN, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert all(a.tokens != b.tokens for a, b in zip(first, other, strict=True))


# A decoder whose logits at each place are a row of a table: what it says is known.


class Scripted:
    """Logits [m, v] by place; `heads`: the shapes that the head was traced with."""

    def __init__(self, context, vocab):
        self.heads = []
        self.decoder = decode.Decoder(self.remember, self.head, self.empty, context, vocab)

    def remember(self, variables, tokens, cache, lengths):
        n = tokens.shape[1]
        place = cache["length"][:, None] + jnp.arange(n)[None]
        grown = cache["length"] + (n if lengths is None else lengths)
        return place[..., None].astype(variables.dtype), {"length": grown}

    def head(self, variables, hidden):
        self.heads.append(hidden.shape)
        return variables[hidden[..., 0].astype(jnp.int32)]

    @staticmethod
    def empty(batch, length, dtype=jnp.float32):
        return {"length": jnp.zeros(batch, jnp.int32)}


BYTES = ByteTokenizer()
STORY = "Straße — «ça y est»: 25 °C…\nThe end. 😀!"


@pytest.fixture(scope="module")
def script():
    return Scripted(128, 300)


def tell(script, text, prompt="Z", ends=True, **options):
    """What it says after a prompt of one byte, where it says this text and then the end."""
    ids = [*text.encode(), 256 if ends else 33]
    logits = np.zeros((128, 300), np.float32)
    logits[:, 299] = 20  # which no byte is: the likeliest, but for what the script says
    logits[np.arange(len(ids)), ids] = 30
    logits[len(ids) :, 33] = 15
    options = {"temperature": 0, "tokenizer": BYTES} | options
    return generation.generate(script.decoder, jnp.asarray(logits), prompt, **options)


def test_text_is_read_until_its_end(script):
    [found] = tell(script, STORY)
    assert (found.text, found.reason) == (STORY, "stop")
    assert found.tokens == (*STORY.encode(), 256)
    assert len(found.logprobs) == len(found.tokens)
    np.testing.assert_allclose(found.logprobs, -np.log1p(np.exp(-10)), atol=2e-5)


def test_what_is_no_token_is_never_written(script):
    """The model has 300 ids, the tokenizer 257."""
    assert tell(script, "so", ends=False, max_new_tokens=20)[0].text == "so" + "!" * 18
    drawn = tell(script, "", temperature=2.0, max_new_tokens=60, stop=(), seed=1)
    assert max(max(one.tokens) for one in drawn) <= 256


@pytest.mark.parametrize(
    "stop, text, last",
    [
        ("The", "Straße — «ça y est»: 25 °C…\n", "e"),
        (["zzz", "est", "y e"], "Straße — «ça ", "e"),  # the first that is whole
        ("…", "Straße — «ça y est»: 25 °C", None),  # in the middle of its bytes nothing is known
        (ord("\n"), "Straße — «ça y est»: 25 °C…", "\n"),
        (["😀", ord("d")], "Straße — «ça y est»: 25 °C…\nThe en", "d"),
    ],
)
def test_a_stop_cuts_the_text(script, stop, text, last):
    [found] = tell(script, STORY, stop=stop)
    assert (found.text, found.reason) == (text, "stop")
    written = bytes(found.tokens).decode()
    assert STORY.startswith(written) and written.startswith(text)
    assert last is None or written.endswith(last)
    assert len(found.logprobs) == len(found.tokens)


def test_the_name_of_a_special_token_stops_at_that_token(script):
    """Which no text has: it leaves special tokens out. The character of a byte is no such name."""
    tokenizer = ByteTokenizer()
    tokenizer.spelling = replace(BYTES.spelling, special=frozenset({33, 256}))
    [found] = tell(script, "A story! And more", stop="!", tokenizer=tokenizer)
    assert (found.text, found.tokens[-1], found.reason) == ("A story", 33, "stop")
    [found] = tell(script, "A story! And more", stop="A", tokenizer=tokenizer)
    assert (found.text, found.tokens[-1], found.reason) == ("", 65, "stop")


@pytest.mark.parametrize("stop", [(), "The", "\nThe end. 😀!?", ["est: ", "C…\nThe"]], ids=repr)
def test_what_is_streamed_is_what_is_returned(script, stop):
    pieces = []
    [found] = tell(script, STORY, stop=stop, stream=lambda i, piece: pieces.append((i, piece)))
    assert "".join(piece for _, piece in pieces) == found.text
    assert {i for i, _ in pieces} == {0} and len(pieces) > 10
    assert "�" not in "".join(piece for _, piece in pieces)
    assert [found] == tell(script, STORY, stop=stop)


def test_a_character_that_stays_half_is_told_once(script):
    pieces = []
    [found] = tell(script, "é", max_new_tokens=1, stream=lambda i, piece: pieces.append(piece))
    assert found.text == "�" == "".join(pieces)


def test_without_a_tokenizer_tokens_are_streamed(writer):
    pieces = {0: [], 1: [], 2: []}
    found = writer.generate(
        temperature=0, max_new_tokens=60, stream=lambda i, piece: pieces[i].extend(piece)
    )
    assert [tuple(pieces[i]) for i in range(3)] == [one.tokens for one in found]
    assert found[0].text == ""


def test_examples_stop_by_themselves(script):
    """Prompts of one and of five bytes stand at other places of the script."""
    story = "abcdefgh"
    one, other = tell(script, story, ["Z", "ZZZZZ"], stop="fg")
    assert (one.text, other.text) == ("abcde", "e")
    assert len(one.tokens) == 7 and len(other.tokens) == 3


def test_what_stands_beside_an_example_is_nothing_to_it(script):
    def say(*prompts):
        options = {"temperature": 3.0, "max_new_tokens": 20, "seed": 3}
        found = tell(script, "", list(prompts), ends=False, **options)
        return [one.tokens for one in found]

    alone, beside, twice = say("Z"), say("Z", "Z" * 30), say("Z", "Z")
    assert alone[0] == beside[0] == twice[0] != twice[1]
    assert len(set(alone[0])) > 5  # nor is the token before


def test_the_device_is_left_alone_unless_somebody_waits(script, monkeypatch):
    limits = []
    extend = decode.extend
    monkeypatch.setattr(decode, "extend", lambda *x: limits.append(int(x[-1])) or extend(*x))
    calm = {"ends": False, "max_new_tokens": 70}
    for options, expected in (
        ({}, [70]),
        ({"stop": "?"}, [33, 65, 70]),
        ({"stream": lambda *x: None}, [*range(2, 71)]),
    ):
        limits.clear()
        tell(script, "x", **calm, **options)
        assert limits == expected


def test_the_loop_ends_by_itself_and_works_in_place(script, monkeypatch):
    states = []

    def watched(*arguments):
        after = extend(*arguments)
        states.append((arguments[3], int(after.step)))
        return after

    extend = decode.extend
    monkeypatch.setattr(decode, "extend", watched)
    tell(script, "a story", max_new_tokens=100)
    [(before, steps)] = states
    assert steps == len("a story") + 1
    assert all(x.is_deleted() for x in jax.tree.leaves(before.cache))


def test_the_head_is_for_the_last_token_of_a_prompt_alone():
    script = Scripted(128, 300)
    tell(script, "x", ["Z", "ZZZZZ"])
    assert set(script.heads) == {(2, 1)}


def test_a_program_is_compiled_once_for_a_bucket_of_lengths():
    script = Scripted(256, 300)
    programs = decode.start, decode.extend
    before = [program._cache_size() for program in programs]

    def new():
        return [p._cache_size() - n for p, n in zip(programs, before, strict=True)]

    def say(length, **options):
        generation.generate(
            script.decoder,
            jnp.zeros((256, 300), jnp.float32),
            [[1] * length],
            **{"temperature": 0.5, "top_k": 5, "max_new_tokens": 20} | options,
        )

    say(1)
    assert new() == [1, 1]
    for options in (
        {"length": 9},
        {"length": 12, "max_new_tokens": 17},
        {"length": 3, "temperature": 1.3, "top_k": 9, "seed": 8, "min_p": 0.1, "stop": [5, 7]},
        {"length": 2, "top_p": 0.5},
    ):
        say(**options)
    assert new() == [1, 1]
    say(17)  # the next bucket of prompts, and of the cache
    assert new() == [2, 2]
    say(30, max_new_tokens=34)
    assert new() == [2, 2]


# What is drawn, against exact distributions.

ROW = np.random.default_rng(4).normal(scale=1.5, size=12).astype(np.float32)


def rule_of(**options):
    return generation._rule(generation.Options(**options), 12)


def draws(**options):
    """How often each of 12 tokens is the second of 4000 continuations."""
    script = Scripted(16, 12)
    found = generation.generate(
        script.decoder,
        jnp.tile(jnp.asarray(ROW), (16, 1)),
        [[0]] * 4000,
        max_new_tokens=2,
        **options,
    )
    return np.bincount([one.tokens[1] for one in found], minlength=12)


CRITICAL = {
    11: 31.26,
    4: 18.47,
    3: 16.27,
    2: 13.82,
    1: 10.83,
}  # χ² by degrees of freedom, 1 in 1000


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 4, "temperature": 2.0}, {"top_p": 0.8}, {"min_p": 0.3}],
    ids=str,
)
def test_frequencies_are_those_of_the_exact_distribution(options):
    counts = draws(**options)
    exact = np.exp(filtered(ROW.astype(np.float64), **options))
    exact /= exact.sum()
    assert not counts[exact == 0].any()
    kept = exact > 0
    expected = exact[kept] * counts.sum()
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    assert statistic < CRITICAL[int(kept.sum()) - 1]
    wrong = np.full(kept.sum(), counts.sum() / kept.sum())  # which it would tell
    assert ((counts[kept] - wrong) ** 2 / wrong).sum() > CRITICAL[int(kept.sum()) - 1]


def filtered(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The filters as a loop over tokens, in float64: −∞ where one may not be drawn."""
    logits = logits / temperature
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[: top_k or len(order)]
    mass = sum(np.exp(logits[i]) for i in kept)
    nucleus, total = [], 0.0
    for i in kept:
        if total < (top_p or 2):
            nucleus.append(i)
        total += np.exp(logits[i]) / mass
    floor = (min_p or 0) * np.exp(logits[nucleus[0]])
    result = np.full(len(logits), -np.inf)
    for i in nucleus:
        if np.exp(logits[i]) >= floor:
            result[i] = logits[i]
    return result


FILTERS = [
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 12, "temperature": 3.0},
    {"top_k": 50},
    {"top_p": 1e-6},
    {"top_p": 0.5},
    {"top_p": 1.0},
    {"min_p": 0.0},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 7, "top_p": 0.7, "temperature": 1.5},
    {"top_k": 9, "top_p": 0.95, "min_p": 0.1, "temperature": 0.8},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_are_a_loop_over_tokens(options):
    logits = np.random.default_rng(1).normal(scale=2, size=(20, 12)).astype(np.float32)
    chosen = generation.Options(**options)
    settings = generation._settings(chosen, 12, None, frozenset())
    kept, ids = decode.candidates(rule_of(**options), jnp.asarray(logits), settings)
    whole = np.full((20, 12), -np.inf)
    np.put_along_axis(whole, np.arange(12)[None] if ids is None else ids, kept, axis=1)
    expected = np.stack([filtered(row.astype(np.float64), **options) for row in logits])
    expected -= expected.max(axis=1, keepdims=True)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)


def test_what_was_there_is_penalised_as_in_a_loop():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 12)).astype(np.float32)
    prompts, lengths = rng.integers(0, 12, (3, 6)), np.array([6, 2, 4])
    seen = decode.occurring(jnp.asarray(prompts), jnp.asarray(lengths), 12)
    found = decode.penalised(jnp.asarray(logits), seen, np.float32(1.5))
    for row, prompt, n, result in zip(logits, prompts, lengths, found, strict=True):
        for token in set(prompt[:n].tolist()):
            row[token] = row[token] / 1.5 if row[token] > 0 else row[token] * 1.5
        np.testing.assert_allclose(result, row, rtol=1e-6)


def test_a_search_with_one_beam_more_than_there_are_tokens_finds_the_best_of_all():
    """Every continuation of two tokens of three, by hand."""
    script = Scripted(16, 3)
    logits = np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32)
    [found] = generation.generate(
        script.decoder, jnp.asarray(logits), [[0]], max_new_tokens=2, beams=4
    )
    logprobs = np.asarray(jax.nn.log_softmax(logits))[:2]
    assert found.tokens == tuple(logprobs.argmax(axis=1).tolist())
    np.testing.assert_allclose(found.logprobs, logprobs.max(axis=1), rtol=1e-5)


# What cannot be.

ERRORS = {
    "an empty text": ({"prompts": ""}, "prompt 0 is empty"),
    "an empty prompt among others": ({"prompts": ["a", ""]}, "prompt 1 is empty"),
    "no ids": ({"prompts": [[1], []]}, "prompt 1 is empty"),
    "no prompts": ({"prompts": []}, "give a text, ids, or several"),
    "a number": ({"prompts": 5}, "give a text, ids, or several"),
    "an id above": ({"prompts": [1, 300]}, "prompt 0 has id 300 at position 1.*0 to 299"),
    "an id below": ({"prompts": np.array([[4, -1]])}, "prompt 0 has id -1 at position 1"),
    "no integer": ({"prompts": [[1, 0.5]]}, "0.5 at position 1, which is no id"),
    "text without a tokenizer": ({"prompts": "a", "tokenizer": None}, "only a tokenizer makes ids"),
    "a prompt above the context": (
        {"prompts": "a" * 129},
        "129 tokens, and the context of 128 has no room for 1 more",
    ),
    "no room": (
        {"prompts": "a" * 65, "max_new_tokens": 64},
        "65 tokens, and the context of 128 has no room for 64 more",
    ),
    "a stop of no kind": ({"stop": 0.5}, "stop is 0.5: give a string, a token id"),
    "a stop of bytes": ({"stop": [b"x"]}, "stop is b'x': give a string"),
    "a stop that is no id": ({"stop": 300}, "stop is token id 300.*0 to 299"),
    "an empty stop": ({"stop": ""}, "stop is an empty string"),
    "a stop without text": (
        {"stop": "x", "tokenizer": None, "prompts": [1]},
        "stop is 'x', but only a tokenizer",
    ),
    "temperature": ({"temperature": -1}, "temperature is -1: give"),
    "a temperature below those of float32": ({"temperature": 1e-46}, "temperature is 1e-46: give"),
    "a temperature that is as good as 0": ({"temperature": 1e-40}, "temperature is 1e-40: give"),
    "a temperature above float32": ({"temperature": 1e39}, "temperature is 1e.39: give"),
    "a temperature above float64": ({"temperature": 10**400}, "temperature is 10000"),
    "a complex temperature": ({"temperature": np.complex64(1)}, "temperature is .1.0j.: give"),
    "not a number": ({"temperature": float("nan")}, "temperature is nan: give"),
    "words": ({"temperature": "hot"}, "temperature is 'hot': give"),
    "top_k": ({"top_k": 0}, "top_k is 0: give a whole number"),
    "half a top_k": ({"top_k": 1.5}, "top_k is 1.5: give a whole number"),
    "top_p": ({"top_p": 0.0}, "top_p is 0.0: give a probability above 0"),
    "top_p above": ({"top_p": 1.01}, "top_p is 1.01: give a probability"),
    "min_p": ({"min_p": 1.5}, "min_p is 1.5: give a share"),
    "penalty": ({"repetition_penalty": 0}, "repetition_penalty is 0: give a number from"),
    "a penalty that overflows": ({"repetition_penalty": 1e39}, "repetition_penalty is 1e.39: give"),
    "tokens": ({"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number"),
    "beams": ({"beams": 0}, "beams is 0: give a whole number"),
    "true beams": ({"beams": True}, "beams is True: give a whole number"),
    "length_penalty": ({"length_penalty": float("inf")}, "length_penalty is inf: give a finite"),
    "a power that is 0": (
        {"length_penalty": -40, "max_new_tokens": 60},
        "length_penalty is -40, but 60 tokens .* give one from -16.9 to 16.9",
    ),
    "a power above float64": (
        {"length_penalty": 10**400},
        "length_penalty is 1000.*: give a finite",
    ),
    "seed": ({"seed": -1}, "seed is -1: give a whole number"),
    "drawn beams": (
        {"beams": 2, "temperature": 0.5, "top_k": 3},
        "top_k and temperature is for dr",
    ),
    "streamed beams": ({"beams": 2, "stream": print}, "beams are known when all are done"),
    "stopped beams": ({"beams": 2, "stop": "x"}, "beams are known when all are done"),
    "an unknown option": ({"top": 3}, "generation has no top; it has max_new_tokens"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_is_refused(script, name):
    options, message = ERRORS[name]
    options = {"prompts": "a", "tokenizer": BYTES} | options
    prompts = options.pop("prompts")
    with pytest.raises(ValueError, match=message):
        generation.generate(script.decoder, jnp.zeros((128, 300)), prompts, **options)


def test_a_tokenizer_of_another_model_is_refused(writer):
    with pytest.raises(TokenizerError, match="ids go up to 256, but the model has .* 0 to 96"):
        writer.generate("a", tokenizer=BYTES)


def test_scanned_layers_write_what_the_same_layers_in_a_loop_write(writer):
    model = gpt.GPT(replace(writer.model.config, layers="scan"))
    variables = {"params": tree.stacked(writer.variables["params"], 0)}
    options = {"temperature": 0, "max_new_tokens": 64}
    assert zoo.generate(model, variables, writer.prompts, **options) == writer.generate(**options)
    with pytest.raises(ValueError, match='a cache needs layers="loop"'):
        decoder = decode.decoder(model, gpt.empty_cache)
        generation.generate(decoder, variables, [[1, 2]])


def test_numbers_of_numpy_are_numbers(script):
    plain = {"max_new_tokens": 3, "temperature": 0.5, "top_k": 2, "repetition_penalty": 1.5}
    kinds = (np.int64, np.float32, np.int8, np.float16)
    typed = {key: kind(x) for kind, (key, x) in zip(kinds, plain.items(), strict=True)}
    [expected] = tell(script, "a story", **plain)
    assert tell(script, "a story", **typed) == [expected] and len(expected.tokens) == 3


@pytest.mark.parametrize("prompts, lengths", [("Z" * 100, [28]), (["Z" * 5, "Z" * 120], [8, 8])])
def test_where_no_number_of_tokens_is_given_the_context_may_end_it(script, prompts, lengths):
    found = tell(script, "", prompts, ends=False)
    assert [len(one.tokens) for one in found] == lengths


@pytest.mark.parametrize("temperature", [2e-38, 1e-30])
def test_the_lowest_temperatures_choose_the_likeliest(temperature):
    """Though logits that are divided by them are above the numbers of float32."""
    script, logits = Scripted(16, 3), jnp.tile(jnp.float32([50, 70, 60]), (16, 1))
    options = {"temperature": temperature, "max_new_tokens": 4}
    [found] = generation.generate(script.decoder, logits, [[0]], **options)
    assert found.tokens == (1, 1, 1, 1)


def test_the_door_is_the_generation_of_its_page(writer):
    options = {"temperature": 0, "max_new_tokens": 64}
    found = zoo.generate(writer.model, writer.variables, writer.prompts, **options)
    assert found == writer.generate(**options)
