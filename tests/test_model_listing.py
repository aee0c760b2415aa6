"""The table of models: figures, form, start-up and errors."""

import io
import itertools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from subtune_jax import masks, model_listing, models, weights
from subtune_jax.models import flops

_FEW = ("efficientnet_lite0", "resnet18")


def _written(*arguments: str) -> str:
  out = io.StringIO()
  assert model_listing.main(arguments, out) == 0
  return out.getvalue()


def test_a_row_holds_the_known_figures():
  row = model_listing.row("resnet18")
  assert row[:4] == ("resnet18", 9, 11_689_512, 224)
  assert row.gflops == pytest.approx(3.63, rel=2e-3)  # 1.81 G multiply-adds
  assert row.weights == ("torchvision-v1",)


def test_the_text_table_is_aligned_and_says_what_a_flop_is():
  titles, *rows, blank, note = _written(*_FEW).splitlines()
  assert titles.split() == ["model", "blocks", "parameters", "pixels", "GFLOPs", "weights"]
  assert [r.split()[0] for r in rows] == list(_FEW)
  assert rows[0].split() == ["efficientnet_lite0", "18", "4,652,008", "224", "0.77", "imagenet"]
  for title in ("blocks", "parameters", "pixels", "GFLOPs"):
    end = titles.index(title) + len(title)
    assert all(r[end - 1].isdigit() and r[end : end + 2] == "  " for r in rows)
  assert all(r.index(r.split()[-1]) == titles.index("weights") for r in rows)
  assert blank == ""
  assert "2 x multiply-adds" in note


def test_the_markdown_table_has_the_same_cells():
  titles, rule, *rows, _, note = _written("--markdown", *_FEW).splitlines()
  cells = [[c.strip() for c in line.strip("|").split("|")] for line in (titles, rule, *rows)]
  assert {len(c) for c in cells} == {6}
  assert set("".join(cells[1])) == {"-", ":"}
  assert [c[:5] for c in cells[2:]] == [r.split()[:5] for r in _written(*_FEW).splitlines()[1:3]]
  assert "2 x multiply-adds" in note


def test_the_blocks_of_a_model_have_parameters_and_the_share_before():
  name = "resnet18"
  model = models.create(name, model_listing.NUM_CLASSES)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  rows = model_listing.block_rows(name)
  assert [r.name for r in rows] == [*model.block_names, "head"]
  assert rows[3].parameters == masks.count_params(params["block2"]["unit1"])
  macs = flops.count_macs(model)
  assert (rows[0].before, rows[1].before) == (0, macs["stem"] / sum(macs.values()))
  assert all(a.before <= b.before <= 1 for a, b in itertools.pairwise(rows))
  titles, first, *_, head = _written("--blocks", name).splitlines()
  assert first.split() == ["stem", "9,536", "0.0", "%"]
  assert head.split() == ["head", "513,000", "100.0", "%"]
  assert len(titles) == len(first) == len(head)
  assert _written("--blocks", name, "--markdown").startswith("| block | parameters |")


@pytest.mark.parametrize("arguments", [["resnet1"], ["--blocks", "resnet1"]])
def test_an_unknown_model_is_one_line_and_exit_code_2(arguments, capsys):
  assert model_listing.main(arguments) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.startswith("error: ")
  assert "'resnet1'" in err
  assert "'resnet18'" in err
  assert err.count("\n") == 1


def test_rows_appear_as_they_are_counted(monkeypatch):
  counted = []
  row = model_listing.row
  monkeypatch.setattr(model_listing, "row", lambda name: (counted.append(name), row(name))[1])
  lines = model_listing.table(_FEW)
  next(lines)
  assert counted == []
  next(lines)
  assert counted == [_FEW[0]]


def test_every_known_weight_has_its_model():
  assert {name.partition("/")[0] for name in weights.names()} <= set(models.names())


@pytest.mark.slow
def test_every_model_has_a_row_and_every_known_weight_a_place_in_it():
  cells = [line.replace(",", "").split() for line in model_listing.table()][1:-1]
  assert [c[0] for c in cells] == list(models.names())
  assert {f"{c[0]}/{which}" for c in cells for which in c[5:]} == set(weights.names())


def test_the_command_starts_without_tensorflow_and_torch():
  script = """
import runpy, sys
for name in ("tensorflow", "tensorflow_datasets", "clu", "ml_collections", "matplotlib", "torch"):
  sys.modules[name] = None  # an import of it raises
sys.argv = ["models", "resnet18"]
runpy.run_module("subtune_jax.models", run_name="__main__", alter_sys=True)
"""
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "11,689,512" in done.stdout


@pytest.mark.slow
def test_the_readmes_table_is_the_commands():
  readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
  rows = [line for line in _written("--markdown").splitlines() if line.startswith("| ")]
  assert len(rows) > 30
  assert all(row in readme for row in rows)
