"""GPT-2: names of Hugging Face, PyTorch's and those of its removed Flax classes."""

import logging
from collections.abc import Mapping
from typing import Any

from zoo.models.gpt import Config
from zoo.weights.convert import (
    DENSE,
    SAME,
    TIE,
    Format,
    Row,
    WeightsError,
    layer_norm,
    layout,
    names,
    split,
)
from zoo.weights.facts import check_layers, choice, count
from zoo.weights.hub import Tag

logger = logging.getLogger("zoo")
SCAN_START = 0
MODEL_TYPES = ("gpt2",)
KERNEL = layout("i o", "i o")  # of a Conv1D, which is no torch Linear: as ours
FUSED = split(KERNEL, 3, axis=1)
PARTS = {"attn.c_proj": "attn/out", "mlp.c_fc": "mlp/fc1", "mlp.c_proj": "mlp/fc2"}


def hf(config: Config) -> list[Row]:
    """A base model's names have no `transformer.`, and so have the hub's own files of GPT-2; the
    head, where a file has one, is the embedding again."""
    rows = [
        Row(("transformer.wte.weight", "lm_head.weight"), "params/embed/embedding", TIE),
        Row("transformer.wpe.weight", "params/positions"),
    ]
    for i in range(config.depth):
        theirs, ours = f"transformer.h.{i}", f"block_{i}"
        rows += layer_norm(f"{theirs}.ln_1", f"{ours}/norm1")
        kernels, biases = (
            tuple(f"params/{ours}/attn/{part}/{leaf}" for part in "qkv")
            for leaf in ("kernel", "bias")
        )
        rows.append(Row(f"{theirs}.attn.c_attn.weight", kernels, FUSED))
        rows.append(Row(f"{theirs}.attn.c_attn.bias", biases, split(SAME, 3)))
        for name, leaf in PARTS.items():
            rows.append(Row(f"{theirs}.{name}.weight", f"params/{ours}/{leaf}/kernel", KERNEL))
            rows.append(Row(f"{theirs}.{name}.bias", f"params/{ours}/{leaf}/bias"))
        rows += layer_norm(f"{theirs}.ln_2", f"{ours}/norm2")
    return [*rows, *layer_norm("transformer.ln_f", "norm")]


FLAX = {KERNEL: DENSE, FUSED: split(DENSE, 3), TIE: SAME}  # kernels are [out, in] there


def hf_flax(config: Config) -> list[Row]:
    """The same names with slashes and Flax's leaves, without a head of its own."""
    return [Row(_slashed(row), row.ours, FLAX.get(row.op, row.op)) for row in hf(config)]


def _slashed(row: Row) -> str:
    module, _, leaf = names(row.foreign)[0].rpartition(".")
    kind = module.rpartition(".")[2]
    weight = {"wte": "embedding", "wpe": "embedding"}.get(
        kind, "scale" if kind.startswith("ln_") else "kernel"
    )
    return f"{module}.{weight if leaf == 'weight' else leaf}".replace(".", "/")


GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf"}
# What this page has not. (reorder_and_upcast_attn is no matter: scores are float32 here anyway.)
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of GPT2Config. Of the three dropouts the model has two, at one rate."""
    if not facts:
        raise WeightsError("these names need the config.json that belongs to them: put it beside")
    for key, value in FIXED.items():
        choice(facts, key, {value: value}, value)
    width, depth = facts.get("n_embd", 768), facts.get("n_layer", 12)
    check_layers(depth, count(tensors, "transformer.h.{}.ln_1.weight"))
    rate, embedded = (facts.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop"))
    if rate != embedded:
        logger.warning("dropout: %s everywhere, though after the embeddings %s", rate, embedded)
    return Config(
        width=width,
        depth=depth,
        heads=facts.get("n_head", 12),
        mlp=facts.get("n_inner") or 4 * width,
        vocab=facts.get("vocab_size", 50257),
        context=facts.get("n_positions", 1024),
        gelu=choice(facts, "activation_function", GELUS, "gelu_new"),
        epsilon=facts.get("layer_norm_epsilon", 1e-5),
        dropout=rate,
    )


def hf_flax_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    named = {n.replace("/", ".").replace(".scale", ".weight"): x for n, x in tensors.items()}
    return hf_config(named, facts)


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    gelus = {"tanh": "gelu_new", "erf": "gelu"}
    # <|endoftext|> of GPT-2's vocabulary, which transformers assumes of any unless told otherwise.
    end = 50256 if config.vocab == 50257 else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_inner": config.mlp,
        "n_positions": config.context,
        "n_ctx": config.context,
        "vocab_size": config.vocab,
        "activation_function": gelus[config.gelu],
        "layer_norm_epsilon": config.epsilon,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "bos_token_id": end,
        "eos_token_id": end,
        **FIXED,
    }


def _format(rows: Any, config: Any, separator: str, scale: str, file: str) -> Format:
    return Format(
        rows=rows,
        marker=f"transformer.h.0.ln_1.{scale}".replace(".", separator),
        # Files of before transformers 4.30 hold the causal mask, and the number that it masked by.
        ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
        config=config,
        facts=hf_facts,
        lost=("layers", "remat"),
        prefix=f"transformer{separator}",
        file=file,
    )


FORMATS = {
    "hf": _format(hf, hf_config, ".", "weight", "model.safetensors"),
    "hf_flax": _format(hf_flax, hf_flax_config, "/", "scale", "flax_model.msgpack"),
}
TAGS = {
    "gpt2.openai": Tag("openai-community/gpt2", licence="mit"),
    "gpt2_medium.openai": Tag("openai-community/gpt2-medium", licence="mit"),
    "gpt2_large.openai": Tag("openai-community/gpt2-large", licence="mit"),
    "gpt2_xl.openai": Tag("openai-community/gpt2-xl", licence="mit"),
    "gpt2.distil": Tag("distilbert/distilgpt2", licence="apache-2.0"),
}
