"""What the functions of this room refuse, and what they say.

Shapes and types are always checked, values only where they can be read. Inside jit they cannot:
there a function's floats are all NaN for values that it refuses elsewhere (`valid`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.calibration import arrays

Array = arrays.Array


def as_array(x: Any) -> Array:
  """JAX arrays as they are, anything else as numpy."""
  return x if isinstance(x, jax.Array) else np.asarray(x)


def logits(x: Any, name: str = "logits", rank: int | None = 2, finite: bool = False) -> Array:
  """Returns `x` as floats.

  Args:
    x: logits, [N, C], or [..., C] with `rank=None`. -inf is a class that is ruled out.
    name: what errors call it.
    rank: number of axes.
    finite: refuse -inf too.

  Raises:
    ValueError: another rank, no rows or classes, no numbers, NaN, +inf, a row that is all -inf.
  """
  x = as_array(x)
  if jnp.issubdtype(x.dtype, jnp.integer):
    x = x.astype(np.float64 if isinstance(x, np.ndarray) else jnp.float32)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"{name} must be real numbers, got dtype {x.dtype}")
  if x.ndim == 0 or (rank is not None and x.ndim != rank):
    wanted = "[..., classes]" if rank is None else "[examples, classes]"
    raise ValueError(f"{name} must have the shape {wanted}, got {x.shape}")
  if x.size == 0:
    raise ValueError(f"{name} are empty: shape {x.shape}, need at least one example and one class")
  if arrays.is_concrete(x):
    _check_values(x, name, finite)
  return x


def _check_values(x: Array, name: str, finite: bool) -> None:
  lowest, highest = float(x.min()), float(x.max())
  if np.isnan(lowest) or np.isnan(highest):
    flat = np.asarray(x).reshape(-1, x.shape[-1])
    row = next(i for i in range(len(flat)) if np.isnan(flat[i]).any())
    raise ValueError(f"{name} hold NaN, first in row {row}: drop such rows, or find their cause")
  if highest == np.inf:
    raise ValueError(f"{name} hold +inf: they must be finite, or -inf for a class ruled out")
  if lowest == -np.inf:
    if finite:
      raise ValueError(f"{name} hold -inf, and here they must be finite: drop those classes")
    dead = np.asarray(x.max(-1) == -np.inf).reshape(-1)
    if dead.any():
      raise ValueError(f"row {int(dead.argmax())} of {name} is -inf for every class")


def labels(x: Any, num_examples: int, num_classes: int) -> Array:
  """Returns `x` as integers [N].

  Raises:
    ValueError: another shape, no integers, or values outside 0..num_classes-1.
  """
  x = as_array(x)
  if not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(f"labels must be integers, got dtype {x.dtype}: labels.astype(int)")
  if x.shape != (num_examples,):
    raise ValueError(f"labels must have the shape ({num_examples},) of the rows, got {x.shape}")
  if arrays.is_concrete(x):
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= num_classes:
      bad = low if low < 0 else high
      raise ValueError(f"label {bad} is out of range: the {num_classes} classes are "
                       f"0..{num_classes - 1}; drop its rows, or add its column")  # fmt: skip
  return x


def mask(x: Any, num_classes: int, name: str = "absent", proper: bool = True) -> Array:
  """Returns `x` as booleans [C].

  Args:
    x: which classes.
    num_classes: C.
    name: what errors call it.
    proper: refuse a mask of none or of all classes.

  Raises:
    ValueError: no booleans, another length, or (`proper`) none or all of the classes.
  """
  x = as_array(x)
  if x.dtype != np.bool_:
    raise ValueError(
      f"{name} must be a boolean mask over the {num_classes} classes, got dtype {x.dtype}: from "
      f"indices, np.isin(np.arange({num_classes}), indices)"
    )
  if x.shape != (num_classes,):
    raise ValueError(f"{name} must have the shape ({num_classes},) of the classes, got {x.shape}")
  if proper and arrays.is_concrete(x):
    count = int(x.sum())
    if count in (0, num_classes):
      raise ValueError(f"{name} marks {count} of the {num_classes} classes: mark at least one, "
                       "and leave at least one")  # fmt: skip
  return x


def groups(absent: Any, third: Any, num_classes: int) -> tuple[Array, Array]:
  """Returns the masks of the absent and of the third classes.

  Raises:
    ValueError: masks that overlap, or that leave no seen class.
  """
  absent = mask(absent, num_classes)
  third = mask(np.zeros(num_classes, bool) if third is None else third, num_classes, "third", False)
  if arrays.is_concrete(absent) and arrays.is_concrete(third):
    absent_, third_ = np.asarray(absent), np.asarray(third)
    if (absent_ & third_).any():
      both = np.flatnonzero(absent_ & third_).tolist()
      raise ValueError(f"classes {both} are marked both absent and third: a class is one of them")
    if (absent_ | third_).all():
      raise ValueError(f"absent and third mark all {num_classes} classes: leave at least one seen")
  return absent, third


def valid(
  logits_: Array, labels_: Any = None, *masks: Any, finite: bool = False, fits: Any = True
) -> Array | bool:
  """Whether the functions above let the values pass: True, or traced where they cannot be read.

  Args:
    logits_: [..., C].
    labels_: [N], in 0..C-1; or None.
    *masks: [C] each: every one and what all of them leave must mark a class.
    finite: as of `logits`.
    fits: another condition, known or traced.
  """
  if all(arrays.is_concrete(x) for x in (logits_, labels_, fits, *masks)):
    return True
  top = logits_.max(-1)
  fine = (jnp.isfinite(logits_) if finite else (top > -np.inf) & (top < np.inf)).all() & fits
  if labels_ is not None:
    fine &= ((labels_ >= 0) & (labels_ < logits_.shape[-1])).all()
  for marked in masks:
    fine &= jnp.any(marked)
  return fine & ~jnp.all(sum(jnp.asarray(m, "int32") for m in masks) == 1) if masks else fine


def occur(labels_: Array, classes: Array, what: str) -> None:
  """Raises a ValueError where no label is in the mask `classes` [C]."""
  if arrays.is_concrete(labels_) and arrays.is_concrete(classes):
    wanted = np.asarray(classes)
    if not wanted[np.asarray(labels_)].any():
      found = ", ".join(map(str, np.flatnonzero(wanted)[:5])) + ", ..." * int(wanted.sum() > 5)
      raise ValueError(
        f"no example has the label of {what} (classes {found}): its accuracy is not defined"
      )
