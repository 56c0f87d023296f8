"""Vectors of texts and words for gaps, against loops over single texts without padding."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.checkpoints import random_variables
from zoo.models import bert, gpt
from zoo.text import ByteTokenizer, TokenizerError
from zoo.text import embed as module
from zoo.text.embed import embed, fill_mask
from zoo.text.families import wordpiece

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = "the cat dog sat on a mat and ran far away from here to there ##s ##ing sit".split()
TOKENIZER = wordpiece([*SPECIALS, *WORDS], {})
CONTEXT = 40
TEXTS = (  # of 3 to 34 tokens, in no order, one of them twice
    "the cat sat",
    "on a mat and " * 8,
    "dogs",
    "sitting cats ran far away from here to there and there and there and there",
    "the cat sat",
    "a mat",
)
MASKED = (
    "the [MASK] sat on the mat",
    "[MASK] cats [MASK] and " + "ran far away " * 6 + "[MASK]",
    "a [MASK]",
)


def model_of(**changes):
    """(model, variables) of a tiny BERT for these words."""
    small = {"depth": 1, "context": CONTEXT, "pooler": False, "num_classes": 0}
    model = bert.BERT(replace(bert.TINY, **small, **changes))
    return model, jax.tree.map(lambda x: np.float32(0.3) * x, random_variables(model))


ENCODER, WEIGHTS = model_of(head="none", vocab=TOKENIZER.vocab_size)
GUESSER, GUESSES = model_of(head="mlm", vocab=TOKENIZER.vocab_size + 3)


def hidden(variables, tokens, lengths):
    return ENCODER.apply(variables, tokens, lengths=lengths, method="hidden")


GUESS = module.applied(GUESSER)


@pytest.fixture(scope="module")
def alone():
    """The hidden states of every text by itself, as it is."""
    apply = jax.jit(lambda tokens: ENCODER.apply(WEIGHTS, tokens, method="hidden"))
    return [np.asarray(apply(jnp.array([TOKENIZER.encode(text)])))[0] for text in TEXTS]


def test_vectors_are_means_over_the_tokens_of_each_text(alone):
    loop = np.stack([states.mean(axis=0) for states in alone])
    plain = embed(hidden, WEIGHTS, TOKENIZER, TEXTS, batch=4, normalise=False, context=CONTEXT)
    assert plain.dtype == np.float32 and plain.shape == (len(TEXTS), ENCODER.config.width)
    np.testing.assert_allclose(plain, loop, atol=1e-5)
    unit = embed(hidden, WEIGHTS, TOKENIZER, TEXTS, batch=4, context=CONTEXT)
    np.testing.assert_allclose(unit, loop / np.linalg.norm(loop, axis=1, keepdims=True), atol=1e-5)


def test_it_is_compiled_once_for_each_bucket_of_lengths():
    traced = []

    def apply(variables, tokens, lengths):
        traced.append(tokens.shape)
        return hidden(variables, tokens, lengths)

    for texts in (TEXTS, TEXTS[::-1], TEXTS[:1] * 9):
        embed(apply, WEIGHTS, TOKENIZER, texts, batch=4, context=CONTEXT)
    assert traced == [(4, 16), (4, 32), (4, CONTEXT)]


def test_a_text_may_be_cut_and_keeps_what_closes_it(alone):
    ids = [*TOKENIZER.encode(TEXTS[1])[:5], TOKENIZER.specials.sep]
    states = jax.jit(hidden)(WEIGHTS, jnp.array([ids]), jnp.array([6]))[0]
    cut = embed(hidden, WEIGHTS, TOKENIZER, TEXTS[1:2], length=6, normalise=False, batch=4)
    np.testing.assert_allclose(cut[0], states.mean(axis=0), atol=1e-5)
    whole = embed(hidden, WEIGHTS, TOKENIZER, TEXTS[:1], length=6, normalise=False, batch=4)
    np.testing.assert_allclose(whole[0], alone[0].mean(axis=0), atol=1e-5)


def test_the_word_mask_in_a_text_of_strangers_is_no_mask():
    seen = []

    def spy(variables, tokens, lengths):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), tokens)
        return hidden(variables, tokens, lengths)

    embed(spy, WEIGHTS, TOKENIZER, ["[MASK]"], batch=1)
    jax.effects_barrier()
    assert seen and not (np.concatenate(seen) == TOKENIZER.specials.mask).any()


def test_gaps_are_filled_as_a_loop_over_single_texts_fills_them():
    apply = jax.jit(lambda tokens: GUESSER.apply(GUESSES, tokens))
    answers = fill_mask(*GUESS, GUESSES, TOKENIZER, MASKED, top=4, batch=2, context=CONTEXT)
    assert [len(gaps) for gaps in answers] == [1, 3, 1]
    for text, gaps in zip(MASKED, answers, strict=True):
        ids = TOKENIZER.encode(text)
        rows = np.asarray(apply(jnp.array([ids])), np.float64)[0]
        at = [place for place, i in enumerate(ids) if i == TOKENIZER.specials.mask]
        for place, guesses in zip(at, gaps, strict=True):
            shares = np.exp(rows[place] - rows[place].max())
            shares /= shares.sum()  # with the three ids that are no tokens
            best = np.argsort(-shares[: TOKENIZER.vocab_size], kind="stable")[:4]
            assert [word for word, _ in guesses] == [TOKENIZER.token(i) for i in best]
            np.testing.assert_allclose([p for _, p in guesses], shares[best], atol=1e-5)


def test_ids_that_are_no_tokens_are_never_guessed():
    """A vocabulary may be padded, here with the three likeliest ids."""
    bias = GUESSES["params"]["head_bias"].copy()
    bias[TOKENIZER.vocab_size :] = 50
    padded = {"params": {**GUESSES["params"], "head_bias": bias}}
    [[guesses]] = fill_mask(*GUESS, padded, TOKENIZER, MASKED[2:], top=4, batch=2, context=CONTEXT)
    assert len(guesses) == 4 and all(0 <= p < 1e-6 for _, p in guesses)


@pytest.mark.parametrize(
    "call, texts, options, error, message",
    [
        (embed, [], {}, ValueError, "there are no texts"),
        (embed, "one", {}, TokenizerError, "takes several texts; this is one"),
        (embed, ["a " * 60], {"context": 40}, ValueError, "62 tokens, .* of 40: .* length=40"),
        (embed, ["a"], {"vocab": 9}, TokenizerError, "go up to 22, .* for 0 to 8"),
        (embed, ["a"], {"batch": 0}, ValueError, "batch=0"),
        (embed, ["a"], {"length": 0}, ValueError, "length=0"),
        (fill_mask, [], {}, ValueError, "there are no texts"),
        (fill_mask, ["a [MASK]", "a"], {}, ValueError, r"text 1 has no mask: write \[MASK\]"),
        (fill_mask, ["a " * 40 + "[MASK]"], {"context": 40}, ValueError, "43 tokens, more than"),
        (fill_mask, ["[MASK]"], {"vocab": 9}, TokenizerError, "go up to 22"),
        (fill_mask, ["[MASK]"], {"top": 0}, ValueError, "top=0, but the tokenizer has 1 to 23"),
        (fill_mask, ["[MASK]"], {"top": 24}, ValueError, "top=24"),
    ],
)
def test_what_cannot_be_answered_is_refused(call, texts, options, error, message):
    with pytest.raises(error, match=message):
        call(*[None] * (2 if call is embed else 3), TOKENIZER, texts, **options)


def test_a_tokenizer_without_a_mask_or_without_tokens_is_refused():
    with pytest.raises(TokenizerError, match="no mask token"):
        fill_mask(*GUESS, None, ByteTokenizer(), ["a"])
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        embed(hidden, None, ByteTokenizer(), ["a", ""])


def test_the_head_is_for_the_gaps_alone():
    traced = []

    def head(variables, hidden):
        traced.append(hidden.shape)
        return GUESS[1](variables, hidden)

    fill_mask(GUESS[0], head, GUESSES, TOKENIZER, MASKED[:1], batch=2, context=CONTEXT)
    assert traced == [(2, 1, GUESSER.config.width)]


# The doors.


def test_the_doors_know_the_limits_of_their_model():
    options = {"batch": 4, "normalise": False}
    expected = embed(hidden, WEIGHTS, TOKENIZER, TEXTS, context=CONTEXT, **options)
    found = zoo.embed(ENCODER, WEIGHTS, TOKENIZER, TEXTS, **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    guessed = zoo.fill_mask(GUESSER, GUESSES, TOKENIZER, MASKED, top=4, batch=2)
    expected = fill_mask(*GUESS, GUESSES, TOKENIZER, MASKED, top=4, batch=2, context=CONTEXT)
    assert guessed == expected
    with pytest.raises(ValueError, match="42 tokens, more than the model's context of 40"):
        zoo.fill_mask(GUESSER, GUESSES, TOKENIZER, ["[MASK]" * 40])


DOORS = {
    "embed has no context; it has batch, length, normalise": (zoo.embed, ENCODER, {"context": 8}),
    "fill_mask has no length, tops; it has": (zoo.fill_mask, GUESSER, {"length": 8, "tops": 3}),
    'head="none" guesses no words': (zoo.fill_mask, ENCODER, {}),
    "GPT is no encoder of text": (zoo.embed, gpt.GPT(gpt.TINY), {}),
}


@pytest.mark.parametrize("message", DOORS)
def test_what_a_door_cannot_do_is_refused(message):
    door, model, options = DOORS[message]
    with pytest.raises(ValueError, match=message):
        door(model, None, TOKENIZER, ["a [MASK]"], **options)


# Padding.


def test_lengths_are_powers_of_two_up_to_the_limit():
    assert [module.bucket(n, 40) for n in (1, 16, 17, 32, 33, 40)] == [16, 16, 32, 32, 40, 40]
    assert module.bucket(33, None) == 64 and module.bucket(5, 12) == 12
