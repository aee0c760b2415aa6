"""A server process: a thousand requests at a time, bad clients, killed and started again."""

import asyncio
import contextlib
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("uvicorn", reason="pip install 'subtune-jax[serve]'")
httpx = pytest.importorskip("httpx", reason="the client of this test")
from subtune_jax.deploy import folder as folder_lib  # noqa: E402
from tests.multitask import made  # noqa: E402
from tests.serving import test_serving as small  # noqa: E402


def free_port():
  with socket.socket() as own:
    own.bind(("127.0.0.1", 0))
    return own.getsockname()[1]


def start(folder, port, *options):
  process = subprocess.Popen(
    [sys.executable, "-m", "subtune_jax.serve", f"a={folder}", f"--port={port}", *options],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert process.stdout.readline().startswith("a: http://")
  until = time.monotonic() + 20
  while time.monotonic() < until:
    try:
      assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
      return process
    except httpx.ConnectError:
      time.sleep(0.05)
  raise AssertionError("the server does not listen")


def resident(process):
  text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024


async def ask_many(port, count, data, on_reply=None):
  """Replies, and what was raised in place of one."""
  limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)

  async def ask(client):
    reply = await client.post(f"http://127.0.0.1:{port}/predict", files={"image": ("x.png", data)})
    if on_reply:
      on_reply()
    return reply

  async with httpx.AsyncClient(limits=limits, timeout=120) as client:
    return await asyncio.gather(*(ask(client) for _ in range(count)), return_exceptions=True)


@pytest.fixture(scope="module")
def data():
  return small.png(size=(350, 350))  # 0.37 MB: a thousand of them do not fit the bound below


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("server")
  return made.write(root / "a", made.RESNET, made.backbone(made.RESNET), (), 1)


@pytest.fixture(scope="module")
def wanted(folder, data, tmp_path_factory):
  """What the offline predict says: class -> probability."""
  path = tmp_path_factory.mktemp("picture") / "x.png"
  path.write_bytes(data)
  own = folder_lib.load(folder)
  (row,) = own.predict([path]).probabilities
  return dict(zip(own.class_names, map(float, row), strict=True))


def check_answer(reply, wanted):
  assert reply.status_code == 200
  assert reply.json()["answers"][0]["a"]["probabilities"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_a_thousand_requests_at_once(folder, data, wanted):
  port = free_port()
  process = start(folder, port)
  try:
    before = resident(process)
    replies = asyncio.run(ask_many(port, 1000, data))
    codes = [reply.status_code for reply in replies]
    assert set(codes) <= {200, 503}
    assert codes.count(200) >= 256
    for reply in replies:
      if reply.status_code == 200:
        check_answer(reply, wanted)
      else:
        assert reply.headers["retry-after"] == "1"
        assert "too busy" in reply.json()["error"]
    grown = resident(process) - before
    print(f"{codes.count(200)} answers, the process grew by {grown / 1e6:.0f} MB")
    assert grown < 250e6
  finally:
    process.kill()
    process.wait()


@pytest.mark.slow
def test_killed_under_load_and_started_again(folder, data, wanted):
  port = free_port()
  process = start(folder, port)
  try:
    replies = asyncio.run(ask_many(port, 200, data, on_reply=process.kill))
    answered = [own for own in replies if not isinstance(own, BaseException)]
    cut = [own for own in replies if isinstance(own, BaseException)]
    assert answered
    assert cut
    assert all(isinstance(own, httpx.TransportError) for own in cut), cut
    process.wait()
    process = start(folder, port)
    replies = [*answered, *asyncio.run(ask_many(port, 20, data))]
    for reply in replies:
      check_answer(reply, wanted)
    other = subprocess.run(
      [sys.executable, "-m", "subtune_jax.serve", f"a={folder}", f"--port={port}"],
      capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1].startswith("error: no server at 127.0.0.1")
  finally:
    process.kill()
    process.wait()


def slow_upload(port):
  own = socket.create_connection(("127.0.0.1", port))
  own.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
              b"Content-Length: 1000\r\n\r\nx")  # fmt: skip
  own.settimeout(30)
  return own


@pytest.mark.slow
def test_broken_huge_and_slow_uploads_are_refused_and_others_answered(folder, data, wanted):
  port = free_port()
  process = start(folder, port, "--upload_seconds=2", "--max_mb=1")
  try:
    before = resident(process)
    url, kind = f"http://127.0.0.1:{port}/predict", {"content-type": "image/png"}
    slow = [slow_upload(port) for _ in range(40)]  # more than are read at a time
    (meanwhile,) = asyncio.run(ask_many(port, 1, data))
    check_answer(meanwhile, wanted)
    assert all(b" 408 " in own.recv(1000) for own in slow)
    for broken in (b"", b"no picture", data[: len(data) // 2]):
      assert httpx.post(url, content=broken, headers=kind).status_code == 422
    huge = b"x" * 200_000_000
    with contextlib.suppress(httpx.TransportError):  # it hangs up on who goes on sending
      assert httpx.post(url, content=huge, headers=kind).status_code == 413
    chunks = (huge[:100_000] for _ in range(2000))  # says nothing of its length
    with contextlib.suppress(httpx.TransportError):
      assert httpx.post(url, content=chunks, headers=kind).status_code == 413
    (after,) = asyncio.run(ask_many(port, 1, data))
    check_answer(after, wanted)
    counted = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    codes = dict(re.findall(r'subtune_requests_total\{code="(\d+)"\} (\d+)', counted))
    assert codes == {"200": "2", "408": "40", "413": "2", "422": "3"}
    assert resident(process) - before < 100e6
  finally:
    process.kill()
    process.wait()
