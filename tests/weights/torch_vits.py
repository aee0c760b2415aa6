"""Plain torch vision transformers with the tensor names of three libraries, random throughout."""

from collections import OrderedDict

import torch
from torch import nn


class QuickGELU(nn.Module):
  def forward(self, x):
    return x * torch.sigmoid(1.702 * x)


def redraw(model: nn.Module, seed: int = 0) -> nn.Module:
  """Draws every parameter at random, so that no zero or one of an init hides an error."""
  generator = torch.Generator().manual_seed(seed)
  for name, p in model.named_parameters():
    noise = torch.randn(p.shape, generator=generator)
    if p.ndim >= 2 and p.shape[0] > 1:
      value = noise * p[0].numel() ** -0.5
    else:
      one = name.endswith((".weight", "gamma", "lambda1")) and p.ndim == 1
      value = float(one) + 0.3 * noise
    p.data.copy_(value)
  return model.eval()


class _SelfAttention(nn.MultiheadAttention):
  def forward(self, x):
    return super().forward(x, x, x, need_weights=False)[0]


class _TorchvisionBlock(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.ln_1 = nn.LayerNorm(width, eps=1e-6)
    self.self_attention = _SelfAttention(width, heads, batch_first=True)
    self.ln_2 = nn.LayerNorm(width, eps=1e-6)
    layers = (nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * width, width))
    self.mlp = nn.Sequential(*layers, nn.Dropout(0.0))

  def forward(self, x):
    x = x + self.self_attention(self.ln_1(x))
    return x + self.mlp(self.ln_2(x))


class Torchvision(nn.Module):
  """torchvision.models.VisionTransformer."""

  def __init__(self, width=32, depth=2, heads=4, patch=8, image=32, classes=5):
    super().__init__()
    self.conv_proj = nn.Conv2d(3, width, patch, patch)
    self.class_token = nn.Parameter(torch.zeros(1, 1, width))
    self.encoder = nn.Module()
    self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 1 + (image // patch) ** 2, width))
    blocks = [(f"encoder_layer_{i}", _TorchvisionBlock(width, heads)) for i in range(depth)]
    self.encoder.layers = nn.Sequential(OrderedDict(blocks))
    self.encoder.ln = nn.LayerNorm(width, eps=1e-6)
    self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, classes)))

  def forward(self, x):
    x = self.conv_proj(x).flatten(2).transpose(1, 2)
    x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
    return self.heads(self.encoder.ln(self.encoder.layers(x))[:, 0])


class _TimmAttention(nn.Module):
  def __init__(self, width, heads, bias):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width, bias=bias)
    self.proj = nn.Linear(width, width)

  def forward(self, x):
    n, t, w = x.shape
    q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
    weights = ((w // self.heads) ** -0.5 * q @ k.transpose(-2, -1)).softmax(-1)
    return self.proj((weights @ v).transpose(1, 2).reshape(n, t, w))


class _Scale(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(width))

  def forward(self, x):
    return x * self.gamma


class _TimmBlock(nn.Module):
  def __init__(self, width, heads, bias, scale):
    super().__init__()
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.attn = _TimmAttention(width, heads, bias)
    self.ls1 = _Scale(width) if scale else nn.Identity()
    self.norm2 = nn.LayerNorm(width, eps=1e-6)
    layers = {"fc1": nn.Linear(width, 4 * width), "act": nn.GELU()}
    self.mlp = nn.Sequential(OrderedDict(**layers, fc2=nn.Linear(4 * width, width)))
    self.ls2 = _Scale(width) if scale else nn.Identity()

  def forward(self, x):
    x = x + self.ls1(self.attn(self.norm1(x)))
    return x + self.ls2(self.mlp(self.norm2(x)))


class Timm(nn.Module):
  """timm's VisionTransformer, DINO's, and with layer scale and registers DINOv2's."""

  def __init__(
    self, width=32, depth=2, heads=4, patch=8, image=32, classes=5, bias=True, scale=False,
    registers=0, register_name="reg_token", class_position=True, pool="token",
  ):  # fmt: skip
    super().__init__()
    self.patch_embed = nn.Module()
    self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    count = class_position + (image // patch) ** 2
    self.pos_embed = nn.Parameter(torch.zeros(1, count, width))
    if registers:
      setattr(self, register_name, nn.Parameter(torch.zeros(1, registers, width)))
    self.blocks = nn.Sequential(*(_TimmBlock(width, heads, bias, scale) for _ in range(depth)))
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.head = nn.Linear(width * (2 if pool == "token_mean" else 1), classes)
    self.registers, self.register_name, self.pool = registers, register_name, pool

  def forward(self, x):
    x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
    token = self.cls_token.expand(len(x), -1, -1)
    if self.pos_embed.shape[1] > x.shape[1]:
      x = torch.cat([token, x], 1) + self.pos_embed
    else:
      x = torch.cat([token, x + self.pos_embed], 1)
    if self.registers:
      registers = getattr(self, self.register_name).expand(len(x), -1, -1)
      x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
    x = self.norm(self.blocks(x))
    token, mean = x[:, 0], x[:, 1 + self.registers :].mean(1)
    pooled = {"token": [token], "mean": [mean], "token_mean": [token, mean]}[self.pool]
    return self.head(torch.cat(pooled, -1))


class _ClipBlock(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.attn = _SelfAttention(width, heads, batch_first=True)
    self.ln_1 = nn.LayerNorm(width)
    layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": QuickGELU()}
    self.mlp = nn.Sequential(OrderedDict(**layers, c_proj=nn.Linear(4 * width, width)))
    self.ln_2 = nn.LayerNorm(width)

  def forward(self, x):
    x = x + self.attn(self.ln_1(x))
    return x + self.mlp(self.ln_2(x))


def _transformer(width, depth, heads):
  transformer = nn.Module()
  transformer.resblocks = nn.Sequential(*(_ClipBlock(width, heads) for _ in range(depth)))
  return transformer


class ClipVisual(nn.Module):
  """The image tower of OpenAI's CLIP."""

  def __init__(self, width=32, depth=2, heads=4, patch=8, image=32, features=6):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
    self.class_embedding = nn.Parameter(torch.zeros(width))
    self.positional_embedding = nn.Parameter(torch.zeros(1 + (image // patch) ** 2, width))
    self.ln_pre = nn.LayerNorm(width)
    self.transformer = _transformer(width, depth, heads)
    self.ln_post = nn.LayerNorm(width)
    self.proj = nn.Parameter(torch.zeros(width, features))

  def forward(self, x):
    x = self.conv1(x).flatten(2).transpose(1, 2)
    token = self.class_embedding.expand(len(x), 1, -1)
    x = self.ln_pre(torch.cat([token, x], 1) + self.positional_embedding)
    return self.ln_post(self.transformer.resblocks(x)[:, 0]) @ self.proj


class Clip(nn.Module):
  """OpenAI's CLIP: the names of both towers; only the image tower runs."""

  def __init__(self, features=6, text_width=8, **visual):
    super().__init__()
    self.visual = ClipVisual(features=features, **visual)
    self.transformer = _transformer(text_width, 12, 2)
    self.token_embedding = nn.Embedding(20, text_width)
    self.positional_embedding = nn.Parameter(torch.zeros(7, text_width))
    self.ln_final = nn.LayerNorm(text_width)
    self.text_projection = nn.Parameter(torch.zeros(text_width, features))
    self.logit_scale = nn.Parameter(torch.ones([]))

  def forward(self, x):
    return self.visual(x)


def moco_mlp(layers: int, width: int, hidden: int, out: int) -> nn.Sequential:
  """MoCo v3's `_build_mlp`."""
  modules = []
  for i in range(layers):
    last = i == layers - 1
    sizes = (hidden if i else width, out if last else hidden)
    modules.append(nn.Linear(*sizes, bias=False))
    modules += [nn.BatchNorm1d(out, affine=False)] if last else [nn.BatchNorm1d(hidden), nn.ReLU()]
  return nn.Sequential(*modules)
