"""Files of tensors: every format is read as its own library reads it; what is damaged is refused by
name; nothing in a file is ever run.

tests/golden/torch_* were written by torch 2.13.0 with

    import argparse, torch
    from collections import OrderedDict
    x = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(plain=x, tied=x, part=x[1:3, 2:5], transposed=x.T, every_other=x[::2, ::3])
    state |= {str(d).removeprefix("torch."): x.to(d) for d in (torch.bfloat16, torch.float16,
              torch.float64, torch.int64, torch.uint8, torch.bool, torch.uint16,
              torch.float8_e4m3fn)}
    state |= dict(scalar=torch.tensor(7), empty=torch.zeros(0, 3), parameter=torch.nn.Parameter(x))
    torch.save(state | dict(step=3, note="text"), "torch_state.pt")
    module = torch.nn.Linear(2, 3)
    torch.nn.init.ones_(module.weight), torch.nn.init.zeros_(module.bias)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1).state_dict()
    torch.save({"epoch": 3, "optimizer": optimizer, "model": module.state_dict()},
               "torch_wrapped.pth", pickle_protocol=4)
    torch.save({"x": x, "args": argparse.Namespace(lr=0.1)}, "torch_namespace.pth")
    torch.save({"x": x}, "torch_legacy.pth", _use_new_zipfile_serialization=False)
"""

import errno
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.weights import flax_file, formats
from zoo.weights.convert import WeightsError

GOLDEN = Path(__file__).parent / "golden"
X = np.arange(24, dtype=np.float32).reshape(4, 6)
FILES = ("model.safetensors", "model.npz", "flax_model.msgpack")
NUMPY = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64"
FLOAT8 = "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
DTYPES = {  # that a file holds
    "model.safetensors": [*NUMPY.split(), "bfloat16", *FLOAT8.split()],
    "model.npz": [*NUMPY.split(), "complex128", "bfloat16"],
    "flax_model.msgpack": [*NUMPY.split(), "complex128", "bfloat16", *FLOAT8.split(), "int4"],
}


def assert_same(found, expected):
    assert found.keys() == expected.keys() == found.specs.keys()
    for name, x in expected.items():
        array, spec = found[name], found.specs[name]
        assert array.shape == spec.shape == np.shape(x), name
        assert array.dtype == spec.dtype == x.dtype, name
        assert array.tobytes() == np.asarray(x).tobytes(), name


def filled(shape, dtype, seed=0):
    """Random bytes, as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    content = np.random.default_rng(seed).bytes(size)
    if dtype == "bool":
        content = bytes(byte & 1 for byte in content)
    return np.frombuffer(content, dtype).reshape(shape)


# There and back.


@pytest.mark.parametrize("file", FILES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_bitwise(file, data, tmp_path_factory):
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
    names = st.text("abc.", min_size=1, max_size=8).map(lambda name: f"{name}/{name}.é file")
    kinds = st.tuples(shapes, st.sampled_from(DTYPES[file]), st.integers(0, 99))
    drawn = data.draw(st.dictionaries(names, kinds, min_size=1, max_size=6))
    tensors = {name: filled(*kind) for name, kind in drawn.items()}
    directory = tmp_path_factory.mktemp("out")
    limit = data.draw(st.integers(1, 400))
    formats.write(directory, tensors, {"card.json": {"a": 1}}, file, shard_bytes=limit)
    assert_same(formats.read(directory), tensors)
    assert json.loads((directory / "card.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("file", FILES)
def test_the_formats_own_library_reads_what_is_written(file, tmp_path):
    tensors = {"a": filled((3, 2), "float32"), "b": filled((), "int64"), "c": filled((0,), "bool")}
    formats.write(tmp_path, tensors, {}, file)
    content = (tmp_path / file).read_bytes()
    read = {
        "model.safetensors": safetensors.numpy.load,
        "model.npz": lambda content: np.load(io.BytesIO(content)),
        "flax_model.msgpack": flax.serialization.msgpack_restore,
    }[file](content)
    assert_same(formats.read(tmp_path), {name: np.asarray(read[name]) for name in tensors})
    if file == "model.safetensors":
        with safetensors.safe_open(tmp_path / file, "numpy") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    "file, dtype",
    [(file, dtype) for file in FILES for dtype in ("int4", *FLOAT8.split(), "O", "U3")],
)
def test_a_dtype_is_kept_or_refused_by_name(file, dtype, tmp_path):
    tensor = np.zeros(3, dtype)
    if dtype in DTYPES[file]:
        formats.write(tmp_path, {"a": tensor}, {}, file)
        return assert_same(formats.read(tmp_path), {"a": tensor})
    with pytest.raises(WeightsError, match=rf"do not hold the dtype of a \({tensor.dtype}\)"):
        formats.write(tmp_path, {"a": tensor}, {}, file)
    assert not list(tmp_path.iterdir())


def test_arrays_of_jax_are_written_too(tmp_path):
    formats.write(tmp_path, {"a": jnp.arange(3, dtype=jnp.bfloat16)}, {})
    assert_same(formats.read(tmp_path), {"a": np.arange(3, dtype=jnp.bfloat16)})


def test_a_read_array_is_contiguous_aligned_and_its_own(tmp_path):
    formats.write(tmp_path, {"odd": np.ones(3, np.int8), "x": X}, {})
    tensors = formats.read(tmp_path)
    first, second = tensors["x"], tensors["x"]
    assert first.flags.c_contiguous and first.flags.writeable
    assert jax.device_put(first).unsafe_buffer_pointer() == first.ctypes.data  # no copy on CPU
    assert not np.shares_memory(first, second)


def test_a_flax_tree_is_read_by_its_joined_keys(tmp_path, monkeypatch):
    tree = {
        "a": {"b": {"kernel": X}, "c": {}},
        "scale": np.float32(2),
        "bf16": X.astype("bfloat16"),
    }
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)  # bytes; in earnest 1 GiB
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert b"__msgpack_chunked_array__" in (tmp_path / "flax_model.msgpack").read_bytes()
    expected = {"a/b/kernel": X, "scale": np.asarray(tree["scale"]), "bf16": tree["bf16"]}
    assert_same(formats.read(tmp_path), expected)


def test_numpys_npz_is_read_with_fortran_order_and_raw_bfloat16(tmp_path):
    arrays = {"params/x": X.T, "file": X.astype("bfloat16"), "scalar": np.float64(3)}
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asarray(array))
    assert np.load(tmp_path / "w.npz")["file"].dtype == np.dtype("V2")
    assert_same(formats.read(tmp_path), {name: np.asarray(x) for name, x in arrays.items()})


def test_a_file_of_torch_is_read_with_strides_offsets_and_shared_storages():
    dtypes = "bfloat16 float16 float64 int64 uint8 bool uint16 float8_e4m3fn".split()
    expected = {"plain": X, "tied": X, "part": X[1:3, 2:5], "transposed": X.T, "parameter": X}
    expected |= {"every_other": X[::2, ::3]} | {dtype: X.astype(dtype) for dtype in dtypes}
    expected |= {"scalar": np.array(7), "empty": np.zeros((0, 3), np.float32)}
    found = formats.read(GOLDEN / "torch_state.pt")
    assert_same(found, expected)
    assert all(found[name].flags.c_contiguous for name in found)


def test_weights_under_a_known_key_are_unwrapped():
    found = formats.read(GOLDEN / "torch_wrapped.pth")
    assert_same(found, {"weight": np.ones((3, 2), "float32"), "bias": np.zeros(3, "float32")})


# Reading is lean.


def peak_memory():
    """Bytes that this process had resident at most; 0 where the system does not say.

    Not `ru_maxrss`: a process inherits that from the one that starts it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else ["VmHWM: 0 kB"]
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


MEMORY = """
import sys
from pathlib import Path
from tests.test_formats import peak_memory as peak
from zoo.weights import formats
tensors = formats.read(Path(sys.argv[1]))
tensors["t0"].sum()
before = peak()
print(sum(int(tensors[name].view("uint8")[0, 0]) for name in tensors), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak counter")
@pytest.mark.parametrize("suffix", formats.READERS)
def test_reading_one_tensor_after_the_other_holds_one(suffix, tmp_path):
    """Neither the file's pages nor the tensors before stay in memory."""
    count, shape = 24, (1024, 512)  # 48 MB
    tensors = {f"t{i}": np.full(shape, i + 1, np.int32) for i in range(count)}
    path = tmp_path / f"w{suffix}"
    if formats.READERS[suffix] is formats.torch_file.slots:
        state = {name: (name, x.size, 0, x.shape, (shape[1], 1)) for name, x in tensors.items()}
        write_torch(path, pickled(state, "IntStorage"), tensors)
    else:
        file = next(file for file in FILES if file.endswith(suffix))
        formats.write(tmp_path, tensors, {}, file)
        (tmp_path / file).rename(path)
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    total, growth = map(int, done.stdout.split())
    assert total == sum(range(1, count + 1))
    assert growth < 8e6


# What is in a directory.


def test_a_directory_is_read_in_the_order_of_the_documentation(tmp_path):
    """Each file, once it is there, is preferred to those that came before it."""
    lone = {"w.npz": "model.npz", "w.safetensors": "model.safetensors"}
    named = {name: name for name in ("model.npz", "flax_model.msgpack", "model.safetensors")}
    for i, (name, file) in enumerate((lone | named).items()):
        formats.write(tmp_path / "one", {"x": X + i}, {}, file)
        os.replace(tmp_path / "one" / file, tmp_path / name)
        assert_same(formats.read(tmp_path), {"x": X + i})


def test_several_lone_files_are_not_chosen_between(tmp_path):
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x=X)
    with pytest.raises(WeightsError, match=r"holds a\.npz, b\.npz: pass the path of one"):
        formats.read(tmp_path)


def test_hidden_files_are_not_weights(tmp_path):
    np.savez(tmp_path / "w.npz", x=X)
    (tmp_path / "._w.npz").write_bytes(b"what a file manager keeps beside a file")
    assert_same(formats.read(tmp_path), {"x": X})


@pytest.mark.parametrize("name", ["w.txt", "w", "w.h5"])
def test_a_file_of_another_kind_is_refused_with_those_that_are_read(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"read from \.safetensors, \.npz, \.pt"):
        formats.read(tmp_path / name)
    with pytest.raises(WeightsError, match="neither model.safetensors nor"):
        formats.read(tmp_path)


# Shards.


@pytest.fixture
def sharded(tmp_path):
    formats.write(tmp_path, {"a": X, "b": X + 1, "c": X + 2}, {}, shard_bytes=2 * X.nbytes)
    return tmp_path


def test_shards_are_named_and_indexed_as_transformers_names_them(sharded):
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": first, "b": first, "c": second}
    assert index["metadata"] == {"total_size": 3 * X.nbytes}
    assert safetensors.numpy.load_file(sharded / first).keys() == {"a", "b"}
    assert_same(formats.read(sharded), {"a": X, "b": X + 1, "c": X + 2})
    assert_same(formats.read(sharded / formats.INDEX), {"a": X, "b": X + 1, "c": X + 2})


def test_shards_of_torch_are_read_as_one(tmp_path):
    shards = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, file in shards.items():
        state = {name: ("0", 24, 0, (4, 6), (6, 1))}
        write_torch(tmp_path / file, pickled(state), {"0": X if name == "a" else X + 1})
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    assert_same(formats.read(tmp_path), {"a": X, "b": X + 1})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a": "model-00003-of-00003.safetensors"}, r"missing: \['model-00003-of-00003"),
        ({"d": "model-00001-of-00002.safetensors"}, r"not in their shards: \['d \(model-00001"),
        ({"a": "model-00002-of-00002.safetensors"}, r"not in their shards: \['a \(model-00002"),
        ({"a": "../model.safetensors"}, "no file of weights beside it"),
        ({"a": "/etc/passwd"}, "no file of weights beside it"),
        ({"a": "sub/model.safetensors"}, "no file of weights beside it"),
        ({"a": ".."}, "no file of weights beside it"),
        ({"a": "card.json"}, "no file of weights beside it"),
        ({"a": "\0.safetensors"}, "missing"),
        ({"a": 3}, "which file holds each tensor"),
        ([], "which file holds each tensor"),
    ],
)
def test_an_index_that_its_shards_do_not_agree_with_is_refused(change, message, sharded):
    index = json.loads((sharded / formats.INDEX).read_text())
    index["weight_map"] = index["weight_map"] | change if isinstance(change, dict) else change
    (sharded / formats.INDEX).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=rf"{formats.INDEX}.* {message}"):
        formats.read(sharded)


def test_a_damaged_shard_is_named(sharded):
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=rf"{shard.name}.*fetch the file again"):
        formats.read(sharded)


def test_of_two_shards_with_one_name_the_indexs_counts(sharded):
    first, second = sorted(sharded.glob("*-of-*"))
    safetensors.numpy.save_file({"c": X + 2, "a": X - 1}, second)
    assert_same(formats.read(sharded), {"a": X, "b": X + 1, "c": X + 2})


# Writing.


def test_a_text_that_is_none_is_removed(tmp_path):
    formats.write(tmp_path, {"x": X}, {"card.json": {}, "config.json": {}})
    formats.write(tmp_path, {"x": X}, {"card.json": {}, "config.json": None, "never.json": None})
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "model.safetensors"}


@pytest.mark.parametrize("second", [*FILES, "shards"])
@pytest.mark.parametrize("first", [*FILES, "shards"])
def test_what_was_written_last_is_what_is_read(first, second, tmp_path):
    for i, file in enumerate((first, second)):
        limit = 1 if file == "shards" else 5e9
        content = {f"{file}{n}": X + i for n in "ab"[: 2 - i]} | {"more": X}
        formats.write(tmp_path, content, {}, FILES[0] if limit == 1 else file, limit)
        assert_same(formats.read(tmp_path), content)
    shards = {path.name for path in tmp_path.glob("*-of-*")}
    assert len(shards) == (2 if second == "shards" else 0)


def test_what_is_not_weights_of_ours_stays(tmp_path):
    kept = ["notes.txt", "ema.safetensors", "pytorch_model.bin", "model-best.safetensors"]
    for name in kept:
        (tmp_path / name).write_bytes(b"mine")
    formats.write(tmp_path, {"x": X}, {})
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "model.safetensors"}


@pytest.mark.parametrize("file", FILES)
def test_a_failed_write_leaves_the_directory_as_it_was(file, tmp_path, monkeypatch):
    formats.write(tmp_path, {"x": X}, {"card.json": {"a": 1}, "config.json": {}})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(formats, "save_file", full)
    monkeypatch.setattr(flax_file, "msgpack_serialize", full)
    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        texts = {"card.json": {"a": 2}, "config.json": None}
        formats.write(tmp_path, {"y": X, "z": X}, texts, file, shard_bytes=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_that_fit_into_no_tree_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="a/b/c and a do not fit into one tree"):
        formats.write(tmp_path, {"a": X, "a/b/c": X}, {}, "flax_model.msgpack")


# Damage: safetensors.


def safetensors_bytes(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin, end, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


TWICE = b'{"a":%s,"a":%s}'
DAMAGED = {
    "empty": b"",
    "8 bytes": struct.pack("<Q", 64),
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": safetensors_bytes(b"{"),
    "a list": safetensors_bytes(b"[]"),
    "deep": safetensors_bytes(b'{"a":' * 10_000),
    "overlap": safetensors_bytes({"a": tensor(0, 4), "b": tensor(0, 4)}),
    "gap": safetensors_bytes({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "behind the end": safetensors_bytes({"a": tensor(0, 16, shape=(4,))}),
    "not as long as its shape": safetensors_bytes({"a": tensor(0, 8)}),
    "negative": safetensors_bytes({"a": tensor(-8, 0)}),
    "overflow": safetensors_bytes({"a": tensor(0, 8, shape=(2**62, 2**62))}),
    "empty, but too large": safetensors_bytes({"a": tensor(0, 0, shape=(2**62, 0))}, b""),
    "65 axes": safetensors_bytes({"a": tensor(0, 8, shape=(1,) * 64 + (2,))}),
    "unknown dtype": safetensors_bytes({"a": tensor(0, 8, dtype="F31")}),
    "name twice": safetensors_bytes(
        TWICE
        % (
            json.dumps(tensor(0, 0, shape=(0,))).encode(),
            json.dumps(tensor(0, 8, shape=(2,))).encode(),
        )
    ),
    "trailing bytes": safetensors_bytes({"a": tensor(0, 4)}),
    "HTML": b"<!DOCTYPE html><html>404</html>",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_safetensors_file_is_refused_by_name(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors.*fetch the file again"):
        formats.read(tmp_path)


def test_a_dtype_that_jax_has_not_is_refused_by_name(tmp_path):
    four_bits = safetensors_bytes({"a": tensor(0, 8, dtype="F4", shape=(16,))})
    (tmp_path / "model.safetensors").write_bytes(four_bits)
    with pytest.raises(WeightsError, match="a is of dtype F4, which JAX has not"):
        formats.read(tmp_path)


def test_a_file_that_changes_under_the_reader_is_refused(tmp_path):
    formats.write(tmp_path, {"x": X}, {})
    tensors = formats.read(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"model\.safetensors: damaged.*fetch the file again"):
        tensors["x"]


# Damage: zip files.


def rezipped(path, source, *, compress=zipfile.ZIP_STORED, **changes):
    """A copy whose entries of these last names (`_` for a dot) hold something else; None: none."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compress) as new:
        for info in old.infolist():
            last = info.filename.rpartition("/")[2].replace(".", "_")
            content = changes.get(last, old.read(info.filename))
            if content is not None:
                new.writestr(info.filename, content)
    return path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"byteorder": b"big"}, "big-endian"),
        ({"data_pkl": None}, "no PyTorch zip file"),
        ({"data_pkl": b""}, "no PyTorch zip file"),
        ({"data_pkl": bytes(17_000_000)}, "data.pkl of 17000000 bytes is no state dict"),
        ({"0": None}, "storage 0 of .* is missing"),
        ({"0": bytes(4)}, "should hold 24 float32, but is of 4 bytes"),
        ({"compress": zipfile.ZIP_DEFLATED}, "data.pkl is compressed"),
    ],
)
def test_a_damaged_file_of_torch_is_refused_by_what_is_wrong(changes, message, tmp_path):
    path = rezipped(tmp_path / "w.pt", GOLDEN / "torch_state.pt", **changes)
    with pytest.raises(WeightsError, match=rf"w\.pt.*{message}"):
        formats.read(path)


@pytest.mark.parametrize("source", ["torch_state.pt", "w.npz"])
def test_a_flipped_bit_in_a_zip_file_is_caught_by_its_checksum(source, tmp_path):
    np.savez(tmp_path / "w.npz", plain=X)
    source = tmp_path / source if source == "w.npz" else GOLDEN / source
    content = bytearray(source.read_bytes())
    content[content.index(X.tobytes()) + 5] ^= 1
    path = tmp_path / f"flipped{source.suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{path.name}: damaged at byte"):
        formats.read(path)["plain"]


@pytest.mark.parametrize("save", [np.savez_compressed])
def test_a_compressed_npz_is_refused_with_the_way_out(save, tmp_path):
    save(tmp_path / "w.npz", x=np.zeros(1000))
    with pytest.raises(WeightsError, match=r"w\.npz: entry x\.npy is compressed.*np\.savez"):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    "signature, offset, message",
    [
        (b"PK\1\2", 20, "has two sizes"),  # of the directory: the compressed size
        (b"PK\3\4", 0, "no entry x.npy at byte 0"),
    ],
)
def test_a_zip_directory_that_its_entries_do_not_agree_with_is_refused(
    signature, offset, message, tmp_path
):
    np.savez(tmp_path / "w.npz", x=X)
    content = bytearray((tmp_path / "w.npz").read_bytes())
    content[content.index(signature) + offset] ^= 1
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\.npz.*{message}"):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array([{}]), "x.npy holds object"),
        (np.array(["text"]), "x.npy holds <U4"),
        (np.zeros(2, "i4,f4"), "x.npy holds"),
        (np.zeros(2, ">f4"), "x.npy is big-endian"),
    ],
)
def test_an_npz_entry_that_is_no_array_of_numbers_is_refused(array, message, tmp_path):
    np.savez(tmp_path / "w.npz", x=array, allow_pickle=True)
    with pytest.raises(WeightsError, match=rf"w\.npz: {message}.*safetensors"):
        formats.read(tmp_path)


@pytest.mark.parametrize("shape", ["(4, 7)", "(4, 5)"])
def test_an_npz_entry_that_is_not_as_long_as_its_shape_is_refused(shape, tmp_path):
    np.savez(tmp_path / "w.npz", x=X)
    content = (tmp_path / "w.npz").read_bytes()
    (tmp_path / "w.npz").write_bytes(content.replace(b"(4, 6)", shape.encode()))
    with pytest.raises(WeightsError, match=r"w\.npz.*x\.npy is not as long as its shape"):
        formats.read(tmp_path)


@pytest.mark.parametrize("names", [("x.npy", "x.npy"), ("x.npy", "x")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_a_name_twice_is_refused(names, tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for name in names:
            with archive.open(name, "w") as entry:
                np.lib.format.write_array(entry, X)
    with pytest.raises(WeightsError, match=r"w\.npz.*(of one name|twice)"):
        formats.read(tmp_path)


# Damage: msgpack.

DEEP = b"\x81\xa1a" * 10_000 + b"\xc0"
ARRAY = b"\xc7\x15\x01\x93\x91\x02\xa7float32\xc4\x08" + bytes(8)  # two floats
OBJECT = b"\xc7\x14\x01\x93\x91\x01\xa6object\xc4\x08" + bytes(8)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it ends too early"),
        (b"\x81\xa1a" + ARRAY[:-1], "a ends behind the file"),
        (b"\x81\xa1a" + ARRAY + b"x", "not one map"),
        (b"\x82\xa1a" + ARRAY, "it ends too early"),
        (b"\x82" + (b"\xa1a" + ARRAY) * 2, "a is there twice"),
        (b"\x82\xa3a/b" + ARRAY + b"\xa1a\x81\xa1b" + ARRAY, "a/b is there twice"),
        (b"\x81\x01" + ARRAY, "a value of another type"),
        (b"\x81\xa1a" + ARRAY.replace(b"\x91\x02", b"\x91\x03"), r"float32 \(3,\) in 8 bytes"),
        (b"\x81\xa1a" + ARRAY.replace(b"float32", b"object0"), "TypeError"),
        (b"\x81\xa1a" + OBJECT, r"an array of object \(1,\) in 8 bytes"),
        (b"\x81\xa1a" + ARRAY.replace(b"\xc7\x15\x01", b"\xc7\x15\x07"), "no array"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff" + ARRAY[2:], "float32"),
        (b"\xdf\xff\xff\xff\xff\xa1a" + ARRAY, "it ends too early"),
        (b"\x81\xdb\xff\xff\xff\xff", "it ends too early"),
        (b"\x81\xa1a\x92\x01\x02", "a is neither a map nor an array"),
        (b"\x81\xa4step\x05", "step is a number, not an array"),
        (b"\x81\xa1a\xc0", "a is neither a map nor an array"),
        (b"\x81\xa1a\xa1b", "a is neither a map nor an array"),
        (DEEP, "nests deeper than 64 levels"),
        (b"\x90", "neither a map"),
        (b"\x81\xb9__msgpack_chunked_array__\xc3", "KeyError: 'shape'"),
    ],
)
def test_a_msgpack_file_outside_the_grammar_is_refused(content, message, tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"flax_model\.msgpack.*{message}"):
        formats.read(tmp_path)


def test_chunks_that_do_not_fill_their_array_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    content = flax.serialization.msgpack_serialize({"a": X})
    cut = content.replace(b"\xa5shape\x82\xa10\x04", b"\xa5shape\x82\xa10\x05")
    assert cut != content
    (tmp_path / "flax_model.msgpack").write_bytes(cut)
    with pytest.raises(WeightsError, match="chunks do not fill it"):
        formats.read(tmp_path)


# Pickles.


def pushed(value) -> bytes:
    """The instructions that push whole numbers, texts, tuples and dicts."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, dict):
        items = b"".join(pushed(key) + pushed(item) for key, item in value.items())
        return b"}(" + items + b"u"
    return b"(" + b"".join(map(pushed, value)) + b"t"


def rebuilt(key, count, offset, shape, strides, storage="FloatStorage") -> bytes:
    handle = ("storage", f"ctorch\n{storage}\n".encode(), key, "cpu", count)
    arguments = (
        pushed(handle) + b"Q",
        offset,
        shape,
        strides,
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + pushed(arguments) + b"R"


def pickled(state, storage="FloatStorage") -> bytes:
    """data.pkl of tensors, each (storage key, its elements, offset, shape, strides)."""
    return b"\x80\x02" + pushed({k: rebuilt(*x, storage=storage) for k, x in state.items()}) + b"."


def write_torch(path, data_pkl, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", data_pkl)
        for key, array in storages.items():
            archive.writestr(f"w/data/{key}", array.tobytes())
    return path


def test_the_hand_made_file_of_torch_is_read(tmp_path):
    """Or the refusals below would prove nothing."""
    content = pickled({"x": ("0", 24, 2, (3, 2), (6, 1))})
    path = write_torch(tmp_path / "w.pt", content, {"0": X})
    assert_same(formats.read(path), {"x": X[:3, 2:4]})


@pytest.mark.parametrize(
    "tensor",
    [
        ("0", 24, 0, (25,), (1,)),  # longer than the storage
        ("0", 24, 1, (4, 6), (6, 1)),  # ends behind it
        ("0", 24, -1, (4,), (1,)),
        ("0", 24, 23, (24,), (-1,)),
        ("0", 24, 0, (2**40,), (0,)),  # 4 TB of one element
        ("0", 24, 0, (2**62, 2**62), (1, 1)),
        ("0", 24, 0, (2**62, 0), (1, 1)),  # NumPy counts it as too large
        ("0", 24, 2**62, (1,), (1,)),
        ("0", 24, 0, (4, 6), (6,)),
        ("0", 24, 0, (1,) * 33, (1,) * 33),
        ("0", 24, 0, ("a",), (1,)),
        ("0", 23, 0, (4,), (1,)),
        ("1", 24, 0, (4,), (1,)),
        ("../../0", 24, 0, (4,), (1,)),
    ],
)
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(tensor, tmp_path):
    path = write_torch(tmp_path / "w.pt", pickled({"x": tensor}), {"0": X})
    with pytest.raises(WeightsError, match=r"w\.pt.*safetensors|w\.pt.*fetch the file again"):
        formats.read(path)


ORDERED = b"ccollections\nOrderedDict\n"
NESTED = b")" + b"\x85" * 100_000  # a tuple in a tuple in …
HOSTILE = {
    "function": (b"cos\nsystem\nX\1\0\0\0a\x85R.", "holds os.system"),
    "builtin": (b"cbuiltins\neval\nX\1\0\0\0a\x85R.", "holds builtins.eval"),
    "torch": (b"ctorch.storage\n_load_from_bytes\n.", "holds torch.storage._load_from_bytes"),
    "stack global": (b"X\2\0\0\0osX\6\0\0\0system\x93)R.", "holds os.system"),
    "instance": (b"(X\1\0\0\0aios\nsystem\n.", "instruction INST"),
    "object": (b"(X\1\0\0\0ao.", "instruction OBJ"),
    "new object": (ORDERED + b")\x81.", "instruction NEWOBJ"),
    "extension": (b"\x82\1.", "instruction EXT1"),
    "call of a storage": (b"ctorch\nFloatStorage\n)R.", "a call of torch FloatStorage"),
    "call of a text": (b"X\1\0\0\0a)R.", "a call of str"),
    "attributes of a function": (b"ctorch._utils\n_rebuild_tensor_v2\n}b.", "attributes of torch"),
    "attributes of a class": (ORDERED + b"}b.", "attributes of collections OrderedDict"),
    "filled class": (ORDERED + b"(X\1\0\0\0aK\1tR.", "TypeError"),
    "nested key": (b"}" + NESTED + b"K\1s.", "neither text nor number"),
    "nested value": (b"}X\1\0\0\0a" + NESTED + b"s.", "'a' is tuple"),
    "list": (b"].", "holds list, not a dict"),
    "no tensor": (b"}X\1\0\0\0a]s.", "'a' is list"),
    "number as a key": (b"}K\1]s.", "1 is list"),
    "number as a key of a number": (b"}K\1K\2s.", "1 is int"),
    "two wrappers": (b"}(X\5\0\0\0model}X\n\0\0\0state_dict}u.", "under each of"),
    "huge number": (b"\x8b\xff\xff\xff\x7f.", "no PyTorch zip file"),
    "huge text": (b"\x8d" + b"\xff" * 8 + b".", "no PyTorch zip file"),
    "long decimal": (b"L" + b"9" * 100_000 + b"L\n.", "no PyTorch zip file"),
    "empty stack": (b"R.", "no PyTorch zip file"),
    "no stop": (b"}", "no PyTorch zip file"),
    "no memo": (b"h\1.", "no PyTorch zip file"),
    "list of itself": (b"]q\0h\0a.", "holds list"),
    "dict of itself": (b"}q\0X\1\0\0\0ah\0s.", "'a' is dict"),
    "a key twice": (b"}(X\1\0\0\0aK\1X\1\0\0\0a]u.", "'a' is list"),
}


@pytest.mark.parametrize("program, message", HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_is_more_than_tensors_is_refused(program, message, tmp_path):
    path = write_torch(tmp_path / "w.pt", b"\x80\x02" + program, {})
    with pytest.raises(WeightsError, match=rf"w\.pt .*{message}"):
        formats.read(path)


@pytest.mark.parametrize("name, message", [("namespace", "argparse.Namespace"), ("legacy", "1.6")])
def test_other_files_of_torch_are_refused_with_the_way_out(name, message):
    with pytest.raises(WeightsError, match=rf"torch_{name}\.pth.*{message}.*safetensors"):
        formats.read(GOLDEN / f"torch_{name}.pth")


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.write_bytes, (self.sentinel, b"run")


def dressed(path, malice):
    """The pickle as it is, in a zip file as torch's, as NumPy's object array."""
    raw = pickle.dumps(malice, protocol=2)
    yield raw
    write_torch(path, raw, {})
    yield path.read_bytes()
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([malice]), allow_pickle=True)
    yield buffer.getvalue()
    yield b"\x81\xa1a" + struct.pack(">BHB", 0xC8, len(raw), 1) + raw  # a Flax array


@pytest.mark.parametrize("suffix", formats.READERS)
def test_a_pickle_in_any_clothing_runs_nothing(suffix, tmp_path):
    sentinel, path = tmp_path / "sentinel", tmp_path / f"w{suffix}"
    for content in list(dressed(tmp_path / "x", Malice(sentinel))):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"w\{suffix}.*safetensors"):
            formats.read(path)
        assert not sentinel.exists()
    pickle.loads(next(dressed(path, Malice(sentinel))))
    assert sentinel.exists()  # it bites


# Fuzz: whatever a file holds, it is read or refused.

NUMBERS = [0, -1, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, 1e300, "1", None, [], {}]


def seeds(kind):
    """Small valid files."""
    tensors = {"a.weight": X, "b/scale": filled((3,), "bfloat16"), "c": filled((), "int64")}
    if kind == ".pt":
        return [(GOLDEN / name).read_bytes() for name in ("torch_state.pt", "torch_wrapped.pth")]
    buffer = io.BytesIO()
    np.savez(buffer, **tensors)
    return {
        ".safetensors": [safetensors.numpy.save(tensors, {"format": "pt"})],
        ".npz": [buffer.getvalue()],
        ".msgpack": [flax.serialization.msgpack_serialize({"a": tensors, "b": {"c": X}})],
    }[kind]


def mutated_bytes(content, rng):
    """A few bytes changed, cut out, doubled or put in."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([1, 1, 2, 8, 100]))
        new = [rng.randbytes(end - start), b"", bytes(content[start:end]) * 2, b"\xff" * 8]
        content[start:end] = rng.choice(new)
    return bytes(
        content[: rng.choice([len(content), len(content), rng.randrange(len(content) + 1)])]
    )


def mutated_header(content, rng):
    """A safetensors file whose header says something else."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.choice([1, 1, 2, 4])):
        name = rng.choice(list(header))
        part = rng.choice([*header[name], ""])
        if isinstance(header[name].get(part), list) and header[name][part]:
            numbers = header[name][part]
            known = [n for x in header.values() for n in x.get("data_offsets", [])]
            numbers[rng.randrange(len(numbers))] = rng.choice(NUMBERS + known * 3)
        elif part:
            header[name][part] = rng.choice([*NUMBERS, "F32", "F16", "BF16", "U8", "I64", "F4"])
        else:
            header[rng.choice([name, "new", "__metadata__"])] = header.pop(name)
    text = mutated_bytes(json.dumps(header).encode(), rng) if rng.random() < 0.3 else None
    return safetensors_bytes(text or json.dumps(header).encode(), data)


def check_read(tensors, content, kind):
    """Every tensor comes from the file; for safetensors, just as its library has it."""
    arrays = {name: tensors[name] for name in tensors}
    assert all(x.nbytes <= len(content) for x in arrays.values())
    for name, spec in tensors.specs.items():
        assert (arrays[name].shape, arrays[name].dtype) == (spec.shape, spec.dtype)
    if kind == ".safetensors":
        theirs = dict(safetensors.deserialize(content))
        assert {k: (list(x.shape), x.tobytes()) for k, x in arrays.items()} == {
            k: (x["shape"], bytes(x["data"])) for k, x in theirs.items()
        }


def fuzz(kind, count, path):
    """Reads `count` mutated files; returns how many were read, how many refused, and by how many
    bytes the process grew."""
    rng, outcomes, start = random.Random(0), {"read": 0, "refused": 0}, peak_memory()
    originals = seeds(kind)
    changes = [mutated_bytes] + [mutated_header] * (kind == ".safetensors")
    for _ in range(count):
        content = rng.choice(changes)(rng.choice(originals), rng)
        path.write_bytes(content)
        try:
            check_read(formats.read(path), content, kind)
            outcomes["read"] += 1
        except WeightsError as error:
            assert str(path) in str(error) and len(str(error)) < 2000
            outcomes["refused"] += 1
    return outcomes | {"growth": peak_memory() - start}


FUZZ = """
import json, sys
from pathlib import Path
from tests.test_formats import fuzz
print(json.dumps(fuzz(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
"""


@pytest.mark.parametrize(
    "kind, count", [(".safetensors", 10_000), (".pt", 1000), (".npz", 1000), (".msgpack", 1000)]
)
def test_mutated_files_are_read_or_refused_in_little_memory(kind, count, tmp_path):
    arguments = [sys.executable, "-W", "error", "-c", FUZZ, kind, str(count), tmp_path / f"w{kind}"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["read"] > count / 100 and found["refused"] > count / 4
    assert found["growth"] < 200e6
