"""The command line as a user sees it: exit codes and messages."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from subtune_jax import cli, save_model
from subtune_jax.report import charts
from tests import command

ROOT = command.ROOT
CONFIG = "--config=configs/quickstart.py:train=emoji_domains/noto"
SMALL = [
  CONFIG, "--config.data.image_size=32", "--config.seeds=(0,1)",
  "--config.methods=('lp','subtuning')",
  "--config.backbone.name=resnet14", "--config.backbone.options=stage_sizes=(1,1,1),width=8",
  "--config.backbone.weights=random", "--config.backbone.preprocessing=half",
  "--config.data.ood=('emoji_domains/fluent',)", "--config.subtuning.blocks=('block3/unit1',)",
  "--config.subtuning.epochs=3", "--config.lp.l2=(0.1,0.01)", "--config.tensorboard=False",
  "--config.checkpoint_seconds=0.0",
]  # fmt: skip


def run(*arguments: str) -> tuple[int, str, str]:
  done = command.run(*arguments)
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "give a config, e.g. --config=configs/quickstart.py"),
    (["--config=configs/quickstat.py"], "quickstat.py; the nearest is configs/quickstart.py"),
    ([CONFIG, "--config.subtuning.epoch=1"], "'subtuning.epoch'; the nearest is subtuning.epochs"),
    ([CONFIG, "--config.batch_size=many"], "many"),
    (["--config=configs/finetune.py:method=lpft"], "unknown method 'lpft'; allowed: lp, ft, lp_ft"),
    (["--config=configs/finetune.py:methd=ft"], "config argument 'methd' is unknown; allowed"),
    ([CONFIG, "--config.subtuning.blocks=('blok14',)"], "no leaf; the nearest names are block14"),
    ([CONFIG, "--config.data.train=emoji_domains/nota"], "Did you mean 'emoji_domains/noto'"),
    ([CONFIG, "--config.backbone.weights=no.pth"], "'no.pth' is neither a file nor one of"),
    ([CONFIG, "--config.ft.learning_rates=(0.1,-1.0)"], "ft.learning_rates is (0.1, -1.0)"),
    ([CONFIG, "--config.data.train=/"], "'/'. Did you mean the folder 'folder:/'?"),
    ([CONFIG, "--config.data.image_size=20000"], "image_size is 20000; allowed: 1 to 4096 pixels"),
    (["--config=configs/profile.py:units=stages"], "no two blocks of this network share one"),
    ([CONFIG, "--config.data.label_map=('a=b',)"], "'a=b', but no set that is matched"),
    ([CONFIG, "--nope"], "Unknown command line flag 'nope'"),
    ([CONFIG, "extra"], "unexpected argument 'extra'"),
  ],
)  # fmt: skip
def test_bad_input_is_one_message_and_code_2(tmp_path, arguments, message):
  done = command.run_forked(*arguments, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert done.stderr.startswith("error: ")
  assert done.stdout == ""
  assert not (tmp_path / "run").exists()


def results(workdir: pathlib.Path) -> tuple[dict, dict]:
  """What must not depend on kills: the record without times, and every logit."""
  record = json.loads((workdir / "results.json").read_text())
  for name in ("created", "command"):
    del record[name]
  for row in record["trainings"]:
    del row["seconds"], row["compile_seconds"]
    if row["step"] is not None:
      assert row["step"].pop("milliseconds") > 0
  logits = {p.name: np.load(p)["logits"] for p in sorted((workdir / "logits").glob("*.npz"))}
  return record, logits


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  code, out, error = run(*SMALL, f"--workdir={workdir}")
  assert code == 0, error
  return workdir, out


def test_the_page_is_made_again_from_the_files(whole, tmp_path, capsys, monkeypatch):
  workdir, out = whole
  monkeypatch.setattr(charts, "DPI", 160)  # as in the process of the run
  left_out = shutil.ignore_patterns("report.html", "figures", "tasks")
  copy = shutil.copytree(workdir, tmp_path / "copy", ignore=left_out)
  cli.main(["report", str(copy)])
  assert (copy / "report.html").read_bytes() == (workdir / "report.html").read_bytes()
  shown, _, place = capsys.readouterr().out.rpartition("report: ")
  assert shown in out
  assert place.strip() == str(copy / "report.html")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "error: No results.json in"),
    ("{", "is damaged, not JSON"),
    ('{"kind": "os.path"}', "kind is 'os.path'; the record knows 'active_learning', 'compare'"),
    ('{"text": 1}', "kind is None; the record knows"),
    ('{"kind": "compare"}', "lacks backbone"),
  ],
)
def test_no_page_of_what_is_no_run(content, message, tmp_path, capsys):
  if content is not None:
    (tmp_path / "results.json").write_text(content)
  with pytest.raises(SystemExit, match="2"):
    cli.main(["report", str(tmp_path)])
  assert message in capsys.readouterr().err
  assert not (tmp_path / "report.html").exists()


def test_a_run_leaves_everything_behind(whole):
  workdir, out = whole
  names = {p.name for p in workdir.iterdir()}
  assert {"config.json", "metrics.jsonl", "ledger.jsonl", "results.json", "report.html", "logits",
          "tasks", "images.npz", "errors.npz", "figures"} <= names  # fmt: skip
  assert "SubTuning" in out
  assert "95 %" in out
  assert str(workdir / "report.html") in out
  record, logits = results(workdir)
  assert len(logits) == 2 + 4  # the probe once, SubTuning twice, on two domains
  for row in record["trainings"]:
    for name, test in row["test"].items():
      arrays = np.load(workdir / test["logits"])
      accuracy = np.mean(arrays["logits"].argmax(-1) == arrays["labels"])
      assert test["accuracy"] == pytest.approx(accuracy), name
    labels = np.load(workdir / "logits/validation/examples.npz")["labels"]
    for epoch in row["history"]:  # every number of the curves can be computed again
      file = workdir / f"logits/validation/{row['key']}/{epoch['stage']}-{epoch['epoch']}.npz"
      accuracy = np.mean(np.load(file)["logits"].argmax(-1) == labels)
      assert epoch["validation_accuracy"] == pytest.approx(accuracy)


def logits_of(folder: pathlib.Path, name: str, out: pathlib.Path) -> np.ndarray:
  """Of a model folder on a test set, in a process with the flags of the run."""
  code = f"""
import numpy as np, subtune_jax
from subtune_jax import data
images = data.load("{name}", "test", 32).images
np.save("{out}", subtune_jax.load("{folder}").logits(images))
"""
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=command.environment(), check=True)
  return np.load(out)


def test_the_model_folder_answers_as_the_run_did(whole, tmp_path):
  workdir, out = whole
  record, logits = results(workdir)
  assert f"model folder: {workdir / 'best'} (" in out
  config = json.loads((workdir / "best/config.json").read_text())
  trained, figures = config["trained"], config["figures"]
  scores = {row["method"]: row["validation_accuracy"] for row in record["trainings"]}
  assert trained["method"] == max(scores, key=scores.get)
  for row in record["trainings"]:
    if (row["method"], row["seed"]) == (trained["method"], trained["seed"]):
      assert {n: f["accuracy"] for n, f in figures.items()} == {
        n: t["accuracy"] for n, t in row["test"].items()
      }
  figures["validation"] = trained["validation"]
  assert trained["validation"]["accuracy"] == max(scores.values())
  assert all(own["low"] < own["accuracy"] < own["high"] for own in figures.values())
  name = "emoji_domains/fluent"
  file = f"{trained['method']}-seed{trained['seed']}-emoji_domains-fluent.npz"
  np.testing.assert_array_equal(
    logits_of(workdir / "best", name, tmp_path / "x.npy"), logits[file]
  )  # bit for bit


def test_another_model_folder_of_a_run(whole, tmp_path):
  workdir, _ = whole
  out, name = tmp_path / "model", "emoji_domains/noto"
  arguments = [str(workdir), "--method=subtuning", "--seed=1", f"--out={out}"]
  save_model.main(arguments)
  wanted = np.load(workdir / "logits/subtuning-seed1-emoji_domains-noto.npz")["logits"]
  np.testing.assert_array_equal(logits_of(out, name, tmp_path / "x.npy"), wanted)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--method=ft"], "Unknown method of this run 'ft'"),
    (["--method=lp", "--seed=7"], "lp has no training with seed 7; seeds: 0, 1"),
  ],
)
def test_a_model_folder_that_cannot_be(whole, tmp_path, capsys, arguments, said):
  workdir, _ = whole
  with pytest.raises(SystemExit, match="2"):
    save_model.main([str(workdir), *arguments, f"--out={tmp_path / 'model'}"])
  assert said in capsys.readouterr().err
  assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_second_start_repeats_nothing_and_another_config_is_refused(whole):
  workdir, _ = whole
  before = (workdir / "ledger.jsonl").read_text(), results(workdir)
  code, out, error = run(*SMALL, f"--workdir={workdir}")
  assert code == 0, error
  assert "resuming: 3 trainings are finished" in out
  after = (workdir / "ledger.jsonl").read_text(), results(workdir)
  assert before[0] == after[0]
  assert before[1][0] == after[1][0]
  code, _, error = run(*SMALL, "--config.batch_size=32", f"--workdir={workdir}")
  assert code == 2
  assert "batch_size: 64 -> 32" in error


def test_ctrl_c_is_one_line_with_the_command_that_goes_on(tmp_path):
  workdir = tmp_path / "a run"
  long = ["--config.subtuning.epochs=10000", f"--workdir={workdir}"]
  with command.start(*SMALL, *long, start_new_session=True) as process:
    line = process.stdout.readline()
    assert "results go to" in line, line + process.stderr.read()
    while not line.startswith("lp:"):
      line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
  assert process.returncode == 130
  *others, text = error.splitlines()
  assert all("probe.py" in line for line in others)  # a warning of the training before
  given = text.removeprefix("interrupted; this goes on where it stopped: ")
  expected = ["python", "-m", "subtune_jax.main", *SMALL, *long]
  assert shlex.split(given) == expected


@pytest.mark.parametrize("error", [
  "MemoryError('Unable to allocate 9.6 GiB')",
  "RuntimeError('INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes.')",
  "RuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.')",
])  # fmt: skip
def test_memory_that_does_not_suffice_is_one_message_and_code_2(error):
  script = f"""
from absl import app
from subtune_jax import command_line, main
from subtune_jax.studies.compare import run
def fail(*_, **__):
  raise {error}
run.run = fail
app.run(main.main, argv=["main", "{CONFIG}"], flags_parser=command_line.parse)
"""
  done = command.run_forked(code=script)
  assert done.returncode == 2
  assert done.stderr.startswith("error: out of memory: ")
  assert "lower batch_size or data.image_size" in done.stderr
  assert "Traceback" not in done.stderr


def test_an_interrupt_that_python_drops_is_raised_again():
  script = """
import os, signal, time
from subtune_jax import command_line
class Dropped:
  def __del__(self):  # what is raised here goes no further
    os.kill(os.getpid(), signal.SIGINT)
with command_line.interruptible("again"):
  Dropped()
  time.sleep(60)
"""
  done = subprocess.run(
    [sys.executable, "-c", script],
    cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
  )  # fmt: skip
  assert done.returncode == 130
  assert done.stderr == "interrupted; this goes on where it stopped: again\n"


@pytest.mark.slow
def test_killed_at_any_moment_the_run_ends_the_same(whole, tmp_path):
  workdir = tmp_path / "run"
  rng = np.random.default_rng(0)
  kills, wait = 0, 4.0
  for _ in range(12):
    with command.start(*SMALL, f"--workdir={workdir}", start_new_session=True) as process:
      try:
        process.wait(wait + 4 * rng.random())
      except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        wait += 1.0
        continue
      out, error = process.communicate()
    break
  else:
    code, out, error = run(*SMALL, f"--workdir={workdir}")
    assert code == 0, error
  assert kills >= 2
  assert "report" in out, error
  expected, found = results(whole[0]), results(workdir)
  assert found[0] == expected[0]
  assert found[1].keys() == expected[1].keys()
  for name, logits in expected[1].items():
    np.testing.assert_array_equal(found[1][name], logits)


def test_start_up_is_light():
  """`--help` loads neither jax nor TensorFlow."""
  script = (
    "import sys; import subtune_jax.main; "
    "print([name for name in ('jax', 'tensorflow') if name in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"


def test_help_lists_every_config_with_a_line_of_its_own():
  code, out, error = run("--help")
  assert (code, error) == (0, "")
  for path in (ROOT / "configs").glob("*.py"):
    (line,) = [line for line in out.splitlines() if f"configs/{path.name} " in line + " "][-1:]
    assert len(line.split()) > 4, line
  assert "--workdir" in out
