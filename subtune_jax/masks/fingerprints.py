"""Fingerprints of the values that a traced program computes, what XLA drops left out."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.extend as jex
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

NUM_BUCKETS = 16  # numbers in a fingerprint
SMALL = 2**16  # elements
INLINED = frozenset(
  ["jit", "pjit", "closed_call", "core_call", "call", "checkpoint", "remat", "remat2",
   "custom_jvp_call", "custom_vjp_call"]
)  # fmt: skip

RUN_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
RESHAPES = frozenset(["reshape", "squeeze", "expand_dims", "copy", "copy_p", "broadcast_in_dim"])


@dataclasses.dataclass(frozen=True)
class Mark:
  """The fingerprint of a gradient.

  Attributes:
    size: number of elements.
    buckets: [NUM_BUCKETS], see `fingerprint`.
    common: whether many values are multiples of it: constants, and very short vectors.
  """

  size: int
  buckets: np.ndarray
  common: bool

  @property
  def rms(self) -> float:
    """Root mean square of the gradient, estimated; 0 where it is not finite."""
    if not np.isfinite(self.buckets).all():
      return 0.0
    return float(np.linalg.norm(self.buckets)) / max(self.size, 1) ** 0.5

  def among(
    self, rows: Mapping[int, np.ndarray], tolerance: float, length_tolerance: float = 1e-5
  ) -> bool:
    """Returns whether one of the fingerprinted values is a multiple of the gradient.

    A `common` gradient must be met in length as well, within `length_tolerance` of it.
    """
    values = rows.get(self.size)
    if values is None:
      return False
    length = np.linalg.norm(self.buckets)
    lengths = np.linalg.norm(values, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    values, lengths = values[usable], lengths[usable]
    near = np.abs(values @ self.buckets) / (lengths * length)
    near = 1 - near < tolerance**2 / 2  # angle between the two below the tolerance
    if self.common:
      near &= np.abs(lengths - length) < length_tolerance * length
    return bool(near.any())


def mark(gradient: jax.Array) -> Mark:
  values = np.asarray(gradient).reshape(1, -1).astype(np.float32)
  return Mark(
    size=values.size,
    buckets=fingerprint(values, np)[0].astype(np.float64),
    common=values.size <= 4 or bool((values == values[0, 0]).all()),
  )


def fingerprint(x: Any, xp: Any = jnp) -> Any:
  """Returns [n, NUM_BUCKETS] of x [n, size]: rows under random signs, summed by index modulo.

  `xp` is the module that computes it, jnp or np.
  """
  size = x.shape[1]
  mixed = xp.arange(size, dtype=np.uint32) * np.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 15)) * np.uint32(0xC2B2AE35)
  sign = xp.where((mixed ^ (mixed >> 13)) >> 31 == 1, np.float32(1), np.float32(-1))
  signed = xp.pad(x.astype(np.float32) * sign[None], ((0, 0), (0, -size % NUM_BUCKETS)))
  return xp.sum(signed.reshape(len(x), -1, NUM_BUCKETS), 1)


def tolerance(jaxpr: Any) -> float:
  """Returns how far two ways to compute one gradient may differ, relative to its size."""
  exact = jax.default_backend() == "cpu" and not any(
    jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 for dtype in dtypes(jaxpr)
  )
  return 1e-3 if exact else 2e-2


def dtypes(jaxpr: Any) -> set[Any]:
  found: set[Any] = set()
  for eqn in jaxpr.eqns:
    found.update(var.aval.dtype for var in eqn.outvars if hasattr(var.aval, "dtype"))
    for inner in jex.core.jaxprs_in_params(eqn.params):
      found |= dtypes(inner)
  return found


def fingerprints(
  closed: Any,
  leaves: Sequence[Any],
  sizes: frozenset[int],
  carry_only: bool = False,
  dtype: Any = jnp.floating,
) -> dict[int, np.ndarray]:
  """Returns size -> fingerprints [n, NUM_BUCKETS] of the live values of those sizes.

  Args:
    closed: the program, as from `jax.make_jaxpr`.
    leaves: its arguments.
    sizes: numbers of elements.
    carry_only: whether values in the body of a scan count only if its carry needs them.
    dtype: of the values, or a kind of dtypes.
  """

  def inlined(*leaves):
    return _evaluate(closed.jaxpr, closed.consts, leaves, _Recorder())[0]

  flat = jax.make_jaxpr(inlined)(*leaves)
  live, _ = partial_eval.dce_jaxpr(flat.jaxpr, [True] * len(flat.jaxpr.outvars), instantiate=True)
  recorder = _Recorder(sizes, carry_only, dtype)
  rows = jax.jit(
    lambda leaves: _evaluate(live, flat.consts, leaves, recorder)[1],
    compiler_options=RUN_ONCE if jax.default_backend() == "cpu" else None,
  )(list(leaves))
  return {
    size: np.concatenate([np.asarray(row, np.float64).reshape(-1, NUM_BUCKETS) for row in found])
    for size, found in rows.items()
  }


@dataclasses.dataclass(frozen=True)
class _Recorder:
  """Which values are fingerprinted."""

  sizes: frozenset[int] = frozenset()
  carry_only: bool = False
  dtype: Any = jnp.floating

  def wants(self, eqn: Any, value: Any) -> bool:
    return (
      eqn.primitive.name not in RESHAPES
      and getattr(value, "size", None) in self.sizes
      and jnp.issubdtype(value.dtype, self.dtype)
    )

  def fingerprint(self, values: Sequence[Any]) -> dict[int, list[jax.Array]]:
    """Returns size -> fingerprints. Small values are taken together, to compile less."""
    by_size: dict[int, list[jax.Array]] = {}
    # The barrier keeps XLA from computing the values once more inside their fingerprints.
    for value in jax.lax.optimization_barrier(list(values)):
      by_size.setdefault(int(value.size), []).append(value.reshape(1, -1).astype(jnp.float32))
    for size, same in by_size.items():
      batches = [jnp.concatenate(same)] if size <= SMALL else same
      by_size[size] = list(map(fingerprint, batches))
    return by_size


def _merge(rows: dict[int, list[jax.Array]], more: Mapping[int, list[jax.Array]]) -> None:
  for size, found in more.items():
    rows.setdefault(size, []).extend(found)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], recorder: _Recorder):
  """Evaluates a jaxpr with calls inlined. Returns (outputs, size -> fingerprints)."""
  env, rows, seen = dict[Any, Any](), dict[int, list[jax.Array]](), list[Any]()

  def read(atom):
    return atom.val if isinstance(atom, jex.core.Literal) else env[atom]

  used = {id(atom) for eqn in jaxpr.eqns for atom in eqn.invars} | set(map(id, jaxpr.outvars))
  env.update(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
  for eqn in jaxpr.eqns:
    values, name = [read(atom) for atom in eqn.invars], eqn.primitive.name
    if name in INLINED:
      inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
      outs, more = _evaluate(inner.jaxpr if hasattr(inner, "jaxpr") else inner,
                             getattr(inner, "consts", ()), values, recorder)  # fmt: skip
      _merge(rows, more)
    elif name == "scan":
      outs, more = _evaluate_scan(eqn, values, recorder)
      _merge(rows, more)
    else:
      outs = _fold(eqn, values)
      if outs is None:
        outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
        outs = outs if eqn.primitive.multiple_results else [outs]
    seen += [value for var, value in zip(eqn.outvars, outs, strict=True)
             if id(var) in used and recorder.wants(eqn, value)]  # fmt: skip
    env.update(zip(eqn.outvars, outs, strict=True))
  _merge(rows, recorder.fingerprint(seen))
  return [read(atom) for atom in jaxpr.outvars], rows


def _fold(eqn: Any, values: Sequence[Any]) -> list[Any] | None:
  """Evaluates masks that are known before the program runs, as XLA does; None for the rest."""
  if any(isinstance(value, jax.core.Tracer) for value in values[:1]) or not values:
    return None
  if eqn.primitive.name == "select_n":
    which = np.unique(np.asarray(values[0]))
    return [values[1 + int(which[0])]] if which.size == 1 else None
  concrete = not any(isinstance(value, jax.core.Tracer) for value in values)
  if concrete and all(getattr(var.aval, "dtype", None) == np.bool_ for var in eqn.outvars):
    with jax.ensure_compile_time_eval():
      outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]
  return None


def _evaluate_scan(eqn: Any, values: Sequence[Any], recorder: _Recorder):
  """Evaluates a scan, fingerprinting in every iteration what its body computes."""
  closed, length = eqn.params["jaxpr"], eqn.params["length"]
  body, consts = closed.jaxpr, closed.consts
  # Constants, carry and slices are told apart by rank: the parameters that say it vary with jax.
  sliced = [np.ndim(v) != len(var.aval.shape) for v, var in zip(values, body.invars, strict=True)]
  stacked = [len(outer.aval.shape) != len(inner.aval.shape)
             for outer, inner in zip(eqn.outvars, body.outvars, strict=True)]  # fmt: skip
  num_carry = stacked.count(False)
  num_const = sliced.count(False) - num_carry
  looked_at = body
  if recorder.carry_only:
    needed = [not is_stacked for is_stacked in stacked]
    looked_at, _ = partial_eval.dce_jaxpr(body, needed, instantiate=True)

  def one(carry, slices):
    args = [*values[:num_const], *carry, *slices]
    outs, rows = _evaluate(body, consts, args, recorder)
    if recorder.carry_only:
      _, rows = _evaluate(looked_at, consts, args, recorder)
    return outs[:num_carry], (outs[num_carry:], rows)

  carry, (ys, rows) = jax.lax.scan(
    one, list(values[num_const : num_const + num_carry]), list(values[num_const + num_carry :]),
    length=length, reverse=eqn.params["reverse"],
  )  # fmt: skip
  return [*carry, *ys], rows
