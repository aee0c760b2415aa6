"""A step that compiles a second time is named; a trace of a few steps can be read."""

import functools
import gzip
import json

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.training import (
  compile_once,
  loop,
  stage_inputs,
  stage_steps,
  trace,
  trainable_split,
  under_way,
)
from tests import tiny

METHOD = methods.sub_tuning(("block2",), 1e-2, epochs=2)


@pytest.fixture
def said(monkeypatch):
  """What is logged as a warning."""
  found = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: found.append(text % values))
  return found


def test_a_call_that_compiles_is_told_from_one_that_does_not():
  double = jax.jit(lambda x: 2 * x)
  x, longer = np.ones(3, np.float32), np.ones(4, np.float32)
  counts = [len(compile_once.compiled_by(double, array)[1]) for array in (x, x, longer, longer)]
  assert counts == [1, 0, 1, 0]
  made, (inner,) = compile_once.compiled_by(
    compile_once.compiled_by, double, np.ones(5, np.float32)
  )
  assert made[1] == [inner]
  assert "lambda" in inner[0]


def test_a_step_that_compiles_again_is_said_with_its_shapes(said):
  def step(state, fixed, initial, data, indices, view):
    return state + 1.0, {}  # a weak type would do the same

  jitted = jax.jit(step)
  once = compile_once.Once(jitted, "block2")
  rest = (None, None, {"x": jnp.zeros((8, 4))}, jnp.arange(8), None)
  state, _ = once(jnp.zeros([], jnp.int32), *rest)
  assert not said
  once(state, *rest)  # int32 at first, float32 now
  assert len(said) == 1
  for part in ("'block2' compiled jit(step) again", "state float32[]", "data/x float32[8,4]"):
    assert part in said[0]
  once(state, *rest)
  assert len(said) == 1


@functools.cache
def ready(in_pieces, streamed=False):
  model, variables = tiny.make()
  engine = tiny.engine(model, in_pieces=in_pieces, resident_bytes=0 if streamed else 1 << 30)
  options = {"seed": 0, "on_epoch": None, "saver": None, "validate": "end", "on_variables": None}
  training = under_way.Training(engine, variables, METHOD, tiny.examples(), None, **options)
  plan = trainable_split.make_plan(model, variables, METHOD[0])
  inputs, _ = stage_inputs.of_stage(training, plan)
  return stage_steps.prepare(training, 0, plan, inputs), training


@pytest.mark.parametrize("kind", ["whole", "in pieces", "streamed"])
def test_a_batch_of_another_shape_is_an_error_that_names_both(kind, said):
  prepared, training = ready(kind == "in pieces", kind == "streamed")
  order = stage_steps.order(training, METHOD[0].solver, 0, 0)
  state, _ = prepared.run_epoch(jax.tree.map(jnp.copy, prepared.state), order, 0)
  message = r"'block2' compiles once.*int32\[8\].*, then int32\[7\].*; give every batch one shape"
  with pytest.raises(ValueError, match=message):
    prepared.run_epoch(state, order[:, :7], 1)
  assert not said


def test_a_trace_holds_steps_and_says_where_it_is(tmp_path):
  model, variables = tiny.make()
  said = []
  kept = trace.Trace(tmp_path / "trace", 2, said.append)
  method = methods.linear_probing(l2=(1.0,)) + METHOD
  for _ in range(2):  # the second training is not traced
    loop.fit(tiny.engine(model), variables, method, tiny.examples(), None, trace=kept)
  (line,) = said
  assert line.startswith(f"trace of 2 steps of stage 'block2': {tmp_path / 'trace'}; open")
  (path,) = (tmp_path / "trace").rglob("perfetto_trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  assert sum("train_step" in str(event.get("name")) for event in events) >= 2


@pytest.mark.slow
def test_a_trace_ends_with_a_training_that_fails(tmp_path):
  model, variables = tiny.make()
  said = []
  method = methods.full_fine_tuning(1e36, epochs=2, weight_decay=1e6)
  kept = trace.Trace(tmp_path, 50, said.append)
  with pytest.raises(loop.stage_runner.NonFiniteLossError, match="loss is nan"):
    loop.fit(tiny.engine(model), variables, method, tiny.examples(), None, trace=kept)
  assert said[0].startswith("trace of 2 steps of stage")
  jax.profiler.start_trace(tmp_path / "next")  # none is under way
  jax.profiler.stop_trace()
  with pytest.raises(ValueError, match="a trace of 0 steps; give at least 1"):
    trace.Trace(tmp_path, 0, said.append)


def test_where_an_epoch_is_one_program_the_trace_has_epochs(tmp_path):
  model, variables = tiny.make()
  said = []
  kept = trace.Trace(tmp_path, 3, said.append)
  loop.fit(tiny.engine(model, scan=True), variables, METHOD, tiny.examples(), None, trace=kept)
  assert said[0].startswith("trace of 1 epoch of stage 'block2'")
