"""docs/claims.md and its figures, from the rows and the archives."""

from collections.abc import Sequence
import functools
import itertools

from benchmarks.claims_parts import archive as archive_lib
from benchmarks.claims_parts import effects, rows
from subtune_jax.report import charts, estimate, marks, style, words

_VERDICT = {
  estimate.HIGHER: "holds", estimate.LOWER: "**does not hold**", estimate.UNDECIDED: "undecided",
}  # fmt: skip
_COLOR = {estimate.HIGHER: "#0072B2", estimate.LOWER: "#D55E00", estimate.UNDECIDED: "#8C8C8C"}
_REGIMES = {  # archive -> title of its panel
  "lpft_glyphs": "Handwritten letters and digits:\npretrained features do not serve the task",
  "lpft_fashion_clean": "Clean clothes, noise and blur:\npretrained features serve the task",
}
_METHODS = {"ft": "Full fine-tuning", "lp_ft": "LP-FT", "subtuning": "SubTuning"}

Answered = tuple[rows.Row, estimate.Estimate]


@functools.cache
def _archive(name: str) -> archive_lib.Archive:
  return archive_lib.read(name)


@functools.cache
def answered() -> tuple[Answered, ...]:
  """Every row with its difference."""
  return tuple((row, row.effect(_archive(row.archive))) for row in rows.table())


def document() -> str:
  """The whole of docs/claims.md."""
  found = answered()
  counts = {verdict: sum(e.verdict == verdict for _, e in found) for verdict in _VERDICT}
  lines = [
    "# The papers' claims, measured",
    "",
    "Made by `python benchmarks/claims.py` from the answers of the runs below, which are kept in "
    "`benchmarks/results/claims`. Each row is one claim in one setting, as a difference with its "
    "95 % interval over groups of test images and seeds (of features: over seeds).",
    "",
    f"{len(found)} rows: {counts[estimate.HIGHER]} hold, {counts[estimate.LOWER]} do not, "
    f"{counts[estimate.UNDECIDED]} are undecided.",
    "",
    "![All rows with their intervals](images/claims.png)",
    "",
  ]
  for source, group in itertools.groupby(found, key=lambda own: own[0].source.partition(",")[0]):
    lines += [f"## {source}", "", "| claim | setting | difference | |", "|---|---|---|---|"]
    for row, effect in sorted(group, key=_claim_order(found)):
      place = row.source.partition(", ")[2]
      claim = f"{row.claim} ({place})" if place else row.claim
      lines.append(
        f"| {claim} | {row.where} | {_difference(row, effect)} | {_VERDICT[effect.verdict]} |"
      )
    lines.append("")
  return "\n".join([*lines, *_runs(found), *_READING, ""])


def _claim_order(found: Sequence[Answered]):
  """The same claim in several settings stands together, in the order of first mention."""
  first: dict[str, int] = {}
  for number, (row, _) in enumerate(found):
    first.setdefault(row.claim, number)
  return lambda own: first[own[0].claim]


def _difference(row: rows.Row, effect: estimate.Estimate) -> str:
  ends = (effect.mean, effect.low, effect.high)
  mean, low, high = (f"{100 * x:+.1f}".replace("-", words.MINUS) for x in ends)
  return f"{mean} [{low}, {high}] {row.unit}"


def _runs(found: Sequence[Answered]) -> list[str]:
  """The command of each run, and what was chosen in it."""
  lines = ["## Runs", ""]
  for name in dict.fromkeys(row.archive for row, _ in found):
    facts = _archive(name).facts
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if k in ("jax", "flax"))
    lines += [f"**{name}** ({facts['created'][:10]}, {versions}): {_about(facts)}", "", "```bash"]
    lines += [facts["command"].replace(" --", " \\\n  --"), "```", ""]
  return lines


def _about(facts) -> str:
  """Seeds and learning rates."""
  seeds = words.count(len(facts["seeds"]), "seed")
  rates = [
    f"{name} {words.setting_value(rate)}{' (edge of its grid)' if edge else ''}"
    for name, (rate, edge) in facts.get("rates", {}).items() if name != "lp"
  ]  # fmt: skip
  return f"{seeds}; rates {', '.join(rates)}" if rates else seeds


def figure() -> bytes:
  """All rows as points with intervals, coloured by what they say."""
  found = [own for own in answered() if own[0].unit != "% of their norm"]
  made, (axes,) = charts.panels(1, 12.0, 1.2 + 0.2 * len(found))
  axes.set_xscale("symlog", linthresh=10)
  for place, (_, effect) in enumerate(found):
    marks.mean(axes, place, effect, _COLOR[effect.verdict], "o", size=4, flat=True)
  axes.axvline(0, color=style.INK, linewidth=0.8)
  axes.set_yticks(
    range(len(found)), [charts.plain(f"{row.claim}  ({_short(row.where)})") for row, _ in found]
  )
  axes.tick_params(axis="y", labelsize=6)
  axes.set_ylim(len(found) - 0.4, -0.6)
  charts.label(axes, x="points; above 0 the claim holds", grid="x")
  ticks = (-20, -10, -5, 0, 5, 10, 20, 40, 80)
  axes.set_xticks(ticks, [str(tick) for tick in ticks])
  verdicts = {estimate.HIGHER: "holds", estimate.LOWER: "does not hold",
              estimate.UNDECIDED: "undecided"}  # fmt: skip
  charts.legend(made, [(marks.key(_COLOR[v], "o", size=4, dashes="-"), text)
                       for v, text in verdicts.items()])  # fmt: skip
  return charts.png(made)


def _short(where: str) -> str:
  """A setting in a label of the figure: what every one of its kind has is left out."""
  drop = (
    ", ResNet-14", ", EfficientNet-Lite0", " OOD", ", 5 folds", "Fashion-MNIST, ", ", 64 px",
    ", 32 px", "1,000 images, ", ", 18 of 36 classes seen", "800 ", "glyphs, ",
  )  # fmt: skip
  return functools.reduce(lambda text, part: text.replace(part, ""), drop, where)


def regimes() -> bytes:
  """Three methods against the probe, in and out of distribution, in two settings side by side."""
  made, every = charts.panels(len(_REGIMES), 9.0, 3.9)
  for axes, (name, title) in zip(every, _REGIMES.items(), strict=True):
    archive = _archive(name)
    _regime(axes, archive, title)
  every[0].set_ylabel("points above the linear probe", fontsize=charts.SIZE)
  charts.legend(made, marks.keys(style.looks(list(_METHODS)), _METHODS))
  return charts.png(made)


def _regime(axes, archive: archive_lib.Archive, title: str) -> None:
  looks = style.looks(list(_METHODS))
  data = archive.facts["data"]
  for side, sets in enumerate(([data["id"]], data["ood"])):
    for place, method in enumerate(_METHODS):
      effect = effects.difference(archive, sets, method, "lp")
      marks.mean(axes, side + 0.22 * (place - 1), effect, *looks[method])
  axes.axhline(0, color=style.INK, linewidth=0.8)
  axes.set_xticks((0, 1), ("in distribution", "out of distribution"))
  axes.set_xlim(-0.5, 1.5)
  charts.label(axes, title)


_READING = [
  "## What a user may take from it",
  "",
  "- **Two regimes.** Where the probe is far from what tuning reaches (glyphs), tuning more is "
  "better on both sides, and LP-FT gives most of it away. Where the probe is as good as "
  "anything in distribution (clean clothes), full fine-tuning loses accuracy and LP-FT gains "
  "out of distribution. Validation accuracy of the probe against fine-tuning, in distribution, "
  "tells the two apart; the proxy A-distance of the shift does not: 1.2 to 1.6 on glyphs, 0.6 "
  "to 1.2 on clothes, 2.0 under low contrast, where neither method wins out of distribution.",
  "- **LP-FT is delicate here.** With BatchNorm on running statistics, as its authors run it, "
  "it breaks down on glyphs from a rate of 1e-3 on (2.8 % on validation), while full fine-"
  "tuning from a random head, on batch statistics, is best at 1e-2. On batch statistics LP-FT "
  "is below the probe that it starts from: the probe's head was fitted to features of other "
  "statistics.",
  "- **Rates.** Full fine-tuning at 1e-3, the rate that emoji want, is 4 points below that at "
  "1e-2 on glyphs in distribution, and level out of it; SubTuning wants 1e-2 and LP-FT 1e-4. A "
  "comparison at one shared rate compares rates.",
  "- **Calibration.** What fine-tuning hides in the logits is large (38 points of U/Y on "
  "glyphs). ALG undershoots there, PCV overshoots ([why](calibration.md)).",
]
