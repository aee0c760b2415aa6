"""Accuracy after SubTuning of pruned networks against parameters, multiply-adds and latency.

  python benchmarks/pruning.py --figure=docs/images/pruning.png --keep=pruning_glyphs

EfficientNet-Lite0 on Glyph Domains' handwriting. For every `--first` the blocks from that one on
lose each share of their channels; then they and the head are trained, at one rate, with the same
seeds.
Latency is the median of ratios to the whole network within rounds that run all of them in turn.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from subtune_jax import data, methods, models, pruning, weights
from subtune_jax.models import flops, heads
from subtune_jax.report import charts, estimate, marks, style
from subtune_jax.runner import provenance
from subtune_jax.statistics import intervals
from subtune_jax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA, NETWORK, PROBE = "glyph_domains/handwriting", "efficientnet_lite0", "lp"
BATCHES = (1, 32)


@dataclasses.dataclass
class Row:
  """One network: its size, and its answers by seed, [seeds, images]."""

  name: str
  first: str
  share: float
  model: Any
  variables: Any
  answers: np.ndarray
  latency: dict[int, float] = dataclasses.field(default_factory=dict)

  @property
  def parameters(self) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

  @property
  def macs(self) -> int:
    return sum(flops.count_macs(self.model).values())


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--shares", type=float, nargs="+", default=(0.0, 0.25, 0.5, 0.75))
  parser.add_argument("--first", nargs="+", default=("block6", "block13"))
  parser.add_argument("--epochs", type=int, default=8)
  parser.add_argument("--rate", type=float, default=3e-3)
  parser.add_argument("--image_size", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=40)
  parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
  parser.add_argument("--figure", type=pathlib.Path, help="where to draw it, a PNG")
  parser.add_argument("--keep", help="the name to keep the answers under for docs/claims.md")
  return parser


def ratios(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
  """Seconds of each call over those of the first: medians of the ratios within rounds."""
  for call in calls:
    jax.block_until_ready(call())
  times = []
  for _ in range(rounds):
    times.append([])
    for call in calls:
      begin = time.perf_counter()
      jax.block_until_ready(call())
      times[-1].append(time.perf_counter() - begin)
  return [statistics.median(row[i] / row[0] for row in times) for i in range(len(calls))]


def _measure(rows: Sequence[Row], rounds: int) -> None:
  """Fills in `latency`; the first row is the whole network."""
  for batch in BATCHES:
    size = rows[0].model.image_size
    x = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)
    calls = [functools.partial(jax.jit(row.model.apply), row.variables, x) for row in rows]
    for row, ratio in zip(rows, ratios(calls, rounds), strict=True):
      row.latency[batch] = ratio


def _train(given, model, pretrained, sets: Mapping[str, Any]) -> list[Row]:
  """The probe of the whole network, then every pruned and tuned one."""
  train, validation, test = (sets[name] for name in ("train", "validation", "test"))
  whole = pretrained.variables
  engine = loop.Engine(model, pretrained.preprocessing, batch_size=32)
  probe = loop.fit(engine, whole, methods.linear_probing(), train, validation)
  answers = engine.predict(probe.variables, test.images).argmax(-1)[None]
  rows = [Row(PROBE, "", 0.0, model, whole, answers)]
  for first in given.first:
    blocks = model.block_names[model.block_names.index(first) :]
    method = methods.sub_tuning(blocks, given.rate, epochs=given.epochs)
    for share in given.shares:
      kept = pruning.choose(model, whole, blocks, share=share)
      small, variables = pruning.shrink(model, whole, kept)
      engine = loop.Engine(small, pretrained.preprocessing, batch_size=32)
      found = []
      for seed in given.seeds:
        start = heads.init_head(small, variables, seed, pretrained.sha256)
        result = loop.fit(engine, start, method, train, None, seed=seed)
        found.append(engine.predict(result.variables, test.images).argmax(-1))
      name = f"from {first}, {100 * share:g} % gone"
      rows.append(Row(name, first, share, small, variables, np.array(found)))
      print(name, flush=True)
  return rows


def _estimates(rows: Sequence[Row], test: Any) -> tuple[dict, dict]:
  """Accuracies, and differences to the whole network tuned from the same block."""
  means, gaps = {}, {}
  for first in dict.fromkeys(row.first for row in rows):
    own = [row for row in rows if row.first == first]
    correct = {row.name: row.answers == test.labels for row in own}
    made = intervals.paired_bootstrap(correct, test.groups, reference=own[0].name)
    for row in own:
      means[row.name] = estimate.Estimate(made.means[row.name], *made.intervals[row.name])
      if row.name in made.differences:
        gaps[row.name] = estimate.Estimate(*made.differences[row.name])
  return means, gaps


def _points(value: estimate.Estimate, sign: str = "") -> str:
  mean, low, high = (f"{100 * x:{sign}.1f}" for x in (value.mean, value.low, value.high))
  return f"{mean} [{low}, {high}]"


def _table(rows: Sequence[Row], means: Mapping, gaps: Mapping) -> str:
  lines = ["| network | parameters, M | multiply-adds, M | one image | 32 images | accuracy, % | "
           "minus unpruned |", "|---|---|---|---|---|---|---|"]  # fmt: skip
  for row in rows:
    gap = _points(gaps[row.name], "+") if row.name in gaps else ""
    lines.append(
      f"| {row.name} | {row.parameters / 1e6:.2f} | {row.macs / 1e6:.1f} | {row.latency[1]:.2f} | "
      f"{row.latency[32]:.2f} | {_points(means[row.name])} | {gap} |"
    )
  return "\n".join(lines)


def _picture(rows: Sequence[Row], means: Mapping) -> bytes:
  """Accuracy against each of the three, a line for every first block."""
  made, axes = charts.panels(3, 10.5, 3.9, sharey=True)
  costs = (("parameters, millions", lambda row: row.parameters / 1e6),
           ("multiply-adds of an image, millions", lambda row: row.macs / 1e6),
           ("seconds of 32 images, whole network = 1", lambda row: row.latency[32]))  # fmt: skip
  looks = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
  names = list(dict.fromkeys(row.first for row in rows if row.first))
  for panel, (label, cost) in zip(axes, costs, strict=True):
    marks.level(panel, means[PROBE], style.MUTED, "--")
    for first, (color, marker) in zip(names, looks, strict=False):
      own = [row for row in rows if row.first == first]
      ys = [100 * means[row.name].mean for row in own]
      panel.plot([cost(row) for row in own], ys, color=color, linewidth=1.2, alpha=0.6)
      for row in own:
        marks.mean(panel, cost(row), means[row.name], color, marker, filled=row.share == 0)
    panel.set_xlim(left=0)
    charts.label(panel, x=label, y="test accuracy, %" if panel is axes[0] else "")
  entries = [
    (marks.key(color, marker, filled=False), f"pruned and tuned from {first} on")
    for first, (color, marker) in zip(names, looks, strict=False)
  ]
  entries += [
    (marks.key(style.INK, "o"), "nothing pruned"),
    (marks.key(style.MUTED, dashes="--"), "linear probe, nothing pruned"),
  ]
  charts.legend(made, entries)
  return charts.png(made)


def _keep(name: str, given, rows: Sequence[Row], test: Any, mesh: Any, command: str) -> None:
  """The answers, for docs/claims.md."""
  sys.path.insert(0, str(ROOT))
  from benchmarks.claims_parts import archive

  facts = provenance.run_facts(mesh) | {
    "command": command, "data": {"train": DATA, "id": DATA, "ood": []}, "network": NETWORK,
    "image_size": given.image_size, "seeds": list(given.seeds),
    "rates": {"subtuning": [given.rate, False]},
    "sizes": {row.name: [row.parameters, row.macs, row.latency] for row in rows},
  }  # fmt: skip
  predicted = {row.name: row.answers for row in rows}
  groups = np.unique(test.groups, return_inverse=True)[1]
  answers = archive.Answers(test.labels, groups, predicted)
  print(archive.write(name, archive.Archive(facts, {DATA: answers})))


def main(argv: Sequence[str] | None = None) -> None:
  """Trains, times and prints a row for each network."""
  given = _parser().parse_args(argv)
  begin = time.perf_counter()
  sets = {s: data.load(DATA, s, given.image_size) for s in ("train", "validation", "test")}
  classes = len(sets["train"].class_names)
  model = models.create(NETWORK, classes, image_size=given.image_size)
  pretrained = weights.load_pretrained(f"{NETWORK}/imagenet", model)
  rows = _train(given, model, pretrained, sets)
  _measure(rows, given.rounds)
  means, gaps = _estimates(rows, sets["test"])
  print(_table(rows, means, gaps))
  print(f"{time.perf_counter() - begin:.0f} s")
  if given.figure:
    given.figure.write_bytes(_picture(rows, means))
  if given.keep:
    command = " ".join(["python benchmarks/pruning.py", *(argv or sys.argv[1:])])
    mesh = loop.Engine(model, pretrained.preprocessing).mesh
    _keep(given.keep, given, rows, sets["test"], mesh, command)


if __name__ == "__main__":
  main()
