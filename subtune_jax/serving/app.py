"""The HTTP application: /predict, /tasks, /healthz, /metrics and a page to try it by hand."""

import asyncio
from collections.abc import Mapping
import dataclasses
import functools
import hmac
import importlib.resources
import time
from typing import Any

import numpy as np
from starlette import applications, concurrency, responses, routing
from starlette.exceptions import HTTPException
from starlette.requests import Request

from subtune_jax.data import decode, errors
from subtune_jax.deploy import classifier as classifier_lib
from subtune_jax.multitask import network as network_lib
from subtune_jax.serving import batcher as batcher_lib
from subtune_jax.serving import metrics as metrics_lib
from subtune_jax.serving import reading

Reply = dict[str, Any]
_PAGE_HEADERS = {
  "Content-Security-Policy": "default-src 'none'; img-src blob:; style-src 'unsafe-inline'; "
  "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
  """What a server takes and says.

  Attributes:
    most_bytes: of a request's body.
    upload_seconds: until it has to be there.
    uploads: requests that are read and decoded at a time; others wait unread.
    calibrate: answers are calibrated by what the folders keep.
    admin_token: whoever sends it may add and remove tasks; "" lets nobody.
  """

  most_bytes: int = 10_000_000
  upload_seconds: float = 30.0
  uploads: int = 32
  calibrate: bool = False
  admin_token: str = ""


DEFAULT = Options()


def make(
  network: network_lib.MultiTask,
  limits: batcher_lib.Limits = batcher_lib.DEFAULT,
  options: Options = DEFAULT,
) -> applications.Starlette:
  """The application of some tasks; everything that it runs is compiled before it returns.

  Raises:
    ValueError: `options.calibrate`, and a task that keeps nothing to calibrate by.
  """
  return _Server(_calibrated(network, options), limits, options).application()


class _Server:
  def __init__(self, network, limits, options):
    self.options, self.metrics = options, metrics_lib.Metrics()
    self.batcher = batcher_lib.Batcher(network, limits, self.metrics.batches.observe)
    self.metrics.waiting.set_function(lambda: self.batcher.waiting)
    self._uploads = asyncio.Semaphore(options.uploads)
    self._changing = asyncio.Lock()

  def application(self) -> applications.Starlette:
    routes = [
      routing.Route("/", self.page),
      routing.Route("/predict", self.predict, methods=["POST"]),
      routing.Route("/tasks", self.tasks),
      routing.Route("/healthz", self.health),
      routing.Route("/metrics", self.counted),
    ]
    if self.options.admin_token:
      routes.append(routing.Route("/tasks/{name}", self.change, methods=["PUT", "DELETE"]))
    handlers = {reading.Refused: _refused, HTTPException: _http_error}
    return applications.Starlette(routes=routes, exception_handlers=handlers)

  async def page(self, request: Request) -> responses.Response:
    del request
    text = importlib.resources.files("subtune_jax.serving").joinpath("page.html").read_text("utf-8")
    return responses.HTMLResponse(text, headers=_PAGE_HEADERS)

  async def health(self, request: Request) -> responses.Response:
    del request
    return responses.JSONResponse({"status": "ok", "tasks": list(self.batcher.network.tasks)})

  async def counted(self, request: Request) -> responses.Response:
    del request
    return responses.Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

  async def tasks(self, request: Request) -> responses.Response:
    del request
    network = self.batcher.network
    found = {name: list(task.network.class_names) for name, task in network.tasks.items()}
    return responses.JSONResponse({"image_size": network.image_size, "class_names": found})

  async def predict(self, request: Request) -> responses.Response:
    begin, code = time.perf_counter(), 500
    try:
      answers = await self._answers(request)
      code = 422 if all("error" in answer for answer in answers) else 200
      return responses.JSONResponse({"answers": answers}, code)
    except reading.Refused as e:
      code = e.code
      raise
    finally:
      self.metrics.requests.labels(str(code)).inc()
      self.metrics.seconds.observe(time.perf_counter() - begin)

  async def _answers(self, request: Request) -> list[Reply]:
    async with self._uploads:
      asked = await reading.read(request, self.options.most_bytes, self.options.upload_seconds)
      network = self.batcher.network
      _check_tasks(network, asked.tasks)
      first = next(iter(network.tasks.values())).network
      decoded = await asyncio.gather(
        *(concurrency.run_in_threadpool(_decoded, first, data) for data in asked.pictures)
      )
    return await self._run(decoded, asked.tasks)

  async def _run(self, decoded: list[Any], tasks: list[str] | None) -> list[Reply]:
    try:
      waiting = [
        image if isinstance(image, str) else asyncio.wrap_future(self.batcher.submit(image))
        for image in decoded
      ]
      found = [own if isinstance(own, str) else await own for own in waiting]
    except batcher_lib.Full as e:
      raise reading.Refused(503, f"too busy: {e}; try again in a second") from None
    except batcher_lib.Late as e:
      raise reading.Refused(504, f"too busy: {e}") from None
    say = functools.partial(_said, tasks=tasks, calibrate=self.options.calibrate)
    return [{"error": own} if isinstance(own, str) else say(own) for own in found]

  async def change(self, request: Request) -> responses.Response:
    """Adds or removes a task while the others go on."""
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(sent.encode(), self.options.admin_token.encode()):
      raise reading.Refused(401, "the token is missing or wrong")
    name = request.path_params["name"]
    async with self._changing:
      network = self.batcher.network
      if request.method == "DELETE":
        make = functools.partial(network.removed, name)
      else:
        given = await reading.json_object(request, 100_000, self.options.upload_seconds)
        make = functools.partial(network.added, name, str(given.get("folder", "")))
      try:
        await concurrency.run_in_threadpool(self._changed, make)
      except (ValueError, OSError) as e:
        raise reading.Refused(400, " ".join(str(e).split())) from None
    return await self.tasks(request)

  def _changed(self, make: Any) -> None:
    self.batcher.swap(_calibrated(make(), self.options))


def _calibrated(network: network_lib.MultiTask, options: Options) -> network_lib.MultiTask:
  """The network, where its answers can be calibrated if they are to be. Raises ValueError else."""
  if options.calibrate:
    for task in network.tasks.values():
      task.network.check_calibration()
  return network


def _check_tasks(network: network_lib.MultiTask, tasks: list[str] | None) -> None:
  for name in tasks or ():
    if name not in network.tasks:
      raise reading.Refused(404, f"no task {name!r}; there are {', '.join(network.tasks)}")


def _decoded(first: classifier_lib.Classifier, data: bytes) -> np.ndarray | str:
  """The image as the network reads it, or why there is none."""
  try:
    return decode.square_of(data, first.image_size, first.interpolation)
  except errors.BrokenImageError as e:
    return str(e.__cause__ or e)


def _said(found: batcher_lib.Logits, tasks: list[str] | None, calibrate: bool) -> Reply:
  """Task -> label and the probability of each class, the most probable first."""
  _check_tasks(found.network, tasks)  # one may have been removed while the picture waited
  answers = {}
  for name in tasks or found.by_task:
    own = found.network.tasks[name].network
    answer = own.answer(found.by_task[name][None], calibrate=calibrate)
    order = np.argsort(-answer.probabilities[0], kind="stable")
    answers[name] = {
      "label": str(answer.labels[0]),
      "probabilities": {own.class_names[i]: float(answer.probabilities[0, i]) for i in order},
    }
  return answers


async def _refused(request: Request, error: Exception) -> responses.Response:
  del request
  assert isinstance(error, reading.Refused)
  headers: Mapping[str, str] = {"Retry-After": "1"} if error.code == 503 else {}
  if error.code in (408, 413):  # the rest of the body is not read
    headers = {"Connection": "close"}
  return responses.JSONResponse({"error": error.why}, error.code, headers)


async def _http_error(request: Request, error: Exception) -> responses.Response:
  assert isinstance(error, HTTPException)
  why = f"{request.method} {request.url.path}: {error.detail}"
  return responses.JSONResponse({"error": why}, error.status_code, error.headers)
