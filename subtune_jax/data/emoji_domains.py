"""Emoji Domains: 1,087 emoji, each drawn by four design teams, in 45 classes.

The images (96 x 96 RGB) come with the package in one zip, which `shipped` reads. Groups are
concepts, ids the files' names in the zip; the splits are by concept and the same in every domain.
Licences: `SET.attribution`, and `files/emoji_domains/LICENSES.md` beside the zip.
"""

from subtune_jax.data import shipped

SET = shipped.Shipped(
  name="emoji_domains",
  title="Emoji Domains",
  sha256="a08d815a4090bb5553882fa3c4f4c567ef02d7567258e8288a6a92b92df3e9d0",
  native_size=96,
  num_classes=45,
  split_sizes={"train": 652, "validation": 174, "test": 261},
  attribution={
    "noto": "Noto Emoji, Google Inc (Apache-2.0), from @iconify-json/noto 1.2.9",
    "twemoji": (
      "Twemoji, Twitter Inc and contributors (CC-BY-4.0), from @iconify-json/twemoji 1.2.5"
    ),
    "openmoji": (
      "OpenMoji, HfG Schwaebisch Gmuend (CC-BY-SA-4.0), from @iconify-json/openmoji 1.2.29"
    ),
    "fluent": (
      "Fluent Emoji (flat), Microsoft Corporation (MIT), from @iconify-json/fluent-emoji-flat 1.2.6"
    ),
  },
  group="concept",
)
