"""The README's code runs, and its test command is what CI runs."""

import pathlib
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import calibration

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_masks_in_your_own_code(capsys):
  names = ("block1", "block14", "block15", "head")
  space = {
    "jax": jax,
    "params": {name: {"kernel": jnp.ones((3, 3))} for name in names},
    "batch": jnp.ones((2, 3)),
    "loss": lambda p, x: jnp.sum(x @ p["block1"]["kernel"] @ p["block14"]["kernel"]
                                 @ p["block15"]["kernel"] @ p["head"]["kernel"]),
  }  # fmt: skip
  exec(BLOCKS[0], space)
  assert "27 of 36 parameters are trained" in capsys.readouterr().out
  assert len(jax.tree.leaves(space["grads"])) == 3
  moments = [x for x in jax.tree.leaves(space["opt_state"]) if x.ndim]
  assert sum(x.size for x in moments) == 2 * 27


def test_training_in_python():
  space = {}
  exec(BLOCKS[1].replace("epochs=8", "epochs=1").replace(", 64)", ", 32)"), space)
  assert space["result"].history[-1]["validation_accuracy"] > 0


def test_every_function_of_calibration_on_a_plain_flax_model():
  (block,) = [block for block in BLOCKS if "from subtune_jax import calibration" in block]
  space = {}
  exec(block, space)
  functions = {n for n in calibration.__all__ if n[0].islower()}
  assert {name for name in functions if f"calibration.{name}" not in block} == set()
  assert float(space["area"]) == pytest.approx(float(space["curve"].ausuc()))
  assert float(space["star"]) == pytest.approx(float(space["curve"].best_gamma()))
  plain, cooler = (calibration.nll(space[k], space["labels"]) for k in ("logits", "cooler"))
  assert float(cooler) < float(plain)
  for name in ("gamma", "matrix", "by_means", "scaled", "margins"):
    assert np.all(np.isfinite(space[name])), name


def test_files_that_the_readme_names_exist():
  names = re.findall(r"`((?:configs|benchmarks|subtune_jax|colabs)/[\w./]*)`", README)
  names += re.findall(r"--config=(configs/\w+\.py)", README)
  names += re.findall(r"\]\(([^):#]+)\)", README)
  assert len(names) > 5
  missing = [name for name in names if not (ROOT / name).exists()]
  assert not missing


def test_ci_runs_the_test_command():
  script = (ROOT / ".ci/run").read_text()
  pattern = re.search(r"grep -E '([^']*)' README\.md", script).group(1)
  found = subprocess.run(
    ["grep", "-E", pattern, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.strip()
  assert found.count("\n") == 0
  assert found.endswith("-m pytest -q -n 2")
