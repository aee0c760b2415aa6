"""The sentences that begin a report follow from its numbers."""

import dataclasses

import pytest

from subtune_jax.report import estimate
from subtune_jax.statistics import power
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.compare import verdict

ID, OOD = "d/a", "d/b"
COLUMNS = (
  summary_lib.Column(ID, "a (ID)", (ID,), True),
  summary_lib.Column(OOD, "b", (OOD,), False),
)


def around(mean):
  return estimate.Estimate(mean, mean - 0.05, mean + 0.05)


def row(name, accuracy, seconds):
  return summary_lib.Row(
    name, {"lp": "Linear probing", "ft": "Full fine-tuning"}[name],
    {ID: around(accuracy), OOD: around(accuracy - 0.2)}, {"lp": 1000, "ft": 9000}[name], seconds,
    1.0, "learning_rate", 1e-3, False, 0.01,
  )  # fmt: skip


def summary(**changed):
  made = summary_lib.Summary(
    columns=COLUMNS, rows=(row("lp", 0.6, 2.0), row("ft", 0.63, 60.0)), reference="lp",
    differences={}, leaders={ID: ("ft", "lp"), OOD: ("ft", "lp")}, num_seeds=2, trained_once=(),
    sizes={ID: (261, 261), OOD: (261, 261)}, num_resamples=100,
    undecided={ID: ("lp", "ft", power.Power(0.03, 0.02, 912, 0.056))},
  )  # fmt: skip
  return dataclasses.replace(made, **changed)


def test_of_those_that_cannot_be_told_apart_the_one_that_trains_least_is_recommended():
  first, second, *rest = verdict.sentences(summary())
  assert "Full fine-tuning and Linear probing cannot be told apart" in first
  assert "take Linear probing, which trains the least: 60.0 [55.0, 65.0] %" in first
  assert "1.00 k parameters trained, 2.0 s a training" in first
  assert second.startswith("Out of distribution too Full fine-tuning and")
  (needed,) = [line for line in rest if "would decide" in line]
  assert needed == (
    "About 920 test images would decide between Full fine-tuning and Linear probing in "
    "distribution (+3.0 points as observed); there are 261."
  )


def test_a_winner_is_named_in_its_own_domain():
  first, second, *_ = verdict.sentences(summary(leaders={ID: ("ft",), OOD: ("lp",)}))
  assert first.startswith("In distribution Full fine-tuning is ahead of all others: 63.0 [")
  assert second.startswith("Out of distribution Linear probing is ahead of all others: 40.0 [")


@pytest.mark.parametrize(
  ("needed", "said"),
  [
    (power.Power(0.001, 0.02, 10**6, 0.056), "are too alike in distribution for any test set"),
    (power.Power(0.03, 0.05, None, 0.14), "More seeds, not images, would have to part"),
  ],
)
def test_what_no_test_set_decides(needed, said):
  text = " ".join(verdict.sentences(summary(undecided={ID: ("lp", "ft", needed)})))
  assert said in text
  assert f"differences below about {100 * needed.smallest:.0f} points are not seen" in text


def test_a_set_on_which_no_method_beats_one_answer_is_a_warning():
  constant = ("ok", {ID: around(0.5), OOD: around(0.6)})
  low, unsure, high = (estimate.Estimate(m, m - 0.05, m + 0.05) for m in (-0.2, 0.0, 0.1))
  above = {ID: {"lp": high, "ft": unsure}, OOD: {"lp": low, "ft": low}}
  text = " ".join(verdict.sentences(summary(constant=constant, above_constant=above)))
  assert "On b every method is below always answering 'ok' (60.0 %): do not use" in text
  assert "On a (ID)" not in text
  above[OOD]["ft"] = unsure
  text = " ".join(verdict.sentences(summary(constant=constant, above_constant=above)))
  assert "On b no method is shown to be above always answering 'ok'" in text


def test_one_method_and_the_model_folder():
  made = summary(rows=(row("ft", 0.63, 60.0),), leaders={ID: ("ft",), OOD: ("ft",)},
                 undecided={}, chosen=("ft", 1))  # fmt: skip
  first, last = verdict.sentences(made)
  assert first.startswith("Full fine-tuning: 63.0 [58.0, 68.0] % on a (ID); 43.0 [")
  assert "best/ holds Full fine-tuning, seed 1" in last
