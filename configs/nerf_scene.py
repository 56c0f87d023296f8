"""The original NeRF on the embedded scene, for comparison with `ngp_scene` at equal time.

    python -m train nerf_scene [--seed N --data.seed N]

The networks and samples are the paper's (8 × 256, 64 coarse and 128 fine samples a ray); a batch
has 64 rays instead of 4,096, which a CPU needs minutes for.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Views
from train.tasks.nerf import NeRF
from zoo.nerf.scene import Hierarchical


def experiment() -> Experiment:
    return Experiment(
        model=Model("nerf"),
        data=Views(source="scene", batch_size=64, judged=1024),
        task=NeRF(sampler=Hierarchical(), loss="squared", background="scene"),
        optim=Optim("adamw", lr=5e-4, final=0.1, eps=1e-7),
        steps=2000,
        evaluate_every=1000,
        log_every=20,
    )
