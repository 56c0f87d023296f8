"""What an experiment is: frozen dataclasses, checked before anything is traced or jax is imported.

A config file has one function, `experiment()`, that returns an `Experiment`. The command line
overrides its fields by name (`--optim.lr 3e-4`), and `config.json` in a workdir holds all of them.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple


class ConfigError(ValueError):
    """A value of an experiment that cannot work; the message names the key and the way out."""


class Missing(ConfigError):
    """What an experiment names is not on this disk; elsewhere it may be."""


def on_disk(name: str, key: str) -> Path:
    """The path of that name, ~ resolved. Raises ConfigError for what can be none."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise ConfigError(f"{key} = {name[:200]!r} cannot be a path: {error}") from error
    return path


@dataclass(frozen=True)
class Model:
    """A variant of the zoo by name; `options` replaces fields of its `Config`."""

    name: str = "resnet20"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Init:
    """Weights that a new run begins with instead of random ones: see train.pretrained.

    `source` is `--init.from` on the command line, a word that no field of Python's can have.
    """

    source: str | None = None  # a path, a hub id or a tag, as zoo.load takes them
    revision: str | None = None  # of a hub id: a branch, tag or commit

    def check(self) -> None:
        """Raises ConfigError for a path that is not there.

        Not a part of `check(experiment)`: a run that goes on no longer needs what it began with.
        """
        if self.source is None:
            return
        if not self.source.strip():
            raise ConfigError(
                "--init.from is empty: give a path, a hub id or a tag, or leave it out"
            )
        path = on_disk(self.source, "--init.from")
        # owner/name and owner/name/file may be on the hub.
        inside = len(path.parts) > 2 and Path(path.parts[0]).is_dir()
        local = path.is_absolute() or self.source.startswith(".") or inside
        if local and not path.exists():
            raise ConfigError(
                f"--init.from {self.source}: there is no such file or directory; give a path with "
                "weights, a hub id such as facebook/dinov2-small, or a tag of the zoo"
            )


@dataclass(frozen=True)
class Data:
    """What every source of data needs; a kind of data adds its fields in a subclass."""

    source: str = "digits"  # digits | glyphs | tfds:NAME | folder:PATH
    data_dir: str | None = None  # where tfds keeps its data sets; None: its default
    batch_size: int = 128  # examples per step, over all devices and processes
    holdout: float = 0.1  # share of train cut off for validation, where the source has none
    seed: int = 0  # of the cut and of the shuffle
    threads: int = 2  # that read and augment, per process; 0 is fastest for tiny pictures
    prefetch: int = 2  # batches in flight to the devices

    def check(self) -> None:
        """Raises ConfigError for what can be seen without jax: the source, the augmentations."""

    @property
    def speed(self) -> tuple[str, int]:
        """What a run's speed is counted in, and how many of it an example is."""
        return "images", 1

    def plain(self) -> "Data":
        """The same, of batches that say all of themselves: one of them can be learned by heart."""
        return self

    def open(self) -> Any:
        """The `train.data.Dataset`."""
        raise ConfigError("data: this kind of data cannot be opened; use Images")


@dataclass(frozen=True)
class Pictures(Data):
    """What every kind of data with pictures has. Pixels travel as uint8 and are normalised on the
    device."""

    image_size: int | None = None  # height and width after resizing; None: as stored
    channels: int | None = None  # 1 or 3; None: as stored
    mean: tuple[float, ...] = (0.5,)  # of pixels in [0, 1], one or one per channel
    std: tuple[float, ...] = (0.5,)
    augment: tuple[str, ...] = ()  # in order, see train.data.augment: ("crop:4", "flip")

    def check(self) -> None:
        from train.data import augment

        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels or 3):
                raise ConfigError(f"data.{key} is {values}: give one value, or one per channel")
        if min(self.std) <= 0:
            raise ConfigError(f"data.std is {self.std}, but pixels are divided by it")
        augment.parse(self.augment, self.image_size)


@dataclass(frozen=True)
class Images(Pictures):
    """Pictures with a class."""

    def check(self) -> None:
        from train.data import sources

        sources.check_source(self)
        super().check()

    def open(self) -> Any:
        from train.data import images

        return images.open_images(self)


@dataclass(frozen=True)
class Pairs(Pictures):
    """Pictures with captions.

    A tokenizer is `words` (every word of the training captions is an id), or what `Text` takes.
    """

    source: str = "glyphs"  # glyphs | glyphs_dev | pairs:FILE | wds:GLOB | tfds:NAME
    tokenizer: str = "words"
    length: int = 77  # tokens of a caption; what is longer is cut, and keeps its end
    templates: tuple[str, ...] = ("{}",)  # one is drawn for each caption: "a photo of {}"
    image_field: str = "image"  # of pairs:, a path beside the file; and of tfds:
    caption_field: str = "caption"  # of pairs: and tfds:, a text or a list of them
    distinct: bool = False  # no caption twice in a batch, where the source has concepts (glyphs)
    alike: int = 1  # so many of like captions come into a batch together: hard negatives
    bag: bool = False  # the words of a caption sorted: what a bag of words knows
    # The share of a caption's words left out in training (word dropout, Iyyer et al., ACL 2015).
    forget: float = 0.0

    def check(self) -> None:
        from train.data import captions, tokens

        tokens.check_tokenizer(self)
        for template in self.templates:
            if template.count("{}") != 1:
                raise ConfigError(
                    f"data.templates: {template!r} must hold {{}} once, where the caption stands"
                )
        if not self.templates:
            raise ConfigError('data.templates is empty: ("{}",) leaves captions as they are')
        if not 0 <= self.forget < 1:
            raise ConfigError(f"data.forget is {self.forget}, but must be in [0, 1)")
        if not 1 <= self.alike <= self.batch_size or self.batch_size % self.alike:
            raise ConfigError(
                f"data.alike is {self.alike}, but must divide data.batch_size, {self.batch_size}"
            )
        captions.check_source(self)
        super().check()

    @property
    def speed(self) -> tuple[str, int]:
        return "pairs", 1

    def open(self) -> Any:
        from train.data import pairs

        return pairs.open_pairs(self)


@dataclass(frozen=True)
class Picture(Data):
    """One picture, pixel by pixel: what a field of the plane is fitted to."""

    source: str = "photo"  # photo | picture:FILE
    batch_size: int = 2**13  # pixels per step, over all devices and processes
    holdout: float = 0.05  # share of the pixels that validates, and as large a one that tests
    threads: int = 0  # a batch is drawn in less time than a thread takes to hand it over

    def check(self) -> None:
        from train.data import picture

        picture.check_source(self)

    @property
    def speed(self) -> tuple[str, int]:
        return "pixels", 1

    def open(self) -> Any:
        from train.data import pixels

        return pixels.open_picture(self)


@dataclass(frozen=True)
class Views(Data):
    """Pictures of one scene, each with its camera."""

    source: str = "scene"  # scene | mesh:FILE | blender:DIR | colmap:DIR | llff:DIR
    batch_size: int = 4096  # rays per step, over all devices and processes
    judged: int = 8192  # rays at a time in evaluations; rounded up to batches
    factor: int = 1  # pictures become so many times smaller
    # Behind what is transparent; None: white, but black where nothing is transparent.
    background: Literal["white", "black"] | None = None
    threads: int = 0  # rays are drawn in less time than a thread takes to hand them over
    # Where rays are drawn: "device": each has all pictures that train; "host": where no device has
    # room for them, and under pmap.
    draw: Literal["device", "host"] = "device"
    size: int = 200  # of `scene` and `mesh:`, which are drawn: the side of a picture,
    samples: int = 4  # rays along the side of a pixel,
    views: tuple[int, int, int] = (60, 10, 20)  # and views to train, to validate and to test with
    cache: str | None = None  # keeps what was drawn; None: ~/.cache/flax-zoo/scene

    def check(self) -> None:
        from train.data import posed

        for key in ("judged", "factor", "size", "samples"):
            if getattr(self, key) < 1:
                raise ConfigError(f"data.{key} is {getattr(self, key)}, but must be 1 or more")
        if min(self.views) < 1:
            raise ConfigError(f"data.views is {self.views}: each split needs a view")
        posed.check_scene(self.source)

    def plain(self) -> "Views":
        return replace(self, draw="host")

    @property
    def speed(self) -> tuple[str, int]:
        return "rays", 1

    def open(self) -> Any:
        from train.data import views

        return views.open_views(self)


@dataclass(frozen=True)
class Text(Data):
    """Documents as rows of tokens, to learn what comes next (or, with `mask`, what is hidden).

    A tokenizer is `bytes`, `bpe:SIZE` (byte-level BPE of SIZE ids, trained on the training split),
    or a path that `zoo.text.load` reads.
    """

    source: str = "stdlib"  # stdlib | text:GLOB | jsonl:GLOB | tfds:NAME
    holdout: float = 0.05  # share of train cut off for each of validation and test
    threads: int = 0  # a row is read in less time than a thread takes to hand it over
    tokenizer: str = "bytes"
    length: int = 256  # tokens of a row
    packing: Literal["documents", "stream"] = "documents"  # stream: attention crosses documents
    split: Literal["hash", "position"] = "hash"  # whole documents, or the first part of all text
    field: str = "text"  # of jsonl: and tfds:
    overlap: int = 0  # evaluation: tokens that begin a row as context and are not scored again
    mask: float = 0.0  # share of the tokens to be predicted, as BERT's 0.15; 0: what comes next
    cache: str | None = None  # keeps token files; None: ~/.cache/flax-zoo/text

    def check(self) -> None:
        from train.data import corpora, tokens

        if self.overlap >= self.length:
            raise ConfigError(
                f"data.overlap is {self.overlap}, but a row has {self.length} tokens: each must "
                "score one at least"
            )
        if self.overlap and self.mask:
            raise ConfigError(
                "data.overlap is context for what comes next: set it to 0, or data.mask"
            )
        if self.mask and self.packing == "stream":
            raise ConfigError(
                "data.packing is stream, whose last row ends in padding, which a model that looks "
                "both ways would see: use documents, or set data.mask to 0"
            )
        tokens.check_tokenizer(self)
        corpora.check_corpus(self)

    @property
    def speed(self) -> tuple[str, int]:
        return "tokens", self.length

    def open(self) -> Any:
        from train.data import text

        return text.open_text(self)


@dataclass(frozen=True)
class LabelledText(Data):
    """Texts with a class each, or with `tagging` lists of words with a class for each word."""

    source: str = "jsonl:data/*.jsonl"  # jsonl:GLOB | tfds:NAME
    threads: int = 0  # all is in memory
    tokenizer: str = "bytes"  # as `Text` has it
    length: int = 128  # tokens of a row; what is longer is cut
    field: str = "text"  # a text; tagging: a list of words
    label_field: str = "label"  # a text or a whole number; tagging: a list of them
    tagging: bool = False

    def check(self) -> None:
        from train.data import labelled, tokens

        tokens.check_tokenizer(self)
        labelled.check_labelled(self)

    @property
    def speed(self) -> tuple[str, int]:
        return "texts", 1

    def open(self) -> Any:
        from train.data import text

        return text.open_labelled(self)


@dataclass(frozen=True)
class Task:
    """What is learned. A subclass holds its options and builds the functions of them.

    Options are listed without jax, so a task's module imports it inside `build` only.

    takes    the kind of data that it learns from
    tagging  whether these have a label for each word; None: either
    model    the kind of model, of MODELS, that it trains; None: any
    """

    takes: ClassVar[type[Data]] = Data
    tagging: ClassVar[bool | None] = None
    model: ClassVar[str | None] = None

    def check(self) -> None:
        """Raises ConfigError for options that cannot work."""

    def check_with(self, experiment: "Experiment") -> None:
        """Raises ConfigError for what does not go with this task elsewhere in the experiment."""

    def plain(self) -> "Task":
        """The same without regularisation, so that one batch can be learned by heart."""
        return self

    def build(self, setup: "Setup") -> Any:
        """The `train.state.Task`."""
        raise ConfigError("task: choose one, such as train.tasks.classify.Classify()")


@dataclass(frozen=True)
class Optim:
    """The optimizer and its tables of regex over parameter paths."""

    name: Literal["adamw", "sgd", "lamb", "lars", "lion", "adafactor", "muon"] = "adamw"
    lr: float = 1e-3  # peak
    schedule: Literal["constant", "cosine", "linear", "rsqrt", "wsd", "cyclic", "one_cycle"] = (
        "cosine"
    )
    warmup: int = 0  # steps of linear warm-up, from 0
    final: float = 0.0  # lr at the end, as a share of the peak
    cooldown: float = 0.2  # wsd: share of the steps that decay at the end
    cycle: int = 1000  # cyclic: steps of one up-and-down
    rise: float = 0.3  # one_cycle: share of the steps that rise
    momentum: float = 0.9  # sgd, lars, muon
    nesterov: bool = True  # sgd, muon
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: tuple[str, ...] = (r".*kernel",)  # paths that decay
    clip: float | None = None  # global norm of the gradient
    lr_scale: tuple[tuple[str, float], ...] = ()  # (regex, factor): the first match wins
    layer_decay: float | None = None  # lr factor per layer, counted down from the head
    freeze: tuple[str, ...] = ()  # paths that stay as they are


@dataclass(frozen=True)
class Step:
    """How one update is computed."""

    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1  # micro-batches per update
    ema: float | None = None  # decay of the moving average that is evaluated; None: none kept
    nonfinite: Literal["abort", "skip"] = "abort"  # what a NaN or Inf loss or gradient does


@dataclass(frozen=True)
class Parallel:
    """The mesh (one size may be -1: the devices that are left) and what compiles the step."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    compiler: Literal["jit", "pmap"] = "jit"


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoints are written at every evaluation and every `every` steps."""

    every: int | None = None  # steps; None: at evaluations only
    keep: int = 2  # newest ones kept, beside the best
    asynchronous: bool = True
    strict: bool = False  # a damaged newest checkpoint raises instead of falling back


@dataclass(frozen=True)
class Experiment:
    """One run, complete: what `config.json` holds."""

    model: Model = Model()
    init: Init = Init()
    data: Data = Images()
    task: Task = Task()
    optim: Optim = Optim()
    step: Step = Step()
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    steps: int = 1000
    evaluate_every: int = 200
    log: Literal["auto", "bar", "plain"] = "auto"  # auto: a bar on a terminal, else plain lines
    log_every: int = 20
    tensorboard: bool = True
    seed: int = 0  # of parameters and of all randomness in the step


class Setup(NamedTuple):
    """What a task is built from."""

    experiment: Experiment
    data: Any  # train.data.Dataset
    axis: str | None  # the mapped axis under pmap


def check_float32(experiment: Experiment) -> None:
    """Raises ConfigError for positions that numbers could not tell apart."""
    if experiment.step.precision != "float32":
        raise ConfigError(
            f"step.precision is {experiment.step.precision}, whose positions are 1/256 apart; a "
            "field of positions needs float32"
        )


def short_context(model: Model, length: int, context: int) -> ConfigError:
    return ConfigError(
        f"data.length is {length} tokens, but the context of {model.name} is {context}; shorten "
        "the rows, or set context in model.options"
    )
