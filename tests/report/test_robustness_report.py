"""The report of a robustness study from fake records: page, figures, text, accessors, errors."""

import contextlib
import copy
import json
import pathlib
import re
from unittest import mock

import numpy as np
import pytest

from subtune_jax.report import (
  html,
  intervals,
  plots,
  records,
  robustness_curves,
  robustness_page,
  robustness_plots,
  table,
)
from subtune_jax.report import robustness_records as study_lib
from tests.report import fake_run

HOSTILE = '<script>alert("1")</script> & $x_0$'
MORE = {
  "l2_sp": ("L2-SP", (0.50, 0.32, 0.20, 0.33), 0.02),
  "ema": ("Fine-tuning, EMA", (0.53, 0.33, 0.21, 0.33), 0.03),
  "layerwise_decay": ("Layer-wise rates", (0.52, 0.33, 0.2, 0.34), 0.01),
  "bias_only": ("Biases only", (0.45, 0.29, 0.18, 0.29), 0.003),
}
UNITS = list(fake_run.BLOCK_PARAMS)
EPOCHS = 6


@contextlib.contextmanager
def fake_settings(num_ood: int, seeds: tuple[int, ...]):
  """`fake_run` with further methods, fewer test sets, other seeds."""
  stages = fake_run._stages
  sets = slice(num_ood + 1)
  with contextlib.ExitStack() as stack:
    skill = {name: values[1] for name, values in MORE.items()} | fake_run.SKILL
    skill = {name: values[sets] for name, values in skill.items()}
    for field, values in (
      ("SKILL", skill),
      ("TITLES", {name: values[0] for name, values in MORE.items()}),
      ("CHOSEN", dict.fromkeys(MORE, 1e-3)),
      ("SECONDS", dict.fromkeys(MORE, 300.0)),
      ("MOVED", {name: values[2] for name, values in MORE.items()}),
    ):
      stack.enter_context(mock.patch.dict(getattr(fake_run, field), values))
    stack.enter_context(mock.patch.object(fake_run, "DOMAINS", fake_run.DOMAINS[sets]))
    stack.enter_context(mock.patch.object(fake_run, "SEEDS", seeds))
    stack.enter_context(
      mock.patch.object(fake_run, "_stages", lambda m: stages("ft" if m in MORE else m))
    )
    yield


def distances(size: float) -> dict:
  return {"absolute": 20 * size, "relative": size, "cosine": size**2 / 2,
          "cka": 1 / (1 + size)}  # fmt: skip


def fake_epochs(method: str, rate: float, sets, rng) -> list[dict]:
  """Epochs of one training; a rate off 1e-3 (1e-4 for LP-FT) learns less."""
  skill = dict(zip(sets[1:], fake_run.SKILL[method], strict=True))
  skill["validation"] = fake_run.SKILL[method][0]
  probe = dict(zip(sets[1:], fake_run.SKILL["lp"], strict=True))
  probe["validation"] = fake_run.SKILL["lp"][0]
  rows, peak = [], 1e-4 if method == "lp_ft" else 1e-3
  if method in ("lp", "lp_ft"):
    rows.append({"stage": 0, "epoch": 1, "accuracy": dict(probe),
                 "distortion": {name: distances(0.0) for name in sets}})  # fmt: skip
  for epoch in range(1, EPOCHS + 1 if method != "lp" else 1):
    learned = 1 - np.exp(-epoch / 2)
    off = np.log10(rate / peak)
    good = learned * np.exp(-0.3 * off**2)
    start = probe if method == "lp_ft" else dict.fromkeys(sets, 0.03)
    accuracy = {
      name: float(np.clip(start[name] + (skill[name] - start[name]) * good
                          + 0.008 * rng.normal(), 0, 1))
      for name in sets
    }  # fmt: skip
    size = learned * 30 * fake_run.MOVED[method] * (rate / peak) ** 0.5
    far = {name: size * (1.0 + 0.25 * i * (1 + 0.1 * rng.random())) for i, name in enumerate(sets)}
    rows.append({"stage": int(method == "lp_ft"), "epoch": epoch, "accuracy": accuracy,
                 "distortion": {name: distances(float(far[name])) for name in sets}})  # fmt: skip
  return rows


def fake_selection(rule: str, method: str, trainings, sets) -> dict:
  """Chosen honestly enough for a report: by the mean of the last epochs, then each one's best."""
  ood = sets[2:] if rule == "oracle" else ["validation"]

  def score(epoch):
    return float(np.mean([epoch["accuracy"][name] for name in ood]))

  picked = {}
  for rate in sorted({t["learning_rate"] for t in trainings}):
    rows = [study_lib.last_stage(t) for t in trainings if t["learning_rate"] == rate]
    picked[rate] = [r[-1] if rule == "last" else max(r, key=score) for r in rows]
  rate = max(picked, key=lambda r: np.mean([score(e) for e in picked[r]]))
  accuracy, columns = {}, {name: [name] for name in sets}
  if len(sets) > 3:
    columns[table.MEAN_OOD] = sets[2:]
  for column, names in columns.items():
    by_seed = [float(np.mean([e["accuracy"][n] for n in names])) for e in picked[rate]]
    mean = float(np.mean(by_seed))
    accuracy[column] = {"mean": mean, "by_seed": by_seed, "90": [mean - 0.03, mean + 0.03],
                        "95": [mean - 0.036, mean + 0.036]}  # fmt: skip
  return {
    "rule": rule, "oracle": rule == "oracle", "method": method, "learning_rate": rate,
    "at_edge": len(picked) > 1 and rate in (min(picked), max(picked)),
    "epochs": [e["epoch"] for e in picked[rate]],
    "score": float(np.mean([score(e) for e in picked[rate]])), "accuracy": accuracy,
  }  # fmt: skip


def fake_blocks(trainings, sets, units, rng) -> dict:
  last = [t["epochs"][-1]["distortion"] for t in trainings]
  return {
    name: {
      unit: [
        distances(d[name]["relative"] * ((i + 1) / len(units)) ** 3 * (0.8 + 0.4 * rng.random()))
        for d in last
      ]
      for i, unit in enumerate(units)
    }
    for name in sets
  }


def fake_line(method: str, sets, seeds, rng) -> list[dict]:
  rows = []
  for seed in seeds:
    for alpha in np.linspace(0, 1, 11):
      bump = 0.05 * np.sin(np.pi * alpha) + 0.004 * rng.normal()
      accuracy = {
        name: fake_run.SKILL["lp"][i] * (1 - alpha) + alpha * fake_run.SKILL[method][i] + bump
        for i, name in enumerate(sets[1:])
      }
      accuracy["validation"] = accuracy[sets[1]] + 0.01
      rows.append({"seed": seed, "alpha": float(alpha), "accuracy": accuracy})
  return rows


def fake_steps(sets, steps) -> list[dict]:
  rows = []
  for number, step in enumerate(steps):
    share = 1 - np.exp(-number)
    probe = {name: 0.02 + 0.3 * share / (1 + 0.2 * i) for i, name in enumerate(sets)}
    tuned = {name: 0.4 + 0.08 * share - 0.05 * i for i, name in enumerate(sets)}
    rows.append({"steps": step, "seed": 0, "probe": probe, "tuned": tuned})
  return rows


def add_study(record: dict, seeds, *, num_rates: int, steps, units, rule: str = "last") -> None:
  """The entry "robustness" of a record of `fake_run`."""
  rng = np.random.default_rng(1)
  data, methods = record["data"], [m["name"] for m in record["methods"]]
  sets = ["validation", data["id"], *data["ood"]]
  trainings = []
  for method in methods:
    top = 1e-3 if method == "lp_ft" else 1e-2
    rates = [top / 10**k for k in range(4)][::-1] if num_rates > 1 else [1e-3]
    for rate in [0.0] if method == "lp" else rates[:num_rates]:
      for seed in seeds[-1:] if method == "lp" else seeds:
        moved = 0.0 if method == "lp" else fake_run.MOVED[method] * (rate / 1e-3) ** 0.7
        trainings.append({
          "key": f"{method}-{rate:g}-{seed}", "method": method, "learning_rate": rate, "seed": seed,
          "moved": moved, "epochs": fake_epochs(method, rate or 1.0, sets, rng),
        })  # fmt: skip
  by = {m: [t for t in trainings if t["method"] == m] for m in methods}
  rules = ["last", "early_stopping", *(["oracle"] if data["ood"] else [])]
  chosen = {(r, m): fake_selection(r, m, by[m], sets) for r in rules for m in methods}
  final = {
    m: [t for t in by[m] if t["learning_rate"] == chosen["last", m]["learning_rate"]]
    for m in methods
  }
  among = [m for m in ("ft", "lp_ft", "subtuning") if m in methods] or methods[:1]
  record["robustness"] = {
    "validation": "validation", "rule": rule, "units": units, "trainings": trainings,
    "selections": list(chosen.values()),
    "blocks": {m: fake_blocks(final[m], sets, units, rng) for m in methods},
    "interpolation": {m: fake_line(m, sets, seeds, rng) for m in methods if m in ("ft", "lp_ft")},
    "probe_steps": fake_steps(sets, steps),
    "shift": {name: 1.7 for name in data["ood"]},
    "recommendation": {
      "method": among[-1], "among": among, "strength": "weak",
      "reasons": ["Full fine-tuning has the highest validation accuracy, 52.0 %; the intervals of "
                  "the differences of LP-FT (51.1) include 0.",
                  "Shift, as the proxy A-distance: twemoji 1.70; large (from 1.6 on)."],
    },
  }  # fmt: skip


def write(
  workdir: pathlib.Path,
  *,
  methods=tuple(fake_run.TITLES),
  num_ood: int = 3,
  num_rates: int = 4,
  seeds=(0, 1, 2),
  steps=(0, 1, 3, 10, 100),
  units=tuple(UNITS),
  rule: str = "last",
  num_test: int = 261,
) -> dict:
  """Writes a fake study to `workdir`; returns its record."""
  with fake_settings(num_ood, seeds):
    record = fake_run.write(workdir, methods=methods, num_test=num_test, num_images=6)
    add_study(record, seeds, num_rates=num_rates, steps=steps, units=list(units), rule=rule)
  (workdir / records.RESULTS).write_text(json.dumps(record), encoding="utf-8")
  return record
