"""All figures of a report: a metric against what was swept, evaluation conditions, pairs of keys, learning curves."""

import itertools

from mlm_lightning.report.figures.by_key import draw_by_key
from mlm_lightning.report.figures.conditions import draw_conditions
from mlm_lightning.report.figures.curves import draw_curves
from mlm_lightning.report.figures.pairs import draw_pair
from mlm_lightning.report.figures.style import Picture, style
from mlm_lightning.report.study import Study

MAX_PAIRS = 6


def draw(study: Study) -> list[Picture]:
    """Those that a study has the data for."""
    pictures: list[Picture] = []
    with style():
        if study.ranked:
            if len(study.groups) > 2 or len(study.groups) < len(study.complete):  # of two runs, a table says it
                pictures += [draw_by_key(study, axis) for axis in study.axes]
            pictures += draw_conditions(study)
            pairs = itertools.combinations(study.axes, 2)
            pictures += [draw_pair(study, *pair) for pair in itertools.islice(pairs, MAX_PAIRS)]
        pictures += draw_curves(study)
    return pictures
