"""flax-zoo: one readable page per paper, published weights, measured parity.

    model = zoo.create("resnet50", num_classes=10)
    variables = zoo.init(model, jax.random.key(0))
    model, variables = zoo.load("microsoft/resnet-50")
    logits = model.apply(variables, images)
    [story] = zoo.generate(model, variables, "Once upon", tokenizer=zoo.tokenizer("gpt2"))

These are small doors: each imports what it needs when it is called, and `import zoo` is instant.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.card import Card
from zoo.registry import UnknownModel

__version__ = "0.1.0"
__all__ = [
    "Card",
    "UnknownModel",
    "card",
    "classify",
    "create",
    "describe",
    "embed",
    "fill_mask",
    "generate",
    "init",
    "list_models",
    "load",
    "save",
    "tokenizer",
]


def list_models(pattern: str = "*") -> list[str]:
    """The variants whose names match a shell pattern, `list_models("resnet*")`, in page order."""
    from fnmatch import fnmatchcase

    return [name for name in registry.entries() if fnmatchcase(name, pattern)]


def create(name: str, **options: Any) -> Any:
    """The Linen module of a variant; `options` replace fields of its page's `Config`.

    Raises UnknownModel for a name and TypeError for an option that does not exist, naming the
    nearest, and ValueError for a value that an option cannot have.
    """
    from dataclasses import replace

    registry.check_options(name, options)
    page = registry.page(name)
    variant = page.VARIANTS[name]
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    config = replace(variant.config, **options)
    registry.check_config(name, config)
    parts = {field: create(part) for field, part in variant.parts.items()}
    return module_class(page)(config, **parts)


def module_class(page: Any) -> Any:
    """The page's model: its first Linen module (figure first)."""
    import flax.linen as nn

    modules = (v for v in vars(page).values() if isinstance(v, type) and issubclass(v, nn.Module))
    return next(module for module in modules if module.__module__ == page.__name__)


def example(model: Any, batch: int = 1) -> dict[str, Any]:
    """`jax.ShapeDtypeStruct`s of the model's inputs by keyword, for a batch of that size."""
    import jax

    inputs = registry.page_of(model).example(model.config)
    return {
        key: jax.ShapeDtypeStruct(tuple(batch if d == "b" else d for d in i.shape), i.dtype)
        for key, i in inputs.items()
    }


def init(model: Any, rng: Any, *, mesh: Any = None) -> Any:
    """Fresh variables, {"params": …, "batch_stats": …}, float32, in one jitted call; with a
    `jax.sharding.Mesh`, straight into the shards of `zoo.sharding`."""
    import jax
    import jax.numpy as jnp

    from zoo import sharding

    def fresh(rng: jax.Array) -> Any:
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example(model))
        return model.init(rng, **inputs)

    if mesh is None:
        return jax.jit(fresh)(rng)
    placed = sharding.shardings(jax.eval_shape(fresh, rng), mesh, sharding.rules(model))
    return jax.jit(fresh, out_shardings=placed)(rng)


def load(
    source: str | Path,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    context: int | None = None,
    dtype: Any = None,
    revision: str | None = None,
    token: str | None = None,
) -> Any:
    """`(model, variables)` from a directory, a file of weights, a hub id or one of our tags.

    The sizes come from `config.json` or from the tensors themselves, listed variant or not.
    num_classes: another head, newly initialised and logged; 0 leaves it out.
    image_size: positions are resized to it, as the source of the weights resizes them.
    context: tokens of a text at most; positions of CLIP's texts are cut or stretched, and logged.
    dtype: of the floating parameters; None keeps the file's.
    Strict: raises `zoo.weights.convert.WeightsError` with every difference, and loads nothing.
    """
    from zoo.weights import hub, store

    path = hub.fetch(source, revision=revision, token=token)
    sizes = {"num_classes": num_classes, "image_size": image_size, "context": context}
    model, variables, _ = store.load(path, dtype=dtype, **sizes)
    return model, variables


def save(
    model: Any,
    variables: Mapping[str, Any],
    directory: str | Path,
    *,
    format: str = "flax",
    card: Card | None = None,
) -> None:
    """Writes `config.json`, `card.json` and `model.safetensors`. `format="flax"` keeps our names;
    the others are those of the family's table: "hf" loads in transformers, "torchvision" and "timm"
    there, "openai" in open_clip."""
    from zoo.weights import store

    store.save(model, variables, Path(directory), format, card)


def tokenizer(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Any:
    """The `zoo.text.Tokenizer` beside the weights that `load` takes from the same source, or of a
    tokenizer's own file. Raises `zoo.text.TokenizerError` where there is none."""
    from zoo import text
    from zoo.weights import hub

    path = hub.fetch(source, revision=revision, token=token)
    is_weights = path.is_file() and path.suffix in hub.SUFFIXES
    return text.load(path.parent if is_weights else path)


def card(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Card:
    """The card of a variant, or of a directory or hub id with weights."""
    from zoo.weights import hub, store

    if str(source) in registry.entries():
        return store.variant_card(str(source))
    return store.read_card(hub.fetch(source, revision=revision, token=token))


def generate(model: Any, variables: Any, prompts: Any, **options: Any) -> Any:
    """Continues prompts: a list of `zoo.generation.Completion`, one for each.

    prompts: a text or several, with `tokenizer=`, or lists of ids. Options, their defaults and what
    is raised: `zoo.generation.generate`. The model is compiled once for a bucket of lengths.
    """
    from dataclasses import replace

    from zoo import decode, generation, tree

    page = registry.page_of(model)
    if not hasattr(page, "empty_cache"):
        raise ValueError(f"{type(model).__name__} does not generate: it is no decoder of text")
    if model.config.layers == "scan":  # a cache needs every layer under its own name
        model = model.clone(config=replace(model.config, layers="loop"))
        variables = tree.unstacked(variables)
    decoder = decode.decoder(model, page.empty_cache)
    return generation.generate(decoder, variables, prompts, **options)


def embed(model: Any, variables: Any, tokenizer: Any, texts: Any, **options: Any) -> Any:
    """Texts as vectors, float32 [texts, d]: an encoder's mean over the tokens of each, of length 1.
    Options and what is raised: `zoo.text.embed.embed`."""
    from zoo.text import embed as encoder

    limits = _encoder(model, encoder.embed, options)
    apply, _ = encoder.applied(model)
    return encoder.embed(apply, variables, tokenizer, texts, **limits, **options)


def fill_mask(model: Any, variables: Any, tokenizer: Any, texts: Any, **options: Any) -> Any:
    """For each text, for each mask in it, the likeliest tokens with their probabilities. Options
    and what is raised: `zoo.text.embed.fill_mask`."""
    from zoo.text import embed as encoder

    limits = _encoder(model, encoder.fill_mask, options)
    if model.config.head != "mlm":
        raise ValueError(f'head="{model.config.head}" guesses no words: load a model with "mlm"')
    functions = encoder.applied(model)
    return encoder.fill_mask(*functions, variables, tokenizer, texts, **limits, **options)


def classify(
    model: Any,
    variables: Any,
    tokenizer: Any,
    images: Any,
    classes: Any,
    *,
    templates: Any = None,
    batch: int = 32,
) -> Any:
    """Zero-shot: the probability of each class for each picture, float32 [b, c], by a pair of
    towers such as CLIP.

    images: [b, H, W, channels], as `zoo.preprocess.prepare` gives them. classes: their names, any
    words. templates: sentences with {} for the name, over which a class is averaged; None takes
    `zoo.zeroshot.TEMPLATES`. What is raised: `zoo.zeroshot.class_embeddings`, and ValueError for
    another kind of model.
    """
    from functools import partial

    from zoo import zeroshot

    zeroshot.check_pair(model.config, f"this {type(model).__name__}")
    tokenizer.check(model.config.vocab)
    image, text = (partial(tower, variables) for tower in zeroshot.towers(model))
    sentences = zeroshot.TEMPLATES if templates is None else templates
    known = zeroshot.class_embeddings(text, tokenizer, classes, sentences, model.config.context)
    scale, _ = model.apply(variables, method="temperature")
    return zeroshot.classify(zeroshot.in_batches(image, images, batch), known, float(scale))


def _encoder(model: Any, task: Any, options: Mapping[str, Any]) -> dict[str, int]:
    """The limits of an encoder of text, which no option changes. Raises ValueError for a model that
    is none, and for an option that the task has not."""
    config = model.config
    if not {"vocab", "context", "head"} <= {*dir(config)}:
        raise ValueError(f"{type(model).__name__} is no encoder of text, such as bert_base")
    limits = {"context": config.context, "vocab": config.vocab}
    known = task.__kwdefaults__.keys() - limits
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"{task.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    return limits


def describe(model: Any) -> str:
    """A variant by its name, or a model that was created or loaded, in a screenful: paper, data
    flow, options, inputs, and its parts with counts."""
    import inspect
    from dataclasses import fields

    import jax

    from zoo import tree

    title = model if isinstance(model, str) else type(model).__name__
    model = create(model) if isinstance(model, str) else model
    inputs = example(model)
    shapes = jax.eval_shape(
        lambda rng, inputs: model.init(rng, **inputs), jax.random.key(0), inputs
    )
    lines = [inspect.getdoc(registry.page_of(model)) or "", ""]
    lines += [f"{title}: {tree.count(shapes['params']):,} parameters", ""]
    lines += [f"  {f.name} = {getattr(model.config, f.name)!r}" for f in fields(model.config)]
    taken = ", ".join(f"{key} {list(x.shape)} {x.dtype}" for key, x in inputs.items())
    lines += ["", f"takes {taken}", ""]
    for part, subtree in shapes["params"].items():
        lines.append(f"  {part:<12} {tree.count(subtree):>12,}")
    return "\n".join(lines)
