"""SubTuning of the last block and of one in the middle, the prefix cached or not; everything."""

from collections.abc import Iterator

from benchmarks.accelerator_parts import measuring
from benchmarks.accelerator_parts import programs as programs_lib

NETWORKS = ("vit_b16", "resnet50")


def blocks(model) -> dict[str, str]:
  """{"last": , "middle": } of the blocks that a search tries first."""
  names = [n for n in model.block_names if n.startswith(("encoderblock_", "block"))]
  return {"last": names[-1], "middle": names[len(names) // 2]}


def _group(scale: programs_lib.Scale, network: str) -> list[tuple[dict, programs_lib.Program]]:
  """(labels of the row, program) for a network."""
  model, batch = scale.model(network), scale.batches[-1]
  full = programs_lib.spec_of(model, programs_lib.full_fine_tuning())
  what = {"network": network, "tuned": "everything", "prefix": "none"}
  made = [(what, programs_lib.training(f"{network} full", full, batch))]
  for place, block in blocks(model).items():
    method = programs_lib.sub_tuning([block])
    what = {"network": network, "tuned": f"{place}: {block}"}
    fill = programs_lib.inference(f"{network} prefix of {block}", model, batch, stop=block)
    for cached in (True, False):
      spec = programs_lib.spec_of(model, method, cached=cached)
      row = {**what, "prefix": "cached" if cached else "run in every step"}
      name = " ".join(row.values())
      made.append((row, programs_lib.training(name, spec, batch)))
    made.append(({**what, "prefix": "filling the cache"}, fill))
  return made


def programs(scale: programs_lib.Scale) -> Iterator[programs_lib.Program]:
  """Every program of the part."""
  for network in NETWORKS:
    yield from (program for _, program in _group(scale, network))


def run(scale: programs_lib.Scale, log: measuring.Log) -> None:
  """A row per form of training, in bfloat16 with SGD and momentum."""

  def measure(labels: dict, compiled: measuring.Compiled | Exception) -> None:
    if isinstance(compiled, Exception):
      raise compiled
    program = compiled.program
    seconds = measuring.median(compiled.run(), scale)
    row = {**labels, "batch": program.images, "ms": 1e3 * seconds}
    row |= {"images/s": program.images / seconds, "compile s": compiled.seconds}
    if program.carries:
      row["optimiser MB"] = program.opt_bytes / 1e6
    if compiled.memory_bytes is not None:
      row["GB"] = compiled.memory_bytes / 1e9
    log.add(**row)

  for network in NETWORKS:
    group = _group(scale, network)
    if log.late:
      ready = [None] * len(group)  # each is logged as not begun
    else:
      ready = measuring.compile_all(program for _, program in group)
    for (labels, _), compiled in zip(group, ready, strict=True):
      log.attempt(labels, lambda labels=labels, compiled=compiled: measure(labels, compiled))
