"""Reading a folder of JPEGs at 224 pixels: `LazyImages` against torch's DataLoader with Pillow.

  python benchmarks/folder_throughput.py

The images are generated: 2,000 JPEGs of 500 x 375 pixels. Both decode each into uint8 RGB, resize
it to 224 x 224 with Pillow's bicubic filter, and give batches of 64, in the same order, on the same
processors; the pixels are compared before anything is timed. Ours decodes in threads, one batch
ahead (`lazy.prefetch`); torch's workers are processes, and the fastest of 0, 1 and 2 of them is the
peer. The runs are interleaved; a ratio is the median over the rounds of ours divided by torch's in
the same round.
"""

import argparse
from collections.abc import Callable, Sequence
import datetime
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

import idle
import numpy as np
import PIL
from PIL import Image

from subtune_jax.data import lazy

SIZE = 224
WIDTH, HEIGHT = 500, 375
WORKERS = (0, 1, 2)


def generate(folder: pathlib.Path, n: int, seed: int = 0) -> list[str]:
  """Writes `n` JPEGs with structure at several scales, about 50 kB each, and returns the paths."""
  rng = np.random.default_rng(seed)
  base = []
  for _ in range(16):
    layers = [
      Image.fromarray(rng.integers(0, 256, (side * 3, side * 4, 3), np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
      )
      for side in (2, 12, 60)
    ]
    base.append(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8))
  paths = []
  for i in range(n):
    rolled = np.roll(base[i % len(base)], rng.integers(0, HEIGHT, 2), axis=(0, 1))
    paths.append(str(folder / f"{i}.jpg"))
    Image.fromarray(rolled).save(paths[-1], quality=90)
  return paths


def ours(paths: Sequence[str], batch: int) -> Callable[[], int]:
  """Reads all images in batches and returns how many."""

  def run():
    images = lazy.from_files(paths, SIZE)
    batches = (images[i : i + batch] for i in range(0, len(images), batch))
    with lazy.prefetch(batches, depth=1) as ahead:
      return sum(len(part) for part in ahead)

  return run


def theirs(paths: Sequence[str], batch: int, workers: int) -> Callable[[], int]:
  """Reads all images with torch's DataLoader and returns how many."""
  loader = _loader(paths, batch, workers)
  return lambda: sum(len(part) for part in loader)


class _Files:
  """A data set as torch reads it: decode, resize, to an array."""

  def __init__(self, paths: Sequence[str]):
    self.paths = paths

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> np.ndarray:
    with Image.open(self.paths[index]) as image:
      rgb = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.array(rgb)


def _loader(paths: Sequence[str], batch: int, workers: int):
  import torch.utils.data

  options = {"persistent_workers": True, "prefetch_factor": 2} if workers else {}
  return torch.utils.data.DataLoader(_Files(paths), batch, num_workers=workers, **options)


def check(paths: Sequence[str]) -> None:
  """Stops unless both give the same pixels."""
  images = lazy.from_files(paths, SIZE)
  for number, part in enumerate(_loader(paths, 8, 0)):
    np.testing.assert_array_equal(part.numpy(), images[8 * number : 8 * number + 8])


def measure(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
  """Images per second of each run in each round, one run after the other."""
  for run in runs.values():
    run()  # Starts threads and workers, and brings the files into memory.
  rates = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      begin = time.perf_counter()
      number = run()
      rates[name].append(number / (time.perf_counter() - begin))
  return rates


def summary(rates: dict[str, list[float]]) -> dict:
  """Medians, torch's fastest, and the ratio."""
  medians = {name: statistics.median(values) for name, values in rates.items()}
  peer = max((name for name in rates if name != "ours"), key=medians.get)
  ratios = [a / b for a, b in zip(rates["ours"], rates[peer], strict=True)]
  return {
    "images/s": medians, "peer": peer,
    "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
  }  # fmt: skip


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--images", type=int, default=2000)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--json", help="also write the figures to this file")
  idle.add_option(parser)
  arguments = parser.parse_args()
  load = idle.load(arguments.force)
  import torch

  with tempfile.TemporaryDirectory() as folder:
    paths = generate(pathlib.Path(folder), arguments.images)
    check(paths[:32])
    runs = {f"torch, {n} workers": theirs(paths, arguments.batch, n) for n in WORKERS}
    runs["ours"] = ours(paths, arguments.batch)
    result = summary(measure(runs, arguments.rounds))
  facts = {
    "date": datetime.date.today().isoformat(), "threads": len(os.sched_getaffinity(0)),
    "load at start": round(load, 2), "forced": arguments.force, "images": arguments.images,
    "batch": arguments.batch, "pixels": SIZE, "python": platform.python_version(),
    "pillow": PIL.__version__, "torch": torch.__version__,
  }  # fmt: skip
  print(", ".join(f"{k} {v}" for k, v in facts.items()))
  for name, rate in result["images/s"].items():
    print(f"{name:<20}{rate:>8.0f} images/s")
  print(f"ours / {result['peer']}: {result['ratio']:.2f} ({result['low']:.2f}, "
        f"{result['high']:.2f})")  # fmt: skip
  if arguments.json:
    with open(arguments.json, "w") as file:
      json.dump({"facts": facts} | result, file, indent=1)


if __name__ == "__main__":
  main()
