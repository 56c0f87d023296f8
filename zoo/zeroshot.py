"""What pictures show, in words that no head was trained on, and which texts and pictures belong
together (CLIP: Radford et al., 2021, arXiv:2103.00020, section 3.1).

    classes × templates → texts → tokens [t, n] → [t, e] → mean, length 1 → classes [c, e] ┐
    images [b, H, W, channels] ──────────────────────────→ pictures [b, e] ────────────────┴→ [b, c]

Embeddings are made by functions of rows, tokens or images, that the caller compiles; what is made
of embeddings is computed in float64, so that it does not depend on how it is cut into chunks.

b pictures · t texts · n tokens · c classes · e width of the common space · q queries · g gallery.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange

from zoo import registry
from zoo.text.tokenizer import Tokenizer

Array = np.ndarray
Embed = Callable[[Any], Any]  # rows [b, …] → embeddings [b, e]
TEMPLATES = (  # the first is the paper's own default, section 3.1.4
    "a photo of a {}.",
    "a picture that shows the {}.",
    "one {}, seen from close by.",
    "a drawing of a {}.",
    "{}",
)
# Scores of unit vectors that are as good as equal: the embeddings of one picture differ by as much
# from batch to batch.
TIE = 1e-6


# Pairs of towers.


def is_pair(config: Any) -> bool:
    """Whether a page's Config is that of a picture and a text tower with a common space."""
    return {"vocab", "embed"} <= {*dir(config)}


def check_pair(config: Any, source: str) -> None:
    """Raises ValueError for the Config of any other model, and names those that would do."""
    if not is_pair(config):
        known = [e.name for e in registry.entries().values() if {"vocab", "embed"} <= {*e.fields}]
        raise ValueError(
            f"{source} is no pair of a picture and a text tower, and cannot compare the two: take "
            f"one of {', '.join(known)}, or weights of their families"
        )


class Towers(NamedTuple):
    """Jitted functions (variables, rows) → float32 [b, e]."""

    image: Callable[..., jax.Array]
    text: Callable[..., jax.Array]


@lru_cache(8)
def towers(model: Any) -> Towers:
    """The same for the same model, so that nothing is compiled again."""

    def compiled(method: str) -> Callable[..., jax.Array]:
        return jax.jit(lambda variables, rows: model.apply(variables, rows, method=method))

    return Towers(compiled("embed_image"), compiled("embed_text"))


@lru_cache(8)
def _whole(model: Any) -> Callable[..., jax.Array]:
    return jax.jit(model.apply)


def features(model: Any, variables: Any, images: Any, *, batch: int = 32) -> Array:
    """float32 [b, d], what a linear probe reads: the image embeddings of a pair of towers, or what
    a model of pictures without a head returns. Appendix A.3 probes CLIP's ViTs on what they have
    before the projection into the common space; these have passed it and are of length 1.

    images: [b, H, W, channels], as `zoo.preprocess.prepare` gives them. Raises ValueError for a
    model with a head.
    """
    if is_pair(model.config):
        return in_batches(partial(towers(model).image, variables), images, batch)
    if getattr(model.config, "num_classes", 0):
        raise ValueError(
            f"this {type(model).__name__} has a head of {model.config.num_classes} classes: load "
            "it with num_classes=0, so that it returns its features"
        )
    return in_batches(partial(_whole(model), variables), images, batch)


def in_batches(embed: Embed, rows: Any, batch: int = 32) -> Array:
    """float32 [n, e] of rows [n, …], `batch` at a time.

    The last ones are filled up to a power of two by the last row, so that few shapes are compiled.
    Raises ValueError for no rows.
    """
    if batch < 1 or not len(rows):
        raise ValueError(f"{len(rows)} rows in batches of {batch}: both must be at least 1")
    found = []
    for some in chunks(len(rows), batch):
        part = np.asarray(rows[some])
        size = min(batch, 1 << (len(part) - 1).bit_length())
        filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        found.append(np.asarray(embed(filled), np.float32)[: len(part)])
    return np.concatenate(found)


def chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


# Texts.


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> Array:
    """int32 [t, context]: a row for each text, padded with the tokenizer's pad id, or 0 where it
    has none. What is longer is cut and keeps its closing token.

    "<|endoftext|>" in a text is text like any other.
    """
    pad = tokenizer.specials.pad
    ids = tokenizer.encode_batch(texts, parse_special=False)
    return tokenizer.pad(ids, context, truncate=True, pad=0 if pad is None else pad)[0]


def class_embeddings(
    embed_text: Embed,
    tokenizer: Tokenizer,
    classes: Sequence[str],
    templates: Sequence[str],
    context: int,
    *,
    batch: int = 256,
) -> Array:
    """float32 [c, e], of length 1: for each class the mean of the unit vectors of all templates
    with its name (section 3.1.4).

    embed_text: int32 [t, context] → [t, e]. templates: each holds {} once, where the name stands.
    Raises ValueError for fewer than two classes, for one that is there twice, and for a template
    without its {}.
    """
    check_classes(classes)
    check_templates(templates)
    texts = [template.replace("{}", name) for name in classes for template in templates]
    vectors = in_batches(embed_text, tokenise(tokenizer, texts, context), batch)
    each = rearrange(unit(vectors), "(c t) e -> c t e", t=len(templates))
    return unit(each.mean(axis=1)).astype(np.float32)


def check_classes(classes: Sequence[str]) -> None:
    if isinstance(classes, str) or len(classes) < 2:
        raise ValueError(
            f"classes are {classes!r}: give the names of two or more, since probabilities of the "
            "classes add up to 1"
        )
    if twice := sorted(name for name, count in Counter(classes).items() if count > 1):
        raise ValueError(f"classes that are named twice would share theirs: {', '.join(twice)}")


def check_templates(templates: Sequence[str]) -> None:
    if isinstance(templates, str) or not len(templates):
        raise ValueError(f'templates are {templates!r}: give one or more, such as ["a {{}}"]')
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"template {template!r} must hold {{}} once, where the name of a class stands"
            )


def unit(vectors: Array) -> Array:
    """float64 [n, …, e] of length 1; zeros stay zeros."""
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def classify(images: Array, classes: Array, scale: float) -> Array:
    """float32 [b, c]: the probability of each class for each picture, softmax(scale · ⟨b, c⟩), rows
    that add up to 1.

    images: [b, e], classes: [c, e], both of length 1. scale: what the model multiplies cosines by;
    a bias that all pairs have (SigLIP) changes nothing here. Raises ValueError for embeddings that
    are not finite.
    """
    images, classes = checked(images=images, classes=classes)
    return softmax(scale * (images.astype(np.float64) @ classes.astype(np.float64).T)).astype(
        np.float32
    )


def softmax(logits: Array) -> Array:
    """Over the last axis."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


# Retrieval.


def recall(
    queries: Array,
    gallery: Array,
    truth: Sequence[Any],
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 1024,
) -> dict[int, float]:
    """{k: share of the queries that have a right item among their k nearest}.

    Arguments, ties and what is raised: see `ranks`. Both ways: pictures whose captions are items
    4 and 5 have `truth` [[4, 5], …], captions of picture 2 have [2, 2, …].
    """
    before = ranks(queries, gallery, truth, chunk)
    return {k: float((before < k).mean()) for k in ks}


def ranks(queries: Array, gallery: Array, truth: Sequence[Any], chunk: int = 1024) -> Array:
    """int64 [q]: how many wrong items of the gallery stand before each query's best right one.

    queries [q, e], gallery [g, e]: scores are products. truth: for each query the items that are
    right, an index, several, or bool [g]. A wrong item whose score is within TIE of the best right
    one's stands before it, so that neither twins nor a model that calls all alike score by chance.
    Memory: `chunk` × `chunk` scores at a time, and one number a pair of `truth`.
    Raises ValueError for embeddings that are not finite or of another width, and for a query
    without a right item.
    """
    queries, gallery = checked(queries=queries, gallery=gallery)
    owner, item, starts = _right(truth, len(queries), len(gallery))
    pairs = [
        np.einsum(
            "pe,pe->p", *(x.astype(np.float64) for x in (queries[owner[s]], gallery[item[s]]))
        )
        for s in chunks(len(owner), chunk)
    ]
    scores = np.concatenate(pairs)
    lowest = np.maximum.reduceat(scores, starts) - TIE
    # Below, right items are counted too.
    before = -np.add.reduceat((scores >= lowest[owner]).astype(np.int64), starts)
    for columns in chunks(len(gallery), chunk):
        items = gallery[columns].astype(np.float64).T
        for rows in chunks(len(queries), chunk):
            found = queries[rows].astype(np.float64) @ items
            before[rows] += (found >= lowest[rows, None]).sum(axis=1)
    return before


def _right(truth: Sequence[Any], queries: int, gallery: int) -> tuple[Array, Array, Array]:
    """(query, item) of every right pair, sorted by query, and where each query's pairs begin."""
    rows = [np.atleast_1d(np.asarray(row)) for row in truth]
    rows = [np.flatnonzero(row) if row.dtype == bool else np.unique(row) for row in rows]
    counts = np.array([len(row) for row in rows], np.int64)
    if len(rows) != queries:
        raise ValueError(f"truth has {len(rows)} entries for {queries} queries: give one for each")
    if not counts.all():
        raise ValueError(
            f"{(counts == 0).sum()} queries have no right item in the gallery, the first of them "
            f"query {counts.argmin()}: leave them out"
        )
    item = np.concatenate(rows)
    if item.dtype.kind not in "iu" or item.min() < 0 or item.max() >= gallery:
        raise ValueError(f"truth names items by their places in the gallery: 0 to {gallery - 1}")
    return np.repeat(np.arange(queries), counts), item, np.cumsum(counts) - counts


def nearest(queries: Array, gallery: Array, count: int, chunk: int = 1024) -> tuple[Array, Array]:
    """(places int64 [q, count] in the gallery, scores float64 [q, count]), the nearest first; of
    equals the first. Memory: about `chunk` × `chunk` scores, one query's at least, and the gallery
    once more in float64.

    Raises ValueError for embeddings that are not finite or of another width.
    """
    queries, gallery = checked(queries=queries, gallery=gallery)
    items, found = gallery.astype(np.float64).T, []
    for rows in chunks(len(queries), max(1, chunk * chunk // len(gallery))):
        scores = queries[rows].astype(np.float64) @ items
        # Copied: a view would hold all places of all queries.
        places = np.argsort(-scores, axis=1, kind="stable")[:, :count].copy()
        found.append((places, np.take_along_axis(scores, places, axis=1)))
    places, scores = zip(*found, strict=True)
    return np.concatenate(places), np.concatenate(scores)


def checked(**embeddings: Any) -> list[Array]:
    """Each as a NumPy array. Raises ValueError unless all are [n, e] with the same e, at least one
    row, and finite."""
    arrays = {name: np.asarray(x) for name, x in embeddings.items()}
    if any(x.ndim != 2 or not x.size for x in arrays.values()) or (
        len({x.shape[1] for x in arrays.values()}) > 1
    ):
        stated = ", ".join(f"{name} {list(x.shape)}" for name, x in arrays.items())
        raise ValueError(f"embeddings are [n, e] with one e for all, but there are {stated}")
    for name, x in arrays.items():
        bad = int((~np.isfinite(x)).any(axis=1).sum())
        if bad:
            raise ValueError(
                f"{bad} of {len(x)} {name} have embeddings with NaN or infinite numbers: the model "
                "has diverged, or was fed such numbers"
            )
    return list(arrays.values())


# Linear probe.

STRENGTHS = tuple(10.0**power for power in range(-3, 5))


class Probe(NamedTuple):
    """A linear classifier on frozen features.

    predict: float [n, d] → the class of each. strength: sklearn's C, the inverse of the penalty,
    that did best on the part held out; accuracy: what it reached there.
    """

    predict: Callable[[Array], Array]
    strength: float
    accuracy: float


def linear_probe(
    features: Array,
    labels: Any,
    *,
    strengths: Sequence[float] = STRENGTHS,
    holdout: float = 0.2,
    seed: int = 0,
    iterations: int = 1000,
) -> Probe:
    """Multinomial logistic regression by L-BFGS, the classifier of section 3.2 and appendix A.3.
    What it reaches on `features` of a CLIP is no number of the paper's, whose ViTs are probed
    before their projection.

    features: float [n, d] of training examples; labels: [n], of any kind. A share `holdout` of each
    class is cut off to choose among `strengths`, of equals the strongest penalty; the probe is then
    fitted to all examples. Needs scikit-learn. Raises ValueError for features that are not finite,
    and where a class has too few examples to hold one out.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ValueError("linear_probe needs scikit-learn: pip install scikit-learn") from error
    labels = np.asarray(labels)
    [features] = checked(features=features)
    held = _held_out(labels, len(features), holdout, seed)

    def fitted(strength: float, rows: Array) -> Any:
        model = LogisticRegression(C=strength, max_iter=iterations)
        with warnings.catch_warnings():
            # One that has not converged is judged as it is.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(features[rows], labels[rows])

    def accuracy(strength: float) -> float:
        return float(fitted(strength, ~held).score(features[held], labels[held]))

    reached = {strength: accuracy(strength) for strength in sorted(strengths)}
    best = max(reached, key=lambda strength: reached[strength])
    return Probe(fitted(best, np.ones(len(labels), bool)).predict, best, reached[best])


def _held_out(labels: Array, count: int, holdout: float, seed: int) -> Array:
    """bool [n]: of each class a share, at least one example."""
    if labels.shape != (count,):
        raise ValueError(f"labels {list(labels.shape)} for {count} features: give one for each")
    if not 0 < holdout < 1:
        raise ValueError(f"holdout is {holdout}: a share between 0 and 1")
    rng, held = np.random.default_rng(seed), np.zeros(count, bool)
    classes = np.unique(labels)
    for label in classes:
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = max(1, round(holdout * len(members)))
        if cut == len(members):
            raise ValueError(
                f"class {label} has {len(members)} examples: one must be left to learn from "
                f"after a share of {holdout} is held out"
            )
        held[members[:cut]] = True
    if len(classes) < 2:
        raise ValueError(f"all labels are {classes.tolist()}: a classifier needs two classes")
    return held
