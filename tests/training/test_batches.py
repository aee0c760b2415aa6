"""Streaming a training set changes no result; it only changes where the batches come from."""

import jax
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.data import lazy
from subtune_jax.training import batches, checkpoint, loop, resume
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.training import step as step_lib
from tests import tiny

METHOD = methods.full_fine_tuning(1e-2, epochs=2)
SHIFT = step_lib.Augmentation("shift", 2, True, 1 << 20)


def lazy_examples(n: int = 24, broken_at: int | None = None) -> loop.Examples:
  """`tiny.examples`, read one by one."""
  whole = tiny.examples(n)

  def read(row):
    if row == broken_at:
      raise ValueError(f"row {row} is broken")
    return whole.images[row]

  return loop.Examples(lazy.LazyImages(range(n), read, 16, lambda row: row), whole.labels)


def fit(train, *, method=METHOD, saver=None, **fields):
  model, variables = tiny.make()
  engine = tiny.engine(model, **fields)
  return loop.fit(engine, variables, method, train, tiny.examples(9, 1), seed=3, saver=saver)


def assert_same(a: loop.FitResult, b: loop.FitResult) -> None:
  jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)


@pytest.mark.parametrize("augmentation", [None, SHIFT])
def test_streamed_equals_resident(augmentation):
  resident = fit(tiny.examples(), augmentation=augmentation)
  small = fit(tiny.examples(), augmentation=augmentation, resident_bytes=100)
  lazily = fit(lazy_examples(), augmentation=augmentation)
  assert "data_wait" not in resident.history[0]
  for result in (small, lazily):
    assert_same(result, resident)
    assert all(0 <= row["data_wait"] <= 1 for row in result.history)


def test_lazy_images_go_through_the_prefix_cache_and_the_probe():
  method = (
    *methods.linear_probing(l2=(1.0, 0.1)),
    *methods.sub_tuning(("block2",), 1e-2, epochs=2),
  )
  assert_same(fit(lazy_examples(), method=method), fit(tiny.examples(), method=method))


def test_a_prefix_whose_output_is_too_large_is_run_in_every_step():
  method = methods.sub_tuning(("block2",), 1e-2, epochs=1)
  cached = fit(tiny.examples(), method=method)
  uncached = fit(tiny.examples(), method=method, resident_bytes=1000)
  assert "data_wait" in uncached.history[0]  # the images themselves stream
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cached.variables, uncached.variables
  )


def test_four_devices_stream_the_batches_of_one():
  one = fit(lazy_examples())
  four = fit(lazy_examples(), mesh=mesh_lib.make_mesh(jax.devices()[:4]))
  for a, b in zip(one.history, four.history, strict=True):
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)


def test_each_device_reads_its_own_rows():
  read = []
  images = lazy.LazyImages(
    range(8), lambda row: read.append(row) or np.zeros((4, 4, 3), np.uint8), 4, lambda row: row
  )
  source = batches.choose(images, np.arange(8), 1 << 30)
  assert source.streamed
  batch = batches.one(source, np.arange(8)[::-1], mesh_lib.make_mesh(jax.devices()[:4]))
  assert sorted(read) == list(range(8))
  np.testing.assert_array_equal(batch["labels"], np.arange(8)[::-1])
  np.testing.assert_array_equal(batch["ids"], np.arange(8)[::-1])


def test_a_resumed_stream_ends_with_the_same_bits(tmp_path):
  method = methods.full_fine_tuning(1e-2, epochs=4)
  whole = fit(lazy_examples(), method=method)

  class Killed(Exception):
    pass

  class Dying(resume.Saver):
    def save(self, *arguments):
      super().save(*arguments)
      if arguments[0] == 2:
        raise Killed

  with pytest.raises(Killed):
    fit(lazy_examples(), method=method,
        saver=Dying(checkpoint.Checkpoints(tmp_path), "key", every_seconds=0))  # fmt: skip
  saver = resume.Saver(checkpoint.Checkpoints(tmp_path), "key", every_seconds=0)
  assert_same(fit(lazy_examples(), method=method, saver=saver), whole)


def test_an_image_that_breaks_while_training_ends_the_training():
  with pytest.raises(ValueError, match="row 5 is broken"):
    fit(lazy_examples(broken_at=5))


MIXED = step_lib.Augmentation("shift", 2, color=(0.2, 0.2, 0.2, 0.1), mixup=0.4)


@pytest.mark.slow
def test_colour_and_mixup_are_the_same_resident_and_streamed():
  resident, streamed = (fit(x, augmentation=MIXED) for x in (tiny.examples(), lazy_examples()))
  assert_same(resident, streamed)
  plain = fit(tiny.examples(), augmentation=step_lib.Augmentation("shift", 2))
  assert resident.history[0]["train_loss"] != plain.history[0]["train_loss"]


@pytest.mark.parametrize("fields", [{"mixup": -1}, {"color": (0.1,)}, {"kind": "crop"}])
def test_augmentations_that_do_not_exist_are_errors(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    step_lib.Augmentation(**fields)


# ------------------------------------------------------------------ without a validation set


def test_a_training_needs_no_validation_set():
  model, variables = tiny.make()
  method = methods.lp_ft(1e-3, l2=(0.1,), epochs=2)
  train, rest = tiny.examples(), tiny.examples(9, 1)
  seen = []
  runs = [
    loop.fit(
      tiny.engine(model), variables, method, train, validation, seed=3,
      on_epoch=lambda row, logits: seen.append(logits),
    )
    for validation in (rest, None)
  ]  # fmt: skip
  assert_same(*runs)
  assert [logits is None for logits in seen] == [False] * 3 + [True] * 3
  assert runs[1].history[-1]["validation_accuracy"] is None
  with pytest.raises(ValueError, match="2 strengths and no validation set"):
    loop.fit(tiny.engine(model), variables, methods.linear_probing(l2=(1.0, 0.1)), train, None)
