"""What a comparison says of steps and forks, against counts by hand and the plain way."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import methods, models, weights
from subtune_jax.data import preprocess
from subtune_jax.models import beside, flops, forks
from subtune_jax.report import document, terminal
from subtune_jax.statistics import measures
from subtune_jax.studies.compare import page, summary
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.training import engine as engine_lib
from subtune_jax.training import loop, mesh
from tests.report import fake_run

SMALL = {"stage_sizes": (1, 1, 1), "width": 8}
UNIT = preprocess.Preprocessing(mean=(0.0,), std=(255.0,))


def small():
  model = models.create("resnet14", 3, image_size=16, **SMALL)
  return model, weights.random_weights(model, preprocessing="half").variables


def changed(name, **options):
  declared = methods.DECLARED[name]
  model, variables = small()
  return declared.prepare(
    model, variables, jax.random.key(0), {**methods.options_of(declared, None), **options}
  )


def test_a_fork_is_what_comes_after_the_first_trained_block():
  model, variables = small()
  counted = flops.count_macs(model)
  assert forks.macs(model, variables, {"head"}) == counted["head"] == 32 * 3
  later = counted["block2/unit1"] + counted["block3/unit1"] + counted["head"]
  assert forks.macs(model, variables, {"block3/unit1", "block2/unit1"}) == later
  # LoRA merges; a second network beside the frozen one has its own blocks and a head twice as wide.
  own, its = changed("lora", rank=2, where=("/block2/unit1",))
  assert forks.macs(own, its, {"block2/unit1", "head"}) == later
  own, its = beside.wrap(model, variables, ("block2/unit1",))
  assert forks.macs(own, its, {"block2/unit1"}) == later + 32 * 3
  own, its = changed("side_tuning")
  assert forks.macs(own, its, {"side"}) == sum(counted.values())


def test_adapters_that_do_not_merge_are_counted_with_the_fork():
  model, variables = small()
  own, its = changed("houlsby", rank=2, where=("/block3/unit1",))
  plain = forks.macs(model, variables, {"block3/unit1"})
  # Down to two channels and up again, on the pooled output of the last unit.
  assert forks.macs(own, its, {"block3/unit1"}) == plain + 2 * 32 * 2


def test_performance_per_parameter():
  assert measures.performance_per_parameter(0.7, 0) == 0.7
  assert measures.performance_per_parameter(0.7, 10**7) == pytest.approx(0.7 * np.exp(-np.log10(2)))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_training_says_what_its_steps_took(devices):
  model, variables = small()
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (24, 16, 16, 3), np.uint8)
  examples = engine_lib.Examples(images, generator.integers(0, 3, 24))
  engine = engine_lib.Engine(model, UNIT, mesh.make_mesh(jax.devices()[:devices]), batch_size=8)
  late = methods.sub_tuning(("block3/unit1",), 1e-3, epochs=2)
  result = loop.fit(engine, variables, late, examples, examples)
  step = result.stages[-1]["step"]
  assert step["number"] == 2 * 3
  assert 0 < step["seconds"] <= result.seconds
  # Activations of both sets before the block, kept once each; the images are not among them.
  before = jax.eval_shape(
    lambda: model.apply(variables, jnp.zeros((24, 16, 16, 3)), stop="block3/unit1")
  )
  trained = sum(
    x.nbytes for name in ("block3", "head") for x in jax.tree.leaves(variables["params"][name])
  )
  least = 2 * before.size * 4 + 3 * trained  # with Adam's two moments
  assert least < step["bytes"] < 4 * least
  (whole,) = loop.fit(
    engine, variables, methods.full_fine_tuning(1e-3, epochs=1), examples, None
  ).stages
  assert whole["step"]["bytes"] > images.nbytes
  # Weights before what is kept are not counted: the step does not read them.
  (top,) = loop.fit(engine, variables, methods.head_only(1e-3, epochs=1), examples, None).stages
  assert top["step"]["bytes"] < sum(x.nbytes for x in jax.tree.leaves(variables["params"])) / 2
  probe = loop.fit(engine, variables, methods.linear_probing(l2=(0.1,)), examples, None)
  assert "step" not in probe.stages[0]


def costs_of(run):
  """The tables that a terminal shows."""
  found = summary.summarize(run, num_resamples=20)
  return terminal.render(document.Document("", "", page.numbers(found)))


def test_a_record_has_the_costs_and_older_ones_go_without(tmp_path):
  record = fake_run.write(tmp_path, methods=("lp", "ft"), num_test=30, num_images=1)
  inside = record["data"]["id"]
  run = compare_record.load(tmp_path)
  found = {row.name: row for row in summary.summarize(run, num_resamples=20).rows}
  assert np.isnan([found["lp"].step_bytes, found["lp"].step_milliseconds]).all()
  assert found["ft"].step_bytes == 9e7
  assert found["lp"].ppt == found["lp"].accuracy[inside].mean
  head = record["backbone"]["head_params"]
  trained = found["ft"].trained_params - head
  wanted = measures.performance_per_parameter(found["ft"].accuracy[inside].mean, trained)
  assert found["ft"].ppt == wanted
  shown = costs_of(run)
  for row in record["methods"]:
    del row["fork_macs"]
  for row in record["trainings"]:
    del row["step"]
  (tmp_path / "results.json").write_text(json.dumps(record))
  older = compare_record.load(tmp_path)
  (row, *_) = summary.summarize(older, num_resamples=20).rows
  assert np.isnan([row.step_bytes, row.step_milliseconds, row.fork_macs]).all()
  made = costs_of(older)
  assert "90 MB" in shown
  assert "90 MB" not in made
