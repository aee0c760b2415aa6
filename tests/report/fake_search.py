"""Records of searches that never were: numbers drawn so that they look like those of a study.

A unit has a usefulness; a set's accuracy saturates in the sum of those of its units and falls with
the share of the units that it has. Folds differ by a difficulty that all sets share and by noise.
"""

import json
import pathlib

import numpy as np

from tests.report import fake_run

LITE0 = fake_run.BLOCK_PARAMS
LITE0_MACS = (
  3538944, 5308416, 9437184, 8257536, 4128768, 4915200, 3686400, 3096576, 3096576, 3686400,
  6193152, 6193152, 4128768, 2359296, 2359296, 2359296, 2949120, 1638400,
)  # fmt: skip
RESNET = {
  "stem": 9536, "block1/unit1": 75008, "block1/unit2": 70400, "block2/unit1": 379392,
  "block2/unit2": 280064, "block3/unit1": 1512448, "block3/unit2": 1117184,
  "block4/unit1": 6039552, "block4/unit2": 4462592, "block4/unit3": 4462592,
}  # fmt: skip
VIT = {"embedding": 742656, **{f"encoderblock_{i}": 7087872 for i in range(22)}, "norm": 1536}
BACKBONES = {"efficientnet_lite0": LITE0, "resnet26": RESNET, "vit_l16": VIT}


class World:
  """Accuracies of sets of units of one backbone, the same whenever they are asked for.

  Args:
    params: parameters of each unit, which is one block.
    num_folds: 1 is one held-out split.
    seed: of the noise.
    base: accuracy of the head alone.
    num_examples: held out in all folds together.
  """

  def __init__(self, params, num_folds=5, seed=0, base=0.40, num_examples=652):
    rng = np.random.default_rng(seed)
    self.params, self.num_folds, self.seed, self.base = params, num_folds, seed, base
    self.num_examples = num_examples
    self.names = tuple(params)
    place = np.linspace(0, 1, len(params))
    use = 0.09 * np.exp(-(((place - 0.78) / 0.22) ** 2)) + 0.05 * np.exp(
      -(((place - 0.3) / 0.15) ** 2)
    )
    self.use = dict(zip(self.names, use + rng.normal(0, 0.008, len(params)), strict=True))
    self.difficulty = rng.normal(0, 0.022, num_folds)
    self.difficulty -= self.difficulty.mean()
    self.known: dict[tuple[str, ...], dict] = {}

  def accuracy(self, units) -> float:
    gain = sum(self.use[name] for name in units)
    share = len(units) / len(self.names)
    return self.base + 0.16 * (1 - np.exp(-max(gain, 0) / 0.1)) - 0.075 * share

  def tried(self, units, folds=None) -> dict:
    """The entry of a set; with `folds` only so many are trained, unless it is whole already."""
    units = tuple(name for name in self.names if name in set(units))
    if units in self.known:
      return self.known[units]
    rng = np.random.default_rng([self.seed, *(self.names.index(name) for name in units), 7])
    values = self.accuracy(units) + self.difficulty + rng.normal(0, 0.012, self.num_folds)
    per_fold = self.num_examples // max(self.num_folds, 1)
    values = np.round(np.clip(values, 0.01, 0.99) * per_fold) / per_fold
    by_fold = [float(v) for v in values]
    if folds is not None:
      by_fold = [v if i < folds else None for i, v in enumerate(by_fold)]
    there = [v for v in by_fold if v is not None]
    mean = float(np.mean(there))
    half = float(1.96 * np.sqrt(mean * (1 - mean) / (per_fold * len(there))))
    blocks = list(self.params)
    first = blocks.index(units[0]) if units else len(blocks)
    macs = macs_of(self.params)
    self.known[units] = {
      "units": list(units), "by_fold": by_fold, "mean": mean, "low": mean - half,
      "high": mean + half, "complete": None not in by_fold,
      "trained_params": fake_run.HEAD_PARAMS + sum(self.params[name] for name in units),
      "fork_macs": 57600 + sum(macs[first:]), "trainings": len(there),
      "seconds": 3.1 * len(there) * (1 - 0.7 * first / len(blocks)), "compile_seconds": 4.0,
    }  # fmt: skip
    return self.known[units]


def macs_of(params) -> list[int]:
  return list(LITE0_MACS) if params is LITE0 else [int(3e6 + 30 * p**0.9) for p in params.values()]


def _step(world, base, sets, better, folds=None) -> tuple[dict, dict]:
  """A step of a greedy search: everything but the first few is dropped with `folds`."""
  order = sorted(sets, key=lambda units: -world.accuracy(units))
  for number, units in enumerate(order):
    world.tried(units, folds if number >= 3 else None)
  tried = [{"units": list(units), "mean": world.tried(units)["mean"]} for units in sets]
  whole = [units for units in sets if world.tried(units)["complete"]]
  winner = world.tried(max(whole, key=lambda units: world.tried(units)["mean"]))
  taken, reason = better(winner["mean"])
  return winner, {"base": list(base), "tried": tried, "chosen": winner["units"],
                  "score": winner["mean"], "taken": taken, "reason": reason}  # fmt: skip


def greedy(world: World, start: str, epsilon: float = 0.01, folds: int | None = None) -> dict:
  current = () if start == "none" else world.names
  best, steps = world.tried(current)["mean"], []
  while True:
    if start == "none":
      sets = [(*current, name) for name in world.names if name not in current]
    else:
      sets = [tuple(u for u in current if u != name) for name in current]
    if not sets:
      stopped = "no unit is left"
      break
    sets = [tuple(n for n in world.names if n in set(units)) for units in sets]

    def better(score, best=best):
      gain = score - best if start == "none" else best - score
      earns = gain > epsilon
      taken = earns if start == "none" else not earns
      return taken, f"gain {gain:+.4f} {'>' if earns else '<='} epsilon {epsilon:g}"

    winner, step = _step(world, current, sets, better, folds)
    steps.append(step)
    if not step["taken"]:
      stopped = step["reason"]
      break
    current = tuple(winner["units"])
    best = max(best, winner["mean"])
  return {
    "kind": "greedy", "start": start, "racing": folds is not None, "steps": steps,
    "rule": {"kind": "gain", "epsilon": epsilon, "alpha": 0.05, "size": None, "overlap": 0.25},
    "budget": {"trained_params": None, "fork_macs": None, "seconds": None},
    "chosen": list(current), "score": world.tried(current)["mean"], "stopped": stopped,
  }  # fmt: skip


def backbone(name: str) -> dict:
  params = BACKBONES[name]
  return {
    "name": name, "weights": f"{name}/imagenet", "sha256": "0123456789abcdef" * 4,
    "image_size": 64, "block_names": list(params), "block_params": params,
    "head_params": fake_run.HEAD_PARAMS,
    "num_params": sum(params.values()) + fake_run.HEAD_PARAMS,
  }  # fmt: skip


def header(kind: str, name: str, title: str, backbone_name: str) -> dict:
  return {
    "kind": kind, "name": name, "title": title, "created": "2026-01-31T12:00:00+00:00",
    "command": f"python -m subtune_jax.main --config=configs/{kind}.py --workdir=/tmp/{name}",
    "versions": {"subtune_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.7"},
    "devices": "1 x cpu", "config": {"seeds": [0], "search": {"epsilon": 0.01}, "epochs": 20},
    "backbone": backbone(backbone_name),
  }  # fmt: skip


def _units(params) -> list[dict]:
  return [
    {"name": name, "blocks": [name], "params": count, "macs": macs}
    for (name, count), macs in zip(params.items(), macs_of(params), strict=True)
  ]


def certificate(world: World, chosen, most: int = 12) -> dict:
  """Weights of sets as if their means had a normal error of 0.7 points."""
  chosen = world.tried(chosen)
  whole = [tried for tried in world.known.values() if tried["complete"]]
  weights = np.exp(-np.maximum([(chosen["mean"] - t["mean"]) / 0.007 for t in whole], -2))
  weights /= weights.sum()
  order = sorted(range(len(whole)), key=lambda i: -weights[i])[:most]
  undecided = [
    {"units": whole[i]["units"], "probability": float(weights[i])}
    for i in order
    if weights[i] > 0.02 or whole[i] is chosen
  ]
  best = float(weights[next(i for i, tried in enumerate(whole) if tried is chosen)])
  text = f"{'+'.join(chosen['units'])} is the best of {len(whole)} sets with probability {best:.2f}"
  return {"chosen": chosen["units"], "probability_best": best, "expected_regret": 0.0042,
          "undecided": undecided, "level": 0.95, "text": text}  # fmt: skip


def search(
  backbone_name: str = "efficientnet_lite0",
  *,
  kinds=("profile", "windows", "pairs", "none", "all"),
  num_folds: int = 5,
  raced_folds: int | None = None,
  seed: int = 0,
) -> dict:
  """A record of kind "search".

  Args:
    backbone_name: of `BACKBONES`.
    kinds: what was searched: "profile", "windows" (2 and 3), "pairs", and greedy from "none" or
      "all".
    num_folds: of the cross-validation.
    raced_folds: folds after which the weaker candidates of a greedy step are dropped.
    seed: of the noise.
  """
  params = BACKBONES[backbone_name]
  world, searches = World(params, num_folds, seed), []
  names = world.names
  world.tried(())
  world.tried(names)
  if "profile" in kinds:
    searches.append({"kind": "profile"})
    _ = [world.tried((name,)) for name in names]
  for width in (2, 3) if "windows" in kinds else ():
    searches.append({"kind": "windows", "width": width})
    _ = [world.tried(names[i : i + width]) for i in range(len(names) - width + 1)]
  if "pairs" in kinds:
    searches.append({"kind": "pairs"})
    _ = [world.tried((a, b)) for i, a in enumerate(names) for b in names[i + 1 :]]
  paths = [greedy(world, start, folds=raced_folds) for start in ("none", "all") if start in kinds]
  searches += paths
  whole = [tried for tried in world.known.values() if tried["complete"] and tried["units"]]
  best = max(whole, key=lambda tried: tried["mean"])["units"]
  chosen = max(paths, key=lambda path: path["score"])["chosen"] if paths else best
  trainings = sum(tried["trainings"] for tried in world.known.values())
  plain = len(world.known) * num_folds
  record = header("search", "emoji_search", "SubTuning on Emoji Domains", backbone_name) | {
    "data": {
      "train": "emoji_domains/noto", "split": "train", "class_names": list(fake_run.CLASSES),
      "num_examples": 652, "num_folds": num_folds, "fold_seed": 0, "seeds": [0],
      "fold_sizes": [652 // num_folds + (i < 652 % num_folds) for i in range(num_folds)],
      "attribution": "Noto Emoji, Apache-2.0.",
    },
    "units": _units(params), "head_params": fake_run.HEAD_PARAMS, "head_macs": 57600,
    "sets": list(world.known.values()), "searches": searches,
    "chosen": chosen, "chosen_by": "the better of the greedy searches" if paths else "best of all",
    "certificate": certificate(world, chosen),
    "cost": {
      "trainings": trainings, "dropped_by_race": plain - trainings,
      "seconds": sum(t["seconds"] for t in world.known.values()), "compile_seconds": 141.0,
      "flops": 2.1e14, "plain_trainings": plain, "plain_flops": 9.3e14,
      "prefix_peak_bytes": 48_300_000, "prefix_budget_bytes": 2_000_000_000,
      "notes": ["Outputs of the frozen blocks were kept in memory."],
    },
    "final": None,
  }  # fmt: skip
  return record


SIZE_SKILL = {  # accuracy is 1 - a n^-b
  "lp": (1.22, 0.115), "ft": (1.95, 0.215), "lp_ft": (1.6, 0.182), "subtuning": (1.55, 0.18),
}  # fmt: skip


def dataset_size(
  backbone_name: str = "efficientnet_lite0", sizes=(50, 100, 200, 400, 652), *, with_map=True
) -> dict:
  """A record of kind "dataset_size"."""
  rng = np.random.default_rng(0)
  record = header("dataset_size", "emoji_sizes", "SubTuning by number of images", backbone_name)
  rows = []
  for asked in sizes:
    seeds = {
      name: (1 - a * asked**-b + rng.normal(0, 0.009, 3)).round(6)
      for name, (a, b) in SIZE_SKILL.items()
    }
    methods = [
      {
        "name": name, "title": fake_run.TITLES[name], "accuracy": float(values.mean()),
        "low": float(values.mean() - 0.045), "high": float(values.mean() + 0.045),
        "by_seed": values.tolist(), "value": fake_run.CHOSEN[name],
        "setting": "l2" if name == "lp" else "learning_rate",
      }
      for name, values in seeds.items()
    ]  # fmt: skip
    against = {}
    for name in ("lp", "lp_ft", "subtuning"):
      mean = float((seeds[name] - seeds["ft"]).mean())
      against[name] = {"mean": mean, "low": mean - 0.024, "high": mean + 0.026}
    rows.append({"asked": asked, "size": asked - asked % 3, "folder": f"sizes/{asked}",
                 "chosen": ["block12", "block13"],
                 "methods": methods, "against_ft": against})  # fmt: skip
  record["data"] = {
    "train": "emoji_domains/noto", "class_names": list(fake_run.CLASSES), "num_test": 261,
    "test": "emoji_domains/noto", "attribution": "Noto Emoji, Apache-2.0.",
  }  # fmt: skip
  record |= {
    "sizes": rows,
    "map": _map(backbone_name, [row["size"] for row in rows]) if with_map else None,
    "crossover": {"text": "SubTuning is above full fine-tuning up to 198 images, undecided after."},
  }
  return record


def _map(backbone_name: str, sizes) -> dict:
  params, entries, head = BACKBONES[backbone_name], [], []
  for number, size in enumerate(sizes):
    base = 1 - 1.22 * size**-0.115
    world = World(params, seed=number, base=base, num_examples=size)
    scale = 0.25 + 0.75 * number / max(len(sizes) - 1, 1)
    world.use = {name: use * scale - 0.004 for name, use in world.use.items()}
    keys = ("mean", "low", "high")
    head.append({"size": size, **{key: world.tried(())[key] for key in keys}})
    for name in params:
      tried = world.tried((name,))
      entries.append({"size": size, "unit": name, "by_fold": tried["by_fold"],
                      **{key: tried[key] for key in keys}})  # fmt: skip
  return {"units": list(params), "rows": entries, "head": head}


CORRUPTIONS = (
  "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
  "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
  "jpeg_compression",
)  # fmt: skip


def corruption(backbone_name: str = "resnet26", count: int = 15, *, tested: bool = True) -> dict:
  """A record of kind "corruption"."""
  params, rows = BACKBONES[backbone_name], []
  record = header("corruption", "corrupted", "SubTuning under corruptions", backbone_name)
  for number, name in enumerate(CORRUPTIONS[:count]):
    world = World(params, seed=number, base=0.42 + 0.03 * (number % 7))
    keys = ("mean", "low", "high")
    path = greedy(world, "none")
    order = [
      {"unit": next(u for u in step["chosen"] if u not in step["base"]), "score": step["score"],
       "taken": step["taken"]} for step in path["steps"]
    ]  # fmt: skip
    test = {
      method: {"accuracy": value, "low": value - 0.012, "high": value + 0.012,
               "title": fake_run.TITLES[method]}
      for method, value in zip(
        fake_run.TITLES, world.base + np.array([0.0, 0.07, 0.09, 0.11]), strict=True
      )
    }  # fmt: skip
    rows.append({
      "corruption": name, "severity": 5, "title": name.replace("_", " "),
      "name": f"cifar10_c/{name}-5", "folder": f"corruptions/{name}-5",
      "order": order, "chosen": path["chosen"],
      "profile": [{"unit": unit, "by_fold": world.tried((unit,))["by_fold"],
                   **{key: world.tried((unit,))[key] for key in keys}} for unit in params],
      "head": {key: world.tried(())[key] for key in keys},
      "all": {key: world.tried(world.names)[key] for key in keys},
      "certificate": certificate(world, path["chosen"], most=4),
      "test": test if tested else None,
    })  # fmt: skip
  record["data"] = {
    "train": "cifar10", "class_names": list("abcdefghij"), "num_examples": 1000, "num_folds": 5,
    "attribution": "CIFAR-10: Krizhevsky (2009).",
  }  # fmt: skip
  return record | {"units": _units(params), "rows": rows}


def write(workdir: pathlib.Path, record: dict) -> None:
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "results.json").write_text(json.dumps(record), encoding="utf-8")


def write_final(workdir: pathlib.Path, record: dict) -> None:
  """Adds the final comparison to a search, and writes both."""
  fake_run.write(pathlib.Path(workdir) / "final", num_test=80, num_images=1)
  record["final"] = {"folder": "final"}
  write(workdir, record)
