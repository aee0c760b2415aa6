"""What one more task adds to the inference of an image where the frozen network runs anyway."""

from collections.abc import Collection
import functools
from typing import Any

import jax

from subtune_jax.models import adapted, backbone, flops


def macs(model: backbone.Backbone, variables: Any, trained: Collection[str]) -> int | None:
  """Multiply-adds of the head and of all blocks from the first trained one on; None of a network
  that is no backbone of ours, whose blocks cannot be run alone.

  Adapters that merge cost nothing beside their layers. Of two networks side by side the frozen one
  runs anyway.

  Args:
    model: as it was trained.
    variables: its variables, or their shapes.
    trained: names of blocks that any stage trained; others ("head") are not looked at.
  """
  base = getattr(model, "base", model)
  if not isinstance(base, backbone.Backbone):
    return None
  head = variables["params"]["head"]["kernel"].size
  places = [i for i, name in enumerate(model.block_names) if name in trained]
  if not places:
    return head
  first = model.block_names[min(places)]
  if isinstance(model, adapted.Adapted) and not model.merges:
    return _traced(model, variables, first)
  counted = _blocks(base)
  begin = list(counted).index(first) if first in counted else 0
  return head + sum(list(counted.values())[begin:])


@functools.lru_cache(maxsize=4)
def _blocks(model: backbone.Backbone) -> dict[str, int]:
  """Multiply-adds by block, without the head."""
  return {name: count for name, count in flops.count_macs(model).items() if name != "head"}


def _traced(model: backbone.Backbone, variables: Any, first: str) -> int:
  """All units from `first` on, with their adapters."""
  size = model.image_size
  x = jax.ShapeDtypeStruct((1, size, size, 3), model.dtype)
  if first != model.block_names[0]:
    x = jax.eval_shape(functools.partial(model.apply, stop=first), variables, x)
  return flops.count(functools.partial(model.apply, start=first), variables, x)
