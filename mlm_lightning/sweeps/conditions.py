"""Where a sweep changes the task, every finished run is measured under all of its conditions, so that groups can be compared.

    jobs' own conditions        run trained at 0.1    at 0.4
    masking.rate=0.1   ─►  rate_0.10   its summary       measured now, with its final weights
    masking.rate=0.4   ─►  rate_0.40   measured now      its summary

What is measured is kept beside each run (`runs/evaluations.py`), so the same command measures only what is missing.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

from mlm_lightning.config.build import oracle_for
from mlm_lightning.config.located import LAST
from mlm_lightning.config.settings import Node, Settings
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.text.tokenizer.load import TRAIN
from mlm_lightning.errors import UserError, mistakes, one_line
from mlm_lightning.masking import Masking
from mlm_lightning.runs import evaluations
from mlm_lightning.runs.checkpoint import flat
from mlm_lightning.sweeps.jobs import Job
from mlm_lightning.tasks import MLM, Task

log = logging.getLogger(__name__)

_KINDS = ("data._target_", "masking._target_")

MOST = 12
"""Conditions that runs are measured under: a search in an interval makes as many as it has trials."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A frozen masking and the data whose rows it masks, with the seeds of one run."""

    masking: Masking
    data: Node
    eval_seed: int
    task: Task

    @classmethod
    def of(cls, settings: Settings) -> "Asked":
        """What a run is asked by itself."""
        return next(iter(cls.each_of(settings).values()))

    @classmethod
    def each_of(cls, settings: Settings) -> "dict[tuple[str, ...], Asked]":
        """What it is asked under each of its conditions, by their names."""
        sources = {name: node for names, node in settings.sources.items() for name in names}
        return {
            names: cls(masking, sources.get(names[0], settings.data), settings.eval.seed, settings.task)
            for names, masking in settings.maskings.items()
        }

    @cached_property
    def description(self) -> evaluations.Condition:
        return evaluations.condition(self.masking, self.data, self.eval_seed)

    @cached_property
    def key(self) -> str:
        return evaluations.key_of(self.description)

    @cached_property
    def shared_key(self) -> str:
        """The same for runs that differ in seeds alone."""
        return evaluations.key_of(evaluations.without_seeds(self.description))

    def with_seeds_of(self, settings: Settings) -> "Asked":
        """As a run with these settings is asked, on the rows and masks of its seeds."""
        theirs = settings.data.arguments
        seeds = {name: theirs[name] for name in self.data.arguments if name.endswith("seed") and name in theirs}
        data = Node(self.data.target, self.data.arguments | seeds, self.data.trusted)
        return Asked(self.masking, settings.data if data == settings.data else data, settings.eval.seed, self.task)

    @cached_property
    def prepared(self) -> Condition:
        """Raises UserError for data that will not do."""
        with mistakes():
            source = self.data.instance
            source.prepare()
            source.rows("val")
        return Condition(("",), self.masking, source, oracle_for(self.task, source))


def asked_of(jobs: Sequence[Job]) -> dict[str, Asked]:
    """What the runs of a sweep are asked, by what is the same for all seeds; one alone where the sweep changes no task."""
    return {each.shared_key: each for each in (Asked.of(job.settings) for job in jobs)}


def evaluate_all(jobs: Sequence[Job]) -> None:
    """Measures the complete runs of a sweep under all conditions among its jobs, if there are several. What can't be measured
    is said, and left out. An interruption loses the one condition at hand."""
    asked = asked_of(jobs)
    if len(asked) < 2 or len({repr(job.settings.task) for job in jobs}) > 1:  # whose answers are of different kinds
        return
    names = _names(asked, jobs)
    chosen = sorted(asked, key=lambda key: evaluations.natural(names[key]))
    if len(chosen) > MOST:
        chosen = [chosen[round(place * (len(chosen) - 1) / (MOST - 1))] for place in range(MOST)]
    complete = [job for job in jobs if job.run.status == "complete"]
    ours: dict[str, Asked] = {}  # each prepared once
    missing: list[tuple[Job, Asked, str]] = []
    for job in complete:
        theirs = [(names[key], asked[key].with_seeds_of(job.settings)) for key in chosen]
        evaluations.rename(job.run, {each.key: name for name, each in theirs})
        there = evaluations.read(job.run)
        missing += [(job, ours.setdefault(each.key, each), name) for name, each in theirs if each.key not in there]
    unmeasured = [each for each in missing if _in_summary(*each[:2]) is None]
    if unmeasured and _have_other_tokens(asked.values()):
        log.info("no condition is common to all runs, as their data have different tokens: each is measured on its own")
        missing = [each for each in missing if each not in unmeasured]
    elif unmeasured:
        number = f"{len(chosen)} conditions" + (f" (of {len(asked)}, evenly chosen)" if len(chosen) < len(asked) else "")
        known = len(complete) * len(chosen) - len(unmeasured)
        log.info(
            "evaluating %d runs under %s, as the sweep changes the task (%d results are known)", len(complete), number, known
        )
    not_common: set[str] = set()  # what one run can't be asked compares no others
    for job, each, name in missing:
        if name in not_common and _in_summary(job, each) is None:
            continue
        try:
            _measure(job, each, name)
        except UserError as error:
            not_common.add(name)
            log.info("%s is no common condition: %s can't be evaluated there: %s", name, job.difference, one_line(error))
        except Exception as error:  # a run that can't be measured costs no other its result
            log.warning("%s: not evaluated at %s: %s: %s", job.difference, name, type(error).__name__, one_line(error))


def _have_other_tokens(asked: Iterable[Asked]) -> bool:
    """Whether what some are trained on is not written in the tokens of the others, as are different languages."""
    try:
        first, *others = (each.prepared.source.vocab for each in asked)
    except UserError:  # it is said where one is measured
        return False
    return not all(vocab.has_tokens_of(first) for vocab in others)


def _measure(job: Job, asked: Asked, name: str) -> None:
    """Measures one run under one condition, or takes what its last validation has measured, and keeps it."""
    condition = asked.prepared
    metrics = _in_summary(job, asked)
    if metrics is None:
        from mlm_lightning.training.evaluate import evaluate  # Lightning, which a sweep that has all results does without

        # of what this run is trained on
        ngrams = condition.source.ngrams(job.run.manifest.get("data") or "") if isinstance(asked.task, MLM) else None
        found = evaluate(job.run.checkpoints / LAST, job.settings, [replace(condition, ngrams=ngrams)], trust=True)
        metrics = {metric: value for metric, value in found.items() if "/" in metric}
    evaluations.add(job.run, name, asked.description, condition.source.fingerprint(), metrics)


def _in_summary(job: Job, asked: Asked) -> dict[str, float] | None:
    """What a run's summary says of a condition: of its own, and those of eval.mask_rates and eval.data. None if it has none."""
    summary, settings = job.run.summary or {}, job.settings
    further = [f"_{name}" for every in settings.maskings for name in every if name]
    plain = [metric for metric in summary if metric.startswith("val/") and not metric.endswith(tuple(further))]
    for (name, *_), each in Asked.each_of(settings).items():
        own_tokens = each.data is settings.data or each.data.arguments.get("tokenizer") != TRAIN
        if own_tokens and each.key == asked.key:
            ending = f"_{name}" if name else ""
            return {metric: summary[metric + ending] for metric in plain if metric + ending in summary} or None
    return None


def _names(asked: Mapping[str, Asked], jobs: Sequence[Job]) -> dict[str, str]:
    """A readable name for each condition: the one that eval.mask_rates or eval.data gives it in all runs, else what differs."""
    given = [_given_names(job.settings) for job in jobs]
    flat_ones = {key: flat(evaluations.without_seeds(each.description)) for key, each in asked.items()}
    names: dict[str, str] = {}
    for key, one in flat_ones.items():
        common = set.intersection(*(each.get(key, set()) for each in given))
        alike = [other for other in flat_ones.values() if all(other[kind] == one[kind] for kind in _KINDS)]
        kinds = [one[kind].rpartition(".")[2] for kind in _KINDS if len({other[kind] for other in flat_ones.values()}) > 1]
        keys = [each for each in one if each not in _KINDS and len({str(other.get(each)) for other in alike}) > 1]
        words = kinds + [f"{each.rpartition('.')[2]}_{_word(each, one[each])}" for each in sorted(keys)]
        name = min(common, default=",".join(words))
        names[key] = name if name not in names.values() else f"{name},{key[:4]}"
    return names


def _given_names(settings: Settings) -> dict[str, set[str]]:
    """By the shared keys of a run's conditions."""
    found: dict[str, set[str]] = {}
    for names, one in Asked.each_of(settings).items():
        found.setdefault(one.shared_key, set()).update(filter(None, names))
    return found


def _word(key: str, value: Any) -> str:
    if key == "masking.rate" and round(value, 2) == value:
        return f"{value:.2f}"  # as eval.mask_rates names it
    return PurePath(value).name if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
