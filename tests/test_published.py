"""Published checkpoints by their names on the hub, and sizes that no variant has.

The checkpoints are full-size stand-ins whose names, shapes and dtypes come from the reference
libraries (`tests/golden/*_manifests.json`), in a local cache of the hub's layout. Older forms that
the hub still has: base models without the prefix `vit.`, and repositories with pytorch_model.bin
alone, such as google/vit-large-patch16-224 (both listed in github.com/keras-team/keras-hub, pull
request 1989); `num_batches_tracked` beside a ResNet's statistics."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

import zoo
from tests.checkpoints import assert_same, random_variables
from tests.hub_server import stand_in
from zoo import registry, tree
from zoo.card import OPENAI, Card, Preprocess
from zoo.text import families
from zoo.weights import convert, store
from zoo.zeroshot import tokenise

GOLDEN = Path(__file__).parent / "golden"
MANIFESTS = {page: f"{page.removesuffix('v2')}_manifests.json" for page in ("resnet", "resnetv2")}
PUBLISHED = [  # hub id, library of the manifest, its name there, our variant, the format
    ("microsoft/resnet-50", "transformers", "microsoft/resnet-50", "resnet50", "hf"),
    ("timm/resnetv2_50.a1h_in1k", "timm", "resnetv2_50.a1h_in1k", "resnetv2_50", "timm"),
    (
        "google/vit-base-patch16-224",
        "transformers",
        "google/vit-base-patch16-224",
        "vit_b16",
        "hf",
    ),
    (
        "google/vit-base-patch16-224-in21k",
        "transformers",
        "google/vit-base-patch16-224-in21k",
        "vit_b16",
        "hf",
    ),
    (
        "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
        "timm",
        "vit_base_patch16_224.augreg_in21k_ft_in1k",
        "vit_b16",
        "timm",
    ),
    (
        "facebook/deit-base-distilled-patch16-224",
        "transformers",
        "facebook/deit-base-distilled-patch16-224",
        "deit_b16_distilled",
        "hf",
    ),
    ("facebook/dinov2-small", "transformers", "facebook/dinov2-small", "dinov2_s14", "hf"),
]
IDS = [row[0] for row in PUBLISHED]
EXPORTED = [  # and what is published elsewhere
    *PUBLISHED,
    (
        "openai/clip-vit-base-patch32",
        "transformers",
        "openai/clip-vit-base-patch32",
        "clip_b32",
        "hf",
    ),
    ("timm/vit_base_patch32_clip_224.openai", "open_clip", "ViT-B-32", "clip_b32", "openai"),
    ("timm/resnet50_clip.openai", "open_clip", "RN50", "clip_rn50", "openai"),
    (
        "google/siglip-base-patch16-224",
        "transformers",
        "google/siglip-base-patch16-224",
        "siglip_b16",
        "hf",
    ),
    ("torchvision/resnet50", "torchvision", "resnet50", "resnet50", "torchvision"),
    ("torchvision/resnet18", "torchvision", "resnet18", "resnet18", "torchvision"),
    (
        "timm/vit_small_patch14_reg4_dinov2.lvd142m",
        "timm",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        "dinov2_s14_reg",
        "timm",
    ),
]
DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64"}


def manifest(page, library, name):
    """({tensor: (shape, dtype)}, config.json) of a published checkpoint."""
    file = GOLDEN / MANIFESTS.get(page, f"{page}_manifests.json")
    section = json.loads(file.read_text())[library]
    tensors = {n: (tuple(shape), dtype) for n, shape, dtype in section["tensors"][name]}
    return tensors, section.get("config", {}).get(name, {})


def write_sparse(path, tensors):
    """A safetensors file of these tensors, all 0 but the vectors, which count up; zeros take no
    room on the disk. Returns the file's size."""
    header, offset = {}, 0
    for name, (shape, dtype) in tensors.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": DTYPES[dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, (shape, dtype) in tensors.items():
            if len(shape) == 1:
                file.seek(start + header[name]["data_offsets"][0])
                file.write(counting(name, shape).astype(dtype).tobytes())
        file.truncate(start + offset)
    return start + offset


def counting(name, shape):
    return np.arange(len(name), len(name) + shape[0])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(name, tensors, facts, more=None):
        write_sparse(tmp_path / "model.safetensors", tensors)
        files = {"model.safetensors": tmp_path / "model.safetensors", **(more or {})}
        if facts:
            files["config.json"] = json.dumps(facts).encode()
        return stand_in(tmp_path / "hub", name, files)

    return add


def facts_of(source, published):
    """`config.json` as the manifest has it; where it has none (timm, ResNet), what is known of it:
    timm's architecture, and microsoft/resnet-50's 1000 labels."""
    architecture, _, _ = source.partition("/")[2].partition(".")
    classes = 0 if architecture.endswith("dinov2") else 1000
    known = {
        "torchvision": {},
        "timm": {"architecture": architecture, "num_classes": classes},
        "microsoft": {
            "model_type": "resnet",
            "architectures": ["ResNetForImageClassification"],
            "id2label": {str(i): f"LABEL_{i}" for i in range(1000)},
        },
    }
    return published or known[source.partition("/")[0]]


@pytest.mark.parametrize("source, library, name, variant, format", PUBLISHED, ids=IDS)
def test_a_published_checkpoint_loads_by_its_name_at_full_size(
    source, library, name, variant, format, hub
):
    page = registry.entry(variant).page
    tensors, published = manifest(page, library, name)
    hub(source, tensors, facts_of(source, published))
    model, variables = zoo.load(source)
    assert zoo.module_class(import_module(f"zoo.models.{page}")) is type(model)
    expected = zoo.create(variant, num_classes=model.config.num_classes)
    for field in ("patch", "width", "depth", "heads", "depths", "widths", "image_size"):
        assert getattr(model.config, field, None) == getattr(expected.config, field, None)
    rows = store.table(page).FORMATS[format].rows(model.config)
    assert_counted(tree.flatten(variables), rows, tensors)


def assert_counted(leaves, rows, tensors):
    """The vectors of a sparse file are where the table says; all is float32."""
    checked = 0
    for row in rows:
        if isinstance(row.foreign, str) and isinstance(row.ours, str) and row.ours in leaves:
            shape, _ = tensors[row.foreign]
            if len(shape) == 1:
                expected = counting(row.foreign, shape)
                np.testing.assert_array_equal(leaves[row.ours], expected, row.foreign)
                checked += 1
    assert checked > 20
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"float32"}


def clip_tokenizer():
    """The files of a small tokenizer of CLIP's kind."""
    merges = "\n".join(["#version: 0.2", "a t</w>", "c at</w>"])
    with tempfile.TemporaryDirectory() as folder:
        families.clip_merges(merges).save(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def siglip_tokenizer():
    """The files of a small tokenizer of SigLIP's kind."""
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", "▁a", "▁cat")]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    ends = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.post_processor = ends
    facts = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64}
    facts |= {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    files = {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(facts)}
    return {name: content.encode() for name, content in files.items()}


CLIP_PICTURES = (
    {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(OPENAI["mean"]),
        "image_std": list(OPENAI["std"]),
        "resample": 3,
        "size": 224,
    },
    Preprocess(224, 1.0, "bicubic", **OPENAI, convention="transformers"),
)
SIGLIP_PICTURES = (
    {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5] * 3,
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 224, "width": 224},
    },
    Preprocess(224, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3, "squash", "transformers"),
)
# Hub id → our variant, positions of each tower, what older files say otherwise, how pictures are
# prepared (their file, what it means), and the files of a tokenizer.
PAIRS = {
    "openai/clip-vit-base-patch32": (
        "clip_b32",
        {"text": 77, "vision": 50},
        {"text_config": {"bos_token_id": 0, "eos_token_id": 2}},
        CLIP_PICTURES,
        clip_tokenizer,
    ),
    "google/siglip-base-patch16-224": (
        "siglip_b16",
        {"text": 64, "vision": 196},
        {"text_config": {"bos_token_id": 49406, "eos_token_id": 49407}},
        SIGLIP_PICTURES,
        siglip_tokenizer,
    ),
}


@pytest.mark.parametrize("source", PAIRS)
def test_a_published_pair_of_towers_loads_by_its_name_with_all_that_it_needs(source, hub):
    """With what older files have too: numbers of positions, and ids that the tokenizer has not."""
    variant, positions, changes, pictures, tokenizer = PAIRS[source]
    page = registry.entry(variant).page
    tensors, facts = manifest(page, "transformers", source)
    for tower, ids in changes.items():
        facts[tower] |= ids
    for tower, length in positions.items():
        tensors[f"{tower}_model.embeddings.position_ids"] = ((1, length), "int64")
    processor, expected = pictures
    texts = {"preprocessor_config.json": json.dumps(processor).encode()}
    hub(source, tensors, facts, texts | tokenizer())
    model, variables = zoo.load(source)
    assert model.config == zoo.create(variant).config
    rows = store.table(page).FORMATS["hf"].rows(model.config)
    assert_counted(tree.flatten(variables), rows, tensors)
    assert zoo.card(source).preprocess == expected
    tokens = tokenise(zoo.tokenizer(source), ["a cat", "a " * 100], model.config.context)
    assert tokens.shape == (2, model.config.context) and tokens.dtype == np.int32
    assert tokens[1, -1] == zoo.tokenizer(source).specials.eos


@pytest.mark.parametrize(
    "source, library, name, variant, format", EXPORTED, ids=[row[0] for row in EXPORTED]
)
def test_an_export_has_the_names_shapes_and_dtypes_of_the_published_file(
    source, library, name, variant, format
):
    page = registry.entry(variant).page
    published, facts = manifest(page, library, name)
    form = store.table(page).FORMATS[format]
    specs = {n: jax.ShapeDtypeStruct(shape, np.dtype(d)) for n, (shape, d) in published.items()}
    config = form.config(specs, facts_of(source, facts))
    model = zoo.module_class(import_module(f"zoo.models.{page}"))(config)
    shapes = tree.flatten(jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model)))
    rows = form.rows(config)
    zeros = {path: np.broadcast_to(np.zeros((), x.dtype), x.shape) for path, x in shapes.items()}
    exported = convert.save(zeros, rows, shapes) | form.constants(rows)
    assert {n: (x.shape, str(x.dtype)) for n, x in exported.items()} == published
    facts = form.facts(config, Card(variant, {})) if form.facts else {}
    assert form.config(convert.specs(exported), facts) == config


# Memory.

MEASURE = """
import re, sys
from pathlib import Path

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

import jax, zoo
from zoo.models import vit
from zoo.weights import store, vit
jax.devices()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model, variables = zoo.load(sys.argv[1])
jax.block_until_ready(variables)
print(status("VmHWM") - before)
# The pages that were imported: that of the family that config.json names, and no other.
print(*sorted(name for name in sys.modules if name.startswith("zoo.models.")))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_a_large_file_is_loaded_without_a_second_copy_or_another_page(tmp_path):
    """The peak above the interpreter's is less than 1.3 × the size of a ViT-B/16."""
    tensors, facts = manifest("vit", "transformers", "google/vit-base-patch16-224")
    (tmp_path / "config.json").write_text(json.dumps(facts))
    size = write_sparse(tmp_path / "model.safetensors", tensors)
    assert size > 346e6
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    peak, pages = run.stdout.splitlines()
    assert int(peak) < 1.3 * size
    assert pages == "zoo.models.vit"


# Sizes that no variant has.

ODD = {
    "vit, patch 8, rectangular, 5 classes": (
        "vit",
        "hf",
        {"patch": 8, "width": 36, "depth": 5, "heads": 3, "mlp": 50, "image_size": (24, 40)},
    ),
    "vit with a pooler and other ε": (
        "vit",
        "hf",
        {"patch": 4, "representation": 32, "num_classes": 0, "epsilon": 1e-5, "qkv_bias": False},
    ),
    "timm's vit, rectangular, mean of patches, q and k normed": (
        "vit",
        "timm",
        {"image_size": (16, 48), "pool": "mean", "class_token": False, "qk_norm": True},
    ),
    "dinov2, rectangular, patch 7": (
        "dinov2",
        "hf",
        {"patch": 7, "image_size": (21, 35), "ffn": "mlp", "hidden": 96, "registers": 3},
    ),
    "resnet of three stages, odd widths": (
        "resnet",
        "hf",
        {"depths": (2, 1, 3), "widths": (12, 20, 28), "stem_width": 6, "in_channels": 5},
    ),
}


@pytest.mark.parametrize("page, format, changes", ODD.values(), ids=ODD)
def test_sizes_that_no_variant_has_load_from_a_directory(page, format, changes, tmp_path):
    module = import_module(f"zoo.models.{page}")
    config = replace(module.TINY, **{"num_classes": 5, **changes})
    model = zoo.module_class(module)(config)
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path, format=format)
    (tmp_path / "card.json").unlink()
    loaded_model, loaded = zoo.load(tmp_path)
    assert_same(loaded, variables)
    lost = store.table(page).FORMATS[format].lost
    for field, value in vars(config).items():
        if field not in lost:
            assert getattr(loaded_model.config, field) == value
    inputs = {key: np.ones(x.shape, x.dtype) for key, x in zoo.example(loaded_model, 2).items()}
    assert loaded_model.apply(loaded, **inputs).shape[0] == 2


@pytest.mark.parametrize("page, format", [("vit", "hf"), ("vit", "timm"), ("dinov2", "hf")])
def test_another_image_size_resizes_positions_and_nothing_else(page, format, tmp_path, caplog):
    module = import_module(f"zoo.models.{page}")
    model = zoo.module_class(module)(module.TINY)
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path, format=format)
    held, before = zoo.load(tmp_path)
    resized, after = zoo.load(tmp_path, image_size=(48, 16))
    assert resized.config == replace(held.config, image_size=(48, 16))
    assert not caplog.records
    moved = after["params"].pop("positions")
    positions = before["params"].pop("positions")
    assert_same(after, before)
    rest = positions.shape[0] - 16  # tokens without a place, in front of 4 × 4 patches
    np.testing.assert_array_equal(moved[:rest], positions[:rest])
    # The model that was not resized does the same when it is applied.
    image = np.random.default_rng(0).normal(size=(1, 48, 16, 3)).astype(np.float32)
    here = resized.apply({"params": {**after["params"], "positions": moved}}, image)
    there = held.apply({"params": {**before["params"], "positions": positions}}, image)
    np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)
