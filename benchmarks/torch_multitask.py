"""Four tasks on one ResNet-50 that fork at the last stage, in torch: what does each form cost?

  python benchmarks/torch_multitask.py --tasks 4 --batch 1 8

As `subtune latency resnet50 --fork=block4/unit1`: each task has its own first unit of the last
stage and its own head, and shares the two units behind it. Forms: each branch by itself; the shared
units on the stacked batch; and the tasks' own convolutions as one grouped convolution, as the code
of the SubTuning paper has it. Eager float32 in eval mode; ratios are medians within interleaved
rounds.
"""

import argparse
import copy
import statistics
import time

import torch
from torch import nn
import transformers


class Tasks(nn.Module):
  """The trunk once, then the branches."""

  def __init__(self, backbone: nn.Module, tasks: int, form: str):
    super().__init__()
    *first, last = backbone.encoder.stages
    stage = list(last.layers)
    self.trunk = nn.Sequential(backbone.embedder, *first)
    self.own = nn.ModuleList(copy.deepcopy(stage[0]) for _ in range(tasks))
    for unit in self.own:
      nn.init.normal_(unit.layer[1].convolution.weight, std=0.02)
    self.heads = nn.ModuleList(nn.Linear(2048, 10) for _ in range(tasks))
    self.grouped = grouped(list(self.own)) if form == "grouped" else None
    self.rest = nn.Sequential(*stage[1:])
    self.form = form

  def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
    """Logits of every task."""
    shared, count = self.trunk(images), len(self.heads)
    if self.grouped is not None:
      found = self.grouped(shared.repeat(1, count, 1, 1)).chunk(count, dim=1)
    else:
      found = [unit(shared) for unit in self.own]
    if self.form == "separate":
      found = [self.rest(x) for x in found]
    else:
      found = self.rest(torch.cat(list(found))).chunk(count)
    return [head(x.mean((2, 3))) for head, x in zip(self.heads, found, strict=True)]


def grouped(units: list[nn.Module]) -> nn.Module:
  """One unit of grouped convolutions and joint norms with the weights of several."""
  joint, count = copy.deepcopy(units[0]), len(units)
  for name, module in list(joint.named_modules()):
    own = [unit.get_submodule(name) for unit in units] if name else []
    if isinstance(module, nn.Conv2d):
      new = nn.Conv2d(
        module.in_channels * count, module.out_channels * count, module.kernel_size,
        module.stride, module.padding, module.dilation, groups=count, bias=False,
      )  # fmt: skip
      new.weight.data = torch.cat([m.weight.data for m in own])
    elif isinstance(module, nn.BatchNorm2d):
      new = nn.BatchNorm2d(module.num_features * count)
      for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, key).data = torch.cat([getattr(m, key).data for m in own])
    else:
      continue
    parent, _, last = name.rpartition(".")
    setattr(joint.get_submodule(parent), last, new)
  return joint.eval()


@torch.inference_mode()
def main() -> None:
  """Prints a line for each batch size."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tasks", type=int, default=4)
  parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
  parser.add_argument("--rounds", type=int, default=9)
  args = parser.parse_args()
  torch.manual_seed(0)
  backbone = transformers.ResNetModel(transformers.ResNetConfig()).eval()  # ResNet-50
  forms = ("separate", "stacked", "grouped")
  contenders = {"backbone": backbone}
  for form in forms:
    torch.manual_seed(0)
    contenders[form] = Tasks(backbone, args.tasks, form).eval()
  check(contenders, forms)
  print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.tasks} tasks")
  for size in args.batch:
    images, times = torch.randn(size, 3, 224, 224), {name: [] for name in contenders}
    for number in range(args.rounds + 2):
      for name, network in contenders.items():
        begin = time.perf_counter()
        network(images)
        if number >= 2:
          times[name].append(1e3 * (time.perf_counter() - begin))
    line = [f"backbone {statistics.median(times['backbone']):.1f} ms"]
    for form in forms:
      ratios = [own / one for own, one in zip(times[form], times["backbone"], strict=True)]
      line.append(f"{form} {statistics.median(times[form]):.1f} ({statistics.median(ratios):.2f})")
    print(f"batch of {size}: " + ", ".join(line), flush=True)


def check(contenders: dict[str, nn.Module], forms: tuple[str, ...]) -> None:
  """All forms have to answer alike."""
  images = torch.randn(2, 3, 64, 64)
  first, *others = [torch.cat(contenders[form](images)) for form in forms]
  scale = first.abs().max()
  for other in others:
    assert (first - other).abs().max() < 1e-4 * scale, "the forms differ"


if __name__ == "__main__":
  main()
