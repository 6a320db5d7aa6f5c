"""The figures show the runs' numbers: means, intervals, the oracle's limit, the cells of a heat map."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from made_runs import ORACLE, make_grid, make_rates, make_run, make_sweep, summary_of

from mlm_lightning.report.figures import draw
from mlm_lightning.report.metric import interval, label
from mlm_lightning.report.results import collect
from mlm_lightning.report.study import Study, study
from mlm_lightning.report.style import COUNTED, LIMIT, Picture, contrast, text_colour


def drawn(folder: Path, metric: str | None = None) -> tuple[Study, dict[str, Picture]]:
    found = study(collect([str(folder)]), metric)
    return found, {picture.name: picture for picture in draw(found)}


def line(ax: Any, name: str) -> tuple[list[float], list[float]]:
    (found,) = (each for each in ax.get_lines() if each.get_label() == name)
    return list(map(float, found.get_xdata())), list(map(float, found.get_ydata()))


def panel_bars(ax: Any) -> list[tuple[float, float, float]]:
    """x, low and high of each error bar."""
    (bars,) = (each.lines[2][0] for each in ax.containers)
    return [(low[0], low[1], high[1]) for low, high in bars.get_segments()]


def cells(picture: Picture) -> np.ndarray:
    return np.ma.filled(picture.figure.axes[0].images[0].get_array(), np.nan)


def test_the_line_joins_the_means_and_the_bars_are_the_intervals(tmp_path: Path) -> None:
    losses = make_grid(tmp_path, "optim.lr", [0.001, 0.01, 0.1], seeds=[0, 1, 2])
    _, pictures = drawn(tmp_path)
    ax = pictures["by_optim.lr"].figure.axes[0]
    expected = [interval([losses[lr, seed] for seed in (0, 1, 2)]) for lr in (0.001, 0.01, 0.1)]
    xs, means = line(ax, "mean and interval")
    assert xs == [0.001, 0.01, 0.1]
    assert means == pytest.approx([each.mean for each in expected if each])
    ends = [(x, each.mean - each.half, each.mean + each.half) for x, each in zip(xs, expected, strict=True) if each]
    assert panel_bars(ax) == [pytest.approx(each) for each in ends]
    assert ax.get_xscale() == "log"
    assert ax.get_ylabel().replace("\n", " ") == "validation loss (nats a token)"


def test_many_points_have_a_band(tmp_path: Path) -> None:
    lrs = [round(0.1 * n, 1) for n in range(1, 11)]
    losses = make_grid(tmp_path, "optim.lr", lrs, seeds=[0, 1, 2])
    ax = drawn(tmp_path)[1]["by_optim.lr"].figure.axes[0]
    band = ax.collections[0].get_paths()[0].vertices
    for lr in lrs:
        each = interval([losses[lr, seed] for seed in (0, 1, 2)])
        ys = band[np.isclose(band[:, 0], lr), 1]
        assert each is not None
        assert (ys.min(), ys.max()) == pytest.approx((each.mean - each.half, each.mean + each.half))


def test_differences_to_the_best_are_bars_under_each_condition(tmp_path: Path) -> None:
    losses = {(0.1, 0): (0.70, 1.20), (0.1, 1): (0.71, 1.22), (0.4, 0): (0.80, 1.10), (0.4, 1): (0.82, 1.11)}
    make_rates(tmp_path, {run: {"rate_0.10": low, "rate_0.40": high} for run, (low, high) in losses.items()})
    found, pictures = drawn(tmp_path)
    panels = pictures["differences"].figure.axes
    assert [panel.get_title() for panel in panels] == ["mask rate 0.10", "mask rate 0.40"]
    for panel, standing in zip(panels, found.standings, strict=True):
        (each,) = standing.differences
        assert each is not None
        (segment,) = panel.containers[0].lines[2][0].get_segments()
        assert sorted(segment[:, 0]) == pytest.approx([each.mean - each.half, each.mean + each.half])
    assert "paired" in pictures["differences"].caption


def test_the_text_of_a_cell_stands_out_from_its_colour() -> None:
    for colour in matplotlib.colormaps["cividis"](np.linspace(0, 1, 256)):
        # WCAG 2: 4.5 is what small text needs
        assert contrast(colour, text_colour(colour)) >= 4.5


def test_a_common_limit_is_one_dashed_line(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.001, 0.01])
    _, pictures = drawn(tmp_path)
    for name, ax in (("by_optim.lr", 0), ("learning_curves", 1)):
        panel = pictures[name].figure.axes[ax]
        assert set(line(panel, LIMIT)[1]) == {ORACLE}
        assert [each.get_linestyle() for each in panel.get_lines() if each.get_label() == LIMIT] == ["--"]


def test_a_limit_that_differs_is_drawn_at_each_point(tmp_path: Path) -> None:
    limits = {0: 0.5, 1: 0.7, 2: 0.95}
    for level, limit in limits.items():
        make_run(tmp_path / str(level), {"data.filter_level": level}, summary_of(1.0, limit))
    _, pictures = drawn(tmp_path, "val/loss")
    xs, ys = line(pictures["by_data.filter_level"].figure.axes[0], LIMIT)
    assert dict(zip(xs, ys, strict=True)) == limits


def test_without_an_oracle_there_is_no_limit(tmp_path: Path) -> None:
    for n in range(3):
        make_run(tmp_path / str(n), {"optim.lr": 0.1 * (n + 1)}, summary_of(1.0, None), metrics_csv="step,val/loss\n5,1.0\n")
    _, pictures = drawn(tmp_path)
    texts = [each.get_label() for picture in pictures.values() for ax in picture.figure.axes for each in ax.get_lines()]
    assert LIMIT not in texts
    assert "best possible" not in pictures["learning_curves"].caption


def make_text_runs(parent: Path, bigram: float, slope: float = 0.0) -> None:
    for n in range(3):
        counted = {"val/unigram_loss": 6.5, "val/bigram_loss": bigram + slope * n}
        lines = f"step,val/loss,val/unigram_loss,val/bigram_loss\n5,6.0,6.5,{bigram + slope * n}\n"
        make_run(parent / str(n), {"optim.lr": 0.1 * (n + 1)}, summary_of(4.0 + n, None) | counted, metrics_csv=lines)


def test_what_counting_gives_is_drawn_beside_the_loss(tmp_path: Path) -> None:
    make_text_runs(tmp_path, 5.0)
    _, pictures = drawn(tmp_path, "val/loss")
    lines = [("learning_curves", "unigram", 6.5), ("learning_curves", "bigram", 5.0), ("by_optim.lr", "bigram", 5.0)]
    for name, kind, level in lines:
        panel, (words, looks) = pictures[name].figure.axes[0], COUNTED[kind]
        assert set(line(panel, words)[1]) == {level}
        assert [each.get_linestyle() for each in panel.get_lines() if each.get_label() == words] == [looks]
    assert "dotted, what counting tokens gives" in pictures["learning_curves"].caption


def test_what_counting_gives_is_left_out_where_it_would_hide_how_groups_differ(tmp_path: Path) -> None:
    make_text_runs(tmp_path, 20.0)
    _, pictures = drawn(tmp_path, "val/loss")
    ax = pictures["by_optim.lr"].figure.axes[0]
    assert COUNTED["bigram"][0] not in [each.get_label() for each in ax.get_lines()]
    assert ax.get_ylim()[1] < 10


def test_counts_that_differ_are_drawn_at_each_point(tmp_path: Path) -> None:
    make_text_runs(tmp_path, 4.5, slope=0.5)
    _, pictures = drawn(tmp_path, "val/loss")
    assert line(pictures["by_optim.lr"].figure.axes[0], COUNTED["bigram"][0])[1] == [4.5, 5.0, 5.5]
    assert f"{COUNTED['bigram'][0]}, by colour and mark" in [
        each.get_label() for each in pictures["learning_curves"].figure.axes[0].get_lines()
    ]


def test_categories_stand_apart_with_bars(tmp_path: Path) -> None:
    targets = [f"mlm_lightning.masking.{name}" for name in ("Bernoulli", "Single", "Span")]
    make_grid(tmp_path, "masking._target_", targets)
    _, pictures = drawn(tmp_path, "val/loss")
    ax = pictures["by_masking"].figure.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["bernoulli", "single", "span"]
    assert list(ax.containers[0].lines[0].get_ydata()) == pytest.approx([1.005, 1.105, 1.205])


def test_the_heat_map_of_two_keys_has_the_means_in_its_cells(tmp_path: Path) -> None:
    expected = np.zeros((2, 3))
    for (row, layers), (column, lr) in itertools.product(enumerate((1, 2)), enumerate((0.001, 0.01, 0.1))):
        for seed in (0, 1):
            loss = 1.0 + row * 0.1 + column * 0.01 + seed * 0.002
            expected[row, column] += loss / 2
            make_run(
                tmp_path / f"{layers}{lr}{seed}", {"model.num_layers": layers, "optim.lr": lr, "seed": seed}, summary_of(loss)
            )
    _, pictures = drawn(tmp_path)
    picture = pictures["pair_optim.lr_model.num_layers"]
    assert cells(picture) == pytest.approx(expected)
    # each of two seeds, 0.002 apart: 12.706 * 0.001
    assert {text.get_text() for text in picture.figure.axes[0].texts} == {f"{each:.3f}\n± 0.013" for each in expected.flat}
    assert {"by_optim.lr", "by_model.num_layers", "learning_curves"} <= set(pictures)
    for value, xs in (("1", [0.001, 0.01, 0.1]), ("2", [0.001, 0.01, 0.1])):
        assert line(pictures["by_optim.lr"].figure.axes[0], value)[0] == xs


def test_pairs_that_fill_no_grid_are_points(tmp_path: Path) -> None:
    for n in range(12):  # a random search
        make_run(tmp_path / str(n), {"optim.lr": 0.001 * 1.7**n, "model.d_model": 32 + n * n % 17}, summary_of(1.0 + n / 10))
    _, pictures = drawn(tmp_path)
    (pair,) = (picture for name, picture in pictures.items() if name.startswith("pair_"))
    assert pair.png
    labels = [text.get_text() for text in pair.figure.axes[0].get_xticklabels()]
    assert {"0.001", "0.01"} <= set(labels)  # no formula
    points = pair.figure.axes[0].collections[0]
    assert len(points.get_offsets()) == 12
    one_key = pictures["by_optim.lr"]
    assert one_key.figure.axes[0].get_xscale() == "log"
    assert "line" not in one_key.caption  # through unrelated runs it would be noise
    assert sorted(points.get_array()) == pytest.approx([1.0 + n / 10 for n in range(12)])


def test_conditions_are_lines_with_their_limits_and_a_heat_map_of_the_excess(tmp_path: Path) -> None:
    oracles = {"k0": 0.8, "k1": 0.9, "k2": 1.0}
    for level in range(3):
        for seed in (0, 1):
            losses = {name: limit + 0.1 * abs(level - int(name[1])) + 0.02 * seed for name, limit in oracles.items()}
            summary = summary_of(losses[f"k{level}"], oracles[f"k{level}"], **losses)
            for name, limit in oracles.items():
                summary |= {f"val/oracle_loss_{name}": limit, f"val/excess_loss_{name}": losses[name] - limit}
            settings = {
                "data.filter_level": level,
                "seed": seed,
                "eval.data": {f"k{at}": {"filter_level": at} for at in range(3)},
            }
            make_run(tmp_path / f"{level}{seed}", settings, summary)
    _, pictures = drawn(tmp_path)
    expected = [[0.1 * abs(level - at) + 0.01 for at in range(3)] for level in range(3)]
    assert cells(pictures["conditions_heat"]) == pytest.approx(np.array(expected))
    loss, excess = pictures["conditions"].figure.axes
    for at, (name, limit) in enumerate(oracles.items()):
        assert line(loss, name)[1] == pytest.approx([row[at] + limit for row in expected])
        assert line(excess, name)[1] == pytest.approx([row[at] for row in expected])
    dashed = {float(each.get_ydata()[0]) for each in loss.get_lines() if each.get_linestyle() == "--" and len(each.get_ydata())}
    assert dashed == set(oracles.values())


def test_curves_are_those_of_metrics_csv_also_of_a_run_that_goes_on(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"optim.lr": 0.1}, summary_of(1.0))
    make_run(tmp_path / "b", {"optim.lr": 0.2}, metrics_csv="step,train/loss,val/loss\n10,2.0,\n20,1.5,1.75\n30,1.")
    _, pictures = drawn(tmp_path)
    assert set(pictures) == {"learning_curves"}
    train, validation = pictures["learning_curves"].figure.axes
    assert line(train, "optim.lr=0.2") == ([10, 20], [2.0, 1.5])
    assert line(train, "optim.lr=0.1") == ([50, 100], [1.5, 1.25])
    assert line(validation, "optim.lr=0.2") == ([20], [1.75])
    assert train.get_xlabel() == "optimizer steps"


def test_many_groups_leave_the_best_curves(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [n / 100 for n in range(1, 16)], seeds=[0])
    found, pictures = drawn(tmp_path)
    names = {each.get_label() for each in pictures["learning_curves"].figure.axes[0].get_lines()}
    assert names == {found.name(group) for group in found.ranked[:10]}
    assert "Of 15 groups" in pictures["learning_curves"].caption


def test_three_keys_show_the_best_of_the_others(tmp_path: Path) -> None:
    losses = {}
    for lr, layers, width in itertools.product((0.1, 0.2), (1, 2), (16, 32)):
        losses[lr, layers, width] = loss = 1.0 + lr * layers + width / 100
        settings = {"optim.lr": lr, "model.num_layers": layers, "model.d_model": width}
        make_run(tmp_path / f"{lr}{layers}{width}", settings, summary_of(loss))
    _, pictures = drawn(tmp_path)
    assert sum(name.startswith("pair_") for name in pictures) == 3
    xs, ys = line(pictures["by_optim.lr"].figure.axes[0], "best of the other keys")
    assert ys == pytest.approx([min(loss for (lr, *_), loss in losses.items() if lr == x) for x in xs])


def test_a_dollar_and_other_scripts_are_text(tmp_path: Path) -> None:
    make_grid(tmp_path, "data.path", ["$x_1$", "a$b^{", "文字"])
    for picture in drawn(tmp_path)[1].values():
        assert picture.png.startswith(b"\x89PNG")


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.2]])
def test_numbers_that_are_none_stop_nothing(tmp_path: Path, values: list[float]) -> None:
    for n, value in enumerate(values):
        broken = {"val/loss": float("nan"), "val/perplexity": float("inf"), "val/loss_k0": float("nan"), "val/loss_k1": 1e300}
        make_run(tmp_path / str(n), {"optim.lr": value}, broken, metrics_csv="step,train/loss,val/loss\n1,nan,inf\n")
    make_sweep(tmp_path, [(str(n), []) for n in range(len(values))], ["optim.lr"])
    for picture in drawn(tmp_path)[1].values():
        assert picture.png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("val/loss", "validation loss (nats a token)"),
        ("val/loss_rate_0.30", "validation loss, mask rate 0.30 (nats a token)"),
        ("val/excess_loss_k1", "excess over the oracle, k1 (nats a token)"),
        ("best/val/loss", "best validation loss (nats a token)"),
        ("val/accuracy", "validation accuracy"),
        ("tokens_per_second", "tokens_per_second"),
    ],
)
def test_axes_name_the_quantity_and_its_unit(metric: str, words: str) -> None:
    assert label(metric) == words
