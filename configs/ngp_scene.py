"""Instant-NGP on the embedded scene: ten solids on a checkerboard, seen by 60 cameras.

    python -m train ngp_scene [--seed N --data.seed N]

Pictures are 200×200; 20 views are held out to test, 10 to validate. The recipe is for a CPU: small
batches of samples, small networks. `psnr_blank` and `psnr_nearest` stand beside: a picture of the
background, and the training view from the nearest place.
Result: seed 0, one run, on 2 cores (x86-64, no accelerator), Python 3.13.0, jax 0.12.0.1, 260 s of
training, with `python -m train ngp_scene --seed 0 --data.seed 0`. Of the 20 test views: psnr 33.86
dB, psnr_min 30.42, psnr_foreground 31.27, ssim 0.987, depth_error 0.018 (the scene is 2 wide),
beside psnr_blank 5.76 and psnr_nearest 13.85. A second seed: not yet run.
"""

from train.config import Experiment, Model, Optim, Views
from train.tasks.nerf import NeRF
from zoo.nerf.scene import Occupancy

SMALL = {"levels": 8, "rows": 2**15, "finest": 256, "width": 32}


def experiment() -> Experiment:
    return Experiment(
        model=Model("ngp", SMALL),
        data=Views(source="scene", batch_size=2048),
        task=NeRF(
            sampler=Occupancy(resolution=64, steps=256, slots=128),
            loss="squared",
            background="scene",
            room=8192,
            prune=4,
            every=50,
            whole=1000,
            decay=0.8,
        ),
        optim=Optim("adamw", lr=1e-2, final=0.03, b2=0.99, eps=1e-15),
        steps=8500,
        evaluate_every=8500,
        log_every=100,
    )
