"""Rounds of asking for labels: what is shared, what is repeated, what the figures say."""

import io

import numpy as np
import pytest

from subtune_jax import files
from subtune_jax.studies.active_learning import page, record, run, saved
from tests import config_files

SMALL = {
  "backbone.name": "resnet14", "backbone.weights": "random", "backbone.preprocessing": "half",
  "backbone.options": "width=4,stage_sizes=(1,1)", "data.image_size": 8, "batch_size": 16,
  "methods": ("subtuning",), "rules": ("random", "margin", "badge", "coreset"),
  "totals": (40, 56), "seeds": (0, 1), "subtuning.blocks": ("block2/unit1",),
  "subtuning.epochs": 1, "tensorboard": False,
}  # fmt: skip


def small(**changes):
  config = config_files.get_config("configs/active_learning.py")
  config.update_from_flattened_dict(SMALL | changes)
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("active") / "run"
  stream = io.StringIO()
  return run.run(small(), workdir, stream=stream), workdir, stream.getvalue()


def rounds(workdir, *parts):
  return files.read_npz(workdir.joinpath(run.ROUNDS, *parts), "a test")


def test_rules_share_the_first_labels_and_ask_for_others(finished):
  _, workdir, _ = finished
  first = {rule: rounds(workdir, "subtuning", rule, "seed0-40.npz") for rule in SMALL["rules"]}
  last = {rule: rounds(workdir, "subtuning", rule, "seed0-56.npz") for rule in SMALL["rules"]}
  own = first["random"]["labelled"]
  assert len(set(own.tolist())) == 40
  for rule in SMALL["rules"]:
    assert np.array_equal(first[rule]["labelled"], own)
    assert np.array_equal(first[rule]["right"], first["random"]["right"])
    asked = set(first[rule]["asked"].tolist())
    assert len(asked) == 16
    assert not asked & set(own.tolist())
    assert set(last[rule]["labelled"].tolist()) == asked | set(own.tolist())
    assert len(last[rule]["asked"]) == 0  # what is never trained on is not asked for
  assert len({tuple(first[rule]["asked"]) for rule in SMALL["rules"]}) == 4
  other = rounds(workdir, "subtuning", "random", "seed1-40.npz")["labelled"]
  assert not np.array_equal(other, own)


def test_the_record_has_the_curves_and_the_page_what_they_say(finished):
  made, workdir, out = finished
  assert made == record.load(workdir)
  assert (made["kind"], made["record_version"]) == ("active_learning", 1)
  for method in made["methods"]:
    assert [row["rule"] for row in method["rules"]] == list(SMALL["rules"])
    for row in method["rules"]:
      for point in row["points"]:
        assert point["mean"] == pytest.approx(np.mean(point["by_seed"]))
        assert point["low"] <= point["mean"] <= point["high"]
        right = rounds(workdir, method["name"], row["rule"], f"seed0-{point['total']}.npz")["right"]
        assert point["by_seed"][0] == pytest.approx(right.mean())
  assert "Labels saved, %" in out
  assert "Nothing was chosen on other labels" in out
  assert page.write_report(workdir).read_text().count("<img") == 2


def test_a_finished_round_is_not_repeated_and_a_lost_one_is(finished, monkeypatch):
  made, workdir, _ = finished
  trained = []
  train = run.choice.train_method
  monkeypatch.setattr(
    run.choice, "train_method", lambda *given: trained.append(given[1]) or train(*given)
  )
  assert run.run(small(), workdir, stream=io.StringIO())["methods"] == made["methods"]
  assert trained == []
  (workdir / run.ROUNDS / "subtuning" / "margin" / "seed1-56.npz").unlink()
  assert run.run(small(), workdir, stream=io.StringIO())["methods"] == made["methods"]
  assert trained == ["subtuning"]


def test_labels_needed_are_read_off_the_curve_in_the_logarithm():
  totals, curve = (100, 200, 400, 800), np.array([0.5, 0.6, 0.8, 0.9])
  for target in np.linspace(0.5, 0.9, 23):
    wanted = np.exp(np.interp(target, curve, np.log(totals)))  # rising, so it has an inverse
    assert saved.labels_needed(totals, curve, target) == pytest.approx(wanted)
  assert saved.labels_needed(totals, curve, 0.3) == 100
  assert np.isnan(saved.labels_needed(totals, curve, 0.95))
  bumpy = np.array([0.5, 0.7, 0.6, 0.9])
  assert saved.labels_needed(totals, bumpy, 0.65) < 200  # where it is first reached


def test_a_rule_that_needs_half_the_labels_saves_half_and_the_other_way_none():
  totals = (100, 200, 400, 800)
  slow, fast = np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.6, 0.7, 0.8, 0.9])
  assert saved.share_saved(totals, fast, slow) == pytest.approx(0.5)
  assert saved.share_saved(totals, slow, fast) == pytest.approx(-1.0)
  assert saved.share_saved(totals, slow, slow) == 0.0


def test_intervals_of_the_share_cover_it_and_know_what_is_undecided():
  rng = np.random.default_rng(0)

  def draw(p):
    return rng.random((3, len(p), 400)) < np.array(p)[None, :, None]

  right = {
    ("lp", "random"): draw([0.5, 0.6, 0.7, 0.8]), ("lp", "margin"): draw([0.5, 0.7, 0.8, 0.9]),
    ("lp", "entropy"): draw([0.5, 0.6, 0.7, 0.8]),
  }  # fmt: skip
  rows = saved.summarize(right, np.arange(400), (100, 200, 400, 800))["lp"]
  own = {row["rule"]: row["saved"] for row in rows}
  assert own["random"] is None
  assert 0 < own["margin"]["low"] < 0.5 < own["margin"]["high"]
  assert own["entropy"]["low"] < 0 < own["entropy"]["high"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"rules": ("random", "margins")}, "Did you mean 'margin'"),
    ({"rules": ("margin",)}, "give 'random' and others"),
    ({"totals": (100,)}, "at least two numbers of labels"),
    ({"totals": (100, 937)}, "totals ends with 937, and the pool, .*, has 936 images"),
    ({"data.ood": ("glyph_domains/sans",)}, "tests on the test split of data.train"),
    ({"save_model": True}, "keeps no network"),
  ],
)
def test_configs_that_make_no_sense_are_refused_before_anything_is_written(
  change, message, tmp_path
):
  with pytest.raises(ValueError, match=message):
    run.run(small(**change), tmp_path / "run", stream=io.StringIO())
  assert not (tmp_path / "run").exists()
