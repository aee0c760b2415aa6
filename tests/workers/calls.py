"""What tests call in processes of their own, which find these by the name of the module."""

import os
import pathlib
import signal
import time


def dies_until(path: pathlib.Path, times: int) -> str:
  """Kills its process, as often as asked."""
  before = path.read_text() if path.exists() else ""
  if len(before) >= times:
    return "done"
  path.write_text(before + ".")
  os.kill(os.getpid(), signal.SIGKILL)


def slow(path: pathlib.Path) -> str:
  """Notes that it was begun, and takes some seconds."""
  with open(path, "a") as f:
    f.write(".")
  time.sleep(4)
  return "done"
