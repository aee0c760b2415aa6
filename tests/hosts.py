"""Starts one program in several processes that make one run on this machine."""

from collections.abc import Sequence
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def free_port() -> int:
  """A port that nobody listens on."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def start(
  program: Sequence[str], count: int, devices: int, folder: pathlib.Path
) -> list[subprocess.Popen]:
  """Starts `python *program` so many times, each with so many simulated devices.

  Of several each gets --coordinator, --num_processes, --process_id and a heartbeat of 10 seconds.
  What process i prints goes to FOLDER/i.out and FOLDER/i.err.
  """
  folder.mkdir(parents=True, exist_ok=True)
  flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
  env = os.environ | {
    "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1",
  }  # fmt: skip
  address, started = f"localhost:{free_port()}", []
  for index in range(count):
    join = [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}"]
    arguments = [*program, *(join if count > 1 else []), *["--heartbeat_seconds=10"] * (count > 1)]
    with open(folder / f"{index}.out", "w") as out, open(folder / f"{index}.err", "w") as err:
      started.append(
        subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, stdout=out, stderr=err)
      )
  return started


def finish(started: Sequence[subprocess.Popen], timeout: float) -> list[int]:
  """Their exit codes; those that are not done in so many seconds are killed."""
  try:
    return [process.wait(timeout) for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()
