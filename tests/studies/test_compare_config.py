"""Configs: every field is read, every method is built from them, arguments are checked."""

import ast

import pytest

from subtune_jax import files, methods
from subtune_jax.runner import executors, recipes, workdir
from subtune_jax.studies.active_learning import config as active_learning
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.corruption import config as corruption
from subtune_jax.studies.dataset_size import config as dataset_size
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.robustness import config as robustness_config
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.sequence import config as sequence_config
from subtune_jax.studies.vtab import config as vtab_config
from tests import config_files

ROOT = config_files.ROOT
BLOCKS = ("stem", "block0", "top")

DECLARED = {
  "compare": compare_config, "vtab": vtab_config, "search": search_config,
  "dataset_size": dataset_size, "corruption": corruption, "robustness": robustness_config,
  "holistic_transfer": holistic_config, "sequence": sequence_config,
  "active_learning": active_learning,
}  # fmt: skip


def fields(config) -> set[str]:
  return {name.split(".")[-1] for name in files.flatten(workdir.as_json(config))}


def names_read() -> set[str]:
  """Attributes and string keys that the package's code uses, but for the declarations."""
  found = set()
  for path in (ROOT / "subtune_jax").rglob("*.py"):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef) and node.name in ("default", "_gradient"):
        node.body = []
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        found.add(node.attr)
      elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        found.add(node.slice.value)
  return found


def test_every_declared_field_is_read():
  read = names_read()
  for declared in DECLARED.values():
    assert not fields(declared.default()) - read


@pytest.mark.parametrize("name", recipes.offered())
def test_every_method_is_built_from_its_fields(name):
  config = compare_config.default()
  config.optimizer.weight_decay = 0.25
  if name != "lp":
    config[name].epochs = 3
    config[name].head_factor = 10.0
    config[name].norm_mode = "running"
  method = recipes.make_method(config, name, 1e-4, BLOCKS)
  for stage in method:
    if isinstance(stage.solver, methods.LBFGS):
      assert stage.solver.l2 == tuple(config.lp.l2)
      continue
    assert stage.solver.epochs == 3
    assert stage.solver.weight_decay == 0.25
    assert stage.norm_mode == "running"
    assert stage.solver.learning_rates["head"] == pytest.approx(1e-3)
    assert stage.solver.learning_rates.get("tuned", 1e-4) == 1e-4
  assert len(method) == {"lp_ft": 2, "gradual_unfreezing": 3}.get(name, 1)


def test_fields_of_the_relatives_of_fine_tuning():
  config = compare_config.default()
  config.l2_sp.weight, config.l2_sp.head_weight, config.ema.decay = 0.5, 0.25, 0.75
  config.layerwise_decay.decay, config.frozen_embedding.blocks = 0.5, ("stem", "block0")
  made = {
    name: recipes.make_method(config, name, 1.0, BLOCKS)[0]
    for name in ("l2_sp", "ema", "layerwise_decay", "frozen_embedding", "bias_only")
  }
  assert made["l2_sp"].penalty == methods.L2SP(0.5, 0.25)
  assert made["ema"].average == methods.EMA(0.75)
  rates = {"head": 1.0, "top": 0.5, "block0": 0.25, "stem": 0.125}
  assert made["layerwise_decay"].solver.learning_rates == rates
  assert made["frozen_embedding"].rules["tuned"] == methods.Outside(("stem", "block0"))
  assert made["bias_only"].rules["tuned"] is methods.biases


def test_fields_of_the_automatic_rates():
  config = compare_config.default()
  for name in ("auto_rgn", "auto_snr"):
    config[name].num_batches = 0
    config[name].probe_first = True
  made = [recipes.make_method(config, name, 1e-3, BLOCKS) for name in ("auto_rgn", "auto_snr")]
  assert [isinstance(method[0].solver, methods.LBFGS) for method in made] == [True, True]
  assert [method[1].solver.rates for method in made] == [
    methods.TensorRates("rgn", None), methods.TensorRates("snr", None, 0.05)
  ]  # fmt: skip
  config.auto_snr.released = True
  (_, stage) = recipes.make_method(config, "auto_snr", 1e-3, BLOCKS)
  assert stage.solver.rates == methods.TensorRates("snr_released", None, 0.95)
  config.auto_snr.threshold = 0.5
  (_, stage) = recipes.make_method(config, "auto_snr", 1e-3, BLOCKS)
  assert stage.solver.rates.threshold == 0.5


@pytest.mark.parametrize("path", config_files.CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_loads_and_shows_its_command(path):
  module = config_files.module(path)
  config = module.get_config()
  assert f"--config=configs/{path.name}" in module.__doc__
  declared = DECLARED[config.experiment].default()
  assert set(files.flatten(workdir.as_json(config))) == set(
    files.flatten(workdir.as_json(declared))
  )
  own = holistic_config if config.experiment == "holistic_transfer" else recipes
  for name in config.methods:
    for rate in own.learning_rates(config, name):
      own.make_method(config, name, rate, BLOCKS)


def test_finetune_arguments():
  module = config_files.module("configs/finetune.py")
  config = module.get_config("method=subtuning,dataset=emoji_domains/fluent,blocks=block3+top")
  assert config.methods == ("subtuning",)
  assert config.data.train == "emoji_domains/fluent"
  assert set(config.data.ood) == {f"emoji_domains/{x}" for x in ("noto", "twemoji", "openmoji")}
  assert config.subtuning.blocks == ("block3", "top")
  assert config.subtuning.learning_rates == methods.DECLARED["subtuning"].grid
  for argument, message in (
    ("method", "not of the form key=value"),
    ("method=ft,method=lp", "is given twice"),
    ("epochs=0", "give a positive integer"),
    ("colour=red", "is unknown"),
  ):
    with pytest.raises(ValueError, match=message):
      module.get_config(argument)


def test_my_data_arguments():
  module = config_files.module("configs/my_data.py")
  config = module.get_config(
    "train=folder:/my photos: a+b,ood=folder:/c+fog/3+folder:/d e+emoji_domains/noto,seeds=2,"
    "epochs=3"
  )
  assert config.data.train == "folder:/my photos: a+b"
  assert config.data.ood == ("folder:/c+fog/3", "folder:/d e", "emoji_domains/noto")
  assert (config.seeds, config.name) == ((0, 1), "my_data-my-photos-a-b")
  assert {config[name].epochs for name in ("ft", "lp_ft", "subtuning", "search")} == {3}
  final = search_config.final_config(config, ("top",))
  assert final.subtuning.learning_rates == (1e-4, 1e-3, 1e-2)  # as the other methods
  config.search.final_grid = False
  assert search_config.final_config(config, ("top",)).subtuning.learning_rates == (1e-3,)
  with pytest.raises(ValueError, match=r"'b' is not of the form key=value.*--config\.data\.train="):
    module.get_config("train=folder:/a,b")


@pytest.mark.parametrize("rates", [(), (1e-3, 1e-4), (1e-3, 1e-3)])
def test_a_grid_rises(rates):
  config = compare_config.default()
  config.ft.learning_rates = rates
  with pytest.raises(ValueError, match=r"ft\.learning_rates is"):
    recipes.learning_rates(config, "ft")


def test_a_workdir_belongs_to_one_config(tmp_path):
  config = compare_config.default()
  path, entered = workdir.enter(tmp_path / "run", config)
  assert not entered
  config.resume = "last_good"  # changes how a run goes on, not what it computes
  config.title = "Another head of the page"
  assert workdir.enter(path, config) == (path, True)
  config.ft.epochs += 1
  with pytest.raises(ValueError, match=r"ft\.epochs: 8 -> 9"):
    workdir.enter(path, config)
  (tmp_path / "other").mkdir()
  (tmp_path / "other/thesis.tex").touch()
  with pytest.raises(ValueError, match=r"thesis\.tex but no config\.json"):
    workdir.enter(tmp_path / "other", config)


def test_a_run_of_before_a_method_was_there_goes_on(tmp_path):
  config = compare_config.default()
  path, _ = workdir.enter(tmp_path, config)
  old = workdir.as_json(config)
  del old["fresh_blocks"], old["lora"]["probe_first"]
  workdir.write_json(path / "config.json", old)
  assert workdir.enter(path, config) == (path, True)
  config.methods = (*config.methods, "fresh_blocks")
  with pytest.raises(ValueError, match="methods: "):
    workdir.enter(path, config)


def test_a_start_killed_while_it_wrote_the_config_does_not_block_the_next(tmp_path):
  (tmp_path / ".config.json.4242.tmp").write_text("{")
  path, entered = workdir.enter(tmp_path, compare_config.default())
  assert not entered
  assert sorted(p.name for p in path.iterdir()) == ["config.json"]


def test_a_workdir_goes_on_with_other_fields_of_how_it_computes():
  old = {"seeds": [0]}
  free = {"trace_steps": 3, "backbone": {"remat": "all"}, "optimizer": {"accumulate": 1}}
  assert not workdir.differences(old, old | free)
  changed = workdir.differences(old, old | {"optimizer": {"accumulate": 2}})
  assert changed == ["optimizer.accumulate: 1 -> 2"]


@pytest.mark.parametrize(("fields", "message"), [
  ({"trace_steps": -1}, "trace_steps is -1; give 0"),
  ({"trace_steps": 2, "workers": "ray"}, "run on other machines"),
])  # fmt: skip
def test_bad_fields_of_the_steps_are_one_error(fields, message, monkeypatch):
  monkeypatch.setattr(executors, "check", lambda config, **_: None)  # ray need not be installed
  for default, check in (
    (compare_config.default, recipes.check_run), (search_config.default, search_config.check),
  ):  # fmt: skip
    config = default()
    config.update(fields)
    with pytest.raises(ValueError, match=message):
      check(config)
