"""Made-up studies of holistic transfer: arrays as of networks, and the record of their numbers."""

import json
import pathlib

import numpy as np

from subtune_jax import files
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.holistic_transfer import intervals as holistic_intervals
from subtune_jax.studies.holistic_transfer import numbers as holistic_numbers
from subtune_jax.studies.holistic_transfer import summary as holistic_record
from tests.report import fake_run

ALL_METHODS = tuple(holistic_config.TITLES)
# Method -> (how far the features, the seen rows and the absent rows of the head move).
_MOVES = {
  "ft": (1.0, 1.0, 1.0), "lp": (0.0, 1.2, 1.2), "frozen_classifier": (1.0, 0.0, 0.0),
  "batch_norm_only": (0.6, 0.0, 0.0), "l2_sp": (0.8, 0.8, 0.8), "distillation": (1.0, 0.9, 0.4),
  "feature_rank": (0.9, 1.0, 0.9), "swa": (1.0, 0.7, 0.7), "ema": (0.9, 0.8, 0.9),
  "lolsgd": (0.9, 0.7, 0.5), "wise_ft": (0.6, 0.5, 0.5), "oracle": (1.3, 1.0, 0.0),
}  # fmt: skip


class World:
  """Class means, a source head, and test and training images of every class."""

  def __init__(self, num_classes: int, width: int, per_class: int):
    rng = self.rng = np.random.default_rng(0)
    self.means = rng.normal(size=(num_classes, width)) / np.sqrt(width)
    self.head = 5 * self.means.T + 0.2 * rng.normal(size=(width, num_classes))
    self.shift = rng.normal(size=width) / np.sqrt(width)
    self.sets = {}
    for name, times in (("test", 1), ("train", 2)):
      counts = per_class * times + np.arange(num_classes) % 3  # classes differ in size
      labels = np.repeat(np.arange(num_classes), counts)
      self.sets[name] = (labels, rng.normal(size=(len(labels), width)))

  def arrays(self, absent: np.ndarray, moves, *, features: bool = True) -> dict[str, np.ndarray]:
    """A network whose features lost part of the shift, and whose head learned the seen classes."""
    body, own, other = moves
    down = -self.means[~absent].mean(0) - 0.5 * self.shift
    head = self.head.copy()
    noise = self.rng.normal(size=head.shape)
    head += np.where(absent, other * 1.3 * (down[:, None] + 0.03 * noise),
                     own * (2.0 * self.means.T - 0.4 * down[:, None] + 0.05 * noise))  # fmt: skip
    bias = np.where(absent, -0.9 * other, 0.5 * own)
    found = {"head/kernel": head.astype(np.float32), "head/bias": bias.astype(np.float32)}
    for name, (labels, noise) in self.sets.items():
      f = self.means[labels] + (1 - 0.5 * body) * self.shift + 0.35 * (1 - 0.3 * body) * noise
      found |= {f"{name}/labels": labels, f"{name}/logits": (f @ head + bias).astype(np.float32)}
      if features:
        found[f"{name}/features"] = f.astype(np.float32)
    return found


class Study:
  """Writes the files of a made-up study, and collects its record."""

  def __init__(self, workdir: pathlib.Path, world: World, seeds, epochs: int):
    self.workdir, self.world, self.seeds, self.epochs = workdir, world, seeds, epochs
    self.partitions, self.networks = [], []
    self.before = world.arrays(np.zeros(len(world.means), bool), (0, 0, 0))
    self._write("epochs/source.npz", self.before)

  def _write(self, file: str, arrays) -> str:
    (self.workdir / file).parent.mkdir(parents=True, exist_ok=True)
    files.write_npz(self.workdir / file, arrays)
    return file

  def partition(self, seed: int, how: str, num_seen: int) -> int:
    num_classes = len(self.world.means)
    order = np.arange(num_classes)
    if how == "random":
      order = np.random.default_rng(seed).permutation(order)
    row = {"id": len(self.partitions), "seed": seed, "how": how, "num_seen": num_seen,
           "seen": sorted(order[:num_seen].tolist()),
           "absent": sorted(order[num_seen:].tolist())}  # fmt: skip
    self.partitions.append(row)
    return row["id"]

  def absent(self, partition: int) -> np.ndarray:
    return np.isin(np.arange(len(self.world.means)), self.partitions[partition]["absent"])

  def pretrained(self, seed: int) -> None:
    place = {"stage": None, "epoch": 0, "file": "epochs/source.npz"}
    own = holistic_numbers.numbers(self.before, self.absent(self.main(seed)))
    self.networks.append({
      "use": "pretrained", "method": "pretrained", "title": "Source model", "seed": seed,
      "partition": self.main(seed), "key": None, "learning_rate": None,
      "validation_accuracy": None, "trained_params": 0, "seconds": 0.0, "epochs": [place | own],
    })  # fmt: skip

  def main(self, seed: int) -> int:
    return next(p["id"] for p in self.partitions if p["seed"] == seed)

  def training(self, use: str, name: str, moves, seed: int, partition: int, *, every=False,
               pcv=None, rate=1e-2, size=1.0, features=True) -> dict:  # fmt: skip
    """Adds a network, its epochs growing to `moves`."""
    absent, key = self.absent(partition), f"{use}-{name}-{rate:g}-{seed}-{partition}"
    epochs = []
    for epoch in range(1 if every else self.epochs, self.epochs + 1):
      grown = size * (1 - np.exp(-2.5 * epoch / self.epochs))
      arrays = self.world.arrays(absent, [grown * move for move in moves], features=features)
      file = self._write(f"epochs/{key.replace(':', '-').replace('/', '-')}/0-{epoch}.npz", arrays)
      own = holistic_numbers.numbers(arrays, absent, pcv=pcv)
      epochs.append({"stage": 0, "epoch": epoch, "file": file} | own)
    row = {
      "use": use, "method": name, "title": holistic_config.title(name), "seed": seed, "key": key,
      "learning_rate": rate, "partition": partition, "trained_params": 3_400_000, "seconds": 31.0,
      "validation_accuracy": epochs[-1]["accuracy"]["none"]["micro"]["S/S"], "epochs": epochs,
      "directions": holistic_numbers.directions(self.before, arrays, absent),
    }  # fmt: skip
    if use == "wise":
      row |= {"alpha": 0.5, "title": "WiSE-FT, 0.5"}
    if use == "size" or (use, name) == ("main", "ft"):
      shared = np.logical_and.reduce(
        [self.absent(p["id"]) for p in self.partitions if p["seed"] == seed]
      )
      row["common"] = holistic_numbers.on_classes(arrays, shared)
    self.networks.append(row)
    return row


def _sweep(study: Study, optimizers, seed: int) -> None:
  for optimizer in optimizers:
    for decay in (0.0, 5e-4, 5e-3):
      for number, rate in enumerate((1e-4, 1e-3, 1e-2, 1e-1)):
        best = 2 if optimizer == "sgd" else 0
        size = 0.4 + 0.35 * number if optimizer == "sgd" else 0.8 + 0.8 * abs(number - best)
        row = study.training(
          "sweep", f"sweep:{optimizer}:{decay:g}", _MOVES["ft"], seed, study.main(seed), rate=rate,
          size=size, features=False,
        )  # fmt: skip
        if optimizer != "sgd" and number == 3:
          row |= {"epochs": [], "validation_accuracy": None}
          del row["directions"]


def write(
  workdir: pathlib.Path, *, methods=ALL_METHODS, seeds=(0, 1, 2), epochs=8, num_classes=45,
  num_seen=22, units=6, pcv=True, sizes=(5, 10, 15, 30), hows=("random", "group"),
  optimizers=("sgd", "adam", "adabelief", "adadelta", "adagrad", "rmsprop"), width=16,
  per_class=8, along=("ft",),
) -> dict:  # fmt: skip
  """Writes a study into `workdir`; returns its record."""
  study = Study(workdir, World(num_classes, width, per_class), seeds, epochs)
  extra = [(how, n) for how in hows for n in (num_seen, *sizes) if (how, n) != ("random", num_seen)]
  for how, n in [("random", num_seen), *(extra if sizes else [])]:
    for seed in seeds:
      study.partition(seed, how, n)
  for seed in seeds:
    study.pretrained(seed)
    for name in methods:
      use = "wise" if name == "wise_ft" else "main"
      study.training(use, name, _MOVES[name], seed, study.main(seed), every=name in along,
                     pcv=1.4 if pcv and name == "ft" else None)  # fmt: skip
    names = [f"subtuning:{'stem' if i == 0 else 3 * i}..{3 * i + 2}" for i in range(units)]
    for i, name in enumerate(names):
      part = 0.3 + 0.7 * i / max(units - 1, 1)
      study.training("block", name, (part, 0.5 + 0.4 * part, 0.3 + 0.6 * part), seed,
                     study.main(seed))  # fmt: skip
  for partition in study.partitions[len(seeds) :]:
    study.training("size", "ft", _MOVES["ft"], partition["seed"], partition["id"])
  _sweep(study, optimizers, seeds[0])
  return _record(study, methods, names, num_classes, pcv)


def _record(study: Study, methods, units, num_classes: int, pcv: bool) -> dict:
  for number, network in enumerate(study.networks):
    network["id"] = number
  table = holistic_record.table(study.networks, ("pretrained", "main", "wise"))
  per_block = holistic_record.table(study.networks, ("block",))
  groups = np.arange(len(study.world.sets["test"][0])) // 2
  absent = {p["id"]: study.absent(p["id"]) for p in study.partitions}
  holistic_intervals.add([*table, *per_block], study.networks, absent, study.workdir, groups)
  blocks = [
    row | {"unit": name.partition(":")[2], "blocks": [f"block{i}"]}
    for i, name in enumerate(units)
    for row in per_block
    if row["method"] == name
  ]
  grid = [{"learning_rate": 1e-2, "validation_accuracy": 0.7, "validation_loss": 1.0}]
  record = {
    "name": "calibration", "title": "Fine-tuning on some of the classes",
    "command": "python -m subtune_jax.main --config=configs/calibration.py --workdir=/tmp/study",
    "created": "2026-01-02T03:04:05+00:00", "versions": {"jax": "0.10.2", "python": "3.11.7"},
    "devices": "1 x cpu", "config": {"seeds": list(study.seeds), "data": {"image_size": 64}},
    "backbone": {"name": "efficientnet_lite0", "num_params": 3_400_000, "image_size": 64,
                 "weights": "efficientnet-lite0.tflite", "sha256": "0123456789abcdef",
                 "block_names": list(fake_run.BLOCK_PARAMS), "block_params": fake_run.BLOCK_PARAMS,
                 "head_params": fake_run.HEAD_PARAMS},
    "data": {"train": "emoji_domains/twemoji", "source": "emoji_domains/noto",
             "class_names": [f"group{i // 9}-class {i}" for i in range(num_classes)],
             "num_train": len(study.world.sets["train"][0]), "num_validation": 90,
             "num_test": len(study.world.sets["test"][0]), "attribution": "Twemoji: CC-BY 4.0"},
    "holistic": {
      "source": {"data": "emoji_domains/noto", "method": "lp_ft", "learning_rate": 1e-3,
                 "test_accuracy": 0.81, "file": "source.msgpack"},
      "partitions": study.partitions, "networks": study.networks,
      "methods": [
        {"name": name, "title": holistic_config.title(name), "oracle": name == "oracle",
         "learning_rate": 1e-2, "grid": grid, "grid_edge": name == "lp"}
        for name in (*methods, *units) if name != "wise_ft"
      ],
      "pcv": [
        {"method": "ft", "seed": seed, "gamma": 1.4, "splits": [
          {"key": f"pseudo-{i}", "file": f"epochs/pseudo-{i}/0-1.npz", "pseudo_absent": [0]}
          for i in range(3)
        ]}
        for seed in study.seeds if pcv
      ],
      "table": table,
      "blocks": blocks,
    },
  }  # fmt: skip
  (study.workdir / "results.json").write_text(json.dumps(record), encoding="utf-8")
  return record
