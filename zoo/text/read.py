"""Small files of text: what is wrong with one is said with its name."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.text.errors import TokenizerError


def utf8(path: Path) -> str:
    """The text of a file, line ends as they are; of one that ends in .gz, what is packed in it.

    Raises TokenizerError for a file that is not there and one that is not UTF-8."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            "convert it (iconv -t UTF-8)"
        ) from error
    except (OSError, EOFError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error


def json_object(path: Path) -> dict[str, Any]:
    """Raises TokenizerError for a file that holds none."""
    try:
        facts = json.loads(utf8(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path} is damaged JSON ({error}); fetch it again") from error
    if not isinstance(facts, dict):
        raise TokenizerError(f"{path} holds a JSON {type(facts).__name__}, not an object")
    return facts


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with the contents of a file leaves as a TokenizerError that names it."""
    try:
        yield
    except TokenizerError as error:
        raise error if str(path) in str(error) else TokenizerError(f"{path}: {error}") from error
    except Exception as error:  # the tokenizers library has no error of its own below Exception
        raise TokenizerError(
            f"{path} holds no tokenizer that can be read ({type(error).__name__}: "
            f"{str(error)[:200]}); fetch it again"
        ) from error
