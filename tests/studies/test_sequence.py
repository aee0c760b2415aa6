"""Five tasks in sequence: on one backbone nothing is forgotten, bit for bit."""

import io

import pytest

from subtune_jax.studies.sequence import page, run
from tests import config_files

SMALL = {
  "backbone.name": "resnet14", "backbone.weights": "random", "backbone.preprocessing": "half",
  "backbone.options": "width=4,stage_sizes=(1,1,1)", "data.image_size": 16, "data.num_train": 72,
  "methods": ("subtuning", "ft"), "on_one_backbone": ("subtuning",),
  "subtuning.blocks": ("block3/unit1",),
  "subtuning.epochs": 1, "ft.epochs": 2, "subtuning.learning_rates": (1e-2,),
  "ft.learning_rates": (1e-2,), "batch_size": 36,
}  # fmt: skip


def small(**changes):
  config = config_files.get_config("configs/multitask.py")
  config.update_from_flattened_dict(SMALL | changes)
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("sequence") / "run"
  stream = io.StringIO()
  return run.run(small(), workdir, stream=stream), workdir, stream.getvalue()


@pytest.mark.slow
def test_nothing_is_forgotten_on_one_backbone(finished):
  record, _, _ = finished
  shared, in_sequence = record["methods"]
  assert [len(row) for row in shared["matrix"]] == [1, 2, 3, 4, 5]
  assert shared["logits_moved"] == 0.0
  assert shared["forgetting"] == [0.0] * 5
  for at in range(5):
    assert len({row[at] for row in shared["matrix"][at:]}) == 1
  assert in_sequence["logits_moved"] > 1
  assert any(in_sequence["forgetting"][:-1])
  assert in_sequence["forgetting"][-1] == 0.0
  assert shared["num_bytes"] < 5 * in_sequence["num_bytes"]


@pytest.mark.slow
def test_the_page_says_what_was_forgotten(finished):
  _, workdir, out = finished
  assert "SubTuning: no logit of an earlier task moved" in out
  assert "Full fine-tuning" in out
  assert (workdir / "report.html").is_file()
  lost = page.mean_forgetting({"forgetting": [0.1, 0.3, 9.0]})  # the last task had no time
  assert lost == pytest.approx(0.2)


def test_names_are_short_where_that_tells_them_apart():
  names = ["emoji_domains/noto", "glyph_domains/sans"]
  assert page.short_names({"tasks": [{"name": name} for name in names]}) == ["noto", "sans"]
  names = ["a/sans", "b/sans"]
  assert page.short_names({"tasks": [{"name": name} for name in names]}) == names


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(finished, monkeypatch):
  record, workdir, _ = finished
  monkeypatch.setattr(run.loop, "fit", lambda *a, **k: pytest.fail("trained again"))
  again = run.run(small(), workdir, stream=io.StringIO())
  assert again["methods"] == record["methods"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tasks": ("emoji_domains/noto",)}, "give at least two data sets"),
    ({"methods": ("side_tuning",)}, "side_tuning changes the network"),
    ({"subtuning.beside_frozen": True}, "subtuning changes the network"),
    ({"ft.learning_rates": (1e-3, 1e-2)}, "a sequence takes one"),
    ({"on_one_backbone": ("subtunning",)}, "Did you mean 'subtuning'"),
    ({"backbone.keep_head": True}, "a head of its own"),
  ],
)
def test_what_makes_no_sense_is_refused(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    run.run(small(**change), tmp_path / "run", stream=io.StringIO())
  assert not (tmp_path / "run").exists()
