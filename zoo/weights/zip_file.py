"""Zip archives whose entries are stored as they are: PyTorch's and NumPy's."""

import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from zoo.weights.convert import WeightsError
from zoo.weights.slots import INSTEAD

LOCAL = 30  # bytes of an entry's own header before its name (zip APPNOTE, 4.3.7)
ENCRYPTED = 1  # in an entry's flags


class Entry(NamedTuple):
    """Where an entry's bytes lie. crc: their CRC-32, 0 where the writer did not compute it."""

    offset: int
    size: int
    crc: int


def entries(file: BinaryIO, path: Path) -> dict[str, Entry]:
    """Raises WeightsError for compressed entries: so no small file unpacks to a huge one."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    if len({info.filename for info in infos}) < len(infos):
        raise WeightsError(f"{path}: two entries of one name; {INSTEAD}")
    return {info.filename: _entry(file, info, path) for info in infos}


def _entry(file: BinaryIO, info: zipfile.ZipInfo, path: Path) -> Entry:
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED:
        raise WeightsError(
            f"{path}: entry {info.filename} is compressed or encrypted; write it with torch.save "
            f"or np.savez, which store bytes as they are, or {INSTEAD}"
        )
    if info.file_size != info.compress_size:
        raise ValueError(f"entry {info.filename} has two sizes")
    file.seek(info.header_offset)
    header = file.read(LOCAL)
    if not header.startswith(b"PK\3\4"):
        raise ValueError(f"no entry {info.filename} at byte {info.header_offset}")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return Entry(info.header_offset + LOCAL + names, info.file_size, info.CRC)
