"""Proof, on anybody's train step, that frozen leaves are not trained and cost nothing.

How the gradient of a frozen leaf is found in a program: the true gradient of the step's own loss
is computed first, for every leaf. The step is then traced, what XLA would remove as dead code is
removed, and each value that is left is reduced to a fingerprint (16 sums of it under
random signs). A frozen leaf whose gradient has the fingerprint of a live value, up to a factor, is
computed by the step. The gradient of the trained leaves alone is the reference: a value that it
needs as well (a shared cotangent) is not held against the step.

What it cannot see: gradients of a zero or non-finite value, and functions with a `custom_vjp`
whose gradient is not that of their forward pass, are listed as unchecked or missed; per-example
gradients are seen only once they are summed; the inside of `shard_map`, `while_loop` and `cond`
is not looked into, only what comes out.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.extend as jex
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks

NUM_BUCKETS = 16  # numbers in a fingerprint
SMALL = 2**16  # elements
INLINED = frozenset(
  ["jit", "pjit", "closed_call", "core_call", "call", "checkpoint", "remat", "remat2",
   "custom_jvp_call", "custom_vjp_call"]
)  # fmt: skip

RUN_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
RESHAPES = frozenset(["reshape", "squeeze", "expand_dims", "copy", "copy_p", "broadcast_in_dim"])


@dataclasses.dataclass(frozen=True)
class Report:
  """What `verify` measured on a step that passed.

  Attributes:
    num_trained: number of leaves that are trained.
    num_frozen: number of leaves that are frozen.
    flops: of the compiled step, by XLA's count (nan where the platform has none).
    full_flops: of the loss and the gradient of every leaf, without optimiser.
    state_bytes: bytes of the optimiser state; where the state has no field `opt_state`, bytes of
      all that is not parameters.
    unmoved: trained leaves that the step left as they were.
    unchecked: frozen leaves whose gradient is zero or not finite at this state, or that are no
      part of the state or integers, so that whether the step computes it could not be seen.
  """

  num_trained: int
  num_frozen: int
  flops: float
  full_flops: float
  state_bytes: int
  unmoved: tuple[str, ...]
  unchecked: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Params:
  """The parameters of a state, leaf by leaf in the order of jax.

  Attributes:
    get: state -> tree of parameters.
    paths: path of each leaf.
    frozen: whether each leaf is frozen.
    sources: for each leaf, the indices of the leaves of the state that it is made of.
  """

  get: Callable[[Any], Any]
  paths: list[str]
  frozen: list[bool]
  sources: list[list[int]]

  def leaves(self, state: Any) -> list[Any]:
    return jax.tree.leaves(self.get(state))


def verify(
  step: Callable[..., Any],
  state: Any,
  batch: Any,
  labels: Any,
  *,
  params: Callable[[Any], Any] | None = None,
  loss: Callable[[Any], jax.Array] | None = None,
) -> Report:
  """Proves that `step` leaves the frozen leaves bit-equal, without state and without gradient.

  The step is run twice. It may be jitted and may donate; it must be traceable as a whole.

  Args:
    step: (state, batch) -> new state, or (new state, metrics, ...).
    state: a pytree: a Flax TrainState, an nnx.State, or any other.
    batch: what the step takes; use at least two examples.
    labels: tree of strings shaped as the parameters; `masks.FROZEN` is what must not be trained.
    params: state -> parameters. By default `state.params` or `state["params"]`.
    loss: what the step returns -> the scalar that it differentiates. By default the metrics if
      they are a scalar, or their only leaf under the name `loss`.

  Returns:
    A report, with flops and bytes.

  Raises:
    ValueError: naming each frozen leaf that changed, owns state, or whose gradient is computed;
      or saying why the step cannot be judged.
  """
  get = params or _default_params
  known = _describe_params(get, state, labels)
  get_loss = _loss_getter(jax.eval_shape(step, state, batch), state, loss)
  jitted = jax.jit(lambda state, batch: step(state, batch))
  flops = _flops(jitted.lower(state, batch).compile())
  last = state
  for _ in range(2):
    last = _new_state(jitted(last, batch), state)
  broken = {path: [] for path in known.paths}
  unmoved = _compare(known, state, last, broken)
  _find_state(known, state, broken)
  gradients = _Gradients(step, get_loss, last, batch, known)
  unchecked = gradients.find(broken)
  _raise_broken(broken)
  return Report(
    num_trained=known.frozen.count(False),
    num_frozen=known.frozen.count(True),
    flops=flops,
    full_flops=gradients.full_flops,
    state_bytes=_state_bytes(known, state),
    unmoved=tuple(unmoved),
    unchecked=tuple(unchecked),
  )


def _raise_broken(broken: Mapping[str, list[str]]) -> None:
  lines = [f"  {path}: {'; '.join(broken[path])}" for path in sorted(broken, key=masks.natural_key)
           if broken[path]]  # fmt: skip
  if lines:
    raise ValueError(
      f"{len(lines)} frozen leaves are not left alone by the step:\n" + "\n".join(lines) + "\n"
      "Differentiate the trained part alone (masks.partition, masks.combine in the loss) and "
      "build the optimiser on it by masks.multi_transform"
    )


def _default_params(state: Any) -> Any:
  if isinstance(state, Mapping) and "params" in state:
    return state["params"]
  if hasattr(state, "params"):
    return state.params
  raise ValueError(
    f"a state of type {type(state).__name__} has neither .params nor ['params']: pass "
    "params=, a function from the state to its parameters"
  )


def _new_state(output: Any, state: Any) -> Any:
  """Returns the state in what a step returns."""
  structure = jax.tree.structure(state)
  if jax.tree.structure(output) == structure:
    return output
  if isinstance(output, tuple) and output and jax.tree.structure(output[0]) == structure:
    return output[0]
  raise ValueError(
    "step must return a new state of the structure it was given, or a tuple that starts with it; "
    f"it returned {jax.tree.structure(output)} for the state {structure}"
  )


def _loss_getter(
  output: Any, state: Any, loss: Callable[[Any], Any] | None
) -> Callable[[Any], jax.Array]:
  """Returns a function from what the step returns to its scalar loss."""
  _new_state(output, state)
  hint = "pass loss=, a function from what the step returns to the scalar loss"
  if loss is not None:
    shape = jax.eval_shape(loss, output)
    if getattr(shape, "size", None) != 1:
      raise ValueError(f"loss= must give a scalar, got {shape}")
    return lambda output: jnp.reshape(loss(output), ())
  if jax.tree.structure(output) == jax.tree.structure(state):
    raise ValueError(f"the step returns no loss: return (state, loss), or {hint}")
  found = list(zip(masks.paths(output[1:]), jax.tree.leaves(output[1:]), strict=True))
  scalars = [i for i, (_, leaf) in enumerate(found) if leaf.size == 1]
  named = [i for i in scalars if "loss" in found[i][0].split("/")]
  chosen = named or scalars
  if len(chosen) != 1:
    raise ValueError(
      f"which of the step's metrics is the loss? {[found[i][0] for i in chosen]} of "
      f"{[path for path, _ in found]}: {hint}"
    )
  return lambda output: jnp.reshape(jax.tree.leaves(output[1:])[chosen[0]], ())


def _describe_params(get: Callable[[Any], Any], state: Any, labels: Any) -> _Params:
  tree = get(state)
  label_of = masks.labels_by_path(tree, labels)
  paths = masks.paths(tree)
  closed = jax.make_jaxpr(get)(state)
  num_out = len(closed.jaxpr.outvars)
  sources = []
  for i in range(num_out):
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, [j == i for j in range(num_out)])
    sources.append([j for j, is_used in enumerate(used) if is_used])
  frozen = [label_of[path] == masks.FROZEN for path in paths]
  if all(frozen):
    raise ValueError(f"every leaf is labelled {masks.FROZEN!r}: there is no training to verify")
  return _Params(get, paths, frozen, sources)


def _bits(leaf: Any) -> tuple[Any, ...]:
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  array = np.asarray(leaf)
  return array.shape, array.dtype, array.tobytes()


def _compare(known: _Params, old: Any, new: Any, broken: dict[str, list[str]]) -> list[str]:
  """Notes frozen leaves that changed in `broken`. Returns the trained leaves that did not move."""
  unmoved = []
  both = zip(known.paths, known.frozen, known.leaves(old), known.leaves(new), strict=True)
  for path, frozen, before, after in both:
    before, after = jnp.asarray(before), jnp.asarray(after)
    same = _bits(before) == _bits(after)
    if frozen and not same:
      difference = jnp.max(jnp.abs(after - before)) if before.shape == after.shape else "shape"
      broken[path].append(f"changed (by up to {difference:.3g})")
    elif not frozen and same:
      unmoved.append(path)
  if len(unmoved) == known.frozen.count(False):
    raise ValueError("no trained leaf moved in two steps: is the learning rate zero?")
  return unmoved


def _suffix_in_state(source: str, path: str) -> str:
  """Returns the part of a state's path that other trees of the state repeat (moments, averages).

  For "params/layers/kernel", source of the parameter "layers/3/kernel", it is "layers/kernel".
  """
  parts, first = source.split("/"), path.split("/")[0]
  return "/".join(parts[parts.index(first) :]) if first in parts else path


def _find_state(known: _Params, state: Any, broken: dict[str, list[str]]) -> None:
  """Notes in `broken` the leaves of the state, besides the parameters, that frozen leaves own."""
  leaves, paths = jax.tree.leaves(state), masks.paths(state)
  owners: dict[str, list[int]] = {}
  for i, path in enumerate(known.paths):
    for j in known.sources[i]:
      owners.setdefault(_suffix_in_state(paths[j], path), []).append(i)
  are_params = {j for sources in known.sources for j in sources}
  shapes = {suffix: {np.shape(leaves[j]) for i in ids for j in known.sources[i]}
            for suffix, ids in owners.items()}  # fmt: skip
  for j, path in enumerate(paths):
    if j in are_params or np.size(leaves[j]) == 0:
      continue
    parts = path.split("/")
    suffixes = ["/".join(parts[k:]) for k in range(len(parts))]
    suffix = next((s for s in suffixes if s in owners), None)  # the longest that fits
    if suffix is None or ("/" not in suffix and np.shape(leaves[j]) not in shapes[suffix]):
      continue
    for i in owners[suffix]:
      if known.frozen[i]:
        broken[known.paths[i]].append(f"owns state ({path}, {np.shape(leaves[j])})")


def _state_bytes(known: _Params, state: Any) -> int:
  are_params = {j for sources in known.sources for j in sources}
  rest = [(path, leaf) for j, (path, leaf)
          in enumerate(zip(masks.paths(state), jax.tree.leaves(state), strict=True))
          if j not in are_params]  # fmt: skip
  optimiser = [pair for pair in rest if "opt_state" in pair[0].split("/")]
  return sum(jnp.asarray(leaf).nbytes for _, leaf in optimiser or rest)


def _flops(compiled: Any) -> float:
  analysis = compiled.cost_analysis()
  analysis = analysis[0] if isinstance(analysis, list | tuple) else analysis
  return float((analysis or {}).get("flops", np.nan))


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)


class _Gradients:
  """The search for the gradients of frozen leaves among the values that a step computes."""

  def __init__(self, step, get_loss, state, batch, known: _Params):
    self._known = known
    self._step = jax.make_jaxpr(step)(state, batch)
    self._leaves, _ = jax.tree.flatten((state, batch))
    closed = jax.make_jaxpr(lambda state, batch: get_loss(step(state, batch)))(state, batch)
    live, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=True)
    self._loss = lambda leaves: jax.core.eval_jaxpr(live, closed.consts, *leaves)[0]
    self._tolerance = _tolerance(self._step.jaxpr)
    self._true, self.full_flops = self._true_gradients(state)

  def _gradient(self, frozen_too: bool):
    """Returns a function of the state's leaves that params are made of, and those leaves' ids."""
    known = self._known
    wanted = [sources for sources, frozen in zip(known.sources, known.frozen, strict=True)
              if frozen_too or not frozen]  # fmt: skip
    chosen = sorted({j for sources in wanted for j in sources if _is_float(self._leaves[j])})

    def loss(values, leaves):
      leaves = list(leaves)
      for j, value in zip(chosen, values, strict=True):
        leaves[j] = value
      return self._loss(leaves)

    return lambda leaves: jax.value_and_grad(loss)([leaves[j] for j in chosen], leaves), chosen

  def _true_gradients(self, state) -> tuple[list[Any], float]:
    """Returns the gradient of the loss, leaf by leaf of the params, and the flops of it all."""
    function, chosen = self._gradient(frozen_too=True)
    compiled = jax.jit(function).lower(self._leaves).compile()
    _, gradients = compiled(self._leaves)
    leaves, structure = jax.tree.flatten(state)
    for j, gradient in zip(chosen, gradients, strict=True):
      leaves[j] = gradient
    return self._known.leaves(structure.unflatten(leaves)), _flops(compiled)

  def find(self, broken: dict[str, list[str]]) -> list[str]:
    """Notes in `broken` the frozen leaves whose gradient is live. Returns those that it cannot see.

    Raises:
      ValueError: not even the gradients of trained leaves can be found.
    """
    known = self._known
    marks = [_mark(g) if _is_float(g) and sources else None
             for g, sources in zip(self._true, known.sources, strict=True)]  # fmt: skip
    sizes = frozenset(int(np.size(g)) for g in self._true)
    live = _fingerprints(self._step, self._leaves, sizes)
    largest = max([mark.rms for mark in marks if mark is not None], default=0.0)

    def visible(mark):
      return mark.rms > 1e-6 * largest

    trained = [i for i, mark in enumerate(marks) if not known.frozen[i] and mark is not None]
    if not any(visible(marks[i]) and marks[i].among(live, self._tolerance) for i in trained):
      raise ValueError(
        "the gradient of no trained leaf was found among the values of the step, so nothing can be "
        "said of the frozen ones: is `loss` the quantity that the step differentiates? (pass "
        "loss=) Steps inside shard_map or pmap cannot be looked into"
      )
    suspects = [i for i, mark in enumerate(marks) if known.frozen[i] and mark is not None
                and visible(mark) and mark.among(live, self._tolerance)]  # fmt: skip
    if suspects:
      function, _ = self._gradient(frozen_too=False)
      reference = jax.make_jaxpr(function)(self._leaves)
      needed = _fingerprints(reference, self._leaves, sizes, carry_only=True)
      for i in suspects:
        if not marks[i].among(needed, self._tolerance):
          broken[known.paths[i]].append("its gradient is computed")
    return [known.paths[i] for i, mark in enumerate(marks)
            if known.frozen[i] and not (mark is not None and visible(mark))]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Mark:
  """The fingerprint of a gradient.

  Attributes:
    size: number of elements.
    buckets: [NUM_BUCKETS], see `_fingerprint`.
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

  def among(self, rows: Mapping[int, np.ndarray], tolerance: float) -> bool:
    """Returns whether one of the fingerprinted values is a multiple of the gradient."""
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
      near &= np.abs(lengths - length) < 1e-5 * length
    return bool(near.any())


def _mark(gradient: jax.Array) -> _Mark:
  values = np.asarray(gradient).reshape(1, -1).astype(np.float32)
  return _Mark(
    size=values.size,
    buckets=_fingerprint(values, np)[0].astype(np.float64),
    common=values.size <= 4 or bool((values == values[0, 0]).all()),
  )


def _fingerprint(x: Any, xp: Any = jnp) -> Any:
  """Returns [n, NUM_BUCKETS] of x [n, size]: rows under random signs, summed by index modulo.

  `xp` is the module that computes it, jnp or np.
  """
  size = x.shape[1]
  mixed = xp.arange(size, dtype=np.uint32) * np.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 15)) * np.uint32(0xC2B2AE35)
  sign = xp.where((mixed ^ (mixed >> 13)) >> 31 == 1, np.float32(1), np.float32(-1))
  signed = xp.pad(x.astype(np.float32) * sign[None], ((0, 0), (0, -size % NUM_BUCKETS)))
  return xp.sum(signed.reshape(len(x), -1, NUM_BUCKETS), 1)


def _tolerance(jaxpr: Any) -> float:
  """Returns how far two ways to compute one gradient may differ, relative to its size."""
  exact = jax.default_backend() == "cpu" and not any(
    jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 for dtype in _dtypes(jaxpr)
  )
  return 1e-3 if exact else 2e-2


def _dtypes(jaxpr: Any) -> set[Any]:
  found = set()
  for eqn in jaxpr.eqns:
    found.update(var.aval.dtype for var in eqn.outvars if hasattr(var.aval, "dtype"))
    for inner in jex.core.jaxprs_in_params(eqn.params):
      found |= _dtypes(inner)
  return found


def _fingerprints(
  closed: Any, leaves: Sequence[Any], sizes: frozenset[int], carry_only: bool = False
) -> dict[int, np.ndarray]:
  """Returns size -> fingerprints [n, NUM_BUCKETS] of the live values of those sizes.

  With `carry_only`, values in the body of a scan count only if its carry needs them.
  """

  def inlined(*leaves):
    return _evaluate(closed.jaxpr, closed.consts, leaves, _Recorder())[0]

  flat = jax.make_jaxpr(inlined)(*leaves)
  live, _ = partial_eval.dce_jaxpr(flat.jaxpr, [True] * len(flat.jaxpr.outvars), instantiate=True)
  recorder = _Recorder(sizes, carry_only)
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

  def wants(self, eqn: Any, value: Any) -> bool:
    return (
      eqn.primitive.name not in RESHAPES
      and getattr(value, "size", None) in self.sizes
      and jnp.issubdtype(value.dtype, jnp.floating)
    )

  def fingerprint(self, values: Sequence[Any]) -> dict[int, list[jax.Array]]:
    """Returns size -> fingerprints. Small values are taken together, to compile less."""
    by_size: dict[int, list[jax.Array]] = {}
    # The barrier keeps XLA from computing the values once more inside their fingerprints.
    for value in jax.lax.optimization_barrier(list(values)):
      by_size.setdefault(int(value.size), []).append(value.reshape(1, -1).astype(jnp.float32))
    for size, same in by_size.items():
      batches = [jnp.concatenate(same)] if size <= SMALL else same
      by_size[size] = list(map(_fingerprint, batches))
    return by_size


def _merge(rows: dict[int, list[jax.Array]], more: Mapping[int, list[jax.Array]]) -> None:
  for size, found in more.items():
    rows.setdefault(size, []).extend(found)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], recorder: _Recorder):
  """Evaluates a jaxpr with calls inlined. Returns (outputs, size -> fingerprints)."""
  env, rows, seen = {}, {}, []

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
