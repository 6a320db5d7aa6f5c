"""Each language beside its own optimum: what is left of the gap between the unigram's loss and the best possible one."""

from pathlib import Path

import pytest
from made_runs import make_run

from mlm_lightning.report.answer import answer
from mlm_lightning.report.figures import draw
from mlm_lightning.report.gaps import gaps, table
from mlm_lightning.report.learned import left, share_left
from mlm_lightning.report.results import collect
from mlm_lightning.report.study import study

LANGUAGES = {"hmm.HMMSource": (1.0, 2.0), "uniform.UniformSource": (2.0794, 2.0795), "tree.TreeSource": (0.9, 1.4)}
EXCESS = {"hmm.HMMSource": (0.3, 0.5), "uniform.UniformSource": (0.001, 0.001), "tree.TreeSource": (0.01, 0.01)}


def summary(excess: float, optimum: float, unigram: float) -> dict[str, float]:
    losses = {"loss": optimum + excess, "oracle_loss": optimum, "excess_loss": excess, "unigram_loss": unigram}
    return {"steps": 300, "seconds": 10.0, "tokens": 1000} | {f"val/{name}": value for name, value in losses.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, limits in LANGUAGES.items():
        for seed, excess in enumerate(EXCESS[name]):
            settings = {"data._target_": f"mlm_lightning.data.languages.{name}", "seed": seed}
            make_run(tmp_path / "runs" / f"{name}{seed}", settings, summary(excess, *limits))
    return tmp_path / "runs"


def test_shares_are_of_each_languages_own_gap(folder: Path) -> None:
    found = {gap.name: gap for gap in gaps(study(collect([str(folder)])))}
    assert sorted(found) == ["hmm", "tree", "uniform"]
    hmm, tree = found["hmm"].left, found["tree"].left
    assert hmm is not None
    assert hmm.mean == pytest.approx(0.4)
    assert hmm.half == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert tree is not None
    assert tree.mean == pytest.approx(0.02)
    assert tree.half == pytest.approx(0, abs=1e-12)
    assert found["uniform"].left is None  # there is nothing to learn
    assert {row[0]: row[-2] for row in table(list(found.values())).rows}["uniform"] == "nothing to learn"


def test_the_answer_and_the_figure(folder: Path) -> None:
    whole = study(collect([str(folder)]))
    said = answer(whole)[0]
    assert "least is left on tree: 2.0 %" in said
    assert "most on hmm: 40.0 %" in said
    assert "languages" in [picture.name for picture in draw(whole)]


def test_the_best_learned_comes_first_and_what_has_nothing_to_learn_last(folder: Path) -> None:
    assert [row[0] for row in table(gaps(study(collect([str(folder)])))).rows] == ["tree", "hmm", "uniform"]


def test_of_different_languages_the_curves_are_those_of_the_excess(folder: Path) -> None:
    for path in folder.glob("*/metrics.csv"):
        path.write_text("step,train/loss,val/loss,val/excess_loss\n50,1.5,1.4,0.5\n100,1.2,1.1,0.2\n")
    (curves,) = [picture for picture in draw(study(collect([str(folder)]))) if picture.name == "learning_curves"]
    (panel,) = curves.figure.axes
    assert {tuple(line.get_ydata()) for line in panel.get_lines()} == {(0.5, 0.2)}
    assert "dashed" not in curves.caption


def test_along_a_number_the_order_is_its_own(tmp_path: Path) -> None:
    for length, excess in ((8, 0.02), (32, 0.005), (128, 0.06)):
        make_run(tmp_path / "runs" / str(length), {"data.seq_len": length}, summary(excess, 1.1 - length / 1000, 1.4))
    found = study(collect([str(tmp_path / "runs")]))
    assert [gap.name for gap in gaps(found)] == ["data.seq_len=8", "data.seq_len=32", "data.seq_len=128"]
    said = "From data.seq_len=8 to 128 the best possible loss goes from 1.0920 to 0.9720, and the excess over it from 0.0200"
    assert answer(found)[0].startswith(said)


def test_runs_on_the_same_data_have_no_such_table(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        make_run(tmp_path / "runs" / str(rate), {"optim.lr": rate}, summary(0.1, 0.9, 1.4))
    assert gaps(study(collect([str(tmp_path / "runs")]))) == []


@pytest.mark.parametrize(("excess", "share"), [(0.25, 0.5), (-1e-4, -2e-4)])
def test_the_share_of_a_run(excess: float, share: float) -> None:
    found = summary(excess, 0.9, 1.4) | {"val/excess_loss_se": 0.001}
    assert share_left(found) == pytest.approx(share)
    assert left(found) == [f"Of the way from counting tokens (unigram) to the best possible loss, {100 * share:.1f} % is left."]


def test_no_share_where_labels_leak_or_nothing_is_to_be_learned() -> None:
    assert left(summary(-0.5, 0.9, 1.4) | {"val/excess_loss_se": 0.001}) == []
    assert left(summary(0.001, 0.9, 0.9)) == []
    assert left({"val/loss": 1.0}) == []
