"""From a source as a user writes it to a local path; all network access of the zoo is here.

    runs/a/model, weights.safetensors     a directory or file, as it is
    runs/a                                the workdir of a run: its `model`
    vit_b16.augreg_in21k_ft_in1k          a tag, VARIANT.NAME: a row of a family's `TAGS`
    microsoft/resnet-50                   a repository of the Hugging Face hub
    owner/name:augreg/B_16.npz            one file of a repository that holds many

Of a repository only what is read is fetched: its facts and one set of weights, safetensors first.
Its cache (`HF_HOME`), token and `HF_HUB_OFFLINE` are those of huggingface_hub.
"""

import difflib
import errno
import hashlib
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from zoo import registry
from zoo.weights import formats
from zoo.weights.convert import WeightsError


class Tag(NamedTuple):
    """Published weights of a variant under a name of ours: a hub id or "id:file" at a commit, and
    the SHA-256 (hex) of its files by name."""

    source: str
    revision: str | None = None
    sha256: Mapping[str, str] = {}
    licence: str = ""


@cache
def tags() -> Mapping[str, Tag]:
    """Every tag of every family, by name."""
    from zoo.weights import store

    found: dict[str, Tag] = {}
    for page in store.families():
        found |= getattr(store.table(page), "TAGS", {})
    return found


def fetch(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """The local path of a source: a directory, or the one file that is meant.

    revision: a branch, tag or commit of a repository. token: of an account that may read it.
    Files of the hub are checked against the SHA-256 that the tag records, or else against the one
    that the hub publishes for large files. Raises WeightsError that says what was looked for, and
    what to do.
    """
    if not isinstance(source, str | Path):
        raise WeightsError(f"weights are named by a path, a hub id or a tag, not by {source!r}")
    try:
        path = Path(source).expanduser()
        if path.exists():
            exported = (path / "checkpoints").is_dir() and (path / "model").is_dir()
            return path / "model" if exported else path
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise WeightsError(f"{str(source)[:200]} cannot be a path: {error}") from error
    is_tag = "/" not in str(source) and str(source) in tags()
    tag = tags()[str(source)] if is_tag else Tag(OLD_IDS.get(str(source), str(source)))
    if revision and tag.revision and revision != tag.revision:
        raise WeightsError(
            f"{source} is revision {tag.revision}; load {tag.source} itself for another"
        )
    place = re.fullmatch(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>[^:]+))?", tag.source)
    if place is None:
        raise WeightsError(_unknown(str(source)))
    files = Repository(place["repo"], revision or tag.revision, token).fetch(place["file"])
    for name, file in files.items():
        _verify(file, tag.sha256.get(name))
    weights = next(iter(files.values()))
    # A directory may also hold what others fetched: where it could be misread, the file is meant.
    return weights if place["file"] or weights.name not in WEIGHTS else weights.parent


def origin(path: Path) -> str:
    """Where a fetched path comes from, "owner/name@commit"; any other path as it is."""
    found = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})", path.as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else str(path)


def _unknown(source: str) -> str:
    variant = source.partition(".")[0]
    near = [name for name in tags() if name.partition(".")[0] == variant]
    near = near or difflib.get_close_matches(source, tags(), n=3)
    hint = f"; tags near it: {', '.join(near)}" if near else ""
    if source in registry.entries():
        hint += f"; zoo.create({source!r}) makes the model without weights"
    return f"{source} is neither a path that exists nor a hub id such as microsoft/resnet-50{hint}"


# Ids from before repositories had owners, which the hub still redirects; people go on using them.
OLD_IDS = {
    **{f"gpt2{size}": f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")},
    "distilgpt2": "distilbert/distilgpt2",
    **{
        f"bert-{size}-{kind}": f"google-bert/bert-{size}-{kind}"
        for size in ("base", "large")
        for kind in ("uncased", "cased")
    },
    **{f"roberta-{size}": f"FacebookAI/roberta-{size}" for size in ("base", "large")},
}

# What is fetched of a repository.

TEXTS = (
    "config.json",
    "open_clip_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "card.json",
    "README.md",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# Forms of a tokenizer, as zoo.text.load takes them: the first that is there.
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
WEIGHTS = (  # the first that is there; `formats.read` finds those without a star in a directory
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "*.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "*.bin",
    "*.pth",
    "*.pt",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
    "*.msgpack",
    "*.npz",
)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".msgpack", ".npz")
TRAINING = re.compile("(optimizer|scheduler|scaler|trainer|training|rng_state|random_state).*")


class Repository:
    """A repository at one commit: online at the newest of `revision`, else at the cached one.

    names: of its files, or offline of those in the cache; `offline` is then the reason.
    """

    def __init__(self, repo: str, revision: str | None, token: str | None):
        self.repo, self.revision, self.token = repo, revision, token
        self.offline: Exception | None = None
        self._at = revision or "main"  # the commit, as soon as it is known
        self.names = self._listed()

    def __str__(self) -> str:
        return f"{self.repo} (revision {self.revision or 'main'})"

    def fetch(self, file: str | None) -> dict[str, Path]:
        """Name → local path of the facts and the weights; the weights' own file comes first, before
        its shards. Raises WeightsError where there are none, or several to choose from."""
        weights = self._weights() if file is None else file
        if weights not in self.names:
            near = difflib.get_close_matches(weights, self.names, n=3, cutoff=0.3)
            raise self._missing(weights, f"has no file {weights}; near it: {', '.join(near)}")
        texts = self._texts(PurePosixPath(weights).parent)
        found = {name: self._download(name) for name in (weights, *texts)}
        return found | {shard: self._download(shard) for shard in self._shards(found, weights)}

    def _texts(self, folder: PurePosixPath) -> list[str]:
        """The facts in a folder, and one form of its tokenizer."""
        forms = [[str(folder / name) for name in form] for form in TOKENIZERS]
        whole = (form for form in forms if set(form) <= set(self.names))
        facts = [str(folder / name) for name in TEXTS]
        return [name for name in facts if name in self.names] + next(whole, [])

    def _weights(self) -> str:
        names = [name for name in self.names if "/" not in name and not TRAINING.fullmatch(name)]
        for pattern in WEIGHTS:
            found = sorted(name for name in names if fnmatch(name, pattern))
            if len(found) > 1:
                raise WeightsError(
                    f"{self} holds several weights: {', '.join(found)}; "
                    f"name one, such as {self.repo}:{found[0]}"
                )
            if found:
                return found[0]
        raise self._missing(
            "weights",
            "holds no weights that can be read: no safetensors, PyTorch .bin or .pth, Flax "
            f".msgpack or .npz among {', '.join(self.names) or 'no files'}; one of a folder is "
            f"named as {self.repo}:FOLDER/FILE",
        )

    def _missing(self, wanted: str, found: str) -> WeightsError:
        """What the repository has not; offline nobody knows."""
        if self.offline is not None:
            return self._explained(self.offline, wanted)
        return WeightsError(f"{self} {found}")

    def _shards(self, found: Mapping[str, Path], weights: str) -> list[str]:
        if not weights.endswith(".index.json"):
            return []
        places = formats.read_json(found[weights]).get("weight_map")
        if not isinstance(places, dict):
            raise WeightsError(f"{self}: {weights} has no weight_map")
        beside = PurePosixPath(weights).parent
        shards = sorted({str(beside / str(part)) for part in places.values()})
        if missing := [name for name in shards if name not in self.names]:
            raise self._missing(
                ", ".join(missing),
                f"has an index {weights} with shards that are missing: {missing}",
            )
        return shards

    # The calls that may use the network.

    def _listed(self) -> list[str]:
        import huggingface_hub as hub  # 0.3 s: only when something is fetched

        try:
            info = hub.HfApi(token=self.token).model_info(self.repo, revision=self.revision)
            return [file.rfilename for file in info.siblings or []]
        except Exception as error:  # the library's errors have no common base below Exception
            cached = None if _is_answer(error) else self._cached()
            if cached is None:
                raise self._explained(error, "config.json and weights") from error
            self.offline, self._at = error, cached.name
        files = (path.relative_to(cached) for path in cached.rglob("*") if path.is_file())
        return sorted(file.as_posix() for file in files)

    def _cached(self) -> Path | None:
        import huggingface_hub as hub

        try:
            found = hub.snapshot_download(
                self.repo, revision=self.revision, local_files_only=True, allow_patterns=[]
            )
        except Exception:
            return None
        return Path(found)

    def _download(self, name: str) -> Path:
        """The first is asked for by branch, which the cache then remembers; the others by its
        commit, whose files never change, so that those in the cache need no network."""
        import huggingface_hub as hub

        try:
            found = hub.hf_hub_download(self.repo, name, revision=self._at, token=self.token)
        except Exception as error:
            raise self._explained(error, name) from error
        self._at = Path(found).parents[name.count("/")].name
        return Path(found)

    def _explained(self, error: Exception, wanted: str) -> WeightsError:
        names = (kind.__name__ for kind in type(error).__mro__)
        way_out = next((WAYS_OUT[name] for name in names if name in WAYS_OUT), NO_NETWORK)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            way_out = NO_ROOM
        reason = str(error).strip().splitlines() or [type(error).__name__]
        advice = way_out.format(repo=self.repo, revision=self.revision)
        return WeightsError(f"could not fetch {self}: {wanted}: {reason[0]}\n{advice}")


NO_NETWORK = (
    "Try again, or, without a network, pass the path of a directory that holds its config.json and "
    "model.safetensors, fetched elsewhere with `hf download {repo}`."
)
NO_ROOM = "The disk is full: make room, or set HF_HOME to a folder on another one."
WAYS_OUT = {  # by the names of huggingface_hub's errors, since it has moved them about
    "GatedRepoError": "{repo} is gated: accept its terms on its page of the hub, then pass token= "
    "of that account, or set HF_TOKEN.",
    "RepositoryNotFoundError": "There is neither a path {repo} here nor a repository of this name, "
    "or it is private: correct it, or pass token= of an account that may read it.",
    "RevisionNotFoundError": "{repo} has no branch, tag or commit {revision}: correct revision=, "
    "or leave it out for the newest.",
    "HFValidationError": "A hub id is OWNER/NAME.",
    "LocalEntryNotFoundError": NO_NETWORK,
    "HfHubHTTPError": "The hub refused or failed: try again later, or, if it is the token that it "
    "refuses, pass another token=.",
}
ANSWERS = ("RepositoryNotFoundError", "RevisionNotFoundError")


def _is_answer(error: Exception) -> bool:
    """Whether the hub says that there is no such thing, so that a copy in the cache is no reply."""
    return any(kind.__name__ in ANSWERS for kind in type(error).__mro__)


# Digests.


def _verify(file: Path, recorded: str | None) -> None:
    """Raises WeightsError unless the SHA-256 of the file is as recorded, or as published."""
    expected = recorded or _published(file)
    if expected is None:
        return
    blob = file.resolve()
    facts = blob.stat()
    found = _digest(blob, facts.st_size, facts.st_mtime_ns)
    if found != expected.lower():
        raise WeightsError(
            f"{file.name}: its SHA-256 is {found}, but {expected} is "
            f"{'recorded for this tag' if recorded else 'published'}: it is damaged or was "
            f"changed; remove {blob} and fetch it again"
        )


def _published(file: Path) -> str | None:
    """A large file in the cache is a link to a blob that is named by its SHA-256."""
    name = PurePosixPath(os.readlink(file)).name if file.is_symlink() else ""
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


@cache
def _digest(blob: Path, size: int, modified: int) -> str:
    """SHA-256 in hex; once a process for a file that does not change."""
    with blob.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
