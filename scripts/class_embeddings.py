"""Writes the class embeddings of a CLIP text tower, for `subtune_jax.weights.zero_shot`.

  pip install torch transformers
  python scripts/class_embeddings.py --model=openai/clip-vit-base-patch16 \
      --classes=classes.txt --prompts=prompts.txt --out=embeddings.npz

classes.txt holds one class name a line; prompts.txt one template a line, with {} for the class. As
CLIP does, a class is the mean of its prompts' normalised embeddings, normalised again. --model is a
name on the Hugging Face hub or a folder.
"""

import argparse
import pathlib

import numpy as np
import torch
import transformers


def lines(path: str) -> list[str]:
  """The lines of a text file that are not empty."""
  return [line.strip() for line in pathlib.Path(path).read_text().splitlines() if line.strip()]


@torch.no_grad()
def embed(model, tokenizer, texts: list[str]) -> torch.Tensor:
  """Normalised embeddings [n, d] of the texts."""
  tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
  hidden = model.text_model(**tokens).pooler_output
  return torch.nn.functional.normalize(model.text_projection(hidden), dim=-1)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ("model", "classes", "out"):
    parser.add_argument(f"--{name}", required=True)
  parser.add_argument("--prompts", help="default: 'a photo of a {}.'")
  given = parser.parse_args()
  classes = lines(given.classes)
  prompts = lines(given.prompts) if given.prompts else ["a photo of a {}."]
  bad = [prompt for prompt in prompts if "{}" not in prompt]
  if bad or not classes or not prompts:
    parser.error(f"prompts without {{}}: {bad}" if bad else "no class or no prompt")
  model = transformers.CLIPModel.from_pretrained(given.model).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
  rows = [embed(model, tokenizer, [p.replace("{}", c) for p in prompts]).mean(0) for c in classes]
  rows = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
  np.savez(
    given.out,
    embeddings=rows.numpy().astype(np.float32),
    class_names=np.array(classes),
    scale=np.float32(model.logit_scale.exp().item()),
  )


if __name__ == "__main__":
  main()
