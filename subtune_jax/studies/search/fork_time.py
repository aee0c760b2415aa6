"""What one more task adds to inference, in milliseconds on this machine, by its first unit."""

import os
import pathlib
from typing import Any

import jax

from subtune_jax import strict_json
from subtune_jax.multitask import costs, latency
from subtune_jax.multitask import network as network_lib
from subtune_jax.multitask import plan as plan_lib
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.search import units as units_lib
from subtune_jax.training import ledger as ledger_lib

HEAD = plan_lib.HEAD


def measure(
  model: Any, network: units_lib.Network, batch_size: int, folder: str | os.PathLike
) -> dict[str, float]:
  """First tuned unit, or "head" -> milliseconds; measured once, then read from the folder.

  Args:
    model: the backbone; its weights change no time.
    network: its units.
    batch_size: images at a time.
    folder: of the search's store, which keeps the times, so that a search that goes on decides by
      the same ones.
  """
  device = jax.devices()[0].device_kind
  key = ledger_lib.key_of({"model": repr(model), "batch_size": batch_size, "device": device})
  path = pathlib.Path(folder) / f"fork_ms_{key}.json"
  if not path.exists():
    task = latency.pretended(model.clone(num_classes=latency.CLASSES, parent=None), (), 1)
    found = costs.added_by_fork(network_lib.MultiTask(task), batch_size)
    workdir_lib.write_json(path, found)
  by_block = strict_json.loads(path.read_text())
  found = {name: by_block[network.blocks((name,))[0]] for name in network.names}
  return found | {HEAD: by_block[HEAD]}


def most_macs(network: units_lib.Network, times: dict[str, float], limit: float) -> int:
  """The multiply-adds of the dearest fork that takes no longer: both fall along the network.

  Raises:
    ValueError: a fork at the last unit takes longer.
  """
  fits = [network.fork_macs((name,)) for name in network.names if times[name] <= limit]
  if not fits:
    least = min(times[name] for name in network.names)
    raise ValueError(
      f"search.max_fork_ms is {limit:g}, and the cheapest fork takes {least:.3g} ms on this "
      f"machine (the head alone {times[HEAD]:.3g}); give more, or train the head alone"
    )
  return max(fits)
