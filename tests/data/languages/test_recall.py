import inspect
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from joints import recall

from mlm_lightning.data.languages.recall import RecallSource
from mlm_lightning.errors import ConfigError
from mlm_lightning.testing import check_calibration, check_chain_rule, check_language

CONF = Path(__file__).parents[3] / "conf" / "data"
FIRST_ROWS = [
    "0616243906162416343906243939242425160616161614060639163939243906",
    "091b2835283509350709281b091b070a091b0919091b281b2835281b1b282809",
]
SMALL: list[dict[str, Any]] = [
    {"num_keys": 2, "num_values": 2, "noise": 0.2, "seq_len": 8},
    {"num_keys": 2, "num_values": 3, "noise": 0.0, "seq_len": 8},
    {"num_keys": 3, "num_values": 2, "noise": 0.4, "seq_len": 8},
    {"num_keys": 1, "num_values": 3, "noise": 1.0, "seq_len": 6},
    {"num_keys": 2, "num_values": 2, "noise": 0.0, "seq_len": 4},
]
LARGE: list[dict[str, Any]] = [
    {"num_keys": 8, "num_values": 4, "noise": 0.1, "seq_len": 512},
    {"num_keys": 16, "num_values": 2, "noise": 0.0, "seq_len": 512},
    {"num_keys": 2, "num_values": 254, "noise": 0.3, "seq_len": 512},
    {"num_keys": 1, "num_values": 254, "noise": 1.0, "seq_len": 512},
    {"num_keys": 4, "num_values": 16, "noise": 1e-9, "seq_len": 512},
]


@pytest.mark.parametrize("small", SMALL)
def test_it_is_a_language_with_its_optimum(small: dict[str, Any]) -> None:
    check_language(RecallSource(**small), joint=recall)


@pytest.mark.slow
@pytest.mark.parametrize("large", LARGE)
def test_nothing_underflows_at_its_largest(large: dict[str, Any]) -> None:
    source = RecallSource(**large)
    check_chain_rule(source, num_rows=4, num_hidden=min(12, source.seq_len))
    check_calibration(source, num_rows=64)


def test_with_more_queries_it_is_a_plain_sum_over_maps() -> None:
    """Of rows too long for a joint, the posterior of the keys' values, by a loop over maps and pairs."""
    m, w, noise = 3, 3, 0.25
    source = RecallSource(num_keys=m, num_values=w, noise=noise, seq_len=24)
    tokens_BL = source.rows("val")[torch.arange(40)]
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    found_BMW = source.oracle().latents(tokens_BL, observed_BL)["value"]
    log_prob_B = source.oracle().log_likelihood(tokens_BL, observed_BL)
    for row, (tokens, seen) in enumerate(zip(tokens_BL.tolist(), observed_BL.tolist(), strict=True)):
        expected_MW, total = torch.zeros(m, w, dtype=torch.float64), 0.0
        for values in product(range(w), repeat=m):
            weight = w**-m
            for place in range(0, 24, 2):
                pairs = []
                for key, value in product(range(m), range(w)):
                    if (seen[place] and tokens[place] != key) or (seen[place + 1] and tokens[place + 1] != m + value):
                        continue
                    if place < 2 * m:
                        pairs.append(float(key == place // 2 and value == values[key]))
                    else:
                        pairs.append((noise / w + (1 - noise) * (value == values[key])) / m)
                weight *= sum(pairs)
            total += weight
            for key, value in enumerate(values):
                expected_MW[key, value] += weight
        torch.testing.assert_close(found_BMW[row], expected_MW / total, rtol=0, atol=1e-12)
        assert log_prob_B[row].exp() == pytest.approx(total, rel=1e-11)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_what_queries_cost_once_the_list_is_known_is_the_entropy_rate(noise: float) -> None:
    source = RecallSource(num_keys=4, num_values=5, noise=noise, seq_len=208)
    tokens_BL = source.rows("val")[torch.arange(500)]
    list_BL = (torch.arange(208) < 8).expand_as(tokens_BL)
    oracle = source.oracle()
    cost_B = oracle.log_likelihood(tokens_BL, list_BL) - oracle.log_likelihood(tokens_BL, torch.ones_like(list_BL))
    per_token_B = cost_B / 200
    assert abs(per_token_B.mean() - source.entropy_rate()) < 4 * per_token_B.std() / 500**0.5 + 1e-9


def test_rows_list_their_keys_and_answer_without_noise_what_the_list_says() -> None:
    source = RecallSource(num_keys=3, num_values=6, noise=0.0, seq_len=40)
    rows, index_B = source.rows("train"), torch.arange(300)
    tokens_BL, value_BM = rows[index_B], rows.latents(index_B)["value"]
    assert (tokens_BL[:, 0:6:2] == torch.arange(3)).all()
    assert torch.equal(tokens_BL[:, 1:6:2], 3 + value_BM)
    assert torch.equal(tokens_BL[:, 7::2], 3 + value_BM.gather(1, tokens_BL[:, 6::2]))


def test_a_hidden_key_is_one_of_those_that_share_the_value() -> None:
    source = RecallSource(num_keys=3, num_values=2, noise=0.0, seq_len=8)
    tokens_BL = torch.tensor([[0, 3, 1, 4, 2, 3, 0, 3]])
    hidden_BL = torch.zeros(1, 8, dtype=torch.bool)
    hidden_BL[0, 6] = True
    probs_V = source.oracle().posterior(tokens_BL, ~hidden_BL)[0, 6]
    assert probs_V.tolist() == pytest.approx([0.5, 0, 0.5, 0, 0, 0])


def test_first_rows() -> None:
    rows = RecallSource().rows("train")
    tokens = rows[torch.arange(2)].tolist()
    assert ["".join(f"{token:x}" for token in row) for row in tokens] == FIRST_ROWS
    assert torch.equal(rows.latents(torch.arange(2))["value"], rows[torch.arange(2)][:, 1:8:2] - 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_keys": 6}, r"data\.num_keys=6: .*data\.num_values=8 .* 65536 maps .*; use data\.num_keys=5 or fewer, .*=6"),
        ({"num_keys": 3, "num_values": 41}, r"data\.num_keys=3: .*; use data\.num_keys=2 or fewer, or data\.num_values=40"),
        ({"num_keys": 17, "num_values": 2}, r"data\.num_keys=17: .* from 1 to 16; "),
        ({"num_values": 255}, r"data\.num_values=255: .* from 2 to 254; "),
        ({"num_values": 1}, r"data\.num_values=1: .* from 2 to 254; "),
        ({"seq_len": 63}, r"data\.seq_len=63: .* pairs .*; use data\.seq_len=64"),
        ({"seq_len": 6}, r"data\.seq_len=6: .*data\.num_keys=4.*; use data\.seq_len=8 or more"),
        ({"seq_len": 514}, r"data\.seq_len=514: .* from 2 to 512; "),
        ({"noise": -0.1}, r"data\.noise=-0\.1: .* from 0 to 1; "),
    ],
)
def test_impossible_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecallSource(**arguments)


def test_the_yaml_holds_the_constructors_defaults() -> None:
    config = yaml.safe_load((CONF / "recall.yaml").read_text())["data"]
    assert config.pop("_target_") == "mlm_lightning.data.languages.recall.RecallSource"
    config.pop("batch_size")
    assert config == {name: p.default for name, p in inspect.signature(RecallSource).parameters.items()}
