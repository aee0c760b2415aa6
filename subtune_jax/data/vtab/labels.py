"""Labels of VTAB's tasks, from one example of TensorFlow Datasets as NumPy values.

Zhai et al. (2019), "A Large-scale Study of Representation Learning with the Visual Task Adaptation
Benchmark", with the thresholds of its official code. Comparisons are in float32, as there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Example = Mapping[str, Any]

# A distance belongs to the last threshold that it exceeds: 8.0 is class 0, just above it class 1.
CLEVR_DEPTHS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_METRES = (-100.0, 8.0, 20.0, 999.0)
KITTI_NO_VEHICLE = 1000.0  # stands for the distance where no vehicle is in the image
KITTI_VEHICLES = 3  # types 0, 1, 2: car, van, truck
CLEVR_FEWEST = 3  # objects


def plain(example: Example) -> int:
  """Returns the data set's own label."""
  return int(example["label"])


def clevr_count(example: Example) -> int:
  """Returns the number of objects, less the smallest, 3: classes 0 to 7 for 3 to 10 objects.

  Raises:
    ValueError: another number of objects. CLEVR's test split has none: its scenes are withheld.
  """
  count = len(example["objects"]["pixel_coords"])
  if not CLEVR_FEWEST <= count <= 10:
    raise ValueError(f"A CLEVR image with {count} objects; allowed: {CLEVR_FEWEST} to 10.")
  return count - CLEVR_FEWEST


def clevr_distance(example: Example) -> int:
  """Returns the bin, 0 to 5, of the nearest object's depth (third of `pixel_coords`).

  Raises:
    ValueError: no object, or a depth outside (0, 100].
  """
  depths = np.reshape(example["objects"]["pixel_coords"], (-1, 3))[:, 2]
  if not len(depths):
    raise ValueError("A CLEVR image without objects has no distance; the test split has none.")
  return _bin(depths.min(), CLEVR_DEPTHS, num_classes=6, what="CLEVR depth")


def kitti_distance(example: Example) -> int:
  """Returns the class of the nearest car, van or truck by its z: 0 to 8 m, to 20 m, farther, none.

  Raises:
    ValueError: a vehicle more than 100 m behind the camera.
  """
  objects = example["objects"]
  vehicles = np.asarray(objects["type"]) < KITTI_VEHICLES
  z = np.reshape(objects["location"], (-1, 3))[:, 2][vehicles]
  nearest = min([*z.tolist(), KITTI_NO_VEHICLE])
  return _bin(nearest, KITTI_METRES, num_classes=4, what="KITTI distance")


def dsprites_location(example: Example) -> int:
  """Returns the x position, 32 values, in 16 bins of 2."""
  return int(example["label_x_position"]) // 2


def dsprites_orientation(example: Example) -> int:
  """Returns the orientation, 40 values, in 16 bins of 2.5: they hold 3 and 2 values in turn."""
  return int(example["label_orientation"]) * 2 // 5


def smallnorb_azimuth(example: Example) -> int:
  """Returns the azimuth in steps of 20 degrees, 0 to 17."""
  return int(example["label_azimuth"])


def smallnorb_elevation(example: Example) -> int:
  """Returns the elevation in steps of 5 degrees from 30, 0 to 8."""
  return int(example["label_elevation"])


def _bin(value: float, thresholds: tuple[float, ...], num_classes: int, what: str) -> int:
  """Returns the index of the last threshold below `value`."""
  exceeded = np.flatnonzero(np.asarray(thresholds, np.float32) < np.float32(value))
  if not len(exceeded) or exceeded[-1] >= num_classes:
    raise ValueError(
      f"{what} {value} is out of range; allowed: above {thresholds[0]}, "
      f"{'no upper limit' if num_classes == len(thresholds) else f'up to {thresholds[-1]}'}."
    )
  return int(exceeded[-1])
