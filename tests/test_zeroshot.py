"""Zero-shot, retrieval and linear probes, against loops over single pictures, texts and scores."""

import sys
import tracemalloc
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo import zeroshot
from zoo.models import bert, resnet
from zoo.text import ByteTokenizer
from zoo.text.families import wordpiece

pytestmark = pytest.mark.quick

SPECIALS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
WORDS = "a photo of the drawing cat dog old house ##s . small".split()
TOKENIZER = wordpiece([*SPECIALS, *WORDS], {})
CLASSES = ("cat", "old dog", "small houses")
TEMPLATES = ("a photo of a {}.", "{}", "the drawing of the {}")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def begun_anew():
    """What a test draws does not depend on those before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@dataclass(frozen=True)
class Config:
    """Fields that tell a pair of towers from other models."""

    embed: int = 8
    vocab: int = TOKENIZER.vocab_size
    context: int = 10
    image_size: int = 4
    in_channels: int = 3


class Pair(nn.Module):
    """A pair of towers without depth: a picture is its mean colour, a text the sum of its words,
    each at a weight of its place."""

    config: Config

    def setup(self) -> None:
        self.colour = nn.Dense(self.config.embed)
        self.words = nn.Embed(self.config.vocab, self.config.embed)

    def __call__(self, image, tokens):
        return self.embed_image(image), self.embed_text(tokens), self.temperature()[0]

    def embed_image(self, image, *, train=False):
        return unit(self.colour(image.mean(axis=(1, 2))))

    def embed_text(self, tokens, *, train=False):
        place = 1 / (1 + jnp.arange(tokens.shape[1], dtype=jnp.float32))
        return unit((self.words(tokens) * place[None, :, None]).sum(axis=1))

    def temperature(self):
        return jnp.float32(7.0), jnp.float32(-3.0)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def pair():
    """(model, variables, images)"""
    model = Pair(Config())
    images = np.random.default_rng(1).normal(size=(5, 4, 4, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images, np.zeros((5, 10), np.int32))
    return model, variables, images


def vectors(count, width=6):
    """Unit vectors, float32."""
    found = RNG.normal(size=(count, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


# ---- texts ----


def test_a_text_is_padded_to_the_context_and_keeps_its_end_where_it_is_cut():
    cls, sep, pad = (getattr(TOKENIZER.specials, role) for role in ("cls", "sep", "pad"))
    dog, old = TOKENIZER.id("dog"), TOKENIZER.id("old")
    rows = zeroshot.tokenise(TOKENIZER, ["dog", "old dog old dog old"], 5)
    assert rows.dtype == np.int32
    assert rows.tolist() == [[cls, dog, sep, pad, pad], [cls, old, dog, old, sep]]


def test_a_tokenizer_without_a_pad_token_pads_with_0():
    assert zeroshot.tokenise(ByteTokenizer(), ["ab"], 4).tolist() == [[97, 98, 0, 0]]


def test_the_name_of_a_special_token_is_text_in_a_text():
    [row] = zeroshot.tokenise(TOKENIZER, ["dog [SEP] dog"], 12)
    assert row.tolist().count(TOKENIZER.specials.sep) == 1


def test_a_class_is_the_mean_of_its_templates_unit_vectors():
    lengths = RNG.uniform(
        0.1, 9, TOKENIZER.vocab_size
    )  # so that unit vectors are no matter of course

    def embed_text(tokens):
        hot = np.eye(TOKENIZER.vocab_size)[tokens] * (1 + np.arange(tokens.shape[1]))[:, None]
        return hot.sum(axis=1) * lengths[tokens].sum(axis=1, keepdims=True)

    found = zeroshot.class_embeddings(embed_text, TOKENIZER, CLASSES, TEMPLATES, 12, batch=4)
    assert found.dtype == np.float32
    for name, vector in zip(CLASSES, found, strict=True):
        total = 0
        for template in TEMPLATES:
            ids = TOKENIZER.encode(template.format(name))
            [row] = embed_text(np.array([ids + [TOKENIZER.specials.pad] * (12 - len(ids))]))
            total = total + row / np.linalg.norm(row)
        np.testing.assert_allclose(vector, total / np.linalg.norm(total), atol=1e-6)


def test_zero_shot_probabilities_equal_those_of_a_loop_over_pictures_and_classes(pair):
    model, variables, images = pair
    found = zoo.classify(model, variables, TOKENIZER, images, CLASSES, templates=TEMPLATES, batch=2)
    assert found.dtype == np.float32
    colour = variables["params"]["colour"]
    words = np.asarray(variables["params"]["words"]["embedding"], np.float64)
    expected = np.zeros((len(images), len(CLASSES)))
    for i, image in enumerate(images):
        seen = image.mean(axis=(0, 1)) @ np.float64(colour["kernel"]) + np.float64(colour["bias"])
        for c, name in enumerate(CLASSES):
            total = np.zeros(8)
            for template in TEMPLATES:
                ids = TOKENIZER.encode(template.format(name))
                ids += [TOKENIZER.specials.pad] * (10 - len(ids))
                vector = sum(words[i] / (1 + place) for place, i in enumerate(ids))
                total += vector / np.linalg.norm(vector)
            cosine = total @ seen / np.linalg.norm(total) / np.linalg.norm(seen)
            expected[i, c] = np.exp(7.0 * cosine)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_is_compiled_again_for_the_same_model(pair):
    model, variables, images = pair
    assert zeroshot.towers(Pair(Config())) is zeroshot.towers(model)


def test_rows_go_through_in_few_shapes_and_come_back_in_order():
    shapes = []

    def embed(rows):
        shapes.append(rows.shape)
        return rows * 2

    rows = np.arange(22, dtype=np.float32).reshape(11, 2)
    np.testing.assert_array_equal(zeroshot.in_batches(embed, rows, 4), rows * 2, strict=True)
    zeroshot.in_batches(embed, rows[:1], 4)
    assert shapes == [(4, 2), (4, 2), (4, 2), (1, 2)]


def test_probabilities_of_extreme_scales_are_finite():
    shares = zeroshot.classify(vectors(3), vectors(4), 1e4)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)


NAN = np.full((3, 6), np.nan)
REFUSED = {  # message → what is called
    "is no pair of a picture and a text tower": lambda pair: zoo.classify(
        bert.BERT(bert.TINY), {}, TOKENIZER, None, CLASSES
    ),
    "ids go up to": lambda pair: zoo.classify(Pair(Config(vocab=9)), {}, TOKENIZER, None, CLASSES),
    r"classes are \['cat'\]: .* two or more": lambda pair: zoo.classify(
        *pair[:2], TOKENIZER, pair[2], ["cat"]
    ),
    "classes are 'cat'": lambda pair: zoo.classify(*pair[:2], TOKENIZER, pair[2], "cat"),
    "named twice would share theirs: cat": lambda pair: zoo.classify(
        *pair[:2], TOKENIZER, pair[2], ["cat", "dog", "cat"]
    ),
    "templates are ": lambda pair: zoo.classify(
        *pair[:2], TOKENIZER, pair[2], CLASSES, templates=[]
    ),
    "template 'a photo' must hold {} once": lambda pair: zoo.classify(
        *pair[:2], TOKENIZER, pair[2], CLASSES, templates=["a photo"]
    ),
    "0 rows in batches of 32": lambda pair: zoo.classify(
        *pair[:2], TOKENIZER, pair[2][:0], CLASSES
    ),
    "3 rows in batches of 0": lambda pair: zeroshot.in_batches(np.abs, vectors(3), 0),
    "1 of 3 images have embeddings with NaN": lambda pair: zeroshot.classify(
        np.where([[True], [False], [False]], NAN, 1.0), vectors(2), 1
    ),
    r"images \[3, 6\], classes \[2, 5\]": lambda pair: zeroshot.classify(
        vectors(3), vectors(2, 5), 1
    ),
    "2 of 3 gallery have embeddings with NaN or infinite": lambda pair: zeroshot.recall(
        vectors(2), np.where([[True], [False], [True]], np.inf, vectors(3)), [0, 1]
    ),
    r"queries \[0, 6\]": lambda pair: zeroshot.recall(vectors(0), vectors(3), []),
    "truth has 1 entries for 2 queries": lambda pair: zeroshot.recall(vectors(2), vectors(3), [0]),
    "2 queries have no right item .* query 1": lambda pair: zeroshot.recall(
        vectors(4), vectors(3), [[0], [], [0], []]
    ),
    "places in the gallery: 0 to 2": lambda pair: zeroshot.recall(vectors(2), vectors(3), [0, 3]),
    "by their places in the gallery": lambda pair: zeroshot.recall(
        vectors(2), vectors(3), [0.5, 1.5]
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_compared_is_refused(message, pair):
    with pytest.raises(ValueError, match=message):
        REFUSED[message](pair)


# ---- retrieval ----


def ranks_by_definition(queries, gallery, truth):
    """One query after another, one item after another."""
    found = []
    for query, right in zip(queries.astype(np.float64), truth, strict=True):
        scores = [float(item @ query) for item in gallery.astype(np.float64)]
        best = max(scores[i] for i in right)
        wrong = (score for i, score in enumerate(scores) if i not in right)
        found.append(sum(score >= best - 1e-6 for score in wrong))
    return np.array(found)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1024])
def test_retrieval_both_ways_equals_the_definition_at_every_chunk(chunk):
    """23 pictures of one to three captions, some pictures and captions twins of others."""
    owner = np.repeat(np.arange(23), RNG.integers(1, 4, 23))
    images = vectors(23)
    texts = (images[owner] + 0.5 * vectors(len(owner))).astype(np.float32)
    images[20:] = images[:3]
    texts[-4:] = texts[:4]
    captions = [np.flatnonzero(owner == picture) for picture in range(23)]
    pictures = [[picture] for picture in owner]
    for queries, gallery, truth in ((images, texts, captions), (texts, images, pictures)):
        expected = ranks_by_definition(queries, gallery, truth)
        found = zeroshot.ranks(queries, gallery, truth, chunk)
        np.testing.assert_array_equal(found, expected)
        assert len(set(expected)) > 3
        shares = zeroshot.recall(queries, gallery, truth, (1, 2, 50), chunk)
        assert shares == {k: (expected < k).mean() for k in (1, 2, 50)}


def test_truth_is_an_item_several_or_a_mask():
    queries, gallery = vectors(4), vectors(5)
    one = zeroshot.ranks(queries, gallery, np.array([0, 2, 2, 4]))
    masks = np.eye(5, dtype=bool)[[0, 2, 2, 4]]
    np.testing.assert_array_equal(zeroshot.ranks(queries, gallery, masks), one)
    twice = zeroshot.ranks(queries, gallery, [[0, 0], [2], [2, 2, 2], [4]])
    np.testing.assert_array_equal(twice, one)


def test_a_model_that_calls_all_alike_finds_nothing():
    same = np.repeat(vectors(1), 30, axis=0)
    assert zeroshot.recall(same, same, np.arange(30), (1, 10, 29, 30)) == {
        1: 0,
        10: 0,
        29: 0,
        30: 1,
    }


def test_twins_stand_before_the_right_item_and_neighbours_do_not():
    query = np.array([[1.0, 0.0]])
    twin, near, worse = (np.array([np.cos(a), np.sin(a)]) for a in (1e-4, 1e-2, 0.5))
    for other, before in ((query[0], 1), (twin, 1), (near, 0), (worse, 0)):
        assert zeroshot.ranks(query, np.stack([query[0], other]), [0]).tolist() == [before]
        assert zeroshot.ranks(query, np.stack([other, query[0]]), [1]).tolist() == [before]


def test_twins_that_are_both_right_do_not_stand_before_each_other():
    same = np.repeat(vectors(1), 4, axis=0)
    assert zeroshot.ranks(same[:2], same, [[0, 1, 2], [3]]).tolist() == [1, 3]


MEASURED = {
    "recall": lambda *x: zeroshot.recall(*x, np.arange(1500), chunk=100),
    "nearest": lambda *x: zeroshot.nearest(*x, 5, chunk=100),
}


@pytest.mark.parametrize("measured", MEASURED)
def test_scores_are_held_a_chunk_at_a_time(measured):
    """All 1500 × 1500 scores at once are 18 MB, and so are their places."""
    queries, gallery = vectors(1500), vectors(1500)
    tracemalloc.start()
    try:
        MEASURED[measured](queries, gallery)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_the_nearest_are_those_of_a_full_sort_and_of_equals_the_first(chunk):
    queries, gallery = vectors(9), vectors(12)
    gallery[7] = gallery[2]
    places, scores = zeroshot.nearest(queries, gallery, 5, chunk)
    for query, found, values in zip(queries.astype(np.float64), places, scores, strict=True):
        exact = (gallery.astype(np.float64) @ query).tolist()
        expected = sorted(range(12), key=lambda i: (-exact[i], i))[:5]
        assert found.tolist() == expected
        np.testing.assert_allclose(values, [exact[i] for i in expected], atol=1e-12)


# ---- features and probes ----


def test_features_are_what_a_model_without_a_head_returns(pair):
    model, variables, images = pair
    expected = model.apply(variables, images, method="embed_image")
    found = zeroshot.features(model, variables, images, batch=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_features_of_a_model_with_a_head_are_refused():
    model = zoo.module_class(resnet)(resnet.TINY)
    with pytest.raises(ValueError, match="num_classes=0"):
        zeroshot.features(model, {}, np.zeros((1, 8, 8, 3), np.float32))


def blobs(count, noise):
    """(features [n, 5], labels): three classes along three of the axes, faint beside the others."""
    labels = RNG.permutation(np.repeat(["cat", "dog", "owl"], count))
    middle = 2 * np.eye(5)[np.searchsorted(["cat", "dog", "owl"], labels)]
    features = (middle + noise * RNG.normal(size=middle.shape)) * [0.1, 0.1, 0.1, 4, 4]
    return features.astype(np.float32), labels


def test_a_probe_is_scikit_learns_at_the_strength_that_does_best_on_what_is_held_out():
    from sklearn.linear_model import LogisticRegression

    features, labels = blobs(30, noise=0.9)
    probe = zeroshot.linear_probe(features, labels, strengths=(1e-4, 1.0, 1e4), seed=3)
    again = zeroshot.linear_probe(features, labels, strengths=(1e4, 1.0, 1e-4), seed=3)
    assert (probe.strength, probe.accuracy) == (again.strength, again.accuracy)
    others = {}
    for strength in (1e-4, 1.0, 1e4):
        alone = zeroshot.linear_probe(features, labels, strengths=(strength,), seed=3)
        others[strength] = alone.accuracy
    assert others[1e-4] < probe.accuracy == max(others.values()) < 1
    assert probe.strength == min(c for c in others if others[c] == probe.accuracy)
    more, _ = blobs(30, noise=0.9)
    expected = LogisticRegression(C=probe.strength, max_iter=1000).fit(features, labels)
    np.testing.assert_array_equal(probe.predict(more), expected.predict(more))


def test_what_is_held_out_is_a_share_of_each_class():
    labels = np.repeat(["cat", "dog", "owl"], [40, 10, 2])
    held = zeroshot._held_out(labels, 52, 0.2, seed=0)
    assert [int(held[labels == name].sum()) for name in ("cat", "dog", "owl")] == [8, 2, 1]
    other = zeroshot._held_out(labels, 52, 0.2, seed=1)
    assert (held != other).any()


def test_of_strengths_that_do_equally_well_the_strongest_penalty_is_taken():
    probe = zeroshot.linear_probe(*blobs(10, noise=0.01), strengths=(1e3, 1e2, 1e4))
    assert (probe.strength, probe.accuracy) == (1e2, 1)


def test_a_probe_is_judged_on_what_it_has_not_learned():
    """Features without information, so many that all can be learned by heart."""
    _, labels = blobs(20, noise=1.0)
    features = RNG.normal(size=(60, 300))
    probe = zeroshot.linear_probe(features, labels, strengths=(1e4,))
    assert probe.accuracy < 0.75 and (probe.predict(features) == labels).all()


PROBES = {  # message → features, labels, options
    r"labels \[4\] for 5 features": (vectors(5), [0, 1, 0, 1], {}),
    "class 1 has 1 examples": (vectors(5), [0, 0, 0, 0, 1], {}),
    r"all labels are \[2\]": (vectors(5), [2] * 5, {}),
    "holdout is 1": (vectors(4), [0, 1, 0, 1], {"holdout": 1}),
    "3 of 3 features have embeddings with NaN": (NAN, [0, 1, 0], {}),
}


@pytest.mark.parametrize("message", PROBES)
def test_what_no_probe_can_be_fitted_to_is_refused(message):
    features, labels, options = PROBES[message]
    with pytest.raises(ValueError, match=message):
        zeroshot.linear_probe(features, labels, **options)


def test_without_scikit_learn_a_probe_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        zeroshot.linear_probe(*blobs(5, 1.0))
