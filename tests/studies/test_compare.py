"""Methods that change the network, in a comparison end to end on a small one."""

import dataclasses
import io

import numpy as np
import pytest

from subtune_jax import models, multitask, weights
from subtune_jax.deploy import folder
from subtune_jax.models import adapted, beside, side
from subtune_jax.runner import examples, network
from subtune_jax.studies.compare import best
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.robustness import config as robustness_config
from subtune_jax.studies.search import config as search_config
from subtune_jax.training import export

SMALL = "stage_sizes=(1,1,1),width=8"


def make_config():
  config = compare_config.default()
  config.methods, config.seeds, config.batch_size = ("lp", "side_tuning"), (0,), 32
  config.data.ood, config.data.image_size, config.data.num_train = (), 16, 64
  config.backbone.update(name="resnet14", weights="random", preprocessing="half", options=SMALL)
  config.lp.l2, config.side_tuning.epochs, config.tensorboard = (0.1,), 1, False
  return config


@pytest.mark.slow
def test_side_tuning_is_a_method_of_a_comparison(tmp_path):
  config = make_config()
  stream = io.StringIO()
  record = compare.run(config, tmp_path / "run", stream=stream)
  lp, tuned = record["methods"]
  assert tuned["title"] == "Side-tuning"
  # The copy and the head are trained; no block of the backbone itself.
  assert tuned["stages"][0]["blocks"] == ["head"]
  backbone = sum(record["backbone"]["block_params"].values())
  assert tuned["trained_params"] == backbone + lp["trained_params"]
  assert "Side-tuning" in stream.getvalue()
  run = compare_record.load(tmp_path / "run")
  (chosen,) = run.chosen("side_tuning")
  # The exported task is that copy: put back, it gives the logits of the run.
  model = models.create(
    "resnet14", len(record["data"]["class_names"]), image_size=16, stage_sizes=(1, 1, 1), width=8
  )
  pretrained = weights.random_weights(model, preprocessing="half")
  both, variables = side.wrap(model, pretrained.variables)
  restored, _ = export.load_task(tmp_path / "run" / "tasks" / chosen["key"], variables)
  (test,), _ = examples.load_tests(config, tuple(record["data"]["class_names"]))
  engine, _ = network.load_network(config, len(record["data"]["class_names"]))
  own, _ = network.prepared("side_tuning", config, engine, pretrained)
  assert own.model == both
  stored = np.load(tmp_path / "run" / chosen["test"][test.name]["logits"])["logits"]
  np.testing.assert_array_equal(own.predict(restored, test.images), stored)


@pytest.mark.slow
def test_subtuning_beside_the_frozen_network_is_kept_as_it_ran(tmp_path):
  config = make_config()
  config.methods, config.data.retrain, config.save_model = ("lp", "subtuning"), True, True
  config.subtuning.update(
    blocks=("block2/unit1",), probe_first=True, epochs=1, beside_frozen=True
  )  # fmt: skip
  record = compare.run(config, tmp_path / "run", stream=io.StringIO())
  lp, tuned = record["methods"]
  stage = tuned["stages"][-1]
  assert stage["blocks"] == ["block2/unit1", "head"]
  run = compare_record.load(tmp_path / "run")
  engine, pretrained = network.load_network(config, len(record["data"]["class_names"]))
  classes = len(record["data"]["class_names"])
  head = (2 * 32 + 1) * classes  # of twice the features
  assert stage["trained_params"] - head == record["backbone"]["block_params"]["block2/unit1"]
  assert tuned["stages"][0]["trained_params"] == head
  assert lp["trained_params"] == (32 + 1) * classes
  # The kept network gives the logits of the run, and so does the task beside a plain one.
  path = best.write(run, best.choose(run.record, "subtuning"), config, engine, pretrained,
                    tmp_path / "kept")  # fmt: skip
  loaded = folder.load(path)
  assert isinstance(loaded.model, beside.BesideFrozen)
  (test,), _ = examples.load_tests(config, tuple(record["data"]["class_names"]))
  (own,) = run.chosen("subtuning")
  stored = np.load(tmp_path / "run" / own["test"][test.name]["logits"])["logits"]
  again = dataclasses.replace(engine, model=loaded.model)
  np.testing.assert_array_equal(again.predict(loaded.variables, test.images), stored)
  (probe,) = run.chosen("lp")
  backbone = multitask.Backbone(
    engine.model, pretrained.variables, pretrained.preprocessing, config.data.interpolation
  )
  tasks = {name: tmp_path / "run" / "tasks" / row["key"]
           for name, row in (("beside", own), ("probe", probe))}  # fmt: skip
  both = multitask.MultiTask({"kept": path, **tasks}, backbone)
  assert [len(nodes) for nodes in both.plan.levels().values()] == [1, 1, 2, 2, 3]
  for name in ("kept", "beside"):
    np.testing.assert_allclose(both.predict(test.images)[name].logits, stored, atol=1e-4)


@pytest.mark.slow
def test_frozen_weights_in_bfloat16_are_kept_as_they_ran(tmp_path):
  """The kept network, and the task beside the rounded backbone, give the logits of the run."""
  config = make_config()
  config.methods, config.save_model = ("lp", "subtuning"), True
  config.backbone.frozen_dtype = "bfloat16"
  config.subtuning.update(blocks=("block2/unit1",), epochs=1)
  record = compare.run(config, tmp_path / "run", stream=io.StringIO())
  run = compare_record.load(tmp_path / "run")
  engine, pretrained = network.load_network(config, len(record["data"]["class_names"]))
  path = best.write(run, best.choose(run.record, "subtuning"), config, engine, pretrained,
                    tmp_path / "kept")  # fmt: skip
  loaded = folder.load(path)
  (test,), _ = examples.load_tests(config, tuple(record["data"]["class_names"]))
  (own,) = run.chosen("subtuning")
  stored = np.load(tmp_path / "run" / own["test"][test.name]["logits"])["logits"]
  np.testing.assert_array_equal(engine.predict(loaded.variables, test.images), stored)
  answers = multitask.MultiTask({"kept": path}).predict(test.images)["kept"]
  np.testing.assert_allclose(answers.logits, stored, atol=1e-4)


def test_a_search_refuses_heads_that_read_more():
  config = search_config.default()
  config.subtuning.beside_frozen = True
  with pytest.raises(ValueError, match="a search scores sets of blocks without the frozen"):
    search_config.check(config)


def test_a_study_of_blocks_refuses_a_method_that_changes_the_network():
  config = robustness_config.default()
  config.methods = (*config.methods, "side_tuning")
  with pytest.raises(ValueError, match="'side_tuning', which changes the network"):
    robustness_config.check(config)


def test_a_config_can_build_the_network_that_a_folder_of_weights_states(tmp_path):
  transformers = pytest.importorskip("transformers")
  shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
  stated = transformers.ViTConfig(
    **shape, intermediate_size=128, image_size=32, patch_size=16, layer_norm_eps=1e-12
  )
  transformers.ViTModel(stated, add_pooling_layer=False).save_pretrained(tmp_path)
  config = make_config()
  config.data.image_size = 32
  config.backbone.update(
    name="vit_ti16", weights=str(tmp_path / "model.safetensors"), preprocessing="half",
    options="width=32,depth=2,heads=2",
  )  # fmt: skip
  with pytest.raises(ValueError, match='options="heads=4,norm_epsilon=1e-12"'):
    network.load_network(config, 3)
  config.backbone.options = "width=32,depth=2,heads=4,norm_epsilon=1e-12"
  engine, _ = network.load_network(config, 3)
  assert (engine.model.heads, engine.model.norm_epsilon) == (4, 1e-12)
  config.backbone.options = "depth 2"
  with pytest.raises(ValueError, match=r"backbone\.options is .depth 2.; give name=value pairs"):
    network.load_network(config, 3)


@pytest.mark.parametrize("text", ["norm_epsilon", "12, depth=2", "**{'depth': 2}"])
def test_options_without_a_name(text):
  with pytest.raises(ValueError, match=r"backbone\.options is .*; give name=value pairs"):
    network.options(text)


@pytest.mark.slow
def test_adapters_are_methods_of_a_comparison_and_their_networks_can_be_kept(tmp_path):
  config = make_config()
  config.methods = ("lp", "lora", "houlsby")
  for name in ("lora", "houlsby"):
    config[name].epochs, config[name].rank, config[name].where = 1, 2, ("/block3/unit1",)
  stream = io.StringIO()
  record = compare.run(config, tmp_path / "run", stream=stream)
  lp, lora, houlsby = record["methods"]
  assert (lora["title"], houlsby["title"]) == ("LoRA", "Houlsby adapters")
  assert lora["stages"][0]["blocks"] == ["block3/unit1", "head"]
  assert lora["trained_params"] - lp["trained_params"] == 2 * (9 * 16 + 32 + 9 * 32 + 32 + 16 + 32)
  assert "LoRA" in stream.getvalue()
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  run = compare_record.load(tmp_path / "run")
  classes = tuple(record["data"]["class_names"])
  engine, pretrained = network.load_network(config, len(classes))
  for name in ("lora", "houlsby"):
    row = best.choose(run.record, name)
    path = best.write(run, row, config, engine, pretrained, tmp_path / name)
    loaded = folder.load(path)
    assert isinstance(loaded.model, adapted.Adapted) == (name == "houlsby")  # LoRA is merged
    own, start = network.prepared(name, config, engine, pretrained)
    variables, _ = export.load_task(tmp_path / "run" / "tasks" / row["key"], start.variables)
    again = dataclasses.replace(engine, model=loaded.model)
    wanted = own.predict(variables, images)
    np.testing.assert_allclose(again.predict(loaded.variables, images), wanted, atol=1e-5)


@pytest.mark.slow
def test_a_pruned_network_is_kept_as_the_smaller_one_that_it_is(tmp_path):
  config = make_config()
  config.methods = ("pruned", "fresh_blocks")
  for name in config.methods:
    config[name].epochs, config[name].blocks = 1, ("block3/unit1",)
  record = compare.run(config, tmp_path / "run", stream=io.StringIO())
  assert [row["title"] for row in record["methods"]] == ["SubTuning, pruned",
                                                         "SubTuning, fresh blocks"]  # fmt: skip
  whole, fresh = (row["trained_params"] for row in record["methods"])
  assert whole < 0.8 * fresh
  run = compare_record.load(tmp_path / "run")
  engine, pretrained = network.load_network(config, len(record["data"]["class_names"]))
  row = best.choose(run.record, "pruned")
  loaded = folder.load(best.write(run, row, config, engine, pretrained, tmp_path / "kept"))
  assert dict(loaded.model.pruned)
  (test,), _ = examples.load_tests(config, tuple(record["data"]["class_names"]))
  (own,) = run.chosen("pruned")
  stored = np.load(tmp_path / "run" / own["test"][test.name]["logits"])["logits"]
  again = dataclasses.replace(engine, model=loaded.model)
  np.testing.assert_allclose(again.predict(loaded.variables, test.images), stored, atol=1e-5)


@pytest.mark.slow
def test_head2toe_is_a_method_of_a_comparison_and_its_network_can_be_kept(tmp_path):
  config = make_config()
  config.methods, config.data.retrain = ("lp", "head2toe"), True
  config.head2toe.update(strengths=(0.3,), fractions=(0.1, 0.3), target_size=64, l2=(0.1, 0.01))
  record = compare.run(config, tmp_path / "run", stream=io.StringIO())
  _, chosen = record["methods"]
  assert chosen["setting"] == "l2"
  assert sum(row["kept"] for row in chosen["selection"]["units"]) == chosen["selection"]["kept"]
  page = (tmp_path / "run" / "report.html").read_text()
  assert "Which units Head2Toe reads" in page
  run = compare_record.load(tmp_path / "run")
  engine, pretrained = network.load_network(config, len(record["data"]["class_names"]))
  row = best.choose(run.record, "head2toe")
  loaded = folder.load(best.write(run, row, config, engine, pretrained, tmp_path / "kept"))
  # Read back, the network gives the logits of the run.
  (test,), _ = examples.load_tests(config, tuple(record["data"]["class_names"]))
  (own,) = run.chosen("head2toe")
  stored = np.load(tmp_path / "run" / own["test"][test.name]["logits"])["logits"]
  again = dataclasses.replace(engine, model=loaded.model)
  np.testing.assert_allclose(again.predict(loaded.variables, test.images), stored, atol=1e-5)
