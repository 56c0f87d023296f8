"""Exports in the hands of the reference libraries, where those are installed beside JAX.

    pip install torch==2.13.0 transformers==5.23.0                        (Python 3.11)
    pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 open-clip-torch==3.3.0      (another)

What they load has no missing and no unexpected name, equals what was saved bit for bit, and
computes the same; what they save loads here as the model it was.
"""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import zoo
from tests.checkpoints import assert_same, random_variables
from tests.golden.fill import image, tokens
from tests.golden.replay import HERE, difference
from zoo.models import bert, clip, dinov2, gpt, llama, resnet, resnetv2, siglip, vit

# Their warnings are theirs; ours are errors everywhere else.
pytestmark = pytest.mark.filterwarnings("ignore")
FILE = "model.safetensors"

VIT = replace(vit.TINY, num_classes=5)
DINO = replace(dinov2.TINY, num_classes=5)
RESNET = resnet.Config(
    (1, 1, 2, 1), (256, 128, 64, 32), "bottleneck", stem_width=64, image_size=64, num_classes=5
)
BARE = {"num_classes": 0}
HF = {
    "ViTForImageClassification": (vit, VIT),
    "ViTForImageClassification, odd": (
        vit,
        vit.Config(4, 30, 2, 3, 49, gelu="tanh", qkv_bias=False, image_size=16, num_classes=2),
    ),
    "ViTModel": (vit, replace(VIT, **BARE, representation=9)),
    "DeiTModel": (vit, replace(VIT, **BARE, distillation="token", representation=32)),
    "DeiTForImageClassification": (vit, replace(VIT, distillation="token")),
    "DeiTForImageClassificationWithTeacher": (vit, replace(VIT, distillation="head")),
    "Dinov2Model": (dinov2, replace(DINO, **BARE, registers=0)),
    "Dinov2ForImageClassification": (
        dinov2,
        replace(DINO, registers=0, ffn="mlp", hidden=128, mask_token=False),
    ),
    "Dinov2WithRegistersModel": (dinov2, replace(DINO, **BARE)),
    "Dinov2WithRegistersForImageClassification": (dinov2, DINO),
    "ResNetForImageClassification": (resnet, RESNET),
    "ResNetModel": (resnet, replace(RESNET, **BARE)),
}
ROBERTA = {"types": 1, "position_offset": 2, "epsilon": 1e-5}
MLM = {"head": "mlm", "pooler": False, "num_classes": 0}
TEXT = {
    "GPT2LMHeadModel": (gpt, gpt.TINY),
    "GPT2LMHeadModel, odd": (gpt, gpt.Config(30, 3, 3, 49, vocab=37, context=20, gelu="erf")),
    "LlamaForCausalLM": (llama, llama.TINY),
    "LlamaForCausalLM, scaled": (
        llama,
        replace(llama.TINY, tied=True, head_width=12, scaling=("llama3", 8.0, 8, 1.0, 4.0)),
    ),
    "MistralForCausalLM": (llama, replace(llama.TINY, window=4)),
    "Qwen2ForCausalLM": (llama, replace(llama.TINY, qkv_bias=True)),
    "BertModel": (bert, replace(bert.TINY, head="none", num_classes=0)),
    "BertForMaskedLM": (bert, replace(bert.TINY, **MLM)),
    "BertForSequenceClassification": (bert, bert.TINY),
    "BertForTokenClassification": (bert, replace(bert.TINY, head="tokens", pooler=False)),
    "RobertaForMaskedLM": (bert, replace(bert.TINY, **MLM, **ROBERTA)),
    "RobertaForSequenceClassification": (bert, replace(bert.TINY, **ROBERTA)),
}
TIMM = {
    "vit": (vit, VIT),
    "vit, odd": (
        vit,
        vit.Config(4, 30, 2, 3, 49, gelu="tanh", qkv_bias=False, image_size=(8, 16), num_classes=2),
    ),
    "vit, mean": (
        vit,
        replace(VIT, pool="mean", class_token=False, qk_norm=True, in_channels=1),
    ),
    "vit, bare": (vit, replace(VIT, **BARE, pool="mean")),
    "deit": (vit, replace(VIT, distillation="head")),
    "dinov2": (dinov2, replace(DINO, **BARE, mask_token=False, registers=0)),
    "dinov2, registers": (dinov2, replace(DINO, **BARE, mask_token=False, ffn="mlp", hidden=49)),
    "dinov2, registers and SwiGLU": (dinov2, replace(DINO, **BARE, mask_token=False)),
    "resnet": (resnet, RESNET),
    "resnetv2": (
        resnetv2,
        resnetv2.Config((1, 1, 2, 1), (32, 64, 32, 32), stem_width=8, image_size=64, num_classes=5),
    ),
}
TORCHVISION = {
    "BasicBlock": resnet.Config((1, 1, 1, 1), image_size=64, num_classes=5),
    "Bottleneck": resnet.Config(
        (1, 1, 1, 1), (256, 512, 1024, 2048), "bottleneck", image_size=64, num_classes=5
    ),
}


def saved(page, config, directory, format):
    """(model, variables) of a random model, written."""
    model = zoo.module_class(page)(config)
    variables = positive(random_variables(model))
    zoo.save(model, variables, directory, format=format)
    return model, variables


def positive(variables):
    """Variances are, and kernels are kept from growing what they are given."""
    stats = variables.get("batch_stats", {})
    squared = jax.tree.map(lambda x: np.square(x) + 1, stats)
    fans = jax.tree.map(lambda x: np.float32(np.prod(x.shape[:-1])), variables["params"])
    small = jax.tree.map(lambda x, fan: x / np.sqrt(fan), variables["params"], fans)
    return {**variables, "params": small, **({"batch_stats": squared} if stats else {})}


def assert_equal_tensors(model, directory: Path, files=None, file=FILE):
    """A torch model has the tensors of the file, by name and bit for bit."""
    theirs = {name: x.numpy() for name, x in (files or model.state_dict()).items()}
    ours = load_file(directory / file)
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name, strict=True)


def assert_equal_outputs(ours, theirs, variables):
    """Within 1e-4 on the same random images or tokens. theirs: torch model → its output."""
    import torch

    [(name, spec)] = zoo.example(ours, 2).items()
    if name == "tokens":
        x = tokens("live", spec.shape, 3, ours.config.vocab)  # below are RoBERTa's special ones
        given = torch.from_numpy(x).long()
    else:
        x = image("live", spec.shape)
        given = torch.from_numpy(x).movedim(-1, 1).contiguous()
    with torch.no_grad():
        expected = theirs(given).numpy()
    output = jax.jit(ours.apply)(variables, jnp.asarray(x))
    assert difference(output, expected) <= 1e-4


# transformers.


@pytest.fixture
def common(monkeypatch):
    """The helpers of the recording script."""
    pytest.importorskip("torch", reason="needs PyTorch: the docstring of test_live.py says how")
    monkeypatch.syspath_prepend(HERE)
    from references import common

    return common


@pytest.mark.parametrize("name", [*HF, *TEXT])
def test_transformers_loads_what_we_save_and_the_other_way_round(name, common, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    format = "hf_base" if name == "BertModel" else "hf"
    ours, variables = saved(*(HF | TEXT)[name], tmp_path / "ours", format)
    cls = getattr(transformers, name.partition(",")[0])
    theirs, loading = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values()), loading
    assert_equal_tensors(theirs, tmp_path / "ours", common.saved(theirs))

    def run(x):
        output = common.result(theirs.eval()(x))
        return output.flatten(1) if name in HF else output  # ResNet's pooler keeps two axes

    assert_equal_outputs(ours, run, variables)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded_model, loaded = zoo.load(tmp_path / "theirs")
    again, _ = zoo.load(tmp_path / "ours")
    assert loaded_model.config == again.config
    assert_same(loaded, variables)


# timm and torchvision.


@pytest.fixture
def torchvision(common):
    if importlib.util.find_spec("timm") is None:  # importing it would import torchvision
        pytest.skip("pip install torchvision==0.28.0 timm==1.0.31")
    return common.import_torchvision()


@pytest.mark.parametrize("name", TIMM)
def test_timm_loads_what_we_save_and_the_other_way_round(name, torchvision, tmp_path):
    import timm

    ours, variables = saved(*TIMM[name], tmp_path / "ours", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert_equal_tensors(theirs, tmp_path / "ours")
    assert_equal_outputs(ours, theirs, variables)
    timm.models.save_for_hf(theirs, tmp_path / "theirs", safe_serialization=True)
    loaded_model, loaded = zoo.load(tmp_path / "theirs")
    again, expected = zoo.load(tmp_path / "ours")
    assert loaded_model.config == again.config
    assert_same(loaded, expected)


def test_the_heads_of_timms_models_are_those_of_our_table(torchvision):
    import timm
    import torch

    from zoo.weights import facts
    from zoo.weights import vit as table

    names = [n for n in timm.list_models() if re.fullmatch(table.ARCHITECTURES, n)]
    assert len(names) > 30
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        shapes = {
            n: jax.ShapeDtypeStruct(x.shape, "float32") for n, x in model.state_dict().items()
        }
        if "blocks.0.ls1.gamma" not in shapes:  # those are of another page, or none
            found = facts.timm_heads(shapes, {"architecture": name}, model.embed_dim)
            assert found == model.blocks[0].attn.num_heads, name


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_loads_what_we_save(name, torchvision, tmp_path):
    import torch

    ours, variables = saved(resnet, TORCHVISION[name], tmp_path, "torchvision")
    kinds = torchvision.models.resnet
    theirs = kinds.ResNet(getattr(kinds, name), [1, 1, 1, 1], num_classes=5).eval()
    file = load_file(tmp_path / FILE)
    theirs.load_state_dict({n: torch.from_numpy(x) for n, x in file.items()}, strict=True)
    assert_equal_tensors(theirs, tmp_path)
    assert_equal_outputs(ours, theirs, variables)


# Pairs of towers.


ODD_CLIP = replace(clip.TINY, width=30, heads=3, mlp=49, gelu="erf", end="id", eos=7)
CLIP_RESNET = replace(
    clip.TINY, patch=32, width=4, heads=4, depth=0, mlp=0, stages=(1, 2, 1, 3), image_size=64
)
PAIRS = {
    "CLIPModel": (clip, clip.TINY),
    "CLIPModel, odd": (clip, replace(ODD_CLIP, epsilon=1e-3, in_channels=1)),
    "SiglipModel": (siglip, siglip.TINY),
    "SiglipModel, odd": (siglip, replace(siglip.TINY, gelu="erf", image_size=36, epsilon=1e-3)),
}
OPEN_CLIP = {"vit": clip.TINY, "vit, odd": replace(ODD_CLIP, image_size=(32, 16))}
OPEN_CLIP |= {"resnet": CLIP_RESNET}


def assert_equal_pairs(ours, variables, theirs):
    """Within 1e-4 on the same random pictures and texts. theirs: (pixels, ids), torch's, → both
    embeddings and all logits."""
    import torch

    specs = zoo.example(ours, 2)
    pictures = image("live", specs["image"].shape)
    texts = tokens("live", specs["tokens"].shape, 0, ours.config.vocab)
    pixels = torch.from_numpy(pictures).movedim(-1, 1).contiguous()
    with torch.no_grad():
        expected = theirs(pixels, torch.from_numpy(texts).long())

    @jax.jit
    def run(variables):
        of_image, of_text, _ = ours.apply(variables, image=pictures, tokens=texts)
        logits = ours.apply(variables, of_image, of_text, method="similarity")
        return of_image, of_text, logits

    for found, wanted in zip(run(variables), expected, strict=True):
        assert difference(found, wanted.numpy()) <= 1e-4


@pytest.mark.parametrize("name", PAIRS)
def test_transformers_loads_the_towers_that_we_save_and_the_other_way_round(name, common, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    ours, variables = saved(*PAIRS[name], tmp_path / "ours", "hf")
    cls = getattr(transformers, name.partition(",")[0])
    theirs, loading = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values()), loading
    assert_equal_tensors(theirs, tmp_path / "ours", common.saved(theirs))

    def run(pixels, ids):
        found = common.transformers_pairs(theirs.eval(), pixels, input_ids=ids)
        return found["image"], found["text"], found["logits"]

    assert_equal_pairs(ours, variables, run)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded_model, loaded = zoo.load(tmp_path / "theirs")
    again, _ = zoo.load(tmp_path / "ours")
    assert loaded_model.config == again.config
    assert_same(loaded, variables)


@pytest.fixture
def open_clip(common):
    if importlib.util.find_spec("open_clip") is None:  # importing it would import torchvision
        pytest.skip("pip install torchvision==0.28.0 open-clip-torch==3.3.0")
    common.import_torchvision()
    return importlib.import_module("open_clip")


def open_clip_outputs(theirs):
    def run(pixels, ids):
        of_image, of_text, scale = theirs.eval()(pixels, ids)
        return of_image, of_text, scale * of_image @ of_text.T

    return run


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_loads_what_we_save_and_the_other_way_round(name, open_clip, tmp_path):
    import torch

    ours, variables = saved(clip, OPEN_CLIP[name], tmp_path / "ours", "openai")
    source = f"local-dir:{tmp_path / 'ours'}"
    theirs = open_clip.create_model(source)
    assert_equal_tensors(theirs, tmp_path / "ours", file="open_clip_model.safetensors")
    assert_equal_pairs(ours, variables, open_clip_outputs(theirs))
    (tmp_path / "theirs").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "theirs" / "open_clip_pytorch_model.bin")
    push = importlib.import_module("open_clip.push_to_hf_hub")
    config = tmp_path / "theirs" / "open_clip_config.json"
    push.save_config_for_hf(theirs, config, open_clip.get_model_config(source))
    loaded_model, loaded = zoo.load(tmp_path / "theirs")
    again, _ = zoo.load(tmp_path / "ours")
    assert loaded_model.config == again.config
    assert_same(loaded, variables)


def test_open_clip_resizes_positions_as_we_do(open_clip, tmp_path):
    import torch

    saved(clip, clip.TINY, tmp_path, "openai")
    sizes = {"force_image_size": (48, 24), "force_context_length": 19}
    theirs = open_clip.create_model(f"local-dir:{tmp_path}", **sizes)
    ours, variables = zoo.load(tmp_path, image_size=(48, 24), context=19)

    def run(pixels, ids):  # it takes texts of the whole context alone
        return open_clip_outputs(theirs)(
            pixels, torch.nn.functional.pad(ids, (0, 19 - ids.shape[1]))
        )

    assert_equal_pairs(ours, variables, run)
