"""One mesh, and two compilers of the same update.

The mesh has the axes ("data", "fsdp", "tensor"). A batch is split over "data" and "fsdp", the state
as `zoo.sharding` says. `jit` sees the global batch and works on any mesh; `pmap` maps the same pure
function over the devices of a data-only mesh, the mapped axis being "data".
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.config import ConfigError, Parallel
from train.state import Batch, Metrics, State
from zoo import sharding

Update = Callable[[State, Batch], tuple[State, Metrics]]
BATCH = PartitionSpec(("data", "fsdp"))


def join_processes() -> None:
    """Joins the other processes of the run, where the environment says that there are any: an
    explicit coordinator (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), Slurm's
    srun, MPI, or a TPU pod.
    """
    if jax.distributed.is_initialized():
        return
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        numbers = [os.environ.get(key, "") for key in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        if not all(number.isdecimal() for number in numbers):
            raise ConfigError(
                "JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must be "
                f"whole numbers, not {' and '.join(map(repr, numbers))}"
            )
        count, index = map(int, numbers)
        jax.distributed.initialize(address, count, index)
    elif (
        int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1  # under srun
        or int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()


def make_mesh(cfg: Parallel, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of the given sizes over all devices (or those given); one size may be -1.

    Raises ConfigError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
    if -1 in sizes:
        fixed = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        stated = " × ".join(map(str, (cfg.data, cfg.fsdp, cfg.tensor)))
        raise ConfigError(
            f"parallel: data × fsdp × tensor = {stated} does not fill {len(devices)} devices; "
            "set one of them to -1"
        )
    auto = (AxisType.Auto,) * 3  # Linen's Embed fails on the default, explicit axes
    return jax.make_mesh(tuple(sizes), sharding.AXES, axis_types=auto, devices=devices)


def axis(cfg: Parallel) -> str | None:
    """The name of the mapped axis that the update and the model must know; None under jit."""
    return {"jit": None, "pmap": "data"}[cfg.compiler]


def check_batch(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Raises ConfigError unless every device gets the same whole number of micro-batch examples."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (shares * accumulate):
        raise ConfigError(
            f"data.batch_size is {batch_size}: not a multiple of {shares} devices × "
            f"step.accumulate {accumulate}; use a multiple of {shares * accumulate}"
        )


def put(mesh: Mesh, batch: Any) -> Any:
    """This process's share of a batch of NumPy arrays, as global arrays over the mesh."""
    placed = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(placed, np.asarray(x)), batch
    )


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """NumPy arrays that all processes have alike, whole on every device of the mesh."""
    placed = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, placed, lambda index: x[index]), tree
    )


def whole(tree: Any) -> Any:
    """A tree of global arrays as NumPy arrays, on every process; all of them must call it."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def initialise(
    init: Callable[[jax.Array, Batch], State], rng: jax.Array, batch: Any, mesh: Mesh, rules: Any
) -> tuple[Callable[[], State], State]:
    """`(make, abstract)`: `make()` computes the first state straight into its shards; `abstract` is
    its tree of shapes with shardings, which is what a restore needs. Nothing is computed yet.

    batch: arrays or `jax.ShapeDtypeStruct`s.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(batch))
    state = jax.eval_shape(init, rng, shapes)
    placed = sharding.shardings(state, mesh, rules)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed
    )

    def first(rng: jax.Array) -> State:  # the batch gives shapes only
        return init(rng, {key: jnp.zeros(x.shape, x.dtype) for key, x in shapes.items()})

    make = jax.jit(first, out_shardings=placed)
    return lambda: make(rng), abstract


def compile_update(update: Update, abstract: State, mesh: Mesh, cfg: Parallel) -> Update:
    """The update, compiled; under jit it consumes (donates) the state that it is given.

    Raises ConfigError for pmap on a mesh with more than data, or over several processes.
    """
    return COMPILERS[cfg.compiler](update, abstract, mesh)


def with_jit(update: Update, abstract: State, mesh: Mesh) -> Update:
    placed = jax.tree.map(lambda x: x.sharding, abstract)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(update, donate_argnums=0, out_shardings=(placed, everywhere))


def with_pmap(update: Update, abstract: State, mesh: Mesh) -> Update:
    for name in ("fsdp", "tensor"):
        if mesh.shape[name] != 1:
            raise ConfigError(
                f"parallel.{name} is {mesh.shape[name]}, but pmap takes data-only meshes: "
                f"set it to 1, or parallel.compiler to jit"
            )
    if jax.process_count() > 1:
        raise ConfigError("parallel.compiler: pmap runs in one process; use jit over several")
    devices = list(mesh.devices.flat)
    # The state goes in and comes out whole, the same on every device.
    mapped = jax.pmap(
        update, axis_name="data", in_axes=(None, 0), out_axes=(None, None), devices=devices
    )
    n = len(devices)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        split = jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), dict(batch))
        return mapped(state, split)

    return step


COMPILERS = {"jit": with_jit, "pmap": with_pmap}
