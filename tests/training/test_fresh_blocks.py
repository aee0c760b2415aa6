"""Blocks that start from fresh weights: which leaves, which values, and what still holds."""

import jax
import numpy as np
import pytest

from subtune_jax import masks, methods, models
from subtune_jax.data import preprocess
from subtune_jax.training import checkpoint, fresh_blocks, ledger, loop, resume

SEED_OF_WEIGHTS = 0
BLOCKS = ("block2/unit1", "block3/unit2")


@pytest.fixture(scope="module")
def network():
  """(engine, variables): the weights are those of seed 0, with statistics of another kind."""
  model = models.create("resnet14", num_classes=3, image_size=8)
  images = np.zeros((1, 8, 8, 3), np.float32)
  variables = jax.jit(model.init)(jax.random.key(SEED_OF_WEIGHTS), images)
  variables["batch_stats"] = jax.tree.map(lambda x: x + 0.05, variables["batch_stats"])
  return loop.Engine(model, preprocess.preset("half"), batch_size=8), variables


def examples(count=24):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
  return loop.Examples(images, np.arange(count) % 3)


def flat(tree):
  return dict(zip(masks.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def is_inside(path):
  return any(path.startswith(f"{block}/") for block in BLOCKS)


def test_the_named_blocks_alone_are_drawn_as_the_model_initialises_them(network):
  engine, variables = network
  new, drawn = fresh_blocks.draw(engine.model, variables, BLOCKS, 0)
  before, after = flat(variables["params"]), flat(new["params"])
  kernels = [path for path in before if path.endswith("kernel") and is_inside(path)]
  assert len(kernels) == 5  # two convolutions a unit, one projection
  for path in before:
    if not is_inside(path):
      assert np.array_equal(before[path], after[path]), path
  for path in kernels:
    # Another draw of the same distribution, even where the weights are those of the same seed.
    assert abs(np.corrcoef(before[path].ravel(), after[path].ravel())[0, 1]) < 0.1
    assert after[path].std() == pytest.approx(before[path].std(), rel=0.1)
  assert flat(drawn["params"]) == {path: is_inside(path) for path in before}
  for path, leaf in flat(new["batch_stats"]).items():
    start = 1.0 if path.endswith("var") else 0.0
    assert np.array_equal(
      leaf, np.full_like(leaf, start) + np.float32((not is_inside(path)) * 0.05)
    ), path


def test_seeds_give_other_draws_and_one_seed_the_same(network):
  engine, variables = network
  draws = [fresh_blocks.draw(engine.model, variables, BLOCKS, s)[0]["params"] for s in (0, 0, 1)]
  first, again, other = ([flat(d)["block2/unit1/conv1/kernel"]] for d in draws)
  assert np.array_equal(first, again)
  assert not np.array_equal(first, other)


def test_a_training_starts_from_the_drawn_weights_also_where_they_stay_frozen(network):
  engine, variables = network
  method = methods.sub_tuning(("block3/unit2",), 0.0, epochs=1, norm_mode="running", reinit=BLOCKS)
  result = loop.fit(engine, variables, method, examples(), None, seed=5)
  wanted, _ = fresh_blocks.draw(engine.model, variables, BLOCKS, 5)
  for kind in ("params", "batch_stats"):
    found, want = flat(result.variables[kind]), flat(wanted[kind])
    for path in want:
      if not path.startswith("head"):
        assert np.array_equal(found[path], want[path]), path
    touched = flat(result.touched[kind])
    assert all(touched[path] for path in want if is_inside(path))
  assert result.moved > 0.1  # against the weights that were given


def test_a_probe_before_the_stage_reads_the_drawn_features(network):
  engine, variables = network
  method = methods.linear_probing(l2=(0.1,)) + methods.sub_tuning(
    ("block3/unit2",), 0.0, epochs=1, norm_mode="running", reinit=BLOCKS
  )
  found = loop.fit(engine, variables, method, examples(), None, seed=5).history[0]["train_loss"]
  drawn, _ = fresh_blocks.draw(engine.model, variables, BLOCKS, 5)
  fits = [loop.fit(engine, v, method[:1], examples(), None, seed=5) for v in (drawn, variables)]
  losses = [fit.history[0]["train_loss"] for fit in fits]
  assert found == losses[0] != losses[1]


def test_resumed_equals_uninterrupted(network, tmp_path):
  engine, variables = network
  method = methods.sub_tuning(("block3/unit2",), 1e-2, epochs=2, reinit=BLOCKS)
  folder = checkpoint.Checkpoints(tmp_path)

  class Dying(resume.Saver):
    def save(self, *given):
      super().save(*given)
      raise KeyboardInterrupt

  def fit(saver):
    return loop.fit(engine, variables, method, examples(), None, seed=5, saver=saver)

  with pytest.raises(KeyboardInterrupt):
    fit(Dying(folder, "key", every_seconds=0))
  resumed, whole = fit(resume.Saver(folder, "key", every_seconds=0)), fit(None)
  assert resumed.history == whole.history
  for kind in ("params", "batch_stats"):
    assert flat(resumed.variables[kind]).keys() == flat(whole.variables[kind]).keys()
    for path, leaf in flat(whole.variables[kind]).items():
      assert np.array_equal(flat(resumed.variables[kind])[path], leaf), path


def test_it_is_part_of_a_training_s_identity_only_where_it_is_asked_for():
  plain, fresh = (
    methods.sub_tuning(("block1",), 1e-3, epochs=1, reinit=r)[0] for r in ((), ("b",))
  )
  assert "reinit" not in ledger.plain(plain)
  assert ledger.plain(fresh)["reinit"] == ["b"]


@pytest.mark.parametrize(
  ("blocks", "said"),
  [(("block2/unit9",), "block2/unit1"), ("block2", "reinit is 'block2'; give block names")],
)
def test_unknown_blocks_are_named(network, blocks, said):
  engine, variables = network

  def fit():
    method = methods.sub_tuning(("block3/unit2",), 1e-2, epochs=1, reinit=blocks)
    loop.fit(engine, variables, method, examples(), None)

  with pytest.raises(ValueError, match=said):
    fit()
