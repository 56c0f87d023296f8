"""Record what independent references compute, as small files that the tests replay.

    python tests/golden/record.py resnet              # write beside this file
    python tests/golden/record.py resnet --out DIR    # or elsewhere
    python tests/golden/record.py resnet --check      # record in memory, compare with the files

A reference is built tiny, every tensor is filled by its name (`fill.py`), and it runs on one
thread. Torch computes in float64 and its results are rounded to float32 at the end: in float32 the
gradients through batch statistics differ by up to 1e-4 of their size with the machine's choice of
kernels, and no second recording could agree within 1e-6. The ONNX graph is float32 by its types.

The libraries do not all fit into one environment: cases whose library is absent are
left out by name, so run this once in each of (Python 3.11, where torch is a CPU build)

    pip install torch==2.13.0 transformers==5.23.0 onnx==1.23.2 onnxruntime==1.31.1
    pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31

An npz holds, with images and hidden states as [b, h, w, c] in float32:

    meta                          JSON: case, versions, config in the words of our `Config`, image
                                  (name and shape for `fill.image`), tensors [name, shape, dtype]
    input                         the images, unless they are too large: then draw them
    hidden/stem, hidden/stage1.block_0, …, hidden/norm    what leaves each part
    mean/…                        the same, averaged over h, w, where the maps are too large
    pooled, logits                [b, c], [b, classes]
    labels, loss, grad/NAME, stats/NAME    of one step in training mode: mean cross-entropy, its
                                  gradients, and the running statistics after the step
"""

import argparse
import importlib.util
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from fill import fill, image, labels

HERE = Path(__file__).parent
LIMIT = 100_000  # bytes of a file
TOLERANCE = 1e-6  # of a second recording, relative to the largest value of each array
PIP = {
    "transformers": "pip install torch==2.13.0 transformers==5.23.0",
    "onnxruntime": "pip install onnx==1.23.2 onnxruntime==1.31.1",
    "torchvision": "pip install torch==2.13.0 torchvision==0.28.0",
    "timm": "pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31",
}

Recording = dict[str, Any]  # arrays of an npz, or the JSON of one section
Size = tuple[int, int, int]  # images, height, width


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


@dataclass(frozen=True)
class Reference:
    """A filled torch model, and where in it our hidden states are found."""

    model: Any
    config: Mapping[str, Any]  # in the words of our `Config`
    parts: Mapping[str, str]  # our name → the reference's name of the module whose output it is
    pool: str
    versions: Mapping[str, str]

    def meta(self, case: str, shape: Sequence[int]) -> np.ndarray:
        rows = tensors(self.model.state_dict())
        return meta(case, self.versions, self.config, shape, tensors=rows)


# How a reference is run.


def evaluate(
    build: Callable[[], Reference], size: Size, case: str, *, maps: bool = True
) -> Recording:
    """Evaluation mode. `maps=False` keeps only the averages of hidden states over h, w."""
    reference, x = build(), image(case, (*size, 3))
    header = reference.meta(case, x.shape)
    model = deterministic(reference.model).eval()
    seen = {}

    def keep(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        seen[name] = output.detach().movedim(1, -1).clone()

    for name, module in {**reference.parts, "pooled": reference.pool}.items():
        model.get_submodule(module).register_forward_hook(partial(keep, name))
    logits = _logits(model(_nchw(x)))
    pooled = seen.pop("pooled").flatten(1)
    hidden = (
        {f"hidden/{name}": value for name, value in seen.items()}
        if maps
        else {f"mean/{name}": value.mean((1, 2)) for name, value in seen.items()}
    )
    return {"meta": header, "input": x, **_float32({**hidden, "pooled": pooled, "logits": logits})}


def train(build: Callable[[], Reference], size: Size, case: str) -> Recording:
    """One step in training mode, without an optimizer."""
    import torch

    reference, x = build(), image(case, (*size, 3))
    y = labels(case, size[0], reference.config["num_classes"])
    header = reference.meta(case, x.shape)
    model = deterministic(reference.model).train()
    logits = _logits(model(_nchw(x)))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    loss.backward()
    grads = {f"grad/{name}": p.grad for name, p in model.named_parameters()}
    stats = {f"stats/{name}": b for name, b in model.named_buffers() if b.is_floating_point()}
    outputs = _float32({"logits": logits, "loss": loss, **grads, **stats})
    return {"meta": header, "input": x, "labels": y, **outputs}


def deterministic(model: Any) -> Any:
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return model.double()


def _nchw(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x).movedim(-1, 1).contiguous().double()


def _float32(tensors: Mapping[str, Any]) -> Recording:
    return {name: t.detach().float().numpy() for name, t in tensors.items()}


def _logits(output: Any) -> Any:
    return getattr(output, "logits", output)


def filled(model: Any) -> Any:
    import torch

    state = model.state_dict()
    model.load_state_dict({n: torch.from_numpy(fill(n, tuple(t.shape))) for n, t in state.items()})
    return model


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
    shape: Sequence[int],
    **more: Any,
) -> np.ndarray:
    content = {
        "case": case,
        "versions": dict(versions),
        "config": dict(config),
        "image": [case, list(shape)],
        **more,
    }
    return np.array(json.dumps(content))


def versions(*libraries: str) -> dict[str, str]:
    return {library: version(library) for library in (*libraries, "numpy")}


# The references.


def transformers_resnet(**config: Any) -> Reference:
    """`config`: depths, widths, block, stem_width, num_classes."""
    from transformers import ResNetForImageClassification

    model = filled(ResNetForImageClassification(transformers_config(**config)))
    _check_saved_names(model)
    return Reference(
        model,
        config,
        parts={
            "stem": "resnet.embedder",
            **blocks(config["depths"], "resnet.encoder.stages.{stage}.layers.{block}"),
        },
        pool="resnet.pooler",
        versions=versions("transformers", "torch"),
    )


def transformers_config(
    depths: Sequence[int], widths: Sequence[int], block: str, stem_width: int, num_classes: int
) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=stem_width,
        hidden_sizes=list(widths),
        depths=list(depths),
        layer_type=block,
        downsample_in_bottleneck=False,  # the stride is in the 3×3
        num_labels=num_classes,
    )


def _check_saved_names(model: Any) -> None:
    """Tensors are named as in files; a release that saves under other names needs a table here."""
    from safetensors import safe_open
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            different = set(file.keys()) ^ set(model.state_dict())
    if different:
        sys.exit(f"saved names differ from those in memory: {sorted(different)}")


def torchvision_resnet(*, depths: Sequence[int], num_classes: int) -> Reference:
    """Bottlenecks; torchvision fixes the widths."""
    torchvision = import_torchvision()
    resnet = torchvision.models.resnet
    config = {
        "depths": depths,
        "widths": (256, 512, 1024, 2048),
        "block": "bottleneck",
        "stem_width": 64,
        "num_classes": num_classes,
    }
    return Reference(
        filled(resnet.ResNet(resnet.Bottleneck, list(depths), num_classes=num_classes)),
        config,
        parts={"stem": "maxpool", **blocks(depths, "layer{stage}.{block}", first=1)},
        pool="avgpool",
        versions=versions("torchvision", "torch"),
    )


def timm_resnetv2(**config: Any) -> Reference:
    """`config`: depths, widths, stem_width, num_classes; norms and blocks are those of resnetv2_50.

    timm rounds stem and bottlenecks to multiples of 8: choose widths that are multiples of 32.
    """
    import_torchvision()
    import timm

    model = timm.create_model(
        "resnetv2_50",
        layers=config["depths"],
        channels=config["widths"],
        stem_chs=config["stem_width"],
        num_classes=config["num_classes"],
    )
    stages = blocks(config["depths"], "stages.{stage}.blocks.{block}")
    return Reference(
        filled(model),
        config,
        parts={"stem": "stem", **stages, "norm": "norm"},
        pool="head.global_pool",
        versions=versions("timm", "torch"),
    )


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


def onnx_resnet50(case: str) -> Recording:
    """The ResNet-50 graph in the onnx wheel. `meta` has its nodes in order: [operator, weights,
    attributes]."""
    import onnx

    path = "backend/test/data/light/light_resnet50.onnx"
    source = onnx.load_model_from_string(files("onnx").joinpath(path).read_bytes())
    nodes = [node for node in source.graph.node if node.op_type != "ConstantOfShape"]
    shapes = onnx_shapes(source.graph)
    taps = onnx_taps(nodes)

    x = image(case, (1, 224, 224, 3))
    feed = {nodes[0].input[0]: np.ascontiguousarray(np.moveaxis(x, -1, 1))}
    session = onnx_session(source, nodes, shapes, list(taps.values()))
    outputs = dict(zip(taps, session.run(list(taps.values()), feed), strict=True))
    header = meta(
        case,
        versions("onnx", "onnxruntime"),
        {**RESNET50, "block": "bottleneck", "stem_width": 64, "num_classes": 1000},
        x.shape,
        tensors=[[name, shape, "float32"] for name, shape in shapes.items()],
        nodes=[onnx_describe(node, shapes) for node in nodes],
    )
    return {
        "meta": header,
        "input/corner": x[:, :4, :4],  # shows whether the drawn image is the same
        "logits": outputs.pop("logits"),
        "pooled": outputs.pop("pooled").reshape(1, -1),
        **{f"mean/{name}": value.mean(axis=(2, 3)) for name, value in outputs.items()},
    }


def onnx_session(source: Any, nodes: Sequence[Any], shapes: Mapping[str, Any], outputs: Any) -> Any:
    """Filled weights, every node run as it is written: none fused, one thread."""
    import onnx
    import onnxruntime

    constants = {t.name: t for t in source.graph.initializer}
    graph = onnx.helper.make_graph(
        nodes,
        "resnet50",
        [i for i in source.graph.input if i.name == nodes[0].input[0]],
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs],
        [onnx.numpy_helper.from_array(fill(n, shape), n) for n, shape in shapes.items()]
        + [constants[node.input[1]] for node in nodes if node.op_type == "Reshape"],
    )
    # From version 4 of the format on, weights need not be listed as inputs too.
    model = onnx.helper.make_model(graph, opset_imports=source.opset_import, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def onnx_shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Float weights in order of use. Most are ConstantOfShape nodes fed by their shape."""
    from onnx.numpy_helper import to_array

    constants = {t.name: to_array(t) for t in graph.initializer}
    shapes = {name: a.shape for name, a in constants.items() if a.dtype == np.float32}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(map(int, constants[node.input[0]]))
    used = (name for node in graph.node for name in node.input)
    return {name: shapes[name] for name in used if name in shapes}


def onnx_taps(nodes: Sequence[Any]) -> dict[str, str]:
    """Our names of what is recorded → names in the graph. A block ends with the ReLU of its sum."""
    one = {node.op_type: node.output[0] for node in nodes}
    relu = {node.input[0]: node.output[0] for node in nodes if node.op_type == "Relu"}
    ends = [relu[node.output[0]] for node in nodes if node.op_type == "Sum"]
    return {
        "stem": one["MaxPool"],
        **dict(zip(blocks(RESNET50["depths"], ""), ends, strict=True)),
        "pooled": one["AveragePool"],
        "logits": one["Gemm"],
    }


def onnx_describe(node: Any, shapes: Mapping[str, Any]) -> list[Any]:
    from onnx.helper import get_attribute_value

    attributes = {a.name: get_attribute_value(a) for a in node.attribute}
    return [node.op_type, [name for name in node.input if name in shapes], attributes]


# Counts and names of full-size models, built without memory for their weights.


HUB = {  # the sizes of microsoft/resnet-*, from the script in transformers 4 that converted them
    "microsoft/resnet-18": {"depths": (2, 2, 2, 2), "widths": (64, 128, 256, 512)},
    "microsoft/resnet-26": {"depths": (2, 2, 2, 2), "widths": (256, 512, 1024, 2048)},
    "microsoft/resnet-34": {"depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512)},
    "microsoft/resnet-50": {"depths": (3, 4, 6, 3), "widths": (256, 512, 1024, 2048)},
    "microsoft/resnet-101": {"depths": (3, 4, 23, 3), "widths": (256, 512, 1024, 2048)},
    "microsoft/resnet-152": {"depths": (3, 8, 36, 3), "widths": (256, 512, 1024, 2048)},
}
RESNET50 = HUB["microsoft/resnet-50"]
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
TIMM = tuple(f"resnetv2_{size}" for size in ("18", "34", "50", "101", "152"))  # with BatchNorm
CARD = (  # what timm states about published weights
    "license input_size test_input_size crop_pct test_crop_pct interpolation mean std num_classes"
).split()


def transformers_meta(name: str) -> Any:
    import torch
    from transformers import ResNetForImageClassification

    sizes = HUB[name]
    block = "basic" if sizes["widths"][-1] == 512 else "bottleneck"
    config = transformers_config(**sizes, block=block, stem_width=64, num_classes=1000)
    with torch.device("meta"):
        return ResNetForImageClassification(config)


def torchvision_meta(name: str) -> Any:
    torchvision = import_torchvision()
    import torch

    with torch.device("meta"):
        return torchvision.models.get_model(name)


def timm_meta(name: str) -> Any:
    import_torchvision()
    import timm
    import torch

    with torch.device("meta"):
        return timm.create_model(name)


def count(library: str, build: Callable[[str], Any], names: Sequence[str], _: str) -> Recording:
    counts = {name: sum(p.numel() for p in build(name).parameters()) for name in names}
    return {"versions": versions(library, "torch"), "params": counts}


def timm_count(case: str) -> Recording:
    """Counts, and for each published checkpoint of these models what is needed to use it."""
    counts = count("timm", timm_meta, TIMM, case)
    import timm

    cards = {
        tag: timm.models.get_pretrained_cfg(tag).to_dict()
        for name in TIMM
        for tag in timm.list_pretrained(f"{name}.*")
    }
    published = {tag: {key: card[key] for key in CARD} for tag, card in cards.items()}
    return {**counts, "published": published}


def manifest(library: str, build: Callable[[str], Any], names: Sequence[str], _: str) -> Recording:
    """[name, shape, dtype] of every tensor of a checkpoint."""
    return {
        "versions": versions(library, "torch"),
        "tensors": {name: tensors(build(name).state_dict()) for name in names},
    }


def tensors(state: Mapping[str, Any]) -> list[list[Any]]:
    return [[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in state.items()]


# Writing and comparing.


def write(case: Case, recording: Recording, folder: Path) -> str:
    path = folder / case.path
    content = pack_json(case, recording, path) if case.is_json else pack_npz(recording)
    if len(content) > LIMIT:
        sys.exit(f"{path.name} has {len(content):,} bytes, more than {LIMIT:,}: make it smaller")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return f"{len(content):,} bytes"


def pack_npz(recording: Recording) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **recording)
    return buffer.getvalue()


def pack_json(case: Case, recording: Recording, path: Path) -> bytes:
    """The file with this library's section replaced; the others were made elsewhere and stay."""
    sections = json.loads(path.read_text()) if path.exists() else {}
    return (pretty({**sections, case.library: recording}) + "\n").encode()


def pretty(value: Any, line: str = "\n") -> str:
    """JSON with a line for each key, and for each row of a list of lists."""
    inner = line + " "
    if isinstance(value, dict):
        items = (f"{inner}{json.dumps(key)}: {pretty(v, inner)}" for key, v in value.items())
        return "{" + ",".join(items) + line + "}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[" + ",".join(inner + json.dumps(row) for row in value) + line + "]"
    return json.dumps(value)


def check(case: Case, recording: Recording, folder: Path) -> tuple[float, str]:
    """The largest difference from the file, relative to each array's largest value, and where."""
    path = folder / case.path
    if not path.exists():
        return math.inf, f"there is no {path}: record it first"
    if case.is_json:
        old = json.loads(path.read_text()).get(case.library, {})
        new = json.loads(json.dumps(recording))
        return max((_unequal(old, new, key), key) for key in (old.keys() | new) - {"versions"})
    with np.load(path) as file:
        old = dict(file)
    if different := old.keys() ^ recording:
        return math.inf, f"only on one side: {sorted(different)}"
    old_meta, new_meta = (json.loads(str(arrays.pop("meta"))) for arrays in (old, recording))
    described = [(_unequal(old_meta, new_meta, key), f"meta {key}") for key in old_meta]
    return max(
        *(row for row in described if row[1] != "meta versions"),
        *((relative(recording[name], old[name]), name) for name in old),
    )


def relative(new: np.ndarray, old: np.ndarray) -> float:
    if new.shape != old.shape or new.dtype != old.dtype:
        return math.inf
    difference = np.abs(new - old).max() / max(np.abs(old).max(), np.finfo(np.float32).tiny)
    return float(difference) if np.isfinite(difference) else math.inf


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> float:
    return 0.0 if old.get(key) == new.get(key) else math.inf


HF_BOTTLENECK = partial(
    transformers_resnet,
    depths=(1, 2, 1, 1),
    widths=(16, 24, 32, 40),
    block="bottleneck",
    stem_width=8,
    num_classes=5,
)
HF_BASIC = partial(
    transformers_resnet,
    depths=(1, 2, 1, 1),
    widths=(8, 12, 12, 16),
    block="basic",
    stem_width=8,
    num_classes=5,
)
TORCHVISION_BOTTLENECK = partial(torchvision_resnet, depths=(1, 2, 1, 1), num_classes=5)
TIMM_BOTTLENECK = partial(
    timm_resnetv2,
    depths=(1, 2, 1, 1),
    widths=(32, 64, 96, 128),
    stem_width=8,
    num_classes=5,
)
TIMM_NARROW = partial(  # whose gradients fit into a file
    timm_resnetv2,
    depths=(1, 2, 1, 1),
    widths=(32, 32, 32, 32),
    stem_width=8,
    num_classes=5,
)

# Uneven padding shows where a layer that strides meets an even side: 33, 47 → 17, 24 → 9, 12 → 5, 6
# → 3, 3 → 2, 2. In training the last maps are 1 × 1, so that 8 images give a channel 8 values and a
# biased variance is off by 1/8.
FAMILIES: dict[str, tuple[Case, ...]] = {
    "resnet": (
        Case("resnet_hf_bottleneck", "transformers", partial(evaluate, HF_BOTTLENECK, (2, 33, 47))),
        Case(
            "resnet_hf_bottleneck_train", "transformers", partial(train, HF_BOTTLENECK, (8, 17, 15))
        ),
        Case("resnet_hf_basic", "transformers", partial(evaluate, HF_BASIC, (2, 33, 47))),
        Case("resnet_hf_basic_train", "transformers", partial(train, HF_BASIC, (8, 17, 15))),
        Case(
            "resnet_torchvision_bottleneck",
            "torchvision",
            partial(evaluate, TORCHVISION_BOTTLENECK, (2, 33, 47), maps=False),
        ),
        Case("resnet_onnx", "onnxruntime", onnx_resnet50),
        Case(
            "resnet_counts.json",
            "transformers",
            partial(count, "transformers", transformers_meta, tuple(HUB)),
        ),
        Case(
            "resnet_counts.json",
            "torchvision",
            partial(count, "torchvision", torchvision_meta, TORCHVISION),
        ),
        Case("resnet_counts.json", "timm", timm_count),
        Case(
            "resnet_manifests.json",
            "transformers",
            partial(manifest, "transformers", transformers_meta, ("microsoft/resnet-50",)),
        ),
        Case(
            "resnet_manifests.json",
            "torchvision",
            partial(manifest, "torchvision", torchvision_meta, ("resnet50", "resnet18")),
        ),
        Case(
            "resnet_manifests.json",
            "timm",
            partial(manifest, "timm", timm_meta, ("resnetv2_50.a1h_in1k",)),
        ),
    ),
    "resnetv2": (
        Case("resnetv2_timm", "timm", partial(evaluate, TIMM_BOTTLENECK, (2, 33, 31))),
        Case("resnetv2_timm_train", "timm", partial(train, TIMM_NARROW, (8, 17, 15))),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Record golden files from reference models.")
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the files")
    parser.add_argument("--check", action="store_true", help="compare with the files in --out")
    options = parser.parse_args()
    failed = []
    for case in FAMILIES[options.family]:
        label = f"{case.path} [{case.library}]"
        if importlib.util.find_spec(case.library) is None:
            print(f"{label}: left out, {case.library} is not installed: {PIP[case.library]}")
            continue
        recording = case.record(case.name)
        if options.check:
            difference, where = check(case, recording, options.out)
            failed += [label] * (difference > TOLERANCE)
            print(f"{label}: at most {difference:.1e}, at {where}")
        else:
            print(f"{label}: {write(case, recording, options.out)}")
    if failed:
        sys.exit(f"more than {TOLERANCE:.0e} from the files: {', '.join(failed)}")


if __name__ == "__main__":
    main()
