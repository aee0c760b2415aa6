"""How far a block moved in training against how wrong its prediction was; used by selection.py."""

import json

import numpy as np
import scipy.stats

from subtune_jax.report import charts, style

COLUMNS, TICKS = 2, (5, 10, 20, 50, 100)


def add(path, title, names, trainers, rates, predictor) -> None:
  """Puts the points of a problem into a JSON file and draws all of it beside it.

  A point is a block at a rate: (its distance by its length, predicted minus trained accuracy).
  """
  squares = predictor.kernels.square_norms
  found = predictor.evaluate([(name,) for name in names])
  points = []
  for rate, trainer in zip(rates, trainers, strict=True):
    for name in names:
      rows = trainer.rows((name,))
      far = np.mean([row["moved"] for row in rows])  # of the whole network's length
      far *= np.sqrt(sum(squares.values()) / squares[name])
      error = found[name,].mean - np.mean([row["accuracy"] for row in rows])
      points.append({"unit": name, "rate": rate, "moved": round(float(far), 5),
                     "error": round(float(error), 5)})  # fmt: skip
  kept = json.loads(path.read_text()) if path.exists() else {}
  kept[title] = points
  path.write_text(json.dumps(kept, indent=0) + "\n")
  path.with_suffix(".png").write_bytes(picture(kept))
  print("\nmoved against |predicted - trained|: " + correlation(points))


def correlation(points) -> str:
  """Kendall's tau with its p-value."""
  found = scipy.stats.kendalltau([p["moved"] for p in points], [abs(p["error"]) for p in points])
  return f"tau {found.statistic:.2f} (p {found.pvalue:.2g}, {len(points)} blocks and rates)"


def picture(kept) -> bytes:
  """A panel for each problem, a colour for each rate of it; all have one x axis."""
  made, panels = charts.panels(len(kept), 8.4, 2.5, per_row=COLUMNS, around=0.4, sharex=True)
  for axes, (title, points) in zip(panels, kept.items(), strict=True):
    rates = sorted({point["rate"] for point in points})
    for rate, color in zip(rates, (style.RIGHT, style.WRONG), strict=True):
      own = [point for point in points if point["rate"] == rate]
      axes.plot([100 * p["moved"] for p in own], [100 * p["error"] for p in own], "o", color=color,
                markersize=4.5, alpha=0.85, label=f"rate {rate:g}")  # fmt: skip
    axes.axhline(0, color=style.MUTED, linewidth=0.9, linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick}" for tick in TICKS])
    axes.minorticks_off()
    axes.legend(fontsize=charts.SMALL, frameon=False, handletextpad=0.1)
    charts.label(axes, title.replace("_", " "), grid="both")
  made.supxlabel("distance moved, % of the block's length", fontsize=charts.SIZE)
  made.supylabel("predicted minus trained accuracy, points", fontsize=charts.SIZE)
  return charts.png(made)
