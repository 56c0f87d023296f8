"""Batches of pictures as numpy arrays: shuffled, sharded, resumable to train on; in order to judge.

    split[i] → read → decode → augment → {"image" uint8 [b, h, w, c], …, "index" int64 [b]}

b: examples of this process, `data.batch_size // process_count`. `index` is the position in the
split; what else a batch holds is for `read` to say: pictures with a class have "label" int32 [b].
Threads decode; which example comes when, and what is random about it, depends only on `data.seed`
and its position in the stream, not on threads, processes or resumption.
"""

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import grain
import jax
import numpy as np

from train.config import ConfigError, Data, Pictures
from train.data.augment import evaluation_transform, train_transform
from train.data.sources import Example, Split
from zoo.preprocess import Picture, Unreadable, decode

Batch = dict[str, np.ndarray]
Item = TypeVar("Item")
# (example, what is random about it) → (its picture, what else a batch holds of it)
Read = Callable[[Example, np.random.Generator], tuple[Picture, Mapping[str, Any]]]

UNREADABLE_SHARE = 0.01  # of what was read: more unreadable examples than this end the run
ENOUGH = 1000  # examples that tell such a share
SHOWN = 3  # unreadable examples that a message names
ENDLESS = 2**62  # batches: more than any run takes
BROKEN = "broken"  # the kind of what Unreadable says, unless it says more


class UnreadableData(ConfigError):
    """More than UNREADABLE_SHARE of what was read cannot be used."""


class Skips:
    """The unreadable examples of a split, counted once each; safe to share between threads.

    floor: examples that their share is taken of until more are read, for a process that reads a
    part of the split; None: all of it.
    """

    def __init__(self, name: str, length: int, floor: int | None = None):
        self.name, self.length = name, length
        self.floor = length if floor is None else floor
        self.read = 0  # different examples, also those that could be used
        self._read = bytearray(-(-length // 8))  # a bit for each example
        # Words alone: an error would keep what was read, by the frames that it went through.
        self._kinds: dict[int, str] = {}
        self._first: list[str] = []
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self._kinds)

    @property
    def kinds(self) -> dict[str, int]:
        """How many there are of each kind: "broken", "without caption"."""
        with self._lock:
            return Counter(self._kinds.values())

    @property
    def summary(self) -> str:
        """How many there are, and of which kinds where that is not plain."""
        kinds, of = self.kinds, f"{self.count} of {self.length} {self.name}"
        if kinds.keys() <= {BROKEN}:
            return f"{of} pictures cannot be read"
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return f"{of} examples cannot be used ({counts})"

    @property
    def first(self) -> list[str]:
        """The first few, with their reasons."""
        with self._lock:
            return list(self._first)

    def see(self, index: int) -> None:
        """Notes that an example is read, whether it can be used or not."""
        byte, bit = index >> 3, 1 << (index & 7)
        with self._lock:
            self.read += not self._read[byte] & bit
            self._read[byte] |= bit

    def add(self, index: int, error: Unreadable) -> None:
        """Notes an example that cannot be used. Raises UnreadableData when there are too many."""
        with self._lock:
            if index not in self._kinds and len(self._first) < SHOWN:
                self._first.append(f"example {index}: {error}")
            self._kinds[index] = getattr(error, "kind", BROKEN)
        # What is read later can only lower the share: so it is asked here alone, and at once.
        if self.count > UNREADABLE_SHARE * max(self.read, self.floor):
            raise UnreadableData(
                f"data.source: {self.summary}, more than {UNREADABLE_SHARE:.0%} of the {self.read} "
                f"that were read: {'; '.join(self.first)}; repair or remove them"
            )


def labelled(example: Example, rng: np.random.Generator) -> tuple[Picture, Mapping[str, Any]]:
    """Of a picture with a class, nothing is random."""
    return example["image"], {"label": np.int32(example["label"])}


def first_readable(
    split: Split, cfg: Pictures, name: str = "train", read: Read = labelled
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """The first example of a split that can be used, as it is evaluated, without the batch axis.

    Raises ConfigError if the split is empty, UnreadableData if too many fail before one is read.
    """
    skips, rng = Skips(name, len(split)), np.random.default_rng(0)
    for index in range(len(split)):
        if found := _decoded(split, index, rng, cfg, skips, read):
            image, rest = found
            return evaluation_transform(image, cfg.image_size), rest
    raise ConfigError(f"data.source = {cfg.source!r}: the {name} split is empty")


def picture_shape(
    split: Split, cfg: Pictures, name: str = "train", read: Read = labelled
) -> tuple[int, int, int]:
    """(height, width, channels) of what the model sees. Raises as `first_readable` does."""
    image, _ = first_readable(split, cfg, name, read)
    height, width, channels = image.shape
    return height, width, channels


def _decoded(
    split: Split, index: int, rng: np.random.Generator, cfg: Pictures, skips: Skips, read: Read
) -> tuple[np.ndarray, Mapping[str, Any]] | None:
    skips.see(index)
    try:
        picture, rest = read(split[index], rng)
        return decode(picture, cfg.channels), rest
    except Unreadable as error:
        skips.add(index, error)
        return None


def _checked(image: np.ndarray, shape: tuple[int, ...], index: int) -> np.ndarray:
    if image.shape == shape:
        return image
    key = "data.channels" if image.shape[-1] != shape[-1] else "data.image_size"
    found, first = ("×".join(map(str, s)) for s in (image.shape, shape))
    raise ConfigError(f"{key}: example {index} is {found}, but the first is {first}; set {key}")


def local_size(cfg: Data, process_count: int) -> int:
    """Examples of one process in a batch. Raises ConfigError if processes do not divide it."""
    if cfg.batch_size % process_count:
        raise ConfigError(
            f"data.batch_size = {cfg.batch_size} is not a multiple of {process_count} processes"
        )
    return cfg.batch_size // process_count


def this_process() -> dict[str, Any]:
    """The arguments of a stream that make it this process's part of the run."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def global_order(
    length: int, seed: int, multiple: int = 1, tour: np.ndarray | None = None, together: int = 1
) -> tuple[grain.MapDataset, int]:
    """The indices of an endless training stream, shuffled anew every epoch; and a seed for what is
    random about them. Map before a process takes its share of the positions, so that randomness
    follows the position in the global order.

    multiple: an epoch has a multiple of so many, at most `length`; which are left out changes.
    tour: int [length], the indices in an order that is cut anew every epoch into runs of `together`
    neighbours, which come one after another; what such runs leave over of an epoch changes, too.
    """
    # Hashed, so that seeds 0 and 1 do not share orders: Grain adds the epoch to the seed.
    order, other = (int(seed) for seed in np.random.SeedSequence(seed).generate_state(2))
    epoch = grain.MapDataset.range(length // together).shuffle(seed=order)
    if tour is not None:
        epoch = Runs(epoch, tour, together)
    return epoch[: len(epoch) - len(epoch) % multiple].repeat(), other


class Runs(grain.MapDataset):
    """The members of shuffled runs of `together` neighbours of a tour, run after run."""

    def __init__(self, runs: grain.MapDataset, tour: np.ndarray, together: int):
        super().__init__(runs)
        self._tour, self._together = tour, together

    def __len__(self) -> int:
        return len(self._parent) * self._together

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        run = self._parent[index // self._together]
        # The cuts move by one place each epoch.
        place = run * self._together + index % self._together + index // len(self)
        return int(self._tour[place % len(self._tour)])


def batched(examples: grain.MapDataset, cfg: Data, batch_size: int) -> grain.DatasetIterator:
    """Examples of one size, stacked, read by `data.threads` threads."""
    # Two batches, so that threads have work while one is stacked; at least one example for each.
    ahead = max(2 * batch_size, cfg.threads)
    options = grain.ReadOptions(num_threads=cfg.threads, prefetch_buffer_size=ahead)
    return iter(examples.to_iter_dataset(options).batch(batch_size))


# ---- training ----


class Stream(Iterator[Batch]):
    """An endless iterator over batches whose position can be stored and restored.

    `skips` counts what was unreadable. content: a digest of what is read, where it is known: a
    position is one in these data alone. Use from one thread at a time.
    """

    def __init__(
        self,
        iterator: grain.DatasetIterator,
        skips: Skips,
        process_count: int,
        content: str | None = None,
    ):
        self._iterator, self.skips, self._process_count = iterator, skips, process_count
        self._known = {"examples": skips.length} | ({"content": content} if content else {})

    def __next__(self) -> Batch:
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """Where the last batch ended: the "position" in the global order, and what it belongs to.

        It can be written as JSON, and restored with another number of processes. It is the same on
        all processes as long as no picture was unreadable; otherwise each must keep its own.
        """
        position = self._iterator.get_state()["next_index"] * self._process_count
        return {"position": position, **self._known}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues after the batch at which `state` was taken.

        Raises ConfigError if the split then had another number of examples, or other content.
        """
        if state["examples"] != self.skips.length:
            raise ConfigError(
                f"data.source: {self.skips.name} has {self.skips.length} examples, but had "
                f"{state['examples']} when the state was saved; restore the data, or start anew"
            )
        known = self._known.get("content")
        if state.get("content", known) != known:
            raise ConfigError(
                f"data.source: {self.skips.name} has as many examples as when the state was saved, "
                "but other ones; restore the data and the tokenizer, or start anew in another "
                "--workdir"
            )
        self._iterator.set_state({"next_index": state["position"] // self._process_count})

    def close(self) -> None:
        """Ends the threads; what they had begun is finished and dropped."""
        self._iterator.close()


def train_stream(
    split: Split,
    cfg: Pictures,
    *,
    process_index: int = 0,
    process_count: int = 1,
    name: str = "train",
    read: Read = labelled,
    distinct: bool = False,
    tour: np.ndarray | None = None,
    together: int = 1,
    content: str | None = None,
) -> Stream:
    """Endless batches of `split`, in a new order every epoch; epochs follow without a gap.

    Position p of the global order goes to process p mod `process_count`, so that a global batch
    holds the same examples however many processes there are. Unreadable examples are left out, and
    the next of the same process takes their place. distinct: no example comes twice in a global
    batch; what is left of an epoch then waits for another. tour, together: as `global_order` has
    them. content: as `Stream` has it.
    Raises ConfigError (also while iterating, for pictures that differ in size or number of
    channels) and UnreadableData.
    """
    batch_size = local_size(cfg, process_count)
    if distinct and len(split) < cfg.batch_size:
        raise ConfigError(
            f"data.batch_size is {cfg.batch_size}, but {name} has {len(split)} examples, and none "
            "may come twice in a batch: make it smaller, or set data.distinct to False"
        )
    if together > len(split):
        raise ConfigError(
            f"{together} examples are to come together, but {name} has {len(split)}: lower "
            "data.alike"
        )
    shape = picture_shape(split, cfg, name, read)
    transform = train_transform(cfg)
    skips = Skips(name, len(split), min(ENOUGH, len(split)))

    def load(index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        found = _decoded(split, index, rng, cfg, skips, read)
        if found is None:
            return None  # Grain leaves it out
        image, rest = found
        image = _checked(transform(image, rng), shape, index)
        return {"image": image, **rest, "index": np.int64(index)}

    multiple = cfg.batch_size if distinct else 1
    order, seed = global_order(len(split), cfg.seed, multiple, tour, together)
    examples = order.random_map(load, seed=seed)[process_index::process_count]
    return Stream(batched(examples, cfg, batch_size), skips, process_count, content)


def drawn_stream(
    draw: Callable[[int], Batch], cfg: Data, skips: Skips, content: str | None = None
) -> Stream:
    """Endless batches that are drawn, not read: draw(i) is this process's share of batch i, which
    is its position. `data.threads` threads draw ahead."""
    options = grain.ReadOptions(cfg.threads, prefetch_buffer_size=2 + cfg.threads)
    batches = grain.MapDataset.range(ENDLESS).map(draw).to_iter_dataset(options)
    # All processes are at the same batch: its number, and not their shares, is the position.
    return Stream(iter(batches), skips, 1, content)


def share(cfg: Data, size: int, process_index: int = 0, process_count: int = 1) -> slice:
    """Of a global batch of `size` rows: the shares of all processes, one after another, are it.
    Raises ConfigError if processes do not divide `data.batch_size`, of which it is a multiple."""
    each = size // cfg.batch_size * local_size(cfg, process_count)
    return slice(process_index * each, (process_index + 1) * each)


# ---- evaluation ----


def eval_batches(
    split: Split,
    cfg: Pictures,
    *,
    process_index: int = 0,
    process_count: int = 1,
    skips: Skips | None = None,
    read: Read = labelled,
) -> Iterator[Batch]:
    """Every example once, in order, with "mask" float32 [b]: 0 on padding and unreadable examples.

    All batches have one size and every process yields equally many; "index" is -1 on padding.
    `skips` counts what was unreadable. Raises as `train_stream` does.
    """
    skips = skips or Skips("validation", len(split))
    # Stored neighbours may share a flaw, so a process looks at all of its part; of a small one not
    # a single picture would be allowed.
    skips.floor = max(-(-len(split) // process_count), min(ENOUGH, len(split)))
    batch_size = local_size(cfg, process_count)
    image, rest = first_readable(split, cfg, skips.name, read)
    shape = image.shape
    blank = {"image": np.zeros_like(image), **{key: np.zeros_like(x) for key, x in rest.items()}}

    def load(position: int) -> dict[str, Any]:
        if position >= len(split):
            return {**blank, "index": np.int64(-1), "mask": np.float32(0)}
        rng = np.random.default_rng(position)
        found = _decoded(split, position, rng, cfg, skips, read)
        if found is None:
            return {**blank, "index": np.int64(position), "mask": np.float32(0)}
        image, rest = found
        image = _checked(evaluation_transform(image, cfg.image_size), shape, position)
        return {"image": image, **rest, "index": np.int64(position), "mask": np.float32(1)}

    padded = -(-len(split) // cfg.batch_size) * cfg.batch_size
    examples = grain.MapDataset.range(padded).map(load)[process_index::process_count]
    with contextlib.closing(batched(examples, cfg, batch_size)) as batches:
        yield from batches


# ---- to the devices ----

PATIENCE = 5.0  # seconds that closing waits for the batch that the thread is working on


def prefetch(
    stream: Stream, put: Callable[[Batch], Any], depth: int
) -> Generator[tuple[Any, dict[str, Any]], None, None]:
    """(put(batch), the stream's state after that batch), with `depth` batches made ahead.

    A checkpoint that holds this state resumes with the batch after it. See `background`.
    """
    return background(((put(batch), stream.state()) for batch in stream), depth)


def background(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Yields `items`, made by one thread that stays up to `depth` of them ahead.

    An exception in the thread is raised here, in its turn. Closing the generator, or leaving it to
    be collected, ends the thread after the item that it is working on.
    """
    slots, stop = threading.Semaphore(depth), threading.Event()
    ready: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()

    def produce() -> None:
        iterator = iter(items)
        while slots.acquire() and not stop.is_set():
            try:
                ready.put((next(iterator), None))
            except BaseException as error:  # StopIteration as well: the consumer tells them apart
                ready.put((None, error))
                return

    # A daemon, so that a program that dies with a generator open does not wait for it.
    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            slots.release()
            yield cast(Item, item)
    finally:
        stop.set()
        slots.release()
        thread.join(PATIENCE)
