"""BERT and RoBERTa from transformers."""

from functools import partial
from typing import Any

import numpy as np
from fill import labels, tokens

from references.common import (
    Case,
    Inputs,
    Reference,
    evaluate_tokens,
    filled_file,
    saved,
    train_tokens,
    transformers_manifest,
    versions,
)

LENGTHS = np.array([9, 5, 2], np.int32)  # of three texts in rows of the longest


def texts(vocab: int, types: int, case: str) -> Inputs:
    """Without the ids of padding, whose embeddings torch does not train."""
    drawn = {"tokens": tokens(case, (3, 9), 2, vocab), "lengths": LENGTHS}
    if types == 1:
        return drawn
    return {**drawn, "types": tokens(f"types{case}", (3, 9), 0, types)}


def classes(count: int, case: str) -> np.ndarray:
    return labels(case, 3, count)


def hidden_words(vocab: int, case: str) -> np.ndarray:
    """Every second token of a text is to be guessed."""
    place = np.arange(9)[None]
    scored = (place < LENGTHS[:, None]) & (place % 2 == 0)
    return np.where(scored, labels(case, (3, 9), vocab), -1)


def transformers_bert(kind: str, old_names: bool = False, **config: Any) -> Reference:
    """kind: the class in transformers; old_names: of norms, as in files of 2018."""
    import transformers

    cls = getattr(transformers, kind)
    bare = {} if config["pooler"] or not kind.endswith("Model") else {"add_pooling_layer": False}
    files = saved_in_2018 if old_names else saved
    model = filled_file(cls(cls.config_class(**stated(**config)), **bare), files, **bare)
    base = "" if kind.endswith("Model") else f"{cls.base_model_prefix}."
    return Reference(
        model,
        config,
        parts={ours: base + theirs for ours, theirs in parts(config).items()},
        versions=versions("transformers", "torch"),
        files=files,
    )


def saved_in_2018(model: Any) -> dict[str, Any]:
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    found = saved(model)
    for new, old in names.items():
        found = {name.replace(new, old): tensor for name, tensor in found.items()}
    return found


def stated(**config: Any) -> dict[str, Any]:
    """Our Config in the words of transformers."""
    offset = config.get("position_offset", 0)
    return {
        "vocab_size": config["vocab"],
        "hidden_size": config["width"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "intermediate_size": config["mlp"],
        "hidden_act": {"erf": "gelu", "tanh": "gelu_new"}[config.get("gelu", "erf")],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": config["context"] + offset,
        "type_vocab_size": config["types"],
        "layer_norm_eps": config["epsilon"],
        "pad_token_id": max(0, offset - 1),
        "num_labels": config.get("num_classes") or 2,
    }


def parts(config: Any) -> dict[str, str]:
    """Our name → the reference's name of the module in the encoder whose output it is."""
    layers = {f"block_{i}": f"encoder.layer.{i}" for i in range(config["depth"])}
    return {"embed_norm": "embeddings.LayerNorm", **layers}


HUB = {  # class, and where its config differs from the defaults
    "google-bert/bert-base-uncased": ("BertForPreTraining", {}),
    "FacebookAI/roberta-base": (
        "RobertaForMaskedLM",
        {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
}


# An ε of 1e-3 shows where another is used: published ones are too small to change a tiny model.
SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "vocab": 30, "epsilon": 1e-3}
BERT = {**SIZES, "context": 12, "types": 2}
ROBERTA = {**SIZES, "context": 9, "types": 1, "position_offset": 2}
MLM = {"head": "mlm", "pooler": False}
SEQUENCE = {"head": "sequence", "num_classes": 5, "pooler": True}
TOKENS = {"head": "tokens", "num_classes": 5, "pooler": False}
BASE = {"head": "none", "pooler": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # class, and our Config
    "bert_hf_base": ("BertModel", BERT | BASE),
    "bert_hf_mlm": ("BertForMaskedLM", BERT | MLM | {"gelu": "tanh"}),
    "bert_hf_sequence": ("BertForSequenceClassification", BERT | SEQUENCE),
    "bert_hf_tokens": ("BertForTokenClassification", BERT | TOKENS),
    "roberta_hf_base": ("RobertaModel", ROBERTA | BASE | {"pooler": False}),
    "roberta_hf_mlm": ("RobertaForMaskedLM", ROBERTA | MLM),
    "roberta_hf_sequence": ("RobertaForSequenceClassification", ROBERTA | SEQUENCE),
    "roberta_hf_tokens": ("RobertaForTokenClassification", ROBERTA | TOKENS),
}
BUILD = {
    **{name: partial(transformers_bert, kind, **config) for name, (kind, config) in MODELS.items()},
    "bert_hf_2018": partial(
        transformers_bert, "BertForPreTraining", True, **BERT, head="mlm", pooler=True
    ),
}
OF_BERT, OF_ROBERTA = partial(texts, 30, 2), partial(texts, 30, 1)
CASES = (
    *(
        Case(
            name,
            "transformers",
            partial(evaluate_tokens, build, OF_BERT if name[0] == "b" else OF_ROBERTA),
        )
        for name, build in BUILD.items()
    ),
    Case(
        "bert_hf_train",
        "transformers",
        partial(train_tokens, BUILD["bert_hf_mlm"], OF_BERT, partial(hidden_words, 30)),
    ),
    Case(
        "roberta_hf_train",
        "transformers",
        partial(train_tokens, BUILD["roberta_hf_sequence"], OF_ROBERTA, partial(classes, 5)),
    ),
    Case("bert_manifests.json", "transformers", partial(transformers_manifest, HUB)),
)
