"""The tree in words and as a picture, its counts, and the measured forms."""

import subprocess
import sys

import numpy as np
import pytest

from subtune_jax import multitask
from subtune_jax.models import flops, host_memory
from subtune_jax.multitask import costs, latency
from subtune_jax.report import charts
from tests import deploy_network
from tests.multitask import made

FIRST, LAST = "block2/unit1", "block3/unit1"


@pytest.fixture(scope="module")
def base():
  return made.backbone(made.RESNET)


@pytest.fixture(scope="module")
def network(base):
  """Two tasks that share a tuned block, one that owns another, one of only a head."""
  first = made.task(base, (FIRST,), 1)
  sets = {"a": first, "b": first, "c": made.task(base, (LAST,), 2), "d": made.task(base, (), 3)}
  return multitask.MultiTask(sets)


def test_the_tree(network):
  lines = str(network).splitlines()[1:]
  assert [line[:30].rstrip() for line in lines] == [
    "stem .. block1/unit1",
    "├ block2/unit1 .. block3/unit1",
    "│ ├ head",
    "│ └ head",
    "└ block2/unit1 .. block2/unit2",
    "  ├ block3/unit1 .. head",
    "  └ block3/unit1 .. head",
  ]
  assert lines[1].endswith("  a, b (tuned: block2/unit1)")
  runs = {unit: len(own) for unit, own in network.plan.levels().items()}
  assert runs == {"stem": 1, "block1/unit1": 1, FIRST: 2, "block2/unit2": 2, LAST: 3, "head": 4}


def test_multiply_adds_are_those_of_what_runs(base, network):
  macs = flops.count_macs(base.model.clone(num_classes=3))
  assert network.macs == macs
  wanted = sum(macs.values()) + macs[FIRST] + macs["block2/unit2"] + 2 * macs[LAST]
  assert network.plan.total(macs) == wanted + 3 * macs["head"]


def test_the_picture_has_a_box_for_each_run(network):
  figure = network.draw()
  (axes,) = figure.axes
  assert len(axes.patches) == len(network.plan.nodes)
  assert {text.get_text() for text in axes.texts} == set("abcd")
  assert charts.png(figure).startswith(b"\x89PNG")


def test_forms_are_measured_and_the_quickest_is_taken(network, monkeypatch):
  def quickest_is_last(programs, rounds):
    assert all(np.isfinite(out).all() for run in programs.values() for out in run())
    return {name: 10.0 - i for i, name in enumerate(programs)}

  monkeypatch.setattr(costs, "medians", quickest_is_last)
  table = costs.measure(network, batch_size=2)
  assert [row[:3] for row in table.rows] == [
    (FIRST, 2, 2), ("block2/unit2", 2, 1), (LAST, 3, 2),
  ]  # fmt: skip
  assert table.forms() == {FIRST: "batched", "block2/unit2": "stacked", LAST: "batched"}
  assert "block2/unit2" in str(table)
  monkeypatch.setattr(costs, "medians", lambda programs, rounds: dict.fromkeys(programs, 1.0))
  assert set(costs.measure(network, 2).forms().values()) == {"separate"}


def test_its_program_keeps_freed_memory(base, monkeypatch):
  kept = []
  monkeypatch.setattr(host_memory, "keep_freed", lambda: kept.append(True))
  network = multitask.MultiTask({"a": made.task(base, (), 1), "b": made.task(base, (LAST,), 2)})
  assert not kept
  network.compiled()
  assert kept


_FAULTS = """
import resource
import jax, numpy as np
from subtune_jax import models, multitask
from subtune_jax.multitask import latency

tasks = latency.pretended(models.create("efficientnet_lite0", 10, image_size=32), ("block8",), 3)
run, weights = multitask.MultiTask(tasks).compiled()
images = np.zeros((1, 32, 32, 3), np.uint8)

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  jax.block_until_ready(run(weights, images))
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(run.lower(weights, images).compile().memory_analysis().temp_size_in_bytes)
print(min([faults() for _ in range(6)][1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux only")
def test_many_tasks_fault_in_no_new_pages():
  """glibc gives more than 32 MiB back at once; no task alone takes as much."""
  command = [sys.executable, "-c", _FAULTS]
  out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
  size, faults = map(int, out)
  assert size > 2**25
  assert faults < 100


@pytest.mark.parametrize("share", [0, 0.5, 0.7])
def test_a_fork_by_its_share(base, share):
  macs, names = flops.count_macs(base.model), base.model.block_names
  at = names.index(latency.fork_block(base.model, str(share)))
  before = sum(macs[name] for name in names[:at])
  assert before >= share * sum(macs.values())
  assert at == 0 or before - macs[names[at - 1]] < share * sum(macs.values())


def test_the_command(capsys, monkeypatch, tmp_path):
  model, _ = made.RESNET.build(latency.CLASSES, 32)
  monkeypatch.setattr(latency, "_model", lambda name, size: model)
  options = ("--tasks=2", "--batch=1", "--rounds=2", "--each_block", "--budget_ms=1e6")
  code, out, _ = deploy_network.run(
    latency.main, capsys, "resnet14", *options, "--fork=block3/unit1", f"--out={tmp_path / 'a.md'}"
  )
  assert code == 0
  assert (tmp_path / "a.md").read_text() == out
  rows = [line.split("|") for line in out.splitlines() if line.startswith("| 1 |")]
  assert [row[2].strip() for row in rows] == ["2"]
  assert "a fork at stem or later adds at most 1e+06 ms" in out


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("--fork=2", "give a block, or a share from 0 to below 1"),
    ("--fork=block9", "Unknown block 'block9'"),
    ("--rounds=0", "give at least 1"),
    ("--budget_ms=3", "needs --each_block"),
    ("--tasks=0", "numbers of at least 1"),
  ],
)
def test_a_wrong_option_is_one_line(option, message, capsys):
  code, _, err = deploy_network.run(latency.main, capsys, "resnet14", option)
  assert code == 2
  assert message in err
  assert err.count("\n") == 1
