"""How much of what there is to learn is learned, language by language: losses of different languages can't be compared, but
each lies between two that are known.

    unigram      1.35 ──┬──  counting tokens                 left of the gap    (loss - oracle) / (unigram - oracle)
    loss         0.47   │    0.02 above the oracle, 2 % of the gap
    oracle       0.45 ──┴──  the best possible
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlm_lightning.report import style
from mlm_lightning.report.groups import Group, as_text
from mlm_lightning.report.learned import share_left
from mlm_lightning.report.metric import Interval, interval
from mlm_lightning.report.study import Study
from mlm_lightning.report.style import LIMIT_COLOUR, WIDTH, Picture
from mlm_lightning.report.tables import Table, number, with_interval


@dataclass(frozen=True)
class Gap:
    """A group of runs on one language."""

    name: str
    group: Group
    excess: Interval
    """Nats a token."""
    left: Interval | None
    """The share of the gap that is left; None where there is nothing to learn."""


def gaps(study: Study) -> list[Gap]:
    """Of a study whose runs are on different data, each beside its own optimum: the best learned first, or in the order of a
    number that was swept. Empty for any other."""
    if not any(axis.key.startswith("data.") and axis.name in study.tasks for axis in study.axes):
        return []
    found = [gap for group in study.groups if (gap := _gap(study, group)) is not None]
    if len(found) < max(2, len(study.groups)):
        return []
    return found if _is_along(study) else sorted(found, key=lambda gap: gap.left.mean if gap.left else math.inf)


def _is_along(study: Study) -> bool:
    return len(study.axes) == 1 and study.axes[0].numeric


def _gap(study: Study, group: Group) -> Gap | None:
    excess = group.interval("val/excess_loss")
    if excess is None:
        return None
    return Gap(study.name(group).replace("data=", ""), group, excess, interval([share_left(r.summary) for r in group.results]))


def sentences(study: Study) -> list[str]:
    """Which language is learned best, which worst; along a number, where the optimum goes and how far from it the runs are."""
    found = gaps(study)
    if found and _is_along(study):
        first, last = (f"{number(found[end].group.mean('val/oracle_loss'))}" for end in (0, -1))
        excess = " to ".join(with_interval(found[end].excess) for end in (0, -1))
        names = f"{found[0].name} to {as_text(found[-1].group.values[study.axes[0].key])}"
        return [f"From {names} the best possible loss goes from {first} to {last}, and the excess over it from {excess}."]
    known = [(gap, gap.left) for gap in found if gap.left is not None]
    if len(known) < 2:
        return []
    (least, least_left), *_, (most, most_left) = known
    return [
        f"Of the way from counting tokens (unigram) to the best possible loss, least is left on {least.name}: "
        f"{percent(least_left)}; most on {most.name}: {percent(most_left)}.",
        "Each run is on its own data, so that losses are not compared: each stands beside its own optimum.",
    ]


def percent(share: Interval) -> str:
    """`2.1 % ± 0.3`."""
    return f"{share.mean:.1%}".replace("%", " %") + ("" if math.isnan(share.half) else f" ± {100 * share.half:.1f}")


def table(found: Sequence[Gap]) -> Table:
    header = ["", "best possible loss", "unigram", "bigram", "loss", "excess", "of the gap left", "seeds"]
    rows = []
    for gap in found:
        losses = [number(gap.group.mean(f"val/{name}")) for name in ("oracle_loss", "unigram_loss", "bigram_loss", "loss")]
        left = "nothing to learn" if gap.left is None else percent(gap.left)
        rows.append([gap.name, *losses, with_interval(gap.excess), left, str(gap.excess.n)])
    return Table(header, rows)


def picture(study: Study, found: Sequence[Gap]) -> Picture:
    """A row for each language: from the unigram's loss down to the optimum, and where the model is between them."""
    figure, (losses, shares) = style.new_figure(WIDTH, 1.5 + 0.3 * len(found), 2, sharey=True)
    places = range(len(found))
    optima, unigrams, means = (
        [gap.group.mean(f"val/{name}") for gap in found] for name in ("oracle_loss", "unigram_loss", "loss")
    )
    losses.hlines(places, optima, unigrams, color="#bbbbbb", linewidth=3)
    ticks: Any = {"linestyle": "none", "marker": "|", "markersize": 12, "markeredgewidth": 2}
    losses.plot(optima, places, color=LIMIT_COLOUR, label="best possible", **ticks)
    losses.plot(unigrams, places, color=style.OKABE_ITO[1], label="counting tokens (unigram)", **ticks)
    losses.plot(means, places, linestyle="none", marker="o", color=style.OKABE_ITO[0], label="model")
    losses.set_xlabel("validation loss\n(nats a token)")
    known = [(place, gap.left) for place, gap in enumerate(found) if gap.left is not None]
    bars: Any = {"linestyle": "none", "marker": "o", "capsize": 3, "color": style.OKABE_ITO[0]}
    shares.errorbar(
        [100 * left.mean for _, left in known],
        [place for place, _ in known],
        xerr=[100 * left.margin for _, left in known],
        **bars,
    )
    if known and all(left.mean > 0 for _, left in known):
        style.set_log_scale(shares, "x", (1, 2, 5))
        shares.set_xlim(left=50 * min(left.mean for _, left in known))  # of two seeds, an interval may cover 0
    else:
        shares.axvline(0, color=LIMIT_COLOUR, linewidth=0.8)
    shares.set_xlabel("left of the way to the best possible loss\n(% of the gap)")
    losses.set_yticks(places, [style.shortened(gap.name, 40) for gap in found])
    losses.set_ylim(len(found) - 0.5, -0.5)
    style.add_legend(figure, [losses])
    seeds = max(gap.excess.n for gap in found)
    caption = (
        f"Each beside its own optimum{'' if _is_along(study) else ', the best learned first'}. Left: from what counting tokens "
        "gives (unigram) to the best possible loss, and the model between them. Right: the share of that gap that is left"
    )
    return Picture(
        "languages", caption + ("; mean and 95 % interval over seeds." if seeds > 1 else ", of one run each."), figure
    )
