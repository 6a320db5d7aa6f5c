import inspect
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from joints import periodic

from mlm_lightning.data.languages.periodic import PeriodicSource
from mlm_lightning.errors import ConfigError
from mlm_lightning.testing import check_calibration, check_chain_rule, check_language

CONF = Path(__file__).parents[3] / "conf" / "data"
FIRST_ROWS = [
    "2425005652424250051514222500515202412005152424250051024242500515",
    "5672321567242156326015672453567242156724215672421567242156014215",
]
SMALL: list[dict[str, Any]] = [
    {"num_symbols": 2, "min_period": 2, "max_period": 4, "flip": 0.2, "seq_len": 8},
    {"num_symbols": 2, "min_period": 1, "max_period": 3, "flip": 0.0, "seq_len": 7},
    {"num_symbols": 3, "min_period": 2, "max_period": 2, "flip": 0.3, "seq_len": 5},
    {"num_symbols": 3, "min_period": 1, "max_period": 4, "flip": 1.0, "seq_len": 4},
    {"num_symbols": 4, "min_period": 1, "max_period": 1, "flip": 0.5, "seq_len": 1},
]
LARGE: list[dict[str, Any]] = [
    {"num_symbols": 8, "min_period": 2, "max_period": 64, "flip": 0.1, "seq_len": 4096},
    {"num_symbols": 8, "min_period": 2, "max_period": 64, "flip": 0.0, "seq_len": 4096},
    {"num_symbols": 2, "min_period": 1, "max_period": 100, "flip": 0.9, "seq_len": 4096},
    {"num_symbols": 8, "min_period": 3, "max_period": 5, "flip": 1e-12, "seq_len": 4096},
    {"num_symbols": 64, "min_period": 300, "max_period": 304, "flip": 0.1, "seq_len": 1024},
]


@pytest.mark.parametrize("small", SMALL)
def test_it_is_a_language_with_its_optimum(small: dict[str, Any]) -> None:
    check_language(PeriodicSource(**small), joint=periodic)


@pytest.mark.slow
@pytest.mark.parametrize("large", LARGE)
def test_nothing_underflows_at_its_largest(large: dict[str, Any]) -> None:
    source = PeriodicSource(**large)
    check_chain_rule(source, num_rows=4, num_hidden=min(12, source.seq_len))
    check_calibration(source, num_rows=64)


@pytest.mark.parametrize("flip", [0.0, 0.1, 1.0])
def test_what_long_rows_cost_beyond_their_pattern_is_the_entropy_rate(flip: float) -> None:
    """H(row) is above that of flips alone, by at most that of period and pattern."""
    source = PeriodicSource(num_symbols=4, min_period=2, max_period=6, flip=flip, seq_len=2048)
    tokens_BL = source.rows("val")[torch.arange(400)]
    cost_B = -source.oracle().log_likelihood(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))
    over_B = cost_B - 2048 * source.entropy_rate()
    spread = 4 * over_B.std() / 20
    assert -spread - 1e-6 < over_B.mean() < log(5) + 4 * log(4) + spread + 1e-6


def test_without_flips_rows_repeat_with_their_period() -> None:
    source = PeriodicSource(min_period=3, max_period=7, flip=0.0)
    rows, index_B = source.rows("train"), torch.arange(500)
    tokens_BL, period_B = rows[index_B], 3 + rows.latents(index_B)["period"][:, 0]
    assert period_B.unique().tolist() == [3, 4, 5, 6, 7]
    for period in period_B.unique().tolist():
        mine_BL = tokens_BL[period_B == period]
        assert torch.equal(mine_BL[:, period:], mine_BL[:, :-period])


def test_the_period_of_a_long_row_is_known_and_named() -> None:
    source = PeriodicSource(min_period=5, max_period=9, flip=0.2, seq_len=512)
    rows, index_B = source.rows("val"), torch.arange(100)
    half_BL = torch.rand(100, 512, generator=torch.Generator().manual_seed(0)) < 0.5
    probs_B1R = source.oracle().latents(rows[index_B], half_BL)["period"]
    assert torch.equal(probs_B1R.argmax(2), rows.latents(index_B)["period"])
    assert source.classes("period", 0) == ("5", "6", "7", "8", "9")
    assert source.latent_sizes() == {"period": (1, 5)}


@pytest.mark.parametrize("flip", [0.0, 0.3])
def test_a_row_drawn_from_nothing_is_that_of_its_key(flip: float) -> None:
    source = PeriodicSource(flip=flip, min_period=1)
    keys_B = torch.arange(200) * 7919
    nothing_BL = torch.zeros(200, 64, dtype=torch.bool)
    assert torch.equal(source.oracle().sample(nothing_BL.long(), nothing_BL, keys_B), source.draw(keys_B))


def test_first_rows() -> None:
    rows = PeriodicSource().rows("train")
    tokens = rows[torch.arange(2)].tolist()
    assert ["".join(f"{token:x}" for token in row) for row in tokens] == FIRST_ROWS
    assert rows.latents(torch.arange(2))["period"].tolist() == [[9], [5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_period": 13}, r"data\.min_period=13: is above data\.max_period=12; use data\.min_period=12 or less"),
        ({"max_period": 65}, r"data\.max_period=65: .*data\.seq_len=64.*; use data\.max_period=64 or less"),
        ({"min_period": 0}, r"data\.min_period=0: .* at least 1; "),
        ({"flip": 1.5}, r"data\.flip=1\.5: .* from 0 to 1; "),
        ({"flip": float("nan")}, r"data\.flip=nan: "),
        ({"seq_len": 4096, "max_period": 4096}, r"data\.max_period=4096: .*16777216.*; use data\.max_period=2047 or less"),
    ],
)
def test_impossible_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PeriodicSource(**arguments)


@pytest.mark.parametrize("min_period", [1, 2, 1000])
def test_the_largest_period_that_is_named_fits(min_period: int) -> None:
    with pytest.raises(ConfigError) as refused:
        PeriodicSource(num_symbols=16, min_period=min_period, max_period=60_000, seq_len=60_000)
    largest = int(refused.value.remedy.split("=")[1].split(" ")[0])
    PeriodicSource(num_symbols=16, min_period=min_period, max_period=largest, seq_len=60_000)
    with pytest.raises(ConfigError):
        PeriodicSource(num_symbols=16, min_period=min_period, max_period=largest + 1, seq_len=60_000)


def test_the_yaml_holds_the_constructors_defaults() -> None:
    config = yaml.safe_load((CONF / "periodic.yaml").read_text())["data"]
    assert config.pop("_target_") == "mlm_lightning.data.languages.periodic.PeriodicSource"
    config.pop("batch_size")
    assert config == {name: p.default for name, p in inspect.signature(PeriodicSource).parameters.items()}
