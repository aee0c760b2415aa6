"""Distribution shifts: the benchmarks (`SHIFTS`) and `ENTRIES` of their data sets."""

from subtune_jax.data.shifts import folders, maps, tfds_sets
from subtune_jax.data.shifts.benchmarks import OCCURRING, SHIFTS, Shift
from subtune_jax.data.shifts.maps import mask_of_file
from subtune_jax.data.shifts.tfds_sets import SOURCES

# Registry name -> loader `(split, image_size, *, interpolation) -> Dataset`.
ENTRIES = tfds_sets.ENTRIES | folders.ENTRIES
# Registry name -> the splits it has; all four where it is not here.
SPLITS = {name: tuple(entry.all_splits()) for name, entry in tfds_sets.SETS.items()}
# What a message shows for the many names that begin so.
PATTERNS = {
  prefix: f"{prefix}/<corruption>/<severity>"
  for prefix in ("cifar10_c", "cifar10_c_1k", "imagenet_c")
}

__all__ = [
  "ENTRIES",
  "OCCURRING",
  "PATTERNS",
  "SHIFTS",
  "SOURCES",
  "SPLITS",
  "Shift",
  "folders",
  "maps",
  "mask_of_file",
  "tfds_sets",
]
