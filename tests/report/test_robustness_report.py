"""The report of a robustness study from fake records: page, figures, text, accessors, errors."""

import contextlib
from html import unescape
import json
import math
import pathlib
import re
from unittest import mock

import numpy as np
from PIL import Image
import pytest

from subtune_jax.report import charts, document, estimate, html, terminal, words
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.robustness import curve_figures as robustness_curves
from subtune_jax.studies.robustness import figures as robustness_plots
from subtune_jax.studies.robustness import page as robustness_page
from subtune_jax.studies.robustness import record as study_lib
from tests import marks
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


def fake_score(by_seed: list[float]) -> dict:
  mean = float(np.mean(by_seed))
  return {"mean": mean, "by_seed": by_seed, "90": [mean - 0.03, mean + 0.03],
          "95": [mean - 0.036, mean + 0.036]}  # fmt: skip


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
    columns[summary_lib.MEAN_OOD] = sets[2:]
  for column, names in columns.items():
    by_seed = [float(np.mean([e["accuracy"][n] for n in names])) for e in picked[rate]]
    accuracy[column] = fake_score(by_seed)
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
        name: float(
          fake_run.SKILL["lp"][i] * (1 - alpha) + alpha * fake_run.SKILL[method][i] + bump
        )
        for i, name in enumerate(sets[1:])
      }
      accuracy["validation"] = accuracy[sets[1]] + 0.01
      rows.append({"seed": seed, "alpha": float(alpha), "accuracy": accuracy})
  return rows


def fake_steps(sets, steps) -> list[dict]:
  rows = []
  for number, step in enumerate(steps):
    share = 1 - np.exp(-number)
    columns = [*sets, summary_lib.MEAN_OOD]
    probe = {n: fake_score([0.02 + 0.3 * share / (1 + 0.2 * i)]) for i, n in enumerate(columns)}
    tuned = {n: fake_score([0.4 + 0.08 * share - 0.05 * i]) for i, n in enumerate(columns)}
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
    "shift": dict.fromkeys(data["ood"], 1.7),
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
  (workdir / "results.json").write_text(json.dumps(record), encoding="utf-8")
  return record


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """A fake study with hostile names and its report; read only."""
  path = tmp_path_factory.mktemp("study")
  record = write(path, num_rates=2, num_test=60, num_ood=2)
  record["title"] = f"Study {HOSTILE}"
  record["methods"][1]["title"] = f"FT {HOSTILE}"
  record["methods"][2]["stages"][1]["title"] = HOSTILE
  record["robustness"]["recommendation"]["reasons"].append(HOSTILE)
  (path / "results.json").write_text(json.dumps(record), encoding="utf-8")
  run = compare_record.load(path)
  html.write(path, robustness_page.report(run, summary_lib.summarize(run, num_resamples=100)))
  return path


@pytest.fixture(scope="module")
def study(workdir) -> study_lib.Study:
  return study_lib.of(compare_record.load(workdir).record)


@pytest.fixture(scope="module")
def page(workdir) -> str:
  return (workdir / html.PAGE).read_text(encoding="utf-8")


def text_of(path: pathlib.Path, record: dict) -> str:
  """What a terminal shows of the study's own sections."""
  study, run = study_lib.of(record), compare_record.load(path)
  answer = robustness_page.recommendation(run, summary_lib.summarize(run, num_resamples=50), study)
  return terminal.render(document.Document("", "", [robustness_page.rules(study), answer]))


def small(tmp_path, **options) -> dict:
  options = {"num_test": 30, "num_rates": 1, "units": ("stem", "top"), "steps": ()} | options
  return write(tmp_path, **options)


def test_page_holds_its_sections_in_order(page):
  found = [unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", page)]
  assert found[:3] == ["Results", "Against Linear probing", "Accuracy by domain"]
  assert found[3:13] == [
    "Tables in the paper's form", "In against out of distribution", "Feature distortion",
    "Distortion by block", "Distortion along training", "From the probe to the fine-tuned network",
    "Accuracy along training", "Learning rate", "A probe stopped early",
    "Which method should I use?",
  ]  # fmt: skip
  assert found[-3:] == ["The run", "Settings", "Data and licences"]
  assert page.index("Last epoch (the rule") < page.index("Early stopping</h3>")
  assert page.index("Early stopping</h3>") < page.index(robustness_page.NOT_A_RESULT)


def test_page_is_safe_and_whole(workdir, page):
  assert "<script" not in page
  assert not re.search(r'(src|href)="(?!data:)', page)
  names = {path.stem for path in (workdir / html.FIGURES).glob("*.png")}
  assert {"id_ood", "distortion", "distortion_blocks", "distortion_epochs", "interpolation",
          "accuracy_epochs", "rates", "probe_steps", "accuracy"} <= names  # fmt: skip
  for path in (workdir / html.FIGURES).glob("*.png"):
    with Image.open(path) as image:
      assert np.asarray(image.convert("L")).std() > 2


def test_tables_show_the_record(study, page):
  section = page[page.index("Early stopping</h3>") : page.index("Oracle: chosen")]
  row = section[section.index("LP-FT") :]
  chosen = study.selection("early_stopping", "lp_ft")
  score = chosen["accuracy"][study.ood_column]
  assert words.percent(score["mean"]) in row
  for level in ("90", "95"):
    low, high = (words.percent(end) for end in score[level])
    assert f"{level}: {low}\N{EN DASH}{high}" in row
  assert "! edge of grid" in row
  assert f"lr {words.setting_value(chosen['learning_rate'])}" in row
  assert "l2 1e-3" in section


def test_a_choice_of_fewer_trainings_is_noted(tmp_path):
  record = small(tmp_path, methods=("ft", "subtuning"))
  entry = record["robustness"]
  first = next(t for t in entry["trainings"] if t["method"] == "ft")
  entry["trainings"].append(first | {"key": "more", "learning_rate": 1e-5})
  row = next(r for r in entry["selections"] if (r["rule"], r["method"]) == ("last", "ft"))
  row.update(learning_rate=1e-5, epochs=row["epochs"][:1])
  rules = robustness_page.rules(study_lib.of(record))
  sections = html.render(document.Document("", "", [rules]))
  assert sections.count("<small>1 training</small>") == 1


def test_only_the_oracle_is_marked_as_one(page):
  start = page.index(robustness_page.NOT_A_RESULT)
  assert page.count(robustness_page.NOT_A_RESULT) == 1
  assert "saved full fine-tuning" in page[start:]
  assert "chosen without test labels" in page[start:]


def test_recommendation_is_compared_with_every_other_method(workdir):
  run = compare_record.load(workdir)
  summary = summary_lib.summarize(run, num_resamples=100)
  against = robustness_page.against_others(run, summary, "ft")
  assert list(against) == ["lp", "lp_ft", "subtuning"]
  for column in summary.columns:
    found = against["lp"][column.key]
    assert found.mean == pytest.approx(summary.differences["ft"][column.key].mean)
    assert found.low <= found.mean <= found.high
  direct = robustness_page.against_others(run, summary, "lp")
  assert direct["ft"][run.record["data"]["id"]].mean == pytest.approx(
    -summary.differences["ft"][run.record["data"]["id"]].mean
  )


def test_fared_text(study):
  def verdict(sign):
    return {study.id: estimate.Estimate(sign * 0.1, sign * 0.1 - 0.05, sign * 0.1 + 0.05)}

  against = {"lp": verdict(1), "ft": verdict(-1), "lp_ft": verdict(0)}
  text = robustness_page.fared_text(study, against, study.id)
  assert text.startswith("On noto (ID), SubTuning is above Linear probing; below FT ")
  assert text.endswith("undecided against LP-FT.")


@pytest.mark.parametrize(
  ("strength", "start"), [("clear", "Clear"), ("weak", "Weak"), ("undecided", "Undecided")]
)
def test_text(tmp_path, strength, start):
  record = small(tmp_path)
  record["robustness"]["recommendation"]["strength"] = strength
  text = text_of(tmp_path, record)
  assert max(len(line) for line in text.splitlines()) <= terminal.WIDTH
  assert text.count("Linear probing  ") == 3
  assert f"not a result\n\n{robustness_page.NOT_A_RESULT[:40]}" in text
  assert f"Which method should I use? SubTuning. {start}:" in " ".join(text.split())
  assert "- Shift, as the proxy A-distance" in text


@pytest.mark.parametrize(
  ("options", "absent"),
  marks.first(1, [
    ({"num_ood": 0}, {"id_ood", "rates", "probe_steps"}),
    ({"num_ood": 1, "seeds": (4,)}, {"rates", "probe_steps"}),
    ({"methods": ("lp",)}, {"distortion", "distortion_blocks", "distortion_epochs", "rates",
                            "interpolation", "probe_steps"}),
    ({"methods": ("ft", "subtuning"), "num_rates": 2, "num_ood": 1}, {"probe_steps"}),
    ({"num_ood": 1, "rule": "early_stopping", "steps": (0, 5)}, {"rates"}),
  ], several=True),
)  # fmt: skip
def test_page_of_less(tmp_path, options, absent):
  record = small(tmp_path, **options)
  run = compare_record.load(tmp_path)
  summary = summary_lib.summarize(run, num_resamples=50)
  drawn = robustness_page.figures(study_lib.of(record))
  every = {"id_ood", "distortion", "distortion_blocks", "distortion_epochs", "interpolation",
           "accuracy_epochs", "rates", "probe_steps"}  # fmt: skip
  assert {figure.name for figure in drawn} == every - absent
  text = html.render(robustness_page.report(run, summary))
  assert ("Oracle" in text) == bool(run.record["data"]["ood"])
  assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", text))
  assert text_of(tmp_path, record)


def test_several_sides_are_means_over_the_shifted_sets(study):
  training = study.trainings("ft")[0]
  epoch = training["epochs"][-1]
  first, second = (epoch["accuracy"][name] for name in study.ood)
  assert study.accuracy(epoch, ood=True) == pytest.approx((first + second) / 2)
  assert study.accuracy(epoch, ood=False) == epoch["accuracy"][study.id]
  moved = [epoch["distortion"][name]["relative"] for name in study.ood]
  assert study.distortion(epoch["distortion"], "relative", ood=True) == pytest.approx(
    np.mean(moved)
  )
  assert study.block_distortion("ft", "relative", ood=False).shape == (3, len(UNITS))
  assert study.ood_column == summary_lib.MEAN_OOD
  assert study.title_of(study.ood_column) == "mean OOD"


def test_chosen_epochs_are_those_of_the_last_stage(study):
  for method in ("lp", "lp_ft"):
    chosen = study.selection("early_stopping", method)
    epochs = study.picked_epochs("early_stopping", method)
    assert [epoch["epoch"] for epoch in epochs] == chosen["epochs"]
    assert {epoch["stage"] for epoch in epochs} == {int(method == "lp_ft")}
  training = study.trainings("lp_ft")[0]
  assert study_lib.stage_starts(training) == [0, 1]
  assert len(study_lib.last_stage(training)) == EPOCHS


def test_best_alpha_is_chosen_by_validation(tmp_path):
  record = small(tmp_path)
  rows = record["robustness"]["interpolation"]["ft"]
  for row in rows:
    alpha = round(10 * row["alpha"])
    row["accuracy"] = dict.fromkeys(row["accuracy"], alpha / 10) | {"validation": float(alpha == 3)}
  assert robustness_curves.best_alpha(study_lib.of(record), "ft") == 3


@pytest.mark.parametrize(
  ("values", "scale"),
  [([0.0, 1.0, 20.0], "linear"), ([0.0, 0.01, 20.0], "symlog"), ([0.0], "linear")],
)
def test_axes_over_decades_are_logarithmic_and_keep_zero(values, scale):
  axes = charts.new_figure(4, 3).add_subplot()
  charts.from_zero(axes, [*values, float("nan")])
  assert axes.get_yscale() == scale
  assert axes.get_ylim()[0] == 0
  assert axes.get_ylim()[1] > max(values)


@pytest.mark.parametrize(
  ("value", "text"),
  [(0.0, "0"), (0.0123, "0.012"), (1.26, "1.3"), (26.4, "26"), (173.2, "173"), (math.nan, "n/a")],
)
def test_percentages_over_decades(value, text):
  assert robustness_plots.short_percent(value) == text


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda e: e.pop("units"), "lacks units"),
    (lambda e: e["trainings"][0].pop("moved"), "lacks moved"),
    (lambda e: e["trainings"][0]["epochs"].clear(), "trainings[0].epochs is []"),
    (lambda e: e["trainings"][0]["epochs"][0]["accuracy"].clear(), "accuracy lacks validation"),
    (lambda e: e["selections"].pop(0), "'last' has no selection of method 'lp'"),
    (lambda e: e["selections"][0].update(oracle=True), "only 'oracle' reads test labels"),
    (lambda e: e["selections"][0].update(epochs=[9]), "epoch is 9"),
    (lambda e: e["selections"][0].update(epochs=[1, 1]), "2 epochs and 1 trainings"),
    (lambda e: e["selections"][0].update(rule="best"), "'best'"),
    (lambda e: e["recommendation"].update(method="ema"), "recommendation is 'ema'"),
    (lambda e: e["blocks"].pop("ft"), "blocks lacks ft"),
  ],
)
def test_a_damaged_record_is_refused(tmp_path, damage, message):
  record = small(tmp_path, methods=("lp", "ft"))
  damage(record["robustness"])
  with pytest.raises(ValueError, match=re.escape(message)):
    study_lib.of(record)


def test_a_record_of_another_experiment_is_refused():
  with pytest.raises(ValueError, match=r"lacks .*robustness.*it has data"):
    study_lib.of({"data": {"id": "a", "ood": []}})
