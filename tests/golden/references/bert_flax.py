"""BERT from the Flax classes that transformers 4.57 was the last to have; see flax.py."""

from functools import partial
from typing import Any

import numpy as np
from fill import fill

from references.bert import BASE, BERT, LENGTHS, MLM, SEQUENCE, parts, stated, texts
from references.common import Case, Recording, meta, versions
from references.flax import flatten, flatten_states, saved, unflatten


def evaluate(kind: str, case: str, **config: Any) -> Recording:
    """Evaluation mode, in float64. kind: the class."""
    import jax
    import jax.numpy as jnp
    import transformers

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**stated(**config)), dtype=jnp.float64)
    flat = flatten(model.params)
    model.params = unflatten({name: fill(name, leaf.shape) for name, leaf in flat.items()})
    inputs = texts(config["vocab"], config["types"], case)
    place = np.broadcast_to(np.arange(inputs["tokens"].shape[1]), inputs["tokens"].shape)
    output, seen = model.module.apply(
        {"params": jax.tree.map(lambda leaf: leaf.astype(np.float64), model.params)},
        inputs["tokens"],
        (place < LENGTHS[:, None]).astype(np.int32),
        inputs["types"],
        place,
        None,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    states = flatten_states(seen)
    base = "" if kind == "FlaxBertModel" else "bert/"
    hidden = {
        f"hidden/{ours}": states[base + theirs.replace(".", "/")]
        for ours, theirs in parts(config).items()
    }
    named = {"logits": output.logits} if base else {"representation": output.pooler_output}
    rows = [[name, list(leaf.shape), "float32"] for name, leaf in flat.items()]
    header = meta(case, versions("transformers", "flax", "jax"), config, None, tensors=rows)
    drawn = {f"inputs/{name}": x for name, x in inputs.items()}
    arrays = {name: np.asarray(a, np.float32) for name, a in {**hidden, **named}.items()}
    return {"meta": header, **drawn, **arrays, **saved(model)}


MODELS = {  # class, and our Config
    "bert_flax": ("FlaxBertModel", BERT | BASE),
    "bert_flax_mlm": ("FlaxBertForMaskedLM", BERT | MLM),
    "bert_flax_sequence": ("FlaxBertForSequenceClassification", BERT | SEQUENCE),
}
CASES = tuple(
    Case(name, "flax", partial(evaluate, kind, **config)) for name, (kind, config) in MODELS.items()
)
