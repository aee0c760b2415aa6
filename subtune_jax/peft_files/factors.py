"""The matrices of an adapter as torch has them, from ours and back."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from subtune_jax import adapters
from subtune_jax.adapters import dora, lora, part
from subtune_jax.adapters import layer as layer_lib


@dataclasses.dataclass(frozen=True)
class Factors:
  """LoRA or DoRA on some outputs of one layer.

  Attributes:
    a: [r, in] of a linear layer, [r, in, *window] of a convolution.
    b: [outputs, r / groups].
    scaling: of their product.
    magnitude: [outputs] lengths of DoRA; None of LoRA.
  """

  a: np.ndarray
  b: np.ndarray
  scaling: float
  magnitude: np.ndarray | None = None

  @property
  def rank(self) -> int:
    """Of the product."""
    return len(self.a)


def is_convolution(geometry: layer_lib.Geometry) -> bool:
  """Whether torch has a convolution for such a layer."""
  return not geometry.equation


def rule_of(rule: adapters.Rule) -> lora.LoRA:
  """The LoRA or DoRA of a rule that may put it on a part."""
  own = rule.rule if isinstance(rule, part.Part) else rule
  assert isinstance(own, lora.LoRA)
  return own


def check(site: adapters.Site) -> layer_lib.Geometry:
  """The geometry of a layer, if PEFT's files have a form for its adapters.

  Raises:
    ValueError: they have none.
  """
  where, geometry = site.path, site.target.geometry
  for rule in site.rules:
    own = rule.rule if isinstance(rule, part.Part) else rule
    if type(own) not in (lora.LoRA, dora.DoRA):
      raise ValueError(
        f"{rule.name} at {where} is {type(own).__name__}; PEFT's files take LoRA and DoRA here. "
        "Merge it (Adapted.merge), or leave it out"
      )
  assert geometry is not None
  if site.target.stack or geometry.batch:
    raise ValueError(f"{where} stacks several layers in one kernel; PEFT's files name each layer")
  doras = [rule for rule in site.rules if isinstance(rule_of(rule), dora.DoRA)]
  if doras and geometry.groups > 1:
    raise ValueError(f"{where}: PEFT has no DoRA of convolutions in groups; use LoRA there")
  parts = {rule.index for rule in site.rules if isinstance(rule, part.Part)}
  if len(site.rules) > 1 and (geometry.groups > 1 or (doras and len(parts) < len(site.rules))):
    raise ValueError(f"{where} has several adapters whose sum is not one of PEFT's; combine them")
  return geometry


def of_ours(
  site: adapters.Site, rule: adapters.Rule, leaves: Any, lengths: np.ndarray
) -> tuple[int, int, Factors]:
  """(first output, the one after the last, the matrices) of one adapter.

  Args:
    site: of the layer.
    rule: of the adapter.
    leaves: of it.
    lengths: [outputs] of the frozen weights.
  """
  geometry = site.target.geometry
  assert geometry is not None
  start, end = 0, len(lengths)
  if isinstance(rule, part.Part):
    start, end = rule.outputs(site.target)
  a, b = (np.asarray(leaves[name], np.float32) for name in ("a", "b"))
  rank = a.shape[-1]
  b = b.reshape(b.shape[0], -1).T
  if is_convolution(geometry):
    a = np.moveaxis(a, (-1, -2), (0, 1))
    if geometry.groups > 1 and not rule_of(rule).by_block(geometry):
      a = _all_channels(a, b, geometry.groups)
  else:
    a = a.reshape(-1, rank).T
  magnitude = None
  if isinstance(rule_of(rule), dora.DoRA):
    magnitude = lengths[start:end] + np.asarray(leaves["magnitude"], np.float32).reshape(-1)
  return start, end, Factors(a, b, float(leaves["scaling"]), magnitude)


def _all_channels(a: np.ndarray, b: np.ndarray, groups: int) -> np.ndarray:
  """The one A of all groups as torch has it: an A for each, zero for the channels of the others."""
  inner, channels = b.shape[1], a.shape[1]
  whole = np.zeros((groups * inner, groups * channels, *a.shape[2:]), np.float32)
  for g in range(groups):
    whole[g * inner : (g + 1) * inner, g * channels : (g + 1) * channels] = a
  return whole


def joined(
  found: Sequence[tuple[int, int, Factors]], start: int, end: int, lengths: np.ndarray
) -> Factors | None:
  """The adapter that adds what these add to outputs start to end; None: they add nothing there.

  Several products become one of the sum of their ranks, with the scaling of the first.

  Args:
    found: adapters with their outputs, as of `of_ours`.
    start: first output.
    end: the one after the last.
    lengths: [outputs] of the frozen weights, DoRA's for outputs without an adapter.
  """
  own = [(s, e, factors) for s, e, factors in found if s < end and e > start]
  if not own:
    return None
  first = own[0][2]
  scaling = first.scaling if len(own) == 1 or first.scaling else 1.0
  columns = []
  magnitude = None if first.magnitude is None else lengths[start:end].copy()
  for s, e, factors in own:
    rows, kept = (
      slice(max(s, start) - start, min(e, end) - start),
      slice(max(start - s, 0), end - s),
    )
    column = np.zeros((end - start, factors.b.shape[1]), np.float32)
    same = factors.scaling == scaling
    column[rows] = factors.b[kept] * np.float32(1 if same else factors.scaling / scaling)
    columns.append(column)
    if magnitude is not None and factors.magnitude is not None:
      magnitude[rows] = factors.magnitude[kept]
  a = np.concatenate([factors.a for _, _, factors in own])
  return Factors(a, np.concatenate(columns, axis=1), scaling, magnitude)


def to_ours(
  geometry: layer_lib.Geometry, factors: Factors, lengths: np.ndarray
) -> dict[str, np.ndarray]:
  """The leaves of an adapter of a layer, or of a part of it, from the matrices; see `of_ours`."""
  if is_convolution(geometry):
    a, b = np.moveaxis(factors.a, (0, 1), (-1, -2)), factors.b.T
  else:
    a = factors.a.T.reshape(*geometry.sizes(geometry.inputs), -1)
    b = factors.b.T.reshape(-1, *geometry.sizes(geometry.outputs))
  leaves = {"a": a, "b": b, "scaling": np.asarray(factors.scaling, np.float32)}
  if factors.magnitude is not None:
    outputs = geometry.sizes(geometry.outputs)
    leaves["magnitude"] = (factors.magnitude - lengths).reshape(outputs)
  return leaves


def shapes(geometry: layer_lib.Geometry, num_outputs: int, rank: int) -> dict[str, tuple[int, ...]]:
  """What torch has for an adapter of a rank: "lora_A", "lora_B", "lora_magnitude_vector"."""
  if not is_convolution(geometry):
    return {"lora_A": (rank, geometry.fan_in), "lora_B": (num_outputs, rank),
            "lora_magnitude_vector": (num_outputs,)}  # fmt: skip
  *window, channels = geometry.sizes(geometry.inputs)
  ones = (1,) * len(window)
  return {
    "lora_A": (rank, channels * geometry.groups, *window),
    "lora_B": (num_outputs, rank // geometry.groups, *ones),
    "lora_magnitude_vector": (1, num_outputs, *ones),
  }


def lengths_of(geometry: layer_lib.Geometry, kernel: Any) -> np.ndarray:
  """[outputs]: the length of the weights of each output."""
  return np.asarray(geometry.norms(kernel)).reshape(-1)
