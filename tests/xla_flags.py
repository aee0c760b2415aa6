"""Flags with which programs compile in a fraction of the time.

jaxlib 0.12 knows one flag less, and a flag that it does not know ends the process.
"""

from importlib import metadata

_JAXLIB = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])

# Of code as fast as without them, or nearly.
PLAIN = "--xla_cpu_parallel_codegen_split_count=1" + (
  " --xla_cpu_use_fusion_emitters=false" * (_JAXLIB < (0, 12))
)
# Of slower code; for programs that run a few times.
FASTEST = f"{PLAIN} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
