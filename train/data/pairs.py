"""Pictures with captions, opened: what `Pairs.open` gives to the trainer.

    to train   {"image" uint8 [b, h, w, c], "tokens" int32 [b, n], "index" int64 [b]}
    to judge   {"image" uint8 [b, h, w, c], "tokens" int32 [b, k, n], "captions" int32 [b],
                "index" int64 [b], "mask" float32 [b]}

b: examples of this process · n: `data.length` · k: captions of the picture that has the most, of
which `captions` says how many are real. The words of a row end with the tokenizer's end of text.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.config import ConfigError, Pairs
from train.data import captions, pipeline, tokens
from train.data.augment import evaluation_transform
from train.data.captions import View
from train.data.images import Pictured
from train.data.sources import Example, Split
from train.data.text import SPECIALS
from zoo import zeroshot
from zoo.preprocess import Picture, Unreadable, decode
from zoo.text import Tokenizer

REMEMBERED = 2**16  # rows of captions: 20 MB of CLIP's


class Extra(NamedTuple):
    """What else a split is tested with.

    distractors   uint8 [d, h, w, c], pictures that are not in the split
    order_images  uint8 [p, 2, h, w, c] and
    order_tokens  int32 [p, 2, n], of pairs whose captions are the same words in another order
    """

    distractors: np.ndarray
    order_images: np.ndarray
    order_tokens: np.ndarray


@dataclass(frozen=True)
class Dataset(Pictured):
    """Pictures with captions, and the tokenizer of these."""

    cfg: Pairs
    source: captions.Captioned
    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.cfg.length

    def train(self) -> pipeline.Stream:
        """Endless shuffled batches whose position can be stored: of each picture a view, a caption
        and a template, drawn anew at each visit."""
        return pipeline.train_stream(
            self.source.splits["train"],
            self.cfg,
            read=self.read,
            distinct=self.cfg.distinct,
            tour=tour(self.source.splits["train"]) if self.cfg.alike > 1 else None,
            together=self.cfg.alike,
            content=tokens.digest(self.tokenizer),
            **pipeline.this_process(),
        )

    def evaluate(self, split: str) -> tuple[Iterator[pipeline.Batch], pipeline.Skips]:
        """Every picture of "validation" or "test" once, with all its captions in the first template
        and a `mask`; and what was unreadable."""
        examples = self.source.splits[split]
        skips = pipeline.Skips(split, len(examples))
        read = partial(self._whole, most_captions(examples))
        return pipeline.eval_batches(
            examples, self.cfg, skips=skips, read=read, **pipeline.this_process()
        ), skips

    def extra(self, split: str) -> Extra | None:
        """What the source tests that split with beside its own pairs, if anything."""
        beside = self.source.beside.get(split)
        if beside is None:
            return None
        pairs = len(beside.order)
        views = [view for pair in beside.order for view in pair]
        return Extra(
            distractors=self._pictures(beside.distractors),
            order_images=self._pictures([v.picture() for v in views]).reshape(
                pairs, 2, *self.shape
            ),
            order_tokens=self.rows([v.captions[0] for v in views]).reshape(pairs, 2, self.length),
        )

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global training batch."""
        b = self.cfg.batch_size
        return {
            "image": jax.ShapeDtypeStruct((b, *self.shape), jnp.uint8),
            "tokens": jax.ShapeDtypeStruct((b, self.length), jnp.int32),
        }

    # One example.

    def read(self, example: Example, rng: np.random.Generator) -> tuple[Picture, Mapping[str, Any]]:
        view: View = drawn(example["views"], rng)
        caption, template = drawn(view.captions, rng), drawn(self.cfg.templates, rng)
        if self.cfg.forget:
            caption = without_some(caption, self.cfg.forget, rng)
        return view.picture(), {"tokens": self._row(caption, template)}

    @cached_property
    def _row(self) -> Callable[[str, str], np.ndarray]:
        """int32 [n] of a caption in a template, which may come again soon."""
        return lru_cache(REMEMBERED)(lambda caption, template: self.rows([caption], template)[0])

    def _whole(
        self, most: int, example: Example, rng: np.random.Generator
    ) -> tuple[Picture, Mapping[str, Any]]:
        view: View = example["views"][0]
        found = np.zeros((most, self.length), np.int32)
        found[: len(view.captions)] = self.rows(view.captions)
        return view.picture(), {"tokens": found, "captions": np.int32(len(view.captions))}

    def rows(self, texts: Sequence[str], template: str | None = None) -> np.ndarray:
        """int32 [t, n] of captions in a template, else in the first."""
        template = self.cfg.templates[0] if template is None else template
        found = [" ".join(sorted(t.split())) if self.cfg.bag else t for t in texts]
        written = [template.replace("{}", caption) for caption in found]
        return zeroshot.tokenise(self.tokenizer, written, self.length)

    def _pictures(self, some: Sequence[Picture]) -> np.ndarray:
        """uint8 [p, h, w, c], as they are evaluated."""
        decoded = [decode(picture, self.cfg.channels) for picture in some]
        found = [evaluation_transform(image, self.cfg.image_size) for image in decoded]
        return np.array(found, np.uint8).reshape(-1, *self.shape)


def without_some(caption: str, share: float, rng: np.random.Generator) -> str:
    """Without each of its words by that chance, but not without all."""
    words = caption.split()
    kept = rng.random(len(words)) >= share
    if not kept.any():
        return drawn(words, rng) if words else caption
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)


def drawn(some: Any, rng: np.random.Generator) -> Any:
    return some[rng.integers(len(some))]


def each_caption(split: Split) -> Iterator[tuple[str, ...]]:
    """The captions of each example that has them, each once."""
    for i in range(len(split)):
        try:
            views = split[i]["views"]
        except Unreadable:
            continue
        yield captions.each_once(caption for view in views for caption in view.captions)


def tour(split: Split) -> np.ndarray:
    """int64 [n]: an order of the examples in which captions of the same words, whatever theirs is,
    are neighbours, and next to them those that share the rarest words.

    By each example's first caption, its words sorted from the rarest on. What cannot be used comes
    last.
    """
    bags: list[list[str]] = []
    for i in range(len(split)):
        try:
            bags.append(split[i]["views"][0].captions[0].split())
        except Unreadable:
            bags.append([])
    counts = Counter(word for bag in bags for word in set(bag))
    rarest = [sorted((counts[word], word) for word in bag) for bag in bags]
    return np.array(sorted(range(len(bags)), key=lambda i: (not bags[i], rarest[i], i)))


def most_captions(split: Split) -> int:
    return max(map(len, each_caption(split)), default=1)


def open_pairs(cfg: Pairs) -> Dataset:
    """Raises ConfigError for a source or a tokenizer that cannot be used, a mean or std that does
    not fit."""
    source = captions.open_source(cfg)

    def texts() -> Iterator[str]:
        yield from (template.replace("{}", " ") for template in cfg.templates)
        for found in each_caption(source.splits["train"]):
            yield from found

    tokenizer = tokens.open_tokenizer(cfg, texts, SPECIALS)
    check_closed(tokenizer, cfg)
    data = Dataset(cfg, source, tokenizer)
    data.check()
    return data


def check_closed(tokenizer: Tokenizer, cfg: Pairs) -> None:
    """Raises ConfigError unless the tokenizer ends each text, where a text tower looks at it."""
    last, roles = tokenizer.encode("a")[-1:], tokenizer.specials
    if not {*last} & {roles.eos, roles.sep}:
        raise ConfigError(
            f"data.tokenizer = {cfg.tokenizer!r} puts no token after a text, where the model reads "
            'it: use that of a CLIP or SigLIP, or set "add_eos_token": true in its '
            "tokenizer_config.json"
        )
