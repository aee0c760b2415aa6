"""The seen-unseen curve of a million rows, and one sort against a sweep over thresholds.

  python benchmarks/seen_unseen_curve.py

Two measurements, each in a process of its own:

* the curve and its area on float32 logits of --rows x --classes: seconds, and the peak of resident
  memory over the bytes of the logits;
* on --sweep-rows x --classes, the curve against the sweep as it was released with the paper: from
  gamma = 0 up and then down, each step shifts the absent logits by the middle of the two smallest
  distinct margins ahead, and recomputes the accuracies of all rows. --steps of its steps are timed
  and scaled by the number of distinct margins, which is how many it takes.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import idle
import numpy as np

from subtune_jax import calibration

SECONDS, MEMORY, FASTER = 20.0, 3.0, 100.0  # what is promised, for a million rows on two cores


def make(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Random float32 logits that know something, labels, and half of the classes as absent."""
  generator = np.random.default_rng(seed)
  labels = generator.integers(0, classes, rows)
  logits = np.empty((rows, classes), np.float32)
  for start in range(0, rows, 10_000):
    generator.standard_normal(dtype=np.float32, out=logits[start : start + 10_000])
  logits[np.arange(rows), labels] += 3
  absent = generator.permutation(classes) < classes // 2
  return logits, labels, absent


def sweep_steps(logits: np.ndarray, labels: np.ndarray, absent: np.ndarray, steps: int) -> float:
  """Seconds of one step of the released sweep, the median of `steps`."""
  shifted = logits.astype(np.float64)
  unseen = absent[labels]
  seconds = []
  for _ in range(steps):
    begin = time.perf_counter()
    margin = shifted[:, ~absent].max(1) - shifted[:, absent].max(1)
    ahead = np.unique(margin[margin >= 0])[:2]
    shifted = shifted.copy()  # as released: the logits are cloned at each step
    shifted[:, absent] += ahead.mean()
    right = shifted.argmax(1) == labels
    right[~unseen].mean(), right[unseen].mean()
    seconds.append(time.perf_counter() - begin)
  return statistics.median(seconds)


def measure_curve(rows: int, classes: int) -> dict[str, float]:
  """Seconds and memory of one curve."""
  data = make(rows, classes)
  begin = time.perf_counter()
  area = calibration.seen_unseen_curve(*data).ausuc()
  seconds = time.perf_counter() - begin
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "rows": rows, "classes": classes, "seconds": seconds, "AUSUC": float(area),
    "peak bytes": peak, "peak over logits": peak / data[0].nbytes,
  }  # fmt: skip


def measure_sweep(rows: int, classes: int, steps: int) -> dict[str, float]:
  """Seconds of the curve and, scaled from a few steps, of the sweep."""
  data = make(rows, classes)
  own = []
  for _ in range(3):
    begin = time.perf_counter()
    calibration.seen_unseen_curve(*data).ausuc()
    own.append(time.perf_counter() - begin)
  total = len(np.unique(calibration.margins(data[0], data[2])))
  step = sweep_steps(*data, steps)
  own = statistics.median(own)
  return {
    "rows": rows, "classes": classes, "seconds": own, "seconds a step of the sweep": step,
    "steps of the sweep": total, "ratio": step * total / own,
  }  # fmt: skip


def in_process(arguments: argparse.Namespace, part: str) -> dict[str, float]:
  """Runs one measurement in a fresh interpreter and returns its figures."""
  command = [sys.executable, __file__, f"--part={part}", f"--rows={arguments.rows}",
             f"--classes={arguments.classes}", f"--sweep-rows={arguments.sweep_rows}",
             f"--steps={arguments.steps}"]  # fmt: skip
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--classes", type=int, default=1000)
  parser.add_argument("--sweep-rows", type=int, default=50_000)
  parser.add_argument("--steps", type=int, default=20, help="of the sweep that are timed")
  parser.add_argument("--json", help="also write the figures to this file")
  idle.add_option(parser)
  parser.add_argument("--part", choices=["curve", "sweep"], help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.part == "curve":
    return print(json.dumps(measure_curve(arguments.rows, arguments.classes)))
  if arguments.part == "sweep":
    return print(
      json.dumps(measure_sweep(arguments.sweep_rows, arguments.classes, arguments.steps))
    )
  load = idle.load(arguments.force)
  facts = {
    "date": datetime.date.today().isoformat(), "threads": len(os.sched_getaffinity(0)),
    "load at start": round(load, 2), "forced": arguments.force,
    "python": platform.python_version(), "numpy": np.__version__,
  }  # fmt: skip
  print(", ".join(f"{k} {v}" for k, v in facts.items()))
  curve, sweep = (in_process(arguments, part) for part in ("curve", "sweep"))
  print(f"curve, {curve['rows']} x {curve['classes']}: {curve['seconds']:.2f} s (promised for a "
        f"million x 1000: {SECONDS:.0f}), peak {curve['peak over logits']:.2f} times the logits "
        f"({MEMORY:.0f})")  # fmt: skip
  print(f"sweep, {sweep['rows']} x {sweep['classes']}: {sweep['seconds a step of the sweep']:.3f} "
        f"s x {sweep['steps of the sweep']} steps, against {sweep['seconds']:.3f} s: "
        f"{sweep['ratio']:.0f} times ({FASTER:.0f})")  # fmt: skip
  if arguments.json:
    with open(arguments.json, "w") as f:
      json.dump({"facts": facts, "curve": curve, "sweep": sweep}, f, indent=1)
  return None


if __name__ == "__main__":
  main()
