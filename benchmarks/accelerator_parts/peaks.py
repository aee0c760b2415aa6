"""Peak floating-point operations per second of accelerators, dense, by `jax.Device.device_kind`.

Sources: NVIDIA's data sheets of the H100, H200, A100, L4 and T4 (figures with sparsity halved);
Google Cloud's pages "TPU v4", "v5e", "v5p" and "v6e". "float32" is what jax does by default with
float32 products: TF32 on NVIDIA from Ampere on, one pass of bfloat16 on a TPU.
"""

_TERA = 1e12
# The first entry whose name begins the device's counts. (bfloat16, float32); None: it has none.
_PEAKS = (
  ("NVIDIA H100 PCIe", 756, 378),
  ("NVIDIA H100 NVL", 835, 417.5),
  ("NVIDIA H100", 989.4, 494.7),
  ("NVIDIA H200 NVL", 835, 417.5),
  ("NVIDIA H200", 989.4, 494.7),
  ("NVIDIA A100", 312, 156),
  ("NVIDIA L40", None, None),  # not the L4
  ("NVIDIA L4", 121, 60),
  ("Tesla T4", None, 8.1),
  ("NVIDIA T4", None, 8.1),
  ("TPU v4 lite", None, None),  # v4i
  ("TPU v4", 275, 275),
  ("TPU v5 lite", 197, 197),
  ("TPU v5e", 197, 197),
  ("TPU v5", 459, 459),
  ("TPU v6 lite", 918, 918),
  ("TPU v6e", 918, 918),
)


def peak(device_kind: str, dtype: str) -> float | None:
  """FLOP/s of a device in "bfloat16" or "float32"; None where it is not known."""
  for name, bfloat16, float32 in _PEAKS:
    if device_kind.startswith(name):
      found = {"bfloat16": bfloat16, "float32": float32}[dtype]
      return found and found * _TERA
  return None
