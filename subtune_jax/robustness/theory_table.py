"""LP, FT and LP-FT of the linear model against the distance of the pretrained features.

  python -m subtune_jax.robustness.theory_table

prints the table of `docs/theory.md`, in about a quarter of a minute on one core.
"""

from collections.abc import Sequence
import sys
from typing import Any, NamedTuple

import numpy as np

from subtune_jax.robustness import gradient_flow, linear_theory

EPSILONS = (0.0, 0.056, 0.224, 0.533, 0.89)


class Results(NamedTuple):
  """Trainings over distances and seeds; all but `epsilons` are [E, seeds].

  Attributes:
    epsilons: [E] d(B0, B*).
    lp_id: ID error of linear probing; also ft_id, lp_ft_id at the end of the flow.
    lp_ood: OOD error for Sigma = I; also ft_ood, lp_ft_ood at the end.
    ft_best_ood: the least OOD error of fine-tuning at any of the times looked at, 0 among them.
    ft_moved: Frobenius norm of the change of B; also lp_ft_moved.
    bound: what the root of `ft_best_ood` cannot fall below; it says nothing where negative.
    drift: largest change of v v' - B B' in either fine-tuning.
    orthogonal: largest change of an entry of B (I - P_S), which no gradient reaches.
  """

  epsilons: np.ndarray
  lp_id: np.ndarray
  lp_ood: np.ndarray
  ft_id: np.ndarray
  ft_ood: np.ndarray
  ft_best_ood: np.ndarray
  lp_ft_id: np.ndarray
  lp_ft_ood: np.ndarray
  ft_moved: np.ndarray
  lp_ft_moved: np.ndarray
  bound: np.ndarray
  drift: np.ndarray
  orthogonal: np.ndarray

  @property
  def informative(self) -> np.ndarray:
    """Whether the bound says something, boolean [E, seeds]."""
    return self.bound > 0

  def violated(self, factor: float = 1.0) -> np.ndarray:
    """Whether the bound times `factor` is above the root of the OOD error, boolean [E, seeds].

    The theorem is about a factor of 1; a larger one shows what the comparison can see.
    """
    return factor * self.bound > np.sqrt(self.ft_best_ood)


def results(
  epsilons: Sequence[float] = EPSILONS,
  num_seeds: int = 10,
  *,
  times: Sequence[float] | None = None,
  **sizes: Any,
) -> Results:
  """Trains by the three methods for every distance and seed, in one program.

  Args:
    epsilons: distances d(B0, B*) of the pretrained features.
    num_seeds: problems per distance; a seed draws the same task, inputs and head at each distance.
    times: of both fine-tunings; None for `gradient_flow.default_times()`.
    **sizes: of `linear_theory.make_problem`.

  Raises:
    ValueError: no distance or seed, or a value that `make_problem` or `fine_tune` refuses.
  """
  if not len(epsilons) or num_seeds < 1:
    raise ValueError(f"{len(epsilons)} epsilons and {num_seeds} seeds; give at least one of each")
  problem = linear_theory.stack(
    [
      linear_theory.stack(
        [linear_theory.make_problem(s, epsilon=e, **sizes) for s in range(num_seeds)]
      )
      for e in epsilons
    ]
  )
  probe = linear_theory.weights(gradient_flow.linear_probe(problem), problem.features)
  ft, lp_ft = gradient_flow.fine_tune(problem, times), gradient_flow.lp_ft(problem, times)
  ft_ood = linear_theory.ood_error(problem, ft.weights)
  return Results(
    epsilons=np.array(epsilons, np.float64),
    lp_id=linear_theory.id_error(problem, probe),
    lp_ood=linear_theory.ood_error(problem, probe),
    ft_id=linear_theory.id_error(problem, ft.weights)[..., -1],
    ft_ood=ft_ood[..., -1],
    ft_best_ood=ft_ood.min(-1),
    lp_ft_id=linear_theory.id_error(problem, lp_ft.weights)[..., -1],
    lp_ft_ood=linear_theory.ood_error(problem, lp_ft.weights)[..., -1],
    ft_moved=_moved(problem, ft),
    lp_ft_moved=_moved(problem, lp_ft),
    bound=linear_theory.ood_lower_bound(problem),
    drift=np.maximum(ft.drift, lp_ft.drift),
    orthogonal=np.maximum(_orthogonal(problem, ft), _orthogonal(problem, lp_ft)),
  )


def as_markdown(found: Results) -> str:
  """The medians over seeds as a Markdown table, one row per distance."""
  lines = [
    "| epsilon | LP: ID / OOD | FT: ID / OOD (least over t) | LP-FT: ID / OOD "
    "| change of B: FT / LP-FT | bound positive, violated |",
    "|---|---|---|---|---|---|",
  ]
  middle = Results(found.epsilons, *(np.median(x, axis=1) for x in found[1:]))
  for row, epsilon in enumerate(found.epsilons):
    at: Any = Results(*(x[row] for x in middle))
    informative = found.informative[row]
    cells = [
      f"{epsilon:g}",
      f"{_error(at.lp_id)} / {_error(at.lp_ood)}",
      f"{_error(at.ft_id)} / {_error(at.ft_ood)} ({_error(at.ft_best_ood)})",
      f"{_error(at.lp_ft_id)} / {_error(at.lp_ft_ood)}",
      f"{at.ft_moved:.2f} / {at.lp_ft_moved:.3f}",
      f"{informative.sum()} of {informative.size}, {(informative & found.violated()[row]).sum()}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _error(value: float) -> str:
  """Three digits, or the magnitude of what is rounding."""
  return f"{value:.0e}" if value < 1e-9 else f"{value:.3g}"


def _moved(problem: linear_theory.Problem, path: gradient_flow.Path) -> np.ndarray:
  change = path.features[..., -1, :, :] - problem.features
  return np.linalg.norm(change, axis=(-2, -1))


def _orthogonal(problem: linear_theory.Problem, path: gradient_flow.Path) -> np.ndarray:
  change = path.features - problem.features[..., None, :, :]
  basis = problem.basis[..., None, :, :]
  change = change - change @ basis @ basis.swapaxes(-1, -2)
  return np.abs(change).max((-3, -2, -1))


if __name__ == "__main__":
  sys.stdout.write(as_markdown(results()) + "\n")
