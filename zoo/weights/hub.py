"""From a source as a user writes it to a local path; all network access of the zoo is here."""

import re
from pathlib import Path

from zoo.weights.convert import WeightsError


def fetch(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """A local file or directory as it is, or the snapshot of a Hugging Face repository
    ("microsoft/resnet-50") from its cache or the network; `HF_HUB_OFFLINE=1` is respected.

    Raises WeightsError that says what was looked for, and how to pass a local path instead.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise WeightsError(
            f"{source} is neither a path that exists nor a hub id such as microsoft/resnet-50"
        )
    import huggingface_hub as hub  # 0.3 s: only when something is fetched

    try:
        snapshot = hub.snapshot_download(
            str(source),
            revision=revision,
            token=token,
            allow_patterns=["*.json", "*.safetensors"],
        )
    except Exception as error:  # the library's errors have no common base below Exception
        raise WeightsError(
            f"could not fetch {source} (revision {revision or 'main'}): {error}\n"
            "Without a network, pass the path of a directory that holds its config.json and "
            "model.safetensors."
        ) from error
    return Path(snapshot)
