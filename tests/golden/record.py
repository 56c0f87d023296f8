"""Record what independent references compute, as small files that the tests replay.

    python tests/golden/record.py resnet              # write beside this file
    python tests/golden/record.py resnet --out DIR    # or elsewhere
    python tests/golden/record.py resnet --check      # record in memory, compare with the files

What there is to record of a family stands in `references/FAMILY.py`.

A reference is built tiny, every tensor is filled by its name (`fill.py`), and it runs on one
thread. Torch computes in float64 and its results are rounded to float32 at the end: in float32 the
gradients through batch statistics differ by up to 1e-4 of their size with the machine's choice of
kernels, and no second recording could agree within 1e-6. The ONNX graph is float32 by its types,
and so is Google's JAX code.

The libraries do not all fit into one environment: cases whose library is absent are
left out by name, so run this once in each of (Python 3.11, where torch is a CPU build)

    pip install torch==2.13.0 transformers==5.23.0 onnx==1.23.2 onnxruntime==1.31.1
    pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 open-clip-torch==3.3.0 lpips==0.1.4
    pip install transformers==4.57.6 flax==0.10.7 jax==0.6.2      # for "flax" and "bert_flax" alone
    pip install flax==0.12.8 jax==0.10.2                          # for Google's JAX code

The last needs two clones beside it, for no package holds that code, and Meta's DINOv2 a third
beside the first environment:

    git clone https://github.com/google-research/vision_transformer   # has vit_jax
    git clone https://github.com/google-research/big_vision
    git clone https://github.com/facebookresearch/dinov2
    git -C vision_transformer checkout c6de1e5
    git -C big_vision checkout 0127fb6
    git -C dinov2 checkout b8931f7
    export PYTHONPATH=$PWD/vision_transformer:$PWD/big_vision:$PWD/dinov2

An npz holds, with images and hidden states as [b, h, w, c] in float32:

    meta                          JSON: case, versions, config in the words of our `Config`, image
                                  (name and shape for `fill.image`), tensors [name, shape, dtype]
    input                         the images, unless they are too large: then draw them
    inputs/tokens, inputs/…       of a model of text: what it takes, by keyword; no image then but
                                  for a pair of towers
    mask                          bool [b, patches], what was hidden from a masked model
    hidden/stem, hidden/stage1.block_0, …, hidden/norm    what leaves each part; tokens [b, n, d]
    mean/…                        the same, averaged over h, w, where the maps are too large
    pooled, logits                [b, c], [b, classes]; of a model without classes:
    representation                [b, c]
    image, text, pairs, logits    of a pair of towers: embeddings [b, e] of length 1, logits of what
                                  belongs together [b], and of all with all [b, b]
    distances                     [b], of a model of pairs of pictures: `image` and `other` in meta
    grad/NAME, grad/image         gradients of the sum of distances
    labels, loss, grad/NAME, stats/NAME    of one step in training mode: mean cross-entropy over
                                  the labels that are not −1 (or the loss that `meta` names), its
                                  gradients, and the running statistics after the step
"""

import argparse
import importlib.util
import io
import json
import math
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from references.common import Case, Recording

HERE = Path(__file__).parent
FAMILIES = {path.stem for path in (HERE / "references").glob("[a-z]*.py")} - {"common"}
LIMIT = {".npz": 100_000, ".json": 150_000}  # bytes of a file
TOLERANCE = 1e-6  # of a second recording, relative to the largest value of each array
PIP = {
    "transformers": "pip install torch==2.13.0 transformers==5.23.0",
    "onnxruntime": "pip install onnx==1.23.2 onnxruntime==1.31.1",
    "torchvision": "pip install torch==2.13.0 torchvision==0.28.0",
    "timm": "pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31",
    "open_clip": "pip install torch==2.13.0 torchvision==0.28.0 open-clip-torch==3.3.0",
    "lpips": "pip install torch==2.13.0 torchvision==0.28.0 lpips==0.1.4",
    "flax": "pip install transformers==4.57.6 flax==0.10.7 jax==0.6.2",
    "vit_jax": "git clone https://github.com/google-research/vision_transformer",
    "big_vision": "git clone https://github.com/google-research/big_vision",
    "dinov2": "git clone https://github.com/facebookresearch/dinov2",
}


# Writing and comparing.


def write(case: Case, recording: Recording, folder: Path) -> str:
    path = folder / case.path
    content = pack_json(case, recording, path) if case.is_json else pack_npz(recording)
    limit = LIMIT[path.suffix]
    if len(content) > limit:
        sys.exit(f"{path.name} has {len(content):,} bytes, more than {limit:,}: make it smaller")
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
    new, old = new.astype(np.float64), old.astype(np.float64)
    difference = np.abs(new - old).max() / max(np.abs(old).max(), np.finfo(np.float32).tiny)
    return float(difference) if np.isfinite(difference) else math.inf


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> float:
    return 0.0 if old.get(key) == new.get(key) else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description="Record golden files from reference models.")
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the files")
    parser.add_argument("--check", action="store_true", help="compare with the files in --out")
    options = parser.parse_args()
    failed = []
    for case in import_module(f"references.{options.family}").CASES:
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
