"""What a stage will take: the arithmetic by hand, and that nothing is compiled twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.training import loop, stage_cost, timing
from subtune_jax.training import prefix as prefix_lib
from subtune_jax.training import step as step_lib
from tests import tiny

METHOD = methods.linear_probing(l2=(0.1, 1.0)) + methods.full_fine_tuning(1e-3, epochs=3)
LATE = methods.sub_tuning(("block2",), 1e-3, epochs=5)


class Second:
  """A watch whose every lap is a second."""

  def lap(self):
    return 1.0, 0.0


def leaves(variables):
  return [np.asarray(x) for x in jax.tree.leaves(variables["params"])]


def meter(**fields):
  model, variables = tiny.make()
  engine = tiny.engine(model, **fields)
  return engine, variables, tiny.examples(30), tiny.examples(12, seed=1)


def test_the_arithmetic_by_hand(monkeypatch):
  monkeypatch.setattr(timing, "Watch", Second)
  own = stage_cost.Meter(*meter())
  probe, tuning = own.stages(METHOD)
  # 30 + 12 rows are 6 batches of 8, and the fit.
  assert (probe.prefix, probe.epoch, probe.epochs, probe.end) == (0.0, 6 + 1, 1, 0.0)
  # 3 steps of half a second, as two were timed together; 12 rows are 2 batches.
  assert (tuning.prefix, tuning.epoch, tuning.epochs, tuning.end) == (0.0, 1.5 + 2, 3, 0.0)
  assert tuning.seconds == 3 * 3.5
  (late,) = own.stages(LATE)
  assert (late.prefix, late.epoch, late.epochs) == (6.0, 1.5 + 2, 5)  # kept activations
  assert late.seconds == 6 + 5 * 3.5
  assert own.forward(tiny.examples(17).images) == 3.0


def test_with_augmentation_nothing_is_kept_and_at_the_end_is_once(monkeypatch):
  monkeypatch.setattr(timing, "Watch", Second)
  (late,) = stage_cost.Meter(*meter(augmentation=step_lib.Augmentation())).stages(LATE)
  assert late.prefix == 0.0
  (late,) = stage_cost.Meter(*meter(), validate="end").stages(LATE)
  assert (late.prefix, late.epoch, late.end) == (6.0, 1.5, 2.0)


def test_the_bytes_hold_the_images_and_the_weights():
  engine, variables, train, validation = meter()
  probe, tuning = stage_cost.Meter(engine, variables, train, validation).stages(METHOD)
  weights = sum(x.nbytes for x in leaves(variables))
  assert probe.nbytes is None
  assert tuning.nbytes > train.images.nbytes + 3 * weights  # and Adam's two moments


@pytest.mark.parametrize("method", [METHOD, LATE])
def test_the_training_compiles_no_step_again(monkeypatch, method):
  compiled = []
  compile_step = step_lib.compile_step

  def watched(*arguments, **options):
    program, seconds = compile_step(*arguments, **options)
    compiled.append(seconds)
    return program, seconds

  monkeypatch.setattr(step_lib, "compile_step", watched)
  engine, variables, train, validation = meter(batch_size=10)  # not that of another test
  before = [x.copy() for x in leaves(variables)]
  *_, cost = stage_cost.Meter(engine, variables, train, validation).stages(method)
  measured = len(compiled)
  *_, stage = loop.fit(engine, variables, method, train, validation).stages
  assert measured == 1
  assert len(compiled) > measured
  assert compiled[measured:] == [0.0] * (len(compiled) - measured)
  solver = method[-1].solver
  assert stage["step"]["number"] == solver.epochs * (len(train.labels) // 10)
  assert stage["step"]["seconds"] > 0
  beside = 0  # kept of the validation images
  if method is LATE:
    first = stage["blocks"][0]
    x = jnp.zeros((len(validation.labels), *validation.images.shape[1:]))
    kept = jax.eval_shape(lambda: engine.model.apply(variables, x, stop=first))
    beside = kept.size * kept.dtype.itemsize
    assert beside > 0
  assert stage["step"]["bytes"] == cost.nbytes + beside
  for old, new in zip(before, leaves(variables), strict=True):  # nothing was trained
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_rows_of_shared_activations(in_pieces):
  engine, variables, train, _ = meter(in_pieces=in_pieces)
  prefix = prefix_lib.Prefix(
    engine.model, variables, train.images, preprocessing=engine.preprocessing, batch_size=8,
    mesh=engine.mesh, memory_bytes=1 << 20,
  )  # fmt: skip
  rows = [prefix_lib.Rows(prefix, train.labels, part) for part in np.split(np.arange(30), [20])]
  (late,) = stage_cost.Meter(engine, variables, *rows, validate="end").stages(LATE)
  assert late.epoch > 0
  assert late.end > 0
  assert (late.nbytes is None) == in_pieces
