"""Kernels of groups of parameters: how alike two images are to the gradient of each group.

For images x, x' and a group b of parameters, K_b(x, x') = sum_j <d s_j(x) / d b, d s_j(x') / d b>,
where s_j(x) = r_j' phi(x) are random combinations of the features, the same for all images: no
label and no head enters. With r_j of random signs / sqrt(D m), D features and m probes, K_b is an
unbiased estimate of tr(J_b(x) J_b(x')') / D. The sum of kernels over a set of groups is the kernel
of training them together, to first order (docs/selection.md).

Gradients are never kept: each becomes a count sketch of a fixed length (Charikar, Chen and
Farach-Colton, "Finding Frequent Items in Data Streams", 2002), whose inner products are unbiased.
Of many images the products with a sample of them, the landmarks, do (Nystrom's method).
"""

from collections.abc import Callable, Mapping
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import masks
from subtune_jax.masks import parts
from subtune_jax.masks import tree as tree_lib
from subtune_jax.training import mesh as mesh_lib

PyTree = Any
Apply = Callable[[PyTree, Any], Any]  # (params, images [b, ...]) -> features [b, D]
BUCKETS = 4093  # a prime, so that it shares no period with the shapes of kernels


@dataclasses.dataclass(frozen=True)
class Kernels:
  """What the gradients of one network on some images are like.

  Attributes:
    head: [n, m] float32 inner products of the features of all images and of the landmarks.
    groups: group -> [n, m] float32, in the order of the parameters.
    num_params: group -> number of its parameters.
    square_norms: group -> sum of the squares of its parameters.
    seconds: it took to compute them, without compiling.
    compile_seconds: the first batch, compiling included.
    base: [n, D] the features.
    features: group -> [n, D] those that the head reads once this group is trained, where they are
      others before a step is taken (BatchNorm on the group's own statistics of the images:
      `norm_statistics.candidate_features`).
    landmarks: [m] rows of the images that the columns are of; None: of all, m = n.
  """

  head: np.ndarray
  groups: Mapping[str, np.ndarray]
  num_params: Mapping[str, int]
  square_norms: Mapping[str, float]
  seconds: float = 0.0
  compile_seconds: float = 0.0
  base: np.ndarray | None = None
  features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  landmarks: np.ndarray | None = None

  def features_gram(self, features: np.ndarray, what: str) -> np.ndarray:
    """[n, m] inner products of rows [n, D] with those of the landmarks."""
    others = features if self.landmarks is None else features[self.landmarks]
    return products(features, others, what)


def gradient_kernels(
  apply: Apply,
  params: PyTree,
  images: Any,
  labels: PyTree,
  *,
  probes: int | np.ndarray = 4,
  seed: int = 0,
  batch_size: int = 64,
  buckets: int | None = BUCKETS,
  landmarks: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Kernels:
  """The kernel of each group of parameters of any network.

  Args:
    apply: (params, images [b, ...]) -> features [b, D], those that the head reads. Each image's
      features must depend on that image alone: norms run on running statistics.
    params: Linen params, an `nnx.State`, or any other pytree.
    images: [n, ...], an array or anything that slices into arrays (and takes rows in rising
      order, with landmarks).
    labels: strings in the structure of `params` (`masks.label`): the names of the groups. Leaves
      labelled "frozen" or "head" are in no group.
    probes: number of random combinations of the features; or the combinations, [m, D].
    seed: of probes and sketches.
    batch_size: images at a time.
    buckets: length of a sketch; None keeps whole gradients, for small networks.
    landmarks: so many images, drawn by the seed, are the columns: memory and time of n * m in
      place of n^2. None, or n and more: all.
    mesh: splits each batch over its devices; None runs on the default device.

  Returns:
    Kernels over the n images.

  Raises:
    ValueError: no group, labels or probes that do not fit, an option out of range, or a gradient
      that is not finite.
  """
  leaves, treedef = jax.tree.flatten(params)
  names, places = _groups(params, labels)
  count = len(images)
  _check_options(count, batch_size, buckets, landmarks)
  begin = time.perf_counter()
  feature_size = _feature_size(apply, params, images)
  vectors = _probes(probes, feature_size, seed)
  chosen = [leaves[i] for own in places.values() for i in own]
  run = _Run(apply, leaves, treedef, places, buckets, images, batch_size, mesh)
  drawn = draw_landmarks(count, landmarks, seed)
  columns = np.arange(count) if drawn is None else drawn
  pieces = _pieces(count, columns)
  features = np.empty((count, feature_size), np.float32)
  groups = {name: np.zeros((count, len(columns)), np.float32) for name in names}
  compile_seconds = 0.0
  for number, vector in enumerate(vectors):
    hashes = _hashes(chosen, buckets, np.random.default_rng((seed, number)))
    for rows in pieces:
      features[rows], sketches, first = run.sketches(vector, hashes, rows)
      compile_seconds = compile_seconds or first
      if rows is pieces[0]:
        of_columns = sketches
      for name in names:
        groups[name][rows] += products(sketches[name], of_columns[name], name)
  squares = {name: sum(float(np.sum(np.square(np.asarray(leaves[i], np.float64)))) for i in own)
             for name, own in places.items()}  # fmt: skip
  counts = {name: sum(int(np.size(leaves[i])) for i in own) for name, own in places.items()}
  seconds = time.perf_counter() - begin - compile_seconds
  times = round(seconds, 3), round(compile_seconds, 3)
  found = Kernels(features[:0], groups, counts, squares, *times, base=features,
                  landmarks=drawn)  # fmt: skip
  return dataclasses.replace(found, head=found.features_gram(features, "the features"))


def _check_options(count: int, batch_size: int, buckets: int | None, landmarks: int | None) -> None:
  if batch_size < 1 or (buckets is not None and buckets < 1):
    raise ValueError(f"batch_size is {batch_size}, buckets {buckets}; each must be at least 1")
  if landmarks is not None and landmarks < 2:
    raise ValueError(f"landmarks is {landmarks}; give at least 2 images, or None for all")
  if count < 2:
    raise ValueError(f"there are {count} images; a kernel needs at least 2")


def draw_landmarks(count: int, landmarks: int | None, seed: int) -> np.ndarray | None:
  """[m] rows in rising order of so many of `count` images; None: all of them are."""
  if landmarks is None or landmarks >= count:
    return None
  return np.sort(np.random.default_rng((seed, count)).permutation(count)[:landmarks])


def _pieces(count: int, columns: np.ndarray) -> list[np.ndarray]:
  """The columns' rows, then the others, as many at a time: so many sketches are in memory twice."""
  others = np.setdiff1d(np.arange(count), columns)
  size = len(columns)
  return [columns, *(others[i : i + size] for i in range(0, len(others), size))]


def _groups(params: PyTree, labels: PyTree) -> tuple[list[str], dict[str, list[int]]]:
  """Names of the groups in the order of their first leaf, and the places of their leaves."""
  parts.labels_by_path(params, labels)  # raises where they do not fit
  places: dict[str, list[int]] = {}
  for i, label in enumerate(jax.tree.leaves(labels)):
    if label not in (tree_lib.FROZEN, tree_lib.HEAD):
      places.setdefault(label, []).append(i)
  if not places:
    raise ValueError(
      "labels name no group: every leaf is 'frozen' or 'head'; label the candidates, as in "
      "masks.label(params, {'early': 'block0', 'late': 'block1'})"
    )
  names = sorted(places, key=tree_lib.natural_key)
  return names, {name: places[name] for name in names}


def _feature_size(apply: Apply, params: PyTree, images: Any) -> int:
  one = jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), np.asarray(images[:1]).dtype)
  shape = getattr(jax.eval_shape(apply, params, one), "shape", None)
  if shape is None or len(shape) != 2 or shape[0] != 1:
    raise ValueError(f"apply gives {shape} for one image; it must give features [1, D]")
  return shape[1]


def _probes(probes: int | np.ndarray, size: int, seed: int) -> np.ndarray:
  """[m, D] float32."""
  if isinstance(probes, int):
    if probes < 1:
      raise ValueError(f"probes is {probes}; give at least 1")
    signs = np.random.default_rng(seed).integers(0, 2, (probes, size)) * 2 - 1
    return (signs / np.sqrt(size * probes)).astype(np.float32)
  probes = np.asarray(probes, np.float32)
  if probes.ndim != 2 or probes.shape[1] != size or not len(probes):
    raise ValueError(f"probes have shape {probes.shape}; the features need [m, {size}]")
  return probes


def _hashes(leaves: list[Any], buckets: int | None, rng: np.random.Generator) -> list[Any]:
  """Random signs (int8, in the shape of the leaf) and where a leaf's first entry goes."""
  if buckets is None:
    return [None] * len(leaves)
  return [
    (
      jnp.asarray(rng.integers(0, 2, np.shape(leaf), np.int8) * 2 - 1),
      jnp.asarray(rng.integers(0, buckets), jnp.int32),
    )
    for leaf in leaves
  ]


def count_sketch(gradient: jax.Array, sign: jax.Array, start: jax.Array, buckets: int) -> jax.Array:
  """[buckets]: entry i, times its random sign, is added to the bucket (start + i) mod buckets.

  Args:
    gradient: of any shape.
    sign: of the same shape; its sign counts.
    start: a random bucket.
    buckets: length of the sketch.
  """
  flat = jnp.where(sign > 0, gradient, -gradient).astype(jnp.float32).ravel()
  whole = flat.size // buckets * buckets  # padding the rest would copy everything
  sketch = flat[:whole].reshape(-1, buckets).sum(axis=0)
  return jnp.roll(sketch.at[: flat.size - whole].add(flat[whole:]), start)


class _Run:
  """The program of a batch, and the loop over batches."""

  def __init__(self, apply, leaves, treedef, places, buckets, images, batch_size, mesh):
    self._images, self._mesh = images, mesh
    self._leaves = [jnp.asarray(leaf) for leaf in leaves]
    self._batch_size = min(batch_size, len(images))
    if mesh is not None:
      self._batch_size = -(-self._batch_size // mesh.size) * mesh.size
      self._leaves = jax.device_put(self._leaves, mesh_lib.replicated(mesh))
    program = _program(apply, treedef, places, buckets)
    # Left to XLA, the gradients of grouped convolutions came out wrong on several devices.
    if mesh is not None:
      whole, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(mesh_lib.DATA_AXIS)
      program = jax.shard_map(
        program, mesh=mesh, in_specs=(whole, rows, whole, whole), out_specs=rows, check_vma=False
      )
    self._program = jax.jit(program)

  def sketches(
    self, vector: np.ndarray, hashes: list[Any], rows: np.ndarray
  ) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """([k, D] features, group -> [k, buckets], seconds of the first batch) of k rows, one probe."""
    found, first = [], 0.0
    for begin in range(0, len(rows), self._batch_size):
      at = time.perf_counter()
      batch = _take(self._images, rows[begin : begin + self._batch_size])
      real = len(batch)
      batch = np.concatenate([batch, np.repeat(batch[:1], self._batch_size - real, axis=0)])
      if self._mesh is not None:
        batch = jax.device_put(batch, mesh_lib.split(self._mesh))
      out = jax.device_get(self._program(self._leaves, batch, vector, hashes))
      found.append(jax.tree.map(lambda x, real=real: x[:real], out))
      first = first or time.perf_counter() - at
    features, groups = jax.tree.map(lambda *rows: np.concatenate(rows), *found)
    return features, groups, first


def _program(apply: Apply, treedef: Any, places: Mapping[str, list[int]], buckets: int | None):
  """(leaves, images, probe, hashes) -> features [b, D], group -> sketches [b, buckets]."""
  order = [place for own in places.values() for place in own]
  where = {place: i for i, place in enumerate(order)}

  def one(leaves, image, vector, hashes):
    def features(tuned):
      full = list(leaves)
      for place, leaf in zip(order, tuned, strict=True):
        full[place] = leaf
      return apply(treedef.unflatten(full), image[None])[0]

    phi, pull = jax.vjp(features, [leaves[place] for place in order])
    (gradients,) = pull(jnp.asarray(vector, phi.dtype))
    groups: dict[str, Any] = {}
    for name, own in places.items():
      mine = [(gradients[where[place]], hashes[where[place]]) for place in own]
      if buckets is None:
        groups[name] = jnp.concatenate([g.astype(jnp.float32).ravel() for g, _ in mine])
      else:
        groups[name] = sum(count_sketch(g, sign, start, buckets) for g, (sign, start) in mine)
    return phi.astype(jnp.float32), groups

  return jax.vmap(one, in_axes=(None, 0, None, None))


def _take(images: Any, rows: np.ndarray) -> np.ndarray:
  """Rows in rising order, as a slice where they are one."""
  whole = rows[-1] - rows[0] + 1 == len(rows)
  return np.asarray(images[rows[0] : rows[-1] + 1] if whole else images[rows])


@jax.jit
def _product(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def products(x: np.ndarray, y: np.ndarray, what: str) -> np.ndarray:
  """[n, m] float32 inner products of the rows of x with those of y."""
  found = np.asarray(_product(x, y))
  if not np.isfinite(found).all():
    raise ValueError(f"gradients of {what} are not finite; check params and images")
  return found


def unit_labels(params: PyTree, units: Mapping[str, tuple[str, ...]]) -> PyTree:
  """Labels for `gradient_kernels` from units of blocks, e.g. of `search.units.Network.units`.

  Args:
    params: of a backbone of `subtune_jax.models`.
    units: name -> paths of its blocks.
  """
  return masks.label(
    params, {name: [f"/{block}" for block in blocks] for name, blocks in units.items()}
  )
