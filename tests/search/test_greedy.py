"""Greedy searches against paths worked out by hand, on tables."""

import itertools

import numpy as np
import pytest

from subtune_jax.search import greedy, rules
from tests.search import tables

GAIN = rules.Rule("gain", epsilon=0.01)
# Forward: c (.60), then ac (.65), then abc (.66, a gain of exactly epsilon: not taken).
TABLE = {
  "": 0.40, "a": 0.50, "b": 0.55, "c": 0.60, "d": 0.45,
  "ab": 0.58, "ac": 0.65, "ad": 0.52, "bc": 0.64, "bd": 0.56, "cd": 0.61,
  "abc": 0.66, "abd": 0.59, "acd": 0.655, "bcd": 0.648, "abcd": 0.663,
}  # fmt: skip


def search(table, start="none", rule=GAIN, network=None, **options):
  """(path, the table with its counts)."""
  network = network or tables.network()
  evaluate = tables.Table(table)
  pick = greedy.exact(network, evaluate)
  if start == "none":
    return greedy.forward(network, pick, rule, **options), evaluate
  everything = evaluate.score("".join(network.names))
  return greedy.backward(network, pick, rule, everything, **options), evaluate


def moves(path):
  return ["".join(step.chosen) + ("" if step.taken else "?") for step in path.steps]


def test_forward_by_hand():
  path, evaluate = search(TABLE)
  assert moves(path) == ["c", "ac", "abc?"]
  assert path.chosen == ("a", "c")
  assert path.score.mean == pytest.approx(0.65)
  assert "0.0100 <= epsilon 0.01" in path.stopped
  assert sum(evaluate.asked.values()) == 4 + 3 + 2


@pytest.mark.parametrize(
  ("epsilon", "chosen"),
  [(0.0, "abcd"), (0.0029, "abcd"), (0.0031, "abc"), (0.0099, "abc"), (0.01, "ac"),
   (0.0499, "ac"), (0.05, "c"), (0.0501, "c"), (0.6, ""), (0.59, "c")],
)  # fmt: skip
def test_edges_of_epsilon(epsilon, chosen):
  """The gain of a step must exceed epsilon: equal is not enough, however the floats fall."""
  path, _ = search(TABLE, rule=rules.Rule("gain", epsilon=epsilon))
  assert "".join(path.chosen) == chosen


def test_a_unit_that_only_helps_a_later_one_is_not_found_by_the_paper_s_rule():
  table = {"a": 0.6, "b": 0.5, "c": 0.5, "ab": 0.6, "ac": 0.6, "bc": 0.9, "abc": 0.95}
  path, _ = search(table, network=tables.network("abc"))
  assert path.chosen == ("a",)
  tolerant, _ = search(
    table, rule=rules.Rule("tolerant", epsilon=0.01), network=tables.network("abc"),
    baseline=tables.Table({"": 0.4}).score(""),
  )  # fmt: skip
  assert tolerant.chosen == ("a", "b", "c")


def test_ties_take_fewer_parameters_then_the_first():
  table = dict.fromkeys(TABLE, 0.5)
  assert search(table)[0].chosen == ("a",)
  costly = tables.network(params={"a": 20, "b": 10, "c": 10, "d": 30})
  assert search(table, network=costly)[0].chosen == ("b",)
  noise = {**table, "d": 0.5 + 1e-12}  # a tie but for rounding
  assert search(noise)[0].chosen == ("a",)


def test_all_units():
  path, _ = search(TABLE, rule=rules.Rule("size", size=4))
  assert moves(path) == ["c", "ac", "abc", "abcd"]
  assert path.stopped == "4 units"
  more, _ = search(TABLE, rule=rules.Rule("size", size=9))
  assert more.chosen == tuple("abcd")
  assert more.stopped == "no unit is left"


def test_one_unit():
  network = tables.network("a")
  assert search({"a": 0.5}, network=network)[0].chosen == ("a",)
  path, _ = search({"": 0.497, "a": 0.5}, "all", network=network)
  assert path.chosen == ()
  assert path.stopped == "no unit is left"


def test_the_head_as_baseline():
  baseline = tables.Table(TABLE).score("")
  assert search(TABLE, baseline=baseline)[0].chosen == ("a", "c")
  path, _ = search(TABLE, baseline=tables.Table({"": 0.595}).score(""))
  assert path.chosen == ()
  assert path.score.mean == 0.595


def test_backward_by_hand():
  """abcd .663, without d .660, without b .650 (no more than .01 below .663: no), so abc."""
  path, evaluate = search(TABLE, "all")
  assert moves(path) == ["abc", "ac?"]
  assert path.chosen == ("a", "b", "c")
  assert sum(evaluate.asked.values()) == 4 + 3


def test_backward_does_not_add_up_small_losses():
  """Each removal costs .009: the second is .018 below the best and not taken."""
  table = {"abcd": 0.5, "abc": 0.491, "ab": 0.482, "a": 0.473}
  full = {**dict.fromkeys(TABLE, 0.1), **table}
  assert search(full, "all")[0].chosen == ("a", "b", "c")


def test_backward_goes_down_to_the_head():
  table = {**dict.fromkeys(TABLE, 0.5), "": 0.5}
  assert search(table, "all")[0].chosen == ()


def test_tolerant_as_released():
  """Every step is taken, the end is a drop of more than epsilon, the best seen is returned."""
  table = {
    **dict.fromkeys(TABLE, 0.3), "": 0.40, "c": 0.60, "ac": 0.595, "acd": 0.605, "abcd": 0.58,
  }  # fmt: skip
  rule = rules.Rule("tolerant", epsilon=0.01)
  path, _ = search(table, rule=rule, baseline=tables.Table(table).score(""))
  assert moves(path) == ["c", "ac", "acd", "abcd?"]
  assert path.chosen == ("a", "c", "d")
  paper, _ = search(table)
  assert paper.chosen == ("c",)  # the paper's rule stops at the first step that earns nothing


def test_tolerant_may_return_the_head():
  table = {**dict.fromkeys(TABLE, 0.395), "": 0.40}
  rule = rules.Rule("tolerant", epsilon=0.01)
  path, _ = search(table, rule=rule, baseline=tables.Table(table).score(""))
  assert path.chosen == ()


def test_significance():
  """A steady small gain is taken, a large one on one fold is not."""
  rule = rules.Rule("significance", alpha=0.05, overlap=0.25)
  steady = [0.504, 0.406, 0.605, 0.455, 0.555]
  base = [0.50, 0.40, 0.60, 0.45, 0.55]
  jump = [0.50, 0.40, 0.60, 0.45, 0.75]
  low = [0.1] * 5
  table = {"a": base, "b": low, "ab": steady}
  assert search(table, rule=rule, network=tables.network("ab"))[0].chosen == ("a", "b")
  assert search({**table, "ab": jump}, rule=rule, network=tables.network("ab"))[0].chosen == ("a",)
  backward, _ = search({**table, "": low}, "all", rule=rule, network=tables.network("ab"))
  assert backward.chosen == ("a", "b")


def test_the_better_of_both():
  network = tables.network()
  paths = [search(TABLE)[0], search(TABLE, "all")[0]]
  assert greedy.better(network, paths).chosen == ("a", "b", "c")


@pytest.mark.parametrize(
  ("budget", "chosen"),
  [(rules.Budget(trained_params=11), "c"), (rules.Budget(trained_params=21), "ac"),
   (rules.Budget(fork_macs=2), "c"), (rules.Budget(fork_macs=1), "d"),
   (rules.Budget(trained_params=10), "")],
)  # fmt: skip
def test_forward_within_a_budget(budget, chosen):
  rule = rules.Rule("gain", epsilon=0.012)
  path, evaluate = search(TABLE, rule=rule, budget=budget)
  assert "".join(path.chosen) == chosen
  network = tables.network()
  assert all(budget.allows(network, tuple(letters)) for letters in evaluate.asked)
  if path.steps and not path.steps[-1].taken:
    return
  assert "within the budget" in path.stopped


def test_backward_shrinks_into_the_budget_whatever_it_costs():
  table = {**dict.fromkeys(TABLE, 0.1), "abcd": 0.9, "ac": 0.2, "a": 0.15, "abc": 0.3}
  path, _ = search(table, "all", budget=rules.Budget(trained_params=21))
  assert path.chosen == ("a", "c")
  assert [step.reason for step in path.steps[:2]] == ["to get within the budget"] * 2


def test_budget_of_seconds():
  clock = iter([0.0, 4.0, 11.0])
  path, evaluate = search(TABLE, budget=rules.Budget(seconds=10), clock=lambda: next(clock))
  assert path.chosen == ("a", "c")
  assert "seconds" in path.stopped
  assert "abc" not in evaluate.asked


def test_windows_and_pairs():
  network = tables.network()
  assert greedy.profile(network) == [("a",), ("b",), ("c",), ("d",)]
  assert greedy.windows(network, 3) == [tuple("abc"), tuple("bcd")]
  assert greedy.pairs(network) == list(itertools.combinations("abcd", 2))
  with pytest.raises(ValueError, match=r"window of 5 units; allowed: 1 to 4"):
    greedy.windows(network, 5)


def test_cost_of_greedy_is_the_papers():
  """Choosing 3 of 16 and stopping takes 16 + 15 + 14 + 13 = 58 sets."""
  names = "abcdefghijklmnop"
  network = tables.network(names)
  evaluate = tables.Table({}, default=0.0)
  best = "dhl"

  def score(letters):
    return 0.5 + 0.1 * sum(letter in best for letter in letters)

  evaluate.table = {
    "".join(s): score(s) for k in range(1, 5) for s in itertools.combinations(names, k)
  }
  path = greedy.forward(network, greedy.exact(network, evaluate), GAIN)
  assert path.chosen == tuple(best)
  assert len(evaluate.asked) == 58


def test_additive_scores_are_searched_exactly():
  """Where units add up, both directions find the best set of every size, for 200 tables."""
  rng = np.random.default_rng(0)
  network = tables.network("abcde")
  for _ in range(200):
    worth = dict(zip("abcde", rng.normal(0, 0.1, 5), strict=True))
    table = {
      "".join(s): 0.5 + sum(worth[x] for x in s)
      for k in range(6) for s in itertools.combinations("abcde", k)
    }  # fmt: skip
    size = int(rng.integers(1, 6))
    rule = rules.Rule("size", size=size)
    wanted = set(sorted("abcde", key=lambda x: -worth[x])[:size])
    assert set(search(table, rule=rule, network=network)[0].chosen) == wanted
    assert set(search(table, "all", rule=rule, network=network)[0].chosen) == wanted


@pytest.mark.parametrize(
  ("fields", "message"),
  [({"kind": "gane"}, "gain"), ({"epsilon": -1}, r"epsilon is -1"), ({"alpha": 0}, "alpha is 0"),
   ({"kind": "size"}, "size is None")],
)  # fmt: skip
def test_bad_rules(fields, message):
  with pytest.raises(ValueError, match=message):
    rules.Rule(**fields)


def test_bad_budgets():
  with pytest.raises(ValueError, match="budget of seconds is 0"):
    rules.Budget(seconds=0)
