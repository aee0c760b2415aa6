"""Rooms import in one direction, and nothing heavy is imported by accident."""

import ast
import pathlib
import subprocess
import sys

import pytest

import subtune_jax

PACKAGE = pathlib.Path(subtune_jax.__file__).parent
# A room may import rooms of lower rank, and itself.
RANK = {
  "masks": 0, "verify": 0, "strict_json": 0, "data": 0, "calibration": 0, "hooks": 1, "models": 1,
  "calibrate": 1, "methods": 2, "weights": 2, "training": 3, "zoo": 3, "report": 3, "search": 4,
  "robustness": 4, "experiments": 5, "command_line": 6, "main": 7,
}  # fmt: skip
LONELY = ("masks", "data", "calibration")  # import none of the others
HEAVY = (
  "tensorflow",
  "tensorflow_datasets",
  "clu",
  "matplotlib",
  "ml_collections",
  "torch",
  "tqdm",
)


def room(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: pathlib.Path):
  """Rooms that a file imports, also inside functions."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("subtune_jax"):
      names = (
        [node.module]
        if node.module != "subtune_jax"
        else [f"subtune_jax.{alias.name}" for alias in node.names]
      )
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names if alias.name.startswith("subtune_jax.")]
    yield from (name.split(".")[1] for name in names)


@pytest.mark.parametrize(
  "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_one_way(path):
  own = room(path)
  if path == PACKAGE / "models" / "__main__.py":
    own = "main"  # a command, which nothing imports
  if own == "__init__":
    assert not list(imports(path))
    return
  for other in set(imports(path)) - {own}:
    assert RANK[other] < RANK[own] or {own, other} == {"masks", "verify"}, f"{path} imports {other}"
    assert own not in LONELY or {own, other} == {"masks", "verify"}, f"{path} imports {other}"


def loaded_after(code: str) -> set[str]:
  """Top-level modules in a fresh interpreter after `code`."""
  script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
  return set(done.stdout.split())


@pytest.mark.parametrize(
  "code",
  [
    "import subtune_jax, subtune_jax.masks, subtune_jax.methods",
    "from subtune_jax import data, models, weights; from subtune_jax.training import loop, export",
    "from subtune_jax.report import html, records, table",
  ],
)
def test_nothing_heavy_is_imported(code):
  assert not loaded_after(code) & set(HEAVY)


def test_a_training_runs_without_tensorflow_clu_and_ml_collections():
  script = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "clu", "ml_collections", "matplotlib", "torch"):
  sys.modules[name] = None  # an import of it raises
from subtune_jax import data, methods, models, weights
from subtune_jax.training import loop
train = data.load("emoji_domains/noto", "train", 32).subset(range(64))
model = models.create("efficientnet_lite0", num_classes=len(train.class_names))
pretrained = weights.load_pretrained("efficientnet_lite0/imagenet", model)
engine = loop.Engine(model, pretrained.preprocessing, batch_size=32)
method = methods.sub_tuning(("top",), 1e-3, epochs=2)
result = loop.fit(engine, pretrained.variables, method, train, train)
assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
print("trained")
"""
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
  assert done.stdout.strip() == "trained", done.stderr
