"""Instant-NGP with proposal networks on a capture without bounds: a scene of Mip-NeRF 360, for a
GPU.

    python -m train ngp_360 [--data.source colmap:data/360/bicycle]

Pictures become four times smaller: those of images_4 are taken where they are there, as the paper
does outdoors; indoors it is --data.factor 2. Every eighth view tests, as there; of the rest one in
fifty validates, which the paper trains on.

The contraction to a ball of radius 2, samples that are even in disparity, proposals that learn from
the field, and the distortion loss with weight 0.01 are those of Mip-NeRF 360 (Barron et al., 2021,
arXiv:2111.12077, sections 2 to 4). The hash grids in place of its networks, 4,096 rays a step with
256, 96 and 48 samples each, 30,000 steps and a rate from 1e-2 to 1e-4 are as in nerfstudio's
nerfacto.

Differs from Mip-NeRF 360: points, not cones; the Huber loss, not Charbonnier's. Differs from
nerfacto: neither the cameras nor the look of single pictures are learned; the rate falls by a
cosine. What is behind everything is a random colour in training, so that nothing stays transparent.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Views
from train.tasks.nerf import NeRF
from zoo.nerf.scene import Proposals


def experiment() -> Experiment:
    return Experiment(
        model=Model("ngp_360"),
        data=Views(
            source="colmap:data/360/garden", factor=4, batch_size=4096, judged=2**14, holdout=0.02
        ),
        task=NeRF(sampler=Proposals(counts=(256, 96, 48)), distortion=0.01),
        optim=Optim("adamw", lr=1e-2, final=0.01, b2=0.99, eps=1e-15),
        steps=30_000,
        evaluate_every=5000,
        log_every=100,
    )
