"""Linear probing, fine-tuning and LP-FT of the linear model, in continuous time.

The loss is the mean over the training inputs of (x' B' v - y)^2, and training is the gradient flow
dv/dt = -dL/dv, dB/dt = -dL/dB: gradient descent with steps that tend to 0. The paper writes a sum
over the n inputs, in which times are n times shorter; paths and their ends are the same. Two facts
carry the theory and are what a solver has to keep: v v' - B B' does not change, and neither does B
on directions that are orthogonal to all inputs.

Linear probing has a closed form. For fine-tuning `jax.experimental.ode.odeint` is used, the
Dormand-Prince method with adaptive steps that is part of JAX (the same code in 0.10 to 0.12, but
for a private helper). The flow is nonstiff to mildly stiff, by the ratio of |v|^2 times the largest
eigenvalue of X'X / n to the rate looked at, so an explicit method of order 5 in float64 holds
v v' - B B' to 1e-11 in a few thousand cheap steps. `odeint` does not say when it failed: it stops
and extrapolates. That would break the conserved quantity, which is checked after every run.
"""

from collections.abc import Sequence
import functools
import math
from typing import NamedTuple

import jax
from jax.experimental import ode
import jax.numpy as jnp
import numpy as np

from subtune_jax.robustness import linear_theory

RTOL, ATOL = 1e-12, 1e-16  # of the solver; an ID error of 0 comes out below about 1e-20
_MAX_STEPS = 200_000  # to each of the times
_MAX_DRIFT = 1e-6  # of v v' - B B', relative to its size: more is a failed run
_LOOSEST = 1e-8  # tolerance; the drift comes out up to some 20 times as large
_DEFAULT_END = 100.0


class Path(NamedTuple):
  """A training at some times.

  Attributes:
    times: [T]
    head: [..., T, k] v(t).
    features: [..., T, k, d] B(t).
    drift: [...] largest change of an entry of v v' - B B' from its value at the start, over times.
  """

  times: np.ndarray
  head: np.ndarray
  features: np.ndarray
  drift: np.ndarray

  @property
  def weights(self) -> np.ndarray:
    """w(t) = B(t)' v(t), [..., T, d]."""
    return linear_theory.weights(self.head, self.features)


def loss(head: jax.Array, features: jax.Array, inputs: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean over inputs of (x' B' v - y)^2.

  Args:
    head: [k]
    features: [k, d]
    inputs: [n, d]
    labels: [n]
  """
  return jnp.mean(jnp.square(inputs @ (head @ features) - labels))


def velocity(
  head: jax.Array, features: jax.Array, moment: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(dv/dt, dB/dt) of the flow on `loss` where labels are those of w*.

  Args:
    head: [k]
    features: [k, d]
    moment: [d, d], X'X / n.
    target: [d], w*.
  """
  pull = -2 * moment @ (head @ features - target)
  return features @ pull, head[:, None] * pull[None, :]


def invariant(head: np.ndarray, features: np.ndarray) -> np.ndarray:
  """v v' - B B', which the flow conserves: [..., k] and [..., k, d] to [..., k, k]."""
  return np.einsum("...k,...l->...kl", head, head) - features @ np.swapaxes(features, -1, -2)


def default_times(end: float = _DEFAULT_END, count: int = 25) -> np.ndarray:
  """0 and `count` times from end / 10^4 to end, evenly spaced in the logarithm."""
  return np.concatenate([[0.0], np.geomspace(end * 1e-4, end, count)])


def linear_probe(problem: linear_theory.Problem, time: float = math.inf) -> np.ndarray:
  """The head after the gradient flow on v alone, from v0, with features B0 (LP).

  Exact, from the singular values s and vectors of X B0' / sqrt n: along one the way left is
  exp(-2 s^2 t) of that at the start. The limit is that of the flow from v0. Where X B0' has rank k,
  as in every problem of `make_problem`, it is the one least-squares solution; otherwise the part of
  v0 that no input sees stays, and the limit from v0 = 0 is the minimum-norm solution.

  Args:
    problem: with leading axes ...
    time: at which the probe is stopped.

  Returns:
    [..., k]

  Raises:
    ValueError: a negative time.
  """
  if not time >= 0:
    raise ValueError(f"time is {time}; give one from 0 on, math.inf for the limit")
  return _probe(problem, problem.labels, time)


def fine_tune(
  problem: linear_theory.Problem,
  times: Sequence[float] | np.ndarray | None = None,
  *,
  head: np.ndarray | None = None,
  rtol: float = RTOL,
  atol: float = ATOL,
) -> Path:
  """The gradient flow on v and B from B0 (FT), at given times: each is a training stopped early.

  Args:
    problem: with leading axes ...; all go through one program.
    times: [T], rising, from 0 on; None for `default_times()`.
    head: [..., k] to start with; None for v0.
    rtol: relative error of a step of the solver.
    atol: absolute error of a step.

  Raises:
    ValueError: times, the head's shape or tolerances are not allowed.
    FloatingPointError: the solver did not get there; see the module.
  """
  times = default_times() if times is None else np.asarray(times, np.float64)
  if times.ndim != 1 or not times.size or not np.isfinite(times).all():
    raise ValueError(f"times are {times}; give a row of finite numbers")
  if times[0] < 0 or (np.diff(times) <= 0).any():
    raise ValueError(f"times are {times}; give them rising, from 0 on, each once")
  for name, value, least in (("rtol", rtol, 1e-14), ("atol", atol, 1e-30)):
    if not least <= value <= _LOOSEST:
      raise ValueError(f"{name} is {value}; give {least} to {_LOOSEST}, or leave it out")
  head = problem.head if head is None else np.asarray(head, np.float64)
  if head.shape != problem.head.shape:
    raise ValueError(f"head has shape {head.shape}; the problem's is {problem.head.shape}")
  grid = times if times[0] == 0 else np.concatenate([[0.0], times])
  moment = np.einsum("...nd,...ne->...de", problem.inputs, problem.inputs)
  moment /= problem.inputs.shape[-2]
  leading = head.shape[:-1]
  flat = [
    np.reshape(x, (-1, *x.shape[len(leading) :]))
    for x in (head, problem.features, moment, problem.target)
  ]
  with jax.enable_x64(True):
    found = _flow(*flat, grid, rtol=float(rtol), atol=float(atol))
  heads, features = (np.reshape(x, (*leading, *x.shape[1:])) for x in map(np.asarray, found))
  drift = _drift(heads, features)
  skipped = len(grid) - len(times)
  return Path(times, heads[..., skipped:, :], features[..., skipped:, :, :], drift)


def lp_ft(
  problem: linear_theory.Problem,
  times: Sequence[float] | np.ndarray | None = None,
  *,
  probe_time: float = math.inf,
  rtol: float = RTOL,
  atol: float = ATOL,
) -> Path:
  """Linear probing until `probe_time`, then fine-tuning from that head (LP-FT).

  Args:
    problem: with leading axes ...
    times: [T] of the fine-tuning; see `fine_tune`.
    probe_time: when the probe is stopped; 0 makes it `fine_tune`.
    rtol: see `fine_tune`.
    atol: see `fine_tune`.
  """
  head = linear_probe(problem, probe_time)
  return fine_tune(problem, times, head=head, rtol=rtol, atol=atol)


@linear_theory.in_float64
def _probe(problem: linear_theory.Problem, labels: jax.Array, time: jax.Array) -> jax.Array:
  n = problem.inputs.shape[-2]
  seen = problem.inputs @ problem.features.mT / math.sqrt(n)
  left, s, right = jnp.linalg.svd(seen, full_matrices=False)
  residual = labels / math.sqrt(n) - jnp.einsum("...nk,...k->...n", seen, problem.head)
  live = s > jnp.finfo(s.dtype).eps * n * s[..., :1]
  s = jnp.where(live, s, 1.0)
  gain = jnp.where(live, -jnp.expm1(-2 * s**2 * time) / s, 0.0)
  step = gain * jnp.einsum("...nr,...n->...r", left, residual)
  return jnp.einsum("...rk,...r->...k", right, step) + problem.head


@functools.partial(jax.jit, static_argnames=("rtol", "atol"))
def _flow(head, features, moment, target, grid, *, rtol: float, atol: float):
  """v(t) [P, T, k] and B(t) [P, T, k, d] of P problems."""

  def one(head, features, moment, target):
    def field(state, _, moment, target):
      return velocity(state[0], state[1], moment, target)

    start = (head, features)
    return ode.odeint(field, start, grid, moment, target, rtol=rtol, atol=atol, mxstep=_MAX_STEPS)

  return jax.vmap(one)(head, features, moment, target)


def _drift(head: np.ndarray, features: np.ndarray) -> np.ndarray:
  """Largest change of the invariant on the way, or raises where it is that of a failed run."""
  kept = invariant(head, features)
  drift = np.abs(kept - kept[..., :1, :, :]).max((-3, -2, -1))
  allowed = _MAX_DRIFT * np.maximum(np.abs(kept[..., 0, :, :]).max((-2, -1)), 1.0)
  if not (drift <= allowed).all():
    raise FloatingPointError(
      f"v v' - B B' changed by {np.max(drift):.1e}, which the flow conserves: the solver failed;"
      " give a smaller rtol, or earlier times if |v0| or the inputs are large"
    )
  return drift
