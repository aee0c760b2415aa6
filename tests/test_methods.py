"""Methods are tuples of stages whose fields are checked where they are made."""

import pathlib
import types

import jax
import pytest

from subtune_jax import masks, methods
from subtune_jax.training import trainable_split
from tests import tiny


def test_labels_of_the_four_methods():
  model, variables = tiny.make()
  wanted = {
    "lp": [["head"]],
    "ft": [["block0", "block1", "block2", "head"]],
    "lp_ft": [["head"], ["block0", "block1", "block2", "head"]],
    "sub": [["block0", "block2", "head"]],
  }
  made = {
    "lp": methods.linear_probing(),
    "ft": methods.full_fine_tuning(1e-3, epochs=1),
    "lp_ft": methods.lp_ft(1e-3, epochs=1),
    "sub": methods.sub_tuning(("block0", "block2"), 1e-3, epochs=1),
  }
  for name, method in made.items():
    plans = [trainable_split.make_plan(model, variables, stage) for stage in method]
    assert [list(p.blocks) for p in plans] == wanted[name]
    assert [p.start for p in plans] == [blocks[0] for blocks in wanted[name]]
  assert plans[0].train_blocks == {"block0", "block2"}  # a frozen block between stays frozen
  ft, after_probe = (made[n][-1] for n in ("ft", "lp_ft"))
  assert trainable_split.make_plan(model, variables, ft).train_blocks == {
    "block0",
    "block1",
    "block2",
  }
  assert trainable_split.make_plan(model, variables, after_probe).train_blocks == frozenset()


def test_the_automatic_rates_train_everything_and_as_released_no_batch_norm():
  model, variables = tiny.make()
  for make in (methods.auto_rgn, methods.auto_snr):
    (stage,) = make(1e-3, head_learning_rate=1e-2, epochs=1)
    assert stage.solver.learning_rates == {"head": 1e-2, "tuned": 1e-3}
    assert masks.FROZEN not in jax.tree.leaves(
      trainable_split.make_plan(model, variables, stage).labels
    )
    (stage,) = make(1e-3, epochs=1, released=True)
    labels = masks.labels_by_path(
      variables["params"], trainable_split.make_plan(model, variables, stage).labels
    )
    frozen = {path for path, label in labels.items() if label == masks.FROZEN}
    assert frozen == {f"block{i}/bn/{name}" for i in range(3) for name in ("scale", "bias")}


def test_split_and_join_are_inverse():
  model, variables = tiny.make()
  (stage,) = methods.sub_tuning(("block1",), 1e-3, epochs=1)
  p = trainable_split.make_plan(model, variables, stage)
  moving, fixed = trainable_split.split_variables(variables, p)
  assert set(masks.paths(moving["params"])) & set(masks.paths(fixed["params"])) == set()
  joined = trainable_split.join_variables(moving, fixed)
  assert masks.paths(joined) == masks.paths({k: variables[k] for k in ("params", "batch_stats")})


def test_a_leaf_outside_of_every_block_cannot_be_trained():
  model, variables = tiny.make()
  variables = {**variables, "params": {**variables["params"], "stray": {"w": 1.0}}}
  (stage,) = methods.full_fine_tuning(1e-3, epochs=1)
  with pytest.raises(ValueError, match="trains 'stray/w', which lies in none of"):
    trainable_split.make_plan(model, variables, stage)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: methods.sub_tuning("block1", 1e-3, epochs=1), "give a sequence of block names"),
    (lambda: methods.sub_tuning((), 1e-3, epochs=1), "give a sequence of block names"),
    (lambda: methods.full_fine_tuning(-1.0, epochs=1), "learning rate of 'head' is -1.0"),
    (lambda: methods.full_fine_tuning(float("nan"), epochs=1), "is nan"),
    (lambda: methods.full_fine_tuning(1e-3, epochs=0), "epochs is 0"),
    (lambda: methods.full_fine_tuning(1e-3, epochs=1, optimizer="adm"), "'adm'; allowed: 'adam'"),
    (lambda: methods.full_fine_tuning(1e-3, epochs=1, norm_mode="eval"), "allowed: 'batch'"),
    (lambda: methods.full_fine_tuning(1e-3, epochs=1, warmup=1.0), "in \\[0, 1\\)"),
    (lambda: methods.full_fine_tuning(1e-3, epochs=1, schedule="x"), "allowed: 'cosine'"),
    (lambda: methods.full_fine_tuning(1e-3, epochs=1, clip_norm=-1), "clip_norm is -1"),
    (lambda: methods.TensorRates("rng"), "kind is 'rng'; allowed: 'rgn', 'snr'"),
    (lambda: methods.TensorRates("rgn", 0), "num_batches is 0"),
    (lambda: methods.TensorRates("snr"), "threshold is None for 'snr'; the 'snr' kinds need one"),
    (lambda: methods.TensorRates("rgn", threshold=0.5), "0.5 for 'rgn'; .* and only they"),
    (lambda: methods.auto_snr(1e-3, epochs=1, threshold=float("nan")), "threshold is nan"),
    (lambda: methods.linear_probing(l2=()), "at least one strength"),
    (lambda: methods.linear_probing(l2=(0.0,)), "all above 0"),
    (
      lambda: methods.Stage("x", {"a": "/b"}, methods.Gradient({"b": 1.0}, 1)),
      "each label needs exactly one learning rate",
    ),
    (
      lambda: methods.Stage("x", {"tuned": "/b"}, methods.LBFGS((1.0,))),
      "L-BFGS trains the head only",
    ),
  ],
)
def test_bad_fields(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_fresh_blocks_are_those_that_are_trained_or_those_that_are_named():
  own = types.SimpleNamespace(blocks=("block1", "block2"))
  build = methods.DECLARED["fresh_blocks"].build(own, methods.Context(("block1", "block2")))
  (all_of_them,) = build(1e-3, epochs=1, reinit=())
  (one,) = build(1e-3, epochs=1, reinit=("block2",))
  assert all_of_them.reinit == ("block1", "block2")
  assert one.reinit == ("block2",)
  assert all_of_them.rules == methods.sub_tuning(own.blocks, 1e-3, epochs=1)[0].rules


def test_the_readme_has_the_table_of_declared_methods():
  readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
  assert methods.markdown(methods.DECLARED.values()) in readme


@pytest.mark.parametrize("name", methods.DECLARED)
def test_a_declared_method_builds_its_stages_from_its_declared_options(name):
  declared = methods.DECLARED[name]
  own = types.SimpleNamespace(**{key: o.default for key, o in declared.options.items()})
  made = declared.build(own, methods.Context(("stem", "block0"), 5))(1e-3, **(
    {} if declared.gradient is None else {"epochs": declared.gradient["epochs"]}
  ))  # fmt: skip
  assert made
  assert all(isinstance(stage, methods.Stage) for stage in made)
  assert list(declared.grid) == sorted(declared.grid)
  assert declared.title
  assert declared.call.split("(")[0].split(".")[-1] in dir(methods)
