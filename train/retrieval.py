"""How well pictures and texts find each other: what is judged of a pair of towers.

n pictures · t texts, one or more for each picture · e width of the common space · m tokens of a
text. What is computed of embeddings is computed on the host, by `zoo.zeroshot`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange

from train import parallel, pictures
from train.state import Batch, Evaluate, State
from zoo import zeroshot

KS = (1, 5, 10)
SHOWN, SIDE = 2000, 96  # pictures that a gallery chooses from, and their side: they are kept
TOP = 5  # pictures of a query in the gallery
SPLITS = ("validation", "test")
Z = 1.959964  # of the normal distribution: 95 % lie within


class Embedded(NamedTuple):
    """A split as embeddings of length 1.

    image [n, e], text [t, e] float32; owner int [t], the picture of each text, ascending;
    first int [n], the first text of each picture; tokens int32 [n, m] of those; pictures uint8
    [≤ SHOWN, h, w, c], the first of the split, made smaller by leaving pixels out.
    """

    image: np.ndarray
    text: np.ndarray
    owner: np.ndarray
    first: np.ndarray
    tokens: np.ndarray
    pictures: np.ndarray


def evaluators(
    data: Any,
    apply: Callable[..., Any],
    loss: Callable[..., jax.Array],
    queries: int,
) -> dict[str, Evaluate]:
    """split -> its `evaluate`, for data as `train.data.pairs.Dataset`.

    apply: that of a pair of towers, (variables, rows, method=…). loss(image, text, scale, bias): of
    the pairs of a batch. queries: captions that the gallery shows; 0: no gallery.

    Finds `loss`, the mean over batches; `recall1`, `recall5` and `recall10`, the share of texts
    whose picture is among so many that fit best, out of the whole split; `text_recall1` …, the
    share of pictures that find a text of theirs. What `data.extra(split)` has gives `recall10_all`,
    among its pictures too, and `order`, `order_low`, `order_high`: see `order`.
    """

    @jax.jit
    def of_image(variables: Any, image: jax.Array) -> jax.Array:
        return apply(variables, data.normalise(image), method="embed_image")

    @jax.jit
    def of_text(variables: Any, tokens: jax.Array) -> jax.Array:  # [b, k, m] → [b, k, e]
        rows = rearrange(tokens, "b k m -> (b k) m")
        found = apply(variables, rows, method="embed_text")
        return rearrange(found, "(b k) e -> b k e", b=len(tokens))

    score, temperature = jax.jit(loss), jax.jit(partial(apply, method="temperature"))
    extra = cache(data.extra)  # its pictures are drawn once

    def evaluate(split: str, state: State, batches: Iterable[Batch]) -> Any:
        variables = state.variables()
        image, text = partial(of_image, variables), partial(of_text, variables)
        found, like = embed(image, text, batches)
        scale, bias = parallel.whole(temperature(variables))
        metrics = {
            "loss": mean_loss(partial(score, scale=scale, bias=bias), found, len(like)),
            **named("recall", zeroshot.recall(found.text, found.image, list(found.owner), KS)),
            **named("text_recall", zeroshot.recall(found.image, found.text, texts(found), KS)),
        }
        if (more := extra(split)) is not None and len(more.distractors):
            others = embed_rows(image, more.distractors, like)
            everything = np.concatenate([found.image, others])
            [share] = zeroshot.recall(found.text, everything, list(found.owner), (10,)).values()
            metrics["recall10_all"] = share
        if more is not None and len(more.order_images):
            pairs = embed_pairs(image, text, more, like)
            metrics |= named("order", order(*pairs))
        drawn = gallery(found, queries, data.tokenizer) if queries else {}
        return metrics, drawn

    return {split: partial(evaluate, split) for split in SPLITS}


def named(prefix: str, found: Mapping[Any, float]) -> dict[str, float]:
    return {f"{prefix}{key}": value for key, value in found.items()}


# Embedding.


def embed(
    image: Callable[..., jax.Array], text: Callable[..., jax.Array], batches: Iterable[Batch]
) -> tuple[Embedded, jax.Array]:
    """A split embedded, on the host of every process; and the pictures of a batch, to put others
    onto the devices like them."""
    rows, shown, count, like = [], [], 0, None
    for batch in batches:
        like = batch["image"]
        found = {"image": image(like), "text": text(batch["tokens"])}
        kept = {key: batch[key] for key in ("tokens", "captions", "mask")}
        row = parallel.whole({**found, **kept})
        real = row.pop("mask") > 0
        rows.append({key: x[real] for key, x in row.items()})
        if count < SHOWN:
            step = -(-max(like.shape[1:3]) // SIDE)
            shown.append(parallel.whole(like)[real, ::step, ::step])
        count += int(real.sum())
    assert like is not None, "a split is never empty"
    whole = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    written = np.arange(whole["text"].shape[1])[None, :] < whole["captions"][:, None]  # [n, k]
    owner = np.nonzero(written)[0]
    embedded = Embedded(
        image=whole["image"],
        text=whole["text"][written],
        owner=owner,
        first=np.searchsorted(owner, np.arange(len(written))),
        tokens=whole["tokens"][:, 0],
        pictures=np.concatenate(shown)[:SHOWN],
    )
    return embedded, like


def embed_rows(
    embed: Callable[[jax.Array], jax.Array], rows: np.ndarray, like: jax.Array
) -> np.ndarray:
    """`embed` of rows that every process has, in batches as large as `like` and spread over the
    devices as it is."""
    size = len(like)
    filled = rows[np.arange(-(-len(rows) // size) * size) % len(rows)]

    def put(part: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(part.shape, like.sharding, lambda where: part[where])

    parts = [filled[i : i + size] for i in range(0, len(filled), size)]
    return np.concatenate([parallel.whole(embed(put(part))) for part in parts])[: len(rows)]


def embed_pairs(
    image: Callable[..., jax.Array], text: Callable[..., jax.Array], extra: Any, like: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """(images, texts) [p, 2, e] of the pairs that differ in the order of words alone."""
    images = embed_rows(image, rearrange(extra.order_images, "p i ... -> (p i) ..."), like)
    tokens = rearrange(extra.order_tokens, "p i m -> (p i) 1 m")
    texts = embed_rows(text, tokens, like)[:, 0]
    images, texts = (rearrange(x, "(p i) e -> p i e", i=2) for x in (images, texts))
    return images, texts


# Judging.


def mean_loss(score: Callable[..., jax.Array], found: Embedded, batch_size: int) -> float:
    """The mean over batches of pictures with their first texts, neighbours in different ones.

    What is left of a split after whole batches is left out, unless it has less than one.
    """
    n = len(found.image)
    count = max(1, n // batch_size)
    rows = [np.arange(n)[i::count][:batch_size] for i in range(count)]
    losses = [score(found.image[row], found.text[found.first[row]]) for row in rows]
    return float(np.mean(jax.device_get(losses)))


def texts(found: Embedded) -> list[np.ndarray]:
    """The texts of each picture, by number."""
    return np.split(np.arange(len(found.owner)), found.first[1:])


def order(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """Whether what tells two captions of the same words apart is seen: their order.

    images, texts: [p, 2, e], each picture with its own caption. Each of the 2 · p chooses between
    the two captions for its picture, and between the two pictures for its caption; a tie is half a
    hit. Returns {"": share of hits, "_low" and "_high": its 95 % interval}, as of 2 · p trials:
    what a picture and its own caption choose is not independent.
    """
    scores = np.einsum("pie,pte->pit", images.astype(np.float64), texts.astype(np.float64))
    right = np.diagonal(scores, axis1=1, axis2=2)  # [p, 2]
    other_text = scores[:, [0, 1], [1, 0]]
    margins = np.stack([right - other_text, right - other_text[:, ::-1]])
    hits = (np.sign(np.where(abs(margins) <= zeroshot.TIE, 0, margins)) + 1) / 2
    share = float(hits.mean())
    low, high = wilson(share, right.size)
    return {"": share, "_low": low, "_high": high}


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` trials (Wilson, 1927, Journal of the American
    Statistical Association 22, page 209)."""
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    middle, whole = share + Z**2 / (2 * count), 1 + Z**2 / count
    return (middle - spread) / whole, (middle + spread) / whole


def gallery(found: Embedded, queries: int, tokenizer: Any) -> dict[str, np.ndarray]:
    """Captions from all over the first SHOWN pictures, with those of them that fit best; the rank
    is that in the whole split."""
    n = len(found.pictures)
    chosen = np.linspace(0, n - 1, min(queries, n)).astype(int)
    asked = found.text[found.first[chosen]]
    places, _ = zeroshot.nearest(asked, found.image[:n], TOP)
    behind = zeroshot.ranks(asked, found.image, list(chosen))
    rows = [
        pictures.Query(
            said(found.tokens[i], tokenizer),
            found.pictures[best],
            int(np.flatnonzero(best == i)[0]) if i in best else None,
            1 + int(rank),
        )
        for i, best, rank in zip(chosen, places, behind, strict=True)
    ]
    return {"gallery": pictures.gallery(rows)}


def said(row: np.ndarray, tokenizer: Any) -> str:
    """What a row of tokens says up to its end: a tokenizer without a pad id would decode what
    follows as text."""
    closing = [i for i in (tokenizer.specials.eos, tokenizer.specials.sep) if i is not None]
    ends = np.flatnonzero(np.isin(row, closing))
    if len(ends) > 1 and ends[0] == 0:  # of a tokenizer whose texts begin with the same token
        ends = ends[1:]
    return tokenizer.decode(row[: ends[0]] if len(ends) else row, skip_special=True)
