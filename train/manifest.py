"""The seal of a checkpoint: a manifest with the size and SHA-256 of every file.

Neither Orbax nor safetensors notices a flipped bit; the manifest does, and its own hash covers it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or does not fit the run; the message says what to do."""


class CorruptCheckpoint(CheckpointError):
    """A file of a sealed checkpoint is not what was sealed; the message names it."""


def seal(directory: Path, record: Mapping[str, Any]) -> None:
    """Writes the manifest: `record` and the size and hash of every file below `directory`.

    Files reach the disk before the manifest does, so that it holds after a power cut too.
    """
    contents = sorted(directory.rglob("*"))
    for path in contents:
        sync(path)
    files = {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hash_of(path),
        }
        for path in contents
        if path.is_file()
    }
    part = directory / f"{MANIFEST}.part"
    part.write_bytes(_render({**record, "files": files}))
    sync(part)
    part.replace(directory / MANIFEST)
    sync(directory)


def verify(directory: Path) -> None:
    """Raises CorruptCheckpoint naming the first file that is not as it was sealed."""
    for name, sealed in read_manifest(directory)["files"].items():
        path = directory / name
        try:
            size = path.stat().st_size
            if size != sealed["bytes"]:
                raise CorruptCheckpoint(f"{path} has {size} bytes, sealed were {sealed['bytes']}")
            if hash_of(path) != sealed["sha256"]:
                raise CorruptCheckpoint(f"{path} has other contents than were sealed (SHA-256)")
        except OSError as error:
            raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error


def read_manifest(directory: Path) -> dict[str, Any]:
    """The record that `seal` wrote; raises CorruptCheckpoint unless it is that, byte for byte."""
    path = directory / MANIFEST
    try:
        contents = path.read_bytes()
        record = json.loads(contents)["checkpoint"]
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{path} is not a manifest: {error}") from error
    if contents != _render(record):
        raise CorruptCheckpoint(f"{path} has other contents than were sealed (SHA-256)")
    return record


def _render(record: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest; the hash over its own record makes them the only right ones."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return json.dumps({"checkpoint": record, "sha256": digest}, sort_keys=True, indent=1).encode()


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Returns when a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
