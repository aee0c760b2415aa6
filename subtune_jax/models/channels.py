"""Channels of single layers that differ from what a family's shape gives: pruned networks."""

Widths = tuple[tuple[str, int], ...]  # ("block3/unit1/conv1", 37) and on: layer, channels out


def of_block(widths: Widths, block: str) -> Widths:
  """Those of the layers of one block, by their names in it."""
  prefix = f"{block}/"
  return tuple((name.removeprefix(prefix), n) for name, n in widths if name.startswith(prefix))


def width(widths: Widths, layer: str, otherwise: int) -> int:
  """Channels out of a layer."""
  return dict(widths).get(layer, otherwise)
