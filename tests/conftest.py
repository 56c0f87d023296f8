"""The ground of every test: eight CPU devices, strict shapes, full precision, no warnings."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEVICES = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

# Read by JAX when it is imported, here and in the processes that tests start. Compiled programs are
# kept between runs: their key holds the program, the flags and the versions.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "HF_HUB_OFFLINE": "1",  # no test may need a network
}
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path
)
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/golden is imported as `golden`


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
