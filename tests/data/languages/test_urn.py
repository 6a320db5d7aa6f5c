import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from joints import urn

from mlm_lightning.data.languages.urn import UrnSource
from mlm_lightning.errors import ConfigError
from mlm_lightning.testing import check_calibration, check_chain_rule, check_language

CONF = Path(__file__).parents[3] / "conf" / "data"
FIRST_ROWS = [
    "6030266233233663365603633643065306320337663366236070066643600733",
    "4456556445666475546657565060646542644545447706552676270544527067",
]
SMALL: list[dict[str, Any]] = [
    {"num_symbols": 2, "concentration": 0.5, "seq_len": 8},
    {"num_symbols": 3, "concentration": 0.05, "seq_len": 5},
    {"num_symbols": 4, "concentration": 1e6, "seq_len": 4},
    {"num_symbols": 5, "concentration": 1.0, "seq_len": 1},
]
LARGE: list[dict[str, Any]] = [
    {"num_symbols": 16, "concentration": 0.5, "seq_len": 4096},
    {"num_symbols": 16, "concentration": 0.01, "seq_len": 4096},
    {"num_symbols": 16, "concentration": 1e6, "seq_len": 4096},
    {"num_symbols": 2, "concentration": 1.0, "seq_len": 65_536},
]


@pytest.mark.parametrize("small", SMALL)
def test_it_is_a_language_with_its_optimum(small: dict[str, Any]) -> None:
    check_language(UrnSource(**small), joint=urn)


@pytest.mark.slow
@pytest.mark.parametrize("large", LARGE)
def test_nothing_underflows_at_its_largest(large: dict[str, Any]) -> None:
    source = UrnSource(**large)
    check_chain_rule(source, num_rows=4, num_hidden=min(12, source.seq_len))
    check_calibration(source, num_rows=64)


@pytest.mark.parametrize("concentration", [0.05, 0.5, 20.0])
def test_the_entropy_rate_is_the_mean_entropy_of_a_dirichlets_draws(concentration: float) -> None:
    source = UrnSource(num_symbols=5, concentration=concentration)
    drawn_NQ = torch.from_numpy(np.random.default_rng(0).dirichlet([concentration] * 5, 100_000))
    entropy_N = torch.special.entr(drawn_NQ).sum(1)
    assert abs(entropy_N.mean() - source.entropy_rate()) < 5 * entropy_N.std() / 100_000**0.5


def test_what_is_left_of_a_long_rows_last_token_is_the_entropy_rate() -> None:
    source = UrnSource(num_symbols=4, seq_len=2048)
    tokens_BL = source.rows("val")[torch.arange(2000)]
    hidden_BL = torch.zeros_like(tokens_BL, dtype=torch.bool)
    hidden_BL[:, -1] = True
    probs_BQ = source.oracle().posterior(tokens_BL, ~hidden_BL)[:, -1]
    entropy_B = torch.special.entr(probs_BQ).sum(1)
    assert abs(entropy_B.mean() - source.entropy_rate()) < 4 * entropy_B.std() / 2000**0.5 + 4 / 2048


def test_a_posterior_is_counting() -> None:
    source = UrnSource(num_symbols=3, concentration=0.5, seq_len=4)
    tokens_BL, observed_BL = torch.tensor([[2, 0, 2, 1]]), torch.tensor([[True, True, True, False]])
    probs_V = source.oracle().posterior(tokens_BL, observed_BL)[0, 3]
    torch.testing.assert_close(probs_V, torch.tensor([1.5, 0.5, 2.5, 0.0], dtype=torch.float64) / 4.5)


def test_a_row_drawn_from_nothing_is_that_of_its_key() -> None:
    source = UrnSource(num_symbols=5, seq_len=100)
    keys_B = torch.arange(50) * 7919
    nothing_BL = torch.zeros(50, 100, dtype=torch.bool)
    sampled_BL = source.oracle().sample(nothing_BL.long(), nothing_BL, keys_B)
    assert torch.equal(sampled_BL, source.draw(keys_B))


def test_first_rows() -> None:
    tokens = UrnSource().rows("train")[torch.arange(2)].tolist()
    assert ["".join(f"{token:x}" for token in row) for row in tokens] == FIRST_ROWS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concentration": 0}, r"data\.concentration=0: .* from 0\.01 to 1e\+06; "),
        ({"concentration": float("nan")}, r"data\.concentration=nan: "),
        ({"num_symbols": 257}, r"data\.num_symbols=257: .* from 2 to 256; "),
        ({"seq_len": 65_537}, r"data\.seq_len=65537: .* from 1 to 65536; "),
    ],
)
def test_impossible_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UrnSource(**arguments)


def test_the_yaml_holds_the_constructors_defaults() -> None:
    config = yaml.safe_load((CONF / "urn.yaml").read_text())["data"]
    assert config.pop("_target_") == "mlm_lightning.data.languages.urn.UrnSource"
    config.pop("batch_size")
    assert config == {name: p.default for name, p in inspect.signature(UrnSource).parameters.items()}
