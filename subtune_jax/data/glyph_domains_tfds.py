"""Glyph Domains as a TFDS builder, `glyph_domains/{serif,sans,handwriting,display}`.

As `emoji_domains_tfds`:

  from subtune_jax.data import glyph_domains_tfds
  tfds.load("glyph_domains/serif", split="train")
"""

from subtune_jax.data import glyph_domains, shipped_tfds


class GlyphDomains(shipped_tfds.Builder):
  """One config per domain; examples are {image, label, font, id}, in the reader's order."""

  SET = glyph_domains.SET
  BUILDER_CONFIGS = shipped_tfds.configs(SET)
  ABOUT = """\
Glyph Domains: the 26 capital letters and 10 digits of 256 fonts, 64 x 64 grey, dark on light, in
four domains by the fonts' own category. The splits are by font: 26 fonts (936 images) train, 6
(216) validation, 32 (1,152) test. Resample fonts, not images."""
