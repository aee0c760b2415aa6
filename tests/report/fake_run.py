"""Writes the workdir of a run that never was: the record, the logits and the images of a report.

Numbers are drawn so that they look like those of a small study: 4 methods, 3 seeds, 4 domains.
"""

import json
import pathlib

import numpy as np

from subtune_jax.studies.compare import record as compare_record

DOMAINS = ("noto", "twemoji", "openmoji", "fluent")
SKILL = {
  "lp": (0.38, 0.25, 0.18, 0.26),
  "ft": (0.52, 0.31, 0.20, 0.33),
  "lp_ft": (0.47, 0.32, 0.19, 0.34),
  "subtuning": (0.51, 0.27, 0.19, 0.31),
}
TITLES = {
  "lp": "Linear probing",
  "ft": "Full fine-tuning",
  "lp_ft": "LP-FT",
  "subtuning": "SubTuning",
}
BLOCK_PARAMS = {
  "stem": 928, "block0": 1448, "block1": 6004, "block2": 10710, "block3": 15350,
  "block4": 31290, "block5": 37130, "block6": 102900, "block7": 102900, "block8": 126004,
  "block9": 208572, "block10": 208572, "block11": 262492, "block12": 587952, "block13": 587952,
  "block14": 587952, "block15": 717232, "top": 412160,
}  # fmt: skip
HEAD_PARAMS = 1280 * 45 + 45
CLASSES = (
  "animal-amphibian", "animal-bird", "animal-bug", "animal-mammal", "animal-marine",
  "animal-reptile", "arrow", "arts & crafts", "award-medal", "body-parts", "book-paper",
  "clothing", "computer", "dishware", "drink", "emotion", "event", "face-affection",
  "face-concerned", "face-costume", "face-smiling", "family", "flag", "food-asian", "food-fruit",
  "food-marine", "food-prepared", "food-sweet", "food-vegetable", "game", "geometric",
  "hand-fingers-closed", "hand-fingers-open", "light & video", "money", "music", "office",
  "person-activity", "person-role", "place-building", "place-map", "plant-flower", "sky & weather",
  "time", "tool",
)  # fmt: skip
SEEDS = (0, 1, 2)
VALUES = {
  "lp": [10.0**k for k in range(1, -7, -1)],
  "ft": [1e-4, 3e-4, 1e-3, 3e-3],
  "lp_ft": [1e-6, 3e-6, 1e-5, 3e-5, 1e-4],
}
CHOSEN = {"lp": 10.0**-3, "ft": 3e-4, "lp_ft": 1e-4, "subtuning": 1e-3}
SECONDS = {"lp": 4.2, "ft": 310.0, "lp_ft": 322.0, "subtuning": 96.0}
MOVED = {"lp": 0.0, "ft": 0.034, "lp_ft": 0.0071, "subtuning": 0.012}


def _stages(method: str) -> list[dict]:
  head = {"title": "head", "blocks": ["head"], "trained_params": HEAD_PARAMS, "solver": "lbfgs",
          "epochs": 1}  # fmt: skip
  everything = {"title": "all", "blocks": [*BLOCK_PARAMS, "head"], "solver": "adam", "epochs": 20,
                "trained_params": sum(BLOCK_PARAMS.values()) + HEAD_PARAMS}  # fmt: skip
  some = {"title": "block9+block14", "blocks": ["block9", "block14", "head"], "solver": "adam",
          "trained_params": BLOCK_PARAMS["block9"] + BLOCK_PARAMS["block14"] + HEAD_PARAMS,
          "epochs": 20}  # fmt: skip
  return {"lp": [head], "ft": [everything], "lp_ft": [head, everything], "subtuning": [some]}[
    method
  ]


def _method(name: str) -> dict:
  stages = _stages(name)
  values = VALUES.get(name, VALUES["ft"])
  chosen = CHOSEN[name]
  peak = np.log10(chosen)
  grid = [
    {
      "learning_rate": value,
      "validation_accuracy": float(SKILL[name][0] - 0.01 * (np.log10(value) - peak) ** 2 + 0.02),
      "validation_loss": float(2.0 + 0.1 * (np.log10(value) - peak) ** 2),
    }
    for value in values
  ]
  return {
    "name": name,
    "title": TITLES[name],
    "stages": stages,
    "trained_params": max(stage["trained_params"] for stage in stages),
    "fork_macs": 12_300_000,
    "grid": grid,
    "learning_rate": chosen,
    "grid_edge": chosen in (values[0], values[-1]),
    "setting": "l2" if name == "lp" else "learning_rate",
  }


def _history(method: str, rng: np.random.Generator) -> list[dict]:
  rows, skill = [], SKILL[method][0]
  for number, stage in enumerate(_stages(method)):
    for epoch in range(1, stage["epochs"] + 1):
      share = 1.0 if stage["solver"] == "lbfgs" else 1 - np.exp(-epoch / 4)
      base = 0.38 if method == "lp_ft" and number == 1 else 0.02
      top = 0.38 if stage["solver"] == "lbfgs" else skill
      accuracy = base + (top - base) * share + 0.01 * rng.normal()
      rows.append({
        "stage": number, "epoch": epoch,
        "train_loss": float(3.8 * (1 - share) + 0.4 + 0.03 * rng.random()),
        "train_accuracy": float(min(accuracy + 0.3, 1)), "validation_loss": float(4 - 4 * accuracy),
        "validation_accuracy": float(accuracy),
      })  # fmt: skip
  return rows


def _logits(labels, difficulty, skill: float, num_classes: int, rng) -> np.ndarray:
  """Logits that are right for a share `skill` of the images, mostly for the same easy ones."""
  score = difficulty + 0.35 * rng.normal(size=len(labels))
  right = score <= np.quantile(score, skill)
  logits = rng.normal(size=(len(labels), num_classes)).astype(np.float32)
  guess = np.where(
    right, labels, (labels + rng.integers(1, num_classes, len(labels))) % num_classes
  )
  logits[np.arange(len(labels)), guess] += 8
  return logits


def _image(label: int, shade: int, rng, size: int = 64) -> np.ndarray:
  """A coloured disc with eyes, so that a person sees which way is up."""
  y, x = np.mgrid[:size, :size] / size - 0.5
  image = np.full((size, size, 3), 255 - 20 * shade)
  image[np.hypot(x, y) < 0.42] = np.random.default_rng(label).integers(60, 250, 3)
  image[
    (np.hypot(np.abs(x) - 0.15, y + 0.12) < 0.05)
    | (np.abs(np.hypot(x, y) - 0.28) < 0.02) & (y > 0.1)
  ] = 20
  return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def write(
  workdir: pathlib.Path,
  *,
  methods: tuple[str, ...] = tuple(TITLES),
  class_names: tuple[str, ...] = CLASSES,
  num_test: int = 261,
  num_images: int = 24,
  seed: int = 0,
) -> dict:
  """Writes results.json, logits/ and images.npz to `workdir`; returns the record."""
  rng = np.random.default_rng(seed)
  workdir = pathlib.Path(workdir)
  (workdir / "logits").mkdir(parents=True, exist_ok=True)
  names = [f"emoji_domains/{domain}" for domain in DOMAINS]
  labels = rng.integers(0, len(class_names), num_test).astype(np.int32)
  groups = np.array([f"concept{i // 2 if i < 60 else i}" for i in range(num_test)])
  difficulty, trainings = rng.normal(size=num_test), []
  ids = {name: np.array([f"{name}/{i:04d}" for i in range(num_test)]) for name in names}
  for method in methods:
    for training_seed in SEEDS:
      tests = {}
      for name, skill in zip(names, SKILL[method], strict=True):
        skill += 0.01 * rng.normal()
        logits = _logits(labels, difficulty, skill, len(class_names), rng)
        path = f"logits/{method}_{training_seed}_{name.replace('/', '_')}.npz"
        np.savez(workdir / path, logits=logits, labels=labels, groups=groups, ids=ids[name])
        accuracy = float((logits.argmax(-1) == labels).mean())
        tests[name] = {"accuracy": accuracy, "loss": 2.0, "logits": path}
      trainings.append({
        "method": method, "seed": training_seed, "learning_rate": CHOSEN[method],
        "chosen": True, "seconds": SECONDS[method] + 3 * rng.random(),
        "compile_seconds": 12.0, "validation_accuracy": SKILL[method][0],
        "moved": MOVED[method],
        "step": {"milliseconds": 12.5, "bytes": 9 * 10**7} if method != "lp" else None,
        "history": _history(method, rng), "test": tests,
      })  # fmt: skip
  record = _record(names, list(class_names), num_test, methods, trainings)
  (workdir / "results.json").write_text(json.dumps(record), encoding="utf-8")
  images = {
    name: np.stack([_image(label, shade, rng) for label in labels[:num_images]])
    for shade, name in enumerate(names)
  }
  compare_record.save_images(workdir, images, {name: ids[name][:num_images] for name in names})
  return record


def _record(names, class_names, num_test, methods, trainings) -> dict:
  return {
    "name": "emoji_domains_study",
    "title": "Fine-tuning a subset of layers on Emoji Domains",
    "created": "2026-01-31T12:00:00+00:00",
    "command": "python -m subtune_jax.main --config=configs/study.py --workdir=/tmp/study",
    "versions": {"subtune_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.7"},
    "devices": "1 x cpu",
    "config": {"seeds": list(SEEDS), "batch_size": 64, "data": {"image_size": 64}, "epochs": 20},
    "backbone": {
      "name": "efficientnet_lite0",
      "weights": "efficientnet_lite0/imagenet",
      "sha256": "0123456789abcdef" * 4,
      "image_size": 64,
      "block_names": list(BLOCK_PARAMS),
      "block_params": BLOCK_PARAMS,
      "head_params": HEAD_PARAMS,
      "num_params": sum(BLOCK_PARAMS.values()) + HEAD_PARAMS,
    },
    "data": {
      "train": names[0],
      "id": names[0],
      "ood": names[1:],
      "class_names": class_names,
      "num_train": 787,
      "num_validation": 200,
      "num_test": dict.fromkeys(names, num_test),
      "attribution": "Noto Emoji, Apache-2.0. Twemoji, CC-BY 4.0, https://example.org/twemoji.",
    },
    "methods": [_method(name) for name in methods],
    "trainings": trainings,
  }
