"""Rare classes: weights in the loss, against scikit-learn and torch, and balanced batches."""

import warnings

import jax
import numpy as np
import pytest
from sklearn import datasets, linear_model
from sklearn.utils import class_weight

from subtune_jax import methods
from subtune_jax.data import lazy
from subtune_jax.training import batches, checkpoint, class_weights, loop, probe, resume
from subtune_jax.training import mesh as mesh_lib
from tests import marks, tiny

torch = pytest.importorskip("torch", reason="the peer of the losses is torch's")

L2 = (1.0, 1e-2, 1e-4)


def unbalanced_digits(classes=range(5), n=400):
  """8 x 8 digits of which each class has half of the one before it."""
  found = datasets.load_digits()
  rows = []
  for place, own in enumerate(classes):
    rows.append(np.flatnonzero(found.target == own)[: n // 2 ** (place + 1)])
  rows = np.random.default_rng(0).permutation(np.concatenate(rows))
  return found.data[rows].astype(np.float32), found.target[rows]


def peer(x, y, weights, l2, num_classes):
  """scikit-learn's head on features that are standardised by one mean and deviation."""
  two, scaled = len(np.unique(y)) == 2, (x - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
  total = np.sum(class_weight.compute_sample_weight(weights, y))
  model = linear_model.LogisticRegression(
    C=(2 if two else 1) / (l2 * total), class_weight=weights, tol=1e-10, max_iter=10**5
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model.fit(scaled, y)
  return np.log(model.predict_proba(scaled)[np.arange(len(y)), np.searchsorted(model.classes_, y)])


@pytest.mark.parametrize("classes", marks.first(1, [(3, 8), range(5)]))
@pytest.mark.parametrize("named", [False, True])
def test_a_probe_with_class_weights_is_scikit_learns(classes, named):
  x, y = unbalanced_digits(classes)
  own, theirs = "balanced", "balanced"
  if named:
    own = tuple(0.5 + 2.0 * c for c in range(10))
    theirs = dict(enumerate(own))
  path = probe.fit_path(x, y, num_classes=10, l2=L2, class_weights=own)
  plain = probe.fit_path(x, y, num_classes=10, l2=L2)
  assert path.converged.all()
  for place, l2 in enumerate(L2):
    wanted = peer(x, y, theirs, l2, 10)
    logits = x.astype(np.float64) @ path.kernel[place] + path.bias[place]
    logits = logits[:, np.unique(y)]
    found = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = found[np.arange(len(y)), np.searchsorted(np.unique(y), y)]
    np.testing.assert_allclose(found, wanted, atol=2e-2 if l2 < 1e-3 else 5e-3)
    weights = class_weight.compute_sample_weight(theirs, y)
    assert np.average(found, weights=weights) == pytest.approx(
      np.average(wanted, weights=weights), rel=1e-3
    )
    assert np.abs(plain.kernel[place] - path.kernel[place]).max() > 1e-4


def test_balanced_weights_are_scikit_learns_and_an_absent_class_weighs_one():
  y = np.array([0] * 7 + [1] * 2 + [3] * 1)
  wanted = class_weight.compute_class_weight("balanced", classes=np.unique(y), y=y)
  found = class_weights.of_classes("balanced", y, 5)
  np.testing.assert_allclose(found[[0, 1, 3]], wanted)
  assert found[[2, 4]].tolist() == [1.0, 1.0]
  assert class_weights.of_classes("none", y, 5) is None
  drawn = class_weights.of_examples((2.0, 1.0, 9.0, 3.0, 9.0), y, 5)
  assert drawn[y].mean() == pytest.approx(1)
  even = class_weights.of_examples((2.0, 1.0, 9.0, 3.0, 9.0), y, 5, "balanced")
  assert even[[0, 1, 3]].mean() == pytest.approx(1)


def unbalanced(n=24):
  """Of the three classes of `tiny.examples`, 1/2, 1/3 and 1/6."""
  labels = np.repeat([0, 1, 2], [n // 2, n // 3, n // 6]).astype(np.int32)
  labels = np.random.default_rng(1).permutation(labels)
  whole = tiny.examples(3 * n)
  rows = [np.flatnonzero(whole.labels == c)[i] for i, c in enumerate(labels)]
  return loop.Examples(whole.images[rows], labels)


def fit(method, train=None, *, saver=None, **fields):
  model, variables = tiny.make()
  engine = tiny.engine(model, **fields)
  return loop.fit(
    engine, variables, method, train or unbalanced(), tiny.examples(9, 1), seed=3, saver=saver
  )


def torch_loss(weights, reduction="mean"):
  """(logits of the untrained network as a leaf, loss of them)."""
  model, variables = tiny.make()
  train = unbalanced()
  logits = tiny.engine(model).predict(variables, train.images)
  leaf = torch.tensor(logits, requires_grad=True)
  weights = torch.tensor(weights, dtype=torch.float32)
  loss = torch.nn.CrossEntropyLoss(weight=weights, reduction=reduction)
  return leaf, loss(leaf, torch.tensor(train.labels, dtype=torch.int64))


@pytest.mark.parametrize("option", ["balanced", (3.0, 0.5, 2.0)])
def test_a_step_on_the_whole_set_is_torchs(option):
  weights = class_weights.of_classes(option, unbalanced().labels, 3)
  leaf, loss = torch_loss(weights)
  loss.backward()
  step = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant"}
  method = methods.head_only(1.0, epochs=1, class_weights=option, **step)
  _, variables = tiny.make()
  result = fit(method, batch_size=24)
  assert result.history[0]["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
  moved = variables["params"]["head"]["bias"] - result.variables["params"]["head"]["bias"]
  np.testing.assert_allclose(moved, leaf.grad.numpy().sum(axis=0), atol=1e-6)


def test_the_mean_over_batches_is_the_loss_of_the_whole_set():
  option = (3.0, 0.5, 2.0)
  _, loss = torch_loss(option)
  still = fit(methods.head_only(0.0, epochs=1, class_weights=option))
  assert still.history[0]["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
  plain = fit(methods.head_only(0.0, epochs=1))
  assert plain.history[0]["train_loss"] != pytest.approx(float(loss.detach()), rel=1e-3)


BALANCED = {
  "weights": {"class_weights": "balanced"},
  "sampling": {"sampling": "balanced"},
  "both": {"class_weights": (1.0, 2.0, 3.0), "sampling": "balanced"},
}


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)


def lazily(whole):
  read = lazy.LazyImages(range(len(whole.labels)), lambda r: whole.images[r], 16, lambda row: row)
  return loop.Examples(read, whole.labels)


@pytest.mark.parametrize("kind", BALANCED)
def test_streamed_and_on_four_devices_it_is_the_same(kind):
  method = methods.full_fine_tuning(1e-2, epochs=2, **BALANCED[kind])
  one = fit(method)
  same(fit(method, lazily(unbalanced())), one)
  four = fit(method, mesh=mesh_lib.make_mesh(jax.devices()[:4]))
  for a, b in zip(one.history, four.history, strict=True):
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
  plain = fit(methods.full_fine_tuning(1e-2, epochs=2))
  assert plain.history[0]["train_loss"] != pytest.approx(one.history[0]["train_loss"], rel=1e-3)


def test_a_prefix_cache_changes_nothing_in_balanced_batches():
  options = {"sampling": "balanced", "class_weights": (1.0, 2.0, 3.0)}
  method = methods.sub_tuning(("block2",), 1e-2, epochs=2, **options)
  cached, whole = fit(method), fit(method, prefix_cache=False)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cached.variables, whole.variables
  )


def test_a_resumed_balanced_training_ends_with_the_same_bits(tmp_path):
  method = methods.lp_ft(1e-2, epochs=4, sampling="balanced")
  whole = fit(method)

  class Killed(Exception):
    pass

  class Dying(resume.Saver):
    def save(self, *arguments):
      super().save(*arguments)
      if arguments[0] == 3:
        raise Killed

  folder = checkpoint.Checkpoints(tmp_path)
  with pytest.raises(Killed):
    fit(method, saver=Dying(folder, "key", every_seconds=0))
  same(fit(method, saver=resume.Saver(folder, "key", every_seconds=0)), whole)


def test_classes_come_equally_often_and_images_too():
  labels = np.repeat([0, 2, 5], [60, 9, 3])
  orders = [batches.balanced_order(1, 0, epoch, labels, 10, 7) for epoch in range(30)]
  assert {order.shape for order in orders} == {(7, 10)}
  counts = np.array([np.bincount(labels[order.ravel()], minlength=6) for order in orders])
  assert counts[:, [1, 3, 4]].sum() == 0
  assert set(np.unique(counts[:, [0, 2, 5]])) == {23, 24}
  assert all(4 <= n <= 16 for n in (counts[:, [0, 2, 5]] == 24).sum(axis=0))  # 10, deviation 2.6
  times = np.bincount(np.concatenate([order.ravel() for order in orders]), minlength=72)
  assert (times > 0).all()
  for order in orders:
    for own in (0, 2, 5):
      of_class = np.bincount(order.ravel(), minlength=72)[labels == own]
      assert of_class.max() - of_class.min() <= 1
  again = batches.balanced_order(1, 0, 4, labels, 10, 7)
  np.testing.assert_array_equal(orders[4], again)
  for other in ((2, 0, 4), (1, 1, 4)):
    assert not np.array_equal(batches.balanced_order(*other, labels, 10, 7), again)
  few = batches.balanced_order(0, 0, 0, np.arange(50), 4, 2)  # more classes than examples drawn
  assert len(set(few.ravel())) == 8


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"class_weights": "even"}, "class_weights is 'even'; allowed: 'none', 'balanced'"),
    ({"class_weights": (1.0, -2.0)}, r"class_weights is \(1.0, -2.0\)"),
    ({"class_weights": (1.0, float("nan"))}, "a weight above 0"),
    ({"sampling": "even"}, "sampling is 'even'; allowed: 'uniform', 'balanced'"),
    ({"sampling": "balanced", "class_weights": "balanced"}, "balance by one of them"),
  ],
)
def test_options_that_make_no_sense_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    methods.full_fine_tuning(1e-2, epochs=1, **options)
  if "sampling" not in options:
    with pytest.raises(ValueError, match=message):
      methods.linear_probing(**options)


def test_as_many_weights_as_classes():
  with pytest.raises(ValueError, match="class_weights has 2 weights; give one for each of the 3"):
    fit(methods.head_only(1e-2, epochs=1, class_weights=(1.0, 2.0)))
