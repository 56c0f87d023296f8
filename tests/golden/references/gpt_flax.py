"""GPT-2 from the Flax class that transformers 4.57 was the last to have; see flax.py."""

from functools import partial
from typing import Any

import numpy as np
from fill import fill

from references.common import Case, Recording, meta, versions
from references.flax import flatten, flatten_states, saved, unflatten
from references.gpt import GPT, SHAPE, parts, stated, text


def evaluate(case: str, **config: Any) -> Recording:
    """Evaluation mode, in float64."""
    import jax
    import jax.numpy as jnp
    import transformers

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    cls = transformers.FlaxGPT2LMHeadModel
    model = cls(cls.config_class(**stated(config)), dtype=jnp.float64)
    flat = flatten(model.params)
    model.params = unflatten({name: fill(name, leaf.shape) for name, leaf in flat.items()})
    inputs = text(config["vocab"], case)
    output, seen = model.module.apply(
        {"params": jax.tree.map(lambda leaf: leaf.astype(np.float64), model.params)},
        inputs["tokens"],
        np.ones(SHAPE, np.int32),
        np.broadcast_to(np.arange(SHAPE[1]), SHAPE),
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    states = flatten_states(seen)
    hidden = {f"hidden/{ours}": states[theirs] for ours, theirs in parts(config, "/").items()}
    rows = [[name, list(leaf.shape), "float32"] for name, leaf in flat.items()]
    header = meta(case, versions("transformers", "flax", "jax"), config, None, tensors=rows)
    outputs = {**hidden, "logits": output.logits}
    arrays = {name: np.asarray(x, np.float32) for name, x in outputs.items()}
    drawn = {f"inputs/{name}": x for name, x in inputs.items()}
    return {"meta": header, **drawn, **arrays, **saved(model)}


CASES = (Case("gpt_flax", "flax", partial(evaluate, **GPT)),)
