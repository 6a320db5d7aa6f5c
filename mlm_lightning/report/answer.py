"""What a study asks and what it has found, in sentences: the first lines of the page and the last ones on the terminal."""

import math

from mlm_lightning.report.metric import describe
from mlm_lightning.report.study import Study
from mlm_lightning.report.tables import number, with_interval


def question(study: Study) -> str:
    """What the runs can answer, in one sentence."""
    words, *_ = describe(study.metric)
    goal = f"{'highest' if study.metric.maximize else 'lowest'} {words}"
    if not study.axes:
        return f"Which {words} does this configuration reach?"
    if study.collection.home is None and len(study.collection.results) == len(study.groups):
        return f"Which of these {len(study.groups)} runs has the {goal}?"
    return f"Which {' and '.join(axis.name for axis in study.axes)} give{'s' * (len(study.axes) == 1)} the {goal}?"


def answer(study: Study) -> list[str]:
    """The best group, its metric, the oracle's limit, and whether other groups' intervals overlap the best one's."""
    if not study.ranked:
        return ["No complete run has it yet."]
    best = study.ranked[0]
    found, limit = best.interval(study.metric), best.limit(study.metric)
    assert found is not None
    *_, unit = describe(study.metric)
    runs = f" (95 % interval, {found.n} seeds)" if found.n > 1 else " (one run: no interval)"
    sentences = [f"{study.name(best)}: {with_interval(found)} {unit}".rstrip() + runs]
    if math.isfinite(limit) and limit != 0:
        sentences.append(f"Best possible (oracle): {number(limit)}; the excess over it is {number(abs(found.mean - limit))}.")
    if study.metric.note:
        sentences.append(f"Compared by {study.metric.name}: {study.metric.note}.")
    others = [(group, other) for group in study.ranked[1:] if (other := group.interval(study.metric)) is not None]
    overlapping = [study.name(group) for group, other in others if other.overlaps(found)]
    if others and found.n == max(other.n for _, other in others) == 1:
        sentences.append("One run a group: how much of the difference is chance can't be told.")
    elif overlapping:
        every = len(overlapping) == len(others) > 1
        share = f"all {len(others)} other groups" if every else f"{len(overlapping)} of {len(others)} other groups"
        names = "; ".join(overlapping[:4]) + ("; …" if len(overlapping) > 4 else "")
        sentences.append(f"Its interval overlaps that of {share} ({names}).")
    elif others:
        sentences.append("No other group's interval overlaps it.")
    return sentences
