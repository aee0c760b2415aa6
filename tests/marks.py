"""Which cases of a test run by default."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(number: int, cases: Iterable[Any], *, several: bool = False) -> list[Any]:
  """Cases of which those behind the first `number` are slow; `several` arguments are tuples."""
  cases = list(cases)
  rest = (pytest.param(*(case if several else (case,)), marks=pytest.mark.slow)
          for case in cases[number:])  # fmt: skip
  return [*cases[:number], *rest]
