"""Stand-ins for the Hugging Face hub: a cache on disk, and a server that answers as the hub does.

A cache needs no server and no second process:

    stand_in(tmp_path, "microsoft/resnet-50", {"config.json": b"{}", "model.safetensors": path})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    zoo.load("microsoft/resnet-50")

(in another process: HF_HUB_CACHE=tmp_path HF_HUB_OFFLINE=1). The server is for the true client, in
a process of its own, since huggingface_hub reads its environment when it is imported:

    with serve(Repo("owner/name", {"config.json": b"{}"})) as server:
        subprocess.run(…, env=os.environ | server.environment(tmp_path))
        server.requests  # "GET /owner/name/resolve/<commit>/config.json", …
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".msgpack", ".npz", ".pth", ".h5", ".onnx")  # stored by SHA-256


def etag(name: str, content: bytes) -> str:
    """SHA-256 of a large file, git's SHA-1 of a small one."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def stand_in(
    cache: Path, repo: str, files: Mapping[str, bytes | Path], commit: str = COMMIT
) -> Path:
    """Writes `files` into a cache folder as huggingface_hub keeps them, and returns the snapshot.

    Files given by path are linked, not copied.
    """
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    (root / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        given = content if isinstance(content, Path) else None
        blob = root / "blobs" / etag(name, given.read_bytes() if given else bytes(content))
        if not blob.exists():
            os.link(given, blob) if given else blob.write_bytes(bytes(content))
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@dataclass
class Repo:
    """A repository of the server.

    token: what its files need: None for nothing. gated: they need it and terms accepted, and
    anyone may list them. served: the bytes that are sent where they are not those of `files`.
    cut: of a file, how many bytes are sent before the connection ends.
    """

    name: str
    files: Mapping[str, bytes]
    token: str | None = None
    gated: bool = False
    revisions: tuple[str, ...] = ("main",)
    commit: str = COMMIT
    served: Mapping[str, bytes] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """On a free port of 127.0.0.1; `requests` are the method and path of each, in order."""

    def __init__(self, repos: tuple[Repo, ...]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {repo.name: repo for repo in repos}
        self.requests: list[str] = []

    def environment(self, home: Path) -> dict[str, str]:
        """For a process whose hub this is, with its cache in `home`."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextlib.contextmanager
def serve(*repos: Repo) -> Iterator[Server]:
    server = Server(repos)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Refused(Exception):
    """A status and the X-Error-Code that goes with it."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        _, *parts = path.split("/")
        try:
            if parts[:2] == ["api", "models"]:
                self._info("/".join(parts[2:4]), parts[4:])
            else:
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        except Refused as refusal:
            status, code = refusal.args
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _info(self, name: str, rest: list[str]) -> None:
        repo = self._repo(name, open=True)
        self._check(repo, rest[1] if rest else "main")
        siblings = [{"rfilename": file} for file in repo.files]
        facts = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings}
        self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, open=False)
        self._check(repo, revision)
        if file not in repo.files:
            raise Refused(404, "EntryNotFound")
        content, sent = repo.files[file], repo.served.get(file, repo.files[file])
        headers = {"ETag": f'"{etag(file, content)}"', "X-Repo-Commit": repo.commit}
        if file.endswith(LARGE):
            linked = {"ETag": f'"{etag(file, content)}"', "Size": str(len(content))}
            headers |= {f"X-Linked-{key}": value for key, value in linked.items()}
        self._send(200, sent, headers, repo.cut.get(file))

    def _repo(self, name: str, *, open: bool) -> Repo:
        """The repository, if this request may see it; whether it is `open` to see its list."""
        repo = self.server.repos.get(name)
        given = self.headers.get("Authorization")
        if repo is None:
            raise Refused(404 if given else 401, "RepoNotFound")
        if repo.token is None or given == f"Bearer {repo.token}" or (open and repo.gated):
            return repo
        if given == "Bearer hf_invalid":
            raise Refused(401, "")
        raise Refused(403 if given else 401, "GatedRepo" if repo.gated else "RepoNotFound")

    def _check(self, repo: Repo, revision: str) -> None:
        if revision not in (*repo.revisions, repo.commit):
            raise Refused(404, "RevisionNotFound")

    def _send(
        self, status: int, content: bytes, headers: Mapping[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        self.close_connection = cut is not None
