"""Options for unbalanced images in a comparison: fields, keys of ledgers, choices, the page."""

import io
import itertools
import json

import numpy as np
import pytest
from sklearn import metrics

from subtune_jax import methods
from subtune_jax.runner import choice, network, recipes, trainings, workdir
from subtune_jax.statistics import criteria
from subtune_jax.studies.compare import best
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import figures as compare_figures
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.robustness import run as robustness
from subtune_jax.studies.search import config as search_config
from subtune_jax.training import evaluate, probe
from tests.studies import small_search

NAMES = ("cat", "dog, wild", "a=b")


def make_config(**fields):
  config = compare_config.default()
  config.methods, config.seeds, config.batch_size = ("lp", "ft"), (0,), 8
  config.data.train, config.data.ood, config.data.image_size = small_search.NAME, (), 16
  config.backbone.update(
    name="resnet14", weights="random", preprocessing="half", options="stage_sizes=(1,1,1),width=8"
  )
  config.lp.l2, config.ft.epochs, config.ft.learning_rates = (10.0, 0.1), 1, (1e-3, 1e-2)
  config.tensorboard = config.save_model = False
  config.update(fields)
  return config


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("none", "none"), ("balanced", "balanced"), ("cat=2", (2.0, 1.0, 1.0)),
    ("dog, wild=0.5,a=b=3", (1.0, 0.5, 3.0)), ("a=b=1e1,cat=4", (4.0, 1.0, 10.0)),
  ],
)  # fmt: skip
def test_class_weights_are_read_by_name(text, found):
  assert recipes.class_weights(text, NAMES) == found


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("even", "loss.class_weights is 'even'; give 'none', 'balanced'"), ("", "give 'none'"),
    ("cats=2", "Unknown class in loss.class_weights 'cats'. Did you mean 'cat'"),
    ("cat=2,cat=3", "names 'cat' twice"), ("cat=0", "above 0 and finite"),
    ("cat=two", "give 'none'"), ("cat=2,", "give 'none'"), ("cat=nan", "above 0 and finite"),
    ("cat=inf", "above 0 and finite"), ("cat=2 dog", "give 'none'"),
  ],
)  # fmt: skip
def test_class_weights_that_make_no_sense_are_refused(text, message):
  if text == "cat=2,":
    assert recipes.class_weights(text, NAMES) == (2.0, 1.0, 1.0)
    return
  with pytest.raises(ValueError, match=message):
    recipes.class_weights(text, NAMES)


def test_options_are_refused_before_any_training(tmp_path):
  small_search.register()
  bad = [
    ({"select_by": "f1"}, "select_by is 'f1'; allowed: 'accuracy', 'balanced_accuracy'"),
    ({"sampling": "even"}, "Unknown sampling 'even'"),
    ({"sampling": "balanced", "methods": ("lp",)}, "none of the methods, lp, has batches"),
    ({"loss": {"class_weights": "zebra=2"}}, "Unknown class in loss.class_weights 'zebra'"),
    ({"sampling": "balanced", "loss": {"class_weights": "balanced"}}, "balance by one of them"),
    ({"augment": {"rotate": 10.0}}, "augment.rotate is 10.0 and augment.kind 'none'"),
    ({"augment": {"flip": True}}, "augment.flip is True and augment.kind 'none'"),
    ({"augment": {"color": (0.0, 0.4, 0.0, 0.0)}}, "augment.color is .* and augment.kind 'none'"),
    ({"augment": {"rotate": 200.0, "kind": "shift"}}, "rotate is 200.0; give degrees"),
  ]
  for number, (fields, message) in enumerate(bad):
    folder = tmp_path / str(number)
    with pytest.raises(ValueError, match=message):
      compare.run(make_config(**fields), folder, stream=io.StringIO())
    assert not folder.exists()
  searched = small_search.config()
  searched.select_by = "auroc"
  with pytest.raises(ValueError, match="select_by is 'auroc'; a search compares sets of blocks"):
    search_config.check(searched)
  searched = small_search.config()
  searched.loss.class_weights = "zebra=2"
  with pytest.raises(ValueError, match="'zebra'"):
    small_search.run(tmp_path / "search", searched)
  assert not (tmp_path / "search").exists()
  assert not {"sampling", "loss", "select_by"} & set(holistic_config.default())


def test_views_of_a_config():
  augment = make_config(augment={"kind": "shift", "pad": 0, "rotate": 15.0}).augment
  assert network.augmentation(augment).rotate == 15.0
  assert network.augmentation(make_config().augment) is None


def described(config, tmp_path):
  """What the key of a training by full fine-tuning is made of."""
  small_search.register()
  state = compare.start(config, tmp_path, io.StringIO())
  method = trainings.stages_of(state, "ft", 1e-3)
  return trainings.describe(state, "ft", method, 0, state.train, state.validation)


@pytest.mark.slow
def test_fields_are_in_the_key_only_where_they_are_not_the_default(tmp_path):
  plain = described(make_config(), tmp_path / "plain")
  text = json.dumps(plain)
  for name in ("class_weights", "sampling", "select_by", "rotate", "flip_vertical", "quarter"):
    assert name not in text
  changed = [
    {"select_by": "auroc"}, {"sampling": "balanced"}, {"loss": {"class_weights": "balanced"}},
    {"augment": {"kind": "shift", "rotate": 5.0}},
    {"augment": {"kind": "shift", "flip_vertical": True}},
    {"augment": {"kind": "shift", "quarter_turns": True}}, {"augment": {"kind": "shift"}},
  ]  # fmt: skip
  keys = {text}
  for number, fields in enumerate(changed):
    keys.add(json.dumps(described(make_config(**fields), tmp_path / str(number))))
  assert len(keys) == 1 + len(changed)


def test_a_workdir_without_the_fields_is_entered_again(tmp_path):
  config = make_config()
  old = workdir.as_json(config)
  del old["select_by"], old["sampling"], old["loss"]
  for name in ("rotate", "flip_vertical", "quarter_turns"):
    del old["augment"][name]
  workdir.write_json(tmp_path / "config.json", old)
  assert workdir.enter(tmp_path, config) == (tmp_path, True)
  with pytest.raises(ValueError, match="select_by: 'accuracy' -> 'nll'"):
    workdir.enter(tmp_path, make_config(select_by="nll"))


def _theirs(name, logits, labels):
  probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
  probabilities /= probabilities.sum(axis=1, keepdims=True)
  if name == "nll":
    return -metrics.log_loss(labels, probabilities)
  if name == "auroc":
    return metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
  predicted = logits.argmax(axis=1)
  if name == "balanced_accuracy":
    return metrics.balanced_accuracy_score(labels, predicted)
  return metrics.accuracy_score(labels, predicted)


def noisy(seed, n=80):
  rng = np.random.default_rng(seed)
  labels = rng.choice(3, n, p=(0.7, 0.2, 0.1))
  labels[:3] = range(3)
  return (rng.normal(size=(n, 6)) + np.eye(6)[labels]).astype(np.float32), labels


def test_the_strength_of_a_probe_is_the_best_by_scikit_learns_metric():
  chosen = []
  for seed in range(4):
    (x, y), (x_val, y_val) = noisy(seed), noisy(seed + 50)
    path = probe.fit_path(x, y, num_classes=3, l2=np.logspace(1, -5, 13))
    for name, own in criteria.CRITERIA.items():
      made = probe.choose(path, x_val, y_val, name)
      values = np.array([
        _theirs(name, x_val @ kernel + bias, y_val)
        for kernel, bias in zip(path.kernel, path.bias, strict=True)
      ])  # fmt: skip
      np.testing.assert_allclose(own.sign * made.values, values, rtol=1e-5)
      assert values[made.index] == pytest.approx(values.max(), rel=1e-6)
      chosen.append(made.index)
  assert any(len(set(chosen[i : i + 4])) > 2 for i in range(0, 16, 4))


def test_the_learning_rate_is_the_best_by_the_criterion():
  rows = [
    {"learning_rate": r, "validation_accuracy": a, "validation_loss": n, "validation_auroc": u,
     "validation_balanced_accuracy": b}
    for r, a, n, u, b in ((1.0, 0.9, 2.0, 0.6, 0.3), (2.0, 0.8, 1.0, 0.7, 0.5),
                          (3.0, 0.7, 1.5, 0.9, 0.4), (4.0, None, None, None, None))
  ]  # fmt: skip
  first = {name: choice.best_first(rows, own)[0] for name, own in criteria.CRITERIA.items()}
  assert first == {"accuracy": 1.0, "balanced_accuracy": 2.0, "auroc": 3.0, "nll": 2.0}
  assert choice.best_first(rows) == [1.0, 2.0, 3.0]


def test_early_stopping_takes_the_best_epoch_by_the_criterion():
  scores = [(0.5, 0.9, 0.4), (0.8, 0.7, 0.3), (0.6, 0.2, 0.5)]  # accuracy, loss, AUROC
  epochs = [
    robustness._Epoch(None, {
      "stage": 0, "epoch": i + 1, "accuracy": {robustness.VALIDATION: accuracy},
      "validation_loss": loss, "validation_auroc": auroc,
    }, {})
    for i, (accuracy, loss, auroc) in enumerate(scores)
  ]  # fmt: skip
  rows = {"key": ({"learning_rate": 1.0, "seed": 0}, epochs)}
  taken = {
    name: robustness._choices(rows, (), criteria.CRITERIA[name])["early_stopping"].epochs[0]
    for name in ("accuracy", "nll", "auroc")
  }
  assert taken == {"accuracy": 1, "nll": 2, "auroc": 2}


@pytest.mark.parametrize(
  "name",
  ["balanced_accuracy", *(pytest.param(n, marks=pytest.mark.slow) for n in ("auroc", "nll"))],
)
def test_a_comparison_chooses_by_the_metric_and_says_so(tmp_path, name):
  small_search.register()
  own = criteria.CRITERIA[name]
  config = make_config(
    select_by=name, sampling="balanced", loss={"class_weights": "none"}, save_model=True,
    augment={"kind": "shift", "rotate": 10.0, "flip_vertical": True},
  )  # fmt: skip
  stream = io.StringIO()
  record = compare.run(config, tmp_path, stream=stream)
  run = compare_record.load(tmp_path)
  labels = np.load(tmp_path / "logits/validation/examples.npz")["labels"]
  rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
  assert len(rows) == 3
  for row in rows:
    last = row["history"][-1]
    path = tmp_path / f"logits/validation/{row['key']}/{last['stage']}-{last['epoch']}.npz"
    wanted = own.sign * _theirs(name, np.load(path)["logits"].astype(np.float64), labels)
    assert row[own.field] == pytest.approx(wanted, rel=1e-5)
    assert row["validation_accuracy"] is not None
  ft = run.method("ft")
  values = {point["learning_rate"]: own.score(point) for point in ft["grid"]}
  assert ft["learning_rate"] == max(values, key=values.get)
  figure = compare_figures.setting_grids(run)
  assert figure.axes[0].get_ylabel() == own.label
  heights = list(figure.axes[1].lines[0].get_ydata())
  assert heights == [own.shown(point) for point in ft["grid"]]
  assert f"by {own.title}" in (tmp_path / "report.html").read_text()
  assert f"chosen by validation {own.title}" in stream.getvalue()
  picked = best.choose(record)
  assert own.score({"validation_loss": picked["history"][-1]["validation_loss"]} | picked) == max(
    own.score({"validation_loss": t["history"][-1]["validation_loss"]} | t)
    for t in record["trainings"]
    if t["chosen"]
  )
  again = io.StringIO()
  compare.run(config, tmp_path, stream=again)
  assert "3 trainings are finished" in again.getvalue()


def test_weights_and_sampling_reach_every_stage_of_a_comparison_and_a_search():
  config = make_config(loss={"class_weights": "cat=2.0"}, sampling="balanced")
  made = recipes.balanced(config, methods.lp_ft(1e-3, epochs=1), NAMES)
  assert [stage.solver.class_weights for stage in made] == [(2.0, 1.0, 1.0)] * 2
  assert made[1].solver.sampling == "balanced"
  searched = small_search.config()
  searched.sampling, searched.loss.class_weights = "balanced", "cat=2.0"
  recipe = search_config.make_recipe(searched, NAMES)
  stages = itertools.chain(recipe.method(("stem",)), recipe.probe)
  assert [stage.solver.class_weights for stage in stages] == [(2.0, 1.0, 1.0)] * 2
  assert recipe.method(("stem",))[0].solver.sampling == "balanced"


def test_metrics_of_logits():
  logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [1.0, 0.5]])
  labels = np.array([0, 0, 1, 1])
  assert evaluate.metric("balanced_accuracy", logits, labels) == 0.75
  assert evaluate.metric("auroc", logits, labels) == 1.0
