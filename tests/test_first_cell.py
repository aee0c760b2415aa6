"""The notebooks' first cell: on a runtime with a GPU, whatever jax it has, and without one."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests import first_cell_wheels

ROOT = pathlib.Path(__file__).parents[1]
CELL = (ROOT / "colabs/first_cell.py").read_text()
GPU_JAX = ("jax[cuda13]==0.10.1",)  # older than the newest one


@pytest.mark.parametrize("path", sorted((ROOT / "colabs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_notebook_has_it(path):
  cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
  own = ["".join(cell["source"]) for cell in cells]
  assert own.count(CELL.rstrip("\n")) == 1
  first_import = next(i for i, text in enumerate(own) if "import " in text)
  assert own[first_import] == CELL.rstrip("\n")


def test_the_library_brings_no_tensorflow_and_its_extras_name_what_jax_has():
  def names(extra):
    return (ROOT / f"requirements{extra}.txt").read_text()

  assert "tensorflow-cpu" not in names("")
  assert "tensorflow-cpu" in names("-tfds")
  user = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "clu")
  base = [line.split(">")[0] for line in names("").splitlines()]
  assert set(user) <= set(base)
  for extra, own in {"cuda": "cuda13", "cuda12": "cuda12", "tpu": "tpu"}.items():
    assert f"jax[{own}]" in names(f"-{extra}")


class Runtime:
  """A fresh virtual environment that installs from an index of a few wheels."""

  def __init__(self, folder, preinstalled=(), driver="580.65", **variables):
    self.folder = folder
    first_cell_wheels.index(folder / "index")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    self.python = str(folder / "env/bin/python")
    (folder / "bin").mkdir()
    if driver:
      smi = folder / "bin/nvidia-smi"
      smi.write_text(f"#!/bin/sh\necho {driver}\n")
      smi.chmod(0o755)
    self.variables = {
      "PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder), "PIP_NO_INDEX": "1",
      "PIP_FIND_LINKS": str(folder / "index"), "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables,
    }  # fmt: skip
    if preinstalled:
      self.call("-m", "pip", "install", "-q", *preinstalled, check=True)

  def call(self, *arguments, check=False):
    return subprocess.run(
      [self.python, *arguments], env=self.variables, cwd=self.folder, capture_output=True,
      text=True, check=check,
    )  # fmt: skip

  def run_cell(self):
    code = CELL.replace('PROJECT = ".."', 'PROJECT = "subtune-jax"').rstrip().rsplit("\n", 1)
    return self.call("-c", f"{code[0]}\nprint(*{code[1]})")

  def versions(self):
    listed = self.call("-m", "pip", "list", "--format=json", check=True)
    return {one["name"].replace("_", "-"): one["version"] for one in json.loads(listed.stdout)}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("preinstalled", "driver", "devices", "jax", "plugin"),
  [
    ((), "580.65", "gpu", "0.10.2", "cuda13"),
    ((), "550.54", "gpu", "0.10.2", "cuda12"),
    (("jax==0.10.1",), "580.65", "gpu", "0.10.1", "cuda13"),
    ((*GPU_JAX, "tensorflow"), "580.65", "gpu", "0.10.1", "cuda13"),
    ((), "", "cpu", "0.10.2", None),
  ],
  ids=["no jax", "an older driver", "a jax for cpu", "a jax that works", "no accelerator"],
)
def test_a_runtime_gets_what_it_lacks(tmp_path, preinstalled, driver, devices, jax, plugin):
  runtime = Runtime(tmp_path, preinstalled, driver)
  before = runtime.versions()
  done = runtime.run_cell()
  assert (done.stdout.strip(), done.stderr) == (devices, "")
  after = runtime.versions()
  assert after["subtune-jax"] == "0.1.0"
  assert (after["jax"], after["jaxlib"]) == (jax, jax)
  assert {name for name in after if "plugin" in name} == (
    {f"jax-{plugin}-plugin"} if plugin else set()
  )
  assert before.items() <= after.items()
  again = runtime.run_cell()
  assert again.stdout == done.stdout
  assert runtime.versions() == after


@pytest.mark.slow
def test_an_accelerator_that_jax_does_not_use_is_one_sentence(tmp_path):
  done = Runtime(tmp_path, BROKEN_DRIVER="1").run_cell()
  assert done.returncode == 1
  assert done.stderr.startswith("An accelerator is attached (cuda), and jax does not use it: ")
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_working_jax_that_is_too_old_stays(tmp_path):
  runtime = Runtime(tmp_path, ("jax[cuda13]==0.9.0",))
  before = runtime.versions()
  done = runtime.run_cell()
  assert done.returncode == 1
  assert done.stderr.startswith("The library could not be installed beside jax==0.9.0 and jaxlib==")
  assert len(done.stderr.splitlines()) == 1
  assert runtime.versions() == before
