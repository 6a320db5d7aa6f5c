"""What a study asks and has found, in sentences: the headline, and how sure it is."""

import math
from collections.abc import Sequence

from mlm_lightning.data.ngrams import VERSION
from mlm_lightning.report import gaps, stages
from mlm_lightning.report.compare import Difference, Standing
from mlm_lightning.report.groups import Group
from mlm_lightning.report.learned import leaks, shortfalls
from mlm_lightning.report.metric import Interval, condition_name, describe
from mlm_lightning.report.study import Study
from mlm_lightning.report.tables import number, signed, with_interval

_MOST_LINES, _MOST_NAMES = 8, 3


def question(study: Study) -> str:
    """What the runs can answer, in one sentence."""
    if not study.standings and gaps.gaps(study):
        return f"How close do runs come to the best possible loss of their own {_axes(study)}?"
    words, *_ = describe(study.metric, study.per)
    goal = f"{'highest' if study.metric.maximize else 'lowest'} {words}"
    if not study.axes:
        return f"Which {words} does this configuration reach?"
    if study.collection.home is None and len(study.collection.results) == len(study.groups):
        return f"Which of these {len(study.groups)} runs has the {goal}?"
    return f"Which {_axes(study)} give{'s' * (len(study.axes) == 1)} the {goal}?"


def _axes(study: Study) -> str:
    return " and ".join(axis.name for axis in study.axes)


def _one(study: Study) -> str:
    return _axes(study) if len(study.axes) == 1 else f"combination of {_axes(study)}"


def answer(study: Study) -> list[str]:
    """The headline first: which group is best, under which conditions, or why none is named; then how sure that is."""
    standings = study.standings
    if not study.collection.complete or (study.metrics and not standings):
        return ["No complete run has it yet."]
    if not standings:
        return [*_no_answer(study), *_older_counts(study)]
    lines = [_by_condition(study), *_each_condition(study)] if study.by_condition else _single(study, standings[0])
    summaries = [result.summary for result in study.collection.complete]
    learned = [*_verdicts(study), *gaps.sentences(study), *stages.sentences(study)]
    return [*lines, *learned, *_how_sure(study), *leaks(summaries), *shortfalls(summaries), *_older_counts(study)]


def _verdicts(study: Study) -> list[str]:
    """Of each way of hiding a token: whether it leaks, whether anything is learned, and how close that comes."""
    if not any(axis.key == "masking.hiding" for axis in study.axes):
        return []
    known = [group for group in study.groups if group.measured("val/excess_loss")]
    return [f"{study.name(group)}: {_verdict(group)}." for group in known[: 2 * _MOST_LINES]]


def _verdict(group: Group) -> str:
    excess, limit = group.interval("val/excess_loss"), group.limit("val/loss")
    assert excess is not None
    if group.leaks:
        return (
            f"leaks: {with_interval(Interval(-excess.mean, excess.half, excess.n))} nats a token below the best possible loss"
        )
    close = f"{with_interval(excess)} nats a token above the best possible loss, {number(limit)}"
    chance = math.log(int(group.results[0].settings.get("data.num_symbols", 0)) or 1)  # of guessing
    if not chance:
        return close
    if chance - limit < 1e-6:
        return f"doesn't leak: {close}, and there is nothing to learn"
    share = 1 - excess.mean / (chance - limit)
    return f"learns {share:.1%} of what there is to learn from guessing on: {close}"


def _older_counts(study: Study) -> list[str]:
    """That some runs stand beside counts of an earlier version; empty where all have the same."""
    counted = [result for result in study.collection.complete if "val/bigram_loss" in result.summary]
    older = [result.name for result in counted if result.manifest.get("ngrams", 1) != VERSION]
    if not 0 < len(older) < len(counted):
        return []
    return [
        f"In {len(older)} of {len(counted)} runs val/bigram_loss is that of an earlier version, and has moved since (by less "
        "than 0.001 nats on the shipped languages): mlm evaluate RUN measures it again, resume=never trains the run again "
        f"({_joined(older)})."
    ]


def _no_answer(study: Study) -> list[str]:
    if beside_optimum := gaps.sentences(study):
        return beside_optimum
    tasks = " and ".join(study.tasks)
    remedy = (
        "The same sweep command evaluates its finished runs under all of its conditions; eval.mask_rates and eval.data do so "
        "while a run trains."
    )
    return [
        f"No {_one(study)} is named best: {tasks} changes the task, and no condition is common to all runs.",
        f"Their own losses, and their excess over the oracle, are of different tasks: an easier one looks better. {remedy}",
    ]


def _single(study: Study, standing: Standing) -> list[str]:
    """Of groups that are compared by one number: the best, its limit, and why by this."""
    metric, best = standing.metric, standing.best
    found = best.interval(metric)
    assert found is not None
    *_, unit = describe(metric, study.per)
    runs = f" (95 % interval, {found.n} seeds)" if found.n > 1 else " (one run: no interval)"
    lines = [f"{study.name(best)}: {with_interval(found)} {unit}".rstrip() + runs]
    limit = best.limit(metric)
    if math.isfinite(limit) and limit != 0:
        lines.append(f"Best possible (oracle): {number(limit)}; the excess over it is {number(abs(found.mean - limit))}.")
    if metric.note:
        lines.append(f"Compared by {metric.name}: {metric.note}.")
    if standing.contested and not _no_intervals(study):
        lines.append(f"Not told apart from {_names(study, standing.contested)}.")
    elif standing.differences and not _no_intervals(study):
        lines.append("Told apart from every other group.")
    return lines


def _by_condition(study: Study) -> str:
    """Of groups that are compared under one condition at a time."""
    standings, winner = study.standings, study.winner
    clear = sum(not standing.contested for standing in standings)
    under = f"all {len(standings)} conditions" if len(standings) > 1 else condition_name(standings[0].metric.condition)
    sure = f"told apart from every other group under {clear} of {len(standings)}"
    if winner:
        words, *_ = describe(study.metric, study.per)
        if _no_intervals(study):
            return f"{study.name(winner)} has the lowest {words} under {under}, of one run a group."
        if clear == len(standings):
            return f"{study.name(winner)} is best under {under}, told apart from every other group."
        return f"{study.name(winner)} has the lowest {words} under {under}, but is {sure}."
    names = dict.fromkeys(study.name(standing.best) for standing in standings)
    tail = "" if _no_intervals(study) else f"; the best is {sure}"
    return f"No {_one(study)} is best under {under}: it depends on the condition ({_joined(list(names))}){tail}."


def _each_condition(study: Study) -> list[str]:
    lines = []
    for standing in study.standings[:_MOST_LINES]:
        *_, unit = describe(standing.metric, study.per)
        found = with_interval(standing.best.interval(standing.metric))
        where = condition_name(standing.metric.condition)
        few = [study.name(group) for group, _ in standing.contested]
        among = (
            f"{len(few)} of {len(standing.differences)} others ({_joined(few)})"
            if len(standing.differences) > 1
            else "the other"
        )
        rest = f"; not told apart from {among}" if few else ""
        lines.append(f"At {where}: {study.name(standing.best)}, {found} {unit}{'' if _no_intervals(study) else rest}.")
    if len(study.standings) > _MOST_LINES:
        lines.append(f"… and {len(study.standings) - _MOST_LINES} further conditions.")
    verb = "change" if len(study.tasks) > 1 else "changes"
    why = (
        f"{' and '.join(study.tasks)} {verb} the task, so every run was evaluated, with its final weights, under each condition"
    )
    return [*lines, f"Compared under one condition at a time: {why}, on the same rows and frozen masks."]


def _differences(study: Study) -> list[Difference]:
    return [each for standing in study.standings for each in standing.differences if each]


def _no_intervals(study: Study) -> bool:
    return all(math.isnan(each.half) for each in _differences(study))


def _how_sure(study: Study) -> list[str]:
    """What the intervals of differences are, and what they can't tell."""
    differences = _differences(study)
    if not differences:
        return []
    if _no_intervals(study):
        return ["One run a group (n = 1): no interval, so how much of a difference is chance can't be told."]
    return [f"{pairing(study)} A group is told apart where the 95 % interval (Student’s t) leaves out 0, one comparison each."]


def pairing(study: Study) -> str:
    """Whether differences are those of pairs of runs, and why."""
    if not study.replicates:
        return "Nothing but the groups' keys differs, so runs are compared one to one."
    if all(each.paired for each in _differences(study)):
        pairs = " and ".join(study.replicates)
        how = f"paired by {pairs}: both runs of a pair have its order of rows, masks and (in equal models) initial weights, "
        how += "and are evaluated on the same rows and frozen masks, so that what they share cancels"
    else:
        how = "not paired (Welch’s), as the groups don’t have the same seeds"
    return f"Differences are {how}."


def _names(study: Study, contested: Sequence[tuple[Group, Difference]]) -> str:
    return _joined([f"{study.name(group)} ({signed(each)})" for group, each in contested])


def _joined(names: list[str]) -> str:
    more = f"; and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return "; ".join(names[:_MOST_NAMES]) + more
