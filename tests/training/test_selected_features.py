"""Head2Toe: pooling, normalisation and selection by hand, and the method in the train loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.models import head2toe, vit
from subtune_jax.training import group_lasso, loop, selected_features
from tests import tiny
from tests.search import small

torch = pytest.importorskip("torch", reason="the peer of pooling is torch's")

GRID = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)


@pytest.mark.parametrize(
  ("y", "target", "wanted"),
  [
    # 2 windows a side of 5 // 2 = 2 pixels; the fifth row and column are not read.
    (GRID, 4, [3, 5, 13, 15]),
    # floor(sqrt(8)) = 2 windows a side still; 3 // 1 channels of 3 are global.
    (GRID, 8, [3, 5, 13, 15]),
    (GRID, 1, [12]),
    (np.tile(GRID, 3), 2, [12, 12, 12]),
    # 9 windows a side are asked for and there are 5 pixels: the map as it is.
    (GRID, 81, list(range(25))),
    # 5 tokens in 2 groups: runs of int(5 / 2) = 2, the last token is not read.
    (GRID[:, 0], 2, [0.5, 2.5]),
    (GRID[:, 0], 1, [2]),
    # 4 / 3 groups of 5 tokens of 3 channels: runs of int(5 / (4 / 3)) = 3.
    (np.tile(GRID[:, 0], 3), 4, [1, 1, 1]),
    (GRID[:, 0, :, 0], 2, [0, 1, 2, 3, 4]),
  ],
)
def test_pooling_by_hand(y, target, wanted):
  np.testing.assert_allclose(head2toe.pool(jnp.asarray(y), target), [wanted])


def test_pooling_is_that_of_torch():
  y = np.random.default_rng(0).normal(size=(2, 11, 11, 6)).astype(np.float32)
  theirs = torch.nn.functional.avg_pool2d(torch.from_numpy(y.transpose(0, 3, 1, 2)), 11 // 4)
  ours = head2toe.pool(jnp.asarray(y), 100)  # floor(sqrt(100 // 6)) = 4
  np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).reshape(2, -1), atol=1e-6)


def test_each_unit_has_length_one_among_the_kept_and_zeros_stay():
  features = jnp.array([[3.0, 4, 5, 0, 0], [0, 0, 1, 6, 8]])
  sources = (("a", 3), ("b", 2))
  found = head2toe.kept(features, jnp.array([0, 1, 3, 4, 5]), sources)
  np.testing.assert_allclose(found, [[0.6, 0.8, 0, 0, 0], [0, 0, 0.6, 0.8, 0]], rtol=1e-6)
  everything = head2toe.kept(features, jnp.arange(5), sources)
  np.testing.assert_allclose(everything[0, :3], np.array([3, 4, 5]) / np.sqrt(50), rtol=1e-6)
  # What is at length one already gives the same when some of it is kept.
  again = head2toe.at_length_one(everything[:, :2], jnp.array([0, 1]), sources)
  np.testing.assert_allclose(again, found[:, :2], rtol=1e-6)


def test_features_rank_by_their_weights_and_then_by_their_gradients():
  fit = group_lasso.Fit(
    1.0, np.array([1, 3]), np.array([[3.0, 4.0], [6.0, 0.0]]), np.zeros(2),
    np.array([0.2, 0.9999, 1.0001, 1, 0.5]), 0.0, True,
  )  # fmt: skip
  np.testing.assert_array_equal(fit.relevance, [0, 25, 0, 36, 0])
  for fraction, wanted in ((0.2, [3]), (0.45, [1, 3]), (0.6, [1, 2, 3]), (0.8, [1, 2, 3, 4])):
    np.testing.assert_array_equal(selected_features.most_relevant(fit, fraction), wanted)
  assert selected_features.by_source(fit.relevance, (("a", 2), ("b", 3))) == {"a": 25, "b": 36}


def test_what_is_read_of_each_family():
  net = small.model()
  blocks = head2toe.sources_of(net, small.variables(net), 16)
  assert [name for name, _ in blocks] == list(net.block_names)
  inside = [name for name, _ in head2toe.sources_of(net, small.variables(net), 16, "layers")]
  assert [n for n in inside if n.startswith("block2/")] == [
    "block2/unit1/conv1", "block2/unit1/conv2", "block2/unit1/downsample", "block2/unit1"
  ]  # fmt: skip
  net = vit.ViT(width=8, depth=1, heads=2, patch_size=8, num_classes=3, image_size=16)
  made = net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  assert head2toe.sources_of(net, made, 16, "layers") == (
    ("embedding/patch", 8), ("embedding", 16), ("encoderblock_0/norm1", 16),
    ("encoderblock_0/attention", 16), ("encoderblock_0/norm2", 16), ("encoderblock_0/mlp", 16),
    ("encoderblock_0", 16), ("encoder_norm/norm", 8), ("encoder_norm", 8),
  )  # fmt: skip


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"target_size": 0}, "target_size is 0; allowed: 1 to 10,000"),
    ({"units": "all"}, "Unknown head2toe.units 'all'"),
    ({"fraction": 1.5}, "fractions holds 1.5"),
  ],
)
def test_options_that_make_no_sense(fields, message):
  net = small.model()
  with pytest.raises(ValueError, match=message):
    head2toe.wrap(
      net, small.variables(net), **{"target_size": 8, "units": "blocks", "fraction": 0.1} | fields
    )


def test_the_method_in_the_train_loop():
  net = small.model()
  own, variables = head2toe.wrap(net, small.variables(net), 64, "blocks", 0.5)
  engine, train, held = tiny.engine(own), small.dataset(60), small.dataset(30, "validation")
  method = methods.head2toe(strengths=(0.5, 0.1), fractions=(0.05, 0.5), l2=(1e-1, 1e-3))
  logits = []
  result = loop.fit(
    engine, variables, method, train, held, on_epoch=lambda row, own: logits.append(own)
  )
  (stage,) = result.stages
  chosen = stage["selection"]
  assert [(r["strength"], r["fraction"]) for r in chosen["grid"]] == [
    (0.5, 0.05), (0.5, 0.5), (0.1, 0.05), (0.1, 0.5)
  ]  # fmt: skip
  assert chosen["validation_accuracy"] == max(r["validation_accuracy"] for r in chosen["grid"])
  assert sum(row["kept"] for row in chosen["units"]) == chosen["kept"]
  assert [row["unit"] for row in chosen["units"]] == list(net.block_names)
  # The network itself gives the logits that the choice was made by.
  np.testing.assert_allclose(engine.predict(result.variables, held.images), logits[0], atol=1e-4)
  assert result.moved == 0
  changed = jax.tree.map(
    lambda a, b: not np.array_equal(a, b), result.variables["params"], variables["params"]
  )
  assert changed["head"] == {"bias": True, "kernel": True}
  assert changed["features"]["index"]
  assert not any(jax.tree.leaves(changed["features"]["base"]))
  # Fixed to what was chosen it gives the same head without a validation set.
  fixed = (
    methods.Stage("again", method[0].rules, method[0].solver.fixed(stage["setting"]), "running"),
  )
  again = loop.fit(engine, variables, fixed, train, None)
  np.testing.assert_array_equal(
    again.variables["params"]["features"]["index"], result.variables["params"]["features"]["index"]
  )
  with pytest.raises(ValueError, match="8 strengths and no validation set"):
    loop.fit(engine, variables, method, train, None)


def test_images_that_give_fewer_features_raise():
  net = small.model()
  own, variables = head2toe.wrap(net, small.variables(net), 1024, "blocks", 0.5)
  with pytest.raises(ValueError, match="images of 8 x 8 px give other features"):
    jax.eval_shape(own.apply, variables, jnp.zeros((1, 8, 8, 3)))


def test_relevance_of_blocks():
  net = small.model()
  train = small.dataset(40)
  found = selected_features.relevance(
    tiny.engine(net), small.variables(net), train.images, train.labels, target_size=64
  )
  assert list(found) == list(net.block_names)
  assert max(found.values()) > 0
