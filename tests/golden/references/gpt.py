"""GPT-2 from transformers, and what that generates with it.

`gpt_generate` holds, of a tiny model and prompts of unequal lengths:

    inputs/prompts, inputs/lengths    int32 [b, p], padded with −1, and [b]
    CASE/tokens                       int32 [b, n], what follows, padded with −1
    CASE/margins                      float32 [b, n], of a greedy case: by how much the score of
                                      each token was above the next
    CASE/scores                       float32 [b, 2], of beam search: of the best and the second
"""

from functools import partial
from typing import Any

import numpy as np
from fill import labels, tokens

from references.common import (
    Case,
    Recording,
    Reference,
    deterministic,
    evaluate_tokens,
    filled_file,
    meta,
    saved,
    train_tokens,
    transformers_manifest,
    versions,
)

SHAPE = (2, 12)
GELUS = {"tanh": "gelu_new", "erf": "gelu"}


def transformers_gpt(**config: Any) -> Reference:
    import transformers

    cls = transformers.GPT2LMHeadModel
    return Reference(
        filled_file(cls(cls.config_class(**stated(config)))),
        config,
        parts=parts(config, "."),
        versions=versions("transformers", "torch"),
        files=saved,
    )


def stated(config: Any) -> dict[str, Any]:
    """The config in the words of transformers."""
    return {
        "n_embd": config["width"],
        "n_layer": config["depth"],
        "n_head": config["heads"],
        "n_inner": config["mlp"],
        "vocab_size": config["vocab"],
        "n_positions": config["context"],
        "activation_function": GELUS[config.get("gelu", "tanh")],
        "layer_norm_epsilon": config["epsilon"],
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def parts(config: Any, separator: str) -> dict[str, str]:
    named = {f"block_{i}": f"transformer.h.{i}" for i in range(config["depth"])}
    named["norm"] = "transformer.ln_f"
    return {ours: theirs.replace(".", separator) for ours, theirs in named.items()}


def text(vocab: int, case: str) -> dict[str, np.ndarray]:
    return {"tokens": tokens(case, SHAPE, 0, vocab)}


def answers(vocab: int, case: str) -> np.ndarray:
    """Some are not scored."""
    y = labels(case, SHAPE, vocab)
    y[:, ::5] = -1
    return y


# What is generated, in float64, one prompt after the other: without padding.


def generate(
    prompts: dict[str, int], runs: dict[str, Any], gain: float, case: str, **config: Any
) -> Recording:
    """prompts: the name that each is drawn by, and its length. runs: the keywords of `generate` for
    each case. gain: what the embeddings are multiplied by. As they are filled, a tied head sees the
    last token before all else, and says it again."""
    import torch

    reference = transformers_gpt(**config)
    model = deterministic(reference.model).eval()
    rows = [[name, list(t.shape), "float32"] for name, t in saved(model).items()]
    facts = {"tensors": rows, "runs": runs, "gain": gain}
    header = meta(case, reference.versions, config, None, **facts)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(gain)
    texts = [tokens(name, (1, n), 0, config["vocab"]) for name, n in prompts.items()]
    found = {
        "inputs/prompts": padded(texts, -1),
        "inputs/lengths": np.array([*prompts.values()], np.int32),
    }
    for name, options in runs.items():
        continued = [continuation(model, row, **options) for row in texts]
        for key in continued[0]:
            found[f"{name}/{key}"] = padded([one[key] for one in continued], -1)
    return {"meta": header, **found}


def continuation(model: Any, prompt: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """What follows one prompt [1, p]: arrays [1, n]."""
    import torch

    many = {"num_return_sequences": 2} if options.get("num_beams", 1) > 1 else {}
    output = model.generate(
        torch.from_numpy(prompt).long(),
        do_sample=False,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **many,
        **options,
    )
    new = output.sequences[:1, prompt.shape[1] :].numpy().astype(np.int32)
    if many:
        length = int((output.beam_indices[0] >= 0).sum())  # behind it there is padding
        return {"tokens": new[:, :length], "scores": output.sequences_scores[None].float().numpy()}
    scores = torch.stack(output.scores, dim=1).topk(2).values
    return {"tokens": new, "margins": (scores[..., 0] - scores[..., 1]).float().numpy()}


def padded(rows: list[np.ndarray], fill: int) -> np.ndarray:
    """Rows [1, n] one below the other."""
    whole = np.full((len(rows), max(row.shape[1] for row in rows)), fill, rows[0].dtype)
    for place, row in zip(whole, rows, strict=True):
        place[: row.shape[1]] = row[0]
    return whole


# An ε of 1e-3 shows where another is used: the published one is too small to change a tiny model.
GPT = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp": 24,
    "vocab": 37,
    "context": 16,
    "epsilon": 1e-3,
}
ERF = GPT | {"gelu": "erf"}
WRITER = GPT | {"width": 32, "heads": 4, "mlp": 64, "vocab": 97, "context": 96}
PAD = 96  # what nothing writes of itself
PROMPTS = {"alpha": 6, "beta": 11, "gamma": 3}
LONG = {"max_new_tokens": 64}
BEAMS = LONG | {"num_beams": 4}
RUNS = {
    "greedy": LONG,
    "penalised": LONG | {"repetition_penalty": 1.2},
    "beams": BEAMS,
    "beams_penalised": BEAMS | {"repetition_penalty": 1.2},
    "beams_eos": BEAMS | {"eos_token_id": [0]},
    "beams_short": BEAMS | {"eos_token_id": [0], "length_penalty": 0.0},
    "beams_long": BEAMS | {"eos_token_id": [0], "length_penalty": 2.0},
    "beams_two": BEAMS | {"eos_token_id": [68, 75]},
}
TEXT = partial(text, GPT["vocab"])
HUB = {
    "openai-community/gpt2": ("GPT2LMHeadModel", {}),
    "openai-community/gpt2-medium": (
        "GPT2LMHeadModel",
        {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    ),
}
CASES = (
    Case(
        "gpt_hf", "transformers", partial(evaluate_tokens, partial(transformers_gpt, **GPT), TEXT)
    ),
    Case(
        "gpt_hf_erf",
        "transformers",
        partial(evaluate_tokens, partial(transformers_gpt, **ERF), TEXT),
    ),
    Case(
        "gpt_hf_train",
        "transformers",
        partial(
            train_tokens, partial(transformers_gpt, **GPT), TEXT, partial(answers, GPT["vocab"])
        ),
    ),
    Case(
        "gpt_generate",
        "transformers",
        partial(generate, PROMPTS, RUNS, 0.25, **WRITER),
    ),
    Case("gpt_manifests.json", "transformers", partial(transformers_manifest, HUB)),
)
