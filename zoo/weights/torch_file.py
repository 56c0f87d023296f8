"""PyTorch's .pt, .pth and .bin, read without torch and without running a pickle.

Since 1.6 `torch.save` writes a zip archive:

    NAME/data.pkl      a pickle of the object; tensors in it point to storages by key
    NAME/data/KEY      the bytes of one storage
    NAME/byteorder     "little" or "big"; older files have none and are little-endian

A pickle is a program for a stack machine whose GLOBAL and REDUCE import and call anything. `Walk`
follows the same instructions over plain data and imports nothing: a name that is not in the tables
of this file ends the reading, and what may be called are the functions of CALLS. Archives
of older versions of torch, other pickles and compressed entries are refused.

The object is a dict of tensors, or holds one under exactly one of WRAPPERS; what stands beside that
one (optimizer, epoch) is not weights and is left alone. Plain numbers and texts between the tensors
(`step`) are skipped; anything else is refused by name.
"""

import math
import pickletools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from zoo.weights.convert import WeightsError
from zoo.weights.slots import AGAIN, INSTEAD, RANKS, Slot, Slots, checked, parsing
from zoo.weights.zip_file import Entry, entries

WRAPPERS = ("state_dict", "model", "model_state")
LONGEST = 16_000_000  # bytes of data.pkl: about 100 a tensor in a state dict
DTYPES = {
    f"torch {name}": name
    for name in (
        *("float16", "float32", "float64", "bfloat16", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}
STORAGES = {
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch CharStorage": "int8",
    "torch ShortStorage": "int16",
    "torch IntStorage": "int32",
    "torch LongStorage": "int64",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
    "torch ComplexFloatStorage": "complex64",
    "torch ComplexDoubleStorage": "complex128",
    "torch.storage UntypedStorage": "uint8",  # its size is in bytes; each tensor has its dtype
}


def slots(path: Path) -> Slots:
    """Raises WeightsError for what is damaged, of an old form, or more than tensors."""
    with parsing(path, "PyTorch zip file") as file:
        if file.read(2) != b"PK":
            raise WeightsError(
                f"{path} is no zip file: PyTorch before 1.6 wrote such pickles and tar files, "
                f"which run code when they are read; {INSTEAD}"
            )
        archive = entries(file, path)
        root, object = _unpickled(path, file, archive)
        tensors = _tensors(path, object).items()
        return checked(path, ((name, _slot(path, name, x, archive, root)) for name, x in tensors))


class Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


class Global(NamedTuple):
    """An imported name, `module name`, which stays a name."""

    name: str


def _unpickled(path: Path, file: BinaryIO, archive: Mapping[str, Entry]) -> tuple[str, Any]:
    """The folder of the archive in which everything lies, and the object of its data.pkl."""
    (root,) = (name.removesuffix("data.pkl") for name in archive if name.endswith("/data.pkl"))
    if order := archive.get(f"{root}byteorder"):
        file.seek(order.offset)
        if file.read(order.size) != b"little":
            raise WeightsError(f"{path} is of a big-endian machine; {INSTEAD}")
    pickled = archive[f"{root}data.pkl"]
    if pickled.size > LONGEST:
        raise WeightsError(f"{path}: data.pkl of {pickled.size} bytes is no state dict; {INSTEAD}")
    file.seek(pickled.offset)
    return root, Walk(path).run(file.read(pickled.size))


def _tensors(path: Path, object: Any) -> dict[str, Tensor]:
    if not isinstance(object, dict):
        raise WeightsError(f"{path} holds {_kind(object)}, not a dict of tensors; {INSTEAD}")
    wrapped = [key for key in WRAPPERS if isinstance(object.get(key), dict)]
    if len(wrapped) > 1:
        raise WeightsError(f"{path} holds weights under each of {wrapped}; save those you want")
    found = object[wrapped[0]] if wrapped else object
    odd = [
        f"{key!r} is {_kind(value)}"
        for key, value in found.items()
        if not isinstance(key, str) or not isinstance(value, Tensor | str | int | float | None)
    ]
    if odd:
        raise WeightsError(f"{path} holds more than tensors: {', '.join(odd[:10])}; {INSTEAD}")
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def _slot(path: Path, name: str, tensor: Tensor, archive: Mapping[str, Entry], root: str) -> Slot:
    """Raises WeightsError for a tensor that reaches out of its storage or repeats parts of it."""
    storage, size = tensor.storage, tensor.dtype.itemsize
    entry = archive.get(f"{root}data/{storage.key}")
    if entry is None or entry.size != storage.count * storage.dtype.itemsize:
        held = "missing" if entry is None else f"of {entry.size} bytes"
        raise WeightsError(
            f"{path}: storage {storage.key} of {name} should hold {storage.count} "
            f"{storage.dtype}, but is {held}; {AGAIN}"
        )
    contiguous = tensor.strides == _row_major(tensor.shape)
    strides = None if contiguous else tensor.strides
    start = entry.offset + tensor.offset * size
    slot = Slot(path, start, tensor.dtype, tensor.shape, strides)
    too_many = math.prod(slot.shape) * size > entry.size
    if too_many or slot.end > entry.offset + entry.size:
        raise WeightsError(f"{path}: {name} reaches out of its storage {storage.key}; {INSTEAD}")
    whole = contiguous and start == entry.offset and slot.end == entry.offset + entry.size
    return slot._replace(crc=entry.crc if whole else 0)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Global) else type(value).__name__


# What a pickle of tensors may call, as functions of its arguments.


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    """torch._utils._rebuild_tensor_v2"""
    return _typed(storage, offset, shape, strides, storage.dtype, metadata)


def _tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
    """torch._utils._rebuild_tensor_v3: dtypes that have no storage type of their own."""
    return _typed(storage, offset, shape, strides, np.dtype(DTYPES[dtype.name]), metadata)


def _typed(
    storage: Storage, offset: int, shape: Any, strides: Any, dtype: np.dtype, metadata: Any
) -> Tensor:
    if metadata:  # bits that say "conjugated" or "negated" of what is stored
        raise ValueError(f"a tensor with {metadata}, which is not what its bytes say")
    whole = all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides))
    if not (isinstance(storage, Storage) and whole and len(shape) == len(strides) <= RANKS):
        raise ValueError("a tensor without a storage, or with sizes that are none")
    return Tensor(storage, offset, tuple(shape), tuple(strides), dtype)


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_v3,
    "torch._utils _rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    "collections OrderedDict": lambda: {},
}
NAMES = CALLS.keys() | STORAGES.keys() | DTYPES.keys()


class Walk:
    """The stack machine of a pickle, without its doors to the outside.

    `pickletools.genops` cuts the bytes into instructions, each a row of STEPS: a method and its
    argument. What has no row (NEWOBJ, INST, OBJ, EXT, …) is refused by its name.
    """

    def __init__(self, path: Path):
        self.path = path
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each MARK
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                break
            if opcode.name not in STEPS:
                raise self.refused(f"the pickle instruction {opcode.name}")
            STEPS[opcode.name](self, argument)
        return self.stack.pop()

    def refused(self, what: str) -> WeightsError:
        return WeightsError(
            f"{self.path} holds {what[:200]}, and pickles are not run here; {INSTEAD}"
        )

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> tuple[Any, ...]:
        return tuple(self.stack.pop() for _ in range(count))[::-1]

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.below.pop()
        return found

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def items(self, flat: Sequence[Any]) -> None:
        keys, values = flat[::2], flat[1::2]
        if not all(isinstance(key, str | int) for key in keys):  # others hash what they nest
            raise ValueError("a key that is neither text nor number")
        self.stack[-1].update(zip(keys, values, strict=True))

    def name(self, name: str) -> None:
        if name not in NAMES:
            raise self.refused(name.replace(" ", "."))
        self.push(Global(name))

    def call(self, _: None) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Global) or function.name not in CALLS:
            raise self.refused(f"a call of {_kind(function)}")
        self.push(CALLS[function.name](*arguments))

    def attributes(self, _: None) -> None:
        """What torch hangs on a dict (`_metadata`: versions of the modules) is dropped."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise self.refused(f"attributes of {_kind(self.stack[-1])}")

    def storage(self, _: None) -> None:
        _, kind, key, _, count = self.stack.pop()
        self.push(Storage(str(key), np.dtype(STORAGES[kind.name]), count))


VALUES = "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
STEPS: dict[str, Callable[[Walk, Any], None]] = {
    **dict.fromkeys(VALUES, Walk.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda walk, _: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), Walk.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda walk, index: walk.push(walk.memo[index])),
    "NONE": lambda walk, _: walk.push(None),
    "NEWTRUE": lambda walk, _: walk.push(True),
    "NEWFALSE": lambda walk, _: walk.push(False),
    "EMPTY_TUPLE": lambda walk, _: walk.push(()),
    "EMPTY_LIST": lambda walk, _: walk.push([]),
    "EMPTY_DICT": lambda walk, _: walk.push({}),
    "TUPLE1": lambda walk, _: walk.push(walk.pop(1)),
    "TUPLE2": lambda walk, _: walk.push(walk.pop(2)),
    "TUPLE3": lambda walk, _: walk.push(walk.pop(3)),
    "TUPLE": lambda walk, _: walk.push(tuple(walk.since_mark())),
    "MARK": Walk.mark,
    "APPEND": lambda walk, _: walk.stack[-2].append(walk.stack.pop()),
    "APPENDS": lambda walk, _: (found := walk.since_mark(), walk.stack[-1].extend(found))[1],
    "SETITEM": lambda walk, _: walk.items(walk.pop(2)),
    "SETITEMS": lambda walk, _: walk.items(walk.since_mark()),
    "GLOBAL": Walk.name,
    "STACK_GLOBAL": lambda walk, _: walk.name(" ".join(walk.pop(2))),
    "REDUCE": Walk.call,
    "BUILD": Walk.attributes,
    "BINPERSID": Walk.storage,
}
