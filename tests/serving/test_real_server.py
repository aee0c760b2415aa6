"""A server process: a thousand requests at a time, slow clients, killed and started again."""

import asyncio
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("uvicorn", reason="pip install 'subtune-jax[serve]'")
httpx = pytest.importorskip("httpx", reason="the client of this test")
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


async def ask_many(port, count, data):
  limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
  async with httpx.AsyncClient(limits=limits, timeout=120) as client:
    url = f"http://127.0.0.1:{port}/predict"
    asked = (client.post(url, files={"image": ("x.png", data)}) for _ in range(count))
    return await asyncio.gather(*asked)


@pytest.mark.slow
def test_a_server_under_load_and_killed(tmp_path):
  base = made.backbone(made.RESNET)
  folder, port = made.write(tmp_path / "a", made.RESNET, base, (), 1), free_port()
  process = start(folder, port, "--upload_seconds=20")
  try:
    data = small.png(size=(350, 350))  # 0.37 MB: a thousand of them do not fit the bound below
    before = resident(process)
    replies = asyncio.run(ask_many(port, 1000, data))
    codes = {code: sum(r.status_code == code for r in replies) for code in (200, 503)}
    assert sum(codes.values()) == 1000, {r.status_code for r in replies}
    assert codes[200] >= 256
    first = next(r.json() for r in replies if r.status_code == 200)
    for reply in replies:
      if reply.status_code == 200:
        own = reply.json()["answers"][0]["a"]["probabilities"]
        assert own == pytest.approx(first["answers"][0]["a"]["probabilities"], abs=1e-5)
      else:
        assert reply.headers["retry-after"] == "1"
        assert "too busy" in reply.json()["error"]
    assert resident(process) - before < 250e6
    slow = socket.create_connection(("127.0.0.1", port))
    slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
                 b"Content-Length: 1000\r\n\r\nx")  # fmt: skip
    slow.settimeout(30)
    assert b" 408 " in slow.recv(1000)
    process.kill()
    process.wait()
    process = start(folder, port)
    (again,) = asyncio.run(ask_many(port, 1, data))
    assert again.json()["answers"][0]["a"]["label"] == first["answers"][0]["a"]["label"]
    other = subprocess.run(
      [sys.executable, "-m", "subtune_jax.serve", f"a={folder}", f"--port={port}"],
      capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1].startswith("error: no server at 127.0.0.1")
  finally:
    process.kill()
    process.wait()
