"""Tasks whose heads read the frozen features too: one frozen trunk for all of them."""

import dataclasses

import numpy as np
import pytest

from subtune_jax import multitask
from subtune_jax.deploy import folder
from subtune_jax.models import beside
from subtune_jax.multitask import exporting
from subtune_jax.training import export
from tests.multitask import made

BLOCK, LAST = "block2/unit2", "block3/unit1"


@pytest.fixture(scope="module")
def base():
  return made.backbone(made.RESNET)


def wrapped(base, blocks):
  model, variables = beside.wrap(base.model, base.variables, blocks)
  return dataclasses.replace(base, model=model, variables=variables)


def own_task(base, blocks, seed, num_classes=3):
  return made.task(wrapped(base, blocks), blocks, seed, num_classes)


@pytest.fixture(scope="module")
def tasks(base):
  return {
    "beside": own_task(base, (BLOCK,), 1),
    "last": own_task(base, (LAST,), 2, num_classes=4),
    "plain": made.task(base, (BLOCK,), 3),
  }


def runs(network, tasks=None):
  plan = network.plan if tasks is None else network.plan.only(tasks)
  return {unit: len(own) for unit, own in plan.levels().items()}


def test_every_task_is_its_own_network(tasks):
  images = made.images()
  network = multitask.MultiTask(tasks)
  answers = network.apply(images)
  for name, own in tasks.items():
    np.testing.assert_array_equal(answers[name].logits, made.own_answers(own, images))
  own = tasks["last"].network.variables["params"]["head"]
  read = np.asarray(answers["last"].features) @ own["kernel"] + own["bias"]
  np.testing.assert_allclose(read, answers["last"].logits, rtol=1e-4, atol=1e-4)
  alone = network.apply(images, ["last"])["last"]  # a task not asked for runs nothing
  np.testing.assert_array_equal(alone.logits, answers["last"].logits)
  forms = dict.fromkeys(network.units, "batched")
  for name, found in network.with_forms(forms).apply(images).items():
    wanted = np.asarray(answers[name].logits)
    np.testing.assert_allclose(found.logits, wanted, atol=2e-5 * np.abs(wanted).max())


def test_the_frozen_trunk_runs_once_for_all(base, tasks):
  network = multitask.MultiTask(tasks)
  assert runs(network) == {
    "stem": 1, "block1/unit1": 1, "block2/unit1": 1, BLOCK: 3, LAST: 4, "head": 3,
  }  # fmt: skip
  # The trunk of the plain task is that of the others: one more branch, and no more trunk.
  assert runs(network, ["plain"]) == dict.fromkeys(network.units, 1)
  assert runs(network, ["beside", "last"])[BLOCK] == 2
  macs = network.macs
  body = sum(macs[unit] for unit in network.units if unit != "head")
  heads = 5 * macs["head"]  # two read twice as much
  assert network.plan.total(macs) == body + 2 * macs[BLOCK] + 3 * macs[LAST] + heads
  # A task of only a head rides the trunk that is there.
  probe = network.added("probe", made.task(base, (), 4))
  assert runs(probe) == runs(network) | {"head": 4}


def test_what_the_plan_says_and_shows(base, tasks):
  network = multitask.MultiTask({name: tasks[name] for name in ("beside", "plain")})
  lines = str(network).splitlines()[1:]
  assert [line.partition("  ")[0] for line in lines] == [
    "stem .. block2/unit1", "├ block2/unit2 .. head", "├ block2/unit2 .. block3/unit1",
    "└ block2/unit2 .. head",
  ]  # fmt: skip
  assert lines[1].endswith("beside (tuned: block2/unit2, the head reads the frozen features too)")
  more = network.added("last", tasks["last"])
  lines = str(more.added("probe", made.task(base, (), 4))).splitlines()[1:]
  at = next(i for i, line in enumerate(lines) if line.endswith("head                probe"))
  assert lines[at - 1].split("  ")[-1] == "beside, last, probe"  # the trunk that three read
  (axes,) = more.draw().axes
  boxes = [box.get_bbox() for box in axes.patches]
  assert len(boxes) == len(more.plan.nodes)
  shared = [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i])
            if a.overlaps(b)]  # fmt: skip
  assert not shared


def test_folders_and_exports(base, tmp_path):
  own = wrapped(base, (BLOCK,))
  described = dataclasses.replace(
    made.RESNET, method="subtuning",
    method_options={"blocks": [BLOCK], "probe_first": False, "beside_frozen": True},
  )  # fmt: skip
  saved = made.write(tmp_path / "beside", described, own, (BLOCK,), 1)
  plain = made.write(tmp_path / "plain", made.RESNET, base, (BLOCK,), 3)
  images = made.images()
  network = multitask.MultiTask({"beside": saved, "plain": plain})
  assert runs(network)[BLOCK] == 3
  alone = folder.load(saved).predict(images).logits
  answers = network.predict(images)
  np.testing.assert_allclose(answers["beside"].logits, alone, rtol=1e-5, atol=1e-5)
  assert network.tasks["beside"].backbone_digest == network.tasks["plain"].backbone_digest
  variables, touched = made.trained(own, (BLOCK,), 1)
  note = {"class_names": ["a", "b", "c"], "beside_frozen": [BLOCK]}
  export.save_task(tmp_path / "export", variables, touched, own.variables, note)
  exports = {"beside": tmp_path / "export", "plain": tmp_path / "plain" / "export"}
  same = multitask.MultiTask(exports, base).apply(images)
  for name, wanted in network.apply(images).items():
    np.testing.assert_array_equal(same[name].logits, wanted.logits)


def test_what_is_refused(base, tasks):
  own = wrapped(base, (BLOCK,))
  with pytest.raises(multitask.TaskError, match="another network than the backbone"):
    multitask.of_training(base, *made.trained(own, (BLOCK,), 1), "abc")
  moved = made.moved(own.variables, lambda name: "unit2_frozen" in name, 0, by=1e-6)
  touched = made.trained(own, (BLOCK,), 1)[1]
  with pytest.raises(multitask.TaskError, match="a frozen leaf was changed"):
    multitask.of_training(own, moved, touched, "ab")
  other = own_task(made.backbone(made.RESNET, seed=1), (BLOCK,), 1)
  with pytest.raises(multitask.TaskError, match="digest"):
    multitask.MultiTask({**tasks, "other": other})


@pytest.mark.slow
def test_as_one_program(tasks, tmp_path):
  onnxruntime = pytest.importorskip("onnxruntime")
  network = multitask.MultiTask(tasks)
  path = exporting.write_onnx(network, tmp_path / "tasks.onnx")
  session = onnxruntime.InferenceSession(str(path))
  images = made.images()
  found = dict(zip(
    [own.name for own in session.get_outputs()],
    session.run(None, {session.get_inputs()[0].name: images}), strict=True,
  ))  # fmt: skip
  for name, wanted in network.apply(images).items():
    np.testing.assert_allclose(found[f"{name}/logits"], wanted.logits, rtol=1e-4, atol=1e-4)
  exporting.write_stablehlo(network, tmp_path / "stablehlo")


@pytest.mark.slow
@pytest.mark.parametrize("network", [made.VIT, made.LITE], ids=lambda n: n.name)
def test_every_fork_of_other_families(network):
  base = made.backbone(network)
  images = made.images(2)
  for block in base.model.block_names:
    tasks = {"plain": made.task(base, (), 1), "beside": own_task(base, (block,), 2)}
    for name, answers in multitask.MultiTask(tasks).apply(images).items():
      np.testing.assert_array_equal(answers.logits, made.own_answers(tasks[name], images))
