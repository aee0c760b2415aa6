"""What a record says of the run itself: versions, devices, date."""

from collections.abc import Mapping
import datetime
import importlib.metadata
import platform
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def devices(mesh: jax.sharding.Mesh) -> str:
  """E.g. "4 x TPU v4" or "1 x cpu"."""
  kinds = sorted({d.device_kind for d in mesh.devices.flat})
  return f"{mesh.size} x {', '.join(kinds)}"


def run_facts(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Date, versions and devices."""
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": {"python": platform.python_version(), **versions},
    "devices": devices(mesh),
  }


def header_of(record: Mapping[str, Any]) -> dict[str, Any]:
  """Date, versions and devices, as another record has them."""
  return {name: record[name] for name in ("created", "versions", "devices")}
