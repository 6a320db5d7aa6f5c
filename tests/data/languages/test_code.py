import inspect
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from joints import code

from mlm_lightning.data.languages.code import CodeSource
from mlm_lightning.errors import ConfigError
from mlm_lightning.testing import check_calibration, check_chain_rule, check_language

CONF = Path(__file__).parents[3] / "conf" / "data"
FIRST_ROWS = [
    "10101001010111011000001111000000",
    "11110100101000100010111001000010",
]
SMALL: list[dict[str, Any]] = [
    {"num_symbols": 2, "seq_len": 9, "num_checks": 4, "check_weight": 3},
    {"num_symbols": 2, "seq_len": 8, "num_checks": 1, "check_weight": 8},
    {"num_symbols": 2, "seq_len": 6, "num_checks": 5, "check_weight": 2},
    {"num_symbols": 3, "seq_len": 6, "num_checks": 3, "check_weight": None},
    {"num_symbols": 5, "seq_len": 4, "num_checks": 2, "check_weight": 3},
    {"num_symbols": 7, "seq_len": 3, "num_checks": 1, "check_weight": 2, "grammar_seed": 3},
    {"num_symbols": 61, "seq_len": 2, "num_checks": 1, "check_weight": 2},
]
LARGE: list[dict[str, Any]] = [
    {"num_symbols": 2, "seq_len": 512, "num_checks": 256, "check_weight": 3},
    {"num_symbols": 2, "seq_len": 512, "num_checks": 1, "check_weight": 512},
    {"num_symbols": 3, "seq_len": 512, "num_checks": 400, "check_weight": None},
    {"num_symbols": 251, "seq_len": 64, "num_checks": 32, "check_weight": 3},
]
MANY: list[dict[str, Any]] = [
    *SMALL,
    {"num_symbols": 2, "seq_len": 64, "num_checks": 32, "check_weight": 3},
    {"num_symbols": 2, "seq_len": 64, "num_checks": 63, "check_weight": 4},
    {"num_symbols": 2, "seq_len": 33, "num_checks": 32, "check_weight": 32},
    {"num_symbols": 3, "seq_len": 20, "num_checks": 19, "check_weight": 20},
    {"num_symbols": 251, "seq_len": 512, "num_checks": 256, "check_weight": None},
]


@pytest.mark.parametrize("small", SMALL)
def test_it_is_a_language_with_its_optimum(small: dict[str, Any]) -> None:
    check_language(CodeSource(**small), joint=code)


@pytest.mark.slow
@pytest.mark.parametrize("large", LARGE)
def test_it_is_exact_at_its_largest(large: dict[str, Any]) -> None:
    source = CodeSource(**large)
    check_chain_rule(source, num_rows=4, num_hidden=12)
    check_calibration(source, num_rows=256)


@pytest.mark.parametrize("arguments", MANY)
def test_rows_satisfy_all_checks_which_are_independent_and_of_their_weight(arguments: dict[str, Any]) -> None:
    source = CodeSource(**arguments)
    p, checks_CL = source.num_symbols, source.checks_CL
    tokens_BL = source.rows("train")[torch.arange(200)]
    assert not ((tokens_BL @ checks_CL.T) % p).any()
    if arguments["check_weight"] is not None:
        assert ((checks_CL != 0).sum(1) == arguments["check_weight"]).all()
    assert rank(checks_CL.numpy(), p) == arguments["num_checks"]


def rank(matrix_RL: np.ndarray, p: int) -> int:
    matrix_RL, found = matrix_RL.copy(), 0
    for column in range(matrix_RL.shape[1]):
        below_R = matrix_RL[found:, column].nonzero()[0]
        if not len(below_R):
            continue
        matrix_RL[[found, found + below_R[0]]] = matrix_RL[[found + below_R[0], found]]
        pivot_L = matrix_RL[found] * pow(int(matrix_RL[found, column]), -1, p) % p
        matrix_RL[found + 1 :] = (matrix_RL[found + 1 :] - matrix_RL[found + 1 :, column, None] * pivot_L) % p
        found += 1
    return found


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("arguments", [*MANY[-5:-1], pytest.param(MANY[-1], marks=pytest.mark.slow)])
def test_at_any_size_tokens_are_certain_or_uniform_and_what_is_certain_is_true(arguments: dict[str, Any], share: float) -> None:
    source = CodeSource(**arguments)
    p, num_free = source.num_symbols, source.seq_len - source.num_checks
    index_B = torch.arange(8)
    tokens_BL = source.rows("val")[index_B]
    hidden_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) < share
    oracle = source.oracle()
    probs_BLQ = oracle.posterior(tokens_BL, ~hidden_BL)[..., :-1]
    highest_BL, best_BL = probs_BLQ.max(2)
    certain_BL = highest_BL == 1
    assert torch.equal(best_BL[certain_BL], tokens_BL[certain_BL])
    assert (probs_BLQ[~certain_BL] == 1 / p).all()
    log_prob_B = oracle.log_likelihood(tokens_BL, ~hidden_BL)
    ranks = [rank(basis(source)[:, seen_L].numpy(), p) for seen_L in ~hidden_BL[:2]]  # of what can be seen
    torch.testing.assert_close(log_prob_B[:2], -log(p) * torch.tensor(ranks, dtype=torch.float64))
    assert (log_prob_B >= -log(p) * num_free - 1e-9).all()


def basis(source: CodeSource) -> torch.Tensor:
    """Codewords of which all others are sums."""
    p, free_K = source.num_symbols, source.free_K
    _, solved_CL, given_C = source._drawn_and_solved
    basis_KL = torch.zeros(len(free_K), source.seq_len, dtype=torch.int64)
    basis_KL[:, free_K] = torch.eye(len(free_K), dtype=torch.int64)
    basis_KL[:, given_C] = -solved_CL[:, free_K].T % p
    assert not ((basis_KL @ source.checks_CL.T) % p).any()
    return basis_KL


def test_copies_are_certain_and_parity_needs_all_others() -> None:
    copies = CodeSource(num_symbols=2, seq_len=6, num_checks=5, check_weight=2)
    tokens_BL = copies.rows("train")[torch.arange(50)]
    assert (tokens_BL == tokens_BL[:, :1]).all()
    parity = CodeSource(num_symbols=2, seq_len=10, num_checks=1, check_weight=10)
    tokens_BL = parity.rows("train")[torch.arange(50)]
    assert not (tokens_BL.sum(1) % 2).any()
    one_BL, two_BL = torch.ones(2, 50, 10, dtype=torch.bool)
    one_BL[:, 3] = two_BL[:, 3] = two_BL[:, 7] = False
    certain_BQ = parity.oracle().posterior(tokens_BL, one_BL)[:, 3]
    assert torch.equal(certain_BQ.argmax(1), tokens_BL[:, 3])
    assert (certain_BQ.amax(1) == 1).all()
    assert (parity.oracle().posterior(tokens_BL, two_BL)[:, [3, 7], :2] == 0.5).all()


@pytest.mark.parametrize("arguments", SMALL)
def test_the_entropy_rate_is_that_of_the_codewords(arguments: dict[str, Any]) -> None:
    source = CodeSource(**arguments)
    sequences_SL, _, _ = code(source)
    assert source.entropy_rate() * source.seq_len == pytest.approx(log(len(sequences_SL)))


def test_a_row_drawn_from_nothing_is_that_of_its_key() -> None:
    source = CodeSource(num_symbols=5, seq_len=40, num_checks=17)
    keys_B = torch.arange(50) * 7919
    nothing_BL = torch.zeros(50, 40, dtype=torch.bool)
    assert torch.equal(source.oracle().sample(nothing_BL.long(), nothing_BL, keys_B), source.draw(keys_B))


def test_first_rows_and_checks() -> None:
    source = CodeSource()
    tokens = source.rows("train")[torch.arange(2)].tolist()
    assert ["".join(f"{token:x}" for token in row) for row in tokens] == FIRST_ROWS
    assert source.checks_CL[:2].nonzero()[:, 1].tolist() == [18, 21, 28, 3, 6, 10]
    other = CodeSource(grammar_seed=1)
    assert not torch.equal(other.checks_CL, source.checks_CL)


def test_a_code_too_large_to_be_enumerated_says_so() -> None:
    with pytest.raises(ValueError, match="choose a smaller language"):
        code(CodeSource())
    with pytest.raises(ValueError, match="more than 4096"):
        code(CodeSource(num_symbols=2, seq_len=14, num_checks=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_symbols": 4}, r"data\.num_symbols=4: is no prime .*; use data\.num_symbols=3 or 5"),
        ({"num_symbols": 250}, r"data\.num_symbols=250: .*; use data\.num_symbols=241 or 251"),
        ({"num_symbols": 257}, r"data\.num_symbols=257: .* from 2 to 251; "),
        ({"seq_len": 513}, r"data\.seq_len=513: .* from 2 to 512; "),
        ({"seq_len": 8, "num_checks": 8}, r"data\.num_checks=8: .*data\.seq_len=8.*; use data\.num_checks=7 or fewer"),
        ({"num_checks": 0}, r"data\.num_checks=0: .* at least 1; "),
        ({"check_weight": 1}, r"data\.check_weight=1: .* at least 2; "),
        ({"check_weight": 33}, r"data\.check_weight=33: .*data\.seq_len=32.*; use data\.check_weight=32 or less"),
        ({"check_weight": 32, "num_checks": 2}, r"data\.num_checks=2: .*one check.*; use data\.num_checks=1"),
    ],
)
def test_impossible_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CodeSource(**arguments)


def test_the_yaml_holds_the_constructors_defaults() -> None:
    config = yaml.safe_load((CONF / "code.yaml").read_text())["data"]
    assert config.pop("_target_") == "mlm_lightning.data.languages.code.CodeSource"
    config.pop("batch_size")
    assert config == {name: p.default for name, p in inspect.signature(CodeSource).parameters.items()}
