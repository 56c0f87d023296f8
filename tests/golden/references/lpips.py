"""LPIPS from the authors' package, on classifiers of torchvision."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fill import fill, image

from references.common import (
    Case,
    Recording,
    Reference,
    deterministic,
    float32,
    gradients,
    import_torchvision,
    nchw,
    tensors,
    versions,
)


def package(net: str) -> Any:
    """As it is, without the published weights of either part."""
    import_torchvision()
    import lpips

    return lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, pnet_tune=True, verbose=False)


def narrow(net: str, widths: Sequence[int]) -> Reference:
    """The package's own model, in which every convolution has fewer channels and is otherwise as it
    was. Of tensors with two names the file has the first; colours are scaled as they were."""
    import torch

    model, channels = package(net), 3
    for i, width in enumerate(widths):
        stage = model.net.get_submodule(f"slice{i + 1}")
        for name, layer in stage.named_children():
            if isinstance(layer, torch.nn.Conv2d):
                sizes = (layer.kernel_size, layer.stride, layer.padding)
                setattr(stage, name, torch.nn.Conv2d(channels, width, *sizes))
                channels = width
        model.lins[i].model[1] = torch.nn.Conv2d(width, 1, 1, bias=False)
    drawn = {n: torch.from_numpy(fill(n, tuple(t.shape))) for n, t in once(model).items()}
    drawn |= {n: t for n, t in model.state_dict().items() if n.startswith("scaling_layer.")}
    model.load_state_dict(drawn, strict=False)
    config = {"net": net, "widths": list(widths)}
    known = versions("lpips", "torchvision", "torch")
    return Reference(model, config, parts={}, versions=known, files=once)


def once(model: Any) -> dict[str, Any]:
    return {n: t for n, t in model.state_dict().items() if not n.startswith("lins.")}


def compare(net: str, widths: Sequence[int], size: tuple[int, int, int], case: str) -> Recording:
    """Evaluation mode: what leaves the stages for the first pictures, the distances of each stage,
    their sum, and the gradients of that over all pairs. `size`: pairs, height, width."""
    reference, shape = narrow(net, widths), (*size, 3)
    drawn = {key: (f"{case}_{key}", shape) for key in ("image", "other")}
    header = reference.meta(case, **drawn)
    model = deterministic(reference.model).eval()
    x, y = (nchw(image(*row)) for row in drawn.values())
    x.requires_grad_()
    distances, stages = model(x, y, retPerLayer=True, normalize=True)
    distances.sum().backward()
    maps = model.net(model.scaling_layer(2 * x - 1))
    hidden = {f"hidden/stage{i + 1}": map.movedim(1, -1) for i, map in enumerate(maps)}
    hidden |= {f"hidden/distance{i + 1}": x.flatten() for i, x in enumerate(stages)}
    found = {"grad/image": x.grad.movedim(1, -1)}
    outputs = float32({**hidden, "distances": distances.flatten()})  # before gradients overwrite
    found |= {f"grad/{name}": g for name, g in gradients(reference).items()}
    return {"meta": header, **outputs, **float32(found)}


def full(names: dict[str, str], case: str) -> Recording:
    """[name, shape, dtype] of every tensor of a model of the package, and its parameters' count."""
    models = {name: package(net) for name, net in names.items()}
    return {
        "versions": versions("lpips", "torchvision", "torch"),
        "tensors": {name: tensors(model.state_dict()) for name, model in models.items()},
        "params": {n: sum(p.numel() for p in m.parameters()) for n, m in models.items()},
    }


# Poolings meet odd sides, and a border that none of their windows holds: 47, 55 → 11, 13 → 5, 6
# → 2, 2 by AlexNet, 35, 33 → 17, 16 → 8, 8 → 4, 4 → 2, 2 by VGG.
NETS = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
CASES = (
    Case("lpips_alex", "lpips", partial(compare, "alex", (6, 8, 10, 8, 6), (2, 47, 55))),
    Case("lpips_vgg", "lpips", partial(compare, "vgg", (4, 4, 6, 4, 6), (2, 35, 33))),
    Case("lpips_manifests.json", "lpips", partial(full, NETS)),
)
