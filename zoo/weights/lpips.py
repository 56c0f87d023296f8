"""LPIPS: names of the authors' package (`lpips` 0.1, BSD-2-Clause), weights of version 0.1.

The package holds the weights of the distances alone and fetches the classifier from torchvision, so
that there is no one file of both to fetch. This makes one, for `zoo.load("lpips_alex.pth")`:

    torch.save(lpips.LPIPS(net="alex").state_dict(), "lpips_alex.pth")

What `zoo.save(…, format="lpips")` writes, `safetensors.torch.load_model` loads into the package's
LPIPS. Its version 0.0, which does not scale colours, has the same names: such a file is not told
apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.models.lpips import MEAN, NETS, STD, Config
from zoo.weights.convert import Format, Row, biased_conv, layout, tie

MODEL_TYPES = ()

# A 1×1 convolution to one channel. The package lists its layers twice, by one name and in a list.
WEIGHT = tie(layout("1 c 1 1", "c"))


def rows(config: Config) -> list[Row]:
    """Layers are counted as torchvision counts them: each convolution, ReLU and pooling."""
    net, layer, found = NETS[config.net], 0, []
    for i, depth in enumerate(net.depths):
        layer += i in net.pooled
        for j in range(depth):
            found += biased_conv(f"net.slice{i + 1}.{layer}", f"stage{i + 1}/conv{j + 1}")
            layer += 2
    for i in range(len(net.depths)):
        names = (f"lin{i}.model.1.weight", f"lins.{i}.model.1.weight")
        found.append(Row(names, f"params/distance{i + 1}/weight", WEIGHT))
    return found


def config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the names and shapes: VGG's stages begin with two convolutions."""
    net = "vgg" if "net.slice1.2.weight" in tensors else "alex"
    last = (name for i in range(1, 6) for name in _biases(tensors, i)[-1:])
    return Config(net, tuple(tensors[name].shape[0] for name in last))


def _biases(tensors: Mapping[str, Any], stage: int) -> list[str]:
    start = f"net.slice{stage}."
    return [name for name in tensors if name.startswith(start) and name.endswith(".bias")]


def scaling(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The package's normalisation of colours in [−1, 1], which is the same for all its models."""
    shift, scale = 2 * np.array(MEAN) - 1, 2 * np.array(STD)
    return {
        f"scaling_layer.{name}": x.astype(np.float32).reshape(1, 3, 1, 1)
        for name, x in (("shift", shift), ("scale", scale))
    }


FORMATS = {
    "lpips": Format(
        rows=rows,
        marker="net.slice1.0.weight",
        ignored=(r"scaling_layer\.(shift|scale)",),
        config=config,
        constants=scaling,
    ),
}
