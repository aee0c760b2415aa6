"""Starts the command line as a user does: a process of its own, with one device.

Programs compile with the tests' flags for speed; `SUBTUNE_JAX_OPTIMIZE=1` leaves them out.
"""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

from tests import xla_flags

ROOT = pathlib.Path(__file__).parents[1]
_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
_IMPORTED = ("subtune_jax.studies.compare.run", "ml_collections.config_flags")


def environment() -> dict[str, str]:
  """Variables of a process that computes as a user's does, but for how programs are compiled."""
  others = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  optimised = os.environ.get("SUBTUNE_JAX_OPTIMIZE") == "1"
  return others if optimised else others | {"XLA_FLAGS": xla_flags.FASTEST}


def _start(arguments: tuple[str, ...], variables: dict[str, str]) -> dict:
  command = [sys.executable, "-m", "subtune_jax.main", *arguments]
  return {"args": command, "env": environment() | variables, **_PIPES}


def start(*arguments: str, **options) -> subprocess.Popen:
  """The running process; `options` are those of `subprocess.Popen`."""
  return subprocess.Popen(**_start(arguments, {}), **options)


def run(
  *arguments: str, timeout: float | None = 300, **variables: str
) -> subprocess.CompletedProcess:
  """The finished process, with `variables` added to its environment."""
  return subprocess.run(**_start(arguments, variables), timeout=timeout, check=False)


def run_forked(
  *arguments: str, module: str = "subtune_jax.main", code: str = "", cwd: pathlib.Path = ROOT,
  **variables: str,
) -> subprocess.CompletedProcess:  # fmt: skip
  """As `run`, in the copy of a process that has imported jax and this library, which takes 1.5 s.

  The copied process has read the variables of jax, not those of XLA and of this library.

  Args:
    arguments: of the module.
    module: what `python -m` would run.
    code: Python that is run instead.
    cwd: where.
    variables: added to the environment.
  """
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(list(_IMPORTED))
  with tempfile.TemporaryDirectory() as folder:
    files = [str(pathlib.Path(folder, name)) for name in ("out", "err")]
    made = environment() | variables
    process = context.Process(target=_forked, args=(arguments, module, code, cwd, made, files))
    process.start()
    process.join(300)
    if process.exitcode is None:
      process.kill()
      raise subprocess.TimeoutExpired(arguments, 300)
    texts = [pathlib.Path(file).read_text() for file in files]
  return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _forked(arguments, module, code, cwd, variables, files):
  os.environ.clear()
  os.environ.update(variables)
  os.chdir(cwd)
  for number, file in enumerate(files, start=1):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
  sys.argv = [module, *arguments]
  if code:
    exec(code, {"__name__": "__main__"})
  else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
