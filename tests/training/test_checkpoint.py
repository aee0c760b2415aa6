"""Checkpoints on disk: whole, checked, foreign ones refused; exports belong to a backbone."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.training import checkpoint, export, ledger, loop, resume
from tests import marks, tiny

ARRAYS = {
  "a/kernel": np.arange(200_000, dtype=np.float32),
  "b": np.int32(3),
  "c": jnp.ones((2, 2), jnp.bfloat16),
}


def payload(path: pathlib.Path) -> pathlib.Path:
  """The largest file of a checkpoint."""
  return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_arrays_and_note_come_back(tmp_path):
  checkpoint.save(tmp_path / "x", ARRAYS, {"epoch": 3})
  arrays, note = checkpoint.load(tmp_path / "x")
  assert note["epoch"] == 3
  assert set(arrays) == set(ARRAYS)
  for name, value in ARRAYS.items():
    assert arrays[name].dtype == value.dtype
    np.testing.assert_array_equal(arrays[name], value)


def test_only_the_newest_are_kept(tmp_path):
  kept = checkpoint.Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 10):
    kept.save(step, ARRAYS, {"step": step})
  assert kept.steps() == [2, 10]
  assert kept.restore()[1]["step"] == 10


def damage(path: pathlib.Path, how: str) -> None:
  file = payload(path)
  data = bytearray(file.read_bytes())
  if how == "truncated":
    file.write_bytes(data[: len(data) // 2])
  elif how == "flipped":
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
  elif how == "missing":
    file.unlink()
  elif how == "empty folder":
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "empty folder"])
def test_a_damaged_checkpoint_is_named_and_an_older_one_only_used_when_asked(tmp_path, how):
  kept = checkpoint.Checkpoints(tmp_path)
  kept.save(1, ARRAYS, {"step": 1})
  kept.save(2, ARRAYS, {"step": 2})
  damage(tmp_path / "2", how)
  with pytest.raises(
    checkpoint.CheckpointError, match=r"/2 .*resume='last_good' to go on from step 1"
  ):
    kept.restore()
  assert kept.restore(last_good=True)[1]["step"] == 1


def test_a_foreign_checkpoint_is_refused(tmp_path):
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "1", {"w": np.ones(3)})
  with pytest.raises(checkpoint.CheckpointError, match="/1"):
    checkpoint.load(tmp_path / "1")


def test_no_checkpoint_is_none(tmp_path):
  assert checkpoint.Checkpoints(tmp_path / "nothing").restore() is None


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
  kept = checkpoint.Checkpoints(tmp_path)
  resume.Saver(kept, "mine", every_seconds=0).save(1, {"t": {"w": np.ones(2)}}, {"stage": 0})
  with pytest.raises(checkpoint.CheckpointError, match="another training \\(mine, not yours\\)"):
    resume.Saver(kept, "yours").restore()


class Stop(Exception):
  pass


METHODS = {
  "ft": methods.full_fine_tuning(1e-2, epochs=4, weight_decay=0.01, warmup=0.2),
  "sub_sgd": methods.sub_tuning(("block2",), 1e-2, epochs=4, optimizer="sgd"),
  "lp_ft": methods.lp_ft(1e-3, l2=(1.0, 0.1), epochs=4),
  "gradual": methods.gradual_unfreezing([["block1"], ["block2"]], 1e-2, epochs=2),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop_after", marks.first(1, [3, 1]))
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, name, stop_after):
  model, variables = tiny.make()
  engine = tiny.engine(model)
  train, validation = tiny.examples(24), tiny.examples(9, 1)

  def run(saver, on_epoch=None, on_resume=None):
    return loop.fit(
      engine, variables, METHODS[name], train, validation, saver=saver, on_epoch=on_epoch,
      on_resume=on_resume,
    )  # fmt: skip

  whole = run(None)
  saver = resume.Saver(checkpoint.Checkpoints(tmp_path), "k", every_seconds=0)
  rows = []

  def stop(row, logits):
    assert logits.shape == (9, 3)
    rows.append(row)
    if len(rows) > stop_after:
      raise Stop

  with pytest.raises(Stop):
    run(saver, stop)
  written = saver.checkpoints.steps()  # a probe writes none, nor does the epoch that was stopped
  said = []
  resumed = run(saver, on_resume=said.append)
  assert len(said) == bool(written)
  assert all("resumed stage" in text for text in said)
  assert resumed.history == whole.history
  assert jax.tree.structure(resumed.touched) == jax.tree.structure(whole.touched)
  for a, b in zip(
    jax.tree.leaves(resumed.variables), jax.tree.leaves(whole.variables), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def exported(tmp_path, blocks=("block1",)):
  model, variables = tiny.make()
  method = methods.sub_tuning(blocks, 1e-2, epochs=1)
  result = loop.fit(tiny.engine(model), variables, method, tiny.examples(), tiny.examples(9, 1))
  export.save_task(
    tmp_path / "task", result.variables, result.touched, variables, {"backbone": "tiny"}
  )
  return model, variables, result


def test_an_export_holds_the_tuned_blocks_and_the_head_only(tmp_path):
  _, variables, result = exported(tmp_path)
  arrays, note = checkpoint.load(tmp_path / "task")
  assert {name.split("/")[2] for name in arrays} == {"block1", "head"}
  loaded, _ = export.load_task(tmp_path / "task", variables)
  assert note["backbone"] == "tiny"
  for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(result.variables), strict=True):
    np.testing.assert_array_equal(a, b)


def test_an_export_refuses_another_backbone(tmp_path):
  exported(tmp_path)
  _, other = tiny.make(seed=5)
  with pytest.raises(checkpoint.CheckpointError, match="another backbone \\(tiny, digest"):
    export.load_task(tmp_path / "task", other)


def test_an_export_goes_onto_a_backbone_with_another_head(tmp_path):
  _, variables, _ = exported(tmp_path)
  _, wider = tiny.make(num_classes=7)
  wider = {**variables, "params": {**variables["params"], "head": wider["params"]["head"]}}
  loaded, _ = export.load_task(tmp_path / "task", wider)
  assert loaded["params"]["head"]["kernel"].shape[1] == 3


def test_a_training_checkpoint_is_no_export(tmp_path):
  checkpoint.save(tmp_path / "x", ARRAYS, {})
  with pytest.raises(checkpoint.CheckpointError, match="no exported task"):
    export.load_task(tmp_path / "x", tiny.make()[1])


def test_ledger_drops_a_line_cut_off_by_a_kill_and_goes_on(tmp_path):
  book = ledger.Ledger(tmp_path / "ledger.jsonl")
  assert book.rows() == {}
  book.append({"key": "a", "value": 0.1})
  with open(book.path, "a") as f:
    f.write('{"key": "b", "val')
  assert set(book.rows()) == {"a"}
  book.append({"key": "c", "value": 0.3})
  assert book.rows() == {"a": {"key": "a", "value": 0.1}, "c": {"key": "c", "value": 0.3}}


def test_ledger_names_a_damaged_line(tmp_path):
  path = tmp_path / "ledger.jsonl"
  path.write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
  with pytest.raises(ValueError, match="line 2 is damaged"):
    ledger.Ledger(path).rows()


def test_keys_depend_on_values_not_on_order():
  assert ledger.key_of({"a": 1, "b": 2}) == ledger.key_of({"b": 2, "a": 1})
  assert ledger.key_of({"a": 1}) != ledger.key_of({"a": 1.5})
