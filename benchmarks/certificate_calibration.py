"""Is the best as often the best as its certificate says? Over tables that the model did not make.

  python benchmarks/certificate_calibration.py

Of each generator --tables tables of scores are drawn whose true means are known. The winner of each
is certified twice: with the overlap of the folds' training sets, as the search does, and with none.
Printed: the mean of the claimed P(best), how often the winner is truly the best, and how often the
best is among `undecided`. --picture draws claim against frequency, with 95 % Clopper-Pearson
intervals, in bins of the claim.
"""

import argparse
from collections.abc import Callable
import pathlib

import numpy as np
from scipy import stats

from subtune_jax.report import charts, marks, style
from subtune_jax.search import certificate, scores

Table = tuple[np.ndarray, list[scores.Score]]
EDGES = np.linspace(0, 1, 6)


def draw(
  rng: np.random.Generator, *, sets: int = 8, folds: int = 5, shared: float = 0.0,
  noise: Callable | None = None, heteroscedastic: bool = False, correlation: float = 0.0,
) -> Table:  # fmt: skip
  """True means and accuracies; `shared`: variance of what folds share over that of one fold."""
  tau, sigma = 0.02, 0.01
  groups = np.repeat(np.arange((sets + 1) // 2), 2)[:sets]
  means = np.sqrt(1 - correlation) * rng.normal(size=sets)
  means = tau * (means + np.sqrt(correlation) * rng.normal(size=sets)[groups])
  own = noise(rng, (sets, folds)) if noise else rng.normal(size=(sets, folds))
  if heteroscedastic:
    own = own * np.geomspace(0.3, 2, folds)
  own = own + np.sqrt(shared) * rng.normal(size=(sets, 1))
  accuracy = 0.6 + means[:, None] + rng.normal(0, 0.03, folds) + sigma * own
  return means, [scores.from_accuracies((f"set{i}",), row) for i, row in enumerate(accuracy)]


def draw_images(
  rng: np.random.Generator, *, training: float, shared: float, folds: int = 5, cluster: int = 1
) -> Table:
  """Likewise with answers to 120 images a fold, `cluster` of which are alike."""
  means = rng.normal(0, 0.02, 8)
  cell = rng.normal(size=(8, folds)) + np.sqrt(shared) * rng.normal(size=(8, 1))
  accuracy = 0.7 + means[:, None] + training * cell
  draws = np.repeat(rng.random((8, folds, 120 // cluster)), cluster, axis=-1)
  cells = (draws < accuracy[..., None]).astype(np.float64)
  return means, [scores.Score((f"set{i}",), tuple(row)) for i, row in enumerate(cells)]


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Student's t of 3 degrees, of variance 1."""
  return rng.standard_t(3, shape) / np.sqrt(3)


# name -> (generator, folds)
GENERATORS: dict[str, tuple[Callable, int]] = {
  "5 folds, nothing shared": (draw, 5),
  "5 folds, shared as assumed": (lambda r: draw(r, shared=0.25), 5),
  "5 folds, all shared": (lambda r: draw(r, shared=1.0), 5),
  "2 folds, nothing shared": (lambda r: draw(r, folds=2), 2),
  "2 folds, shared as assumed": (lambda r: draw(r, folds=2, shared=1.0), 2),
  "20 folds, nothing shared": (lambda r: draw(r, folds=20), 20),
  "heavy tails": (lambda r: draw(r, noise=heavy), 5),
  "folds of unequal noise": (lambda r: draw(r, heteroscedastic=True), 5),
  "sets alike in pairs": (lambda r: draw(r, correlation=0.9), 5),
  "images, no noise of training": (lambda r: draw_images(r, training=0, shared=0), 5),
  "images, noise of seeds": (lambda r: draw_images(r, training=0.02, shared=0), 5),
  "images in clusters of 4": (lambda r: draw_images(r, training=0, shared=0, cluster=4), 5),
}  # fmt: skip


def judge(make: Callable, folds: int, tables: int) -> np.ndarray:
  """[overlap or none, tables, (claim, is the best, undecided holds the best)]."""
  rng = np.random.default_rng(0)
  rows = np.zeros((2, tables, 3))
  for i in range(tables):
    means, made = make(rng)
    winner, best = int(np.argmax([score.mean for score in made])), int(means.argmax())
    for k, overlap in enumerate((1 / (folds - 1), 0.0)):
      found = certificate.certify(made, made[winner].units, overlap=overlap, num_draws=500)
      holds = made[best].units in dict(found.undecided)
      rows[k, i] = found.probability_best, winner == best, holds
  return rows


def picture(found: dict[str, np.ndarray]) -> bytes:
  """One panel a generator, as PNG."""
  figure, panels = charts.panels(len(found), 11, 2.87, per_row=4, sharex=True, sharey=True)
  looks = (("with the overlap", style.RIGHT, "o", -0.012), ("without", style.WRONG, "s", 0.012))
  for axes, (name, rows) in zip(panels, found.items(), strict=True):
    axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1)
    for (_, color, marker, shift), (claim, hit, _) in zip(
      looks, rows.transpose(0, 2, 1), strict=True
    ):
      place = np.clip(np.digitize(claim, EDGES) - 1, 0, len(EDGES) - 2)
      for j in np.unique(place):
        own = hit[place == j]
        if len(own) < 5:
          continue
        ends = stats.binomtest(int(own.sum()), len(own)).proportion_ci()
        x = claim[place == j].mean() + shift
        marks.interval(axes, x, ends, color)
        marks.point(axes, x, own.mean(), color, marker, size=5)
    charts.label(axes, name)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
  figure.supxlabel("claimed P(best)", fontsize=charts.SIZE)
  figure.supylabel("frequency of truly best", fontsize=charts.SIZE)
  charts.legend(figure, [(marks.key(color, marker), label) for label, color, marker, _ in looks])
  return charts.png(figure)


def main() -> None:
  """Measures, prints and draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tables", type=int, default=200)
  parser.add_argument("--picture", type=pathlib.Path)
  options = parser.parse_args()
  print("| generator | truly best | claim with the overlap / without | undecided holds the best |")
  print("|---|---|---|---|")
  found = {}
  for name, (make, folds) in GENERATORS.items():
    found[name] = judge(make, folds, options.tables)
    claim, hit, holds = found[name].mean(axis=1).T
    print(
      f"| {name} | {hit[0]:.2f} | {claim[0]:.2f} / {claim[1]:.2f} | {holds[0]:.2f} /"
      f" {holds[1]:.2f} |",
      flush=True,
    )
  if options.picture:
    options.picture.write_bytes(picture(found))


if __name__ == "__main__":
  main()
