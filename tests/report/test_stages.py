"""When a model is closest to which exact posterior: from the curves to a figure and a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import curves, run_of, train
from made_runs import make_run, summary_of

from mlm_lightning.report.answer import answer
from mlm_lightning.report.figures import draw
from mlm_lightning.report.results import collect, read_result
from mlm_lightning.report.stages import levels_of, passed
from mlm_lightning.report.study import study
from mlm_lightning.report.style import Picture

NAMES = ["k2", "k1", "k0 (its own)"]
STEPS = [1, 10, 100, 1000]
ORACLES = {"": 0.9, "_under_k1": 1.0, "_under_k2": 1.2}
IN_TURN = {"_under_k2": [0.02, 0.01, 0.12, 0.14], "_under_k1": [0.1, 0.09, 0.01, 0.05], "": [0.15, 0.14, 0.06, 0.002]}
STUCK = {"_under_k2": [0.02, 0.01, 0.01, 0.01], "_under_k1": [0.1, 0.09, 0.08, 0.08], "": [0.15, 0.14, 0.13, 0.13]}
TIED = IN_TURN | {"_under_k1": [0.1, 0.09, 0.05, 0.01]}
BACK = IN_TURN | {"_under_k2": [0.02, 0.01, 0.12, 0.001], "_under_k1": [0.1, 0.09, 0.01, 0.05]}


def make(folder: Path, kl: dict[str, list[float]], settings: dict[str, Any] | None = None) -> Path:
    names = [f"val/{kind}{ending}" for ending in kl for kind in ("kl_to_oracle", "oracle_loss")]
    lines = [",".join(["step", "val/loss", *names])]
    for place, step in enumerate(STEPS):
        values = [number for ending, curve in kl.items() for number in (curve[place], ORACLES[ending])]
        lines.append(",".join(map(str, [step, 1.3 - 0.1 * place, *values])))
    return make_run(folder, settings, summary_of(1.0), metrics_csv="\n".join([*lines, ""]))


def drawn(folder: Path) -> dict[str, Picture]:
    return {picture.name: picture for picture in draw(study(collect([str(folder)])))}


def told(folder: Path) -> list[str]:
    return [each for each in answer(study(collect([str(folder)]))) if "exact posterior" in each]


def test_levels_stand_in_the_order_of_what_their_oracles_lose(tmp_path: Path) -> None:
    levels = levels_of(read_result(make(tmp_path / "run", dict(reversed(IN_TURN.items())))))
    assert [level.name for level in levels] == NAMES
    assert [level.oracle_loss for level in levels] == [1.2, 1.0, 0.9]
    assert [level.closest for level in levels] == [10, 100, 1000]


@pytest.mark.parametrize(
    ("kl", "steps", "order", "end"),
    [
        (IN_TURN, [10, 100, 1000], "one level after the other", "k0 (its own)"),
        (STUCK, [10, 100, 100], "in the order of the levels, where those of one step are not told apart", "k2"),
        (TIED, [10, 1000, 1000], "in the order of the levels, where those of one step are not told apart", "k0 (its own)"),
        (BACK, [1000, 100, 1000], "not in the order of the levels", "k2"),
    ],
)
def test_the_order_of_the_levels_is_told(
    tmp_path: Path, kl: dict[str, list[float]], steps: list[int], order: str, end: str
) -> None:
    (sentence,) = told(make(tmp_path / "run", kl))
    places = [sentence.index(f"{name} at step {step:,} (KL ") for name, step in zip(NAMES, steps, strict=True)]
    assert places == sorted(places)
    assert f": {order}. In the end it is nearest to {end}." in sentence


@pytest.mark.parametrize(
    ("losses", "step"),
    [([1.3, 1.1, 0.9, 0.8], 100), ([1.3, 0.9, 1.1, 0.8], 1000), ([1.3, 1.2, 1.1, 1.0], None), ([0.9] * 4, 1)],
)
def test_a_level_is_passed_where_the_loss_stays_below_its_posteriors(
    tmp_path: Path, losses: list[float], step: int | None
) -> None:
    result = read_result(make(tmp_path / "run", IN_TURN))
    result.curves["val/loss"] = list(zip(STEPS, losses, strict=True))
    assert passed(result, levels_of(result)[1]) == step  # which loses 1.0


def test_the_sentence_tells_which_levels_are_passed(tmp_path: Path) -> None:
    (sentence,) = told(make(tmp_path / "run", IN_TURN))  # losses 1.3, 1.2, 1.1, 1.0; the oracles lose 1.2, 1.0, 0.9
    assert sentence.endswith("Its loss is below what these posteriors lose: k2 from step 100 on.")


def test_the_figure_has_a_line_and_a_mark_for_each_level_and_their_losses(tmp_path: Path) -> None:
    distance, loss = drawn(make(tmp_path / "run", IN_TURN))["stages"].figure.axes
    assert (distance.get_xscale(), loss.get_xscale()) == ("log", "log")
    lines = [(list(each.get_xdata()), list(each.get_ydata())) for each in distance.get_lines()]
    assert [xy for xy in lines if len(xy[0]) > 1] == [(STEPS, IN_TURN[ending]) for ending in ("_under_k2", "_under_k1", "")]
    assert [xy for xy in lines if len(xy[0]) == 1] == [([10], [0.01]), ([100], [0.01]), ([1000], [0.002])]
    dashed = [each for each in loss.get_lines() if each.get_linestyle() == "--"]
    assert ([100], [pytest.approx(1.1)]) in [(list(each.get_xdata()), list(each.get_ydata())) for each in loss.get_lines()]
    assert [each.get_ydata()[0] for each in dashed] == [1.2, 1.0, 0.9]
    # a level's line and what its oracle loses have one colour
    assert [each.get_color() for each in dashed] == [each.get_color() for each in distance.get_lines()[::2]]


def test_runs_of_one_group_share_a_figure_and_have_a_sentence_each(tmp_path: Path) -> None:
    for seed in (0, 1):
        make(tmp_path / f"seed{seed}", IN_TURN, {"seed": seed})
    distance, _ = drawn(tmp_path)["stages"].figure.axes
    assert len(distance.get_lines()) == 2 * 2 * 3
    assert [each.partition(":")[0] for each in told(tmp_path)] == ["seed0", "seed1"]


def test_groups_have_a_figure_each(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        make(tmp_path / str(lr), IN_TURN, {"optim.lr": lr})
    pictures = drawn(tmp_path)
    assert "of optim.lr=0.1" in pictures["stages_0"].caption
    assert "of optim.lr=0.2" in pictures["stages_1"].caption


@pytest.mark.parametrize(
    "kl", [{"": IN_TURN[""]}, {"_under_k1": IN_TURN["_under_k1"]}, {"": [0.1] * 4, "_under_k1": [float("nan")] * 4}]
)
def test_without_something_to_compare_there_is_neither(tmp_path: Path, kl: dict[str, list[float]]) -> None:
    folder = make(tmp_path / "run", kl)
    assert "stages" not in drawn(folder)
    assert told(folder) == []


def test_of_a_real_run(toy: Callable[..., dict[str, Any]]) -> None:
    """What a run writes is what the figure reads."""
    config = toy("eval.oracles={k1: {filter_level: 1}, k2: {filter_level: 2}}", "trainer.val_steps=log", "trainer.max_steps=10")
    summary, folder = train(config), run_of(config).folder
    found = curves(run_of(config))
    levels = {level.name: level for level in levels_of(read_result(folder))}
    assert levels.keys() == {"k0 (its own)", "k1", "k2"}
    for name, ending in (("k1", "_under_k1"), ("k2", "_under_k2"), ("k0 (its own)", "")):
        assert [pytest.approx(each) for each in levels[name].kl.items()] == found[f"val/kl_to_oracle{ending}"]
        assert levels[name].oracle_loss == pytest.approx(summary[f"val/oracle_loss{ending}"])
    (sentence,) = told(folder)
    nearest = min(levels.values(), key=lambda level: level.kl[10])
    assert f"it is nearest to {nearest.name}." in sentence
    assert nearest.kl[10] == min(summary[f"val/kl_to_oracle{ending}"] for ending in ("", "_under_k1", "_under_k2"))
    assert "stages" in drawn(folder)
