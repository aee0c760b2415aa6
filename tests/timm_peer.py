"""Imports timm also where torchvision, which its networks do not need, is missing.

A torchvision for CUDA does not work beside a torch for CPU, so that none is installed there. What
timm takes of it at import is then a stand-in that is gone after it.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

import pytest


class _StandIn(types.ModuleType):
  __path__ = ()

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return type(name, (), {"BILINEAR": "bilinear", "BICUBIC": "bicubic", "NEAREST": "nearest",
                           "BOX": "box", "HAMMING": "hamming", "LANCZOS": "lanczos"})  # fmt: skip


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] == "torchvision":
      return importlib.machinery.ModuleSpec(name, self, is_package=True)
    return None

  def create_module(self, spec):
    return _StandIn(spec.name)

  def exec_module(self, module):
    pass


def load():
  """The module timm; skips where it or torch is not installed."""
  pytest.importorskip("torch")
  if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed")
  if importlib.util.find_spec("torchvision") is not None:
    return importlib.import_module("timm")
  finder = _Finder()
  sys.meta_path.append(finder)
  try:
    return importlib.import_module("timm")
  finally:
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
      del sys.modules[name]
