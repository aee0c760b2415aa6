"""Glyph Domains: the 36 capital letters and digits in 256 fonts of four categories.

The images (64 x 64, grey) come with the package in one zip, which `shipped` reads: 64 fonts in each
domain, split by font into 26 that train, 6 that validate and 32 that test. Groups are fonts, and
each font has one image of every class: subsets of whole fonts (`data.num_train` of 36 * fonts) have
as many images of every class. O and 0, I and 1 are alike in some fonts.

The fonts' licences: `files/glyph_domains/LICENSES.md` beside the zip. `scripts/render_glyphs.py`
renders the set anew, in other sizes, with small letters or with more fonts.
"""

from subtune_jax.data import shipped

CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")

_FONTS = {
  "serif": "serif",
  "sans": "sans-serif",
  "handwriting": "handwriting",
  "display": "display",
}

SET = shipped.Shipped(
  name="glyph_domains",
  title="Glyph Domains",
  sha256="237c3993f3ff1cb32e55d7ecd5335230fd6833d860e5aecb89e53f266b3705f4",
  native_size=64,
  num_classes=len(CLASSES),
  split_sizes={"train": 26 * 36, "validation": 6 * 36, "test": 32 * 36},
  attribution={
    domain: (
      f"Glyphs of 64 {category} fonts under OFL-1.1 or Apache-2.0, from @fontsource packages; "
      "their authors: subtune_jax/data/files/glyph_domains/LICENSES.md"
    )
    for domain, category in _FONTS.items()
  },
  group="font",
  tiles=CLASSES,
)
