"""Labels and partitions of parameter trees: selectors, round trips, frozen leaves, summaries."""

import dataclasses
import doctest
import subprocess
import sys
from typing import Any

import flax
from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subtune_jax import masks


@flax.struct.dataclass
class Pair:
  left: Any
  right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Plain:
  weight: Any
  inner: Any
  note: str = dataclasses.field(default="static", metadata={"static": True})


class Net(nnx.Module):
  def __init__(self, rngs):
    self.block1 = nnx.Linear(3, 4, rngs=rngs)
    self.block10 = nnx.Linear(4, 4, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])


class Boxed(nn.Module):
  @nn.compact
  def __call__(self, x):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    return nn.Dense(4, kernel_init=init, name="block1")(x)


def make_params() -> dict:
  keys = iter(jax.random.split(jax.random.key(0), 20))
  return {
    "stem": {"conv": {"kernel": jax.random.normal(next(keys), (3, 8))}},
    **{
      f"block{i}": {
        "kernel": jax.random.normal(next(keys), (8, 8)),
        "bias": jax.random.normal(next(keys), (8,)),
      }
      for i in (1, 2, 10)
    },
    "head": {"kernel": jnp.ones((8, 2)), "bias": jnp.zeros(2)},
  }


def make_trees() -> dict[str, Any]:
  params = make_params()
  half = jnp.arange(3, dtype=jnp.bfloat16)
  return {
    "dict": params,
    "frozen dict": flax.core.freeze(params),
    "nnx": nnx.state(Net(nnx.Rngs(0)), nnx.Param),
    "lists": [params, ({"x": half}, [jnp.int32(3), np.float64(2.5)])],
    "struct": Pair(params["head"], [half, Pair(jnp.ones(2), None)]),
    "dataclass": Plain(half, {"a": None, "b": (jnp.ones(3), None)}),
    "boxed": Boxed().init(jax.random.key(0), jnp.ones((1, 3)))["params"],
  }


TREES = make_trees()


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).dtype == np.asarray(y).dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("dict", ["block1/bias", "block1/kernel", "block10/bias"]),
    ("frozen dict", ["block1/bias", "block1/kernel", "block10/bias"]),
    ("nnx", ["block1/bias", "block1/kernel", "block10/bias", "block10/kernel", "layers/0/bias"]),
    ("lists", ["0/block1/bias"]),
    ("struct", ["left/bias", "left/kernel", "right/0", "right/1/left"]),
    ("dataclass", ["weight", "inner/b/0"]),
    ("boxed", ["block1/bias", "block1/kernel"]),
  ],
)
def test_paths_show_names_and_no_wrappers(name, expected):
  assert masks.paths(TREES[name])[: len(expected)] == expected
  assert len(masks.paths(TREES[name])) == len(jax.tree.leaves(TREES[name]))


@pytest.mark.parametrize(
  ("selector", "expected"),
  [
    ("block1", {"block1/kernel", "block1/bias"}),  # and not block10
    ("block1/kernel", {"block1/kernel"}),
    ("conv", {"stem/conv/kernel"}),
    ("/stem/conv", {"stem/conv/kernel"}),
    ("stem/", {"stem/conv/kernel"}),
    ("block*/bias", {"block1/bias", "block2/bias", "block10/bias"}),
    ("block?/bias", {"block1/bias", "block2/bias"}),
    ("*/*/kernel", {"stem/conv/kernel"}),
    (["head", "block2/bias"], {"head/kernel", "head/bias", "block2/bias"}),
    (lambda path, leaf: leaf.ndim == 1 and "head" not in path,
     {"block1/bias", "block2/bias", "block10/bias"}),
    (["stem", lambda path, leaf: leaf.size == 2], {"stem/conv/kernel", "head/bias"}),
  ],
)  # fmt: skip
def test_select(selector, expected):
  params = TREES["dict"]
  chosen = masks.select(params, selector)
  assert jax.tree.structure(chosen) == jax.tree.structure(params)
  found = {p for p, x in zip(masks.paths(params), jax.tree.leaves(chosen), strict=True) if x}
  assert found == expected


@pytest.mark.parametrize(
  ("selector", "message"),
  [
    ("blok1", "selector 'blok1' matches no leaf; the nearest names are block1, block"),
    ("stem/konv", "the nearest names are stem/conv, stem;"),
    ("lock1", "nearest names are .*block1"),
    ("/conv", "at the root there are block1, block2, block10, head, stem"),
    ("xyzzy", "^selector 'xyzzy' matches no leaf; at the root there are block1, block2, block10"),
    (["head", "hed"], "selector 'hed' matches no leaf; the nearest names are head"),
    (lambda path, leaf: False, "predicate '<lambda>' is true for no leaf; paths are block1/bias"),
    ([], "empty sequence"),
    ("", "bad pattern ''"),
    ("a//b", "bad pattern 'a//b'"),
    ("block1/**", r"'\*\*' is not known"),
    (3, "3 is no selector"),
  ],
)
def test_select_refuses(selector, message):
  with pytest.raises(ValueError, match=message):
    masks.select(TREES["dict"], selector)


def test_label_rules():
  labels = masks.label(TREES["dict"], {masks.HEAD: "head", "bias": "block*/bias"})
  by_path = dict(zip(masks.paths(labels), jax.tree.leaves(labels), strict=True))
  assert by_path["head/bias"] == "head"
  assert by_path["block10/bias"] == "bias"
  assert by_path["block10/kernel"] == masks.FROZEN
  labels = masks.label(TREES["dict"], {masks.FROZEN: "stem"}, default=masks.TUNED)
  assert jax.tree.leaves(labels).count(masks.TUNED) == len(jax.tree.leaves(labels)) - 1
  with pytest.raises(ValueError, match=r"two rules: head/bias \('head' and 'bias'\)"):
    masks.label(TREES["dict"], {masks.HEAD: "head", "bias": "bias"})


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("which", ["none", "first", "odd", "all"])
def test_combine_after_partition_is_the_identity(name, which):
  tree = TREES[name]
  chosen = {"none": [], "first": masks.paths(tree)[:1], "odd": masks.paths(tree)[1::2],
            "all": masks.paths(tree)}[which]  # fmt: skip
  rules = {masks.TUNED: lambda path, leaf: path in chosen} if chosen else {}
  labels = masks.label(tree, rules)
  trained, frozen = masks.partition(tree, labels)
  assert masks.paths(trained) == chosen
  assert sorted(masks.paths(trained) + masks.paths(frozen)) == sorted(masks.paths(tree))
  assert_same(masks.combine(trained, frozen), tree)
  assert_same(masks.combine(frozen, trained), tree)


def test_partition_shows_none_for_the_other_part():
  tree = {"a": 1.0, "b": 2.0, "c": None}
  trained, frozen = masks.partition(tree, masks.label(tree, {masks.TUNED: "a"}))
  assert trained == {"a": 1.0, "b": None, "c": masks.OriginalNone()}
  assert frozen == {"a": None, "b": 2.0, "c": masks.OriginalNone()}
  assert jax.tree.leaves(trained) == [1.0]


def test_combine_refuses():
  tree = {"a": {"x": 1.0, "y": 2.0}, "b": 3.0}
  one = masks.partition(tree, masks.label(tree, {masks.TUNED: "a"}))
  two = masks.partition(tree, masks.label(tree, {masks.TUNED: "a/x"}))
  with pytest.raises(ValueError, match=r"in both: a/y; in neither: nothing"):
    masks.combine(one[0], two[1])
  with pytest.raises(ValueError, match=r"in both: nothing; in neither: a/y"):
    masks.combine(two[0], one[1])
  with pytest.raises(ValueError, match=r"only in the first tree: b; only in the second: c"):
    masks.combine({"b": None}, {"c": None})


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ({"a": "tuned"}, "only in the tree: b"),
    ({"a": "tuned", "b": "frozen", "c": "frozen"}, "only in labels: c"),
    ({"a": "tuned", "b": True}, "labels must be strings, got b: True"),
  ],
)
def test_labels_that_do_not_fit(labels, message):
  tree = {"a": jnp.ones(2), "b": jnp.ones(3)}
  for function in (masks.partition, masks.count_params, masks.summary):
    with pytest.raises(ValueError, match=message):
      function(tree, labels)


def test_count_params():
  params = TREES["dict"]
  assert masks.count_params(params) == 24 + 3 * 72 + 18
  labels = masks.label(params, {masks.TUNED: "block1", masks.HEAD: "head"})
  assert masks.count_params(params, labels) == {"head": 18, "tuned": 72, "frozen": 24 + 144}
  shapes = jax.eval_shape(lambda: params)
  assert masks.count_params(shapes, labels) == masks.count_params(params, labels)
  assert masks.count_params(TREES["nnx"]) == 16 + 3 * 20


def test_summary():
  params = TREES["dict"]
  labels = masks.label(params, {masks.TUNED: ["block10", "block2", "block1/bias"]})
  assert masks.summary(params, labels).splitlines() == [
    "label   parameters    share  what",
    "tuned          152   58.9 %  block1/bias, block2, block10",
    "frozen         106   41.1 %  block1/kernel, head, stem",
    "152 of 258 parameters are trained (58.9 %)",
  ]


def adamw(learning_rate=1e-2):
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=0.1))


def array_bytes(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def quadratic(tree):
  return sum(jnp.sum((x - 3.0) ** 2) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["dict", "frozen dict", "nnx", "struct", "boxed"])
@pytest.mark.parametrize("split", [True, False])
def test_frozen_leaves_stay_bit_equal_and_own_no_state(name, split):
  """AdamW with weight decay and clipping, on the trained part or on the whole tree."""
  tree = TREES[name]
  chosen = masks.paths(tree)[0]
  labels = masks.label(tree, {masks.TUNED: "/" + chosen})
  tx = masks.multi_transform({masks.TUNED: adamw()}, labels)
  part, rest = masks.partition(tree, labels) if split else (tree, None)
  opt_state = tx.init(part)
  trained_params = masks.count_params(tree, labels)[masks.TUNED]
  itemsize = jax.tree.leaves(masks.partition(tree, labels)[0])[0].dtype.itemsize
  assert array_bytes(opt_state) == 2 * itemsize * trained_params + 4  # mu, nu and a counter

  @jax.jit
  def step(part, opt_state):
    updates, opt_state = tx.update(jax.grad(quadratic)(part), opt_state, part)
    return optax.apply_updates(part, updates), opt_state

  for _ in range(3):
    part, opt_state = step(part, opt_state)
  after = masks.combine(part, rest) if split else part
  assert jax.tree.structure(after) == jax.tree.structure(tree)
  for path, old, new in zip(
    masks.paths(tree), jax.tree.leaves(tree), jax.tree.leaves(after), strict=True
  ):
    same = np.asarray(old).tobytes() == np.asarray(new).tobytes()
    assert same == (path != chosen), path


def test_clipping_ignores_frozen_gradients():
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  labels = masks.label(params, {masks.TUNED: "a"})
  tx = masks.multi_transform({masks.TUNED: optax.clip_by_global_norm(1.0)}, labels)
  gradients = {"a": jnp.array([0.5]), "b": jnp.array([1e6])}
  updates, _ = tx.update(gradients, tx.init(params), params)
  assert updates == {"a": jnp.array([0.5]), "b": jnp.array([0.0])}


def test_labels_have_their_own_transform():
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  labels = {"a": "slow", "b": "fast"}
  tx = masks.multi_transform({"slow": optax.sgd(0.1), "fast": optax.sgd(1.0)}, labels)
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
  np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.1, -1.0])


def test_multi_transform_lists_both_sides():
  labels = masks.label(TREES["dict"], {masks.HEAD: "head", masks.TUNED: "block1"})
  expected = r"without a transform: \['tuned'\]; transforms without a label: \['frozen', 'hed'\]"
  sgd = optax.sgd(0.1)
  with pytest.raises(ValueError, match=expected):
    masks.multi_transform({"head": sgd, "hed": sgd, "frozen": sgd}, labels)
  tx = masks.multi_transform({"head": sgd, "tuned": sgd}, labels)
  with pytest.raises(ValueError, match="that have no label: extra"):
    tx.init({**TREES["dict"], "extra": jnp.ones(1)})


def stacked_tree() -> dict:
  keys = jax.random.split(jax.random.key(1), 3)
  return {
    "layers": {
      "dense": {"kernel": jax.random.normal(keys[0], (12, 4, 4)),
                "bias": jax.random.normal(keys[1], (12, 4)).astype(jnp.bfloat16)},
      "scale": np.arange(12.0),
    },
    "head": jax.random.normal(keys[2], (4,)),
  }  # fmt: skip


@pytest.mark.parametrize("wrap", [lambda t: t, flax.core.freeze, lambda t: {"decoder": [t, None]}])
def test_restack_is_the_inverse_of_unstack(wrap):
  tree = wrap(stacked_tree())
  unstacked = masks.unstack(tree, "layers")
  assert masks.count_params(unstacked) == masks.count_params(tree)
  chosen = masks.select(unstacked, "layers/3")
  assert jax.tree.leaves(chosen).count(True) == 3
  assert_same(masks.restack(unstacked, "layers"), tree)


def test_unstack_keeps_layers_and_selects_them_one_by_one():
  tree = stacked_tree()
  unstacked = masks.unstack(tree, "layers")
  assert sorted(unstacked["layers"], key=masks.natural_key) == [str(i) for i in range(12)]
  np.testing.assert_array_equal(
    unstacked["layers"]["11"]["dense"]["kernel"], tree["layers"]["dense"]["kernel"][11]
  )
  labels = masks.label(unstacked, {masks.TUNED: ["layers/10", "layers/2"]})
  assert "layers/2, layers/10" in masks.summary(unstacked, labels)
  only_kernel = masks.unstack(tree, "dense/kernel", axis=-1)
  assert only_kernel["layers"]["dense"]["kernel"]["3"].shape == (12, 4)
  assert_same(masks.restack(only_kernel, "dense/kernel", axis=-1), tree)


def test_unstack_on_nnx_state():
  tree = nnx.State({"layers": {"kernel": nnx.Param(jnp.arange(6.0).reshape(3, 2))}})
  unstacked = masks.unstack(tree, "layers")
  assert masks.paths(unstacked) == ["layers/0/kernel", "layers/1/kernel", "layers/2/kernel"]
  assert_same(masks.restack(unstacked, "layers"), tree)


def test_restack_under_jit_and_grad():
  layers = masks.unstack(stacked_tree(), "layers")
  weights = jnp.arange(12.0)

  @jax.jit
  def loss(tree):
    return jnp.sum(masks.restack(tree, "layers")["layers"]["dense"]["kernel"].sum((1, 2)) * weights)

  layers = jax.tree.map(jnp.asarray, layers)
  gradient = jax.grad(loss)(layers)
  for i in (0, 3, 11):
    np.testing.assert_array_equal(gradient["layers"][str(i)]["dense"]["kernel"], np.full((4, 4), i))
  there_and_back = jax.jit(lambda t: masks.restack(masks.unstack(t, "layers"), "layers"))
  tree = jax.tree.map(jnp.asarray, stacked_tree())
  assert_same(there_and_back(tree), tree)


def test_unstack_refuses():
  tree = {"layers": {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 2))}, "scalar": jnp.float32(1)}
  with pytest.raises(ValueError, match=r"different sizes .* layers/a: 3, layers/b: 4"):
    masks.unstack(tree, "layers")
  with pytest.raises(ValueError, match=r"scalar.* of shape \(\) has no axis 0"):
    masks.unstack(tree, "scalar")
  with pytest.raises(ValueError, match="nearest names are layers"):
    masks.unstack(tree, "layer")
  with pytest.raises(ValueError, match="'layers' is not a dict of layers '0', '1'"):
    masks.restack(tree, "layers")
  unstacked = masks.unstack({"layers": {"a": jnp.ones((3, 2))}}, "layers")
  trained, _ = masks.partition(unstacked, masks.label(unstacked, {masks.TUNED: "layers/1"}))
  with pytest.raises(ValueError, match=r"layers/1 does not fit layers/0 .*: a. Combine"):
    masks.restack(trained, "layers")


def test_scan_layers_equals_a_loop():
  kernel = stacked_tree()["layers"]["dense"]["kernel"]
  layers = masks.unstack({"layers": {"kernel": kernel}}, "layers")["layers"]
  labels = masks.label(layers, {masks.TUNED: ["4", "10", "11"]})
  trained, frozen = masks.partition(layers, labels)
  x = jax.random.normal(jax.random.key(2), (5, 4))

  def body(x, layer):
    return jnp.tanh(x @ layer["kernel"])

  def by_scan(trained, x):
    return masks.scan_layers(body, x, masks.combine(trained, frozen), labels).sum()

  def by_loop(trained, x):
    everything = masks.combine(trained, frozen)
    for i in range(12):
      x = body(x, everything[str(i)])
    return x.sum()

  value, gradient = jax.value_and_grad(by_scan)(trained, x)
  expected_value, expected = jax.value_and_grad(by_loop)(trained, x)
  np.testing.assert_allclose(value, expected_value, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected)


def test_module_example():
  def model(params, x):
    return x @ params["stem"]["kernel"] @ params["block1"]["kernel"] @ params["head"]["kernel"]

  names = {"jax": jax, "jnp": jnp, "optax": optax, "masks": masks, "model": model,
           "x": jnp.ones((4, 3))}  # fmt: skip
  result = doctest.testmod(masks, globs=names)
  assert result.attempted >= 9
  assert result.failed == 0


def test_import_stands_alone():
  code = """if True:
    import sys
    from subtune_jax import masks
    roots = {name.split('.')[0] for name in sys.modules}
    print(sorted(roots & {'tensorflow', 'clu', 'torch', 'matplotlib', 'ml_collections'}))
    ours = [name.split('.')[:2] for name in sys.modules if name.split('.')[0] == 'subtune_jax']
    print(sorted({'.'.join(name) for name in ours}))
  """
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]\n['subtune_jax', 'subtune_jax.masks']"
