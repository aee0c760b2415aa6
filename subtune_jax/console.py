"""How every command ends: one line for what is wrong in its input, and an exit code.

0 when it is done, 2 when the input is wrong, 130 after Ctrl-C.
"""

import argparse
from collections.abc import Iterator
import contextlib
import os
import sys
from typing import NoReturn


def fail(text: str) -> NoReturn:
  """Ends the process with one error line and code 2."""
  sys.stderr.write(f"error: {text}\n")
  sys.exit(2)


def end_now(text: str) -> NoReturn:
  """As `fail`, with code 1 and without waiting for other processes of the run."""
  sys.stderr.write(f"error: {text}\n")
  sys.stderr.flush()
  os._exit(1)


class Parser(argparse.ArgumentParser):
  """Says in one line what is wrong, and ends with code 2."""

  def __init__(self, prog: str, doc: str | None):
    form = argparse.RawDescriptionHelpFormatter
    super().__init__(prog=prog, description=doc, formatter_class=form, allow_abbrev=False)

  def error(self, message: str) -> NoReturn:
    fail(" ".join(message.split()))


@contextlib.contextmanager
def reported() -> Iterator[None]:
  """Ends the process with one line and code 2 where the input is wrong, 130 after Ctrl-C."""
  try:
    yield
  except (ValueError, OSError, ImportError) as e:
    fail(" ".join(str(e).split()))
  except (MemoryError, RuntimeError) as e:
    if not out_of_memory(e):
      raise
    fail(f"out of memory: {' '.join(str(e).split())}")
  except KeyboardInterrupt:
    sys.stderr.write("interrupted\n")
    sys.exit(130)


def out_of_memory(error: Exception) -> bool:
  """Whether Python or the device has no memory left."""
  return isinstance(error, MemoryError) or "out of memory" in str(error).lower()
