"""The one error of this package, and the two reasons that its readers give for it."""

TORCH_FIX = (
  "load it in torch where you trust it, and save it again with torch.save(model.state_dict(), path)"
)
_MAX_QUOTE = 80  # characters


class WeightsError(ValueError):
  """A file of weights that is missing, unreadable, refused, or does not fit the model."""


class Damaged(Exception):
  """The file contradicts itself, its checksums or its length, or ends early."""


class Refused(Exception):
  """The file asks for something that its reader does not admit.

  Attributes:
    fix: what the user can do about it.
  """

  def __init__(self, reason: str, fix: str = TORCH_FIX):
    super().__init__(reason)
    self.fix = fix


def shown(value: object) -> str:
  """Returns what an error message shows of a value from a file."""
  text = repr(value)
  return text if len(text) <= _MAX_QUOTE else f"{text[:_MAX_QUOTE]}..."


def quote(text: str) -> str:
  """Returns what an error message shows of a text from a file, which may be of any length."""
  return repr(text if len(text) <= _MAX_QUOTE else f"{text[:_MAX_QUOTE]}...")
