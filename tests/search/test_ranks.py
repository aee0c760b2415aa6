"""Ranks of LoRA as candidates: what they cost, and a search that finds what trying all finds."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from subtune_jax import adapters, methods
from subtune_jax.models import adapted
from subtune_jax.report import charts
from subtune_jax.runner import recipes
from subtune_jax.search import evaluator, greedy, ranks, rules, scores, store
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import record as search_record
from subtune_jax.training import evaluate, loop
from tests.search import small, tables
from tests.studies import small_search

UNITS = "early: stem; late: block2/unit1 block3/unit1"


def network(given=(4, 1), spec=UNITS):
  return ranks.network(small.model(), spec, given)


def every_set(own):
  """All sets, by trying: each unit at no rank or at one."""
  choices = [(None, *own.ranks)] * 2
  for found in itertools.product(*choices):
    pairs = dict(zip(("early", "late"), found, strict=True))
    yield tuple(f"{unit}={rank}" for unit, rank in pairs.items() if rank)


def test_candidates_are_units_at_ranks():
  own = network()
  assert own.names == ("early=1", "early=4", "late=1", "late=4")
  assert own.uniform() == [("early=1", "late=1"), ("early=4", "late=4")]
  assert own.everything == ("early=4", "late=4")
  assert own.larger(()) == [("early=1",), ("late=1",)]
  assert own.larger(("early=1", "late=4")) == [("early=4", "late=4")]
  assert own.smaller(("early=1", "late=4")) == [("late=4",), ("early=1", "late=1")]
  assert own.pattern(("early=1", "late=4")) == {
    "stem": 1, "block2/unit1": 4, "block3/unit1": 4,
  }  # fmt: skip


@pytest.mark.parametrize("units", [("early=1",), ("late=4",), ("early=4", "late=1")])
def test_parameters_are_those_of_the_network_that_is_trained(units):
  own, net = network(), small.model()
  made, variables = ranks.Adapters(own, {}).put(net, small.variables(net), units)
  _, tree = adapters.split(variables["params"])
  count = sum(a["lora"]["a"].size + a["lora"]["b"].size for a in tree.values())
  head = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["head"]))
  assert own.trained_params(units) == count + head
  found = {site.path: site.rules[0].rank_of(site.target) for site in made.sites}
  pattern = own.pattern(units)
  assert found
  for path, rank in found.items():
    assert rank == next(r for block, r in pattern.items() if path.startswith(block))


def test_a_block_without_a_linear_layer_is_no_candidate():
  base = tables.network("abc", params={"a": 5, "b": 5, "c": 5})
  own = ranks.Ranks(base, (2,), {"a": 3, "c": 7})
  assert own.names == ("a=2", "c=2")
  assert own.trained_params(("a=2", "c=2")) == base.head_params + 20
  with pytest.raises(ValueError, match="at least one"):
    ranks.Ranks(base, (2,), {})


@pytest.mark.parametrize("given", [(), (0,), (2, 2), (1.5,), (True,)])
def test_wrong_ranks(given):
  with pytest.raises(ValueError, match="ranks are"):
    ranks.Ranks(tables.network("abc"), given, {"a": 1})


@pytest.mark.parametrize("start", [greedy.forward, greedy.backward])
def test_greedy_finds_the_best_of_all_within_the_budget(start):
  """Of gains that shrink with the rank and add up, which greedy is exact for."""
  own = ranks.Ranks(tables.network("abc"), (1, 2, 3), {"a": 10, "b": 10, "c": 10})
  gains = {"a": (0.1, 0.11, 0.115), "b": (0.2, 0.26, 0.27), "c": (0.05, 0.054, 0.055)}

  def score(units):
    mean = 0.2 + sum(gains[n[0]][int(n[2:]) - 1] for n in units)
    return scores.from_accuracies(units, [mean] * 3)

  pick = greedy.exact(own, lambda sets: {units: score(units) for units in sets})
  budget = rules.Budget(trained_params=own.head_params + 40)
  rule = rules.Rule("gain", epsilon=0.0)
  if start is greedy.forward:
    path = greedy.forward(own, pick, rule, budget=budget)
  else:  # every rank earns more than nothing, so only the budget takes away
    path = greedy.backward(own, pick, rule, score(own.everything), budget=budget)
  sets = [
    tuple(f"{n}={r}" for n, r in zip("abc", found, strict=True) if r)
    for found in itertools.product((0, 1, 2, 3), repeat=3)
  ]
  allowed = [units for units in sets if budget.allows(own, units)]
  assert 20 < len(allowed) < len(sets) == 64
  assert path.chosen == max(allowed, key=lambda units: score(units).mean)
  assert path.chosen == ("a=1", "b=2", "c=1")


def recipe(own, epochs=3):
  return evaluator.Recipe(
    lambda blocks: methods.adapter_tuning(1e-2, epochs=epochs, norm_mode="running"),
    methods.linear_probing(l2=(1e-2,)), head="pretrained", adapters=ranks.Adapters(own, {}),
  )  # fmt: skip


def trainer(own, folder, **fields):
  net = small.model()
  base = small.problem(net)
  problem = dataclasses.replace(base, network=own, folds=base.folds[:2])
  return evaluator.Evaluator(problem, recipe(own), small.engine(net), store.Store(folder), **fields)


def lora_by_hand(problem, units, train, validation, rate=1e-2):
  """(engine, training) of LoRA as one would write it without the search; nothing is shared."""
  own, net = problem.network, small.model()
  pattern = {f"/{block}": rank for block, rank in own.pattern(units).items()}
  rule = adapters.LoRA(tuple(pattern), rank=8, alpha=8.0, rank_pattern=pattern)
  model, variables = adapted.add(net, problem.variables, rule, jax.random.key(0))
  method = methods.adapter_tuning(rate, epochs=3, norm_mode="running")
  engine = dataclasses.replace(small.engine(net), model=model, in_pieces=False)
  return engine, loop.fit(engine, variables, method, train, validation, seed=problem.seeds[0])


def by_hand(problem, units, fold, rate=1e-2):
  """Right answers of a fold."""
  rest, held = problem.folds[fold]
  train, test = problem.train.subset(rest), problem.train.subset(held)
  engine, result = lora_by_hand(problem, units, train, None, rate)
  right = evaluate.predictions(engine.predict(result.variables, test.images)) == test.labels
  return np.asarray(right, float)


@pytest.mark.slow
def test_scores_are_those_of_trainings_by_hand(tmp_path):
  own = network((4, 1))
  made = trainer(own, tmp_path)
  units = ("early=1", "late=4")
  (cell,) = made.cells([units], 1)
  np.testing.assert_array_equal(cell, by_hand(made.problem, units, 1))
  keys = {made.key(own, 0, 0) for own in every_set(own)}
  assert len(keys) == 9


@pytest.mark.slow
@pytest.mark.parametrize("units", [("early=1", "late=4"), ("late=1",)])
def test_learning_rates_of_ranks_are_chosen_inside_a_fold(tmp_path, units):
  """Each fold's by its training part alone, then all of that is trained at the chosen rate."""
  rates = (1e-3, 1e-1)
  own = network((4, 1))
  made = trainer(own, tmp_path)
  ways = {
    rate: lambda blocks, rate=rate: methods.adapter_tuning(rate, epochs=3, norm_mode="running")
    for rate in rates
  }
  given = dataclasses.replace(made.recipe, by_rate=ways)
  made = evaluator.Evaluator(made.problem, given, small.engine(small.model()), made.store)
  problem, found = made.problem, made.evaluate([units])[units]
  for row in made.rows(units):
    kept, inner = (problem.train.subset(rows) for rows in problem.inner(row["fold"]))
    last = [lora_by_hand(problem, units, kept, inner, r)[1].history[-1] for r in rates]
    assert row["inner_accuracy"] == [one["validation_accuracy"] for one in last]
    best = min(
      range(2), key=lambda i: (-last[i]["validation_accuracy"], last[i]["validation_loss"])
    )
    assert row["learning_rate"] == rates[best]
    wanted = by_hand(problem, units, row["fold"], rates[best])
    np.testing.assert_array_equal(found.cells[row["fold"]], wanted)


@pytest.mark.slow
def test_the_search_takes_what_trying_all_says(tmp_path):
  own = network((4, 1))
  made = trainer(own, tmp_path)
  swept = {
    units: scores.Score(units, tuple(by_hand(made.problem, units, f) for f in range(2)))
    for units in every_set(own) if units
  }  # fmt: skip
  found = made.evaluate(list(swept))
  for units, score in swept.items():
    np.testing.assert_array_equal(found[units].by_fold, score.by_fold)
  assert len({score.mean for score in swept.values()}) > 3
  rule = rules.Rule("gain", epsilon=0.0)
  path = greedy.forward(own, greedy.exact(own, made.evaluate), rule)
  wanted = greedy.forward(own, greedy.exact(own, lambda sets: {u: swept[u] for u in sets}), rule)
  assert path.chosen == wanted.chosen
  assert [step.tried for step in path.steps] == [step.tried for step in wanted.steps]


def study(**fields):
  made = small_search.config(
    **{"kinds": ("uniform", "greedy"), "ranks": (1, 4), "rule": "gain", "epsilon": 0.0, **fields}
  )
  made.methods = ("lp", "lora")
  return made


@pytest.mark.parametrize(
  ("fields", "told"),
  [
    ({"ranks": (2, 2)}, "give each rank once"),
    ({"ranks": (0,)}, "integers of at least 1"),
    ({"ranks": ()}, "'uniform', which is of ranks"),
    ({"kinds": ("pairs",)}, "Unknown kind of search for ranks 'pairs'"),
    ({"rule": "size"}, "counts units"),
  ],
)
def test_a_config_that_makes_no_sense(fields, told):
  with pytest.raises(ValueError, match=told):
    search_config.check(study(**fields))


def test_the_final_comparison_needs_lora():
  made = study()
  made.methods = ("lp", "subtuning")
  with pytest.raises(ValueError, match="needs 'lora' among them"):
    search_config.check(made)


@pytest.mark.parametrize(("head", "stages"), [("probe", 2), ("random", 1)])
def test_the_final_comparison_starts_from_the_head_of_the_search(head, stages):
  final = search_config.final_config(study(head=head), ("stem",), {"stem": 4})
  assert final.lora.rank_pattern == "/stem=4"
  assert len(recipes.make_method(final, "lora", 1e-3, ("stem",))) == stages


def test_a_name_that_is_too_long_keeps_its_rank():
  figure = charts.new_figure(4, 3)
  axes = figure.subplots()
  names = ["block1/unit2..block2/unit2=16", "early=4", "a name that is by far too long for it"]
  charts.unit_ticks(axes, names, 3.0)
  first, second, third = (text.get_text() for text in axes.get_xticklabels())
  assert first.endswith("\u2026=16")
  assert len(first) < len(names[0])
  assert second == "early=4"
  assert third.endswith("\u2026")


@pytest.mark.slow
def test_a_study_ends_with_lora_of_the_chosen_ranks(tmp_path):
  record = small_search.run(tmp_path, study(max_params=2000))
  again = search_record.load(tmp_path)
  assert again["lora"] == record["lora"]
  names = search_record.unit_names(record)
  assert search_record.set_name(["early=4", "mid=4", "late=4"], names) == "rank 4 everywhere"
  assert record["lora"]["where"]
  chosen = search_record.by_units(record)[tuple(record["chosen"])]
  assert 0 < chosen["trained_params"] <= 2000
  final = compare_record.load(tmp_path / "final").record
  lora = next(row for row in final["methods"] if row["name"] == "lora")
  assert lora["trained_params"] == chosen["trained_params"]
  fields = final["config"]["lora"]
  assert fields["rank_pattern"] == record["lora"]["rank_pattern"]
  page = (tmp_path / "report.html").read_text()
  assert "The chosen ranks" in page
  assert "LoRA at " in page
  assert ": ranks of LoRA</h1>" in page
  # A unit is in the network once, at all its ranks.
  whole = search_record.by_units(record)[tuple(name for name in names if name.endswith("=4"))]
  assert search_record.total_macs(record) == whole["fork_macs"]
  assert "100 % of the network" in page
  assert json.loads((tmp_path / "results.json").read_text())["kind"] == "search"
