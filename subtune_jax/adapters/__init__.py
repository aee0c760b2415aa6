"""Adapters on any Flax model: they only add leaves, and labels say which leaves train.

This folder imports jax, flax, optax and `masks`, and nothing else of the project. Leaves of
adapters are a tree of their own beside the frozen parameters, keyed by the path of their module:

>>> rules = adapters.LoRA("attention/qkv", rank=4, alpha=8)
>>> adapted, tree = adapters.add(model, variables, rules, jax.random.key(0), images)
>>> logits = adapted.apply(variables, tree, images)          # those of the model, bit for bit
>>> joint = {"base": variables["params"], "adapters": tree}
>>> labels = adapted.labels(variables["params"], tree, {"head": "/head"})
>>> trained, frozen = masks.partition(joint, labels)         # and on as with any labels
>>> params = adapted.merge(variables["params"], tree)        # for the model as it was

Where an adapter goes is a selector of modules, of the kinds that `masks` knows; one that matches
nothing is an error with the nearest names. docs/adapters.md has the family with its sources.
"""

from subtune_jax.adapters.adapted import (
  ADAPTER,
  Adapted,
  Tree,
  add,
  combine,
  stack,
  with_leaves,
)
from subtune_jax.adapters.bottleneck import AdaptFormer, Convpass, Houlsby
from subtune_jax.adapters.dora import DoRA
from subtune_jax.adapters.layer import Geometry, Kind, NormKind, register
from subtune_jax.adapters.linen import SCOPE, join, split
from subtune_jax.adapters.lora import CONSTANTS, LoRA
from subtune_jax.adapters.rep_adapter import RepAdapter
from subtune_jax.adapters.rule import Rule, Target
from subtune_jax.adapters.sites import Site
from subtune_jax.adapters.ssf import SSF
from subtune_jax.adapters.vpt import VPT

__all__ = [
  "ADAPTER",
  "CONSTANTS",
  "SCOPE",
  "SSF",
  "VPT",
  "AdaptFormer",
  "Adapted",
  "Convpass",
  "DoRA",
  "Geometry",
  "Houlsby",
  "Kind",
  "LoRA",
  "NormKind",
  "RepAdapter",
  "Rule",
  "Site",
  "Target",
  "Tree",
  "add",
  "combine",
  "join",
  "register",
  "split",
  "stack",
  "with_leaves",
]
