"""The L-BFGS probe, against scikit-learn and against the gradient written out in numpy."""

from unittest import mock
import warnings

from absl import logging
import jax
import numpy as np
import pytest
from sklearn import datasets, linear_model

from subtune_jax import data, methods
from subtune_jax.models import heads
from subtune_jax.training import (
  ledger,
  loop,
  probe,
  probe_checks,
  probe_features,
  probe_objective,
  probe_solver,
)
from tests import marks, tiny


def _digits(classes=range(10), absent=()):
  """Returns (train features, train labels, validation features, validation labels)."""
  data = datasets.load_digits()
  chosen = np.isin(data.target, list(classes))
  x, y = data.data[chosen].astype(np.float32), data.target[chosen]
  half = min(len(y) // 2, 450)
  kept = ~np.isin(y[:half], list(absent))
  return x[:half][kept], y[:half][kept], x[half : 2 * half], y[half : 2 * half]


def _wide():
  """Features as of a backbone on a small set: more of them than images, positive, off centre."""
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(12, 400))
  y = np.arange(240) % 12
  x = np.maximum(centers[y] + 3 * rng.normal(size=(240, 400)) + 1, 0).astype(np.float32)
  return x[:160], y[:160], x[160:], y[160:]


PROBLEMS = {
  "digits": _digits(),
  "digits, two classes": _digits(classes=(3, 8)),
  "digits, no 4": _digits(absent=(4,)),
  "more features than images": _wide(),
}
STRENGTHS = np.array([1e2, 1.0, 0.1, 1e-2, 1e-4])


def _emoji_pixels(absent=()):
  """Emoji Domains as 8 x 8 pixels: 45 classes, more or less."""
  sets = [data.load("emoji_domains/noto", split, 8) for split in ("train", "validation")]
  (x, y), (x_val, y_val) = (
    (s.images.reshape(len(s), -1).astype(np.float32), s.labels) for s in sets
  )
  kept = ~np.isin(y, absent)
  return x[kept], y[kept], x_val, y_val


def _scale(x, standardize):
  x = x.astype(np.float64)
  if standardize == "scalar":
    return np.full(x.shape[1], x.std())
  return {"feature": x.std(axis=0), "none": np.ones(x.shape[1])}[standardize]


def _log_softmax(logits):
  logits = logits - logits.max(axis=1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _objective(kernel, bias, x, y, l2, scale):
  """The objective in float64; the kernel acts on raw features."""
  log_p = _log_softmax(x.astype(np.float64) @ kernel.astype(np.float64) + bias)
  weights = kernel * scale[:, None]
  return -log_p[np.arange(len(y)), y].mean() + 0.5 * l2 * np.sum(weights**2)


def _sklearn(x, y, l2, num_classes, tol=1e-10):
  """Returns scikit-learn's heads on standardised features, folded back to raw ones."""
  mean, std = x.mean(dtype=np.float64), x.std(dtype=np.float64)
  classes = np.unique(y)
  two = len(classes) == 2
  model = linear_model.LogisticRegression(tol=tol, max_iter=10**5, warm_start=True)
  heads = []
  for strength in l2:
    model.C = (2 if two else 1) / (strength * len(y))
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      model.fit((x - mean) / std, y)
    coef, intercept = model.coef_, model.intercept_
    if two:
      coef, intercept = np.stack([-coef[0], coef[0]]) / 2, np.array([-1, 1]) * intercept[0] / 2
    kernel, bias = np.zeros((x.shape[1], num_classes)), np.full(num_classes, -1e3)
    kernel[:, classes] = coef.T / std
    bias[classes] = intercept - mean * kernel[:, classes].sum(axis=0)
    heads.append((kernel, bias))
  return heads


def _fit(x, y, l2=STRENGTHS, **options):
  return probe.fit_path(x, y, **({"num_classes": 10, "l2": l2} | options))


@pytest.mark.parametrize("name", marks.first(3, PROBLEMS))
def test_agrees_with_sklearn(name):
  x, y, x_val, y_val = PROBLEMS[name]
  path = _fit(x, y, num_classes=12)
  peer = _sklearn(x, y, STRENGTHS, 12)
  scale = _scale(x, "scalar")
  present = np.unique(y)
  for i, (kernel, bias) in enumerate(peer):
    index = np.searchsorted(present, y)
    theirs = _objective(kernel[:, present], bias[present], x, index, STRENGTHS[i], scale)
    ours = path.kernel[i][:, present], path.bias[i][present]
    assert _objective(*ours, x, index, STRENGTHS[i], scale) <= theirs * (1 + 5e-6)
    assert path.objective[i] == pytest.approx(theirs, rel=5e-6)
  choice = probe.choose(path, x_val, y_val)
  hits = [np.sum((x_val @ k + b).argmax(axis=1) == y_val) for k, b in peer]
  assert path.converged.all()
  assert abs(choice.accuracy[choice.index] * len(y_val) - max(hits)) <= 1


@pytest.mark.parametrize(
  ("problem", "num_classes"),
  [
    (_digits(), 10),
    (_digits(classes=(3, 8)), 10),
    (_digits(absent=(0, 4)), 10),
    pytest.param(_emoji_pixels(absent=(0, 12, 44)), 45, marks=pytest.mark.slow),
  ],
  ids=["digits", "two of ten", "no 0 and 4", "emoji, three missing"],
)
def test_the_choice_over_the_grid_is_as_good_as_sklearns(problem, num_classes):
  x, y, x_val, y_val = problem
  l2 = probe.lpft_strengths(len(y), 16)[:12]  # the weakest four take scikit-learn long
  choice = probe.choose(_fit(x, y, l2, num_classes=num_classes), x_val, y_val)
  ours = np.rint(choice.accuracy * len(y_val))
  peer = _sklearn(x, y, l2, num_classes, tol=1e-5)
  theirs = np.array([np.sum((x_val @ k + b).argmax(axis=1) == y_val) for k, b in peer])
  assert abs(ours.max() - theirs.max()) <= 1
  assert abs(theirs[choice.index] - theirs.max()) <= 1


def test_a_longer_grid_is_the_same_program_and_begins_alike():
  x, y, _, _ = PROBLEMS["digits"]
  first = _fit(x, y, [1.0, 0.1, 0.01])
  programs = probe_solver.follow._cache_size()
  second = _fit(x, y, [1.0, 0.1, 0.01, 1e-3, 1e-4])
  assert probe_solver.follow._cache_size() == programs
  for name in ("kernel", "bias", "iterations"):
    np.testing.assert_array_equal(getattr(first, name), getattr(second, name)[:3])
  assert _fit(x, y, [1.0, 1e-4], max_iterations=3).iterations.max() == 3


@pytest.mark.parametrize("standardize", probe_checks.STANDARDIZE)
@pytest.mark.parametrize("tol", [1e-3, 1e-9])
def test_gradient_of_the_result(standardize, tol):
  x, y, _, _ = PROBLEMS["digits"]
  l2 = [1.0, 0.01]
  path = _fit(x, y, l2, standardize=standardize, tol=tol)
  scale = _scale(x, standardize)
  scale[scale == 0] = 1
  centred = (x - x.mean(axis=0, dtype=np.float64)) / scale
  for i, strength in enumerate(l2):
    p = np.exp(_log_softmax(x.astype(np.float64) @ path.kernel[i] + path.bias[i]))
    residual = (p - np.eye(10)[y]) / len(y)
    weights = path.kernel[i] * scale[:, None]
    gradient = np.concatenate([centred.T @ residual + strength * weights, residual.sum(0)[None]])
    at_zero = np.linalg.norm(centred.T @ (0.1 - np.eye(10)[y])) / len(y)
    if tol == 1e-9:  # here float32 rounds much of what is left of the gradient
      assert np.linalg.norm(gradient) < 1e-3 * at_zero
    else:
      assert np.linalg.norm(gradient) == pytest.approx(path.gradient_norm[i], rel=1e-2)


def test_small_loss_is_precise():
  """Separable data and a weak penalty: the loss is below 1e-4 and float32 still converges."""
  x, y, _, _ = PROBLEMS["digits, two classes"]
  path = _fit(x, np.searchsorted([3, 8], y), [1e-3, 1e-8, 1e-9], num_classes=2)
  assert path.converged.all()
  exact = _objective(path.kernel[2], path.bias[2], x, np.searchsorted([3, 8], y), 1e-9,
                     _scale(x, "scalar"))  # fmt: skip
  assert exact < 1e-4
  assert path.objective[2] == pytest.approx(exact, rel=1e-5)


def test_cross_entropy_of_wrong_and_right_answers():
  rng = np.random.default_rng(0)
  logits = (30 * rng.normal(size=(6, 4))).astype(np.float32)
  y = np.arange(6) % 4
  margins = (logits - logits[np.arange(6), y][:, None]).T
  expected = -_log_softmax(logits.astype(np.float64))[np.arange(6), y]
  for i in range(6):
    data = probe_objective.Data(np.zeros((1, 1)), y[None, i : i + 1])
    _, loss = probe_objective.others(data, margins[:, i : i + 1])
    np.testing.assert_allclose(loss, expected[i], rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("absent", marks.first(1, [(0, 5), (4,), (9,)]))
def test_absent_class_never_wins(absent):
  x, y, x_val, y_val = _digits(absent=absent)
  path = _fit(x, y, [10.0, 0.1, 1e-4])
  far = np.random.default_rng(0).normal(size=(500, 64)) * 1e3
  for kernel, bias in zip(path.kernel, path.bias, strict=True):
    assert np.isfinite(bias).all()
    assert not kernel[:, absent].any()
    for inputs in (x_val, far):
      logits = inputs @ kernel + bias
      assert not np.isin(logits.argmax(axis=1), absent).any()
      probability = np.exp(_log_softmax(logits))[:, absent]
      assert probability.max() <= 1.001 / (2 * len(y) * (10 - len(absent)))
  choice = probe.choose(path, x_val, y_val)
  assert np.isfinite(choice.loss).all()
  assert choice.accuracy.max() <= 1 - np.isin(y_val, absent).mean()


@pytest.mark.parametrize("max_steps", [1, 3])
def test_absent_class_never_wins_before_convergence_or_after_rescaling(max_steps):
  x, y, x_val, _ = _digits(absent=(4, 9))
  path = _fit(x, y, [0.1, 1e-4], max_steps=max_steps)
  for head in (path.head(0), path.head(1), probe.rescale(path.head(1), 0.3)):
    logits = x_val @ head["kernel"] + head["bias"]
    present = logits[:, np.isin(np.arange(10), y)]
    np.testing.assert_allclose(present.sum(axis=1), 0, atol=1e-2)
    assert not np.isin(logits.argmax(axis=1), (4, 9)).any()


def test_partly_converged_heads():
  x, y, _, _ = PROBLEMS["digits"]
  l2, options = [1e-2, 1e-4], {"standardize": "feature"}
  end = _fit(x, y, l2, **options)
  objectives = []
  with mock.patch.object(logging, "warning") as warning:
    for steps in (1, 2, 4, 8, 400):
      path = _fit(x, y, l2, max_steps=steps, **options)
      objectives.append(path.objective)
      assert (path.iterations <= steps).all()
      assert (path.iterations[~path.converged] == steps).all()
      alone = _fit(x, y, l2[1:], max_steps=steps, **options)
      np.testing.assert_array_equal(path.kernel[1], alone.kernel[0])  # no warm start
  assert not warning.called
  assert (np.diff(objectives, axis=0) < 0).all()
  assert objectives[0].max() < np.log(10)  # of the zero head
  assert path.converged.all()
  np.testing.assert_allclose(objectives[-1], end.objective, rtol=1e-6)


def test_rescaled_head():
  x, y, x_val, _ = PROBLEMS["digits"]
  head = _fit(x, y, [1e-3]).head(0)
  scaled = probe.rescale(head, 0.125)
  assert scaled["kernel"].std() == pytest.approx(0.125, rel=1e-5)
  ratio = 0.125 / head["kernel"].std()
  for name in ("kernel", "bias"):
    assert scaled[name].dtype == np.float32
    np.testing.assert_allclose(scaled[name], ratio * head[name], rtol=1e-5)
  before, after = (x_val @ h["kernel"] + h["bias"] for h in (head, scaled))
  np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))


@pytest.mark.parametrize(
  ("kernel", "std", "message"),
  [
    (np.eye(3), 0.0, "standard deviation 0.0: the head that it replaces must be a random one"),
    (np.eye(3), np.nan, "standard deviation nan"),
    (np.ones((3, 3)), 1.0, "weights are all equal"),
  ],
)
def test_heads_that_cannot_be_rescaled(kernel, std, message):
  with pytest.raises(ValueError, match=message):
    probe.rescale({"kernel": kernel, "bias": np.zeros(3)}, std)


def test_stage_rescales_to_the_initial_head_and_stops_early():
  model, variables = tiny.make()
  variables = heads.init_head(model, variables, 3)
  train, validation = tiny.examples(40), tiny.examples(20, seed=1)
  fits = {}
  for name, options in {
    "plain": {}, "rescaled": {"rescale": True}, "early": {"max_steps": 1}
  }.items():  # fmt: skip
    method = methods.linear_probing(l2=(1.0, 1e-3), **options)
    fits[name] = loop.fit(tiny.engine(model), variables, method, train, validation)
  kernels = {name: np.asarray(f.variables["params"]["head"]["kernel"]) for name, f in fits.items()}
  initial = np.asarray(variables["params"]["head"]["kernel"])
  assert kernels["rescaled"].std() == pytest.approx(initial.std(), rel=1e-5)
  assert kernels["plain"].std() != pytest.approx(initial.std(), rel=1e-2)
  ratio = initial.std() / kernels["plain"].std()
  np.testing.assert_allclose(kernels["rescaled"], ratio * kernels["plain"], rtol=1e-4)
  rows = {name: f.history[0] for name, f in fits.items()}
  assert rows["rescaled"]["validation_accuracy"] == rows["plain"]["validation_accuracy"]
  assert rows["rescaled"]["train_loss"] != rows["plain"]["train_loss"]
  assert rows["early"]["train_loss"] > rows["plain"]["train_loss"]


def test_new_options_change_no_key_at_their_defaults():
  plain = ledger.plain(methods.linear_probing(l2=(1.0,))[0].solver)
  assert plain == {"l2": [1.0], "standardize": "scalar"}
  made = methods.lp_ft(1e-3, epochs=1, l2=(1.0,), max_steps=2, rescale=True)[0].solver
  assert ledger.plain(made) == plain | {"max_steps": 2, "rescale": True}
  with pytest.raises(ValueError, match="max_steps is 0; give at least 1, or None"):
    methods.linear_probing(max_steps=0)


def test_a_second_grid_of_another_length_compiles_nothing():
  x, y, _, _ = PROBLEMS["digits"]
  _fit(x, y, [1.0, 0.1])
  before = probe_solver.solve._cache_size()
  _fit(x, y, [5.0, 0.5, 0.05], tol=1e-6, max_iterations=50)
  assert probe_solver.solve._cache_size() == before


def test_order_of_the_grid_is_kept():
  x, y, _, _ = PROBLEMS["digits"]
  path = _fit(x, y, [0.1, 1e-3, 10.0, 0.1])
  reverse = _fit(x, y, [0.1, 10.0, 1e-3, 0.1])
  np.testing.assert_allclose(path.objective, reverse.objective[[0, 2, 1, 3]], rtol=1e-6)
  assert path.objective[1] < path.objective[0] < path.objective[2]
  assert path.objective[3] == pytest.approx(path.objective[0], rel=1e-6)


def test_rotated_features_have_the_same_optimum():
  x, y, _, _ = PROBLEMS["more features than images"]
  rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(400, 400)))[0]
  options = {"num_classes": 12, "standardize": "none"}
  straight = _fit(x, y, [1.0, 1e-3], **options)
  rotated = _fit(x @ rotation, y, [1.0, 1e-3], **options)
  np.testing.assert_allclose(straight.objective, rotated.objective, rtol=1e-6)
  np.testing.assert_allclose(straight.kernel[1], rotation @ rotated.kernel[1], atol=2e-4)


def test_scale_and_shift_of_the_input_fold_into_the_head():
  x, y, x_val, _ = PROBLEMS["digits"]
  path = _fit(x, y, [1e-2])
  moved = _fit(x * 50 - 300, y, [1e-2])
  np.testing.assert_allclose(
    x_val @ path.kernel[0] + path.bias[0],
    (x_val * 50 - 300) @ moved.kernel[0] + moved.bias[0],
    atol=5e-3,
  )


def test_sharded_features_are_read_whole():
  x, y, _, _ = PROBLEMS["digits"]
  x, y = x[:400], y[:400]
  mesh = jax.make_mesh((jax.device_count(),), ("data",))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  path, sharded = _fit(x, y, [0.1]), _fit(jax.device_put(x, sharding), jax.device_put(y), [0.1])
  np.testing.assert_array_equal(path.kernel, sharded.kernel)


def test_unconverged_fits_are_flagged_and_logged():
  x, y, _, _ = PROBLEMS["digits"]
  with mock.patch.object(logging, "warning") as warning:
    path = _fit(x, y, [1e4, 1e-6], max_iterations=3)
  np.testing.assert_array_equal(path.converged, [True, False])
  assert path.iterations.tolist() == [path.iterations[0], 3]
  message = warning.call_args.args[0] % warning.call_args.args[1:]
  assert "1 of 2 strengths did not reach tol=1e-06 within 3 iterations" in message


def test_lpft_grid():
  grid = probe.lpft_strengths(652)
  assert len(grid) == 50
  assert grid[[0, -1]] == pytest.approx([1 / (1e-7 * 652), 1 / (1e2 * 652)])


def _path_of(kernels, l2):
  weights = np.pad(np.swapaxes(np.array(kernels, float), 1, 2), ((0, 0), (0, 0), (0, 1)))
  rotation = probe_features.Rotation(np.zeros((2, 1)), np.eye(1), np.zeros(1), np.ones(1), None)
  k = np.zeros(len(l2))
  return probe.ProbePath(rotation, weights, k, k, k, k == 0, np.array(l2))


RIGHT, WRONG = [[-1, 1]], [[1, -1]]


@pytest.mark.parametrize(
  ("kernels", "l2", "index", "at_edge"),
  [
    ([WRONG, RIGHT, WRONG], [1.0, 0.1, 0.01], 1, False),
    ([WRONG, RIGHT, RIGHT, WRONG], [0.01, 0.1, 1.0, 10.0], 2, False),  # a tie: the stronger
    ([RIGHT, WRONG, WRONG], [1.0, 0.1, 0.01], 0, True),
    ([WRONG, WRONG, RIGHT], [1.0, 0.1, 0.01], 2, True),
    ([RIGHT], [1.0], 0, False),
  ],
)
def test_choose(kernels, l2, index, at_edge):
  path = _path_of(kernels, l2)
  with mock.patch.object(logging, "warning") as warning:
    choice = probe.choose(path, np.array([[1.0], [-2.0]]), np.array([1, 0]))
  assert (choice.index, choice.at_edge) == (index, at_edge)
  assert warning.called == at_edge
  right = [k is RIGHT for k in kernels]
  np.testing.assert_array_equal(choice.accuracy, right)
  margins = np.where(right, 1, -1)[:, None] * np.array([2.0, 4.0])
  np.testing.assert_allclose(choice.loss, np.log1p(np.exp(-margins)).mean(axis=1), rtol=1e-5)
  np.testing.assert_array_equal(path.head(index)["kernel"], RIGHT)


X, Y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])


def _with(value):
  x = X.copy()
  x[2, 1] = value
  return x


@pytest.mark.parametrize(
  ("x", "y", "options", "message"),
  [
    (_with(np.nan), Y, {}, "first is nan at example 2, feature 1"),
    (_with(np.inf), Y, {}, "first is inf at example 2, feature 1"),
    (X, [0, 1, 2, 10], {}, r"label 10 is outside \[0, 10\)"),
    (X, [0, 1, -1, 2], {}, r"label -1 is outside \[0, 10\)"),
    (X, [0.0, 1, 2, 0], {}, "float64, not integers"),
    (X, [0, 1], {}, r"features \(4, 4\) and labels \(2,\)"),
    (X[:0], Y[:0], {}, r"features \(0, 4\)"),
    (X.reshape(4, 2, 2), Y, {}, r"features \(4, 2, 2\)"),
    (X, [3, 3, 3, 3], {}, "all 4 training labels are 3"),
    (np.ones((4, 4)), Y, {}, "all 4 training examples have the same features"),
    (X, Y, {"l2": []}, "at least one strength"),
    (X, Y, {"l2": [1.0, 0.0]}, "l2 holds 0.0"),
    (X, Y, {"l2": [np.nan]}, "l2 holds nan"),
    (X, Y, {"standardize": "sclar"}, "'sclar': use one of"),
    (X, Y, {"tol": 0}, "tol is 0"),
    (X, Y, {"max_iterations": 0}, "max_iterations is 0"),
    (X, Y, {"max_steps": 0}, "max_steps is 0"),
  ],
)
def test_errors_name_the_value(x, y, options, message):
  with pytest.raises(ValueError, match=message):
    _fit(x, y, **({"l2": [1.0]} | options))


@pytest.mark.parametrize("shape", [(40, 7), (20, 300)])
@pytest.mark.parametrize("standardize", ["none", "scalar", "feature"])
def test_scores_of_other_images_are_what_the_heads_say(shape, standardize):
  """`choose` reads scores; a network reads the kernel on raw features."""
  rng = np.random.default_rng(0)
  x, other = rng.normal(2, 3, shape), rng.normal(2, 3, (9, shape[1]))
  path = _fit(x, np.arange(len(x)) % 4, [1.0, 1e-2], standardize=standardize)
  scores = probe_features.scores(path.rotation, other.astype(np.float32))
  for i in range(2):
    head = path.head(i)
    wanted = other.astype(np.float32) @ head["kernel"].astype(float) + head["bias"]
    found = scores @ path.weights[i, :, :-1].T + path.weights[i, :, -1]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_array_equal(head["kernel"], path.kernel[i])


def test_choose_refuses_features_of_another_width():
  with pytest.raises(ValueError, match="have 3 columns and the path was fitted on 1"):
    probe.choose(_path_of([RIGHT], [1.0]), np.ones((2, 3)), np.array([0, 1]))
