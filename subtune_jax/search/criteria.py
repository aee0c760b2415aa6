"""Numbers for "which unit next?" that train no candidate, behind one interface, for comparison.

`CRITERIA[name](problem, chosen)` is an array [units] in the order of the network, the higher the
better, NaN for units that are chosen. All read the kernels, and the labels of the images that the
predictor may fit on. A criterion that is a sum over units ("not conditional") ranks the others the
same whatever is chosen. In every formula R [n, classes] is the residual of the labels under the fit
of the chosen set.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools

import numpy as np

from subtune_jax.search import brief_fit, predicted, ridge, scores


@dataclasses.dataclass(frozen=True)
class Problem:
  """What criteria read.

  Attributes:
    predictor: kernels, labels and folds.
    seed: of the random order.
    relevance: of each unit by Head2Toe, which that criterion reads
      (`training.selected_features.relevance`, the sum over the blocks of the unit).
    plasticity: of each unit (`search.plasticity`), for the criterion of that name.
    fitted: gradients after the chosen set was trained (`search.brief_fit.BriefFit`), for the
      criteria that begin with "fitted".
  """

  predictor: predicted.Predictor
  seed: int = 0
  relevance: Mapping[str, float] | None = None
  plasticity: Mapping[str, float] | None = None
  fitted: Callable[[scores.Units], brief_fit.Gradients] | None = None

  def __post_init__(self):
    if self.predictor.kernels.landmarks is not None:
      raise ValueError("criteria read kernels of all images; measure them with landmarks=None")

  @property
  def names(self) -> tuple[str, ...]:
    """The units, in the order of the network."""
    return self.predictor.names

  @functools.cached_property
  def rows(self) -> np.ndarray:
    """All images; none is held out, as nothing is scored."""
    return np.arange(len(self.predictor.labels))


Criterion = Callable[[Problem, scores.Units], np.ndarray]
# One number of a unit: (its kernel [n, n] float64, residual R, problem, its name).
_Single = Callable[[np.ndarray, np.ndarray, Problem, str], float]


def _predicted(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """Held-out accuracy of the set with the unit, on the search's own folds. Conditional."""
  sets = {
    name: tuple(n for n in problem.names if n in (*chosen, name))
    for name in problem.names if name not in chosen
  }  # fmt: skip
  found = problem.predictor.evaluate(list(sets.values()))
  return _of_names(lambda name: found[sets[name]].mean, problem, chosen)


def _pursuit(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """Matching pursuit: tr(A' K_b A) / tr K_b, A = (K_S + l I)^-1 Y the dual of the chosen set: how
  fast the objective falls in the kernel's weight. Conditional.
  """
  dual = _fit(problem, chosen).dual
  return _each(lambda kernel, *_: _form(kernel, dual) / np.trace(kernel), problem, chosen)


def _alignment(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """Centred kernel alignment with the labels, <CKC, YY'> / (|CKC| |YY'|) (Cortes, Mohri and
  Rostamizadeh, JMLR 13, 2012). Not conditional.
  """
  targets = _centred(problem.predictor.targets)
  return _each(lambda kernel, *_: _aligned(kernel, targets), problem, chosen)


def _residual_alignment(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """As alignment, with R in place of Y. Conditional."""
  return _each(lambda kernel, left, *_: _aligned(kernel, left), problem, chosen)


def _square_gradient(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """tr(R' K_b R): the squared norm of the unit's gradient, over random heads."""
  return _each(lambda kernel, left, *_: _form(kernel, left), problem, chosen)


def _relative_gradient(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """Norm of the gradient by that of the parameters (Auto-RGN, arXiv 2210.11466)."""

  def one(kernel, left, problem, name):
    norm = problem.predictor.kernels.square_norms[name]
    return np.sqrt(max(_form(kernel, left), 0.0) / max(norm, np.finfo(np.float64).tiny))

  return _each(one, problem, chosen)


def _signal_to_noise(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """Squared norm of the summed gradient by the sum of the squared norms of the images' own."""

  def one(kernel, left, *_):
    return _form(kernel, left) / np.sum(np.diag(kernel) * np.sum(left**2, axis=1))

  return _each(one, problem, chosen)


def _largest_eigenvalue(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """Of the centred kernel. Not conditional, and reads no label."""

  def one(kernel, *_):
    return float(np.linalg.eigvalsh(kernel)[-1])

  return _each(one, problem, chosen)


def _head2toe(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """Sum of the squared weights of the unit's outputs in a group lasso on those of all units
  (Head2Toe, arXiv 2201.03529). Not conditional.
  """
  return _given("head2toe", "relevance", "training.selected_features.relevance", problem, chosen)


def _plasticity(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """How strongly the unit answers to a change of its input (arXiv 2602.06883). Not conditional, and
  reads no label.
  """
  return _given("plasticity", "plasticity", "search.plasticity", problem, chosen)


def _fitted_relative_gradient(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """As relative_gradient, of the loss after a short training of the chosen set. Conditional."""
  return _after_fit("fitted_relative_gradient", "relative", problem, chosen)


def _fitted_signal_to_noise(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """As signal_to_noise, over batches, after a short training of the chosen set. Conditional."""
  return _after_fit("fitted_signal_to_noise", "signal", problem, chosen)


def _after_fit(name: str, field: str, problem: Problem, chosen: scores.Units) -> np.ndarray:
  if problem.fitted is None:
    raise ValueError(f"the criterion {name!r} needs Problem.fitted; see search.brief_fit.BriefFit")
  values = getattr(problem.fitted(chosen), field)
  return _of_names(values.__getitem__, problem, chosen)


def _given(name: str, field: str, source: str, problem: Problem, chosen: scores.Units):
  values = getattr(problem, field)
  if values is None or not set(problem.names) <= set(values):
    raise ValueError(
      f"the criterion {name!r} needs Problem.{field} with a number for each of "
      f"{', '.join(problem.names)}; see {source}"
    )
  return _of_names(values.__getitem__, problem, chosen)


def _few_parameters(problem: Problem, chosen: scores.Units) -> np.ndarray:
  counts = problem.predictor.kernels.num_params
  return _of_names(lambda name: -counts[name], problem, chosen)


def _last(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """The last units first."""
  return _of_names(problem.names.index, problem, chosen)


def _random(problem: Problem, chosen: scores.Units) -> np.ndarray:
  draws = np.random.default_rng(problem.seed).random(len(problem.names))
  return _of_names(lambda name: draws[problem.names.index(name)], problem, chosen)


CRITERIA: Mapping[str, Criterion] = {
  "predicted": _predicted,
  "pursuit": _pursuit,
  "alignment": _alignment,
  "residual_alignment": _residual_alignment,
  "square_gradient": _square_gradient,
  "relative_gradient": _relative_gradient,
  "signal_to_noise": _signal_to_noise,
  "largest_eigenvalue": _largest_eigenvalue,
  "fitted_relative_gradient": _fitted_relative_gradient,
  "fitted_signal_to_noise": _fitted_signal_to_noise,
  "head2toe": _head2toe,
  "plasticity": _plasticity,
  "few_parameters": _few_parameters,
  "last": _last,
  "random": _random,
}


def greedy_sets(criterion: Criterion, problem: Problem, size: int) -> list[scores.Units]:
  """The sets of 1 to `size` units that a criterion finds, each with the best next unit."""
  chosen: scores.Units = ()
  found = []
  while len(chosen) < min(size, len(problem.names)):
    values = criterion(problem, chosen)
    best = problem.names[int(np.nanargmax(values))]
    chosen = tuple(name for name in problem.names if name in (*chosen, best))
    found.append(chosen)
  return found


def _each(one: _Single, problem: Problem, chosen: scores.Units) -> np.ndarray:
  """A number for every unit that is not chosen, from its kernel and the residual."""
  left, groups = _residual(problem, chosen), problem.predictor.kernels.groups
  return _of_names(
    lambda name: one(ridge.centre(groups[name]), left, problem, name), problem, chosen
  )


def _of_names(one: Callable[[str], float], problem: Problem, chosen: scores.Units) -> np.ndarray:
  """A number for every unit that is not chosen."""
  return np.array([np.nan if name in chosen else one(name) for name in problem.names])


def _fit(problem: Problem, chosen: scores.Units) -> ridge.Fit:
  predictor, rows = problem.predictor, problem.rows
  return ridge.fit(
    predictor.kernel(chosen, rows),
    predictor.residual(chosen, rows),
    predictor.groups,
    predictor.strengths,
  )


def _residual(problem: Problem, chosen: scores.Units) -> np.ndarray:
  """R = l A: what the fit of the chosen set leaves, in its training images."""
  found = _fit(problem, chosen)
  return found.strength * found.dual


def _centred(x: np.ndarray) -> np.ndarray:
  return x - x.mean(axis=0)


def _form(kernel: np.ndarray, x: np.ndarray) -> float:
  """tr(x' K x)."""
  return float(np.sum(x * (kernel @ x)))


def _aligned(kernel: np.ndarray, x: np.ndarray) -> float:
  """Cosine of the angle between K and xx'."""
  norms = np.linalg.norm(kernel) * np.linalg.norm(x.T @ x)
  return float(_form(kernel, x) / max(norms, np.finfo(np.float64).tiny))
