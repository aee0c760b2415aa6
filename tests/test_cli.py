"""The command `subtune`: its words, and configs by name anywhere."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import pytest

import subtune_jax
from subtune_jax import cli, command_line
from tests import command, config_files


def run(*arguments: str, cwd=command.ROOT) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "subtune_jax.cli", *arguments], cwd=cwd, capture_output=True, text=True,
    check=False, env=os.environ | {"PYTHONPATH": str(command.ROOT)},
  )  # fmt: skip


def test_help_has_a_line_for_each_word(capsys):
  cli.main(["--help"])
  cli.main([])
  out = capsys.readouterr().out
  for word, (_, line) in cli.COMMANDS.items():
    assert out.count(f"  {word:12}{line}\n") == 2


def test_versions_and_device(capsys):
  cli.main(["--version"])
  out = capsys.readouterr().out
  assert out == (
    f"subtune_jax {subtune_jax.__version__}, jax {jax.__version__}, {len(jax.devices())} x cpu\n"
  )


@pytest.mark.parametrize(("word", "nearest"), [("trian", "train"), ("calibration", "calibrate")])
def test_a_misspelt_word_gets_the_nearest(word, nearest, capsys):
  with pytest.raises(SystemExit, match="2"):
    cli.main([word])
  assert f"error: no command {word!r}; the nearest is {nearest}" in capsys.readouterr().err


@pytest.mark.parametrize("word", cli.COMMANDS)
def test_every_word_is_a_program(word):
  module, _ = cli.COMMANDS[word]
  program = importlib.import_module(f"subtune_jax.{module}")
  assert callable(program.start if word == "train" else program.main)


def test_models_and_data(capsys, tmp_path):
  cli.main(["models", "--blocks", "resnet14"])
  assert "block3/unit2" in capsys.readouterr().out
  cli.main(["data"])
  out = capsys.readouterr().out.splitlines()
  assert "emoji_domains/noto" in out
  assert "imagenet" not in out  # is not here
  cli.main(["data", "emoji_domains/noto", "emoji_domains/fluent"])
  out = " ".join(capsys.readouterr().out.split())
  assert "emoji_domains/noto train 652 45 of 45 6 to 42" in out
  assert "emoji_domains/fluent test 261" in out
  with pytest.raises(SystemExit, match="2"):
    cli.main(["data", f"folder:{tmp_path / 'none'}"])
  assert capsys.readouterr().err.startswith("error: ")


def test_the_installed_configs_are_those_of_the_project():
  shipped = {path.name: path.read_text() for path in command_line.SHIPPED.glob("*.py")}
  assert shipped == {path.name: path.read_text() for path in config_files.CONFIGS}


def test_a_config_by_name(tmp_path, monkeypatch):
  assert command_line.find_config("quickstart") == "configs/quickstart.py"
  assert command_line.find_config("configs/none.py") == "configs/none.py"
  monkeypatch.chdir(tmp_path)
  shipped = str(command_line.SHIPPED / "finetune.py")
  for name in ("finetune", "finetune.py", "configs/finetune.py"):
    assert command_line.find_config(f"{name}:method=ft,a=b:c") == f"{shipped}:method=ft,a=b:c"
  pathlib.Path("finetune.py").touch()
  assert command_line.find_config("finetune.py") == "finetune.py"  # the user's own
  assert command_line.find_config("elsewhere/finetune.py") == "elsewhere/finetune.py"


def test_a_config_that_is_no_python_file(tmp_path, capsys):
  path = tmp_path / "notes.txt"
  path.touch()
  with pytest.raises(SystemExit, match="2"):
    command_line.parse(["train", f"--config={path}"])
  assert capsys.readouterr().err == f"error: {path} is no Python file; give a config, NAME.py\n"


@pytest.mark.slow
def test_train_from_another_folder(tmp_path):
  done = run("train", "--config=quikstart", cwd=tmp_path)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr == "error: no config file quikstart; the nearest is quickstart\n"
  done = run("train", "--help", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "  my_data  " in done.stdout
  assert "--dry_run" in done.stdout
  done = run(
    "train", "--config=quickstart", "--dry_run", "--config.methods=('lp',)",
    "--config.data.image_size=32", "--config.data.ood=()", cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "dry run, nothing was trained; to do: 1 training, 1 epoch, about" in done.stdout
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wheel_has_the_command_and_the_configs(tmp_path):
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), "."],
    cwd=command.ROOT, check=True,
  )  # fmt: skip
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(tmp_path / "site")
    names = archive.namelist()
  for path in config_files.CONFIGS:
    assert f"subtune_jax/configs/{path.name}" in names
  (entry,) = [name for name in names if name.endswith("entry_points.txt")]
  assert "subtune = subtune_jax.cli:main" in (tmp_path / "site" / entry).read_text()
  done = subprocess.run(
    [sys.executable, "-m", "subtune_jax.cli", "train", "--config=quickstart", "--dry_run",
     "--config.methods=('lp',)", "--config.data.image_size=32"],
    cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True,
    text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "dry run, nothing was trained" in done.stdout
