"""Freed memory is kept: a large program runs again without new page faults."""

import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys
from subtune_jax.models import host_memory
if sys.argv[1] == "keep":
  assert host_memory.keep_freed()
import jax, jax.numpy as jnp

@jax.jit
def program(x):
  for _ in range(3):
    x = jax.lax.optimization_barrier(jnp.sin(jnp.sort(x, axis=0)))
  return x.sum()

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  program(x).block_until_ready()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = jnp.ones((5000, 5000))
print(min([faults() for _ in range(4)][1:]))
"""


def _faults(mode: str) -> int:
  command = [sys.executable, "-c", _SCRIPT, mode]
  return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow  # measures the kernel and the allocator
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux only")
def test_a_program_of_100_mb_faults_in_no_new_pages():
  without, kept = _faults("leave"), _faults("keep")
  assert without > 10_000  # pages of 4 KiB: what the setting is for
  assert kept < 100
