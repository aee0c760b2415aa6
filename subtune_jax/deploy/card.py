"""The model card of a folder: README.md, in Markdown, made from its config.json."""

from collections.abc import Mapping
import importlib.resources
from typing import Any

import jinja2


def text(config: Mapping[str, Any]) -> str:
  """The card.

  Args:
    config: of a model folder; "trained" and "figures" may be absent.
  """
  source = importlib.resources.files("subtune_jax.deploy").joinpath("card.md.j2").read_text()
  template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(source)
  return template.render({"trained": None, "figures": None, **config}) + "\n"
