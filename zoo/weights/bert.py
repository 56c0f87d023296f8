"""BERT and RoBERTa: names of Hugging Face, in PyTorch's files of today and of 2018, and in those of
the removed Flax classes."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from zoo.models.bert import Config
from zoo.weights.convert import DENSE, SAME, TIE, Format, Row, WeightsError, dense
from zoo.weights.facts import check_depth, choice, hf_classes, labels, number
from zoo.weights.hub import Tag

logger = logging.getLogger("zoo")
SCAN_START = 0
MODEL_TYPES = ("bert", "roberta")


class Heads(NamedTuple):
    """What the two families call their heads. mlm: in front of the decoder and the bias."""

    name: str
    mlm: str
    transform: str
    transform_norm: str


KINDS = {
    "bert": Heads(
        "Bert",
        "cls.predictions",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
    ),
    "roberta": Heads("Roberta", "lm_head", "lm_head.dense", "lm_head.layer_norm"),
}
ENDS = {
    "none": "Model",
    "mlm": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
}


def kind_of(config: Config) -> str:
    """Only RoBERTa's positions do not begin with the first row of their table."""
    return "roberta" if config.position_offset else "bert"


def hf(
    config: Config, base: str | None = None, leaves: tuple[str, str] = ("weight", "bias")
) -> list[Row]:
    """base: prefix of the encoder's names, None for the family's. leaves: what a norm's scale and
    bias are called."""
    kind = kind_of(config)
    base = f"{kind}." if base is None else base
    norm = partial(_norm, leaves)
    rows = [
        Row(f"{base}embeddings.position_embeddings.weight", "params/positions"),
        Row(f"{base}embeddings.token_type_embeddings.weight", "params/types"),
        *norm(f"{base}embeddings.LayerNorm", "embed_norm"),
    ]
    for i in range(config.depth):
        theirs, ours = f"{base}encoder.layer.{i}", f"block_{i}"
        for name, leaf in (("query", "q"), ("key", "k"), ("value", "v")):
            rows += dense(f"{theirs}.attention.self.{name}", f"{ours}/attn/{leaf}")
        rows += dense(f"{theirs}.attention.output.dense", f"{ours}/attn/out")
        rows += norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/norm1")
        rows += dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/fc1")
        rows += dense(f"{theirs}.output.dense", f"{ours}/mlp/fc2")
        rows += norm(f"{theirs}.output.LayerNorm", f"{ours}/norm2")

    heads, embedding = KINDS[kind], f"{base}embeddings.word_embeddings.weight"
    tied = (embedding, f"{heads.mlm}.decoder.weight") if config.head == "mlm" else embedding
    biases = (f"{heads.mlm}.bias", f"{heads.mlm}.decoder.bias")
    # RoBERTa's classifier of texts has a dense layer of its own, where BERT's reads the pooler.
    own = kind == "roberta" and config.head == "sequence"
    return [
        Row(tied, "params/embed/embedding", TIE if config.head == "mlm" else SAME),
        *rows,
        *dense("classifier.dense" if own else f"{base}pooler.dense", "pooler"),
        *dense(heads.transform, "transform"),
        *norm(heads.transform_norm, "transform_norm"),
        Row(biases, "params/head_bias", TIE),
        *dense("classifier.out_proj" if own else "classifier", "head"),
    ]


def _norm(leaves: tuple[str, str], theirs: str, ours: str) -> list[Row]:
    scale, bias = leaves
    return [
        Row(f"{theirs}.{scale}", f"params/{ours}/scale"),
        Row(f"{theirs}.{bias}", f"params/{ours}/bias"),
    ]


def hf_flax(config: Config) -> list[Row]:
    """The same names with slashes, ending in Flax's leaves, and in our layouts; the masked-LM head
    has no copy of the embeddings."""
    return [
        Row(_slashed(row), row.ours, SAME if row.op in (DENSE, TIE) else row.op)
        for row in hf(config)
    ]


def _slashed(row: Row) -> str:
    first = row.foreign if isinstance(row.foreign, str) else row.foreign[0]
    leaf = str(row.ours).rpartition("/")[2]
    leaf = leaf if leaf in ("kernel", "scale") else "embedding"
    return first.replace(".", "/").replace("/weight", f"/{leaf}")


# Other values compute something else.
FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# RoBERTa's masked-LM head has the exact GELU, whatever the blocks have.
GELUS = {
    "bert": {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"},
    "roberta": {"gelu": "erf"},
}


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of BertConfig or RobertaConfig; the head and the pooler from the tensors.
    The head for the next sentence, which pre-training leaves behind, is not loaded."""
    if not facts:
        raise WeightsError("these names need the config.json that belongs to them: put it beside")
    for key, value in FIXED.items():
        choice(facts, key, {value: value}, value)
    kind = choice(facts, "model_type", {name: name for name in MODEL_TYPES}, "bert")
    check_depth(tensors, facts)
    classes = hf_classes(tensors, facts, "classifier.bias", "classifier.out_proj.bias")
    offset = 1 + number(facts, "pad_token_id", 1) if kind == "roberta" else 0
    head, pooler = (
        _head(tensors, facts),
        _has(tensors, "pooler.dense.bias", "classifier.dense.bias"),
    )
    if head == "none" and not pooler:
        logger.warning("the file has no pooler: the model returns the first token as it is")
    if _has(tensors, "cls.seq_relationship.bias"):
        logger.warning("cls.seq_relationship: left out, no head of ours tells the next sentence")
    return Config(
        width=facts.get("hidden_size", 768),
        depth=facts.get("num_hidden_layers", 12),
        heads=facts.get("num_attention_heads", 12),
        mlp=facts.get("intermediate_size", 3072),
        vocab=facts.get("vocab_size", {"bert": 30522, "roberta": 50265}[kind]),
        context=facts.get("max_position_embeddings", 512) - offset,
        types=facts.get("type_vocab_size", 2),
        position_offset=offset,
        head=head,
        pooler=pooler,
        gelu=choice(facts, "hidden_act", GELUS[kind], "gelu"),
        epsilon=facts.get("layer_norm_eps", 1e-12),
        dropout=facts.get("hidden_dropout_prob", 0.1),
        num_classes=classes,
    )


def _has(tensors: Mapping[str, Any], *ends: str) -> bool:
    return any(name.endswith(ends) for name in tensors)


def _head(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    """A classifier of tokens is known by its class's name, or by the pooler that it has not."""
    if _has(tensors, *(f"{heads.transform}.bias" for heads in KINDS.values())):
        return "mlm"
    if "classifier.out_proj.bias" in tensors:
        return "sequence"
    if "classifier.bias" not in tensors:
        return "none"
    promised = facts.get("architectures") or ()
    of_tokens = any("TokenClassification" in name for name in promised)
    bare = not promised and not _has(tensors, "pooler.dense.bias")
    return "tokens" if of_tokens or bare else "sequence"


def hf_flax_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    return hf_config({name.replace("/", "."): spec for name, spec in tensors.items()}, facts)


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    """transformers' one rate of dropout on attention weights, which we have not, is the other."""
    if config.head in ("sequence", "tokens") and not config.num_classes:
        raise WeightsError(f'head="{config.head}" without classes: save the model with head="none"')
    kind = kind_of(config)
    gelus = {"erf": "gelu", "tanh": "gelu_new"}
    return {
        "architectures": [KINDS[kind].name + ENDS[config.head]],
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "hidden_act": gelus[config.gelu],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.context + config.position_offset,
        "type_vocab_size": config.types,
        "layer_norm_eps": config.epsilon,
        "pad_token_id": max(0, config.position_offset - 1),
        **labels(config.num_classes, card),
    }


def hf_bert_facts(config: Config, card: Any) -> dict[str, Any]:
    if kind_of(config) != "bert":
        raise WeightsError('these names are of BERT alone: save RoBERTa with format="hf"')
    return hf_facts(config, card)


def hf_base_facts(config: Config, card: Any) -> dict[str, Any]:
    if config.head != "none":
        raise WeightsError('only a model without a head is saved alone: say format="hf"')
    return hf_facts(config, card)


LOST = ("layers", "remat")
FIRST = "embeddings.LayerNorm"
IGNORED = (
    r"(.*\.)?embeddings\.(position_ids|token_type_ids)",  # 0, 1, 2, … and 0, 0, 0, …
    r"cls[./]seq_relationship[./](weight|kernel|bias)",
    r"roberta\.pooler\.dense\.(weight|bias)",  # beside a classifier that does not read it
)
FORMATS = {
    "hf": Format(
        rows=hf,
        marker=tuple(f"{kind}.{FIRST}.weight" for kind in KINDS),
        ignored=IGNORED,
        config=hf_config,
        facts=hf_facts,
        lost=LOST,
    ),
    # A base model that was saved alone.
    "hf_base": Format(
        rows=partial(hf, base=""),
        marker=f"{FIRST}.weight",
        ignored=IGNORED,
        config=hf_config,
        facts=hf_base_facts,
        lost=LOST,
    ),
    # Files whose norms have TensorFlow's names: bert-base-uncased is one.
    "hf_2018": Format(
        rows=partial(hf, leaves=("gamma", "beta")),
        marker=f"bert.{FIRST}.gamma",
        ignored=IGNORED,
        config=hf_config,
        facts=hf_bert_facts,
        lost=LOST,
        prefix="bert.",
    ),
    "hf_flax": Format(
        rows=hf_flax,
        marker=f"bert.{FIRST}.scale".replace(".", "/"),
        ignored=IGNORED,
        config=hf_flax_config,
        facts=hf_bert_facts,
        lost=LOST,
        prefix="bert/",
        file="flax_model.msgpack",
    ),
}
APACHE, MIT = "apache-2.0", "mit"
TAGS = {
    "bert_base.uncased": Tag("google-bert/bert-base-uncased", licence=APACHE),
    "bert_base.cased": Tag("google-bert/bert-base-cased", licence=APACHE),
    "bert_base.multilingual_cased": Tag("google-bert/bert-base-multilingual-cased", licence=APACHE),
    "bert_large.uncased": Tag("google-bert/bert-large-uncased", licence=APACHE),
    "bert_large.cased": Tag("google-bert/bert-large-cased", licence=APACHE),
    "roberta_base.mlm": Tag("FacebookAI/roberta-base", licence=MIT),
    "roberta_large.mlm": Tag("FacebookAI/roberta-large", licence=MIT),
    "roberta_large.mnli": Tag("FacebookAI/roberta-large-mnli", licence=MIT),
}
