"""The command line in several processes on this machine; docs/multi_host.md."""

import json
import pathlib
import signal
import time

import numpy as np
import pytest

from tests import command, hosts

SMALL = [
  "-m", "subtune_jax.main", "--config=configs/compare.py", "--config.backbone.name=resnet14",
  "--config.backbone.weights=random", "--config.backbone.preprocessing=imagenet",
  "--config.data.image_size=32", "--config.data.num_train=96", "--config.batch_size=32",
  "--config.data.ood=('emoji_domains/fluent',)", "--config.seeds=(0,)",
  "--config.tensorboard=False", "--config.optimizer.name=sgd", "--config.lp.l2=(0.1,0.01)",
  "--config.subtuning.blocks=('block3/unit2',)", "--config.subtuning.epochs=2",
  "--config.subtuning.learning_rates=(0.01,)",
]  # fmt: skip
THREE = ["--config.methods=('lp','ft','subtuning')", "--config.ft.epochs=2",
         "--config.ft.learning_rates=(0.001,0.01)"]  # fmt: skip
# As short as may be killed in its middle.
LONG = ["--config.methods=('ft',)", "--config.ft.epochs=16", "--config.ft.learning_rates=(0.001,)",
        "--config.checkpoint_seconds=0.0"]  # fmt: skip


def contents(workdir: pathlib.Path) -> list[str]:
  """Names of the files of a run; the arrays of checkpoints lie in files with names of Orbax's."""
  found = (p.relative_to(workdir).as_posix() for p in workdir.rglob("*") if p.is_file())
  return sorted({name.partition("/arrays/")[0] for name in found})


def trainings(workdir: pathlib.Path) -> list[dict]:
  record = json.loads((workdir / "results.json").read_text())
  return sorted(record["trainings"], key=lambda row: row["key"])


def same(a: pathlib.Path, b: pathlib.Path, tolerance: float, accuracy: float = 0.0) -> None:
  """The same trainings with the same losses and accuracies, and the same files."""
  assert contents(a) == contents(b)
  rows, others = trainings(a), trainings(b)
  assert [row["key"] for row in rows] == [row["key"] for row in others]
  for row, other in zip(rows, others, strict=True):
    for epoch, again in zip(row["history"], other["history"], strict=True):
      for name in ("train_loss", "validation_loss"):
        np.testing.assert_allclose(again[name], epoch[name], rtol=tolerance, err_msg=row["method"])
      for name in ("train_accuracy", "validation_accuracy"):
        assert abs(again[name] - epoch[name]) <= accuracy, (row["method"], epoch, again)
  for path in sorted((a / "logits").glob("*.npz")):
    mine, others = (np.load(folder / "logits" / path.name)["logits"] for folder in (a, b))
    assert np.abs(others - mine).mean() < 10 * tolerance, path.name


def lines(path: pathlib.Path) -> int:
  return path.read_text().count("\n") if path.is_file() else 0


def wait_for_epoch(workdir: pathlib.Path, epochs: int) -> None:
  until = time.monotonic() + 120
  while lines(workdir / "metrics.jsonl") < epochs:
    assert time.monotonic() < until, "no epoch was trained"
    time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path):
  for name, count, devices in (("one", 1, 1), ("four", 1, 4), ("two", 2, 2)):
    program = [*SMALL, *THREE, f"--workdir={tmp_path / name}"]
    codes = hosts.finish(hosts.start(program, count, devices, tmp_path / f"{name}.said"), 300)
    assert codes == [0] * count, (tmp_path / f"{name}.said/0.err").read_text()
  same(tmp_path / "one", tmp_path / "four", 1e-4)
  same(tmp_path / "one", tmp_path / "two", 1e-4)
  said = (tmp_path / "two.said/1.out").read_text()
  assert all(line.startswith("[Gloo]") for line in said.splitlines())


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_another_number_of_processes(tmp_path):
  program = [*SMALL, *LONG, f"--workdir={tmp_path / 'run'}"]
  for victim, moment in ((1, 2), (0, 6)):
    started = hosts.start(program, 2, 2, tmp_path / f"killed{victim}")
    wait_for_epoch(tmp_path / "run", moment)
    time.sleep(np.random.default_rng().random())
    started[victim].kill()
    begin = time.monotonic()
    codes = hosts.finish(started, 60)
    assert time.monotonic() - begin < 30  # heartbeats are given up after 10 seconds
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] not in (0, -signal.SIGKILL)
    said = (tmp_path / f"killed{victim}/{1 - victim}.err").read_text()
    assert "another process of this run" in said or "another task died" in said

  started = hosts.start(program, 2, 2, tmp_path / "asked")
  seen = lines(tmp_path / "run/metrics.jsonl")
  wait_for_epoch(tmp_path / "run", seen + 2)
  started[1].send_signal(signal.SIGTERM)  # one is enough
  assert hosts.finish(started, 60) == [143, 143]
  for index in range(2):
    said = (tmp_path / f"asked/{index}.err").read_text()
    assert "stopped by SIGTERM; this goes on where it stopped: python -m subtune_jax.main" in said
  assert not (tmp_path / "run/results.json").exists()

  (code,) = hosts.finish(hosts.start(program, 1, 4, tmp_path / "last"), 300)
  assert code == 0, (tmp_path / "last/0.err").read_text()
  assert "resumed stage 1 of 1 after epoch" in (tmp_path / "last/0.out").read_text()
  whole = [*SMALL, *LONG, f"--workdir={tmp_path / 'whole'}"]
  assert hosts.finish(hosts.start(whole, 1, 4, tmp_path / "whole.said"), 300) == [0]
  # Rounding differs between two processes and one, and grows over 48 steps: up to 2 images of 96
  # or 174. An epoch left out or done twice is 7e-3 of the loss here.
  same(tmp_path / "whole", tmp_path / "run", 1e-3, accuracy=2 / 96)


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "message"), [
  (["--config=configs/profile.py", "--coordinator=auto"], "the study search runs in one process"),
  (["--config=configs/compare.py", "--num_processes=2"], "is 2; give --coordinator"),
  (["--config=configs/compare.py", "--coordinator=auto"], "do not find each other"),
])  # fmt: skip
def test_what_cannot_be_is_one_error_before_anything_starts(tmp_path, arguments, message):
  done = command.run(*arguments, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert message in done.stderr
  assert done.stderr.startswith("error: ")
  assert not (tmp_path / "run").exists()
