"""The original NeRF on the embedded scene, for comparison with `ngp_scene` at equal time.

    python -m train nerf_scene [--seed N --data.seed N]

The networks and samples are the paper's made small (4 × 64 instead of 8 × 256, 32 coarse and 32
fine samples a ray instead of 64 and 128), and a batch has 512 rays instead of 4,096: a field that a
CPU can ask often enough in minutes.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Views
from train.tasks.nerf import NeRF
from zoo.nerf.scene import Hierarchical

SMALL = {"depth": 4, "skip": 2, "width": 64, "colour_width": 32}


def experiment() -> Experiment:
    return Experiment(
        model=Model("nerf", SMALL),
        data=Views(source="scene", batch_size=512, judged=4096),
        task=NeRF(sampler=Hierarchical(coarse=32, fine=32), loss="squared", background="random"),
        optim=Optim("adamw", lr=2e-3, final=0.1, eps=1e-7),
        steps=2000,
        evaluate_every=2000,
        log_every=20,
    )
