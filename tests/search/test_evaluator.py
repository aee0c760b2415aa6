"""Scores by training: right, the same with every option of speed, never trained twice."""

import dataclasses

import jax
import numpy as np
import pytest

from subtune_jax import methods
from subtune_jax.models import heads
from subtune_jax.search import evaluator, greedy, store
from subtune_jax.training import loop, trace
from subtune_jax.training import mesh as mesh_lib
from tests import marks, tiny
from tests.search import small

SETS = [(), ("stem",), ("block2/unit1",), ("block1/unit1", "block3/unit1")]


def make(folder, problem=None, recipe=None, engine=None, **options):
  net = small.model()
  return evaluator.Evaluator(
    problem or small.problem(net), recipe or small.recipe(), engine or small.engine(net),
    store.Store(folder), **options,
  )  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
  folder = tmp_path_factory.mktemp("store")
  made = make(folder)
  return folder, made, made.evaluate(SETS)


def test_a_score_is_the_accuracy_on_held_out_images(scored):
  """Against trainings written out here: fit on the rest, predict the held-out images."""
  _, made, found = scored
  problem, net = made.problem, small.model()
  engine = tiny.engine(net)
  for fold, (rest, held) in enumerate(problem.folds):
    parts = [problem.train.subset(rows) for rows in (rest, held)]
    method = methods.sub_tuning(("block2/unit1",), 1e-2, epochs=2)
    start = heads.init_head(net, problem.variables, 0, problem.weights)
    result = loop.fit(engine, start, method, parts[0], None, seed=0)
    right = np.argmax(engine.predict(result.variables, parts[1].images), -1) == parts[1].labels
    assert found["block2/unit1",].cells[fold].tolist() == right.tolist()
  assert found["block2/unit1",].mean == pytest.approx(
    np.mean(found["block2/unit1",].by_fold)
  )  # fmt: skip


def test_every_example_is_held_out_once(scored):
  _, made, _ = scored
  held = np.concatenate([held for _, held in made.problem.folds])
  assert sorted(held) == list(range(small.N))
  for rest, held in made.problem.folds:
    assert not set(rest) & set(held)


def test_nothing_is_trained_twice(scored):
  folder, _, found = scored
  again = make(folder)
  scores = again.evaluate(SETS)
  assert again.trained == 0
  assert again.seconds > 0
  for units in SETS:
    assert np.array_equal(scores[units].by_fold, found[units].by_fold)
  more = again.evaluate([("stem",), ("block1/unit1",)])
  assert again.trained == small.FOLDS
  assert np.array_equal(more["stem",].by_fold, found["stem",].by_fold)


@pytest.mark.slow
@pytest.mark.parametrize("in_pieces", [True, False])
def test_the_first_training_is_traced(scored, tmp_path, in_pieces):
  said, net = [], small.model()
  kept = trace.Trace(tmp_path / "trace", 2, said.append)
  made = make(tmp_path / "store", engine=small.engine(net, in_pieces=in_pieces), trace=kept)
  found = made.evaluate([(), ("block2/unit1",), ("stem",)])
  (line,) = said
  assert line.startswith(f"trace of 2 steps of stage 'stem': {tmp_path / 'trace'}; open")
  assert len(list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))) == 1
  assert np.array_equal(found["stem",].by_fold, scored[2]["stem",].by_fold)


@pytest.mark.parametrize(
  ("fields", "options"),
  marks.first(
    2,
    [
      ({"in_pieces": False, "prefix_cache": False}, {"prefix_bytes": 0}),
      ({}, {"prefix_bytes": 10, "prefix_disk_bytes": 1 << 20}),
      ({}, {"prefix_bytes": 100_000}),
    ],
    several=True,
  ),
)
def test_options_of_speed_change_no_score(scored, tmp_path, fields, options):
  """Logits within 1e-3 of a magnitude of 1 to 5, the same accuracies and the same choice."""
  folder, made, found = scored
  net = small.model()
  slow = make(tmp_path, engine=small.engine(net, **fields), **options)
  scores = slow.evaluate(SETS)
  assert slow.key(SETS[1], 0, 0) == made.key(SETS[1], 0, 0)  # one store holds both
  network = made.problem.network
  assert greedy.best(network, list(scores.values())).units == (
    greedy.best(network, list(found.values())).units
  )
  for units in SETS:
    assert np.array_equal(scores[units].by_fold, found[units].by_fold), units
    for row in slow.rows(units):
      one, other = (store.Store(f).logits(row["key"])["logits"] for f in (folder, tmp_path))
      np.testing.assert_allclose(one, other, atol=1e-3)


def test_trainings_spread_over_devices(scored, tmp_path):
  _, _, found = scored
  net = small.model()
  engine = small.engine(net, mesh=mesh_lib.make_mesh(jax.devices()))
  spread = make(tmp_path, engine=engine)
  assert spread.num_workers == len(jax.devices()) > 1
  scores = spread.evaluate(SETS)
  assert spread.trained == small.FOLDS * len(SETS)
  for units in SETS:
    assert np.array_equal(scores[units].by_fold, found[units].by_fold)


def test_seeds_are_averaged(tmp_path):
  made = make(tmp_path, problem=small.problem(seeds=(0, 1)))
  score = made.evaluate([("block3/unit1",)])["block3/unit1",]
  assert made.trained == 2 * small.FOLDS
  assert {value for cell in score.cells for value in cell.tolist()} <= {0.0, 0.5, 1.0}
  head = made.evaluate([()])[()]
  assert made.trained == 3 * small.FOLDS  # the probe does not depend on the seed
  assert head.complete


@pytest.mark.parametrize(
  "change",
  ["rate", "head", "seed", "fold", "data", "weights", "batch"],
)
def test_whatever_a_result_depends_on_is_in_its_key(tmp_path, change):
  made = make(tmp_path)
  problem, recipe, engine, seed, fold = made.problem, made.recipe, small.engine(small.model()), 0, 0
  if change == "rate":
    recipe = dataclasses.replace(
      recipe, method=lambda blocks: methods.sub_tuning(blocks, 1e-3, epochs=2)
    )
  elif change == "head":
    recipe = dataclasses.replace(recipe, head="probe")
  elif change == "data":
    images = problem.train.images.copy()
    images[0, 0, 0, 0] ^= 1
    train = dataclasses.replace(problem.train, images=images)
    problem = dataclasses.replace(problem, train=train)
  elif change == "weights":
    problem = dataclasses.replace(problem, weights="other")
  elif change == "batch":
    engine = dataclasses.replace(engine, batch_size=4)
  seed, fold = int(change == "seed"), int(change == "fold")
  other = make(tmp_path, problem=problem, recipe=recipe, engine=engine)
  assert other.key(("stem",), fold, seed) != made.key(("stem",), 0, 0)


def test_a_probed_head(tmp_path):
  """Training starts from the fold's probe: at a rate of 0 the score is that of the head alone."""
  recipe = dataclasses.replace(
    small.recipe(), head="probe",
    method=lambda blocks: methods.sub_tuning(blocks, 0.0, epochs=1, norm_mode="running"),
  )  # fmt: skip
  made = make(tmp_path, recipe=recipe)
  found = made.evaluate([(), ("block2/unit1",)])
  assert np.array_equal(found[()].by_fold, found["block2/unit1",].by_fold)


def test_a_training_that_diverges_scores_nothing(tmp_path):
  recipe = dataclasses.replace(
    small.recipe(), method=lambda blocks: methods.sub_tuning(blocks, 1e30, epochs=3)
  )
  made = make(tmp_path, recipe=recipe)
  score = made.evaluate([("block2/unit1",)])["block2/unit1",]
  assert score.mean == 0
  assert "diverged" in made.rows(("block2/unit1",))[0]


def test_the_budget_of_the_prefix_is_kept(tmp_path):
  made = make(tmp_path, prefix_bytes=100_000)
  made.evaluate([(name,) for name in made.problem.network.names])
  assert 0 < made.prefix.peak_bytes <= 100_000
  assert made.prefix.notes


OTHERS = {
  "backbone": lambda p: {"variables": changed(p.variables, "params", "stem")},
  "statistics": lambda p: {"variables": changed(p.variables, "batch_stats", "stem")},
  "images": lambda p: {"train": dataclasses.replace(p.train, images=p.train.images[::-1])},
  "labels": lambda p: {"train": dataclasses.replace(p.train, labels=(p.train.labels + 1) % 3)},
  "groups": lambda p: {"train": dataclasses.replace(p.train, groups=p.train.groups[::-1])},
  "folds": lambda p: {"folds": p.folds[1:] + p.folds[:1]},
}


def changed(variables, collection, name):
  """The same names and shapes; one number of one leaf is another."""
  leaves, structure = jax.tree.flatten(variables[collection][name])
  leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].add(0.5)
  part = variables[collection] | {name: structure.unflatten(leaves)}
  return {**variables, collection: part}


@pytest.mark.parametrize("what", OTHERS)
def test_another_array_under_the_same_names_brings_no_old_score(scored, tmp_path, what):
  """One store, the same string for the weights: what was trained on other arrays is not read."""
  folder, made, _ = scored
  problem = dataclasses.replace(made.problem, **OTHERS[what](made.problem))
  other = make(folder, problem=problem)
  assert other.problem.weights == made.problem.weights
  for units in SETS:
    for seed, fold in [(0, fold) for fold in range(small.FOLDS)]:
      assert other.key(units, fold, seed) != made.key(units, fold, seed)
      assert other.store.get(other.key(units, fold, seed)) is None or what == "folds"


def test_a_head_that_is_replaced_is_no_part_of_a_key(tmp_path):
  """And one that trainings start from is."""
  problem = small.problem()
  other = dataclasses.replace(problem, variables=changed(problem.variables, "params", "head"))
  for head, same in [("random", True), ("probe", True), ("pretrained", False)]:
    recipe = small.recipe(head=head)
    keys = [make(tmp_path, problem=p, recipe=recipe).key(("stem",), 0, 0) for p in (problem, other)]
    assert (keys[0] == keys[1]) == same


@dataclasses.dataclass(frozen=True)
class Pull:
  """Fields as those of `methods.FeatureRank`."""

  weight: float

  def __call__(self, trained, initial, logits, batch):
    return self.weight * sum(x.sum() for x in jax.tree.leaves(trained))


def test_two_functions_of_one_name_or_equal_fields_have_two_keys(tmp_path):
  def recipe(**fields):
    return dataclasses.replace(
      small.recipe(), method=lambda blocks: methods.sub_tuning(blocks, 1e-2, epochs=1, **fields)
    )

  keys = {
    make(tmp_path, recipe=recipe(penalty=penalty)).key(("stem",), 0, 0)
    for penalty in (None, Pull(0.1), methods.FeatureRank(0.1))
  }
  assert len(keys) == 3
  for penalty in (lambda *_: 0.0, Pull(0.1).__call__):
    unknown = make(tmp_path, recipe=recipe(penalty=penalty))
    with pytest.raises(ValueError, match="its name does not say what it computes; use a function"):
      unknown.key(("stem",), 0, 0)
