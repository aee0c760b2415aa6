"""Serves trained networks over HTTP: one program answers for all tasks of a backbone.

  python -m subtune_jax.serve runs/quickstart/best
  python -m subtune_jax.serve emoji=runs/emoji/best runs/serif/best --port=8000

The arguments are model folders, which every run leaves as WORKDIR/best, as NAME=FOLDER or FOLDER.
Then: http://127.0.0.1:8000/ is a page that takes a picture, POST /predict answers programs, /tasks,
/healthz and /metrics say what is there (docs/serve.md). Needs the extra: pip install
'subtune-jax[serve]'. Exit code 0, or 2 and one line where the input is wrong.
"""

import argparse
from collections.abc import Sequence
import pathlib

from subtune_jax import console, multitask
from subtune_jax.models import compile_cache


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.serve", __doc__)
  parser.add_argument("folders", nargs="+", metavar="folder", help="a model folder, or NAME=FOLDER")
  parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this "
                      "machine alone; there is no encryption and no password)")  # fmt: skip
  parser.add_argument("--port", type=int, default=8000, help="(8000)")
  parser.add_argument("--batch", type=int, default=8, help="pictures that run together (8)")
  parser.add_argument("--delay_ms", type=float, default=5.0, help="how long a picture waits for "
                      "others to run with (5)")  # fmt: skip
  parser.add_argument("--queue", type=int, default=256, help="pictures that may wait (256)")
  parser.add_argument("--max_mb", type=float, default=10.0, help="of a request (10)")
  parser.add_argument("--upload_seconds", type=float, default=30.0, help="until a request has to "
                      "be there (30)")  # fmt: skip
  parser.add_argument("--calibrate", action="store_true", help="by what the folders keep")
  parser.add_argument("--admin_token_file", type=pathlib.Path, help="a file with a secret: who "
                      "sends it may add and remove tasks")  # fmt: skip
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Serves until it is stopped."""
  given = _parser().parse_args(argv)
  with console.reported():
    _run(given)


def _run(given: argparse.Namespace) -> None:
  try:
    import uvicorn

    from subtune_jax.serving import app as app_lib
    from subtune_jax.serving import batcher
  except ImportError as e:
    raise ImportError(
      f"a server needs uvicorn, starlette, python-multipart and prometheus-client ({e}); install "
      "them: pip install 'subtune-jax[serve]'"
    ) from e
  compile_cache.enable()
  limits = batcher.Limits(given.batch, given.delay_ms / 1e3, given.queue)
  for name in ("max_mb", "upload_seconds"):
    if not getattr(given, name) > 0:
      raise ValueError(f"{name} is {getattr(given, name)}; it must be above 0")
  options = app_lib.Options(
    int(1e6 * given.max_mb), given.upload_seconds, calibrate=given.calibrate,
    admin_token=_token(given.admin_token_file),
  )  # fmt: skip
  network = multitask.MultiTask(multitask.named(given.folders))
  application = app_lib.make(network, limits, options)
  config = uvicorn.Config(
    application, given.host, given.port, log_level="warning", limit_concurrency=2048,
    timeout_keep_alive=5, timeout_graceful_shutdown=10,
  )  # fmt: skip
  print(f"{', '.join(network.tasks)}: http://{given.host}:{given.port}/", flush=True)
  try:
    uvicorn.Server(config).run()
  except SystemExit as e:  # uvicorn has said why, such as a port that is taken
    if e.code:
      console.fail(f"no server at {given.host}:{given.port}; see above")


def _token(path: pathlib.Path | None) -> str:
  if path is None:
    return ""
  token = path.read_text("utf-8").strip()
  if len(token) < 16:
    raise ValueError(f"the secret in {path} has {len(token)} characters; give at least 16")
  return token


if __name__ == "__main__":
  main()
