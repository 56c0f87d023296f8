"""How a reference is built, filled by name and run; shared by all families."""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from fill import fill, image, labels
from fill import mask as draw_mask

Recording = dict[str, Any]  # arrays of an npz, or the JSON of one section
Size = tuple[int, int, int]  # images, height, width
Inputs = Mapping[str, np.ndarray]  # of a model of text: what ours takes, by keyword


@dataclass(frozen=True)
class Case:
    """One recording: its library, and the function that makes it from the case's name.

    A name ending in .json is a file with one section per library; any other names an npz.
    """

    name: str
    library: str
    record: Callable[[str], Recording]

    @property
    def is_json(self) -> bool:
        return self.name.endswith(".json")

    @property
    def path(self) -> str:
        return self.name if self.is_json else f"{self.name}.npz"


def text_inputs(inputs: Inputs) -> dict[str, Any]:
    """Tokens [b, n] and what belongs to them, by the keywords of transformers."""
    import torch

    named = {"tokens": "input_ids", "types": "token_type_ids", "positions": "position_ids"}
    found = {named[key]: torch.from_numpy(inputs[key]).long() for key in inputs if key in named}
    if "lengths" in inputs:
        real = np.arange(inputs["tokens"].shape[1]) < inputs["lengths"][:, None]
        found["attention_mask"] = torch.from_numpy(real).long()
    return found


@dataclass(frozen=True)
class Reference:
    """A filled torch model, and where in it our hidden states are found.

    files: the tensors of a model of this class by the names that they have in its files, which are
    not always those that they have in memory.
    inputs: what the model is called with beside the images.
    call: of a model of text, what it is called with for our inputs.
    """

    model: Any
    config: Mapping[str, Any]  # in the words of our `Config`
    parts: Mapping[str, str]  # our name → the reference's name of the module whose output it is
    versions: Mapping[str, str]
    pool: str | None = None
    files: Callable[[Any], Mapping[str, Any]] = lambda model: model.state_dict()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[[Inputs], Mapping[str, Any]] = text_inputs

    def meta(self, case: str, shape: Sequence[int] | None = None, **more: Any) -> np.ndarray:
        rows = tensors(self.files(self.model))
        return meta(case, self.versions, self.config, shape, tensors=rows, **more)


# How a reference is run.


def evaluate(
    build: Callable[[], Reference],
    size: Size,
    case: str,
    *,
    maps: bool = True,
    mask: tuple[int, int] | None = None,
) -> Recording:
    """Evaluation mode. `maps=False` keeps only the averages of hidden states over h, w; `mask` is
    the shape [images, patches] of what is hidden from a masked model."""
    import torch

    reference, x = build(), image(case, (*size, 3))
    header = reference.meta(case, x.shape)
    drawn = {} if mask is None else {"mask": draw_mask(case, mask)}
    masked = {"bool_masked_pos": torch.from_numpy(drawn["mask"])} if drawn else {}
    pool = {} if reference.pool is None else {"pooled": reference.pool}
    model, seen = watched(reference, {**reference.parts, **pool})
    output = result(model(nchw(x), **reference.inputs, **masked))
    pooled = {name: seen.pop(name).flatten(1) for name in pool}
    hidden = (
        {f"hidden/{name}": value for name, value in seen.items()}
        if maps
        else {f"mean/{name}": value.mean((1, 2)) for name, value in seen.items()}
    )
    named = {_output_name(reference): output}
    outputs = float32({**hidden, **pooled, **named})
    return {"meta": header, "input": x, **drawn, **outputs}


def evaluate_tokens(
    build: Callable[[], Reference], draw: Callable[[str], Inputs], case: str
) -> Recording:
    """Evaluation mode of a model of text; draw: the inputs of a case."""
    reference, inputs = build(), draw(case)
    header = reference.meta(case)
    model, seen = watched(reference, reference.parts)
    output = model(**reference.call(inputs))
    name = "representation" if hasattr(output, "last_hidden_state") else "logits"
    hidden = {f"hidden/{part}": value for part, value in seen.items()}
    return {"meta": header, **_stored(inputs), **float32({**hidden, name: result(output)})}


def train_tokens(
    build: Callable[[], Reference],
    draw: Callable[[str], Inputs],
    answer: Callable[[str], np.ndarray],
    case: str,
) -> Recording:
    """One step in training mode, without an optimizer; answer: the labels of a case, int64 of the
    shape of the logits without their last axis, −1 where none is scored."""
    import torch

    reference, inputs, y = build(), draw(case), answer(case)
    header = reference.meta(case)
    model = deterministic(reference.model).train()
    logits = result(model(**reference.call(inputs)))
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), torch.from_numpy(y).flatten(), ignore_index=-1
    )
    loss.backward()
    grads = {f"grad/{name}": g for name, g in gradients(reference).items()}
    outputs = float32({"logits": logits, "loss": loss, **grads})
    return {"meta": header, **_stored(inputs), "labels": y, **outputs}


def _stored(inputs: Inputs) -> Recording:
    return {f"inputs/{name}": x for name, x in inputs.items()}


def watched(reference: Reference, parts: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
    """The model in evaluation mode, and what its parts return, by our names, once it has run."""
    model, seen = deterministic(reference.model).eval(), {}

    def keep(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        seen[name] = _channels_last(first).detach().clone()

    for name, module in parts.items():
        model.get_submodule(module).register_forward_hook(partial(keep, name))
    return model, seen


def train(build: Callable[[], Reference], size: Size, case: str) -> Recording:
    """One step in training mode, without an optimizer."""
    import torch

    reference, x = build(), image(case, (*size, 3))
    y = labels(case, size[0], reference.config["num_classes"])
    header = reference.meta(case, x.shape)
    model = deterministic(reference.model).train()
    logits = result(model(nchw(x), **reference.inputs))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    loss.backward()
    stats = {f"stats/{name}": b for name, b in model.named_buffers() if b.is_floating_point()}
    grads = {f"grad/{name}": g for name, g in gradients(reference).items()}
    outputs = float32({"logits": logits, "loss": loss, **grads, **stats})
    return {"meta": header, "input": x, "labels": y, **outputs}


# Pairs of towers, for pictures and texts.


def transformers_pairs(model: Any, pixels: Any, **texts: Any) -> dict[str, Any]:
    """What a pair of towers makes of a batch: embeddings of length 1, the logits of all pairs (a
    row for each picture), and the loss."""
    output = model(pixel_values=pixels, return_loss=True, **texts)
    return {
        "image": output.image_embeds,
        "text": output.text_embeds,
        "logits": output.logits_per_image,
        "loss": output.loss,
    }


def evaluate_pairs(
    build: Callable[[], Reference],
    size: Size,
    draw: Callable[[str], Inputs],
    case: str,
    *,
    run: Callable[..., dict[str, Any]] = transformers_pairs,
) -> Recording:
    """Evaluation mode; draw: the texts of a case, one for each picture. The pictures are drawn
    again."""
    reference, x, inputs = build(), image(case, (*size, 3)), draw(case)
    header = reference.meta(case, x.shape)
    model, seen = watched(reference, reference.parts)
    found = run(model, nchw(x), **reference.call(inputs), **reference.inputs)
    found["pairs"] = found["logits"].diagonal()
    hidden = {f"hidden/{part}": value for part, value in seen.items()}
    outputs = float32({**hidden, **{name: x for name, x in found.items() if name != "loss"}})
    return {"meta": header, **_stored(inputs), **outputs}


def train_pairs(
    build: Callable[[], Reference],
    size: Size,
    draw: Callable[[str], Inputs],
    loss: str,
    case: str,
    *,
    run: Callable[..., dict[str, Any]] = transformers_pairs,
) -> Recording:
    """One step in training mode, without an optimizer; loss: what replay.py calls it."""
    reference, x, inputs = build(), image(case, (*size, 3)), draw(case)
    header = reference.meta(case, x.shape, loss=loss)
    model = deterministic(reference.model).train()
    found = run(model, nchw(x), **reference.call(inputs), **reference.inputs)
    found["loss"].backward()
    kept = model.state_dict()
    buffers = {n: b for n, b in model.named_buffers() if n in kept and b.is_floating_point()}
    stats = {f"stats/{name}": b for name, b in buffers.items()}
    grads = {f"grad/{name}": g for name, g in gradients(reference).items()}
    outputs = float32({key: found[key] for key in ("logits", "loss")} | grads | stats)
    return {"meta": header, **_stored(inputs), "labels": np.arange(len(x)), **outputs}


def gradients(reference: Reference) -> dict[str, Any]:
    """By the names of files: the gradients take the place of the parameters, once those have done
    their work. One that is 0 but for rounding is 0: that of a parameter that the loss does not
    reach, or that a softmax takes out again."""
    import torch

    model = reference.model
    found = {p: torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()}
    largest = max(grad.abs().max() for grad in found.values())
    with torch.no_grad():
        for parameter, grad in found.items():
            parameter.copy_(grad if grad.abs().max() > 1e-12 * largest else torch.zeros(()))
    buffers = dict(model.named_buffers())
    return {name: g for name, g in reference.files(model).items() if name not in buffers}


def deterministic(model: Any) -> Any:
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return model.double()


def nchw(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x).movedim(-1, 1).contiguous().double()


def _channels_last(output: Any) -> Any:
    """Maps [b, c, h, w] as [b, h, w, c]; tokens [b, n, d] as they are."""
    return output.movedim(1, -1) if output.ndim != 3 else output


def float32(tensors: Mapping[str, Any]) -> Recording:
    return {name: t.detach().float().numpy() for name, t in tensors.items()}


def _output_name(reference: Reference) -> str:
    return "logits" if reference.config["num_classes"] else "representation"


def result(output: Any) -> Any:
    """Logits, or of a base model what its pooler gives, or the first token where it has none."""
    if not hasattr(output, "last_hidden_state"):
        return getattr(output, "logits", getattr(output, "prediction_logits", output))
    if output.pooler_output is None:
        return output.last_hidden_state[:, 0]
    return output.pooler_output.flatten(1)


def filled(model: Any) -> Any:
    import torch

    state = model.state_dict()
    model.load_state_dict({n: torch.from_numpy(fill(n, tuple(t.shape))) for n, t in state.items()})
    return model


def saved(model: Any) -> dict[str, Any]:
    """The tensors of a transformers model as `save_pretrained` writes them."""
    from safetensors.torch import load_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def filled_file(
    model: Any, files: Callable[[Any], Mapping[str, Any]] = saved, **options: Any
) -> Any:
    """A transformers model again, from a file whose tensors were filled by their names there, which
    are those of `files`."""
    import torch
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    tensors = {n: torch.from_numpy(fill(n, tuple(t.shape))) for n, t in files(model).items()}
    with tempfile.TemporaryDirectory() as folder:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        found, loading = type(model).from_pretrained(folder, output_loading_info=True, **options)
    wrong = {key: names for key, names in loading.items() if names}
    if wrong:
        sys.exit(f"{type(model).__name__} was not loaded whole: {wrong}")
    return found


def check_saved_names(model: Any) -> None:
    """Tensors are named as in files; a release that saves under other names needs `saved` here."""
    different = set(saved(model)) ^ set(model.state_dict())
    if different:
        sys.exit(f"saved names differ from those in memory: {sorted(different)}")


def blocks(depths: Sequence[int], pattern: str, first: int = 0) -> dict[str, str]:
    """Our names → the reference's by a pattern of {stage}, counted from `first`, and {block}."""
    return {
        f"stage{i + 1}.block_{j}": pattern.format(stage=i + first, block=j)
        for i, depth in enumerate(depths)
        for j in range(depth)
    }


def meta(
    case: str,
    versions: Mapping[str, str],
    config: Mapping[str, Any],
    shape: Sequence[int] | None,
    **more: Any,
) -> np.ndarray:
    content = {
        "case": case,
        "versions": dict(versions),
        "config": dict(config),
        **({} if shape is None else {"image": [case, list(shape)]}),
        **more,
    }
    return np.array(json.dumps(content))


def versions(*libraries: str) -> dict[str, str]:
    return {library: version(library) for library in (*libraries, "numpy")}


def tensors(state: Mapping[str, Any]) -> list[list[Any]]:
    return [[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in state.items()]


def import_torchvision() -> Any:
    """torchvision, also where its compiled operators cannot be loaded.

    That is so for a CUDA build beside a CPU build of torch: the import then fails for want of two
    operators of detection models, which are declared here and never called.
    """
    try:
        import torchvision
    except RuntimeError:
        import torch

        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + signature)
        import torchvision

        torchvision.declared = library  # declarations last as long as this object
    return torchvision


# Full-size models, built without memory for their weights.


def timm_meta(name: str) -> Any:
    import_torchvision()
    import timm
    import torch

    with torch.device("meta"):
        return timm.create_model(name)


def manifest(library: str, build: Callable[[str], Any], names: Sequence[str], _: str) -> Recording:
    """[name, shape, dtype] of every tensor of a checkpoint."""
    return {
        "versions": versions(library, "torch"),
        "tensors": {name: tensors(build(name).state_dict()) for name in names},
    }


def timm_manifest(names: Sequence[str], case: str) -> Recording:
    return manifest("timm", timm_meta, names, case)


LABELS = ("id2label", "label2id")


def transformers_manifest(hub: Mapping[str, tuple[str, Mapping[str, Any]]], case: str) -> Recording:
    """Of every hub id the names in files of this class with this config; `config` is what
    transformers writes as its config.json, but for the labels."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Any] = {"tensors": {}, "config": {}}
    for name, (kind, sizes) in hub.items():
        cls = getattr(transformers, kind)
        with torch.device("meta"):
            model = cls(cls.config_class(**sizes))
        model.config.architectures = [kind]
        found["tensors"][name] = tensors(revert_weight_conversion(model, model.state_dict()))
        found["config"][name] = unlabelled(model.config.to_dict())
    return {"versions": versions("transformers", "torch"), **found}


def unlabelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the names of classes, which the configs inside it have too."""
    kept = {key: value for key, value in config.items() if key not in LABELS}
    return {k: unlabelled(v) if isinstance(v, dict) else v for k, v in kept.items()}
