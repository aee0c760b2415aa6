"""Wheels of a few lines for tests of the notebooks' first cell: jax, its plugin, the library.

`jax` computes on a GPU where a plugin of its own version lies beside it, as the real one does.
"""

import base64
import hashlib
import zipfile

JAX = """
import importlib.metadata, os
def default_backend():
  own = importlib.metadata.version("jax")
  for plugin in ("jax_cuda13_plugin", "jax_cuda12_plugin"):
    try:
      if importlib.metadata.version(plugin) == own and "BROKEN_DRIVER" not in os.environ:
        return "gpu"
    except importlib.metadata.PackageNotFoundError:
      pass
  return "cpu"
def devices():
  return [default_backend()]
"""
NEWEST = "0.10.2"


def wheel(folder, name, version, code="", requires=(), extras=()):
  """Writes a wheel of one module."""
  module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
  lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
  lines += [f"Provides-Extra: {extra}" for extra in extras]
  lines += [f"Requires-Dist: {own}" for own in requires]
  files = {
    f"{module}.py": code, f"{info}/METADATA": "\n".join(lines) + "\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
                     "Tag: py3-none-any\n",
  }  # fmt: skip
  record = []
  for path, text in files.items():
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    record.append(f"{path},sha256={digest},{len(text.encode())}")
  record.append(f"{info}/RECORD,,")
  path = folder / f"{module}-{version}-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as archive:
    for name_, text in {**files, f"{info}/RECORD": "\n".join(record) + "\n"}.items():
      archive.writestr(name_, text)


def index(folder, needs=">=0.10"):
  """An index of two versions of jax and their plugins, and of the library with its extras."""
  folder.mkdir()
  for version in ("0.9.0", "0.10.1", NEWEST):
    wheel(folder, "jaxlib", version)
    plugins = [f'jax-{kind}-plugin=={version}; extra == "{kind}"' for kind in ("cuda12", "cuda13")]
    wheel(
      folder, "jax", version, JAX, [f"jaxlib=={version}", *plugins], ("cuda12", "cuda13")
    )  # fmt: skip
    for kind in ("cuda12", "cuda13"):
      wheel(folder, f"jax-{kind}-plugin", version)
  extras = [f'jax[cuda13]{needs}; extra == "cuda"', f'jax[cuda12]{needs}; extra == "cuda12"']
  wheel(folder, "subtune-jax", "0.1.0", "", [f"jax{needs}", *extras], ("cuda", "cuda12"))
  wheel(folder, "tensorflow", "2.20.0", "VARIANT = 'of the runtime'")
