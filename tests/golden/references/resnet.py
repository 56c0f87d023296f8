"""ResNet from transformers and torchvision, and the ResNet-50 graph of the onnx wheel."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from fill import fill, image

from references.common import (
    Case,
    Recording,
    Reference,
    blocks,
    check_saved_names,
    evaluate,
    filled,
    import_torchvision,
    manifest,
    meta,
    timm_meta,
    train,
    versions,
)


def transformers_resnet(**config: Any) -> Reference:
    """`config`: depths, widths, block, stem_width, num_classes; of a base model 0."""
    import transformers

    kind, base = ("ForImageClassification", "resnet.") if config["num_classes"] else ("Model", "")
    model = filled(getattr(transformers, f"ResNet{kind}")(transformers_config(**config)))
    check_saved_names(model)
    return Reference(
        model,
        config,
        parts={
            "stem": f"{base}embedder",
            **blocks(config["depths"], f"{base}encoder.stages.{{stage}}.layers.{{block}}"),
        },
        pool=f"{base}pooler",
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


def count(library: str, build: Callable[[str], Any], names: Sequence[str], _: str) -> Recording:
    counts = {name: sum(p.numel() for p in build(name).parameters()) for name in names}
    return {"versions": versions(library, "torch"), "params": counts}


def timm_count(case: str) -> Recording:
    """Counts, and for each published checkpoint of these models what is needed to use it."""
    counts = count("timm", timm_meta, TIMM, case)
    import timm

    cards = {
        tag: timm.models.get_pretrained_cfg(tag).to_dict()
        for name in (*TIMM, *TORCHVISION)
        for tag in timm.list_pretrained(f"{name}.*")
    }
    published = {
        tag: {key: card[key] for key in CARD if key in card} for tag, card in cards.items()
    }
    return {**counts, "published": published}


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
HF_BASE = partial(
    transformers_resnet,
    depths=(1, 2),
    widths=(16, 24),
    block="bottleneck",
    stem_width=8,
    num_classes=0,
)
TORCHVISION_BOTTLENECK = partial(torchvision_resnet, depths=(1, 2, 1, 1), num_classes=5)

# Uneven padding shows where a layer that strides meets an even side: 33, 47 → 17, 24 → 9, 12 → 5, 6
# → 3, 3 → 2, 2. In training the last maps are 1 × 1, so that 8 images give a channel 8 values and a
# biased variance is off by 1/8.
CASES = (
    Case("resnet_hf_bottleneck", "transformers", partial(evaluate, HF_BOTTLENECK, (2, 33, 47))),
    Case("resnet_hf_bottleneck_train", "transformers", partial(train, HF_BOTTLENECK, (8, 17, 15))),
    Case("resnet_hf_basic", "transformers", partial(evaluate, HF_BASIC, (2, 33, 47))),
    Case("resnet_hf_basic_train", "transformers", partial(train, HF_BASIC, (8, 17, 15))),
    Case("resnet_hf_base", "transformers", partial(evaluate, HF_BASE, (2, 17, 31))),
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
)
