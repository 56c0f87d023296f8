"""What the pipelines of published weights make of a picture: transformers' processors on Pillow
(`*Pil`; those on torchvision interpolate otherwise), and timm's evaluation transform.

The packages need Pillow, too: `pip install pillow==13.0.0`. An npz holds, for the pictures of
`photograph.py` named in `meta`, and each case's facts as the library states them,

    CASE/PICTURE/corner    [8, 8, 3], its first pixels
    CASE/PICTURE/moments   [2, 3], mean and standard deviation of each channel
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from photograph import photograph

from references.common import Case, Recording, import_torchvision, versions

PICTURES = {"wide": (375, 500), "tall": (500, 375), "square": (224, 224)}  # height, width
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {  # the first four as published with google/vit-*, deit-*, dinov2-* and resnet-*
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
    | HALF,
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 256, "width": 256}}
    | {"crop_size": {"height": 224, "width": 224}}
    | IMAGENET,
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}
    | {"crop_size": {"height": 224, "width": 224}}
    | IMAGENET,
    "resnet": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
    | {"crop_pct": 0.875, "resample": 3}
    | IMAGENET,
    "resnet_95": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
    | {"crop_pct": 0.95}
    | IMAGENET,
    "resnet_384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}
    | IMAGENET,
    "odd": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 235}}
    | {"crop_size": {"height": 224, "width": 224}, "resample": 2}
    | HALF,
    "rectangle": {"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 160}}
    | HALF,
    "signed": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
    | {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0, 2.0, 0.5]},
    "levels": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
    | {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [50.0] * 3},
    "plain": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
    | {"do_normalize": False},
}
TIMM = {  # the first two as published with vit_base_patch16_224.augreg_* and resnetv2_50.a1h_in1k
    "augreg": {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic"}
    | {"mean": [0.5] * 3, "std": [0.5] * 3},
    "a1h": {"input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bicubic"}
    | {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_mode": "center"},
    "bilinear": {"input_size": [3, 160, 160], "crop_pct": 0.875, "interpolation": "bilinear"},
    "squash": {"input_size": [3, 128, 128], "crop_pct": 0.95, "crop_mode": "squash"},
    "rectangle": {"input_size": [3, 96, 129], "crop_pct": 0.9},
    "lanczos": {"input_size": [3, 64, 64], "crop_pct": 1.0, "interpolation": "lanczos"},
}


def transformers_processor(facts: Mapping[str, Any]) -> Callable[[Any], np.ndarray]:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    kinds = (BitImageProcessorPil, ConvNextImageProcessorPil, DeiTImageProcessorPil)
    named = {kind.__name__.removesuffix("Pil"): kind for kind in (*kinds, ViTImageProcessorPil)}
    options = {key: value for key, value in facts.items() if key != "image_processor_type"}
    process = named[facts["image_processor_type"]](**options)
    return lambda picture: np.asarray(process(picture)["pixel_values"][0])


def timm_transform(facts: Mapping[str, Any]) -> Callable[[Any], np.ndarray]:
    import_torchvision()
    from timm.data import create_transform, resolve_data_config

    process = create_transform(**resolve_data_config({}, pretrained_cfg=dict(facts)))
    return lambda picture: process(picture).numpy()


def prepared(
    library: str,
    build: Callable[[Mapping[str, Any]], Callable[[Any], np.ndarray]],
    facts: Mapping[str, Mapping[str, Any]],
    case: str,
) -> Recording:
    from PIL import Image

    about = {"case": case, "versions": versions(library, "pillow")}
    found: Recording = {
        "meta": np.array(json.dumps({**about, "pictures": PICTURES, "facts": facts}))
    }
    for name, size in PICTURES.items():
        picture = Image.fromarray(photograph(name, *size))
        for key, stated in facts.items():
            x = np.moveaxis(build(stated)(picture), 0, -1).astype(np.float32)
            found[f"{key}/{name}/corner"] = x[:8, :8]
            moments = [f(x, (0, 1), np.float64) for f in (np.mean, np.std)]
            found[f"{key}/{name}/moments"] = np.stack(moments).astype(np.float32)
    return found


CASES = (
    Case(
        "preprocess_hf",
        "transformers",
        partial(prepared, "transformers", transformers_processor, PROCESSORS),
    ),
    Case("preprocess_timm", "timm", partial(prepared, "timm", timm_transform, TIMM)),
)
