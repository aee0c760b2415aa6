"""A training of the small backbone in one of several processes; prints what it saw as JSON."""

import argparse
import json
import os

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--coordinator")
parser.add_argument("--num_processes", type=int)
parser.add_argument("--process_id", type=int)
parser.add_argument("--heartbeat_seconds", type=int)
given = parser.parse_args()

from subtune_jax import processes  # noqa: E402

processes.start(
  given.coordinator, given.num_processes, given.process_id,
  heartbeat_seconds=given.heartbeat_seconds,
)  # fmt: skip

import jax  # noqa: E402
import numpy as np  # noqa: E402

from subtune_jax import files  # noqa: E402
from tests.training import test_processes as own  # noqa: E402

read: list[int] = []
said = {"devices": [len(jax.devices()), len(jax.local_devices())], "fits": own.fits(read)}
said["read"] = read
said["agreed"] = processes.agreed({"from": given.process_id})
said["any"] = processes.any_of(given.process_id == 1, False)
np.testing.assert_array_equal(processes.agreed_arrays(np.full(3, given.process_id)), 0)


def fail():
  raise OSError("the disk is full")


try:
  processes.on_first(fail)
except ValueError as e:
  said["error"] = str(e)
files.write_atomically(f"{os.environ['OWN_FOLDER']}/by{given.process_id}", b"x")
print("SAID " + json.dumps(said))
