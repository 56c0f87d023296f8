"""The ground of every test: eight CPU devices, strict shapes, full precision, no warnings."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests compile far longer than they run: twice as fast.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # the other cores have tests of their own
)

# Read by JAX when it is imported, here and in the processes that tests start.
os.environ |= {
    "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip(),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "HF_HUB_OFFLINE": "1",  # no test may need a network
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
}
sys.path.insert(0, str(ROOT))

# What one worker, or a process that a test starts, has compiled is not compiled by another. Of one
# run alone, unless the environment names a folder to keep.
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="flax-zoo-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")


def pytest_unconfigure(config: pytest.Config) -> None:
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)
