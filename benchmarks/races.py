"""Races held on the exact scores of a finished greedy search: what they save, and what they lose.

  python -m subtune_jax.main --config=configs/greedy.py --config.search.rule=size
  python benchmarks/races.py runs/greedy --regret 0.005 0.01

Nothing is trained. Each step of the search is raced again with its folds in every rotation, on the
recorded answers to held-out images. Regret is the exact best score of the step minus that of the
race's winner, in points; a cost is the recorded seconds of the trainings that the race asked for.
"""

import argparse
import json
import pathlib

import numpy as np

from subtune_jax import data
from subtune_jax.search import racing, scores, store
from subtune_jax.studies.search import record as search_record


def read(workdir: pathlib.Path):
  """(steps as lists of sets, cell by set and fold, seconds by set and fold, number of folds)."""
  record = search_record.load(workdir)
  config = record["config"]
  kept = store.Store(config["search"]["store"] or workdir / "search")
  own = config["data"]
  train = data.load(
    own["train"], record["data"]["split"], own["image_size"], interpolation=own["interpolation"]
  )
  steps = [
    [tuple(entry["units"]) for entry in step["tried"]]
    for search in record["searches"] if search["kind"] == "greedy"
    for step in search["steps"]
  ]  # fmt: skip
  cells, seconds = {}, {}
  for line in (kept.folder / "ledger.jsonl").read_text().splitlines():
    row = json.loads(line)
    arrays = kept.logits(row["key"])
    place = tuple(row["units"]), row["fold"]
    cells[place] = (np.argmax(arrays["logits"], -1) == train.labels[arrays["rows"]]).astype(float)
    seconds[place] = row["seconds"]
  return steps, cells, seconds, record["data"]["num_folds"]


def hold(sets, cells, seconds, order, regret: float, known) -> tuple[float, int, float]:
  """(regret in points, trainings, seconds) of one race."""
  spent = []

  def train(asked, fold):
    spent.extend(seconds[units, order[fold]] for units in asked)
    return [cells[units, order[fold]] for units in asked]

  done = racing.race(
    sets, train, len(order), regret=regret, overlap=1 / (len(order) - 1), known=known
  )
  exact = {units: np.mean([cells[units, f].mean() for f in order]) for units in sets}
  return 100 * (max(exact.values()) - exact[done.winner]), done.trained, sum(spent)


def main() -> None:
  """Races and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("workdir", type=pathlib.Path, help="of an exact greedy search")
  parser.add_argument("--regret", type=float, nargs="+", default=[0.005, 0.01])
  arguments = parser.parse_args()
  steps, cells, seconds, folds = read(arguments.workdir)
  trainings = folds * sum(map(len, steps))
  exact = sum(seconds[units, f] for sets in steps for units in sets for f in range(folds))
  print(f"{len(steps)} steps, {trainings} trainings, {exact:.0f} s of training when exact")
  for regret in arguments.regret:
    lost, trained, spent = [], [], []
    for rotation in range(folds):
      order = [(rotation + f) % folds for f in range(folds)]
      rows, known = [], []
      for sets in steps:
        rows.append(hold(sets, cells, seconds, order, regret, known))
        best = max(sets, key=lambda units: sum(cells[units, f].mean() for f in order))
        known.append(scores.Score(best, tuple(cells[best, f] for f in order)))
      lost.append([row[0] for row in rows])
      trained.append(sum(row[1] for row in rows))
      spent.append(sum(row[2] for row in rows))
    print(
      f"regret of {100 * regret:g} points allowed a step: lost {np.mean(lost):.2f} a step (most "
      f"{np.max(lost):.2f}), {np.mean(trained):.0f} trainings ({trainings / np.mean(trained):.2f} "
      f"times fewer), {np.mean(spent):.0f} s ({exact / np.mean(spent):.2f} times less)"
    )


if __name__ == "__main__":
  main()
