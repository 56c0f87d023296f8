"""The hub: what is asked of it, what it may refuse, and that nothing damaged is ever loaded.

The client is the true one. It talks to a server on 127.0.0.1 (`hub_server.py`), in a process of its
own, or finds a cache that was written as it writes it.
"""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import zoo
from tests.hub_server import COMMIT, Repo, Server, serve, stand_in
from zoo import registry
from zoo.card import Card, Preprocess
from zoo.models import resnet
from zoo.weights import hub
from zoo.weights.convert import WeightsError

BIG = bytes(range(256)) * 40
FACTS = {
    "config.json": b"{}",
    "preprocessor_config.json": b"{}",
    "README.md": b"---\n---\n",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
}
OTHERS = {name: BIG for name in ("tf_model.h5", "model.onnx", "vocab.txt", "rust_model.ot")}
TRAINING = {name: BIG for name in ("optimizer.bin", "optimizer.pt", "training_args.bin")}
NESTED = {"checkpoint-5/model.safetensors": BIG, "onnx/config.json": b"{}"}


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}).encode()


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BINS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
FETCHED = {  # repository: its weights, and those that are fetched with the facts
    "a/safetensors": (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
    "a/fp16": (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
    "a/lone": (["vit.safetensors", "pytorch_model.bin"], ["vit.safetensors"]),
    "a/shards": (
        ["model.safetensors.index.json", *SHARDS, *BINS, "pytorch_model.bin.index.json"],
        ["model.safetensors.index.json", *SHARDS],
    ),
    "a/torch": (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
    "a/torch-shards": (
        ["pytorch_model.bin.index.json", *BINS, "flax_model.msgpack"],
        ["pytorch_model.bin.index.json", *BINS],
    ),
    "a/pth": (["dinov2_vits14_pretrain.pth", "flax_model.msgpack"], ["dinov2_vits14_pretrain.pth"]),
    "a/flax": (["flax_model.msgpack", "B_16.npz"], ["flax_model.msgpack"]),
    "a/npz": (["B_16.npz"], ["B_16.npz"]),
}
INDEXES = {
    "model.safetensors.index.json": index(*SHARDS, SHARDS[0]),
    "pytorch_model.bin.index.json": index(*BINS),
}


def published(name: str, weights: list[str], **options) -> Repo:
    """With all that must not be fetched beside them."""
    held = {weight: INDEXES.get(weight, BIG + weight.encode()) for weight in weights}
    return Repo(name, {**OTHERS, **TRAINING, **NESTED, **FACTS, **held}, **options)


MODEL = {"config.json": b"{}", "model.safetensors": BIG}
REPOS = (
    *(published(name, weights) for name, (weights, _) in FETCHED.items()),
    Repo("a/bpe", {**MODEL, "vocab.json": b"{}", "merges.txt": b"", "vocab.txt": b""}),
    Repo("a/half", {**MODEL, "vocab.json": b"{}", "vocab.txt": b""}),
    Repo("a/gated", MODEL, token="hf_right", gated=True),
    Repo("a/private", MODEL, token="hf_right"),
    Repo("a/revised", MODEL, revisions=("main", "v1")),
    Repo("a/none", {"config.json": b"{}", "tf_model.h5": BIG, "optimizer.bin": BIG}),
    Repo("a/empty", {}),
    Repo("a/two", {"a.npz": BIG, "b.npz": BIG}),
    Repo("a/many", {"s/a.npz": BIG, "s/config.json": b"{}", "b/a.npz": BIG, "config.json": b"{}"}),
    Repo("a/shardless", {"model.safetensors.index.json": index("../x", SHARDS[0]), SHARDS[0]: BIG}),
    Repo("a/mapless", {"model.safetensors.index.json": b"{}"}),
    Repo("a/cut", MODEL, cut={"model.safetensors": 100}),
    Repo("a/short", MODEL, served={"model.safetensors": BIG[:-1]}),
    Repo("a/changed", MODEL, served={"model.safetensors": BIG[:-1] + b"\0"}),
)
TAGS = {
    "resnet50.right": ["a/revised", "v1", {"model.safetensors": hashlib.sha256(BIG).hexdigest()}],
    "resnet50.wrong": ["a/revised", "v1", {"model.safetensors": hashlib.sha256(b"").hexdigest()}],
    "resnet50.file": ["a/many:s/a.npz", None, {}],
    "resnet18.any": ["a/revised", None, {}],
}
ACCEPTED = {  # call → what it gives, below the snapshot
    "a/bpe": "",
    "a/half": "",
    "a/gated token=hf_right": "",
    "a/private token=hf_right": "",
    "a/revised revision=v1": "",
    f"a/revised revision={COMMIT}": "",
    "a/many:s/a.npz": "s/a.npz",
    "a/lone:pytorch_model.bin": "pytorch_model.bin",
    "resnet50.right": "",
    "resnet50.right revision=v1": "",
    "resnet50.file": "s/a.npz",
}
REFUSED = {  # call → parts of the message
    "a/gated": ("a/gated (revision main)", "is gated: accept its terms", "token="),
    "a/gated token=hf_wrong": ("is gated: accept its terms",),
    "a/private": ("neither a path a/private here nor a repository", "token="),
    "a/missing": ("neither a path a/missing here nor a repository", "token="),
    "a/missing token=hf_right": ("neither a path a/missing here nor a repository",),
    "a/private token=hf_invalid": ("401", "pass another token="),
    "a/revised revision=v9": ("(revision v9)", "no branch, tag or commit v9"),
    "a/none": ("holds no weights that can be read", "config.json, tf_model.h5"),
    "a/empty": ("holds no weights that can be read", "no files"),
    "a/two": ("several weights: a.npz, b.npz", "a/two:a.npz"),
    "a/many": ("holds no weights", "s/a.npz", "a/many:FOLDER/FILE"),
    "a/many:s/b.npz": ("has no file s/b.npz; near it: s/a.npz",),
    "a/shardless": ("model.safetensors.index.json", "shards that are missing: ['../x']"),
    "a/mapless": ("model.safetensors.index.json has no weight_map",),
    "a/cut": ("model.safetensors", "received 100 bytes", "Try again"),
    "a/short": ("model.safetensors", "should be of size 10240 but has size 10239", "Try again"),
    "a/changed": ("model.safetensors: its SHA-256", "published", "remove"),
    "a/-b": ("A hub id is OWNER/NAME",),
    "a/b/c": ("neither a path that exists nor a hub id",),
    "resnet50.wrong": ("model.safetensors: its SHA-256", "recorded for this tag"),
    "resnet50.right revision=main": ("resnet50.right is revision v1", "load a/revised itself"),
    "resnet50.unknown": ("tags near it: resnet50.right, resnet50.wrong, resnet50.file",),
    "resnet50": ("tags near it: resnet50.right", "zoo.create('resnet50')"),
    "resnet18_any": ("tags near it: resnet18.any",),
}

RUNNER = """
import json, sys
import huggingface_hub.file_download as transfers
from zoo.weights import hub

calls, tags = json.load(sys.stdin)
transfers.time.sleep = lambda seconds: None  # between its attempts
hub.tags = lambda: {name: hub.Tag(*tag) for name, tag in tags.items()}
answers = {}
for call in calls:
    source, *options = call.split()
    options = dict(option.split("=") for option in options)
    try:
        answers[call] = [str(hub.fetch(source, **options)), ""]
    except hub.WeightsError as error:
        answers[call] = ["", str(error)]
json.dump(answers, sys.stdout)
"""


def start(server: Server, home: Path, calls: list[str], **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | server.environment(home) | environment,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([calls, TAGS]))
    process.stdin.close()
    process.stdin = None
    return process


def ask(server: Server, home: Path, calls: list[str], **environment: str) -> dict[str, list[str]]:
    """[path, ""] or ["", message] of each call, in one process of its own."""
    out, err = (process := start(server, home, calls, **environment)).communicate()
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def answers(home) -> dict[str, list[str]]:
    with serve(*REPOS) as server:
        found = ask(server, home, [*FETCHED, *REFUSED, *ACCEPTED])
        found["requests"] = server.requests
    return found


@pytest.fixture(scope="module", params=["0", "1"], ids=["unreachable", "HF_HUB_OFFLINE"])
def offline(request, home, answers) -> dict[str, list[str]]:
    """The answers of another process, when the server has gone."""
    with serve() as gone:
        pass
    calls = [*FETCHED, *ACCEPTED, *UNREACHABLE]
    return ask(gone, home, calls, HF_HUB_OFFLINE=request.param)


def snapshot(home: Path, repo: str) -> Path:
    return home / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT


def files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


@pytest.mark.parametrize("repo", FETCHED)
def test_the_facts_and_one_kind_of_weights_are_fetched_and_nothing_else(repo, answers, home):
    _, weights = FETCHED[repo]
    path, error = answers[repo]
    assert error == ""
    lone = weights[0] not in hub.WEIGHTS  # a directory would not say which file is meant
    assert Path(path) == snapshot(home, repo) / (weights[0] if lone else "")
    if repo == "a/lone":
        weights = [*weights, "pytorch_model.bin"]  # which another call asks for by name
    assert requested(repo, answers) == {*weights, *FACTS}


def requested(repo: str, answers: dict[str, Any]) -> set[str]:
    """The files of a repository that were asked for."""
    paths = {request.split(" ")[1] for request in answers["requests"]}
    return {path.split("/", 5)[5] for path in paths if path.startswith(f"/{repo}/resolve")}


@pytest.mark.parametrize(
    "repo, form", [("a/bpe", ["vocab.json", "merges.txt"]), ("a/half", ["vocab.txt"])]
)
def test_one_whole_form_of_a_tokenizer_is_fetched(repo, form, answers):
    assert requested(repo, answers) == {*MODEL, *form}


def test_all_files_are_of_the_commit_of_the_first_even_if_the_branch_moves(answers):
    by_branch = {name for name in answers["requests"] if name.startswith("GET /a/shards/resolve/m")}
    assert by_branch == {"GET /a/shards/resolve/main/model.safetensors.index.json"}
    assert f"GET /a/shards/resolve/{COMMIT}/config.json" in answers["requests"]


def test_the_files_are_those_of_the_revision_that_is_asked_for(answers):
    for revision in ("v1", COMMIT):
        assert f"GET /api/models/a/revised/revision/{revision}" in answers["requests"]


@pytest.mark.parametrize("call", ACCEPTED)
def test_an_id_a_file_of_one_and_a_tag_are_found(call, answers, home):
    path, error = answers[call]
    assert error == ""
    source = TAGS.get(call.split()[0], [call.split()[0]])[0]
    assert Path(path) == snapshot(home, source.partition(":")[0]) / ACCEPTED[call]


def test_the_facts_of_a_file_are_those_beside_it(answers, home):
    assert files(snapshot(home, "a/many")) == ["s/a.npz", "s/config.json"]


@pytest.mark.parametrize("call", REFUSED)
def test_what_the_hub_refuses_is_told_with_the_way_out(call, answers):
    path, error = answers[call]
    assert path == "" and "Traceback" not in error
    for part in REFUSED[call]:
        assert part in error


@pytest.mark.parametrize("repo", ["a/cut", "a/short"])
def test_a_download_that_ends_early_leaves_nothing_to_load(repo, answers, home):
    blobs = snapshot(home, repo).parents[1] / "blobs"
    assert "model.safetensors" not in files(snapshot(home, repo))
    assert hashlib.sha256(BIG).hexdigest() not in files(blobs)


def test_what_is_cached_is_not_fetched_again(home, answers):
    with serve(*REPOS) as server:
        ask(server, home, [*FETCHED])
        assert [request for request in server.requests if request.startswith("GET /a/")] == []


def test_what_is_cached_needs_no_network(answers, offline):
    calls = [*FETCHED, *ACCEPTED]
    assert {call: offline[call] for call in calls} == {call: answers[call] for call in calls}


UNREACHABLE = {  # call → what was wanted
    "a/none": "a/none (revision main): config.json and weights",
    "a/missing": "a/missing (revision main): config.json and weights",
    "a/revised revision=v9": "a/revised (revision v9): config.json and weights",
    "a/many:b/a.npz": "a/many (revision main): b/a.npz",
    "a/cut": "a/cut (revision main): weights",
}


@pytest.mark.parametrize("call", UNREACHABLE)
def test_offline_the_error_says_what_was_wanted_and_how_to_go_on(call, offline):
    path, error = offline[call]
    assert path == "" and f"could not fetch {UNREACHABLE[call]}" in error
    assert "without a network, pass the path of a directory that holds its config.json" in error


def test_two_processes_fetch_the_same_file_at_once(tmp_path):
    with serve(Repo("a/b", MODEL)) as server:
        pair = [start(server, tmp_path, ["a/b"]) for _ in range(2)]
        found = [json.loads(process.communicate()[0])["a/b"] for process in pair]
    assert found == [[str(snapshot(tmp_path, "a/b")), ""]] * 2
    assert files(snapshot(tmp_path, "a/b")) == sorted(MODEL)
    assert (snapshot(tmp_path, "a/b") / "model.safetensors").read_bytes() == BIG


# In a cache, without a server.


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty one, which is that of this process."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def saved(tmp_path) -> dict[str, Path]:
    """The files of a tiny ResNet with Hugging Face's names, and what its authors say of it."""
    model = zoo.module_class(resnet)(resnet.TINY)
    shapes = jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    labels = tuple(f"digit {i}" for i in range(model.config.num_classes))
    zoo.save(model, variables, tmp_path / "out", format="hf", card=Card("r", {}, labels=labels))
    (tmp_path / "out" / "card.json").unlink()
    processor = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3}
    processor |= {"crop_pct": 0.875, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "out" / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "out" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A ResNet\n")
    return {path.name: path for path in (tmp_path / "out").iterdir()}


def test_a_cached_repository_loads_with_its_card(cache, saved):
    stand_in(cache, "microsoft/resnet-9", saved)
    model, variables = zoo.load("microsoft/resnet-9", revision="main")
    assert model.config.widths == resnet.TINY.widths
    assert float(variables["params"]["head"]["bias"].sum()) == model.config.num_classes
    card = zoo.card("microsoft/resnet-9")
    assert card.labels[3] == "digit 3" and card.licence == "apache-2.0"
    assert card.preprocess == Preprocess(
        224, 0.875, "bicubic", (0.5,) * 3, (0.25,) * 3, convention="transformers"
    )


def test_where_a_path_comes_from_is_told(cache, saved):
    found = stand_in(cache, "microsoft/resnet-9", saved)
    assert hub.origin(found) == f"microsoft/resnet-9@{COMMIT}"
    assert hub.origin(found / "model.safetensors") == f"microsoft/resnet-9@{COMMIT}"
    assert hub.origin(Path("runs/a/model")) == str(Path("runs/a/model"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_in_the_cache_is_refused_by_name(cache, saved):
    found = stand_in(cache, "a/b", saved)
    zoo.load("a/b")
    flip(found / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors: its SHA-256 is .* published"):
        zoo.load("a/b")


def test_a_tags_digest_is_checked_before_anything_is_parsed(cache, saved, monkeypatch):
    digest = hashlib.sha256(saved["config.json"].read_bytes()).hexdigest()
    tags = {"resnet50.ours": hub.Tag("a/b", COMMIT, {"config.json": digest}, "MIT")}
    monkeypatch.setattr(hub, "tags", lambda: tags)
    found = stand_in(cache, "a/b", saved)
    zoo.load("resnet50.ours")
    (found / "config.json").resolve().write_text("{ no JSON")
    with pytest.raises(WeightsError, match=rf"config\.json: its SHA-256 .* {digest} is recorded"):
        zoo.load("resnet50.ours")


def test_a_digest_is_computed_once(cache, saved, monkeypatch):
    stand_in(cache, "a/b", saved)
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: read.append(a) or digest(*a))
    zoo.load("a/b")
    zoo.card("a/b")
    assert len(read) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_such(code, cache, saved, monkeypatch):
    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    stand_in(cache, "a/b", saved)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(WeightsError, match=r"a/b .*model\.safetensors(.|\n)*disk is full"):
        hub.fetch("a/b")


def test_a_path_that_exists_is_itself(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.fetch("owner/name") == Path("owner/name")
    assert hub.fetch(tmp_path) == tmp_path


def test_the_tags_are_of_variants_and_state_whole_digests():
    for name, tag in hub.tags().items():
        assert name.partition(".")[0] in registry.entries(), name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+(:.+)?", tag.source), name
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in tag.sha256.values()), name
