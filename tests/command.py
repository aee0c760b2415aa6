"""Starts the command line as a user does: without the flags that tests set for XLA."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}


def _start(arguments: tuple[str, ...], variables: dict[str, str]) -> dict:
  inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  command = [sys.executable, "-m", "subtune_jax.main", *arguments]
  return {"args": command, "env": inherited | variables, **_PIPES}


def start(*arguments: str, **options) -> subprocess.Popen:
  """The running process; `options` are those of `subprocess.Popen`."""
  return subprocess.Popen(**_start(arguments, {}), **options)


def run(
  *arguments: str, timeout: float | None = 300, **variables: str
) -> subprocess.CompletedProcess:
  """The finished process, with `variables` added to its environment."""
  return subprocess.run(**_start(arguments, variables), timeout=timeout, check=False)
