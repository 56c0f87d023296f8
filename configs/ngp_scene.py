"""Instant-NGP on the embedded scene: ten solids on a checkerboard, seen by 60 cameras.

    python -m train ngp_scene [--seed N --data.seed N]

Pictures are 200×200; 20 views are held out to test, 10 to validate. The recipe is for a CPU: small
batches of samples, small networks. `psnr_blank` and `psnr_nearest` stand beside: a picture of the
background, and the training view from the nearest place.
Result: not yet run with these numbers.
"""

from train.config import Experiment, Model, Optim, Views
from train.tasks.nerf import NeRF
from zoo.nerf.scene import Occupancy

SMALL = {"levels": 6, "features": 4, "rows": 2**15, "finest": 256, "width": 32}


def experiment() -> Experiment:
    return Experiment(
        model=Model("ngp", SMALL),
        data=Views(source="scene", batch_size=2048),
        task=NeRF(
            sampler=Occupancy(resolution=64, steps=256, slots=128),
            loss="squared",
            background="random",
            sparsity=1e-3,
            room=8192,
            prune=4,
            every=50,
            whole=1000,
            decay=0.8,
        ),
        optim=Optim("adamw", lr=2e-2, final=0.03, b2=0.99, eps=1e-15),
        steps=9000,
        evaluate_every=2500,
        log_every=100,
    )
