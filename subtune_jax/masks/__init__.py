"""Choose which leaves of a parameter tree are trained, and keep the others out of the training.

A training method is a tree of labels: it has the structure of the parameters, and a string at each
leaf (`head`, `tuned`, `frozen`, or any other). Trees may be Linen params, an `nnx.State`, or any
nest of dicts, lists, tuples and dataclasses that jax knows. This folder imports nothing else of the
project, so that other Flax code can use it:

>>> params = {"stem": {"kernel": jnp.ones((3, 8))}, "block1": {"kernel": jnp.ones((8, 8))},
...           "head": {"kernel": jnp.ones((8, 2)), "bias": jnp.zeros(2)}}
>>> labels = masks.label(params, {masks.HEAD: "head", masks.TUNED: ["block1"]})
>>> trained, frozen = masks.partition(params, labels)
>>> loss = lambda trained, x: model(masks.combine(trained, frozen), x).mean()
>>> tx = masks.multi_transform({"head": optax.adamw(1e-2), "tuned": optax.adamw(1e-3)}, labels)
>>> updates, opt_state = tx.update(jax.grad(loss)(trained, x), tx.init(trained), trained)
>>> params = masks.combine(optax.apply_updates(trained, updates), frozen)
>>> masks.count_params(params, labels)
{'head': 18, 'tuned': 64, 'frozen': 24}
>>> print(masks.summary(params, labels))
label   parameters    share  what
head            18   17.0 %  head
tuned           64   60.4 %  block1
frozen          24   22.6 %  stem
82 of 106 parameters are trained (77.4 %)

A selector is one of

* a pattern of whole path components: "block1" selects `encoder/block1/conv/kernel` and not
  `block10`; "block*/kernel" uses shell wildcards inside a component; "/head" starts at the root;
* a predicate of the path, one string, and the leaf: `lambda path, leaf: leaf.ndim == 1`;
* a sequence of selectors, for their union.

A selector that matches nothing is an error that names the nearest names.
"""

from subtune_jax.masks.layers import restack, scan_layers, unstack
from subtune_jax.masks.parts import (
  combine,
  count_params,
  labels_by_path,
  multi_transform,
  partition,
  summary,
)
from subtune_jax.masks.selection import Selector, label, select
from subtune_jax.masks.tree import (
  FROZEN,
  HEAD,
  TUNED,
  OriginalNone,
  Tree,
  join_path,
  natural_key,
  paths,
)
from subtune_jax.masks.verification import Report, verify

__all__ = [
  "FROZEN",
  "HEAD",
  "TUNED",
  "OriginalNone",
  "Report",
  "Selector",
  "Tree",
  "combine",
  "count_params",
  "join_path",
  "label",
  "labels_by_path",
  "multi_transform",
  "natural_key",
  "partition",
  "paths",
  "restack",
  "scan_layers",
  "select",
  "summary",
  "unstack",
  "verify",
]
