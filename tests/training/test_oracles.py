"""Answers about frozen masks: asked once, never another batch's, and the same to the last bit as without keeping them."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import AT, At, assert_equal_runs, lines_without_times, run_of, timeless, train
from torch import Tensor

from mlm_lightning import MLMDataModule, MLMModule
from mlm_lightning.batch import LabelledBatch, MLMBatch
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.errors import ConfigError, Interrupted
from mlm_lightning.masking import Bernoulli
from mlm_lightning.tasks import MLM, Classify
from mlm_lightning.training import oracles
from mlm_lightning.training.oracles import FrozenAnswers, answers

Toy = Callable[..., dict[str, Any]]
FURTHER = (
    "eval.oracles={k1: {filter_level: 1}, k2: {filter_level: 2}}",
    "eval.data={k2: {filter_level: 2, val_size: 40}}",
    "trainer.val_check_interval=2",
)
MASKING = Bernoulli(rate=0.3, mask_share=1.0, random_share=0.0)
TREE = TreeSource(num_symbols=3, depth=2, train_size=100, val_size=40, test_size=24)
CUT = TreeSource(num_symbols=3, depth=2, train_size=100, val_size=40, test_size=24, filter_level=2)
KEPT = oracles.LIMIT


@dataclass  # which makes it unhashable
class Own:
    """An oracle and counts of a user: the answers of others, by a plain loop over rows, in memory that is used again."""

    source: TreeSource = TREE
    asked: list[str] = field(default_factory=list)

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        self.asked.append("posterior")
        oracle = self.source.oracle()
        return torch.cat([oracle.posterior(*each) for each in zip(tokens_BL.split(1), observed_BL.split(1), strict=True)])

    def latents(self, tokens_BL: Tensor, observed_BL: Tensor) -> dict[str, Tensor]:
        self.asked.append("latents")
        found = self.source.oracle().latents(tokens_BL, observed_BL)
        self.memory = getattr(self, "memory", torch.empty(64, 16, 3, dtype=torch.float64))
        return {name: self._written(probs_BNS) for name, probs_BNS in found.items() if name == "root"}

    def _written(self, probs_BNS: Tensor) -> Tensor:
        return self.memory[: len(probs_BNS), : probs_BNS.shape[1]].copy_(probs_BNS)

    def losses(self, batch: MLMBatch) -> dict[str, Tensor]:
        self.asked.append("losses")
        return self.source.ngrams().losses(batch)


def module_of(conditions: list[Condition], **options: Any) -> MLMModule:
    from mlm_lightning.models.transformer import TransformerClassifier

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "num_layers": 1, "nhead": 2, "dim_feedforward": 32}
    if isinstance(options.get("task"), Classify):
        sizes |= {"num_classes": 3, "embedding_agg": "mean", "tie_embeddings": False}
    model = TransformerClassifier(vocab_size=4, seq_len=4, **sizes)
    return MLMModule(model, conditions, optimizer=partial(torch.optim.SGD, lr=0.1), **options)


def trainer_of(**options: Any) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return L.Trainer(accelerator="cpu", **quiet, **options)


def batch_of(source: TreeSource = TREE, masking: Bernoulli = MASKING, rows: int = 8, key: int = 0) -> MLMBatch:
    index_B = torch.arange(rows)
    return masking(source.rows("val")[index_B], index_B, vocab=source.vocab, key=key)


# how often


@pytest.mark.parametrize("task", [MLM(), Classify(label="root")])
def test_each_batch_is_asked_about_once_in_a_run(task: Any) -> None:
    own, further, counts = Own(), Own(CUT), Own()
    masked = MASKING.frozen()
    conditions = [
        Condition(("",), masked, TREE, own, counts, {"k2": further}),
        Condition(("rate_0.50",), masked.frozen(rate=0.5), TREE, own, counts),
        Condition(("text",), masked, CUT, None, None),
    ]
    data = MLMDataModule(TREE, MASKING, conditions, batch_size=16, task=task)
    module = module_of(conditions, task=task)
    seen: list[dict[str, float]] = []
    trainer = trainer_of(max_steps=9, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    module.log_scalars = lambda metrics, step: seen.append(metrics)  # type: ignore[method-assign]
    trainer.fit(module, datamodule=data)
    validated = [metrics["val/oracle_loss"] for metrics in seen if "val/oracle_loss" in metrics]
    assert len(validated) == 3
    assert len(set(validated)) == 1
    batches = 3  # of 40 rows
    if isinstance(task, MLM):
        assert (len(own.asked), len(further.asked), len(counts.asked)) == (2 * batches, batches, 2 * batches)
    else:  # nothing is masked, but each condition is asked by itself
        assert (len(own.asked), len(further.asked), len(counts.asked)) == (2 * batches, batches, 0)


def test_what_has_no_room_is_asked_again_and_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Own()
    condition = Condition(("",), MASKING, TREE, own)
    batches = [batch_of(rows=rows) for rows in (8, 16, 4)]
    sizes = [answers(batch, condition, MLM())[0][""].nbytes for batch in batches]
    own.asked.clear()
    # the second finds no room, the third does
    monkeypatch.setattr(oracles, "LIMIT", sizes[0] + sizes[2] + 2 * oracles._BESIDE)
    kept = FrozenAnswers(MLM())
    for _ in range(3):
        for batch in batches:
            found, expected = kept.of(batch, condition), answers(batch, replace(condition, oracle=Own()), MLM())
            assert torch.equal(found[0][""], expected[0][""])
    assert len(own.asked) == 1 + 3 + 1


def test_small_answers_do_not_fill_the_memory_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracles, "LIMIT", 10_000)
    own, kept = Own(), FrozenAnswers(MLM())
    condition = Condition(("",), MASKING, TREE, own)
    for _ in range(2):
        for key in range(100):
            kept.of(batch_of(rows=1, key=key)._replace(row_ids_B=torch.tensor([key])), condition)
    assert 180 < len(own.asked) < 200


def test_conditions_without_oracles_and_counts_are_not_looked_at() -> None:
    condition = Condition(("",), MASKING, TREE)
    assert FrozenAnswers(MLM()).of(None, condition) == ({}, {})  # type: ignore[arg-type]


# the same as without


@pytest.mark.parametrize(
    "options",
    [
        ("eval.mask_rates=[0.15,0.5]",),
        ("task=classify", "task.label=root", "data.filter_level=1"),
        ("callbacks=ema", "trainer.accumulate_grad_batches=2"),
    ],
)
def test_all_metrics_are_bitwise_those_without(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    summaries, lines = [], []
    for limit in (0, 8000, KEPT):
        monkeypatch.setattr(oracles, "LIMIT", limit)
        config = toy(f"output_dir={tmp_path / str(limit)}", *FURTHER, *options)
        summaries.append(timeless(train(config)))
        lines.append(lines_without_times(run_of(config)))
    assert summaries[0] == summaries[1] == summaries[2]
    assert lines[0] == lines[1] == lines[2]
    assert len([line for line in lines[0] if line["val/loss"]]) == 4
    assert "val/kl_to_oracle_under_k2" in summaries[0]


def evaluated(module: MLMModule, data: MLMDataModule, split: str, **options: Any) -> dict[str, float]:
    trainer = trainer_of(**options)
    module._plain = False  # whose metrics are returned, not logged
    (trainer.validate if split == "val" else trainer.test)(module, data, verbose=False)
    return module.last_metrics


def test_other_data_in_one_process_gets_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another split, other masks, other batches, fewer of them: each is as a module finds it that keeps nothing."""
    masked = MASKING.frozen()
    conditions = [
        Condition(("",), masked, TREE, TREE.oracle(), TREE.ngrams(), {"k2": CUT.oracle()}),
        # the same rows and masks, and another oracle, other counts
        Condition(("cut",), masked, TREE, CUT.oracle(), CUT.ngrams()),
        Condition(("half",), masked.frozen(rate=0.5), TREE, TREE.oracle(), TREE.ngrams()),
    ]
    asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("val", {}, {}),
        ("test", {}, {}),
        ("val", {"eval_seed": 1}, {}),
        ("val", {"batch_size": 7}, {}),
        ("val", {}, {"limit_val_batches": 2}),
        ("test", {"batch_size": 16}, {"limit_test_batches": 1}),
        ("val", {}, {}),
    ]
    one = module_of(conditions)
    for split, how, limits in asked:
        data = MLMDataModule(TREE, MASKING, conditions, **({"batch_size": 8} | how))
        found = evaluated(one, data, split, **limits)
        with monkeypatch.context() as patched:
            patched.setattr(oracles, "LIMIT", 0)
            expected = evaluated(module_of(conditions), data, split, **limits)
        assert found == expected
        assert found[f"{split}/oracle_loss"] != found[f"{split}/oracle_loss_cut"]
        assert found[f"{split}/oracle_loss_under_k2"] == found[f"{split}/oracle_loss_cut"]


def test_any_difference_in_a_batch_is_another_question() -> None:
    own, kept = Own(), FrozenAnswers(MLM())
    condition = Condition(("",), MASKING, TREE, own, own)
    batch = batch_of()
    predicted_BL = batch.labels_BL >= 0
    variants = [
        batch,
        batch._replace(input_ids_BL=torch.where(predicted_BL, batch.input_ids_BL, (batch.input_ids_BL + 1) % 3)),
        batch._replace(labels_BL=torch.where(predicted_BL, (batch.labels_BL + 1) % 3, batch.labels_BL)),
        batch._replace(positions_BK=batch.positions_BK.flip(1)),
        batch._replace(attention_mask_BL=torch.ones_like(batch.labels_BL)),
        batch._replace(attention_mask_BL=torch.tensor([1, 1, 2, 2]).expand(8, 4)),
        batch._replace(hidden_BL=torch.zeros(8, 4, dtype=torch.bool)),
        MLMBatch(*(None if each is None else each[:4] for each in batch)),  # type: ignore[arg-type]
    ]
    for number, variant in enumerate(variants, 1):
        for _ in range(2):
            kept.of(variant, condition)
        assert len(own.asked) == 2 * number
    kept.of(batch, replace(condition))
    assert len(own.asked) == 2 * len(variants) + 2


def test_what_an_oracle_overwrites_is_kept_as_it_was() -> None:
    task, own = Classify(label="root"), Own(CUT)
    kept, condition = FrozenAnswers(task), Condition(("",), MASKING, CUT, own)
    batches = [LabelledBatch(CUT.rows("val")[rows], torch.zeros(4).long(), None, rows) for rows in torch.arange(8).split(4)]
    for _ in range(2):
        for batch in batches:
            expected = CUT.oracle().latents(batch.input_ids_BL, torch.ones(4, 4, dtype=torch.bool))["root"]
            assert torch.equal(kept.of(batch, condition)[0][""], expected)
    assert len(own.asked) == 2


def test_errors_are_raised_each_time_and_nothing_is_kept() -> None:
    class Refusing(Own):
        refuses = True

        def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
            found = super().posterior(tokens_BL, observed_BL)
            if self.refuses:
                raise ValueError("row 3 of the batch: impossible")
            return found

    further, kept = Refusing(), FrozenAnswers(MLM())
    condition = Condition(("",), MASKING, TREE, TREE.oracle(), None, {"k1": further})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"eval\.oracles\.k1.*row 3 of the batch"):
            kept.of(batch_of(), condition)
    further.refuses = False
    for _ in range(2):
        assert set(kept.of(batch_of(), condition)[0]) == {"", "k1"}
    assert len(further.asked) == 3


def test_a_resumed_run_is_the_uninterrupted_one(toy: Toy, tmp_path: Path) -> None:
    whole, stopped = (
        toy(f"output_dir={tmp_path / name}", *FURTHER, f"callbacks.at._target_={AT}") for name in ("whole", "stopped")
    )
    train(whole)
    At.set(("validation", 4, 1), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(stopped)
    train(stopped)
    assert_equal_runs(whole, stopped)
