"""Logits and one training step of each family against this machine's CPU.

float32 with exact products (no TF32) against float32 on CPU, and bfloat16 against the same. Real
widths, the first blocks, images of 64 pixels: every kind of layer, and programs that a CPU compiles
in seconds. Deeper networks with random weights amplify bfloat16's rounding until the update says
nothing. The step is SGD, so that an update is the gradient times a number.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator_parts import measuring
from benchmarks.accelerator_parts import programs as programs_lib
from subtune_jax import methods, models
from subtune_jax.models import efficientnet

# Largest difference allowed, as a share of the largest logit, of the loss, and of the update's
# norm (|update - CPU's update| / |CPU's update|).
TOLERANCE = {
  "float32": {"logits": 1e-4, "loss": 1e-4, "update": 2e-3},
  "bfloat16": {"logits": 3e-2, "loss": 1e-2, "update": 3.5e-1},
}
_BATCH = 8
_SHORT = {
  "vit_b16": {"depth": 2, "image_size": 64},
  "resnet50": {"stage_sizes": (1, 2), "image_size": 64},
  "convnext_tiny": {"depths": (1, 2), "widths": (96, 192), "image_size": 64},
  "efficientnet_lite0": {"blocks": efficientnet.lite_blocks(1.0, 1.0)[:5], "image_size": 64},
  "bit_resnet50": {"stage_sizes": (1, 2), "image_size": 64},
}
_TINY = ("vit_b16", "resnet50", "convnext_tiny", "efficientnet_lite0")


def _model(scale: programs_lib.Scale, name: str, dtype: str) -> Any:
  if scale.tiny:
    return scale.model(name, dtype)
  return models.create(name, 10, programs_lib.DTYPES[dtype], **_SHORT[name])


def _names(scale: programs_lib.Scale) -> tuple[str, ...]:
  return _TINY if scale.tiny else tuple(_SHORT)


def _pair(scale: programs_lib.Scale, name: str, dtype: str) -> list[programs_lib.Program]:
  """The forward pass and the step."""
  model = _model(scale, name, dtype)
  full = methods.full_fine_tuning(0.1, **programs_lib.SGD)
  spec = programs_lib.spec_of(model, full)
  return [
    programs_lib.inference(f"{name} {dtype} logits", model, _BATCH),
    programs_lib.training(f"{name} {dtype} step", spec, _BATCH, donate=False),
  ]


def programs(scale: programs_lib.Scale) -> Iterator[programs_lib.Program]:
  """Every program of the part."""
  for name in _names(scale):
    for dtype in TOLERANCE:
      yield from _pair(scale, name, dtype)


def _on(device: jax.Device, pair: list[programs_lib.Program], dtype: str) -> dict[str, Any]:
  """{"logits", "loss", "update"} of a pair on one device; products of float32 are exact."""
  precision = "highest" if dtype == "float32" else None
  with jax.default_device(device), jax.default_matmul_precision(precision):
    forward, step = (
      (jax.jit(p.function), jax.device_put(p.values(), device)) for p in pair
    )  # fmt: skip
    logits = np.asarray(forward[0](*forward[1]))
    before = jax.device_get(step[1][0].moving["params"])
    state, metrics = jax.device_get(step[0](*step[1]))
  assert state.step == 1
  update = jax.tree.map(lambda a, b: np.ravel(np.float64(a) - b), state.moving["params"], before)
  return {
    "logits": np.asarray(logits, np.float64), "loss": float(metrics["loss"]),
    "update": np.concatenate(jax.tree.leaves(update)),
  }  # fmt: skip


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
  """By the keys of a `TOLERANCE`, how far `found` is from `expected`; NaN where either is."""
  logits = np.max(np.abs(found["logits"] - expected["logits"]))
  update = np.linalg.norm(found["update"] - expected["update"])
  return {
    "logits": float(logits / np.max(np.abs(expected["logits"]))),
    "loss": abs(found["loss"] - expected["loss"]) / abs(expected["loss"]),
    "update": float(update / np.linalg.norm(expected["update"])),
  }


def within(found: dict[str, float], dtype: str) -> bool:
  """Whether all differences are inside the tolerance; NaN is not."""
  return all(found[key] <= most for key, most in TOLERANCE[dtype].items())


def run(scale: programs_lib.Scale, log: measuring.Log) -> None:
  """A row per family and dtype."""
  cpu, device = jax.devices("cpu")[0], jax.devices()[0]

  def measure(name: str, dtype: str) -> None:
    if name not in expected:
      expected[name] = _on(cpu, _pair(scale, name, "float32"), "float32")
    found = differences(_on(device, _pair(scale, name, dtype), dtype), expected[name])
    allowed = ", ".join(f"{most:g}" for most in TOLERANCE[dtype].values())
    log.add(network=name, dtype=dtype, **found, allowed=allowed, within=within(found, dtype))

  expected: dict[str, Any] = {}
  for name in _names(scale):
    for dtype in TOLERANCE:
      what = {"network": name, "dtype": dtype}
      log.attempt(what, lambda name=name, dtype=dtype: measure(name, dtype))
