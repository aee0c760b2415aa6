"""Reports of searches and studies: every page and text from fake records, their numbers, errors."""

import base64
import copy
from html import unescape
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from scipy import stats

from subtune_jax.report import charts, heat_map, html, marks, style, terminal, words
from subtune_jax.statistics import intervals
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.corruption import figures as corruption_plots
from subtune_jax.studies.corruption import page as corruption_page
from subtune_jax.studies.corruption import record as corruption_record
from subtune_jax.studies.dataset_size import figures as size_plots
from subtune_jax.studies.dataset_size import page as size_page
from subtune_jax.studies.dataset_size import record as size_record
from subtune_jax.studies.search import figures, fork_figure, greedy_figure, sentences
from subtune_jax.studies.search import page as search_page
from subtune_jax.studies.search import record as search_records
from tests.report import fake_run, fake_search

HOSTILE = '<script>alert("1")</script> & $x_0$'
ESCAPED = "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; $x_0$"
PAGES = {
  "search": search_page,
  "dataset_size": size_page,
  "corruption": corruption_page,
}
READERS = {
  "search": search_records,
  "dataset_size": size_record,
  "corruption": corruption_record,
}


def bare_search():
  """Nothing but single units: no head, no certificate, no interval, nothing optional."""
  record = fake_search.search("resnet26", kinds=("profile",), num_folds=1)
  record["sets"] = [s | {"low": None, "high": None} for s in record["sets"] if len(s["units"]) == 1]
  record["chosen"] = record["sets"][4]["units"]
  record |= {"certificate": None, "searches": []}
  for key in ("split", "fold_seed", "fold_sizes", "seeds", "attribution"):
    del record["data"][key]
  return record


def bare_sizes():
  record = fake_search.dataset_size(sizes=(60,), with_map=False)
  record["sizes"][0]["against_ft"] = {}
  record["sizes"][0]["methods"] = record["sizes"][0]["methods"][:1]
  record["crossover"] = None
  return record


def bare_corruptions():
  record = fake_search.corruption(count=2, tested=False)
  for row in record["rows"]:
    row |= {"order": [], "profile": [], "head": None, "all": None, "certificate": None}
    row["chosen"] = []
  return record


def many_corruptions():
  record = fake_search.corruption(count=15)
  more = copy.deepcopy(record["rows"][:3])
  for row in more:
    row["severity"], row["all"] = 3, None
    own = row["certificate"]
    own["undecided"] = [{"units": own["chosen"], "probability": 0.97}]
  record["rows"] += more
  return record


RECORDS = {
  "search": lambda: fake_search.search("resnet26"),
  "search_vit": lambda: fake_search.search("vit_l16", kinds=("profile", "none", "all")),
  "search_raced": lambda: fake_search.search(raced_folds=2, kinds=("none", "windows")),
  "search_one_split": lambda: fake_search.search("resnet26", num_folds=1, kinds=("none",)),
  "search_bare": bare_search,
  "sizes": fake_search.dataset_size,
  "sizes_bare": bare_sizes,
  "corruptions": lambda: fake_search.corruption(count=3),
  "corruptions_many": many_corruptions,
  "corruptions_bare": bare_corruptions,
}
FIGURES = {
  "search": {"network", "profile", "windows", "pairs", "greedy", "fork", "cost"},
  "search_vit": {"network", "profile", "greedy", "fork", "cost"},
  "search_raced": {"network", "profile", "windows", "greedy", "fork", "cost"},
  "search_one_split": {"network", "profile", "greedy", "fork", "cost"},
  "search_bare": {"network", "profile", "fork", "cost"},
  "sizes": {"against_ft", "sizes", "map"},
  "sizes_bare": {"sizes"},
  "corruptions": {"gains", "order", "profiles", "test"},
  "corruptions_many": {"gains", "order", "test"},
  "corruptions_bare": set(),
}


def written(workdir: pathlib.Path, record: dict) -> tuple[dict, str]:
  """The record as it is read, and its page."""
  fake_search.write(workdir, record)
  path = html.write(workdir, PAGES[record["kind"]].document(workdir))
  assert path == workdir / html.PAGE
  return READERS[record["kind"]].load(workdir), path.read_text(encoding="utf-8")


def text_of(record: dict, width: int = terminal.WIDTH) -> str:
  """What a terminal shows of a record, whose figures are not drawn."""
  with pytest.MonkeyPatch.context() as patch:
    for page, none in ((search_page, {}), (size_page, []), (corruption_page, {})):
      patch.setattr(page, "figures", lambda record, none=none: copy.copy(none))
    return terminal.render(PAGES[record["kind"]].report(record, "nowhere"), width=width)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """Record, page and workdir by name, written when first asked for; read only."""
  found = {}

  def get(name: str) -> tuple[dict, str, pathlib.Path]:
    if name not in found:
      workdir = tmp_path_factory.mktemp(name)
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "png", lambda figure: b"no image")  # made, not turned into pixels
        found[name] = (*written(workdir, RECORDS[name]()), workdir)
    return found[name]

  return get


@pytest.fixture(scope="module")
def search():
  return fake_search.search("resnet26")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
  """Pages of records whose every name is hostile."""
  pages = []
  for kind, make in (
    ("s", lambda: fake_search.search("resnet26", kinds=("none",))),
    ("z", lambda: fake_search.dataset_size(sizes=(50, 100))),
    ("c", lambda: fake_search.corruption(count=1)),
  ):
    text = json.dumps(make())
    for name in ("block4/unit1", "block14", "gaussian noise", "SubTuning", "emoji_domains/noto",
                 "cifar10", "the better of the greedy searches"):  # fmt: skip
      text = text.replace(json.dumps(name)[1:-1] + '"', json.dumps(HOSTILE)[1:-1] + '"')
    record = json.loads(text)
    record |= {"title": HOSTILE, "name": HOSTILE, "command": HOSTILE, "config": {HOSTILE: HOSTILE}}
    record["data"]["attribution"] = HOSTILE
    pages.append(written(tmp_path_factory.mktemp(kind), record)[1])
  return "\n".join(pages)


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_gives_a_page_and_a_text(name, pages):
  record, page, workdir = pages(name)
  images = re.findall(r"<img [^>]*>", page)
  files = {path.stem for path in (workdir / html.FIGURES).glob("*.png")}
  assert files == FIGURES[name]
  assert len(images) == len(files)
  assert all(len(re.search(r'alt="([^"]*)"', image)[1]) > 20 for image in images)
  for text in (record["title"], record["devices"], record["backbone"]["sha256"][:16]):
    assert text in page
  for width in (terminal.WIDTH, 70):
    lines = text_of(record, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) > 3


def test_pages_need_no_network_and_run_nothing(hostile):
  sources = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]{0,30})""", hostile)
  assert sources
  assert all(source.startswith("data:image/png;base64,") for source in sources)
  text = hostile.replace(ESCAPED, "")
  assert not re.search(r"url\(|@import|<link|<iframe|<script|javascript:|https?:", text, re.I)


def test_figures_are_images(hostile, search):
  """The other figures are those of the hostile pages."""
  found = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]*)", hostile)]
  assert len(found) == 5 + 3 + 4
  for draw in (figures.windows, figures.pairs):
    found.append(charts.png(draw(search)))
  for data in found:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      assert image.format == "PNG"
      assert image.size > (350, 70)


def test_pages_escape_every_name(hostile):
  assert "<script" not in hostile.lower()
  assert hostile.count(ESCAPED) > 20


def test_search_page_shows_the_numbers_of_the_record(pages):
  record, page, _ = pages("search")
  text = " ".join(text_of(record).split())
  sets, names = search_records.by_units(record), search_records.unit_names(record)
  chosen, head = sets[tuple(record["chosen"])], sets[()]
  sentence = (
    f"{100 * chosen['mean']:.1f} % (95 % interval {100 * chosen['low']:.1f} to "
    f"{100 * chosen['high']:.1f}) on held-out images, {100 * (chosen['mean'] - head['mean']):+.1f}"
  )
  name = " + ".join(record["chosen"])
  for shown in (
    sentence, f"Train {name} and the head: {100 * chosen['mean']:.1f} %",
    f"with a probability of {100 * record['certificate']['probability_best']:.0f} %",
    f"{words.parameters(chosen['trained_params'])} of "
    f"{words.parameters(record['backbone']['num_params'])} parameters",
    f"{record['cost']['trainings']:,} trainings (0 spared by a race)",
    "210 TFLOP in all", "930 TFLOP, 4.4 times as much",
    f"{len(search_records.in_doubt(record['certificate']))} other sets cannot be told apart",
  ):  # fmt: skip
    assert shown in text, shown
    assert shown in unescape(page), shown
  assert "This choice is expected to be 0.42 points below the best of the sets tried" in text
  others = [sets[tuple(o["units"])] for o in search_records.in_doubt(record["certificate"])]
  least = min(others, key=lambda tried: tried["trained_params"])
  assert f"of them {search_records.set_name(least['units'], names)} trains the least" in text
  assert record["certificate"]["text"] not in unescape(page)  # said once, in one rounding
  other = search_records.in_doubt(record["certificate"])[0]
  assert f"{' + '.join(other['units'])}: {100 * other['probability']:.0f} %" in page
  assert f"{chosen['fork_macs'] / 1e6:.1f}<small>" in page
  best = max(record["sets"], key=lambda tried: tried["mean"])
  row = next(line for line in text_of(record).splitlines() if "95 %" not in line
             and f"{100 * best['mean']:.1f}" in line)  # fmt: skip
  assert words.parameters(best["trained_params"]) in row


def test_what_is_surely_better_than_the_chosen_set_is_said_first(search):
  """The head alone, where no set beats it; the sentence of the set does not say "train" then."""
  record = copy.deepcopy(search)
  sets = search_records.by_units(record)
  chosen = sets[tuple(record["chosen"])]
  better, _ = sentences.headline(record)[:2]
  assert better.startswith(f"Train {' + '.join(record['chosen'])}")
  sets[()]["by_fold"] = [value + 0.05 for value in chosen["by_fold"]]
  sets[()]["mean"] = chosen["mean"] + 0.05
  first, second = sentences.headline(record)[:2]
  assert first.startswith(
    f"Train the head alone (linear probing): {100 * chosen['mean'] + 5:.1f} %"
  )
  assert second.startswith("The search chose")


@pytest.mark.parametrize("timed", [False, True])
def test_the_best_at_each_cost(search, timed):
  record = copy.deepcopy(search)
  names = search_records.unit_names(record)
  whole = [tried for tried in record["sets"] if tried["complete"]]
  costs = [tried["fork_macs"] / 1e6 for tried in whole]
  if timed:
    times = {name: 9.0 - i / 4 for i, name in enumerate(names)} | {"head": 0.5}
    record["fork_ms"] = dict(sorted(times.items()))  # as a file of JSON has them
    record["config"]["search"] = {"fork_batch": 8, "max_fork_ms": 7.0}
    firsts = [names.index(tried["units"][0]) if tried["units"] else None for tried in whole]
    costs = [0.5 if i is None else 9 - i / 4 for i in firsts]
    ((_, said),) = fork_figure.facts(record)
    assert said.startswith(f"9 ms at {names[0]}, 0.5 ms for a head alone")
    assert said.endswith("8 images at a time; at most 7 ms")
  search_records.check(record)
  best = [
    tried
    for tried, cost in zip(whole, costs, strict=True)
    if not any(
      other["mean"] >= tried["mean"] and at <= cost and (other["mean"], at) != (tried["mean"], cost)
      for other, at in zip(whole, costs, strict=True)
    )
  ]
  found = fork_figure.frontier(record, whole)
  assert {tried["mean"] for tried in found} == {tried["mean"] for tried in best}
  assert [tried["mean"] for tried in found] == sorted(tried["mean"] for tried in found)
  (axes,) = fork_figure.draw(record).axes
  assert axes.get_xlabel().startswith("milliseconds" if timed else "millions")
  np.testing.assert_allclose(sorted(axes.lines[0].get_xdata()), sorted(costs))
  assert search_records.set_name(found[-1]["units"], names) in fork_figure.caption(record)


def test_a_decided_certificate_says_so(search):
  record = copy.deepcopy(search)
  certificate = record["certificate"]
  assert "The chosen set is not among" not in text_of(record)
  for undecided in ([], [{"units": record["chosen"], "probability": 0.97}]):
    certificate["undecided"] = undecided
    text = text_of(record)
    assert "Decided at 95 %: no other set that was tried is left in doubt." in text
    assert "cannot be told apart" not in text
  certificate["undecided"] = [{"units": ["stem"], "probability": 0.96}]
  text = " ".join(text_of(record).split())
  assert "1 other set cannot be told apart from the best at 95 %; of them stem trains" in text
  assert "The chosen set is not among those that hold the best at 95 %." in text
  record["certificate"] = None
  assert "No certificate" in text_of(record)


@pytest.mark.parametrize(
  ("base", "chosen", "said"),
  [
    (["a"], ["a", "b"], ["+ b"]),
    (["a", "b"], ["b"], ["\N{MINUS SIGN} a"]),
    (["a=1"], ["a=4"], ["a 1 \N{RIGHTWARDS ARROW} 4"]),
    (["a=1", "b=1"], ["a=1", "b=16"], ["b 1 \N{RIGHTWARDS ARROW} 16"]),
    (["a=1"], [], ["\N{MINUS SIGN} a=1"]),
    ([], ["a=1"], ["+ a=1"]),
  ],
)
def test_a_step_says_what_came_and_went_and_which_rank_changed(base, chosen, said):
  assert sentences.moves({"base": base, "chosen": chosen}) == said


def test_the_strip_of_a_search_for_ranks_has_the_ranks():
  record = fake_search.search("resnet26", kinds=("profile",))
  record |= {"certificate": None, "lora": {"where": ["a"], "rank_pattern": "a=4"}}
  for unit, rank in zip(record["units"], (4, 16), strict=False):
    unit["name"] += f"={rank}"
  record["chosen"] = [unit["name"] for unit in record["units"][:2]]
  (axes,) = figures.network(record).axes
  assert [text.get_text() for text in axes.texts if text.get_text() in ("4", "16")] == ["4", "16"]
  del record["lora"]
  (axes,) = figures.network(record).axes
  assert not [text for text in axes.texts if text.get_text() in ("4", "16")]


def test_ranking_holds_the_best_the_chosen_and_both_ends(search):
  ranked = search_page.ranking(search, most=4)
  means = [r.tried["mean"] for r in ranked]
  assert means == sorted(means, reverse=True)
  assert means[:4] == sorted((s["mean"] for s in search["sets"]), reverse=True)[:4]
  assert {r.role for r in ranked} >= {"chosen", "head alone", "all units"}
  for r in ranked:
    if r.role == "chosen":
      assert r.against_chosen is None
    else:
      chosen = search_records.by_units(search)[tuple(search["chosen"])]
      assert r.against_chosen.mean == pytest.approx(r.tried["mean"] - chosen["mean"])


def test_sets_dropped_by_a_race_are_not_ranked_and_marked():
  record = fake_search.search(raced_folds=2, kinds=("none",))
  dropped = [s for s in record["sets"] if not s["complete"]]
  assert dropped
  assert all(r.tried["complete"] for r in search_page.ranking(record))
  text = " ".join(text_of(record).split())
  assert f"{len(dropped)} sets were dropped by a race" in text
  singles = [s for s in dropped if len(s["units"]) == 1]
  assert text.count("dropped by the race") == len(singles)
  axes = figures.profile(record).axes[0]
  crosses = [line for line in axes.lines if line.get_marker() == "x"]
  assert len(crosses) == len(singles)


def test_profile_draws_the_means_and_intervals(search):
  sets = search_records.by_units(search)
  axes, below = figures.profile(search).axes
  points = {int(line.get_xdata()[0]): line for line in axes.lines if line.get_marker() == "^"}
  for place, unit in enumerate(search["units"]):
    tried = sets[unit["name"],]
    assert points[place].get_ydata()[0] == pytest.approx(100 * tried["mean"])
    filled = points[place].get_markerfacecolor() != "white"
    assert filled == (unit["name"] in search["chosen"])
    assert below.patches[place].get_height() == unit["params"]
  lines = {
    line.get_color(): line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2
  }
  assert lines[style.METHOD_COLORS["lp"]] == pytest.approx(100 * sets[()]["mean"])
  everything = sets[search_records.unit_names(search)]
  assert lines[style.METHOD_COLORS["ft"]] == pytest.approx(100 * everything["mean"])
  low = axes.get_ylim()[0]
  assert f"axis starts at {low:.0f} %" in axes.get_ylabel()
  assert low <= 100 * min(tried["low"] for tried in sets.values() if len(tried["units"]) < 2)


def test_pair_map_has_the_accuracies_of_the_record(search):
  names, sets = search_records.unit_names(search), search_records.by_units(search)
  axes = figures.pairs(search).axes[0]
  values = axes.images[0].get_array()
  for i, row in enumerate(names):
    assert values[i, i] == pytest.approx(100 * sets[row,]["mean"])
    for j, column in enumerate(names[:i]):
      assert values[i, j] == pytest.approx(100 * sets[column, row]["mean"])
      assert values.mask[j, i]
  ranked = search_records.ranked_pairs(search)
  frame = axes.patches[-1]
  place = round(frame.get_x() + 0.46), round(frame.get_y() + 0.46)
  assert place == tuple(names.index(name) for name in ranked[0]["units"])
  dots = sum(text.get_text() == heat_map.DOT for text in axes.texts)
  assert dots == sum(search_records.undecided(pair, ranked[0]) for pair in ranked[1:])


def test_pairs_of_one_split_are_neither_told_apart_nor_marked():
  record = fake_search.search("resnet26", num_folds=1, kinds=("pairs",))
  axes, beside = figures.pairs(record).axes[:2]
  assert not any(text.get_text() == heat_map.DOT for text in axes.texts)
  assert marks.QUIET not in {line.get_color() for line in beside.lines}


def test_greedy_path_is_drawn_with_its_last_step_hollow(search):
  path = search_records.searches(search, search_records.GREEDY)[0]
  axes = greedy_figure.greedy(search).axes[0]
  points = [line for line in axes.lines if line.get_marker() in ("^", "o")
            and line.get_markersize() < 10]  # fmt: skip
  points = sorted(points, key=lambda line: line.get_xdata()[0])
  assert [line.get_ydata()[0] for line in points[1:]] == pytest.approx(
    [100 * step["score"] for step in path["steps"]]
  )
  assert [line.get_markerfacecolor() == "white" for line in points[1:]] == [
    not step["taken"] for step in path["steps"]
  ]
  assert path["steps"][-1]["reason"] in axes.get_title(loc="left").replace("\n", " ")


def test_final_comparison_is_part_of_the_page(search, tmp_path, monkeypatch):
  monkeypatch.setattr(search_page, "figures", lambda record: {})
  record = copy.deepcopy(search)
  fake_search.write_final(tmp_path, record)
  (tmp_path / "final" / html.PAGE).touch()
  html.write(tmp_path, search_page.document(tmp_path))
  page = (tmp_path / html.PAGE).read_text(encoding="utf-8")
  run = compare_record.load(tmp_path / "final")
  assert set(run.methods) == set(fake_run.TITLES)
  for method in run.methods:
    assert run.titles[method] in unescape(page)
    for test in run.tests.values():
      assert f"{100 * test.correct(method).mean():.1f}" in page
  assert 'href="final/report.html"' in page
  assert (tmp_path / html.FIGURES / "final_accuracy.png").is_file()
  record["final"]["folder"] = "nowhere"
  with pytest.raises(FileNotFoundError, match="nowhere"):
    search_page.report(record, tmp_path)


def test_size_page_shows_the_numbers_of_the_record(pages):
  record, page, _ = pages("sizes")
  text = text_of(record)
  assert record["crossover"]["text"] in text
  assert record["crossover"]["text"] in page
  for size in record["sizes"]:
    for method in size["methods"]:
      low, high = 100 * method["low"], 100 * method["high"]
      assert f"{100 * method['accuracy']:.1f} [{low:.1f}, {high:.1f}]" in text
    value = fields.estimate(size["against_ft"]["subtuning"])
    assert words.difference(value) in text
    assert words.difference(value) in page
  assert "Units that SubTuning trains" in text
  assert "block12 + block13" in page
  values, near, heads = size_record.gains(record)
  assert values.shape == near.shape == (len(heads), len(record["map"]["units"]))
  row = record["map"]["rows"][3]
  head = next(head for head in heads if head["size"] == row["size"])
  assert values[0, 3] == pytest.approx(100 * (row["mean"] - head["mean"]))
  axes = size_plots.curves(record).axes[0]
  assert axes.get_xscale() == "log"
  assert list(axes.get_xticks()) == [size["size"] for size in record["sizes"]]


def test_difference_points_are_hollow_where_undecided():
  record = fake_search.dataset_size()
  axes = size_plots.differences(record).axes[0]
  points = [line for line in axes.lines if line.get_linestyle() == "None"]
  found = [line.get_markerfacecolor() != "white" for line in points if line.get_marker() == "^"]
  wanted = [
    fields.estimate(size["against_ft"]["subtuning"]).verdict != "undecided"
    for size in record["sizes"]
  ]
  assert found == wanted
  assert {True, False} <= set(wanted)


def test_sizes_and_corruptions_link_to_reports_that_are_there(tmp_path, monkeypatch):
  monkeypatch.setattr(size_page, "figures", lambda record: [])
  record = fake_search.dataset_size()
  (tmp_path / "sizes/100").mkdir(parents=True)
  (tmp_path / "sizes/100" / html.PAGE).touch()
  page = html.render(size_page.report(record, tmp_path))
  assert set(re.findall(r'href="([^"]*)"', page)) == {"sizes/100/report.html"}


def test_corruption_page_shows_the_numbers_of_the_record(pages):
  record, page, _ = pages("corruptions")
  text = text_of(record)
  for row in record["rows"]:
    line = next(line for line in text.splitlines() if line.startswith(row["title"]))
    assert f"{100 * row['head']['mean']:.1f}" in line
    assert f"{100 * row['all']['mean']:.1f}" in line
    assert search_records.chance_text(row["certificate"]["probability_best"]) in line
    order = [step["unit"] for step in row["order"] if step["taken"]]
    assert ", ".join(order) in page
  mean = np.mean([row["test"]["subtuning"]["accuracy"] for row in record["rows"]])
  assert f"SubTuning {100 * mean:.1f} %" in page
  assert "Decided: 0 of 3" in text
  values, _ = corruption_record.gains(record)
  row = record["rows"][2]
  assert values[2, 1] == pytest.approx(100 * (row["profile"][1]["mean"] - row["head"]["mean"]))
  assert values[2, -1] == pytest.approx(100 * (row["all"]["mean"] - row["head"]["mean"]))


def test_greedy_order_has_the_steps_in_the_cells():
  record = fake_search.corruption(count=4)
  axes = corruption_plots.greedy_order(record).axes[0]
  names = search_records.unit_names(record)
  found = {
    (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts
  }
  wanted = {
    (number, names.index(step["unit"])): str(place)
    for number, row in enumerate(record["rows"])
    for place, step in enumerate(row["order"], start=1)
  }
  assert found == wanted


def test_severities_are_named_where_there_are_several():
  record = many_corruptions()
  assert corruption_record.labels(record)[0] == "gaussian noise, 5"
  assert corruption_record.labels(record)[-1] == "impulse noise, 3"
  record["rows"][1]["severity"] = 0
  assert corruption_record.labels(record)[1] == "shot noise"
  assert corruption_record.labels(fake_search.corruption(count=1)) == ["gaussian noise"]


@pytest.mark.parametrize(
  ("units", "name"),
  [
    ((), "head alone"),
    (("b",), "b"),
    (("a", "c"), "a + c"),
    (tuple("abcdef"), "all units"),
    (tuple("abcde"), "all but f"),
    (tuple("abc"), "a + b + c"),
  ],
)
def test_set_name(units, name):
  assert search_records.set_name(units, tuple("abcdef")) == name


@pytest.mark.parametrize(
  ("probability", "text"),
  [(None, ""), (0.0, "0 %"), (0.004, "< 1 %"), (0.14, "14 %"), (0.996, "> 99 %"), (1.0, "100 %")],
)
def test_chance_text(probability, text):
  assert search_records.chance_text(probability) == text


def test_fold_difference_by_hand():
  mean, low, high = intervals.fold_difference([0.3, 0.5, 0.7], [0.2, 0.3, 0.4])
  half = stats.t.ppf(0.975, 2) * np.sqrt(0.01 * (1 / 3 + 1 / 2))  # variance of 0.1, 0.2, 0.3
  assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
  nan = float("nan")
  assert intervals.fold_difference([0.3, nan, 0.5], [0.1, 0.2, nan]) is None
  assert intervals.fold_difference([0.3], [0.1]) is None
  mean, low, high = intervals.fold_difference([0.3, 0.4, nan], [0.1, 0.1, 0.1])
  half = stats.t.ppf(0.975, 1) * np.sqrt(0.005 * (1 / 2 + 1 / 2))
  assert (mean, low, high) == pytest.approx((0.25, 0.25 - half, 0.25 + half))


def _path(record):
  return search_records.searches(record, search_records.GREEDY)[0]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda r: r.update(kind="serch"), "kind is 'serch', wanted 'search'"),
    (lambda r: r.pop("cost"), "lacks cost"),
    (lambda r: r.update(chosen_by=3), "chosen_by is 3, it has to be `str`"),
    (lambda r: r["data"].update(num_folds=4), r"sets\[0\]: by_fold has 5 values, data.num_folds"),
    (lambda r: r["data"].pop("train"), "data lacks train"),
    (lambda r: r["units"][1].update(blocks=["blok"]), "'blok'; the record knows 'stem'"),
    (lambda r: r["units"][1].update(name="stem"), "each named once"),
    (lambda r: r["sets"][2].update(mean=53.1), r"sets\[2\].mean is 53.1, .*`float` <= 1.0"),
    (lambda r: r["sets"][2].update(mean=float("nan")), r"sets\[2\].mean is nan, .*`float` >= 0.0"),
    (lambda r: r["sets"][2].update(mean=0.2), "mean is 0.200000, that of its folds"),
    (lambda r: r["sets"][2].update(low=0.9), r"interval is \[0.9, .*low has to be at most high"),
    (lambda r: r["sets"][2].update(low=None), "interval is"),
    (
      lambda r: r["sets"][2]["by_fold"].__setitem__(0, "a"),
      r"by_fold\[0\] is 'a'.*`float \| null`",
    ),
    (lambda r: r["sets"][2].update(by_fold=[None] * 5), "null in every fold"),
    (lambda r: r["sets"][2].update(complete=False), "complete is False"),
    (
      lambda r: r["sets"][2].update(units=["nobody"]),
      "a unit is 'nobody'; the record knows 'stem'",
    ),
    (lambda r: r["sets"][-1]["units"].reverse(), "in the order of the network"),
    (lambda r: r.update(sets=r["sets"] * 2), "twice"),
    (lambda r: r.update(sets=[]), "at least one set is needed"),
    (lambda r: r["searches"].append({"kind": "tripels"}), "'tripels'; the record knows 'profile'"),
    (lambda r: r["searches"].append({"kind": "windows", "width": 99}), "width is 99; allowed: 1"),
    (lambda r: _path(r).update(start="some"), "start is 'some'; the record knows 'none', 'all'"),
    (lambda r: _path(r)["rule"].update(kind="luck"), "rule.kind is 'luck'"),
    (lambda r: _path(r)["steps"][0].pop("reason"), r"steps\[0\] lacks reason"),
    (
      lambda r: _path(r)["steps"][0]["tried"][0].update(mean=-1),
      r"tried\[0\].mean is -1, .*`float` >= 0.0",
    ),
    (lambda r: r["certificate"].update(probability_best=2), "probability_best is 2"),
    (lambda r: r["certificate"]["undecided"][0].pop("probability"), "lacks probability"),
    (lambda r: r.update(final={"folder": "../x"}), "folder is '../x'; .*inside of the workdir"),
    (lambda r: r.update(final={"folder": "javascript:alert(1)"}), "inside of the workdir"),
    (lambda r: r["backbone"].pop("sha256"), "backbone lacks sha256"),
  ],
)
def test_a_bad_search_gives_one_clear_error(search, tmp_path, change, message):
  record = copy.deepcopy(search)
  change(record)
  fake_search.write(tmp_path, record)
  with pytest.raises(ValueError, match=message) as caught:
    search_records.load(tmp_path)
  assert str(tmp_path / "results.json") in str(caught.value)


@pytest.mark.parametrize(
  ("make", "change", "message"),
  [
    (bare_sizes, lambda r: r.update(sizes=[]), "is \\[\\], .*`array` of length >= 1"),
    (fake_search.dataset_size, lambda r: r["sizes"].reverse(), "have to be positive and to rise"),
    (
      bare_sizes,
      lambda r: r["sizes"][0]["methods"][0].update(by_seed=[7]),
      r"by_seed\[0\] is 7, .*`float` <= 1.0",
    ),
    (bare_sizes, lambda r: r["sizes"][0].update(folder="/etc"), "inside of the workdir"),
    (
      bare_sizes,
      lambda r: r["sizes"][0]["against_ft"].update(lp={"mean": 0.1}),
      "lp lacks high, low",
    ),
    (fake_search.dataset_size, lambda r: r["map"]["rows"][0].update(unit="x"), "unit is 'x'"),
    (fake_search.dataset_size, lambda r: r["map"]["head"][0].update(size=1), "size is 1; the rec"),
    (bare_corruptions, lambda r: r.update(rows=[]), "is \\[\\], .*`array` of length >= 1"),
    (bare_corruptions, lambda r: r["rows"][0].update(chosen=["x"]), "a unit is 'x'"),
    (
      bare_corruptions,
      lambda r: r["rows"][0].update(order=[{"unit": "stem"}]),
      "lacks score, taken",
    ),
    (
      bare_corruptions,
      lambda r: r["rows"][0].update(head=0.3),
      "head is 0.3, it has to be `object",
    ),
    (bare_corruptions, lambda r: r["rows"][0].update(test={"lp": {}}), "test.lp lacks accuracy"),
    (
      lambda: fake_search.corruption(count=1),
      lambda r: r["rows"][0]["test"]["lp"].pop("title"),
      "test.lp lacks title",
    ),
  ],
)
def test_a_bad_study_gives_one_clear_error(tmp_path, make, change, message):
  record = make()
  change(record)
  fake_search.write(tmp_path, record)
  with pytest.raises(ValueError, match=message):
    READERS[record["kind"]].load(tmp_path)


def test_a_record_of_another_kind_is_refused(tmp_path):
  fake_search.write(tmp_path, bare_sizes())
  with pytest.raises(ValueError, match="kind is 'dataset_size', wanted 'search'"):
    search_records.load(tmp_path)
  (tmp_path / "results.json").write_text("[1]", encoding="utf-8")
  with pytest.raises(ValueError, match=r"is \[1\], it has to be `object`"):
    search_records.load(tmp_path)


def test_reports_import_nothing_that_trains():
  code = (
    "import sys; from subtune_jax.studies.search import page; "
    "bad = ('matplotlib', 'jax', 'subtune_jax.search', 'subtune_jax.training', "
    "'subtune_jax.studies.search.run', 'subtune_jax.studies.compare.run'); "
    "from subtune_jax.studies.corruption import page as b; "
    "from subtune_jax.studies.dataset_size import page as c; "
    "sys.exit(', '.join(m for m in bad if m in sys.modules) or None)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
