"""Checkpoints: what is restored is what was saved, bit for bit, or it is refused by name."""

import asyncio
import errno
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train import checkpoint
from train.checkpoint import CheckpointError, Checkpoints, CorruptCheckpoint
from train.config import ConfigError
from train.state import State
from zoo import tree


def params_of(step: int) -> dict:
    """Parameters that only `step` decides, made without compiling anything."""
    rng = np.random.default_rng(step)
    return {
        "dense": {
            "kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=(8,)), jnp.bfloat16),
        },
        "table": jnp.asarray(rng.integers(0, 100, (4, 2)), jnp.int32),
        "unused": {},
    }


def state_of(step: int) -> State:
    params = params_of(step)
    return State(
        step=jnp.int32(step),
        rng=jax.random.wrap_key_data(jnp.asarray([step, 7], jnp.uint32)),
        params=params,
        opt=adam_state(params),
        vars={"batch_stats": {"mean": jnp.full((8,), step, jnp.float32)}},
        ema={},
        extra={"skipped": jnp.int32(3), "lr": jnp.float32(1e-3)},
    )


def adam_state(params: dict) -> optax.OptState:
    """Holds an EmptyState, a MaskedNode, a NamedTuple and moments with the parameters' values."""
    floats = {"dense": True, "table": False, "unused": True}
    empty, masked = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(optax.scale_by_adam(), floats)
    ).init({**params, "table": jnp.zeros((4, 2))})
    adam = masked.inner_state
    moments = {**adam.mu, "dense": dict(params["dense"])}
    return empty, masked._replace(inner_state=adam._replace(mu=moments))


def abstract(state: State, place=lambda _: None) -> State:
    """What `restore` takes; `place` gives the sharding of a leaf."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), state
    )


def split_kernel(mesh: jax.sharding.Mesh):
    """The kernel along the mesh's first axis, everything else on every device."""

    def place(leaf: jax.Array) -> NamedSharding:
        split = leaf.ndim == 2 and leaf.shape[0] == 16
        return NamedSharding(mesh, PartitionSpec("data") if split else PartitionSpec())

    return place


def bits(state: State) -> dict[str, tuple]:
    """Dtype, shape and bytes of every leaf."""

    def bits_of(leaf: jax.Array) -> tuple:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return str(leaf.dtype), leaf.shape, data.tobytes()

    return {path: bits_of(leaf) for path, leaf in tree.flatten(state).items()}


def assert_same(got: State, want: State) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert bits(got) == bits(want)


class Run:
    """Checkpoints below `directory`, with what they said."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.warnings: list[str] = []

    def open(self, **options) -> Checkpoints:
        return Checkpoints(self.directory, warn=self.warnings.append, **options)

    def save(self, *steps: int, **options) -> None:
        with self.open(**options) as checkpoints:
            for step in steps:
                checkpoints.save(step, state_of(step), {"position": step}, {"accuracy": 0.5})

    def restore(self, step: int | None = None, **options) -> checkpoint.Restored | None:
        with self.open(**options) as checkpoints:
            return checkpoints.restore(abstract(state_of(0)), step)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "checkpoints")


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip_one_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


DAMAGE = {  # what is done to a file, and what the error says of it
    "flipped": (flip_one_bit, "other contents"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "bytes, sealed were"),
    "emptied": (lambda path: os.truncate(path, 0), "has 0 bytes, sealed were"),
    "zeroed": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "other contents"),
    "deleted": (Path.unlink, "No such file"),
}


def test_a_restored_state_has_the_same_structure_and_bits(run):
    run.save(7)
    restored = run.restore()
    assert_same(restored.state, state_of(7))
    assert restored[0] == 7 and restored[2:] == ({"position": 7}, {"accuracy": 0.5})
    assert run.warnings == []


def test_another_kind_of_random_key_survives(run):
    state = state_of(1).replace(rng=jax.random.key(5, impl="rbg"))
    with run.open() as checkpoints:
        checkpoints.save(1, state)
        assert_same(checkpoints.restore(abstract(state)).state, state)
        with pytest.raises(CheckpointError, match=r"~ rng: key<rbg>\[\].*key<fry>\[\]"):
            checkpoints.restore(abstract(state_of(1)))


def test_a_state_moves_between_meshes_bit_for_bit(run):
    devices = jax.devices()
    auto = AxisType.Auto
    eight = jax.make_mesh((8,), ("data",), axis_types=(auto,))
    square = jax.make_mesh((2, 2), ("data", "fsdp"), devices=devices[:4], axis_types=(auto, auto))
    alone = jax.sharding.SingleDeviceSharding(devices[3])
    state = state_of(0)
    with run.open() as checkpoints:
        for step, place in enumerate([split_kernel(eight), lambda _: alone, split_kernel(square)]):
            checkpoints.save(step, state)
            state = checkpoints.restore(abstract(state, place)).state
            assert_same(state, state_of(0))
            assert all(leaf.sharding == place(leaf) for leaf in jax.tree.leaves(state))


def test_nothing_saved_is_nothing_restored(run):
    assert run.restore() is None
    with run.open() as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (None, None)


def test_a_donated_update_right_after_a_save_does_not_reach_it(run):
    update = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    before = np.arange(1 << 20, dtype=np.float32)
    with run.open(keep=9) as checkpoints:
        for step in range(4):
            state = state_of(step).replace(vars={"big": jnp.asarray(before) + step})
            checkpoints.save(step, state)
            big = state.vars["big"]
            for _ in range(3):
                big = update(big)
            big.block_until_ready()
        for step in range(4):
            restored = checkpoints.restore(abstract(state), step)
            assert np.array_equal(restored.state.vars["big"], before + step)


def test_the_data_state_is_the_one_at_the_call_of_save(tmp_path):
    class Directory:
        async def await_creation(self) -> Path:
            return tmp_path

    async def save_while_the_data_moves_on() -> None:
        position = {"next": [1]}
        writing = await checkpoint.DataState(position).save(Directory())
        position["next"].append(2)
        await writing

    asyncio.run(save_while_the_data_moves_on())
    [path] = tmp_path.iterdir()
    assert path.name == "process_0-of-1.json" and path.read_text() == '{"next": [1]}'


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damaged_file_is_refused_by_name(run, tmp_path, kind):
    damage, _ = DAMAGE[kind]
    run.save(1)
    whole = tmp_path / "whole"
    shutil.copytree(run.directory, whole)
    files = [path for path in files_of(run.directory / "1") if path.stat().st_size]
    assert {"manifest.json", "process_0-of-1.json", "manifest.ocdbt"} <= {f.name for f in files}
    for path in files:
        damage(path)
        with pytest.raises(CorruptCheckpoint, match=path.name):
            run.restore(strict=True)
        shutil.copyfile(whole / path.relative_to(run.directory), path)
    assert_same(run.restore(strict=True).state, state_of(1))


def test_a_missing_empty_file_is_refused_by_name(run):
    run.save(1)
    empty = [path for path in files_of(run.directory / "1") if not path.stat().st_size]
    for path in empty:
        path.unlink()
        with pytest.raises(CorruptCheckpoint, match=path.name):
            run.restore(strict=True)
        path.touch()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_to_the_older_one(run, kind):
    damage, said = DAMAGE[kind]
    run.save(1, 2)
    largest = max(files_of(run.directory / "2" / "state"), key=lambda path: path.stat().st_size)
    damage(largest)
    with run.open() as checkpoints:
        restored = checkpoints.restore(abstract(state_of(0)))
        assert checkpoints.latest() == checkpoints.best() == 1
    assert restored.step == 1
    assert_same(restored.state, state_of(1))
    [warning] = run.warnings
    assert str(largest) in warning and said in warning


def test_a_damaged_checkpoint_that_is_asked_for_is_never_replaced_by_another(run):
    run.save(1, 2)
    flip_one_bit(run.directory / "2" / "state" / "_METADATA")
    with pytest.raises(CorruptCheckpoint, match="_METADATA"):
        run.restore(2)
    assert run.restore(1).step == 1
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 .*\[1, 2\]"):
        run.restore(5)


def test_damage_to_every_checkpoint_is_an_error_and_not_a_new_start(run):
    run.save(1, 2)
    for step in ("1", "2"):
        (run.directory / step / "manifest.json").unlink()
    with run.open() as checkpoints:
        for _ in range(2):
            with pytest.raises(CorruptCheckpoint, match=r"every checkpoint .*\[1, 2\]"):
                checkpoints.restore(abstract(state_of(0)))


def test_a_damaged_checkpoint_is_replaced_by_a_save_of_its_step(run):
    run.save(1, 2)
    flip_one_bit(run.directory / "2" / "state" / "_METADATA")
    with run.open() as checkpoints:
        assert checkpoints.restore(abstract(state_of(0))).step == 1
        checkpoints.save(2, state_of(2))
        checkpoints.wait()
        assert checkpoints.latest() == 2
    assert_same(run.restore(2).state, state_of(2))
    assert run.names() == ["1", "2"]


def test_what_a_kill_leaves_is_never_listed_and_removed_with_a_message(run):
    run.save(1)
    for name in ("2.staged", "3.staged.orbax-checkpoint-tmp", "1.trash"):
        shutil.copytree(run.directory / "1" / "state", run.directory / name / "state")
    reader = run.open(writable=False)
    assert reader.steps() == [1] and len(run.names()) == 4
    assert run.restore().step == 1
    assert run.names() == ["1"]
    assert [warning.split("/")[-1].split(":")[0] for warning in sorted(run.warnings)] == [
        "2.staged",
        "3.staged.orbax-checkpoint-tmp",
    ]


def test_a_kill_before_the_last_rename_loses_nothing(run):
    run.save(1, 2)
    (run.directory / "2").rename(run.directory / "2.staged")
    shutil.copytree(run.directory / "1", run.directory / "2")  # the one that 2 was to replace
    assert_same(run.restore().state, state_of(2))
    assert run.names() == ["1", "2"]


def test_a_failure_of_the_last_rename_loses_nothing(run, monkeypatch):
    run.save(1)
    rename = Path.rename

    def fail_to_publish(path: Path, target: Path) -> Path:
        if path.name == "1.staged":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail_to_publish)
        with pytest.raises(CheckpointError, match="Input/output error"):
            run.save(1)
    assert_same(run.restore().state, state_of(1))
    assert run.names() == ["1"]


def test_the_newest_and_the_best_are_kept(run):
    scores = {1: float("nan"), 2: 0.9, 3: 0.9, 4: 0.1, 5: 0.2, 6: 0.3, 7: None}
    with run.open(keep=2) as checkpoints:
        for step, score in scores.items():
            metrics = None if score is None else {"accuracy": score}
            checkpoints.save(step, state_of(step), metrics=metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [3, 6, 7]
        assert (checkpoints.latest(), checkpoints.best()) == (7, 3)
    assert run.names() == ["3", "6", "7"]


def test_less_can_be_better(run):
    with run.open(keep=1, best="-loss") as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 2.0, np.float32(4.0)]):
            checkpoints.save(step, state_of(step), metrics={"loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3] and checkpoints.best() == 1
        with pytest.raises(ConfigError, match="'loss', but the evaluation gave: accuracy"):
            checkpoints.save(9, state_of(9), metrics={"accuracy": 1.0})


def test_older_checkpoints_are_deleted_only_after_the_new_one_is_sealed(run, monkeypatch):
    run.save(1, keep=1)
    seal = checkpoint.seal

    def look_and_seal(directory: Path, record: dict) -> None:
        assert run.names() == ["1", "2.staged"]
        seal(directory, record)

    monkeypatch.setattr(checkpoint, "seal", look_and_seal)
    run.save(2, keep=1)
    assert run.names() == ["2"]


def test_every_difference_between_checkpoint_and_run_is_listed(run):
    run.save(1)
    other = state_of(0)
    dense = other.params["dense"]
    dense["bias"] = dense["bias"].astype(jnp.float32)
    dense["kernel"] = dense["kernel"].T
    other.params["lookup"] = other.params.pop("table")
    with run.open() as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(abstract(other))
    lines = [line for line in str(error.value).splitlines() if line[0] in "+-~"]
    assert lines == [
        "- params/table: int32[4, 2] is only in the checkpoint",
        "+ params/lookup: int32[4, 2] is only in this run",
        "~ params/dense/bias: bfloat16[8] in the checkpoint, float32[8] in this run",
        "~ params/dense/kernel: float32[16, 8] in the checkpoint, float32[8, 16] in this run",
    ]


def test_a_leaf_that_cannot_be_saved_is_named(run):
    with run.open() as checkpoints:
        with pytest.raises(CheckpointError, match="vars/none"):
            checkpoints.save(1, state_of(1).replace(vars={"none": jnp.zeros((0, 3))}))
        twins = {"a/b": jnp.zeros(1), "a": {"b": jnp.ones(1)}}
        with pytest.raises(CheckpointError, match="same path"):
            checkpoints.save(1, state_of(1).replace(vars=twins))


def poll_until_error(checkpoints: Checkpoints) -> CheckpointError:
    for _ in range(1000):
        try:
            checkpoints.poll()
        except CheckpointError as error:
            return error
        time.sleep(0.01)
    raise AssertionError("the failed save was never reported")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_disk_that_takes_no_more_is_reported_and_earlier_checkpoints_stay(
    run, asynchronous, caplog
):
    run.save(1)
    noise = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32)
    large = state_of(2).replace(vars={"large": jnp.asarray(noise)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = run.open(asynchronous=asynchronous)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))  # bytes a file may have
    try:
        if asynchronous:
            checkpoints.save(2, large)
            error = poll_until_error(checkpoints)
        else:
            with pytest.raises(CheckpointError) as caught:
                checkpoints.save(2, large)
            error = caught.value
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(run.directory) in str(error) and "Make room" in str(error)
    assert run.names() == ["1"] and checkpoints.latest() == 1
    assert caplog.records == []  # one message, no tracebacks beside it
    checkpoints.save(2, large)  # room was made
    checkpoints.close()
    assert checkpoints.latest() == 2


def test_a_disk_that_fills_while_sealing_leaves_nothing_half_written(run, monkeypatch):
    run.save(1)

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "seal", full)
        with run.open() as checkpoints:
            checkpoints.save(2, state_of(2))
            with pytest.raises(CheckpointError, match="No space left on device"):
                checkpoints.save(3, state_of(3))
    assert run.names() == ["1"]


def test_what_a_writer_makes_after_the_failure_is_removed_too(run, monkeypatch):
    run.save(1)
    late = threading.Timer(0.3, lambda: (run.directory / "2.staged.orbax-checkpoint-tmp").mkdir())

    def full(*_) -> None:
        late.start()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "seal", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        run.save(2)
    late.join()
    assert run.names() == ["1"]


def test_leaving_the_context_reports_a_failed_save(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "seal", lambda *_: 1 / 0)
    with pytest.raises(CheckpointError, match="checkpoint 1 could not be written"):
        run.save(1)


def a_file(path: Path) -> None:
    path.write_text("")


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


@pytest.mark.parametrize("obstacle", [a_file, a_dangling_link])
@pytest.mark.parametrize("below", ["", "checkpoints"])
def test_a_directory_that_cannot_be_is_refused_before_training(tmp_path, obstacle, below):
    obstacle(tmp_path / "workdir")
    with pytest.raises(ConfigError, match=r"workdir.*--workdir"):
        Run(tmp_path / "workdir" / below).open()


def test_a_directory_without_permission_is_refused_before_training(tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(ConfigError, match=r"Permission denied.*--workdir"):
        Run(tmp_path / "checkpoints").open()


def test_to_keep_nothing_is_refused(run):
    with pytest.raises(ConfigError, match="checkpoint.keep is 0"):
        run.open(keep=0)


def test_a_reader_creates_nothing_and_cannot_save(run):
    reader = run.open(writable=False)
    assert reader.restore(abstract(state_of(0))) is None
    assert not run.directory.exists()
    with pytest.raises(CheckpointError, match="for reading only"):
        reader.save(1, state_of(1))


def child(role: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
    """This file as a script in a process of its own; see ROLES."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, __file__, role, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def save_forever(directory: str) -> None:
    """Saves one step after another and says which are sealed."""
    with Checkpoints(directory, keep=2, warn=lambda _: None) as checkpoints:
        restored = checkpoints.restore(abstract(state_of(0)))
        step = restored.step if restored else 0
        while True:
            step += 1
            checkpoints.save(step, state_of(step), {"position": step})
            print(checkpoints.latest() or 0, flush=True)


def save_and_leave(directory: str) -> None:
    with Checkpoints(directory, warn=print) as checkpoints:
        checkpoints.save(1, state_of(1))


def save_and_restore_together(directory: str, port: str, rank: str) -> None:
    """One of two processes, each with its own position in the data and half of every kernel."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    place = split_kernel(mesh)
    with Checkpoints(directory, keep=1, warn=print) as checkpoints:
        for step in (1, 2):
            local = state_of(step)
            state = jax.jit(
                lambda step=step: state_of(step), out_shardings=jax.tree.map(place, local)
            )()
            checkpoints.save(step, state, {"rank": int(rank)}, {"accuracy": 0.5})
        restored = checkpoints.restore(abstract(local, place))
    assert restored is not None and restored.step == 2 and restored.data == {"rank": int(rank)}
    for got, want in zip(jax.tree.leaves(restored.state), jax.tree.leaves(local), strict=True):
        if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        for shard in got.addressable_shards:
            assert np.array_equal(shard.data, np.asarray(want)[shard.index])
    print("equal", flush=True)
    jax.distributed.shutdown()


def kill_and_check(run: Run, kills: int) -> None:
    """SIGKILL at a random moment while saving; then the newest is what its number says."""
    chance = random.Random(kills)
    for _ in range(kills):
        process = child("save_forever", run.directory)
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        lines = process.communicate()[0].split()
        restored = run.restore(strict=True)
        assert (restored.step if restored else 0) >= max(map(int, lines), default=0)
        if restored is not None:
            assert restored.data == {"position": restored.step}
            assert_same(restored.state, state_of(restored.step))
        assert all(name.isdecimal() for name in run.names())


def test_a_kill_during_saves_leaves_the_newest_checkpoint_exact(run):
    kill_and_check(run, kills=5)


@pytest.mark.full
def test_fifty_kills_during_saves_leave_the_newest_checkpoint_exact(run):
    kill_and_check(run, kills=50)


def test_a_process_ends_in_silence_after_its_last_save(run):
    process = child("save_and_leave", run.directory)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
    assert_same(run.restore().state, state_of(1))


def test_two_processes_save_and_restore_and_one_takes_over(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [
        child("save_and_restore_together", run.directory, port, rank, devices=2) for rank in (0, 1)
    ]
    try:
        for process in pair:
            output, errors = process.communicate(timeout=60)
            said = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
            assert (process.returncode, said) == (0, ["equal"]), errors
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    names = {path.name for path in files_of(run.directory / "2" / "data")}
    assert names == {"process_0-of-2.json", "process_1-of-2.json"}
    assert run.names() == ["2"]
    alone = run.restore()
    assert_same(alone.state, state_of(2))
    assert alone.data == {"rank": 0} and "number of processes" in run.warnings[0]


ROLES = {role.__name__: role for role in (save_forever, save_and_leave, save_and_restore_together)}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
