# Installs the library where it is missing, with what this runtime's accelerator needs.
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile

PROJECT = ".."  # a folder with the project; on Colab git+https://ADDRESS_OF_THE_PROJECT


def run(*command):
  """(whether a command succeeded, what it printed)."""
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  except OSError:
    return False, ""
  return done.returncode == 0, done.stdout.strip()


def attached():
  """The extra of the accelerator that is attached; "" for none."""
  if (
    os.environ.get("TPU_NAME") or os.environ.get("COLAB_TPU_ADDR") or os.path.exists("/dev/accel0")
  ):
    return "tpu"
  found, driver = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
  if not found:
    return ""
  return "cuda" if int(driver.split(".")[0]) >= 580 else "cuda12"


def uses_accelerator():
  """Whether the installed jax computes on an accelerator; asked in a process of its own."""
  return run(sys.executable, "-c", "import jax; print(jax.default_backend())")[1] in ("gpu", "tpu")


def install():
  """Installs the library; of a jax that works on an accelerator nothing is changed."""
  extra, ready = attached(), uses_accelerator()
  if importlib.util.find_spec("subtune_jax") is None or (extra and not ready):
    wanted = f"[{extra}]" if extra and not ready else ""
    what = f"subtune-jax{wanted} @ {PROJECT}" if "://" in PROJECT else f"{PROJECT}{wanted}"
    kept = [f"{n}=={importlib.metadata.version(n)}" for n in ("jax", "jaxlib")] if ready else []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
      file.write("\n".join(kept))
      file.flush()
      done, _ = run(sys.executable, "-m", "pip", "install", "-q", "-c", file.name, what)
    if not done:
      raise SystemExit(
        f"The library could not be installed beside {' and '.join(kept) or 'what is here'}; see "
        f"pip install {what!r}, and nothing of jax was changed."
      )
  if extra and not uses_accelerator():
    raise SystemExit(
      f"An accelerator is attached ({extra}), and jax does not use it: restart the runtime, and if "
      f"this stays, pip install -U 'jax[{extra}]' says why."
    )


install()

import jax

jax.devices()
