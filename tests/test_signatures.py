"""Public signatures are typed, and functions short."""

import ast
import pathlib

import pytest

import subtune_jax

PACKAGE = pathlib.Path(subtune_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONG = {"studies/compare/config.py:default"}  # a list of fields with their comments
LINES = 60


def functions(body):
  for node in body:
    if isinstance(node, ast.ClassDef):
      yield from functions(node.body)
    elif isinstance(node, ast.FunctionDef):
      yield node


def missing(function):
  arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
  untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
  returns = function.returns is not None or function.name.startswith("__")
  return untyped + ([] if returns else ["its return"])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_signatures_are_typed_and_no_function_is_long(path):
  found = list(functions(ast.parse(path.read_text()).body))
  public = {f.name: missing(f) for f in found if not f.name.startswith("_")}
  assert {name: gaps for name, gaps in public.items() if gaps} == {}
  for function in found:
    doc = ast.get_docstring(function, clean=False)
    lines = function.end_lineno - function.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
    name = f"{path.relative_to(PACKAGE)}:{function.name}"
    assert lines <= LINES or name in LONG, f"{name} has {lines} lines without its docstring"
