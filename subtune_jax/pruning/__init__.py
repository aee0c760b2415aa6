"""Structured pruning: a network with fewer channels, not one with zeros.

>>> kept = pruning.choose(model, variables, ("block3/unit2",), share=0.5)
>>> small, variables = pruning.shrink(model, variables, kept)
"""

from subtune_jax.pruning.channels import MOST, NORMS, SCOPES, choose, mask, shrink

__all__ = ["MOST", "NORMS", "SCOPES", "choose", "mask", "shrink"]
