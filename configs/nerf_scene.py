"""The original NeRF on the embedded scene, for comparison with `ngp_scene` at equal time.

    python -m train nerf_scene [--seed N --data.seed N]

The networks and samples are the paper's made small (4 × 64 instead of 8 × 256, 32 coarse and 32
fine samples a ray instead of 64 and 128), and a batch has 512 rays instead of 4,096: a field that a
CPU can ask often enough in minutes.
Result: seed 0, one run, on 2 cores (x86-64, no accelerator), Python 3.13.0, jax 0.12.0.1, 264 s of
training (for a minute of it shared), with `python -m train nerf_scene --seed 0 --data.seed 0`. Of
the 20 test views: psnr 17.74 dB, psnr_min 16.71, psnr_foreground 15.36, ssim 0.624, depth_error
0.058, beside 35.02, 32.66, 32.49, 0.990 and 0.018 of `ngp_scene` in 261 s. Nothing of it was tuned.
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
