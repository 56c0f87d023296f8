"""Contrastive learning: which text belongs to which picture, among all of a batch."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from train.config import ConfigError, Pairs, Setup, Task

JUDGED = 1024  # texts whose logits exist at a time in an evaluation, which is on one device


@dataclass(frozen=True)
class Contrastive(Task):
    """The loss of a pair of towers over the global batch, by softmax (CLIP) or sigmoid (SigLIP).

    Batches are {"image" uint8 [b, h, w, c], "tokens" int32 [b, n]}. Reports `loss`, `accuracy` (of
    the pictures, their own text best among those of the batch) and `scale`, by which cosines are
    multiplied; in evaluations what `train.retrieval` finds, and draws captions with the pictures
    that fit best. The best checkpoint is that of the highest validation `recall1`, from text to
    picture.

    With step.accumulate the loss is that of the whole batch all the same, for the memory of a
    micro-batch and the price of a second forward pass. Only batch normalisation (CLIP's ResNets)
    tells them apart: each micro-batch is normalised by its own statistics.
    A tower that optim.freeze names, `image/.*`, has no backward pass: locked-image tuning (LiT:
    Zhai et al., 2021, arXiv:2111.07991) of weights that `--init.from` brings.
    """

    takes = Pairs
    model = "pair of towers"

    loss: Literal["softmax", "sigmoid"] = "softmax"
    chunk: int = 0  # texts whose logits exist at a time; 0: all, fastest where they fit
    gallery: int = 8  # captions whose pictures are drawn at each evaluation; 0: none

    def check(self) -> None:
        for key in ("chunk", "gallery"):
            if getattr(self, key) < 0:
                raise ConfigError(f"task.{key} is {getattr(self, key)}, but must be 0 or more")

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax

        from train import contrastive, language, retrieval, supervised

        cfg, data = setup.experiment, setup.data
        model = language.create(setup, facts(setup))
        check_end(model.config, data.tokenizer)
        apply, loss_of = supervised.applied(setup, model), contrastive.LOSSES[self.loss]

        def inputs(batch: Any) -> tuple[jax.Array, jax.Array]:
            return data.normalise(batch["image"]), batch["tokens"]

        def loss(params: Any, vars: Any, batch: Any, rng: jax.Array) -> Any:
            def embed(vars: Any, batch: Any, rng: jax.Array) -> Any:
                mode = {"train": True, "mutable": list(vars), "rngs": {"dropout": rng}}
                found, new = apply({"params": params, **vars}, *inputs(batch), **mode)
                return found[:2], {**vars, **new}

            count = cfg.step.accumulate
            (image, text), moved = contrastive.in_micro_batches(embed, count, vars, batch, rng)
            scale, bias = apply({"params": params}, method="temperature")
            how = {"chunk": self.chunk, "axis": setup.axis}
            hits = contrastive.accuracy(image, text, **how)
            value = loss_of(image, text, scale, bias, **how)
            return value, (moved, {"accuracy": hits, "scale": scale})

        def judged(image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
            kept, chunk = in_even_chunks(len(image))
            return loss_of(image[:kept], text[:kept], scale, bias, chunk=chunk)

        evaluators = retrieval.evaluators(data, apply, judged, self.gallery)
        # The loss goes through the micro-batches by itself.
        whole = replace(cfg, step=replace(cfg.step, accumulate=1))
        try:
            if self.loss == "sigmoid":
                check_bias(model, inputs, data.spec())
            task = supervised.trained(
                setup._replace(experiment=whole),
                model,
                inputs=inputs,
                loss=loss,
                evaluate=evaluators["validation"],
                best="recall1",
                card=supervised.card(setup, model),
            )
        except ConfigError:
            raise
        except ValueError as error:  # SigLIP takes rows of its context alone
            raise ConfigError(f"data.length is {data.length}: {error}") from error
        return task._replace(tokenizer=data.tokenizer, evaluators=evaluators)


def facts(setup: Setup) -> dict[str, Any]:
    """What the data say of the model, and of text where its options do not.

    A page that looks for the end of a text (CLIP) takes rows that are shorter than its context: so
    that stays the variant's, for weights that have it, unless the rows are longer.
    """
    import zoo
    from zoo import registry

    model, data = setup.experiment.model, setup.data
    height, width, channels = data.shape
    if height != width:
        raise ConfigError(f"data.image_size: pictures are {height}×{width}; set it to one size")
    has, context = registry.entry(model.name).fields, data.length
    if "end" in has:
        context = max(context, zoo.create(model.name).config.context)
    of_text = {"context": context, "eos": data.tokenizer.specials.eos}
    known = {key: model.options.get(key, value) for key, value in of_text.items()}
    return {
        "image_size": height,
        "in_channels": channels,
        **{key: value for key, value in known.items() if key in has and value is not None},
    }


def in_even_chunks(count: int) -> tuple[int, int]:
    """(pairs that are kept, a chunk that divides them, at most JUDGED; 0: all at once) of `count`
    pairs: of them fewer are left out than there are chunks."""
    chunks = -(-count // JUDGED)
    return (count, 0) if chunks == 1 else (count - count % chunks, count // chunks)


def check_bias(model: Any, inputs: Any, spec: Any) -> None:
    """Raises ConfigError for a pair of towers that learns no bias: the sigmoid loss would take
    almost all pairs, which are mismatches, for half a match."""
    import jax

    def params(batch: Any) -> Any:
        return model.init(jax.random.key(0), *(x[:1] for x in inputs(batch)))["params"]

    if "bias" not in jax.eval_shape(params, spec):
        raise ConfigError(
            f'task.loss is "sigmoid", but {type(model).__name__} has no bias to learn, which that '
            'loss needs: set it to "softmax", or take a model such as siglip_b16'
        )


def check_end(config: Any, tokenizer: Any) -> None:
    """Raises ConfigError where a text tower that reads the token that ends a text (CLIP) would look
    for another one than the tokenizer's."""
    if not hasattr(config, "end"):
        return
    taken = {"argmax": tokenizer.vocab_size - 1, "id": config.eos}[config.end]
    if tokenizer.specials.eos != taken:
        raise ConfigError(
            f'model.options: with end "{config.end}" the id {taken} ends a text, but the tokenizer '
            f"has {tokenizer.specials.eos}; leave eos out and set end to "
            f'"{"id" if config.end == "argmax" else "argmax"}", or choose another tokenizer'
        )
