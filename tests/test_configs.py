"""Every config runs through the real command line, with a small network and shrunken settings."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from tests import command, config_files, documented

NOTO, FLUENT = "emoji_domains/noto", "emoji_domains/fluent"


def one_epoch(*methods: str) -> dict:
  fields = {"epochs": 1, "learning_rates": (1e-3,)}
  return {f"{method}.{name}": value for method in methods for name, value in fields.items()}


NETWORK = {
  "backbone.name": "resnet14", "backbone.weights": "random", "backbone.preprocessing": "half",
  "data.image_size": 16, "tensorboard": False,
}  # fmt: skip
SETS = {"data.train": NOTO, "data.ood": (FLUENT,), "data.num_train": 90}
SHORT = {
  "seeds": (0,), "lp.l2": (0.1,), "ft.epochs": 1, "lp_ft.epochs": 1, "subtuning.epochs": 1,
  "ft.learning_rates": (1e-3,), "lp_ft.learning_rates": (1e-3,),
  "subtuning.learning_rates": (1e-3,),
}  # fmt: skip
COMPARE = NETWORK | SETS | SHORT | {"subtuning.blocks": ("block3/unit1",)}
SEARCH = NETWORK | SETS | SHORT | {"search.units": "stages", "search.folds": 2, "search.epochs": 1}
FULL = NETWORK | SETS | {"ft.epochs": 1, "ft.learning_rates": (1e-2,)}
HOLISTIC = {
  **NETWORK, "seeds": (0,), "methods": ("ft", "lp"), "holistic.num_seen": (22,),
  "holistic.pcv_methods": (), "source.epochs": 1, "source.learning_rates": (1e-2,), "ft.epochs": 1,
  "ft.learning_rates": (1e-2,), "lp.epochs": 1, "lp.learning_rates": (1e-2,), "subtuning.units": "",
}  # fmt: skip
OVERRIDES = {
  "calibration": HOLISTIC,
  "compare": COMPARE,
  "corruption": SEARCH | {
    "backbone.keep_head": False, "data.ood": (), "corrupted": "emoji_domains/noto+{}",
    "shifts": ("contrast/5", "flip_labels"),
  },
  "active_learning": COMPARE | {
    "save_model": False, "data.ood": (), "data.num_train": 0, "totals": (40, 60), "seeds": (0,),
    "methods": ("subtuning",), "rules": ("random", "margin"),
  },
  "dataset_size": SEARCH | {"sizes": (60, 90), "data.num_train": 0},
  "fashion_mnist": COMPARE | {"data.interpolation": "bicubic"},
  "finetune": COMPARE,
  "greedy": SEARCH,
  "multitask": {
    **{k: v for k, v in NETWORK.items() if k != "tensorboard"},
    "tasks": (NOTO, "glyph_domains/sans"), "data.num_train": 72,
    "methods": ("lp", "subtuning", "ft"), "lp.l2": (0.1,), "subtuning.epochs": 1, "ft.epochs": 1,
    "subtuning.blocks": ("block3/unit1",),
  },
  "which_layers": SEARCH | {"search.probes": 1},
  "my_data": {k: v for k, v in SEARCH.items() if k != "search.units"},
  "pretrain_cifar10": FULL,
  "pretrain_fashion_mnist": FULL,
  "profile": SEARCH,
  "quickstart": COMPARE | {
    "data.train": "glyph_domains/sans", "data.ood": ("glyph_domains/serif",),
  },
  "pruning": COMPARE | {
    **one_epoch("pruned"), "pruned.blocks": ("block3/unit1",),
  },
  "head2toe": COMPARE | one_epoch("lora") | {
    "head2toe.strengths": (0.3,), "head2toe.fractions": (0.1,), "head2toe.target_size": 64,
    "head2toe.l2": (0.1,),
  },
  "reinit": COMPARE | {**one_epoch("fresh_blocks"), "fresh_blocks.blocks": ("block3/unit1",)},
  "robustness": COMPARE | {"robustness.num_alphas": 2},
  "shift": NETWORK | SETS | SHORT | {"data.shift": ""},
}  # fmt: skip
NEEDS_DATA = {"vtab"}  # named data sets only: test_configs_vtab.py


def test_every_config_is_tested():
  assert {path.stem for path in config_files.CONFIGS} == set(OVERRIDES) | NEEDS_DATA


# By a part of a documented command's argument: settings over its own.
FURTHER = {
  "+l2_sp+ema": one_epoch("l2_sp", "ema"),
  "+gradual_unfreezing": {
    **one_epoch("ft", "lp_ft", "l2_sp", "layerwise_decay", "gradual_unfreezing"),
    "gradual_unfreezing.groups": ("block3/unit2", "block3/unit1"), "robustness.probe_steps": (1,),
  },
  "study=main": {"subtuning.units": "stages"},  # the command names another network's blocks
  "study=sweep": {
    "methods": ("ft",), "sweep.learning_rates": (1e-2,), "sweep.weight_decays": (0.0,),
  },
}  # fmt: skip
DOWNLOADED = ("vtab", "shift", "cifar10", "fashion_mnist")  # data that a test cannot count on


def arguments_of(config: str, argument: str, fields: dict) -> list[str]:
  config = f"--config={config}" + (f":{argument}" if argument else "")
  return [config, *(f"--config.{field}={value}" for field, value in fields.items())]


def check_report(done, workdir: pathlib.Path):
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  assert "tensorflow" not in done.stderr.lower()
  record = json.loads((workdir / "results.json").read_text())
  assert record["title"]
  assert str(workdir / "report.html") in done.stdout
  assert (workdir / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERRIDES)
def test_a_config_runs(name, tmp_path):
  arguments = arguments_of(f"configs/{name}.py", "", OVERRIDES[name])
  done = command.run(*arguments, f"--workdir={tmp_path / 'run'}", timeout=None)
  check_report(done, tmp_path / "run")


def variations(downloaded: bool):
  """The documented commands that are more than a config's name."""
  for each in documented.commands():
    text = f"{each.config} {each.argument} {each.fields}"
    if (each.argument or each.fields) and downloaded == any(d in text for d in DOWNLOADED):
      yield pytest.param(each, id=str(each))


@pytest.mark.slow
@pytest.mark.parametrize("documented_command", variations(downloaded=False))
def test_a_documented_command_runs(documented_command, tmp_path):
  """With the settings of its config's test where it has none of its own."""
  config, argument, fields = documented_command[1:]
  small = OVERRIDES[pathlib.PurePath(config).stem]
  if "dataset=" in argument or "train=" in argument:
    small = {k: v for k, v in small.items() if k not in SETS}
  fields = small | fields
  for text, further in FURTHER.items():
    fields |= further if text in argument else {}
  for name in ("images", "photos", "sketches"):
    if f"/path/to/{name}" in argument:
      argument = argument.replace(f"/path/to/{name}", str(images(tmp_path / name)))
  arguments = arguments_of(config, argument, fields)
  done = command.run(*arguments, f"--workdir={tmp_path / 'run'}", timeout=None)
  check_report(done, tmp_path / "run")


@pytest.mark.parametrize("documented_command", variations(downloaded=True))
def test_a_documented_command_asks_for_its_data(documented_command, tmp_path):
  config, argument, fields = documented_command[1:]
  if config != "configs/vtab.py":
    fields = {"backbone.weights": "random", "backbone.preprocessing": "half"} | fields
  arguments = arguments_of(config, argument, fields)
  done = command.run_forked(
    *arguments, f"--workdir={tmp_path / 'run'}", TFDS_DATA_DIR=str(tmp_path / "tfds")
  )
  assert done.returncode == 2, done.stderr
  assert "python -m subtune_jax.data.prepare" in done.stderr
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())


def images(folder: pathlib.Path) -> pathlib.Path:
  """Twelve images of each of two classes, in a folder each."""
  rng = np.random.default_rng(0)
  for name, level in (("dark", 60), ("light", 180)):
    (folder / name).mkdir(parents=True)
    for i in range(12):
      pixels = rng.integers(level - 50, level + 50, (20, 20, 3))
      Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
  return folder
