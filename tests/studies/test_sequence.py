"""Five tasks in sequence: on one backbone nothing is forgotten, bit for bit."""

import io

import pytest

from subtune_jax import methods
from subtune_jax.studies.sequence import figures, page, run
from subtune_jax.studies.sequence import record as sequence_record
from subtune_jax.training import export
from tests import config_files

SMALL = {
  "backbone.name": "resnet14", "backbone.weights": "random", "backbone.preprocessing": "half",
  "backbone.options": "width=4,stage_sizes=(1,1,1)", "data.image_size": 16, "data.num_train": 72,
  "methods": ("subtuning", "ft", "lora"), "on_one_backbone": ("subtuning",),
  "lora.epochs": 2, "lora.learning_rates": (1e-1,), "forward_transfer": False,
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
  record, workdir, _ = finished
  assert record == sequence_record.load(workdir)
  assert (record["kind"], record["record_version"]) == ("sequence", 1)
  shared, in_sequence, lora = record["methods"]
  assert [len(row) for row in shared["matrix"]] == [1, 2, 3, 4, 5]
  assert shared["logits_moved"] == 0.0
  assert shared["forgetting"] == [0.0] * 5
  for at in range(5):
    assert len({row[at] for row in shared["matrix"][at:]}) == 1
  assert in_sequence["logits_moved"] > 1
  assert any(in_sequence["forgetting"][:-1])
  assert in_sequence["forgetting"][-1] == 0.0
  assert shared["num_bytes"] < 5 * in_sequence["num_bytes"]
  assert lora["logits_moved"] > 1e-3
  assert any(lora["forgetting"][:-1])
  assert in_sequence["num_bytes"] < lora["num_bytes"] < 2 * in_sequence["num_bytes"]


@pytest.mark.slow
def test_adapters_in_sequence_leave_the_backbone_alone(finished):
  _, workdir, _ = finished
  first, second, last = (
    export.read_task(workdir / "tasks" / "lora" / task)[0]
    for task in ("emoji_domains-noto", "glyph_domains-serif", "glyph_domains-display")
  )
  moved = {name for name in first if "/head/" not in name and (first[name] != last[name]).any()}
  assert moved
  assert all("lora" in name for name in moved)
  assert any((second[name] != last[name]).any() for name in moved)


@pytest.mark.slow
def test_the_transfer_is_against_the_task_alone(tmp_path):
  """A task alone is what a sequence that begins with it learns first."""
  tasks = ("emoji_domains/noto", "glyph_domains/sans")
  own = {"methods": ("ft", "lora"), "on_one_backbone": ("lora",)}
  there, back = (
    run.run(small(**own, forward_transfer=forward, tasks=order), tmp_path / order[0][:5],
            stream=io.StringIO())["methods"]
    for order, forward in ((tasks, True), (tasks[::-1], False))
  )  # fmt: skip
  full, lora = there
  assert full["alone"] == [full["matrix"][0][0], back[0]["matrix"][0][0]]
  assert full["forward_transfer"] == [0.0, full["matrix"][1][1] - full["alone"][1]]
  assert lora["forward_transfer"] == [0.0, 0.0]
  assert lora["logits_moved"] == 0.0
  assert lora["alone"][1] == back[1]["matrix"][0][0]
  assert back[0]["forward_transfer"] == []


@pytest.mark.slow
def test_the_page_says_what_was_forgotten(finished):
  _, workdir, out = finished
  assert "SubTuning: no logit of an earlier task moved" in out
  assert "Full fine-tuning" in out
  assert (workdir / "report.html").is_file()
  lost = page.mean_forgetting({"forgetting": [0.1, 0.3, 9.0]})  # the last task had no time
  assert lost == pytest.approx(0.2)


def test_transfer_is_shown_where_it_was_measured():
  final = [{"accuracy": 0.5, "low": 0.4, "high": 0.6}] * 2
  method = {"title": "A", "forgetting": [0.1, 0.0], "final": final, "num_bytes": 5}
  old = {"tasks": [{"name": "a"}, {"name": "b"}], "methods": [method]}
  new = {**old, "methods": [method | {"forward_transfer": [0.0, 0.031]}]}
  for record, header, cells in (
    (old, ["Forgetting"], ["10.0"]),
    (new, ["Forgetting", "Forward transfer"], ["10.0", "+3.1"]),
  ):
    table = page._final(record).parts[0]
    assert table.header[1:] == [*header, "a", "b", "Weights"]
    assert table.rows[0][1 : 1 + len(cells)] == cells


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
    ({"trace_steps": -1}, "trace_steps is -1; give 0"),
    ({"on_one_backbone": ("subtunning",)}, "Did you mean 'subtuning'"),
    ({"backbone.keep_head": True}, "a head of its own"),
  ],
)
def test_what_makes_no_sense_is_refused(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    run.run(small(**change), tmp_path / "run", stream=io.StringIO())
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [("lp", "ft"), ("lp", "subtuning", "ft", "l2_sp", "lora")])
def test_the_legend_fits_the_figure(names):
  rows = [{"name": n, "title": methods.DECLARED[n].title, "matrix": [[0.5], [0.5, 0.6]]}
          for n in names]  # fmt: skip
  figure = figures.over_time({"tasks": [{"name": "a"}, {"name": "b"}], "methods": rows})
  figure.draw_without_rendering()
  (legend,) = figure.legends
  assert legend.get_window_extent().x1 <= figure.bbox.x1
