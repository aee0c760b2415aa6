"""Strictness for the whole suite: four simulated devices, and no silent broadcasting of ranks.

Programs are compiled with little optimisation: most of the suite's time is compiling, and this
makes it several times as fast. `SUBTUNE_JAX_OPTIMIZE=1 pytest` compiles them as users do. All
workers of a run share compiled programs in a folder that goes with it. Figures have few pixels.
No test reaches a network.
"""

import gc
import os
import socket
import tempfile

from tests import xla_flags

# Several workers share the cores: BLAS's own threads would spin beside them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=4 "
  + xla_flags.FASTEST * (os.environ.get("SUBTUNE_JAX_OPTIMIZE") != "1")
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the variable
  _programs = tempfile.TemporaryDirectory(prefix="subtune_jax_programs_")
  os.environ["SUBTUNE_JAX_COMPILE_CACHE"] = _programs.name

import jax

from subtune_jax.models import compile_cache
from subtune_jax.report import charts

jax.config.update("jax_numpy_rank_promotion", "raise")
compile_cache.enable()
charts.DPI = 40
gc.set_threshold(50_000, 20, 20)  # tracing allocates much that stays

_connect = socket.socket.connect


def _connect_locally(self, address):
  if self.family in (socket.AF_INET, socket.AF_INET6) and not address[0].startswith(
    ("127.", "::1", "localhost")
  ):
    raise RuntimeError(f"a test connects to {address}; tests need no network")
  return _connect(self, address)


socket.socket.connect = _connect_locally

# Their fixtures are trainings: begun last, they would leave the other worker idle.
_FIRST = ("test_notebooks.py", "test_holistic.py", "test_search.py", "test_robustness.py")


def pytest_collection_finish():
  """What is there before the first test is left alone by the garbage collector."""
  gc.collect()
  gc.freeze()


def pytest_collection_modifyitems(items):
  """Puts the longest files first; the order within a file stays."""
  items.sort(key=lambda item: item.path.name not in _FIRST)
