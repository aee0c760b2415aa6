"""The documentation's commands name what exists, its links lead somewhere, its Python runs."""

import importlib.util
import pathlib
import re
import shlex

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = [*PAGES, *sorted((ROOT / "configs").glob("*.py"))]
MAIN = re.compile(r"python -m subtune_jax\.main((?:\\\n|[^\n#`])*)")


def commands():
  for path in FILES:
    for found in MAIN.finditer(path.read_text()):
      text = re.sub(r"\\\n\s*", "", found.group(1))
      if "--config=" in text:
        yield pytest.param(text.strip(), id=f"{path.name}:{text.strip()[:60]}")


@pytest.mark.parametrize("text", commands())
def test_a_command_names_a_config_its_arguments_and_its_fields(text):
  options = dict(part.split("=", 1) for part in shlex.split(text) if part.startswith("--"))
  name, _, argument = options.pop("--config").partition(":")
  path = ROOT / name
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(argument) if argument else module.get_config()
  options.pop("--workdir", None)
  for option in options:
    node = config
    for part in option.removeprefix("--config.").split("."):
      assert part in node, f"{option} is no field of {name}"
      node = node[part]


def test_there_are_commands_to_test():
  assert len(list(commands())) > 30


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_inside_lead_to_files(path):
  targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
  inside = [target for target in targets if "://" not in target]
  assert [target for target in inside if not (path.parent / target).exists()] == []


def python_blocks(name):
  return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)


def test_robustness_in_python(capsys):
  (block,) = python_blocks("robustness.md")
  exec(block, {})
  assert "{0: 1}" in capsys.readouterr().out


@pytest.mark.slow
def test_search_in_python(tmp_path, monkeypatch, capsys):
  """At 32 px and with less training, as the time of a test allows."""
  monkeypatch.chdir(tmp_path)
  (block,) = python_blocks("search.md")
  smaller = {
    '"train", 64)': '"train", 32)',
    "image_size=64": "image_size=32",
    "epochs=4": "epochs=1",
    ", 5, seed": ", 2, seed",
    "early: block1 block2; middle: block8 block9; late: block14 block15": "late: block15; end: top",
  }
  for old, new in smaller.items():
    assert old in block
    block = block.replace(old, new)
  exec(block, {})
  assert "best" in capsys.readouterr().out


def test_calibration_in_python():
  (block, *_) = python_blocks("calibration.md")
  rng = np.random.default_rng(0)

  class Model:
    def apply(self, variables, x):
      return x @ variables

  space = {
    "model": Model(), "variables": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
    "train_images": rng.normal(size=(30, 5)).astype(np.float32),
    "train_labels": np.arange(30) % 2, "test_images": rng.normal(size=(40, 5)).astype(np.float32),
    "test_labels": np.arange(40) % 4, "absent": np.array([False, False, True, True]),
  }  # fmt: skip
  exec(block, space)
  assert np.isfinite(space["gamma"])
