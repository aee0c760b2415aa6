"""Weights of a repository of the Hugging Face hub: "hf_hub:timm/vit_base_patch16_224.augreg_in21k".

Nothing is downloaded for any other name. The files go to huggingface_hub's own cache, and are found
there again without a network.
"""

import os
import pathlib
import re
from typing import Any, NamedTuple

from subtune_jax.weights import errors

PREFIX = "hf_hub:"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
BESIDE = ("config.json", "preprocessor_config.json")  # what weights.stated and sidecar read
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_INSTALL = "pip install 'subtune-jax[hub]'"


class Found(NamedTuple):
  """Files of a repository, on this machine.

  Attributes:
    path: of the weights; the JSON files that the repository has lie beside them.
    revision: the commit that they are of.
  """

  path: pathlib.Path
  revision: str


def is_name(name: str) -> bool:
  """Returns whether weights are asked for from the hub."""
  return name.startswith(PREFIX)


def fetch(name: str) -> Found:
  """Finds a repository's weights in the cache, or downloads them.

  Args:
    name: "hf_hub:OWNER/NAME" or "hf_hub:OWNER/NAME@REVISION", a branch, tag or commit; a commit
      that is in the cache needs no network.

  Raises:
    WeightsError: not such a name; huggingface_hub is not installed; no such repository, revision or
      file of weights; or it cannot be reached: with the command to run.
  """
  repo, mark, revision = name.removeprefix(PREFIX).partition("@")
  if not _NAME.fullmatch(repo) or (mark and not revision):
    raise errors.WeightsError(
      f"{name!r} is no name of weights on the hub; give {PREFIX}OWNER/NAME or "
      f"{PREFIX}OWNER/NAME@REVISION"
    )
  try:
    import huggingface_hub
    import huggingface_hub.errors
  except ImportError as e:
    raise errors.WeightsError(f"{name!r} needs huggingface_hub; run: {_INSTALL}") from e
  path = None
  for file in WEIGHTS:
    path = path or _file(huggingface_hub, name, repo, file, revision or None)
  if path is None:
    raise errors.WeightsError(
      f"{name!r} has neither {' nor '.join(WEIGHTS)}: weights in another form, or in several "
      "files, are not read; convert them to one safetensors file and give its path"
    )
  commit = path.parent.name
  for file in BESIDE:
    _file(huggingface_hub, name, repo, file, commit)
  return Found(path, commit)


def _file(hub: Any, name: str, repo: str, file: str, revision: str | None) -> pathlib.Path | None:
  """A file of the repository, None where it has none of the name."""
  known = hub.errors
  try:
    got = hub.hf_hub_download(
      repo, file, revision=revision, endpoint=os.environ.get("HF_ENDPOINT") or None
    )
    return pathlib.Path(got)
  except known.LocalEntryNotFoundError as e:
    if _is_known_absent(hub, repo, file, revision):
      return None
    at = f" --revision {revision}" if revision else ""
    raise errors.WeightsError(
      f"{name!r}: {file} is not in the cache and the hub cannot be reached ({_first_line(e)}); "
      f"where there is a network, run: hf download {repo}{at} {' '.join((*WEIGHTS[:1], *BESIDE))}"
    ) from e
  except known.EntryNotFoundError:
    return None
  except known.RevisionNotFoundError as e:
    raise errors.WeightsError(
      f"{name!r}: {repo} has no revision {revision!r}; see the repository's branches, tags and "
      "commits"
    ) from e
  except known.RepositoryNotFoundError as e:
    raise errors.WeightsError(
      f"{name!r}: there is no such repository, or it asks for an account; check the name, or run: "
      "hf auth login"
    ) from e
  except Exception as e:  # the hub's library raises those of its HTTP client too
    raise errors.WeightsError(
      f"{name!r}: {file} could not be downloaded ({_first_line(e)}); nothing of it is kept as "
      "whole: run the same command again"
    ) from e


def _is_known_absent(hub: Any, repo: str, file: str, revision: str | None) -> bool:
  """Whether the cache knows that the repository has no such file: it was asked for before."""
  found = hub.try_to_load_from_cache(repo, file, revision=revision)
  return found is hub._CACHED_NO_EXIST


def _first_line(error: Exception) -> str:
  return str(error).strip().partition("\n")[0] or type(error).__name__
