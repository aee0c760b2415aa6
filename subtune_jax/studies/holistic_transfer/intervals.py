"""Intervals of the tables of a study of holistic transfer: over test concepts and seeds.

All networks share the draws of test concepts, and those of the same seeds the draws of seeds too
(each seed has classes of its own), so differences between rows are paired. gamma is held.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import numpy as np

from subtune_jax.calibration import resampling
from subtune_jax.statistics import intervals
from subtune_jax.studies import epoch_files

Row = dict[str, Any]
LEVEL = "95"
AUSUC = resampling.AUSUC
PAIRS = tuple(name for name in resampling.NAMES if name != AUSUC)
USES = ("pretrained", "main", "wise", "block")  # networks that the tables are made of
NUM_RESAMPLES = 2000
# Rows that every row is compared with.
REFERENCES = {"pretrained": ("pretrained", "none"), "ft": ("ft", "none")}


def add(
  rows: Sequence[Row],
  networks: Sequence[Row],
  absent: Mapping[int, np.ndarray],
  workdir: pathlib.Path,
  groups: np.ndarray,
) -> None:
  """Writes intervals and differences into the rows of tables.

  Each "Y/Y", "S/Y", "U/Y" of `row["numbers"]["accuracy"]` and "ausuc" gets "95": [low, high];
  `row["against"]` is {"pretrained", "ft"} -> {"Y/Y", "S/Y", "U/Y", "AUSUC"} -> [difference, low,
  high] over images: of this row minus that of the source model or of fine-tuning, as they are.

  Args:
    rows: of `holistic_record.table`.
    networks: what they are made of, whose last epochs name files in `workdir`.
    absent: partition -> [C] bool.
    workdir: of the study.
    groups: [num_test] the concept of each test image.
  """
  if len(np.unique(groups)) < 2:
    return  # nothing to resample
  resampled = _Resampled(networks, absent, workdir, groups)
  micro = [resampled.row(row) for row in rows]
  for row, own in zip(rows, micro, strict=True):
    numbers, by_class = row["numbers"], resampled.row(row, balanced=True)
    for pair in PAIRS:
      numbers["accuracy"]["micro"][pair][LEVEL] = _ends(own[pair])
      numbers["accuracy"]["balanced"][pair][LEVEL] = _ends(by_class[pair])
    numbers["ausuc"] = numbers["ausuc"] | {LEVEL: _ends(own[AUSUC])}
    row["against"] = {
      name: _difference(row, other, own, theirs)
      for name, wanted in REFERENCES.items()
      for other, theirs in zip(rows, micro, strict=True)
      if (other["method"], other["calibration"]) == wanted and other is not row
    }


def _difference(row: Row, other: Row, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> Row:
  """Name -> [difference, low, high]."""
  return {
    name: [_mean(row, name) - _mean(other, name), *_ends(own[name] - theirs[name])]
    for name in (*PAIRS, AUSUC)
  }


def _mean(row: Row, name: str) -> float:
  numbers = row["numbers"]
  found = numbers["ausuc"] if name == AUSUC else numbers["accuracy"]["micro"][name]
  return found["mean"]


def _ends(resampled: np.ndarray) -> list[float]:
  return list(resampling.percentiles(resampled))


class _Resampled:
  """Every number of every network's last epoch in every resample of the test concepts."""

  def __init__(
    self,
    networks: Sequence[Row],
    absent: Mapping[int, np.ndarray],
    workdir: pathlib.Path,
    groups: np.ndarray,
  ):
    self.networks = [n for n in networks if n["epochs"] and n["use"] in USES]
    judged = [_judge(n, absent[n["partition"]], workdir) for n in self.networks]
    found = [([], []) for _ in judged]
    for _, counts in resampling.draws(groups, NUM_RESAMPLES):
      for parts, own in zip(found, judged, strict=True):
        parts[0].append(own.resampled(counts))
        parts[1].append(own.resampled_by_class(counts))
    self.found = [[_joined(parts) for parts in pair] for pair in found]  # over images, by class
    rng, most = np.random.default_rng(1), len({n["seed"] for n in self.networks})
    self.seed_weights = {
      k: intervals.draw_counts(rng, NUM_RESAMPLES, k).T / k for k in range(1, most + 1)
    }

  def row(self, row: Row, *, balanced: bool = False) -> dict[str, np.ndarray]:
    """The means over drawn seeds of a row of a table, [NUM_RESAMPLES] by name."""
    own = [
      i for i, n in enumerate(self.networks)
      if (n["method"], n["title"]) == (row["method"], row["title"])
    ]  # fmt: skip
    weights, kind = self.seed_weights[len(own)], row["calibration"]
    made = {}
    for name in self.found[own[0]][balanced]:
      values = np.stack([self._values(i, name, kind, balanced) for i in own])
      made[name] = np.where(weights > 0, weights * values, 0).sum(0)
    return made

  def _values(self, index: int, name: str, kind: str, balanced: bool) -> np.ndarray:
    found = self.found[index][balanced][name]
    kinds = list(self.networks[index]["epochs"][-1]["gamma"])
    return found if name == AUSUC else found[kinds.index(kind)]


def _judge(network: Row, absent: np.ndarray, workdir: pathlib.Path) -> resampling.Judged:
  last = network["epochs"][-1]
  arrays = epoch_files.read(workdir / last["file"])
  gammas = list(last["gamma"].values())
  return resampling.judge(arrays["test/logits"], arrays["test/labels"], absent, gammas)


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
