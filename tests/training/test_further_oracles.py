"""Validations at the steps that are named, and beside the oracles of other languages on the run's own rows."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import conditions_of, curves, problems, run_of, train
from torch import Tensor

from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.metrics import MetricSums
from mlm_lightning.runs.identity import identity
from mlm_lightning.runs.load import load_run
from mlm_lightning.tasks import MLM
from mlm_lightning.training.loss import add_metrics
from mlm_lightning.training.oracles import answers

Toy = Callable[..., dict[str, Any]]
LEVELS = "eval.oracles={k1: {filter_level: 1}, k2: {filter_level: 2}, own: {filter_level: 0}}"


@pytest.mark.parametrize(
    ("val_steps", "total", "expected"),
    [
        ("log", 100, [1, 2, 3, 4, 6, 7, 10, 13, 18, 24, 32, 42, 56, 75, 100]),
        ("log", 11, [1, 2, 3, 4, 6, 7, 10, 11]),
        ("log", 1, [1]),
        ([7, 3, 3], 9, [3, 7, 9]),
        ([500], 9, [9]),
        (None, 9, [4, 8, 9]),
    ],
)
@pytest.mark.parametrize("num_rows", [10_000, None])
def test_the_steps_that_are_validated(val_steps: Any, total: int, expected: list[int], num_rows: int | None) -> None:
    plan = TrainerSettings(max_steps=total, val_steps=val_steps, val_check_interval=4).plan(num_rows, batch_size=2)
    assert [step for step in range(1, total + 1) if plan.validation_due(step)] == expected
    for step in range(total + 1):
        assert plan.validations_after(step) == len([each for each in expected if each > step])


def test_a_run_is_validated_there_and_beside_each_oracle(toy: Toy) -> None:
    config = toy("trainer.val_steps=log", "trainer.max_steps=10", LEVELS)
    summary = train(config)
    found = curves(run_of(config))
    steps = [1, 2, 3, 4, 6, 7, 10]
    for name in ("val/loss", "val/kl_to_oracle_under_k1", "val/oracle_loss_under_k2"):
        assert [step for step, _ in found[name]] == steps
    assert not any("excess" in name and "under" in name for name in summary)
    # the run's own oracle under another name
    assert summary["val/kl_to_oracle_under_own"] == summary["val/kl_to_oracle"]
    assert summary["val/oracle_loss_under_own"] == summary["val/oracle_loss"]
    # whatever cuts correlations knows less about rows that have them
    losses = [summary[f"val/oracle_loss_under_{name}"] for name in ("own", "k1", "k2")]
    assert losses == sorted(losses)
    assert losses[0] < losses[2]


def test_the_divergence_is_that_of_the_formula(toy: Toy) -> None:
    config = toy(LEVELS)
    train(config)
    (condition,) = conditions_of(config)
    model, source = load_run(run_of(config).folder).model, condition.source
    assert isinstance(source, TreeSource)
    other = TreeSource(depth=2, num_symbols=3, filter_level=1, grammar_seed=1).oracle()
    rows, total, predicted = source.rows("val"), 0.0, 0
    index_B = torch.arange(64)
    batch = condition.masking(rows[index_B], index_B, vocab=source.vocab, key=0)
    sums = MetricSums("cpu", condition.further_oracles)
    with torch.no_grad():
        probs, counted = answers(batch, condition, MLM())
        own_BKV = probs.pop("")
        add_metrics(sums, model, batch, own_BKV, counted, probs)
        log_probs_BLV = model(batch.input_ids_BL).log_softmax(-1).double()
    observed_BL = batch.labels_BL < 0
    exact_BLV: Tensor = other.posterior(rows[index_B], observed_BL)
    for row, position in (~observed_BL).nonzero().tolist():
        for symbol in range(3):
            p = exact_BLV[row, position, symbol].item()
            total += p * (math.log(p) - log_probs_BLV[row, position, symbol].item()) if p > 0 else 0.0
        predicted += 1
    assert sums.compute(with_oracle=True)["kl_to_oracle_under_k1"] == pytest.approx(total / predicted, abs=1e-6)


def test_looking_changes_nothing(toy: Toy) -> None:
    plain, watched = train(toy()), train(toy(LEVELS, "trainer.val_steps=log"))
    assert plain["val/loss"] == watched["val/loss"]


def test_keys_that_are_not_set_are_no_part_of_the_identity(toy: Toy) -> None:
    config = toy()
    del config["eval"]["oracles"], config["trainer"]["val_steps"], config["trainer"]["compile"]  # of an earlier version
    assert identity(config) == identity(toy()) != identity(toy(LEVELS))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("eval.oracles={k9: {filter_level: 9}}", "eval.oracles.k9.filter_level"),
        ("eval.oracles={k1: {filter_level: 1, batch_size: 3}}", "eval.oracles.k1.batch_size"),
        ("eval.oracles={k1: 3}", "eval.oracles.k1"),
        ("eval.oracles={d5: {depth: 3}}", "eval.oracles.d5"),
        ("eval.oracles={rate_1: {filter_level: 1}}", "eval.oracles.rate_1"),
        ("trainer.val_steps=often", "trainer.val_steps"),
        ("trainer.val_steps=[0]", "trainer.val_steps"),
    ],
)
def test_what_cannot_be_says_so(toy: Toy, overrides: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(toy(overrides)))
