"""The report of a run: its numbers by hand, its errors, and the page and figures it writes."""

import base64
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from subtune_jax import files as files_lib
from subtune_jax.report import charts, document, estimate, html, style, terminal, words
from subtune_jax.studies.compare import figures as compare_figures
from subtune_jax.studies.compare import page as compare_page
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.compare import verdict
from tests.report import fake_run

HOSTILE = '<script>alert("1")</script> & $x_0$'


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """A fake run with hostile names and its report; read only."""
  path = tmp_path_factory.mktemp("run")
  classes = (HOSTILE, *fake_run.CLASSES[1:])
  record = fake_run.write(path, class_names=classes)
  record["title"] = f"Study {HOSTILE}"
  record["config"]["note"] = HOSTILE
  record["methods"][1]["title"] = f"FT {HOSTILE}"
  record["methods"][2]["stages"][0]["title"] = HOSTILE
  record["data"]["attribution"] = {"noto": HOSTILE}
  (path / "results.json").write_text(json.dumps(record), encoding="utf-8")
  compare_page.write_report(path)
  return path


@pytest.fixture
def small(tmp_path) -> pathlib.Path:
  """A run of two methods and 30 images that a test may damage."""
  fake_run.write(tmp_path, methods=("lp", "ft"), num_test=30, num_images=1)
  return tmp_path


def edit(workdir: pathlib.Path, change) -> None:
  path = workdir / "results.json"
  record = json.loads(path.read_text(encoding="utf-8"))
  change(record)
  path.write_text(json.dumps(record), encoding="utf-8")


def text_of(summary: summary_lib.Summary, **how) -> str:
  """What a terminal shows of the numbers."""
  return terminal.render(document.Document("", "", compare_page.numbers(summary)), **how)


def run_of(right: dict[str, dict[str, list[list[int]]]]) -> compare_record.Run:
  """A run whose test sets are given as {set: {method: right (1) or wrong (0) [seeds][images]}}."""
  tests = {}
  for name, by_method in right.items():
    matrices = {method: 1 - np.array(rows) for method, rows in by_method.items()}
    num_seeds, size = next(iter(matrices.values())).shape
    ids = np.array([f"{name}/{i}" for i in range(size)])
    groups = np.array([f"concept{i}" for i in range(size)])
    labels = np.zeros(size, np.int32)
    tests[name] = compare_record.TestSet(
      name, labels, groups, ids, matrices, tuple(range(num_seeds))
    )
  methods = list(next(iter(right.values())))
  names = list(right)
  trainings = [
    {"method": m, "seed": s, "chosen": True, "seconds": 10.0 + s, "compile_seconds": 1.0,
     "moved": 0.01 * (s + 1)}
    for m in methods for s in tests[names[0]].seeds
  ]  # fmt: skip
  entries = [
    {"name": m, "title": m.upper(), "trained_params": 1234, "learning_rate": 3e-4,
     "grid_edge": m == "ft", "setting": "learning_rate"}
    for m in methods
  ]  # fmt: skip
  record = {
    "data": {"id": names[0], "ood": names[1:]},
    "methods": entries,
    "trainings": trainings,
  }
  return compare_record.Run(pathlib.Path("."), record, tests)


def test_summary_is_that_by_hand():
  run = run_of(
    {
      "d/a": {"lp": [[1, 0, 0, 0], [1, 1, 0, 0]], "ft": [[1, 1, 1, 0], [1, 1, 1, 1]]},
      "d/b": {"lp": [[1, 0], [0, 0]], "ft": [[1, 1], [1, 0]]},
      "d/c": {"lp": [[1, 1, 0, 0], [1, 1, 0, 0]], "ft": [[1, 0, 0, 0], [1, 0, 0, 0]]},
    }
  )
  summary = summary_lib.summarize(run, num_resamples=200)
  assert [c.title for c in summary.columns] == ["a (ID)", "b", "c", "mean OOD"]
  lp, ft = summary.rows
  assert [lp.accuracy[c.key].mean for c in summary.columns] == pytest.approx(
    [3 / 8, 1 / 4, 1 / 2, (1 / 4 + 1 / 2) / 2]
  )
  assert [ft.accuracy[c.key].mean for c in summary.columns] == pytest.approx(
    [7 / 8, 3 / 4, 1 / 4, (3 / 4 + 1 / 4) / 2]
  )
  assert [summary.differences["ft"][c.key].mean for c in summary.columns] == pytest.approx(
    [1 / 2, 1 / 2, -1 / 4, 1 / 8]
  )
  assert summary.sizes == {"d/a": (4, 4), "d/b": (2, 2), "d/c": (4, 4)}
  assert (ft.seconds, ft.compile_seconds) == (10.5, 1.0)
  assert ft.moved == pytest.approx(0.015)
  for row in summary.rows:
    for score in row.accuracy.values():
      assert 0 <= score.low <= score.mean <= score.high <= 1 + 1e-9


def test_a_winner_needs_every_difference_to_exclude_zero():
  right, wrong = [[1] * 40] * 2, [[0] * 40] * 2
  mixed = [[1, 0] * 20] * 2
  run = run_of({"d/a": {"lp": wrong, "ft": right, "other": mixed}})
  summary = summary_lib.summarize(run, num_resamples=200)
  assert summary.leaders == {"d/a": ("ft",)}
  assert summary.winner("d/a") == "ft"
  run = run_of({"d/a": {"lp": mixed, "ft": mixed, "other": wrong}})
  summary = summary_lib.summarize(run, num_resamples=200)
  assert sorted(summary.leaders["d/a"]) == ["ft", "lp"]
  assert summary.winner("d/a") is None
  assert "take" in " ".join(verdict.sentences(summary))
  assert summary.differences["ft"]["d/a"].verdict == "undecided"
  assert summary.differences["other"]["d/a"].verdict == "lower"


@pytest.mark.parametrize(
  ("low", "high", "verdict"),
  [(0.01, 0.02, "higher"), (-0.02, -0.01, "lower"), (-0.01, 0.01, "undecided"),
   (0.0, 0.02, "undecided"), (-0.02, 0.0, "undecided")],
)  # fmt: skip
def test_verdict(low, high, verdict):
  assert estimate.Estimate((low + high) / 2, low, high).verdict == verdict


def test_table_text(workdir):
  run = compare_record.load(workdir)
  text = text_of(summary_lib.summarize(run, num_resamples=200))
  lines = text.splitlines()
  assert max(len(line) for line in lines) <= 120
  row = next(line for line in lines if line.startswith("LP-FT"))
  assert "4.07 M" in row
  assert "lr 1e-4 !" in row
  assert "0.71 %" in row
  assert "! setting at the edge of its grid" in text
  assert "3 seeds per method; 261 test images in 231 groups in each set." in text
  assert "Against Linear probing" in text


def test_without_a_reference_or_a_second_seed_the_table_says_so():
  run = run_of({"d/a": {"ft": [[1, 0, 1, 1]], "x": [[1, 1, 1, 0]]}})
  summary = summary_lib.summarize(run, num_resamples=50)
  assert summary.reference is None
  assert summary.differences == {}
  text = text_of(summary)
  assert "Against" not in text
  assert "1 seed per method" in text
  assert "with one seed they say nothing about another training" in " ".join(text.split())


def test_a_narrow_terminal_gets_several_tables(workdir):
  summary = summary_lib.summarize(compare_record.load(workdir), num_resamples=50)
  text = text_of(summary, width=60)
  assert max(len(line) for line in text.splitlines()) <= 60
  assert text.count("Test accuracy, %") > 1


@pytest.mark.parametrize(
  ("function", "value", "text"),
  [
    (words.parameters, 928, "928"),
    (words.parameters, 57645, "57.6 k"),
    (words.parameters, 3371024, "3.37 M"),
    (words.parameters, 588000, "588 k"),
    (words.setting_value, 3e-4, "3e-4"),
    (words.setting_value, 10**-2.5, "3.2e-3"),
    (words.setting_value, 0.03, "0.03"),
    (words.setting_value, 0.0, "0"),
    (words.percent, float("nan"), "n/a"),
  ],
)
def test_numbers_as_text(function, value, text):
  assert function(value) == text


def test_load_gives_what_was_written(small):
  run = compare_record.load(small)
  assert run.methods == ["lp", "ft"]
  assert run.seeds == fake_run.SEEDS
  assert list(run.tests) == [f"emoji_domains/{d}" for d in fake_run.DOMAINS]
  test = run.tests["emoji_domains/fluent"]
  for training in run.chosen("ft"):
    entry = training["test"]["emoji_domains/fluent"]
    assert test.correct("ft")[training["seed"]].mean() == pytest.approx(entry["accuracy"])


def test_a_deterministic_method_may_be_trained_once(small):
  def change(record):
    record["trainings"] = [t for t in record["trainings"] if (t["method"], t["seed"]) != ("lp", 1)]

  edit(small, change)
  with pytest.raises(ValueError, match="the same ones"):
    compare_record.load(small)

  def change_again(record):
    record["trainings"] = [t for t in record["trainings"] if (t["method"], t["seed"]) != ("lp", 2)]

  edit(small, change_again)
  run = compare_record.load(small)
  assert run.seeds == (0, 1, 2)
  assert run.tests["emoji_domains/noto"].predicted["lp"].shape == (1, 30)
  summary = summary_lib.summarize(run, num_resamples=50)
  assert summary.trained_once == ("lp",)
  assert "3 seeds per method (one: Linear probing)" in text_of(summary)
  assert compare_figures.accuracy_bars(run, summary).axes


def test_an_accuracy_that_is_not_that_of_its_logits_raises(small):
  def change(record):
    record["trainings"][4]["test"]["emoji_domains/openmoji"]["accuracy"] += 1 / 30

  edit(small, change)
  with pytest.raises(ValueError, match=r"'ft', seed 1, on 'emoji_domains/openmoji'.*accuracy"):
    compare_record.load(small)


def test_missing_results(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"No results\.json in .*when a run ends"):
    compare_page.write_report(tmp_path)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"name": "x", ', "damaged, not JSON"),
    ("[1, 2]", r"is \[1, 2\], it has to be `object`"),
    ('{"accuracy": 1}', "lacks backbone, command.*it has accuracy"),
  ],
)
def test_damaged_or_foreign_results(small, content, message):
  (small / "results.json").write_text(content, encoding="utf-8")
  with pytest.raises(ValueError, match=message):
    compare_record.load(small)


def _drop_seed(record):
  record["trainings"] = [t for t in record["trainings"] if (t["method"], t["seed"]) != ("ft", 2)]


def _outside(record):
  record["trainings"][0]["test"]["emoji_domains/noto"]["logits"] = "../other.npz"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_drop_seed, "every method needs the same ones"),
    (_outside, "outside of"),
    (lambda r: r["trainings"][0].pop("seconds"), r"trainings\[0\] lacks seconds"),
    (lambda r: r["trainings"][0].update(seed="0"), "seed is '0', it has to be `int`"),
    (lambda r: r["trainings"][0].update(method="lpp"), "'lpp'; the record knows 'lp', 'ft'"),
    (lambda r: r["trainings"][0]["test"].pop("emoji_domains/noto"), "no test of method 'lp'"),
    (lambda r: r["methods"][0]["stages"][0].update(blocks=["block99"]), "'block99'; the record"),
    (lambda r: r["data"]["num_test"].update({"emoji_domains/noto": 31}), "says 31 images"),
    (lambda r: r["data"].update(class_names=["a"]), r"wanted \[examples, 1\]"),
    (lambda r: r["backbone"]["block_params"].pop("stem"), "have to be the same"),
    (lambda r: r.update(methods=r["methods"] * 2), "each named once"),
  ],
)
def test_a_record_that_contradicts_itself_raises(small, change, message):
  edit(small, change)
  with pytest.raises(ValueError, match=message):
    compare_record.load(small)


def _logits_path(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "logits" / "ft_0_emoji_domains_noto.npz"


def test_missing_logits(small):
  _logits_path(small).unlink()
  with pytest.raises(FileNotFoundError, match=r"ft_0_emoji_domains_noto\.npz is missing"):
    compare_record.load(small)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_damaged_logits(small, content):
  _logits_path(small).write_bytes(content)
  with pytest.raises(ValueError, match="is damaged"):
    compare_record.load(small)


@pytest.mark.parametrize(
  ("key", "change", "message"),
  [
    ("ids", lambda a: a[::-1], "same images in the same order"),
    ("logits", lambda a: np.full_like(a, np.nan), "not finite"),
    ("labels", lambda a: a[:-1], "beside 30 rows"),
    ("groups", lambda a: None, "lacks groups"),
  ],
)
def test_logits_of_other_images_raise(small, key, change, message):
  with np.load(_logits_path(small)) as file:
    arrays = dict(file)
  changed = change(arrays.pop(key))
  if changed is not None:
    arrays[key] = changed
  np.savez(_logits_path(small), **arrays)
  with pytest.raises(ValueError, match=message):
    compare_record.load(small)


def test_images_come_back_as_they_were(tmp_path):
  rng = np.random.default_rng(0)
  images = {"a/b": rng.integers(0, 256, (5, 8, 6, 3)).astype(np.uint8)}
  ids = {"a/b": np.array(list("vwxyz"))}
  compare_record.save_images(tmp_path, images, ids, max_images=3)
  found = compare_record.load_images(tmp_path)
  assert list(found) == ["a/b"]
  np.testing.assert_array_equal(found["a/b"].images, images["a/b"][:3])
  assert found["a/b"].ids.tolist() == ["v", "w", "x"]
  assert [p.name for p in tmp_path.iterdir()] == ["images.npz"]


def test_images_that_do_not_fit_raise(tmp_path, small):
  images = np.zeros((2, 4, 4, 3), np.uint8)
  with pytest.raises(ValueError, match="uint8"):
    compare_record.save_images(tmp_path, {"a": images / 255}, {"a": np.array(["0", "1"])})
  with pytest.raises(ValueError, match="2 images and ids"):
    compare_record.save_images(tmp_path, {"a": images}, {"a": np.array(["0"])})
  with pytest.raises(ValueError, match="must agree"):
    compare_record.save_images(tmp_path, {"a": images}, {})
  np.savez(small / compare_record.IMAGES, other=images)
  with pytest.raises(ValueError, match="in pairs"):
    compare_record.load_images(small)
  stored = compare_record.TestImages(images, np.array(["nobody", "knows"]))
  with pytest.raises(ValueError, match="'nobody', 'knows'"):
    compare_figures.example_images(compare_record.load(small), "emoji_domains/noto", stored)


def test_no_images_is_no_error(tmp_path):
  assert compare_record.load_images(tmp_path) == {}


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
  path = tmp_path / "x.html"
  files_lib.write_atomically(path, b"old")

  def fail(*_):
    raise OSError("disk is gone")

  monkeypatch.setattr(files_lib.os, "replace", fail)
  with pytest.raises(OSError, match="disk is gone"):
    files_lib.write_atomically(path, b"new")
  assert path.read_bytes() == b"old"
  assert [p.name for p in tmp_path.iterdir()] == ["x.html"]


def test_colors_are_fixed_and_distinct():
  fixed = style.colors(list(style.METHOD_COLORS))
  assert fixed == style.METHOD_COLORS
  assert style.colors(["new", "subtuning", "lp"])["lp"] == style.METHOD_COLORS["lp"]
  assert style.colors(["b", "lp", "a"])["b"] == style.colors(["b"])["b"]
  many = style.colors([*style.METHOD_COLORS, *(f"m{i}" for i in range(30))])
  assert len(set(many.values())) == len(style.METHOD_COLORS) + 30
  assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in many.values())
  assert len(set(style.markers(list(style.METHOD_COLORS)).values())) == len(style.METHOD_COLORS)


@pytest.mark.parametrize(("color", "text"), [("#000000", "#FFFFFF"), ("#F0E442", "#000000")])
def test_text_color(color, text):
  assert style.text_color(color) == text


def test_stages_stand_one_behind_the_other():
  rows = [{"stage": s, "epoch": e} for s in (0, 1) for e in (1, 2, 3)]
  assert compare_figures._stage_offsets([rows, rows[:-1]]) == {0: 0, 1: 3}
  rows = [{"stage": s, "epoch": e} for s in (0, 1) for e in (0, 1, 2)]
  assert compare_figures._stage_offsets([rows]) == {0: 1, 1: 4}


def test_blocks_are_coloured_where_they_are_trained(small):
  run = compare_record.load(small)
  axes = compare_figures.trained_blocks(run).axes[0]
  boxes = len(fake_run.BLOCK_PARAMS) + 1
  faces = [plots_hex(patch.get_facecolor()) for patch in axes.patches]
  assert faces[:boxes] == [style.FROZEN.lower()] * (boxes - 1) + ["#000000"]
  assert faces[boxes:] == [style.METHOD_COLORS["ft"].lower()] * boxes


def plots_hex(color) -> str:
  from matplotlib import colors

  return colors.to_hex(color)


def test_a_head_that_is_not_named_is_seen_by_its_parameters():
  backbone = {"block_params": {"a": 10, "b": 20}}
  stage = {"blocks": ["b"], "trained_params": 25}
  assert compare_record.trained_blocks(stage, backbone) == {"b", "head"}
  assert compare_record.trained_blocks({**stage, "trained_params": 20}, backbone) == {"b"}


def test_bars_have_the_heights_of_the_table(small):
  run = compare_record.load(small)
  summary = summary_lib.summarize(run, num_resamples=50)
  axes = compare_figures.accuracy_bars(run, summary).axes[0]
  heights = [patch.get_height() for patch in axes.patches]
  wanted = [100 * row.accuracy[c.key].mean for row in summary.rows for c in summary.columns]
  assert heights == pytest.approx(wanted)


def test_page_needs_no_network(workdir):
  page = (workdir / html.PAGE).read_text(encoding="utf-8")
  sources = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]{0,30})""", page)
  assert sources
  assert all(source.startswith("data:image/png;base64,") for source in sources)
  assert not re.search(r"url\(|@import|<link|<iframe|<script|javascript:", page, re.IGNORECASE)


def test_page_escapes_every_name(workdir):
  page = (workdir / html.PAGE).read_text(encoding="utf-8")
  assert "alert(" in page
  assert "<script" not in page.lower()
  assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; $x_0$" in page


def test_page_shows_the_run(workdir):
  page = (workdir / html.PAGE).read_text(encoding="utf-8")
  for text in ("python -m subtune_jax.main", "0123456789abcdef", "jax 0.10.2", "data.image_size",
               "1 x cpu", "4.07 M", "! edge of grid", "undecided", "95 % intervals"):  # fmt: skip
    assert text in page, text


def test_every_image_decodes_and_has_an_alt_text(workdir):
  page = (workdir / html.PAGE).read_text(encoding="utf-8")
  tags = re.findall(r"<img [^>]*>", page)
  files = sorted((workdir / html.FIGURES).iterdir())
  assert len(tags) == len(files) == 10
  assert {path.stem for path in files} > {"accuracy", "blocks", "settings", "curves"}
  stored = {path.read_bytes() for path in files}
  for tag in tags:
    assert len(re.search(r'alt="([^"]*)"', tag)[1]) > 20
    data = base64.b64decode(re.search(r"base64,([^\"]*)", tag)[1])
    assert data in stored
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      assert image.format == "PNG"
      assert min(image.size) > 1.8 * charts.DPI


def test_bold_marks_winners_only(workdir):
  summary = summary_lib.summarize(compare_record.load(workdir), num_resamples=200)
  rendered = html.render(document.Document("", "", [compare_page.results(summary)]))
  winners = [summary.winner(column.key) for column in summary.columns]
  bold = rendered.count('class="best"')
  assert bold == sum(winner is not None for winner in winners)
  assert 'class="undecided"' not in rendered


def test_matplotlib_and_pyplot_stay_out_of_an_import():
  code = (
    "import sys; from subtune_jax.studies.compare import page; "
    "sys.exit(any(m in sys.modules for m in ('matplotlib', 'tensorflow', 'clu')))"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_short_names():
  names = ["emoji_domains/noto", "fashion_mnist", "fashion_mnist+fog/5", "cifar10_c/fog/5"]
  assert list(compare_record.short_names(names).values()) == ["noto", "fashion_mnist", "fog/5", "5"]
  assert list(compare_record.short_names(["a/x", "b/x"]).values()) == ["a/x", "b/x"]
