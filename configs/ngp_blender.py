"""Instant-NGP on a scene of NeRF-synthetic (Müller et al., 2022, arXiv:2201.05989), for a GPU.

    python -m train ngp_blender [--data.source blender:data/nerf_synthetic/ship]

The data are those of NeRF (arXiv:2003.08934): 100 views train, 100 validate, 200 test, 800×800
each. All eight scenes in turn, with the bars beside them: tests/benchmarks/ngp_blender.py.

The encoding, both networks, 2¹⁸ samples a step, the grid of 128³ cells that is renewed every 16
steps, Adam with rate 1e-2, β 0.9 and 0.99, ε 1e-15, and a decay of 1e-6 of the networks' matrices
are the paper's (table 1; sections 4 and 5.4; appendix E). The Huber loss and a rate that falls late
are as in nerfacc's recipe (examples/train_ngp_nerf_occ.py), whose 33.11 dB in the mean and 35.67 dB
on lego are the bars.

Differs from the paper: behind transparent pixels is a random colour in training, white in judging;
the decay is decoupled from the gradient; the rate stays for 20,000 steps and then falls linearly
to a tenth, where nerfacc takes a third of it three times; everything is float32.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Views
from train.tasks.nerf import NeRF
from zoo.nerf.scene import Occupancy

STEPS = 35_000


def experiment() -> Experiment:
    return Experiment(
        model=Model("ngp"),
        data=Views(
            source="blender:data/nerf_synthetic/lego",
            batch_size=2**15,  # rays; as many as the samples are enough for count
            judged=2**15,
        ),
        task=NeRF(
            sampler=Occupancy(resolution=128, steps=1024, slots=128),
            room=2**18,
            every=16,
            whole=256,
        ),
        optim=Optim(
            "adamw",
            lr=1e-2,
            schedule="wsd",
            cooldown=15_000 / STEPS,
            final=0.1,
            b2=0.99,
            eps=1e-15,
            weight_decay=1e-6,
        ),
        steps=STEPS,
        evaluate_every=5000,
        log_every=100,
    )
