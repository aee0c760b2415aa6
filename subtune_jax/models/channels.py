"""Channels of single layers that differ from what a family's shape gives: pruned networks."""

# ("block3/unit1/conv1", 37) and on: layer, channels out; of the queries, keys and values of an
# attention ("encoderblock_2/attention/qkv", 5), heads.
Widths = tuple[tuple[str, int], ...]


def of_block(pruned: Widths, block: str) -> Widths:
  """Those of the layers of one block, by their names in it."""
  prefix = f"{block}/"
  return tuple((name.removeprefix(prefix), n) for name, n in pruned if name.startswith(prefix))


def width(pruned: Widths, layer: str, otherwise: int) -> int:
  """Channels out of a layer, or heads."""
  return dict(pruned).get(layer, otherwise)
