"""The one error of this package."""


class WeightsError(ValueError):
  """A file of weights that is missing, unreadable, refused, or does not fit the model."""
