"""Rooms import in one direction, and nothing heavy is imported by accident."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

import subtune_jax

PACKAGE = pathlib.Path(subtune_jax.__file__).parent
# A room may import rooms of lower rank, and itself.
RANK = {
  "statistics": -1, "nearest": -1, "acquisition": -1, "processes": -1,
  "masks": 0, "adapters": 0.5, "strict_json": 0, "console": 0,
  "files": 1, "data": 0, "calibration": 0, "models": 1,
  "calibrate": 1, "workers": 0,
  "report": 2, "methods": 2, "pruning": 1.5, "weights": 2,
  "peft_files": 3, "training": 3, "model_listing": 3,
  "search": 4, "robustness": 4, "deploy": 4, "multitask": 5, "runner": 5, "studies": 6,
  "command_line": 7,
  "main": 8, "data_listing": 8, "predict": 8, "label": 8, "export": 8, "save_model": 8, "merge": 8,
  "serving": 6, "report_again": 8,
  "serve": 8, "cli": 9,
}  # fmt: skip
LONELY = ("statistics", "nearest", "masks", "adapters", "data", "calibration")
# Of others they import none but "statistics" and "nearest", or these:
LEAVES = {"masks": ("statistics",), "adapters": ("masks",)}
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
    assert RANK[other] < RANK[own], f"{path} imports {other}"
    leaves = LEAVES.get(own, ("statistics", "nearest"))
    assert own not in LONELY or other in leaves, f"{path} imports {other}"


def module(path: pathlib.Path) -> str:
  parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_file_imports_itself_in_a_circle():
  """Files, not rooms; an import inside a function counts. Raises CycleError with the circle."""
  files = {module(path): path for path in PACKAGE.rglob("*.py")}
  imported = {name: set() for name in files}
  for name, path in files.items():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module in files:
        whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        imported[name] |= {full if full in files else node.module for full in whole.values()}
      elif isinstance(node, ast.Import):
        imported[name] |= {alias.name for alias in node.names if alias.name in files}
  assert "subtune_jax.masks.tree" in imported["subtune_jax.masks"]
  assert len(list(graphlib.TopologicalSorter(imported).static_order())) == len(files)


@pytest.mark.parametrize("folder", ["masks", "adapters"])
def test_folders_for_other_code_need_no_more_than_jax_flax_optax_and_numpy(folder):
  roots = set()
  for path in (PACKAGE / folder).rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        roots |= {alias.name.split(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        roots.add(node.module.split(".")[0])
  assert roots - sys.stdlib_module_names <= {"jax", "flax", "optax", "numpy", "subtune_jax"}


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
    "from subtune_jax.studies.search import page, record",
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


@pytest.mark.parametrize("study", sorted(p.parent.name for p in PACKAGE.glob("studies/*/page.py")))
def test_a_page_is_made_from_records_never_from_a_live_room(study):
  code = f"from subtune_jax.studies.{study} import page"
  script = f"import sys\n{code}\nprint(*sorted(sys.modules))"
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
  loaded = set(done.stdout.split())
  assert not {"jax", "matplotlib"} & loaded
  rooms = {name.split(".")[1] for name in loaded if name.startswith("subtune_jax.")}
  known = {"files", "nearest", "processes", "report", "statistics", "strict_json", "studies"}
  assert rooms <= known
  assert not {name for name in loaded if name.startswith("subtune_jax") and name.endswith(".run")}
