"""The report of a study of holistic transfer from made-up ones: page, figures, numbers, errors."""

import copy
import itertools
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from subtune_jax import calibration, files
from subtune_jax.report import charts, document, html, style
from subtune_jax.studies.holistic_transfer import curve_figures as holistic_curves
from subtune_jax.studies.holistic_transfer import figures as holistic_plots
from subtune_jax.studies.holistic_transfer import headline
from subtune_jax.studies.holistic_transfer import page as holistic_page
from subtune_jax.studies.holistic_transfer import record as holistic_records
from subtune_jax.studies.holistic_transfer import sweep_figures as holistic_studies
from tests.report import fake_holistic

HOSTILE = '<script>alert("1")</script> & $x_0$'
WHOLE = {
  "methods": ("ft", "lp", "frozen_classifier", "wise_ft", "oracle"), "seeds": (0, 1), "epochs": 3,
  "num_classes": 12, "num_seen": 6, "units": 3, "sizes": (3, 8), "optimizers": ("sgd", "adam"),
  "width": 8, "per_class": 4, "along": ("ft", "lp"),
}  # fmt: skip
BARE = WHOLE | {
  "methods": ("ft",), "seeds": (3,), "units": 0, "sizes": (), "optimizers": (), "pcv": False,
  "along": (),
}  # fmt: skip
ALWAYS = {"plane", "plane_methods", "nearest_means", "ausuc", "directions"}
ALONG = {"absent_accuracy", "absent_probability", "margins"}
STUDIES = {"sizes", "sweep", "blocks"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> holistic_records.Study:
  """A study with everything in it; read only."""
  workdir = tmp_path_factory.mktemp("whole")
  return holistic_records.of(fake_holistic.write(workdir, **WHOLE), workdir)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> holistic_records.Study:
  """Fine-tuning with one seed, read at its end, and nothing else; read only."""
  workdir = tmp_path_factory.mktemp("bare")
  return holistic_records.of(fake_holistic.write(workdir, **BARE), workdir)


def written(study: holistic_records.Study) -> str:
  path = html.write(study.workdir, holistic_page.report(study))
  assert path == study.workdir / html.PAGE
  return path.read_text(encoding="utf-8")


def text_of(page: str) -> str:
  """A page without its tags and images, on one line."""
  page = re.sub(r"<small[^>]*>", " ", page)
  text = re.sub(r"<[^>]*>", "|", re.sub(r"<style>.*?</style>", "", page, flags=re.S))
  return re.sub(r"\|+", "|", text.replace("\N{NO-BREAK SPACE}", " "))


def rendered(*parts: document.Part) -> str:
  """Parts of a page as HTML."""
  return html.render(document.Document("", "", parts))


def headings(page: str) -> list[str]:
  return re.findall("<h2>(.*?)</h2>", page)


def test_whole_page(whole):
  page = written(whole)
  figures = {path.stem for path in (whole.workdir / html.FIGURES).iterdir()}
  assert figures == ALWAYS | ALONG | STUDIES
  assert page.count("<img") == len(figures)
  found = headings(page)
  assert found[:3] == ["Results", "Differences", "Seen against absent classes"]
  assert found[-3:] == ["The run", "Settings", "Data and licences"]
  for line in ("WiSE-FT, 0.5 + ALG", "Fine-tuning + PCV", "oracle: gamma by test labels",
               "oracle: trained on all classes", "SubTuning(3..5)", "! edge of grid",
               "Fine-tuning, seed 1: gamma 1.40 from 3 pseudo splits",
               "Means over 2 seeds"):  # fmt: skip
    assert line in text_of(page)


def test_bare_page_leaves_out_what_is_not_there(bare):
  page = written(bare)
  assert {path.stem for path in (bare.workdir / html.FIGURES).iterdir()} == ALWAYS
  for word in ("PCV</", "SubTuning", "Optimisers", "Thin:", "single seeds", "highest seed"):
    assert word not in page.replace("PCV (pseudo", "")
  assert "One seed" in page


def test_a_page_can_be_written_again_from_its_record(bare):
  before = written(bare)
  assert holistic_page.write_report(bare.workdir).read_text(encoding="utf-8") == before


def test_order_of_the_table(whole):
  rows = [(row["title"], row["calibration"]) for row, _ in holistic_page.table_rows(whole)]
  assert rows[:6] == [
    ("Source model", "none"), ("Source model", "alg"), ("Fine-tuning", "none"),
    ("Fine-tuning", "alg"), ("Fine-tuning", "pcv"), ("Fine-tuning", "star"),
  ]  # fmt: skip
  assert rows[-1] == ("Oracle (all classes)", "none")
  assert [t for t, kind in rows if kind == "star"] == ["Fine-tuning"]
  oracles = [row["title"] for row, oracle in holistic_page.table_rows(whole) if oracle]
  assert oracles == ["Fine-tuning", "Oracle (all classes)"]
  assert len(rows) == 2 + 4 + 2 * 3 + 1


def test_cells_hold_micro_then_balanced_accuracies_and_their_intervals(whole):
  row = next(row for row, _ in holistic_page.table_rows(whole) if row["calibration"] == "alg")
  numbers = row["numbers"]
  wanted = []
  for average in ("micro", "balanced"):
    for pair in ("Y/Y", "S/Y", "U/Y"):
      number = numbers["accuracy"][average][pair]
      low, high = (100 * end for end in number["95"])
      wanted.append(f"{100 * np.mean(number['by_seed']):.1f} {low:.1f}\N{EN DASH}{high:.1f}")
  line = next(line for line in text_of(written(whole)).split("Source model") if "+ ALG" in line)
  cells = [cell.strip() for cell in line.split("|")]
  assert [cell for cell in cells if "\N{EN DASH}" in cell][:6] == wanted
  assert len(set(wanted)) == 6  # micro and balanced differ here


def without_intervals(study: holistic_records.Study) -> holistic_records.Study:
  """The study as of a test set of one concept, which gives nothing to resample."""
  record = copy.deepcopy(dict(study.record))
  for row in (*record["holistic"]["table"], *record["holistic"]["blocks"]):
    row.pop("against")
    row["numbers"]["ausuc"].pop("95")
    for average in ("micro", "balanced"):
      for pair in holistic_page.PAIRS:
        row["numbers"]["accuracy"][average][pair].pop("95")
  return holistic_records.of(record, study.workdir)


def test_without_intervals_cells_hold_the_range_of_seeds(whole):
  page = text_of(written(without_intervals(whole)))
  seeds = 100 * np.array(whole.numbers("Fine-tuning")["accuracy"]["micro"]["Y/Y"]["by_seed"])
  assert f"{seeds.mean():.1f} {seeds.min():.1f}\N{EN DASH}{seeds.max():.1f}" in page
  assert "Means over 2 seeds. Small: the lowest and highest of them." in page
  assert "95 %" not in page
  assert "Differences" not in page


def test_differences_are_those_of_the_table(whole):
  section = rendered(holistic_page.differences(whole)).replace("\N{MINUS SIGN}", "-")
  line = next(line for line in section.split("<tr>") if "Fine-tuning + ALG" in line)
  cells = [re.sub("<[^>]*>", " ", cell) for cell in re.findall("<td[^>]*>(.*?)</td>", line)]
  wanted = []
  for title in ("Source model", "Fine-tuning"):
    for name in (*holistic_page.PAIRS, "AUSUC"):
      own, other = (holistic_records.estimate(
        n["ausuc"] if name == "AUSUC" else n["accuracy"]["micro"][name]).mean
        for n in (whole.numbers("Fine-tuning", "alg"), whole.numbers(title)))  # fmt: skip
      wanted.append(100 * (own - other))
  assert cells[-1] == "0"  # calibration leaves AUSUC as it is
  shown = [float(cell.split()[0]) for cell in cells]
  np.testing.assert_allclose(shown, wanted, atol=0.051)
  for cell in cells[:-1]:
    _, low, _, high = cell.split()
    assert float(low) < float(high)


def test_headline_says_what_was_lost_and_given_back(whole):
  def value(title, kind, pair):
    return 100 * whole.numbers(title, kind)["accuracy"]["micro"][pair]["mean"]

  before = value("Source model", "none", "U/Y")
  after, alg = (value("Fine-tuning", kind, "U/Y") for kind in ("none", "alg"))
  assert after < before  # or the study shows nothing
  lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in headline.headline(whole)]
  _, low, high = whole.row("Fine-tuning", "none")["against"]["pretrained"]["U/Y"]
  ends = f"(95 % interval {-100 * high:.1f} to {-100 * low:.1f})"
  assert f"lost {before - after:.1f} points {ends};" in lines[0].replace("\N{MINUS SIGN}", "-")
  assert f"ALG gives back {alg - after:.1f} points of Acc U/Y, to {alg:.1f} %" in lines[1]
  assert "points (95 % interval)." in lines[1]
  assert lines[2].startswith("PCV gives back")
  assert f"would reach {value('Fine-tuning', 'star', 'Y/Y'):.1f} %" in lines[2]
  assert "interval" not in " ".join(headline.headline(without_intervals(whole)))


def changed(study: holistic_records.Study, pair: str, values: dict) -> holistic_records.Study:
  """The study with other accuracies by (title, calibration)."""
  record = copy.deepcopy(dict(study.record))
  for row in record["holistic"]["table"]:
    if (row["title"], row["calibration"]) in values:
      row["numbers"]["accuracy"]["micro"][pair]["mean"] = values[row["title"], row["calibration"]]
  return holistic_records.of(record, study.workdir)


def test_headline_where_nothing_was_lost_or_given_back(bare):
  ft = "Fine-tuning"
  found = changed(bare, "U/Y", {("Source model", "none"): 0.2, (ft, "none"): 0.3, (ft, "alg"): 0.3})
  found = changed(found, "S/Y", {(ft, "none"): 0.5, (ft, "alg"): 0.5})
  lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in headline.headline(found)]
  assert "gained 10.0 points" in lines[0]
  assert "ALG gives nothing back: Acc U/Y goes to 30.0 %" in lines[1]
  assert "10.0 points above the source model), and leaves Acc S/Y at 50.0 %" in lines[1]


def test_mean_curve_by_hand():
  one = holistic_records.Curve(np.array([1.0]), np.array([0.8, 0.0]), np.array([0.0, 0.6]))
  same = holistic_records.mean_curve([one])
  np.testing.assert_allclose(same, ([0.8, 0.0], [0.0, 0.6]))
  seen, unseen = holistic_records.mean_curve([one, one._replace(thresholds=np.array([2.0]))])
  np.testing.assert_allclose(seen, [0.8, 0.4, 0.0])
  np.testing.assert_allclose(unseen, [0.0, 0.3, 0.6])


def test_curves_of_the_files_have_the_areas_of_the_record(whole):
  for method, title in zip(("pretrained", "ft"), whole.compared, strict=True):
    areas = [-np.trapezoid(curve.unseen, curve.seen) for curve in whole.curves(method)]
    np.testing.assert_allclose(areas, whole.numbers(title)["ausuc"]["by_seed"])


def test_points_of_the_plane_are_those_of_the_table(whole):
  axes = holistic_plots.plane(whole).axes[0]
  drawn = {(line.get_marker(), line.get_color()): line.get_xydata()[0] for line in axes.lines}
  for kind, marker in holistic_plots.CALIBRATED.items():
    micro = whole.numbers("Fine-tuning", kind)["accuracy"]["micro"]
    wanted = [100 * micro[pair]["mean"] for pair in ("S/Y", "U/Y")]
    np.testing.assert_allclose(drawn[marker, style.METHOD_COLORS["ft"]], wanted)
  assert len([line for line in axes.lines if len(line.get_xdata()) > 1]) == 2 * (2 + 1)


def test_update_directions_are_ordered_seen_then_absent(whole):
  axes = holistic_curves.directions(whole).axes[0]
  cosine = np.asarray(axes.images[0].get_array())
  network = whole.networks("main", "ft")[0]
  similarity, split = network["directions"]["similarity"], len(whole.partition(network)["seen"])
  off = ~np.eye(split, dtype=bool)
  assert cosine[:split, :split][off].mean() == pytest.approx(similarity["seen"])
  assert cosine[split:, split:][off].mean() == pytest.approx(similarity["absent"])
  assert cosine[:split, split:].mean() == pytest.approx(similarity["between"])


def test_curves_along_training_begin_at_the_source_model(whole):
  axes = holistic_curves.absent_accuracy(whole).axes[0]
  start = whole.numbers("Source model")["accuracy"]["micro"]["U/U"]["mean"]
  ends = [whole.numbers(t)["accuracy"]["micro"]["U/U"]["mean"]
          for t in ("Fine-tuning", "Linear probing")]  # fmt: skip
  means = [line.get_ydata() for line in axes.lines if line.get_marker() == "o"]
  assert [len(ys) for ys in means] == [WHOLE["epochs"] + 1] * 2
  np.testing.assert_allclose([ys[0] for ys in means], 100 * start)
  np.testing.assert_allclose([ys[-1] for ys in means], 100 * np.array(ends))


def test_one_absent_class_has_no_other_margin(whole):
  record = copy.deepcopy(dict(whole.record))
  for network in record["holistic"]["networks"]:
    for epoch in network["epochs"]:
      epoch["margins"] |= {"other": None, "own_over_other": None}
  found = holistic_records.of(record, whole.workdir)
  left, right = holistic_curves.margins(found).axes
  assert len(left.lines) == 2 * 3  # own and seen: two seeds and a mean each
  assert len(right.lines) == 3 + 1


def test_sizes_are_on_the_shared_absent_classes(whole):
  for seed in WHOLE["seeds"]:
    shared = whole.common(seed)
    own = [p["absent"] for p in whole.body["partitions"] if p["seed"] == seed]
    assert set(np.flatnonzero(shared)) == set.intersection(*map(set, own))
  axes = holistic_studies.sizes(whole).axes[0]
  network = whole.networks("size")[0]
  x, y = whole.partition(network)["num_seen"], 100 * network["common"]["head"]["Y"]
  dots = np.concatenate([c.get_offsets() for c in axes.collections])
  assert np.isclose(dots[:, 1], y).any()
  assert list(axes.get_xticks()) == [3, 6, 8]
  assert abs(dots[np.isclose(dots[:, 1], y), 0] - x).min() < 0.2


def test_source_accuracies_on_the_shared_classes(whole):
  """By hand: over the images of those classes, the share that all logits answer right."""
  arrays = whole.arrays("epochs/source.npz", ("test/logits", "test/labels"))
  shares = []
  for seed in WHOLE["seeds"]:
    rows = whole.common(seed)[arrays["test/labels"]]
    right = arrays["test/logits"].argmax(-1) == arrays["test/labels"]
    shares.append(right[rows].mean())
  found = holistic_studies._source_common(whole, whole.networks("size"))
  assert found["head"]["Y"] == pytest.approx(np.mean(shares))
  assert found["ncm"]["own"] >= found["ncm"]["Y"]


def test_sizes_without_a_shared_class_have_a_table_alone(whole):
  record = copy.deepcopy(dict(whole.record))
  for network in record["holistic"]["networks"]:
    network.pop("common", None)
  found = holistic_records.of(record, whole.workdir)
  assert holistic_studies.sizes(found) is None
  page = html.render(holistic_page.report(found))
  assert "8 classes, group" in page


def test_sweep_marks_divergence_and_what_validation_chooses(whole):
  figure = holistic_studies.sweep(whole)
  sgd, adam = figure.axes[:2]
  assert [sgd.get_title(loc="left"), adam.get_title(loc="left")] == ["sgd", "adam"]
  assert [t.get_text() for t in adam.texts].count("diverged") == 3
  image = sgd.images[0]
  values = np.concatenate([axes.images[0].get_array().compressed() for axes in (sgd, adam)])
  np.testing.assert_allclose(image.get_clim(), (values.min(), values.max()))  # all colours are used
  shown = [float(t.get_text()) for t in sgd.texts]
  np.testing.assert_allclose(shown, image.get_array().compressed(), atol=0.051)
  rows = [n for n in whole.networks("sweep") if n["method"].startswith("sweep:adam")]
  best = max(rows, key=lambda n: n["validation_accuracy"])
  decays, rates = (sorted({place[i] for place in map(holistic_studies._sweep_place, rows)})
                   for i in (1, 2))  # fmt: skip
  _, decay, rate = holistic_studies._sweep_place(best)
  frame = adam.patches[0].get_xy()
  np.testing.assert_allclose(frame, [rates.index(rate) - 0.46, decays.index(decay) - 0.46])


def test_a_sweep_that_diverged_everywhere(whole):
  record = copy.deepcopy(dict(whole.record))
  for network in record["holistic"]["networks"]:
    if network["use"] == "sweep":
      network |= {"epochs": [], "validation_accuracy": None}
  charts.png(holistic_studies.sweep(holistic_records.of(record, whole.workdir)))


def test_units_stand_beside_fine_tuning(whole):
  gap, area, accuracy = holistic_studies.blocks(whole).axes
  assert [t.get_text() for t in accuracy.get_xticklabels()] == ["stem..2", "3..5", "6..8"]
  wanted = [whole.numbers(f"SubTuning({u})", "alg")["gamma"]["mean"] for u in ("stem..2", "3..5")]
  np.testing.assert_allclose(gap.lines[0].get_ydata()[:2], wanted)
  tuned = style.METHOD_COLORS["ft"]
  levels = [line.get_ydata()[0] for line in area.lines if line.get_color() == tuned]
  assert levels == [whole.numbers("Fine-tuning")["ausuc"]["mean"]]


def test_a_frozen_classifier_has_no_update_directions(whole):
  section = rendered(*holistic_page.directions(whole))
  assert "Fine-tuning" in section
  assert "Frozen classifier" not in section


def test_two_variants_of_one_method_have_their_own_colours(whole):
  record = copy.deepcopy(dict(whole.record))
  table = record["holistic"]["table"]
  more = copy.deepcopy([row for row in table if row["method"] == "wise_ft"])
  table += [row | {"title": "WiSE-FT, 0.8"} for row in more]
  found = holistic_records.of(record, whole.workdir)
  assert found.colors["WiSE-FT, 0.5"] == style.METHOD_COLORS["wise_ft"]
  assert len(set(found.colors.values())) == len(found.colors)
  assert "WiSE-FT, 0.8 + ALG" in text_of(html.render(holistic_page.report(found)))


def test_methods_of_a_study_have_distinct_looks():
  names = ["pretrained", *fake_holistic.ALL_METHODS]
  assert set(names) <= set(style.METHOD_COLORS)
  colors = style.colors(names)
  rgb = {n: np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for n, c in colors.items()}
  nearest = min(np.abs(rgb[a] - rgb[b]).sum() for a, b in itertools.combinations(names, 2))
  assert nearest > 60
  assert len(set(style.markers(names).values())) == len(names)


def test_hostile_names_are_text(bare):
  record = copy.deepcopy(dict(bare.record))
  record |= {"title": HOSTILE, "command": HOSTILE, "config": {"seeds": [0], "x": HOSTILE}}
  record["data"] |= {"train": HOSTILE, "attribution": HOSTILE}
  record["holistic"]["source"]["data"] = HOSTILE
  for row in itertools.chain(*(record["holistic"][k] for k in ("table", "methods", "networks"))):
    row["title"] = f"{row['title']} {HOSTILE}"
  page = written(holistic_records.of(record, bare.workdir))
  assert "<script" not in page
  assert HOSTILE.split("&")[0] not in page


def test_a_page_loads_nothing(bare):
  page = written(bare)
  assert not re.search(r"(?:src|href)=\"(?!data:)", page)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda r: r.pop("holistic"), "lacks holistic"),
    (lambda r: r["holistic"].pop("networks"), "lacks networks"),
    (lambda r: r["holistic"].update(table=[]), "'pretrained'"),
  ],
)
def test_other_records_are_refused(bare, change, words):
  record = json.loads((bare.workdir / "results.json").read_text(encoding="utf-8"))
  change(record)
  with pytest.raises(ValueError, match=words):
    holistic_page.report(holistic_records.of(record, bare.workdir))


def test_files_that_are_not_there_damaged_or_of_something_else(bare, tmp_path):
  found = holistic_records.of(bare.record, tmp_path)
  with pytest.raises(FileNotFoundError, match=r"source\.npz is missing"):
    found.curves("pretrained")
  path = tmp_path / "epochs" / "source.npz"
  path.parent.mkdir()
  path.write_bytes(b"PK\x03\x04 no archive")
  with pytest.raises(ValueError, match="is damaged"):
    found.curves("pretrained")
  files.write_npz(path, {"test/labels": np.zeros(3, int)})
  with pytest.raises(ValueError, match="lacks"):
    found.curves("pretrained")
  with pytest.raises(ValueError, match="outside of"):
    found.arrays("../other.npz", ())


def test_the_module_needs_neither_jax_nor_matplotlib_to_be_imported():
  code = (
    "import sys; from subtune_jax.studies.holistic_transfer import page; "
    "bad = ('matplotlib', 'jax', 'subtune_jax.calibration', "
    "'subtune_jax.studies.holistic_transfer.run'); "
    "sys.exit(', '.join(m for m in bad if m in sys.modules) or None)"
  )
  root = pathlib.Path(__file__).parents[2]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_gamma_star_of_the_record_is_on_the_curve_of_the_file(whole):
  network = whole.networks("main", "ft")[0]
  last = network["epochs"][-1]
  stored = whole.arrays(last["file"], ("test/logits", "test/labels"))
  absent = whole.absent(whole.partition(network))
  scores = calibration.calibrate(stored["test/logits"], absent, last["gamma"]["star"])
  table = calibration.accuracy_table(scores, stored["test/labels"], absent)
  curve = whole.curves("ft")[0]
  near = np.abs(curve.seen - table["S/Y"]) + np.abs(curve.unseen - table["U/Y"])
  assert near.min() < 1e-9
