"""Llama, Mistral and Qwen2: names of Hugging Face."""

import math
from collections.abc import Mapping
from typing import Any

from zoo.models.llama import Config
from zoo.weights.convert import TIE, Format, Row, WeightsError, dense
from zoo.weights.facts import check_layers, choice, count, number
from zoo.weights.hub import Tag

SCAN_START = 0
MODEL_TYPES = ("llama", "mistral", "qwen2")
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}
MLP = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def hf(config: Config) -> list[Row]:
    """A tied head may be there as a copy of the embeddings."""
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    rows = [Row((embed, head), "params/embed/embedding", TIE)]
    if not config.tied:
        rows = [Row(embed, "params/embed/embedding"), *dense("lm_head", "head", bias=False)]
    for i in range(config.depth):
        theirs, ours = f"model.layers.{i}", f"block_{i}"
        rows.append(rms_norm(f"{theirs}.input_layernorm", f"{ours}/norm1"))
        for name, leaf in ATTENTION.items():
            attn = f"{theirs}.self_attn.{name}"
            rows += dense(attn, f"{ours}/attn/{leaf}", bias=config.qkv_bias)
        rows += dense(f"{theirs}.self_attn.o_proj", f"{ours}/attn/out", bias=False)
        rows.append(rms_norm(f"{theirs}.post_attention_layernorm", f"{ours}/norm2"))
        for name, leaf in MLP.items():
            rows += dense(f"{theirs}.mlp.{name}", f"{ours}/mlp/{leaf}", bias=False)
    return [*rows, rms_norm("model.norm", "norm")]


def rms_norm(foreign: str, ours: str) -> Row:
    return Row(f"{foreign}.weight", f"params/{ours}/scale")


# `pretraining_tp` is not among these: it cuts products into parts, whose sum is the same.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,  # in Llama's classes with one of o_proj, which Qwen2 has not
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
}
DEFAULTS = {  # what each class's config.json may leave out; None: as many as of queries
    "llama": {"num_key_value_heads": None, "max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768},
}


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of LlamaConfig, MistralConfig or Qwen2Config, in its old and new forms."""
    if not facts:
        raise WeightsError("these names need the config.json that belongs to them: put it beside")
    kind = choice(facts, "model_type", {name: name for name in MODEL_TYPES}, None)
    for key, value in FIXED.items():
        choice(facts, key, {value: value, None: value}, value)
    facts = {**DEFAULTS[kind], **facts}
    heads = number(facts, "num_attention_heads", None, least=1)
    tied = facts.get("tie_word_embeddings", False)
    if not tied and "lm_head.weight" not in tensors:
        raise WeightsError(
            "lm_head.weight is missing: a base model has no head, and its embeddings are none "
            f"where tie_word_embeddings is false; load what {CLASSES[kind]}ForCausalLM saved"
        )
    base, scaling = rotary(facts)
    found = count(tensors, "model.layers.{}.mlp.up_proj.weight")
    check_layers(facts["num_hidden_layers"], found)
    return Config(
        vocab=facts["vocab_size"],
        width=facts["hidden_size"],
        depth=facts["num_hidden_layers"],
        heads=heads,
        kv_heads=facts["num_key_value_heads"] or heads,
        mlp=facts["intermediate_size"],
        context=facts["max_position_embeddings"],
        base=base,
        scaling=scaling,
        head_width=head_width(facts),
        epsilon=facts.get("rms_norm_eps", 1e-6),
        qkv_bias=kind == "qwen2",
        tied=tied,
        window=WINDOWS[kind](facts),
    )


def head_width(facts: Mapping[str, Any]) -> int | None:
    """None where it is what the width and the heads say."""
    if facts.get("head_dim") is None:
        return None
    stated, width = (number(facts, key, None, least=1) for key in ("head_dim", "hidden_size"))
    return None if stated * facts["num_attention_heads"] == width else stated


# Rotary frequencies. transformers 5 has them as `rope_parameters`, base and scaling together; those
# before had `rope_theta` and `rope_scaling`, whose kind was once `type`. Both releases read these.

ORIGINAL = "original_max_position_embeddings"
SCALINGS: dict[str, tuple[str, ...]] = {  # kind → its numbers, in the order of ours
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", ORIGINAL),
    "yarn": ("factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
}
UNSAID = {"beta_fast": 32, "beta_slow": 1}
ONLY = {"truncate": True, "partial_rotary_factor": 1.0}
FORM = {"rope_type", "type", "rope_theta", "mscale", "mscale_all_dim", *ONLY}


def rotary(facts: Mapping[str, Any]) -> tuple[float, tuple[Any, ...]]:
    """(base, scaling). Raises WeightsError for a scaling, or a number of one, that is not known."""
    stated = dict(facts.get("rope_scaling") or facts.get("rope_parameters") or {})
    stated = {key: value for key, value in stated.items() if value is not None}
    kind = stated.get("rope_type", stated.get("type", "default"))
    keys = choice({"rope_type": kind}, "rope_type", SCALINGS, None)
    for key, value in ONLY.items():
        choice(stated, key, {value: value}, value)
    if unknown := sorted(stated.keys() - FORM - set(keys)):
        raise WeightsError(f"config.json: rope_type {kind!r} knows no {', '.join(unknown)}")
    for key in stated.keys() & {*keys, "mscale", "mscale_all_dim"}:
        number(stated, key, None)
    numbers = {**UNSAID, "attention_factor": attention(stated), **stated}
    numbers[ORIGINAL] = original(kind, stated, facts)
    if missing := [key for key in keys if key not in numbers]:
        raise WeightsError(f"config.json: rope_type {kind!r} lacks {', '.join(missing)}")
    base = float(number({**facts, **stated}, "rope_theta", 10_000.0, least=1))
    return base, (kind, *(numbers[key] for key in keys)) if keys else ()


def original(kind: str, stated: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    """The length before the scaling, as transformers 5 finds it: one beside the scaling comes
    before one in it, and a dynamic scaling begins at the context whatever is stated."""
    context = facts["max_position_embeddings"]
    if kind == "dynamic":
        return context
    return facts.get(ORIGINAL) or stated.get(ORIGINAL, context)


def attention(stated: Mapping[str, Any]) -> float:
    """YaRN's factor where none is stated: 0.1 ln(factor) + 1 (arXiv:2309.00071, equation 22), or
    the ratio of two such with weights."""

    def grown(weight: float) -> float:
        return 0.1 * weight * max(math.log(stated.get("factor", 1.0)), 0.0) + 1

    above, below = stated.get("mscale"), stated.get("mscale_all_dim")
    return grown(above) / grown(below) if above and below else grown(1.0)


def rotary_facts(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_theta": config.base, "rope_scaling": None}
    if config.scaling:
        kind, *numbers = config.scaling
        named = dict(zip(SCALINGS[kind], numbers, strict=True))
        if kind == "dynamic":  # the original length is `max_position_embeddings`
            named.pop(ORIGINAL)
        found["rope_scaling"] = {"rope_type": kind, **named}
    return found


# Windows. Qwen2 states one for some layers, those from `max_window_layers` on; ours is of all.

FULL, SLIDING = "full_attention", "sliding_attention"


def qwen2_window(facts: Mapping[str, Any]) -> int | None:
    layers, first = facts["num_hidden_layers"], facts.get("max_window_layers", 28)
    slides = facts.get("use_sliding_window", False)
    implied = [SLIDING if slides and i >= first else FULL for i in range(layers)]
    kinds = set(facts.get("layer_types") or implied)
    if len(kinds) > 1:
        raise WeightsError(
            f"config.json: max_window_layers is {first} of {layers}, or layer_types differ: a "
            "window on all layers or on none is supported"
        )
    return facts.get("sliding_window", 4096) if slides and kinds == {SLIDING} else None


WINDOWS = {
    "llama": lambda facts: None,
    "mistral": lambda facts: facts.get("sliding_window", 4096),
    "qwen2": qwen2_window,
}


def window_facts(kind: str, config: Config) -> dict[str, Any]:
    if kind == "llama":
        return {}
    if kind == "mistral":
        return {"sliding_window": config.window}
    slides = config.window is not None
    first = 0 if slides else config.depth
    sliding = {"use_sliding_window": slides, "sliding_window": config.window}
    return {**sliding, "max_window_layers": first}


def kind_of(config: Config) -> str:
    """The class that computes this: biases are Qwen2's, a window is Mistral's."""
    if config.qkv_bias:
        return "qwen2"
    return "llama" if config.window is None else "mistral"


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    kind = kind_of(config)
    return {
        "architectures": [f"{CLASSES[kind]}ForCausalLM"],
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.channels,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": config.tied,
        # Not known here: a tokenizer has them, and transformers would assume 1 and 2.
        "bos_token_id": None,
        "eos_token_id": None,
        **rotary_facts(config),
        **window_facts(kind, config),
    }


FORMATS = {
    "hf": Format(
        rows=hf,
        marker="model.layers.0.mlp.gate_proj.weight",
        # Frequencies, which files of before transformers 4.32 hold.
        ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        config=hf_config,
        facts=hf_facts,
        lost=("layers", "remat"),
        prefix="model.",
    ),
}

# The gated ones ask for an account that has accepted their terms: `zoo.load(…, token=…)`.
TAGS = {
    "llama2_70b.pretrained": Tag("meta-llama/Llama-2-70b-hf", licence="llama2"),
    "llama3_8b.pretrained": Tag("meta-llama/Meta-Llama-3-8B", licence="llama3"),
    "llama3_8b.instruct": Tag("meta-llama/Meta-Llama-3-8B-Instruct", licence="llama3"),
    "llama3_2_1b.pretrained": Tag("meta-llama/Llama-3.2-1B", licence="llama3.2"),
    "llama3_2_1b.instruct": Tag("meta-llama/Llama-3.2-1B-Instruct", licence="llama3.2"),
    "mistral_7b.v0_1": Tag("mistralai/Mistral-7B-v0.1", licence="apache-2.0"),
    "mistral_7b.instruct_v0_1": Tag("mistralai/Mistral-7B-Instruct-v0.1", licence="apache-2.0"),
    "qwen2_0_5b.pretrained": Tag("Qwen/Qwen2-0.5B", licence="apache-2.0"),
    "qwen2_0_5b.instruct": Tag("Qwen/Qwen2-0.5B-Instruct", licence="apache-2.0"),
    "qwen2_1_5b.pretrained": Tag("Qwen/Qwen2-1.5B", licence="apache-2.0"),
    "qwen2_1_5b.instruct": Tag("Qwen/Qwen2-1.5B-Instruct", licence="apache-2.0"),
    "smollm2_135m.pretrained": Tag("HuggingFaceTB/SmolLM2-135M", licence="apache-2.0"),
    "smollm2_135m.instruct": Tag("HuggingFaceTB/SmolLM2-135M-Instruct", licence="apache-2.0"),
    "smollm2_360m.pretrained": Tag("HuggingFaceTB/SmolLM2-360M", licence="apache-2.0"),
    "smollm2_360m.instruct": Tag("HuggingFaceTB/SmolLM2-360M-Instruct", licence="apache-2.0"),
    "smollm2_1_7b.pretrained": Tag("HuggingFaceTB/SmolLM2-1.7B", licence="apache-2.0"),
    "smollm2_1_7b.instruct": Tag("HuggingFaceTB/SmolLM2-1.7B-Instruct", licence="apache-2.0"),
}
