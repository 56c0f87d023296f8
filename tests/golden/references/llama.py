"""Llama, Mistral and Qwen2 from transformers, and its rotary frequencies."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from fill import labels, tokens

from references.common import (
    Case,
    Inputs,
    Recording,
    Reference,
    evaluate_tokens,
    filled_file,
    meta,
    saved,
    train_tokens,
    transformers_manifest,
    versions,
)

SHAPE = (2, 12)


def text(vocab: int, case: str) -> Inputs:
    return {"tokens": tokens(case, SHAPE, 0, vocab)}


def packed(vocab: int, case: str) -> Inputs:
    """Rows of two and of three documents. transformers knows them by their positions alone, and
    only where it keeps no cache."""
    lengths = ((5, 7), (3, 1, 8))
    positions = [np.concatenate([np.arange(n) for n in row]) for row in lengths]
    segments = [np.repeat(np.arange(len(row)) + 1, row) for row in lengths]
    return {
        **text(vocab, case),
        "positions": np.stack(positions).astype(np.int32),
        "segments": np.stack(segments).astype(np.int32),
    }


def next_words(vocab: int, case: str) -> np.ndarray:
    """Not scored: the last of every row."""
    found = labels(case, SHAPE, vocab)
    found[:, -1] = -1
    return found


def transformers_llama(kind: str, **config: Any) -> Reference:
    """kind: the first word of the class in transformers."""
    import transformers

    cls = getattr(transformers, f"{kind}ForCausalLM")
    layers = {f"block_{i}": f"model.layers.{i}" for i in range(config["depth"])}
    return Reference(
        filled_file(cls(cls.config_class(**stated(**config)))),
        config,
        parts={**layers, "norm": "model.norm"},
        versions=versions("transformers", "torch"),
        files=saved,
    )


def stated(**config: Any) -> dict[str, Any]:
    """Our Config in the words of transformers."""
    optional = {"head_dim": config.get("head_width"), "sliding_window": config.get("window")}
    return {
        "vocab_size": config["vocab"],
        "hidden_size": config["width"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "num_key_value_heads": config["kv_heads"],
        "intermediate_size": config["mlp"],
        "max_position_embeddings": config["context"],
        "rms_norm_eps": config["epsilon"],
        "tie_word_embeddings": config.get("tied", False),
        "use_cache": False,
        "rope_parameters": {
            "rope_theta": config.get("base", 10_000.0),
            **rope_parameters(config.get("scaling", ())),
        },
        **{key: value for key, value in optional.items() if value is not None},
    }


ORIGINAL = "original_max_position_embeddings"
NUMBERS = {
    "linear": ("factor",),
    "dynamic": ("factor", ORIGINAL),
    "yarn": ("factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
}


def rope_parameters(scaling: tuple[Any, ...]) -> dict[str, Any]:
    if not scaling:
        return {"rope_type": "default"}
    kind, *numbers = scaling
    return {"rope_type": kind, **dict(zip(NUMBERS[kind], numbers, strict=True))}


def rotary(cases: Mapping[str, Mapping[str, Any]], case: str) -> Recording:
    """What the functions of `modeling_rope_utils` give: NAME/frequencies and NAME/factor."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain = LlamaRotaryEmbedding.compute_default_rope_parameters
    found: Recording = {}
    for name, of in cases.items():
        stated = {"rope_theta": of["base"], **rope_parameters(of["scaling"])}
        # The dynamic one takes the original length from the config, and that of the text beside.
        original = stated.pop(ORIGINAL, None) if name.startswith("dynamic") else None
        config = LlamaConfig(
            hidden_size=2 * of["width"],
            num_attention_heads=2,
            max_position_embeddings=original or of["length"],
            rope_parameters=stated,
        )
        run = ROPE_INIT_FUNCTIONS.get(stated["rope_type"], plain)
        frequencies, factor = run(config, seq_len=of["length"])
        found[f"{name}/frequencies"] = frequencies.numpy()
        found[f"{name}/factor"] = np.float32(factor)
    header = meta(case, versions("transformers", "torch"), {}, None, cases=cases)
    return {"meta": header, **found}


ROTARY: dict[str, dict[str, Any]] = {  # most as in published files
    "plain": {"width": 128, "base": 1e4, "length": 4096, "scaling": ()},
    "plain_far": {"width": 128, "base": 1e6, "length": 131072, "scaling": ()},
    "linear": {"width": 128, "base": 1e4, "length": 16384, "scaling": ("linear", 4.0)},
    "dynamic_within": {"width": 64, "base": 1e4, "length": 2048, "scaling": ("dynamic", 2.0, 2048)},
    "dynamic_beyond": {"width": 64, "base": 1e4, "length": 6000, "scaling": ("dynamic", 2.0, 2048)},
    "llama3_1": {
        "width": 128,
        "base": 5e5,
        "length": 131072,
        "scaling": ("llama3", 8.0, 8192, 1.0, 4.0),
    },
    "llama3_2": {
        "width": 64,
        "base": 5e5,
        "length": 131072,
        "scaling": ("llama3", 32.0, 8192, 1.0, 4.0),
    },
    "yarn": {
        "width": 128,
        "base": 1e6,
        "length": 131072,
        "scaling": ("yarn", 4.0, 32768, None, None, None),
    },
    "yarn_stated": {
        "width": 64,
        "base": 1e4,
        "length": 8192,
        "scaling": ("yarn", 16.0, 512, 1.3, 24, 2),
    },
}


HUB = {  # class, and where its config differs from the defaults; as published with the weights
    "HuggingFaceTB/SmolLM2-135M": (
        "LlamaForCausalLM",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_theta": 100_000.0,
        },
    ),
    "meta-llama/Llama-3.2-1B": (
        "LlamaForCausalLM",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_theta": 500_000.0,
            "rope_scaling": rope_parameters(("llama3", 32.0, 8192, 1.0, 4.0)),
        },
    ),
    "mistralai/Mistral-7B-v0.1": (
        "MistralForCausalLM",
        {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
    ),
    "Qwen/Qwen2-0.5B": (
        "Qwen2ForCausalLM",
        {
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "max_position_embeddings": 131072,
            "max_window_layers": 24,
            "tie_word_embeddings": True,
            "rope_theta": 1_000_000.0,
        },
    ),
}


# An ε of 1e-3 shows where another is used. At a base of 100 and an original context of 32 the pairs
# of 8 channels turn 5.1, 1.6, 0.5 and 0.2 times: each band of a scaling has one.
SIZES = {
    "vocab": 41,
    "width": 24,
    "depth": 2,
    "heads": 4,
    "kv_heads": 2,
    "mlp": 32,
    "context": 128,
    "epsilon": 1e-3,
}
SCALED = {"head_width": 8, "base": 100.0}
LLAMA3 = {**SCALED, "scaling": ("llama3", 4.0, 32, 1.0, 4.0)}
YARN = {**SCALED, "scaling": ("yarn", 4.0, 32, 1.2, 4.0, 0.5)}
QWEN2 = {"qkv_bias": True, "tied": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # class, and our Config
    "llama_hf_gqa": ("Llama", SIZES),
    "llama_hf_llama3": ("Llama", SIZES | LLAMA3 | {"tied": True}),
    "llama_hf_yarn": ("Llama", SIZES | YARN),
    "llama_hf_mistral": ("Mistral", SIZES | {"window": 4, "head_width": 8}),
    "llama_hf_qwen2": ("Qwen2", SIZES | QWEN2),
}
BUILD = {
    name: partial(transformers_llama, kind, **config) for name, (kind, config) in MODELS.items()
}
TRAINED = partial(transformers_llama, "Qwen2", **SIZES, **QWEN2)
TEXT, PACKED = partial(text, SIZES["vocab"]), partial(packed, SIZES["vocab"])
CASES = (
    *(
        Case(name, "transformers", partial(evaluate_tokens, build, TEXT))
        for name, build in BUILD.items()
    ),
    Case(
        "llama_hf_packed",
        "transformers",
        partial(evaluate_tokens, BUILD["llama_hf_llama3"], PACKED),
    ),
    Case(
        "llama_hf_train",
        "transformers",
        partial(train_tokens, TRAINED, TEXT, partial(next_words, SIZES["vocab"])),
    ),
    Case("llama_rope", "transformers", partial(rotary, ROTARY)),
    Case("llama_manifests.json", "transformers", partial(transformers_manifest, HUB)),
)
