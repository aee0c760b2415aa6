"""The linear probe's sweep over 50 strengths against scikit-learn's, on 20 problems.

  python benchmarks/probe_sweep.py
  python benchmarks/probe_sweep.py --family digits
  python benchmarks/probe_sweep.py --choices     (against a converged peer; nothing is timed)

The problems need no download: scikit-learn's digits, and Emoji Domains as pixels and as features of
an EfficientNet-Lite0 with ImageNet weights; 2 to 100 classes, in some of them a class of the head
without a training image. Both sides read the same float32 features, standardise them by one mean
and one standard deviation, fit LP-FT's grid of strengths from strong to weak and choose on the
validation images; the first of equal strengths is taken. scikit-learn is given its best form:

  timed      as the code of LP-FT calls it: `LogisticRegression`, lbfgs, warm start, at most 200
             iterations, the default tolerance. In float32 and in float64, the faster one counts.
  converged  float64, tolerance 1e-9, at most 100,000 iterations: what the accuracy ought to be. (At
             1e-6 it is up to four images off: a weak penalty lets weights move by gradient / l2.)

It fits the classes that are there and so never predicts another one. Ours is timed before, between
and after the others (the median counts), without compiling, which is given apart. All run on the
same threads in one process, after a rest: the threads of BLAS and OpenMP spin for some time after
their last work, and a sweep of 10 ms that begins meanwhile takes 70.
"""

import argparse
from collections.abc import Callable, Iterator
import datetime
import itertools
import json
import os
import platform
import statistics
import time
from typing import NamedTuple
import warnings

from absl import logging
import idle
import jax
import numpy as np
import sklearn
from sklearn import datasets, exceptions, linear_model
import threadpoolctl

from subtune_jax import data, models, weights
from subtune_jax.training import evaluate, probe, timing
from subtune_jax.training import mesh as mesh_lib

DOMAINS = ("noto", "twemoji", "openmoji", "fluent")
SIZE, SMALL = (
  64,
  16,
)  # pixels of the images that the network reads, and of those that the probe does
STRENGTHS = 50
TARGET = 10.0
REST = 0.3  # seconds before each turn


class Problem(NamedTuple):
  """Features and labels to train on and to choose by.

  Attributes:
    x: [n, d] float32.
    y: [n] integers below `num_classes`.
    x_val: [m, d] float32.
    y_val: [m].
    num_classes: of the head.
  """

  x: np.ndarray
  y: np.ndarray
  x_val: np.ndarray
  y_val: np.ndarray
  num_classes: int


class Sweep(NamedTuple):
  """What a sweep found: validation images classified rightly by each strength, and how long."""

  hits: np.ndarray
  seconds: float
  compiling: float = 0.0

  @property
  def choice(self) -> int:
    """Position of the strength that is taken: the first of the best, strong to weak."""
    return int(self.hits.argmax())


def without(problem: Problem, *absent: int) -> Problem:
  """The problem without training images of some classes."""
  kept = ~np.isin(problem.y, absent)
  return problem._replace(x=problem.x[kept], y=problem.y[kept])


def only(problem: Problem, *classes: int, num_classes: int = 0) -> Problem:
  """The images of some classes, which are numbered anew unless the head keeps `num_classes`."""
  rows, rows_val = (np.isin(y, classes) for y in (problem.y, problem.y_val))
  y, y_val = problem.y[rows], problem.y_val[rows_val]
  if not num_classes:
    y, y_val = (np.searchsorted(sorted(classes), labels) for labels in (y, y_val))
  head = num_classes or len(classes)
  return Problem(problem.x[rows], y, problem.x_val[rows_val], y_val, head)


def digits() -> dict[str, Problem]:
  """Problems from 1,797 digits of 8 x 8 pixels."""
  loaded = datasets.load_digits()
  images, y = loaded.images.astype(np.float32), loaded.target
  cut = 1000

  def made(view: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], classes: int):
    x, labels = view(images[:cut], y[:cut])
    x_val, labels_val = view(images[cut:], y[cut:])
    flat = (x.reshape(len(x), -1), labels, x_val.reshape(len(x_val), -1), labels_val)
    return Problem(*flat, classes)

  def turned(x, labels):  # each digit as it is and turned by 90, 180 and 270 degrees
    turns = [np.rot90(x, k, axes=(1, 2)) for k in range(4)]
    return np.concatenate(turns), np.concatenate([4 * labels + k for k in range(4)])

  def pairs(x, labels):  # two digits side by side: 00 to 99
    left, right = np.random.default_rng(0).integers(0, len(x), (2, 3 * len(x)))
    return np.concatenate([x[left], x[right]], axis=2), 10 * labels[left] + labels[right]

  plain = made(lambda x, labels: (x, labels), 10)
  hundred = made(pairs, 100)
  return {
    "digits": plain,
    "digits 3 and 8": only(plain, 3, 8),
    "digits 1 and 7": only(plain, 1, 7),
    "digits, even": only(plain, 0, 2, 4, 6, 8),
    "digits, no 4": without(plain, 4),
    "digits and their turns": made(turned, 40),
    "pairs of digits": hundred,
    "pairs of digits, five missing": without(hundred, 7, 23, 42, 68, 99),
  }


def emoji(network: str = "efficientnet_lite0") -> dict[str, Problem]:
  """Problems from Emoji Domains: 652 training and 174 validation images in each of four styles."""
  model = models.create(network, num_classes=45)
  loaded = weights.load_pretrained(f"{network}/imagenet", model)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])

  def features(images: np.ndarray) -> np.ndarray:
    options = {"preprocessing": loaded.preprocessing, "batch_size": 64, "mesh": mesh}
    return np.asarray(
      evaluate.run_units(model, loaded.variables, images, stop="head", **options), np.float32
    )

  def domain(name: str, size: int, view: Callable[[np.ndarray], np.ndarray]) -> Problem:
    sets = [data.load(f"emoji_domains/{name}", split, size) for split in ("train", "validation")]
    columns = [column for s in sets for column in (view(s.images), s.labels)]
    return Problem(*columns, 45)

  made = {name: domain(name, SIZE, features) for name in DOMAINS}
  names = data.load("emoji_domains/noto", "validation", SIZE).class_names
  coarse_names, coarse = np.unique([n.split("-")[0] for n in names], return_inverse=True)

  def pair(name: str, *words: str) -> Problem:
    relabelled = made[name]._replace(y=coarse[made[name].y], y_val=coarse[made[name].y_val])
    return only(relabelled, *np.searchsorted(coarse_names, sorted(words)))

  def pooled(
    domains: tuple[str, ...], label: Callable[[int, np.ndarray], np.ndarray], classes: int
  ):
    chosen = [made[name] for name in domains]
    x, x_val = (np.concatenate([p[k] for p in chosen]) for k in (0, 2))
    y, y_val = (np.concatenate([label(i, p[k]) for i, p in enumerate(chosen)]) for k in (1, 3))
    return Problem(x, y, x_val, y_val, classes)

  first = made["noto"]
  coarse_problem = first._replace(y=coarse[first.y], y_val=coarse[first.y_val])
  pixels = domain("noto", SMALL, lambda x: x.reshape(len(x), -1).astype(np.float32))
  return {
    **{f"{name}": problem for name, problem in made.items()},
    "noto, coarse": coarse_problem._replace(num_classes=len(coarse_names)),
    "noto, animal or food": pair("noto", "animal", "food"),
    "twemoji, person or place": pair("twemoji", "person", "place"),
    "openmoji, three missing": without(made["openmoji"], 2, 20, 44),
    "fluent, two of 45": only(made["fluent"], 2, 32, num_classes=45),
    "noto, pixels": pixels,
    "which of four styles": pooled(DOMAINS, lambda i, y: np.full(len(y), i), 4),
    "two styles and their classes": pooled(DOMAINS[:2], lambda i, y: 45 * i + y, 90),
  }


def strengths(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
  """LP-FT's grid as scikit-learn's C, ascending, and as our l2 with the same optima.

  For two classes scikit-learn fits one vector, whose penalty is half as strong.
  """
  c = np.logspace(-7, 2, STRENGTHS)
  l2 = probe.lpft_strengths(len(problem.y), STRENGTHS)
  return c, l2 * (2 if len(np.unique(problem.y)) == 2 else 1)


def ours(problem: Problem, tol: float) -> Sweep:
  """Our sweep."""
  l2 = strengths(problem)[1]
  time.sleep(REST)
  watch = timing.Watch()
  path = probe.fit_path(problem.x, problem.y, num_classes=problem.num_classes, l2=l2, tol=tol)
  choice = probe.choose(path, problem.x_val, problem.y_val)
  seconds, compiling = watch.lap()
  sweep = Sweep(np.rint(choice.accuracy * len(problem.y_val)).astype(int), seconds, compiling)
  assert sweep.choice == choice.index
  return sweep


def theirs(problem: Problem, dtype: type, tol: float = 1e-4, max_iterations: int = 200) -> Sweep:
  """scikit-learn's sweep."""
  time.sleep(REST)
  begin = time.perf_counter()
  mean, std = problem.x.mean(), problem.x.std()
  x, x_val = (((a - mean) / std).astype(dtype) for a in (problem.x, problem.x_val))
  model = linear_model.LogisticRegression(
    warm_start=True, tol=tol, max_iter=max_iterations, random_state=0
  )
  hits = []
  for c in strengths(problem)[0]:
    model.C = c
    model.fit(x, problem.y)
    hits.append(np.sum(model.predict(x_val) == problem.y_val))
  return Sweep(np.array(hits), time.perf_counter() - begin)


def compare(name: str, problem: Problem, tol: float) -> dict:
  """A row of the table of times."""
  cold = ours(problem, tol)
  runs = {"ours": [ours(problem, tol)]}
  for dtype in (np.float32, np.float64):
    runs[dtype.__name__] = [theirs(problem, dtype)]
    runs["ours"].append(ours(problem, tol))
  seconds = {who: statistics.median(s.seconds for s in sweeps) for who, sweeps in runs.items()}
  peer = min(("float32", "float64"), key=lambda who: seconds[who])
  return describe(name, problem, {"ours": runs["ours"][0], "timed": runs["float64"][0]}) | {
    "seconds": seconds, "compiling": cold.compiling, "peer": peer,
    "ratio": seconds[peer] / seconds["ours"],
    "ratio_compiling": seconds[peer] / (seconds["ours"] + cold.compiling),
  }  # fmt: skip


def compare_choices(name: str, problem: Problem, tol: float) -> dict:
  """A row of the table of choices."""
  converged = theirs(problem, np.float64, 1e-9, 100_000)
  return describe(name, problem, {"ours": ours(problem, tol), "converged": converged})


def describe(name: str, problem: Problem, found: dict[str, Sweep]) -> dict:
  """The problem, and what the sweeps found."""
  return {
    "problem": name, "classes": problem.num_classes, "present": len(np.unique(problem.y)),
    "images": len(problem.y), "features": problem.x.shape[1], "validation": len(problem.y_val),
    "hits": {who: int(sweep.hits.max()) for who, sweep in found.items()},
    "choice": {who: sweep.choice for who, sweep in found.items()},
    "most_apart": {who: int(np.abs(sweep.hits - found["ours"].hits).max())
                   for who, sweep in found.items() if who != "ours"},
  }  # fmt: skip


HEADER = ("problem", "classes (present)", "images x features")
TIMES = (
  *HEADER, "right: ours / timed", "choice", "ours, s", "compiling, s", "scikit-learn, s", "ratio"
)  # fmt: skip
CHOICES = (*HEADER, "right: ours / converged", "choice", "most apart at any strength")


def show(row: dict) -> str:
  """The row in Markdown."""
  classes = f"{row['classes']}" + (
    f" ({row['present']})" if row["present"] < row["classes"] else ""
  )
  hits, choice = (" / ".join(str(v) for v in row[key].values()) for key in ("hits", "choice"))
  cells = [
    row["problem"], classes, f"{row['images']} x {row['features']}",
    f"{hits} of {row['validation']}", choice,
  ]  # fmt: skip
  if "ratio" in row:
    cells += [f"{row['seconds']['ours']:.3f}", f"{row['compiling']:.1f}"]
    cells += [f"{row['seconds'][row['peer']]:.2f} ({row['peer']})", f"{row['ratio']:.1f}"]
  else:
    cells += [str(row["most_apart"]["converged"])]
  return "| " + " | ".join(cells) + " |"


def summary(rows: list[dict]) -> Iterator[str]:
  """Lines below the table."""
  if "ratio" in rows[0]:
    for key, what in (("ratio", "ratio"), ("ratio_compiling", "ratio, our compiling counted")):
      ratios = [row[key] for row in rows]
      yield f"{what}: median {statistics.median(ratios):.1f}, worst {min(ratios):.1f}"
    below = sum(row["ratio"] < TARGET for row in rows)
    yield f"below the target of {TARGET:.0f}: {below} of {len(rows)}"
  for who in rows[0]["most_apart"]:
    apart = [row["hits"]["ours"] - row["hits"][who] for row in rows]
    near = sum(abs(a) <= 1 for a in apart)
    yield (
      f"best validation accuracy within one image of scikit-learn, {who}: {near} of {len(apart)} "
      f"(ours less theirs, in images: {min(apart)} to {max(apart)})"
    )


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--family", default="all", choices=("all", "digits", "emoji"))
  parser.add_argument("--only", default="", help="problems whose name contains this")
  tol = probe.fit_path.__kwdefaults__["tol"]
  parser.add_argument("--tol", type=float, default=tol, help="ours; the default is the library's")
  parser.add_argument("--choices", action="store_true", help="against a converged peer, no times")
  parser.add_argument("--json", help="also write the rows to this file")
  idle.add_option(parser)
  arguments = parser.parse_args()
  load = idle.load(arguments.force or arguments.choices)
  logging.set_verbosity(logging.ERROR)  # strengths at the edge of the grid
  warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
  threads = len(os.sched_getaffinity(0))
  facts = {
    "date": datetime.date.today().isoformat(), "device": jax.devices()[0].device_kind,
    "threads": threads, "load at start": round(load, 2), "forced": arguments.force,
    "strengths": STRENGTHS, "tol": arguments.tol, "python": platform.python_version(),
    "jax": jax.__version__, "scikit-learn": sklearn.__version__,
  }  # fmt: skip
  print(", ".join(f"{k} {v}" for k, v in facts.items()), flush=True)
  header = CHOICES if arguments.choices else TIMES
  print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|", flush=True)
  rows = []
  with threadpoolctl.threadpool_limits(threads):
    families = {"digits": digits, "emoji": emoji}
    chosen = families if arguments.family == "all" else [arguments.family]
    for name, problem in itertools.chain.from_iterable(families[f]().items() for f in chosen):
      if arguments.only in name:
        row = compare_choices if arguments.choices else compare
        rows.append(row(name, problem, arguments.tol))
        print(show(rows[-1]), flush=True)
  for line in summary(rows):
    print(line)
  if arguments.json:
    with open(arguments.json, "w") as f:
      json.dump({"facts": facts, "rows": rows}, f, indent=1)


if __name__ == "__main__":
  main()
