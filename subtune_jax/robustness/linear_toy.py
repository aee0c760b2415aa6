"""The theory in two dimensions, where it can be drawn: one feature, inputs on the x axis.

Kumar et al. (arXiv 2202.10054) explain feature distortion by such a picture. All models v B that
fit the inputs lie on a vertical line. LP scales B0 until it meets the line. FT moves B as well, but
only along x, since no gradient has a y: B keeps its height, is no longer parallel to B0, and the
model ends on the line at another height, which depends on the head it started with.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from subtune_jax.robustness import gradient_flow, linear_theory

HEADS = (-1.0, 1.0, 2.0)


class Toy(NamedTuple):
  """What the picture shows; a point is (x, y). Errors are OOD, for Sigma = I.

  Attributes:
    inputs: [n, 2] on the x axis.
    target: [2] w*.
    pretrained: [2] B0, of length 1.
    heads: [H] random heads v0.
    lp: [2] the model v B of linear probing, the same from every head.
    lp_ft: [2] the model of LP-FT. The probe fits the inputs already, so it is `lp`.
    times: [T] of fine-tuning, from 0.
    ft: [H, T, 2] the model of fine-tuning.
    ft_features: [H, T, 2] its B.
    lp_error: of `lp`.
    lp_ft_error: of `lp_ft`.
    ft_error: [H, T]
  """

  inputs: np.ndarray
  target: np.ndarray
  pretrained: np.ndarray
  heads: np.ndarray
  lp: np.ndarray
  lp_ft: np.ndarray
  times: np.ndarray
  ft: np.ndarray
  ft_features: np.ndarray
  lp_error: float
  lp_ft_error: float
  ft_error: np.ndarray


def toy(
  heads: Sequence[float] = HEADS,
  *,
  target_angle: float = 35.0,
  pretrained_angle: float = 50.0,
  num_times: int = 120,
) -> Toy:
  """Trains the two-dimensional model from several heads.

  Args:
    heads: v0; N(0, 1) draws any of them.
    target_angle: of w*, of length 1, in degrees from the x axis.
    pretrained_angle: of B0.
    num_times: points of a path.

  Raises:
    ValueError: no head, or an angle at which the x axis does not see the model.
  """
  v0 = np.asarray(heads, np.float64)
  if v0.ndim != 1 or not v0.size or not np.isfinite(v0).all():
    raise ValueError(f"heads are {v0}; give a row of finite numbers")
  for name, angle in (("target_angle", target_angle), ("pretrained_angle", pretrained_angle)):
    if not 0 <= angle < 90:
      raise ValueError(
        f"{name} is {angle}; give degrees in [0, 90): at 90 inputs see nothing of it"
      )
  target, pretrained = _direction(target_angle), _direction(pretrained_angle)
  inputs = np.stack([np.linspace(-1.5, 1.5, 7), np.zeros(7)], axis=1)

  def spread(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, (len(v0), *x.shape))

  problem = linear_theory.Problem(
    inputs=spread(inputs),
    basis=spread(np.array([[1.0], [0.0]])),
    target_head=spread(np.ones(1)),
    target_features=spread(target[None]),
    features=spread(pretrained[None]),
    head=v0[:, None],
  )
  times = gradient_flow.default_times(count=num_times)
  probe = gradient_flow.linear_probe(problem)
  lp = linear_theory.weights(probe, problem.features)
  ft, lp_ft = gradient_flow.fine_tune(problem, times), gradient_flow.lp_ft(problem, times)
  lp_ft_end = lp_ft.weights[:, -1]
  return Toy(
    inputs=inputs,
    target=target,
    pretrained=pretrained,
    heads=v0,
    lp=lp[0],
    lp_ft=lp_ft_end[0],
    times=times,
    ft=ft.weights,
    ft_features=ft.features[..., 0, :],
    lp_error=float(linear_theory.ood_error(problem, lp)[0]),
    lp_ft_error=float(linear_theory.ood_error(problem, lp_ft_end)[0]),
    ft_error=linear_theory.ood_error(problem, ft.weights),
  )


def _direction(degrees: float) -> np.ndarray:
  return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
