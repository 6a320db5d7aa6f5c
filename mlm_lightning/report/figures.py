"""The figures of a report: a metric against what was swept, evaluation conditions, pairs of keys, learning curves."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mlm_lightning.report import gaps, stages, style
from mlm_lightning.report.groups import Axis, Group, as_text, canonical
from mlm_lightning.report.metric import DEFAULT, Metric, condition_name, describe, interval, label
from mlm_lightning.report.study import Study
from mlm_lightning.report.style import COUNTED, LIMIT, LIMIT_COLOUR, WIDTH, Picture

MAX_PANELS, MAX_COLOURS, MAX_CELLS, MAX_PAIRS, MAX_CURVES = 3, 10, 20, 6, 10
"""Panels with a condition each, lines of a panel, rows or columns of a heat map, pairs of keys, groups with learning curves."""


def draw(study: Study) -> list[Picture]:
    """Those that a study has the data for."""
    with style.applied():
        return list(_pictures(study))


def _pictures(study: Study) -> Iterator[Picture]:
    if any(each and math.isfinite(each.half) for standing in study.standings for each in standing.differences):
        yield _differences(study)
    if study.groups:
        groups, conditions, complete = study.groups, study.conditions, study.collection.complete
        # of two runs, a table says it; of one key, the figure of conditions
        if study.standings and (len(groups) > 2 or len(groups) < len(complete)):
            axes = [] if study.by_condition and len(conditions) > 1 and len(study.axes) == 1 else study.axes
            yield from (_by_key(study, axis) for axis in axes)
        if len(conditions) > 1 and study.axes:
            has_excess = all(f"val/excess_loss_{each}" in result.summary for each in conditions for result in complete)
            if len(study.axes) == 1 and len(conditions) <= MAX_COLOURS:
                yield _conditions(study, study.axes[0], has_excess)
            if max(len(groups), len(conditions)) <= MAX_CELLS:
                yield _conditions_heat_map(study, "val/excess_loss" if has_excess else "val/loss")
        for across, down in itertools.islice(itertools.combinations(study.axes, 2), MAX_PAIRS):
            yield from (_pair(study, across, down, standing.metric) for standing in study.standings[:MAX_PANELS])
    if found := gaps.gaps(study):
        yield gaps.picture(study, found)
    yield from stages.pictures(study)
    yield from _curves(study)


def _by_key(study: Study, axis: Axis) -> Picture:
    """The metric against one swept key, and beside it the plain loss if that is not the metric: points for runs, a line
    through the means, a band for the intervals. A second key gives the colours; of three or more, the best are joined."""
    metrics = [standing.metric for standing in study.standings[:MAX_PANELS]]
    if not study.by_condition and study.metric.name != DEFAULT and any(group.interval(DEFAULT) for group in study.groups):
        metrics.append(Metric())
    others = [each for each in study.axes if each is not axis]
    colour_axis = others[0] if len(others) == 1 and len(others[0].values) <= MAX_COLOURS else None
    # where no two groups share a value (a random search), nothing can be chosen at a value, and a line would be noise
    joined = len(axis.values) < len(study.groups)
    blue = style.OKABE_ITO[0], style.MARKERS[0]
    figure, panels = style.new_figure(WIDTH, 3.4, len(metrics))
    is_cut = False
    for ax, metric in zip(panels, metrics, strict=True):
        style.show_key(ax, axis, WIDTH / len(metrics))
        if colour_axis:
            values = colour_axis.values
            styles = style.line_styles(len(values), ordered=colour_axis.numeric and len(values) > 2)
            for index, (value, look) in enumerate(zip(values, styles, strict=True)):
                groups = [each for each in study.groups if canonical(each.values[colour_axis.key]) == canonical(value)]
                shift = 0.0 if axis.numeric else 0.3 * (index / max(1, len(values) - 1) - 0.5)
                style.draw_runs(ax, axis, groups, metric, look, shift)
                style.draw_series(ax, axis, groups, metric, look, as_text(value), shift)
        elif not others:
            style.draw_runs(ax, axis, study.groups, metric, blue)
            style.draw_series(ax, axis, study.groups, metric, blue, "mean and interval")
        else:
            style.draw_runs(ax, axis, study.groups, metric, ("#888888", "o"), alpha=0.5, label="runs")
            if joined:
                best = {axis.place(group.values): group for group in reversed(study.rank(metric))}
                groups = [best[x] for x in sorted(best)]
                style.draw_series(ax, axis, groups, metric, blue, "best of the other keys")
        style.draw_limits(ax, axis, study.groups, metric)
        is_cut |= style.frame(ax, study.groups, [metric])
        style.draw_counted(ax, axis, study.groups, metric)
        ax.set_ylabel(style.on_two_lines(label(DEFAULT if study.by_condition else metric, study.per)))
        if study.by_condition:
            ax.set_title(condition_name(metric.condition).replace(", ", ",\n"))
        if study.metric.note and metric.name == DEFAULT:
            ax.set_title("each run on its own masks and data")
    style.add_legend(figure, panels, colour_axis.name if colour_axis else "")
    several = study.by_condition and len(metrics) > 1
    where = f", under {len(metrics)} of {len(study.standings)} conditions" if several else ""
    caption = f"{label(DEFAULT if several else study.metric)} against {axis.name}{where}. Points are runs"
    if not others or colour_axis:
        by = f", by {colour_axis.name}" if colour_axis else ""
        caption += f"; mean and 95 % interval over seeds{by}"
    elif joined:
        best_ones = "the line joins" if axis.numeric else "the large ones are"
        caption += f"; {best_ones} the best group at each value, the other {len(others)} keys chosen freely"
    if is_cut:
        caption += "; an interval that leaves the frame is cut"
    return Picture(f"by_{axis.name}", f"{caption}.", figure)


def _differences(study: Study) -> Picture:
    """How far each group is from the best one, under one condition a panel."""
    standings = study.standings[:MAX_PANELS]
    groups = study.groups if len(study.groups) <= MAX_CELLS else study.ranked[:MAX_CELLS]
    subject, _, unit = describe(study.metric, study.per)
    figure, panels = style.new_figure(WIDTH, 1.4 + 0.26 * len(groups), len(standings), sharey=True)
    axis = study.axes[0] if len(study.axes) == 1 else None
    names = [style.shortened(as_text(group.values[axis.key]) if axis else study.name(group), 40) for group in groups]
    for ax, standing in zip(panels, standings, strict=True):
        found = [(place, each) for place, group in enumerate(groups) if (each := standing.to_best(group))]
        ax.axvline(0, color=LIMIT_COLOUR, linewidth=0.8)
        look: Any = {"linestyle": "none", "capsize": 3, "marker": "o", "color": style.OKABE_ITO[0]}
        places, means = [place for place, _ in found], [each.mean for _, each in found]
        ax.errorbar(means, places, xerr=[each.margin for _, each in found], label="difference, 95 % interval", **look)
        at = [place for place, group in enumerate(groups) if group is standing.best]
        ax.plot([0] * len(at), at, linestyle="none", marker="*", markersize=10, color=style.FRAME_COLOUR, label="best")
        ax.set_title(condition_name(standing.metric.condition).replace(", ", ",\n"))
        ax.locator_params(axis="x", nbins=3)
        ax.set_xlabel(f"difference\n({unit})" if unit else "difference")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].set_ylabel(axis.name if axis else "")
    style.add_legend(figure, panels)
    is_paired = all(each.paired for standing in standings for each in standing.differences if each)
    how = f"paired by {' and '.join(study.replicates)}" if is_paired else "not paired (Welch’s)"
    caption = f"{subject} of each group less that of the best one, {how}; an interval that covers 0 may be chance."
    if len(standings) < len(study.standings):
        caption += f" Of {len(study.standings)} conditions, the first {len(standings)} are shown; the table has all."
    return Picture("differences", caption, figure)


def _conditions(study: Study, axis: Axis, has_excess: bool) -> Picture:
    """The loss of the same weights under each evaluation condition, a line each, and beside it the excess over the oracle."""
    figure, panels = style.new_figure(WIDTH, 3.3, 1 + has_excess)
    for ax, base in zip(panels, ("val/loss", "val/excess_loss"), strict=False):
        style.show_key(ax, axis, WIDTH / len(panels))
        metrics = [f"{base}_{condition}" for condition in study.conditions]
        for metric, condition, look in zip(metrics, study.conditions, style.line_styles(len(metrics)), strict=True):
            style.draw_runs(ax, axis, study.groups, metric, look)
            style.draw_series(ax, axis, study.groups, metric, look, condition_name(condition))
            if base == "val/loss":
                style.draw_limits(ax, axis, study.groups, metric, look)
        style.frame(ax, study.groups, metrics)
        ax.set_ylabel(style.on_two_lines(label(base, study.per)))
    if has_excess:
        panels[0].plot([], [], linestyle="--", color=LIMIT_COLOUR, linewidth=1.2, label=LIMIT)
    style.add_legend(figure, panels, "evaluated at")
    caption = f"The same weights under each evaluation condition, against {axis.name}: mean and 95 % interval over seeds"
    return Picture("conditions", f"{caption}{'; dashed: the best possible loss there' if has_excess else ''}.", figure)


def _conditions_heat_map(study: Study, base: str) -> Picture:
    """The groups, a row each, under each evaluation condition."""
    axis = study.axes[0] if len(study.axes) == 1 else None
    rows = [as_text(group.values[axis.key]) if axis else study.name(group) for group in study.groups]
    cells = [[group.interval(f"{base}_{each}") for each in study.conditions] for group in study.groups]
    figure, (ax,) = style.new_figure(min(WIDTH, 2.8 + 1.1 * len(study.conditions)), 1.5 + 0.5 * len(rows))
    names = [condition_name(each) for each in study.conditions]
    style.draw_heat_map(ax, cells, rows, names, label(base, study.per), per_column=True, maximize=False)
    ax.set(xlabel="evaluated at", ylabel=f"trained with {axis.name}" if axis else "trained with")
    caption = f"{label(base, study.per)}, of each group (row) under each evaluation condition (column); "
    caption += "mean and 95 % interval over seeds."
    return Picture("conditions_heat", f"{caption} Framed: the best of its column.", figure)


def _pair(study: Study, across: Axis, down: Axis, metric: Metric) -> Picture:
    """The metric for two keys: a heat map where the pairs fill a grid, coloured points where they don't (a random search)."""
    ending = f"_{metric.condition}" if study.by_condition else ""
    name, metric_label = f"pair_{across.name}_{down.name}{ending}", label(metric, study.per)
    chosen = "" if len(study.axes) == 2 else ", the other keys chosen freely"
    caption = f"{metric_label} for {across.name} and {down.name}{chosen}; mean over seeds."
    worst_first = study.rank(metric)[::-1]
    means = [group.mean(metric) for group in worst_first]
    pairs = [(canonical(group.values[across.key]), canonical(group.values[down.key])) for group in worst_first]
    best = {pair: group.interval(metric) for pair, group in zip(pairs, worst_first, strict=True)}
    rows, names = ([style.shortened(as_text(value)) for value in axis.values] for axis in (down, across))
    if len(best) * 2 >= len(rows) * len(names) and max(len(rows), len(names)) <= MAX_CELLS:
        caption = caption.replace("mean over", "mean and 95 % interval over") + " Framed: the best."
        cells = [[best.get((canonical(x), canonical(y))) for x in across.values] for y in down.values]
        figure, (ax,) = style.new_figure(min(WIDTH, 2.8 + 1.1 * len(names)), 1.5 + 0.5 * len(rows))
        colours = label(DEFAULT, study.per) if study.by_condition else metric_label
        style.draw_heat_map(ax, cells, rows, names, colours, per_column=False, maximize=metric.maximize)
        ax.set_xlabel(across.name)
        ax.set_title(condition_name(metric.condition) if study.by_condition else "")
    else:
        figure, (ax,) = style.new_figure(5.6, 3.8)
        style.show_key(ax, across, 4.0)
        if down.logarithmic:
            style.set_log_scale(ax, "y")
        elif not down.numeric:
            ax.set_yticks(range(len(rows)), rows)
        x, y = ([axis.place(group.values) for group in worst_first] for axis in (across, down))
        points = ax.scatter(x, y, c=means, cmap="cividis", edgecolors="#333333", linewidths=0.5, s=36)
        figure.colorbar(points, ax=ax, label=style.on_two_lines(metric_label))
    ax.set_ylabel(down.name)
    return Picture(name, caption, figure)


def _curves(study: Study) -> Iterator[Picture]:
    """Training and validation loss, and the excess where there is an oracle, against optimizer steps."""
    runs = [result for result in study.collection.results if result.curves]
    apart = not study.standings and bool(gaps.gaps(study))
    # losses of different languages compare nothing, and their limits would fill a panel
    shown = ("val/excess_loss",) if apart else ("train/loss", "val/loss", "val/excess_loss")
    names = [name for name in shown if any(name in each.curves for each in runs)]
    if not names:
        return
    every_group = groups = study.group(runs)
    has_order = len(study.standings) == 1
    if len(groups) > (most := MAX_CELLS if apart else MAX_CURVES):  # the best few, in the order of their values
        best = {study.name(group) for group in (study.ranked if has_order else groups)[:most]}
        groups = [group for group in groups if study.name(group) in best]
    styles = style.line_styles(len(groups), ordered=len(study.axes) == 1 and study.axes[0].numeric and len(groups) > 3)
    figure, panels = style.new_figure(WIDTH, 3.1, len(names))
    references = {"val/oracle_loss": (LIMIT, "--")} | {f"val/{kind}_loss": look for kind, look in COUNTED.items()}
    for ax, name in zip(panels, names, strict=True):
        pairs = zip(groups, styles, strict=True)
        curves = [(group, look, each.curves.get(name, [])) for group, look in pairs for each in group.results]
        for group, (colour, marker), curve in curves:
            if points := [(step, value) for step, value in curve if math.isfinite(value)]:
                last = len(points) - 1
                # markers tell the lines apart in grey; at every point of a long curve they would hide it
                at = list(range(last + 1)) if last < 12 else [round(last * part / 6) for part in range(1, 7)]
                line: Any = {"color": colour, "linewidth": 0.9, "marker": marker, "markersize": 3.5, "markevery": at}
                ax.plot(*style.columns(points), **line, label=style.shortened(study.name(group), 60))
        if name == "val/loss":
            for column, (words, line) in references.items():
                _draw_levels(ax, column, groups, styles, words, line)
        if name == "val/excess_loss" and all(value > 0 for *_, curve in curves for _, value in curve):
            style.set_log_scale(ax, "y", (1, 2, 5))
        ax.set_title(label(name, study.per).replace(" (", "\n("))
        ax.set_xlabel("optimizer steps")
        ax.locator_params(axis="x", nbins=5)
    style.add_legend(figure, panels)
    has_oracle = any(math.isfinite(result.value("val/oracle_loss")) for result in study.collection.complete)
    dashed = "; dashed, the best possible loss" if has_oracle and not apart else ""
    if not apart and any("val/unigram_loss" in each.curves for each in runs):
        dashed += "; dotted, what counting tokens gives; dashes and dots, what counting pairs of neighbours gives"
    caption = f"Learning curves: a colour is a group, a thin line a run{dashed}."
    if len(groups) < len(every_group):
        caption += f" Of {len(every_group)} groups, the {'best' if has_order else 'first'} {len(groups)} are shown."
    yield Picture("learning_curves", caption, figure)


def _draw_levels(
    ax: Any, column: str, groups: Sequence[Group], styles: Sequence[style.LineStyle], name: str, line: str
) -> None:
    """What a loss can be compared with: one level where all groups have the same, else one in the style of each group."""
    ends = [[curve[-1][1] for each in group.results if (curve := each.curves.get(column))] for group in groups]
    levels = [(found.mean, look) for values, look in zip(ends, styles, strict=True) if (found := interval(values))]
    different = {round(level, 9) for level, _ in levels}
    if len(different) == 1:
        style.draw_level(ax, different.pop(), line=line, name=name)
    elif different:
        for level, look in levels:
            style.draw_level(ax, level, look, linewidth=1.0, line=line)
        ax.plot([], [], linestyle=line, linewidth=1.0, color=LIMIT_COLOUR, label=f"{name}, by colour and mark")
