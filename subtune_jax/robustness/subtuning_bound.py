"""SubTuning's bound on the generalisation error, as a number.

"Less is More: Selective Layer Finetuning with SubTuning" (Kaplun et al., arXiv 2302.06354),
Theorem 1. It is of the order of what is written, so only ratios of it mean anything.
"""

import math


def subtuning_bound(
  r_prime: float,
  delta: float,
  k: int,
  L: int,
  m: float,
  constant: float = 1.0,
) -> float:
  """O(sqrt(r') Delta log(k L) / sqrt(m)): greedy SubTuning (Theorem 1).

  The network is taken as linear in what is trained, psi' w with the features psi of the tangent
  kernel, |psi| <= sqrt(r') for gradients with bounded entries. log(k L) pays for the choice: greedy
  selection tries at most k L sets. Taken literally the bound always favours the smallest layer, and
  k L = 1, nothing to choose from, makes it 0: the O(.) drops the terms that do not vanish there.

  Args:
    r_prime: r', most parameters that a selected set trains; r' << r is where it helps.
    delta: Delta, with |theta - theta~|_2 <= Delta between pretrained and trained parameters.
    k: most layers that are selected.
    L: layers of the network.
    m: training examples.
    constant: what the O(.) hides and the paper leaves unspecified: the Lipschitz constant of the
      loss, the bound on entries of the gradient, and the dependence on the probability with which
      it holds. 1 makes no promise of a bound.

  Returns:
    The bound, in units of the loss times `constant`; natural logarithm.

  Raises:
    ValueError: a value that is not allowed.

  >>> subtuning_bound(400, 0.5, k=1, L=1, m=100)
  0.0
  >>> round(subtuning_bound(400, 0.5, k=2, L=8, m=100), 6)
  2.772589
  """
  _check(r_prime=r_prime, k=k, L=L, m=m)
  _check_real(delta=delta, constant=constant)
  if k > L:
    raise ValueError(f"k is {k} of L={L} layers; select at most L")
  return constant * math.sqrt(r_prime) * delta * math.log(k * L) / math.sqrt(m)


def _check(**counts: float) -> None:
  for name, value in counts.items():
    if not 1 <= value < math.inf:
      raise ValueError(f"{name} is {value}; give a number, at least 1")


def _check_real(**values: float) -> None:
  for name, value in values.items():
    if not 0 <= value < math.inf:
      raise ValueError(f"{name} is {value}; give a finite number, not below 0")
