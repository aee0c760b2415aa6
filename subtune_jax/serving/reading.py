"""A request's pictures and wishes, within limits of size and time; or why it is refused."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
import contextlib
import dataclasses
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

_MOST_IMAGES = 16  # of a request


class Refused(Exception):
  """A request that is not answered.

  Attributes:
    code: of HTTP.
    why: for whoever asked.
  """

  def __init__(self, code: int, why: str):
    super().__init__(why)
    self.code, self.why = code, why


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a request asks for.

  Attributes:
    pictures: the bytes of each.
    tasks: names; None is all.
  """

  pictures: list[bytes]
  tasks: list[str] | None


async def read(request: Request, most: int, seconds: float) -> Asked:
  """Reads a request.

  Args:
    request: JSON with "image" or "images" in base64 and perhaps "tasks"; multipart with files
      called image and perhaps fields called tasks; or the bytes of one picture. `?tasks=a,b` holds
      for all of them.
    most: bytes of its body.
    seconds: until it has to be there.

  Raises:
    Refused: 400, 408, 413 or 415.
  """
  length = request.headers.get("content-length", "")
  if length.isdigit() and int(length) > most:
    raise Refused(413, f"the body has {int(length):,} bytes; at most {most:,} are read")
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  bounded = Request(request.scope, _bounded(request.receive, most))
  async with _within(seconds):
    if kind == "application/json":
      asked = _of_json(await bounded.body())
    elif kind == "multipart/form-data":
      asked = await _of_form(bounded)
    elif kind.startswith("image/") or kind == "application/octet-stream":
      asked = Asked([await bounded.body()], None)
    else:
      raise Refused(
        415, f"content type {kind!r}; send multipart/form-data, application/json or image/*"
      )
  named = request.query_params.get("tasks")
  if named is not None:
    asked = dataclasses.replace(asked, tasks=[name for name in named.split(",") if name])
  if not asked.pictures:
    raise Refused(400, 'there is no picture; call it "image"')
  if len(asked.pictures) > _MOST_IMAGES:
    raise Refused(413, f"{len(asked.pictures)} pictures; at most {_MOST_IMAGES} in a request")
  return asked


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
  """Refuses a request that is not read in time, or ends early."""
  try:
    async with asyncio.timeout(seconds):
      yield
  except TimeoutError:
    raise Refused(408, f"the request was not there within {seconds:g} seconds") from None
  except ClientDisconnect:
    raise Refused(400, "the request ended early") from None


def _bounded(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], most: int) -> Any:
  """`receive` that refuses more bytes, whatever the headers said."""
  seen = 0

  async def bounded() -> MutableMapping[str, Any]:
    nonlocal seen
    message = await receive()
    seen += len(message.get("body", b""))
    if seen > most:
      raise Refused(413, f"the body has more than {most:,} bytes")
    return message

  return bounded


async def json_object(request: Request, most: int, seconds: float) -> dict[str, Any]:
  """The JSON object of a request. Raises Refused: 400, 408 or 413."""
  async with _within(seconds):
    return _object(await Request(request.scope, _bounded(request.receive, most)).body())


def _object(body: bytes) -> dict[str, Any]:
  try:
    given = json.loads(body)
  except (ValueError, RecursionError) as e:
    raise Refused(400, f"the body is no JSON: {e}") from None
  if not isinstance(given, dict):
    raise Refused(400, "the body is no JSON object")
  return given


def _of_json(body: bytes) -> Asked:
  given = _object(body)
  unknown = sorted(set(given) - {"image", "images", "tasks"})
  if unknown:
    raise Refused(400, f"unknown field {unknown[0]!r}; allowed: image, images, tasks")
  texts = given.get("images", [given["image"]] if "image" in given else [])
  tasks = given.get("tasks")
  for name, value in (("images", texts), ("tasks", tasks if tasks is not None else [])):
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
      raise Refused(400, f"{name} has to be a list of strings")
  try:
    pictures = [base64.b64decode(text, validate=True) for text in texts]
  except (binascii.Error, ValueError) as e:
    raise Refused(400, f"a picture is not base64: {e}") from None
  return Asked(pictures, tasks)


async def _of_form(request: Request) -> Asked:
  """Starlette answers a form that it cannot read with 400."""
  async with request.form(max_files=_MOST_IMAGES + 1, max_fields=16) as form:
    files = [value for name, value in form.multi_items() if name in ("image", "images")]
    if any(isinstance(file, str) for file in files):
      raise Refused(400, "image is a text; send it as a file")
    pictures = [await file.read() for file in files]  # type: ignore[union-attr]
    tasks = [str(value) for name, value in form.multi_items() if name == "tasks"]
  return Asked(pictures, tasks or None)
