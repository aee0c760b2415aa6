"""The parts of benchmarks/accelerator.py, the most valuable first, and their shares of the time.

A part is a module with `programs(scale)`, every program that it compiles for the accelerator with
abstract arguments, and `run(scale, log)`, which measures and adds rows to the log.
"""

import importlib
import types

SHARES = {
  "parity": 0.14, "train": 0.34, "subtuning": 0.13, "search": 0.14, "trace": 0.05, "others": 0.2,
}  # fmt: skip
NAMES = tuple(SHARES)


def load(name: str) -> types.ModuleType:
  """The module of a part."""
  return importlib.import_module(f"{__name__}.{name}")
