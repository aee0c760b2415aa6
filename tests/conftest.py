"""Strictness for the whole suite: four simulated devices, and no silent broadcasting of ranks.

Programs are compiled with little optimisation: most of the suite's time is compiling, and this
makes it up to three times as fast. `SUBTUNE_JAX_OPTIMIZE=1 pytest` compiles them as users do.
"""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=4"
  + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  * (os.environ.get("SUBTUNE_JAX_OPTIMIZE") != "1")
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
