"""A label is one prediction a row: its sums, its oracle, its batches."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, LabelledBatch
from mlm_lightning.data.datamodule import MLMDataModule
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.errors import ConfigError
from mlm_lightning.masking import Bernoulli
from mlm_lightning.metrics import LabelSums
from mlm_lightning.tasks import MLM, Classify

TREE = TreeSource(depth=3, num_symbols=3, filter_level=1, val_size=50)


@pytest.mark.parametrize(("label", "node"), [("root", 0), ("level_1", 1), ("level_2", 3), ("level_3", 7)])
def test_the_labels_are_the_latents_of_the_rows(label: str, node: int) -> None:
    task = Classify(label=label, node=node)
    module = MLMDataModule(TREE, Bernoulli(), batch_size=20, task=task)
    batches = list(module.eval_batches("val", module.conditions[0], rank=0, world_size=1))
    rows, seen = TREE.rows("val"), 0
    for batch in batches:
        assert isinstance(batch, LabelledBatch)
        assert torch.equal(batch.input_ids_BL, rows[batch.row_ids_B])
        assert torch.equal(batch.labels_B, rows.latents(batch.row_ids_B)[label][:, node])
        seen += len(batch.labels_B)
    assert seen == 50
    assert task.class_names(TREE) == ("0", "1", "2")
    first = module.train_batches()[0]
    assert torch.equal(first.labels_BK, TREE.rows("train").latents(first.row_ids_B)[label][:, node : node + 1])


def test_rows_that_fill_up_have_no_label() -> None:
    make = Classify(label="root").maker(TREE, "val", Bernoulli(), 0)
    ids_B = torch.tensor([3, PADDING_ROW])
    batch = make(TREE.rows("val")[ids_B.clamp(min=0)], ids_B)
    assert batch.labels_B.tolist() == [TREE.rows("val").latents(ids_B[:1])["root"].item(), IGNORE_INDEX]


def test_the_oracle_is_the_posterior_of_the_label() -> None:
    task, index_B = Classify(label="level_2", node=2), torch.arange(6)
    batch = task.maker(TREE, "val", Bernoulli(), 0)(TREE.rows("val")[index_B], index_B)
    probs_B1C = task.oracle_probs(TREE.oracle(), batch)
    expected = TREE.oracle().latents(batch.input_ids_BL, torch.ones(6, 8, dtype=torch.bool))["level_2"][:, 2]
    assert torch.equal(probs_B1C.squeeze(1), expected)


def test_sums_are_those_of_plain_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    labels_B = torch.randint(4, (200,), generator=generator)  # of five classes, one of which never occurs
    logits_BC = torch.randn(200, 5, generator=generator) + 2 * nn.functional.one_hot(labels_B, 5)
    logits_BC[:, 4] = -9.0
    sums = LabelSums(num_classes=5)
    for rows in torch.arange(200).split(64):
        batch = LabelledBatch(rows[:, None], labels_B[rows], None, rows)
        sums.update(logits_BC[rows].unsqueeze(1), batch)
    padding = LabelledBatch(torch.zeros(3, 1).long(), torch.full((3,), IGNORE_INDEX), None, torch.full((3,), PADDING_ROW))
    sums.update(torch.randn(3, 1, 5), padding)
    guesses, truth = logits_BC.argmax(1).tolist(), labels_B.tolist()
    f1 = []
    for c in range(5):
        both = sum(t == c for t in truth) + sum(g == c for g in guesses)
        if both:
            f1.append(2 * sum(t == g == c for t, g in zip(truth, guesses, strict=True)) / both)
    assert len(f1) == 4
    metrics = sums.compute(with_oracle=False)
    assert set(metrics) == {"loss", "accuracy", "macro_f1"}
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / 4)
    assert metrics["accuracy"] == pytest.approx(sum(t == g for t, g in zip(truth, guesses, strict=True)) / 200)
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(logits_BC, labels_B).item())
    for i, j in itertools.product(range(5), range(5)):
        assert sums.confusion_CC[i, j] == sum((t, g) == (i, j) for t, g in zip(truth, guesses, strict=True))


def test_an_exact_model_of_the_label_has_no_excess() -> None:
    task, index_B = Classify(label="level_1"), torch.arange(50)
    batch = task.maker(TREE, "val", Bernoulli(), 0)(TREE.rows("val")[index_B], index_B)
    probs_B1C = task.oracle_probs(TREE.oracle(), batch)
    sums = task.sums(3)
    sums.update(probs_B1C.log(), batch, probs_B1C)
    metrics = sums.compute(with_oracle=True)
    assert metrics["excess_loss"] == pytest.approx(0, abs=1e-6)
    assert metrics["kl_to_oracle"] == pytest.approx(0, abs=1e-6)
    assert metrics["accuracy"] == metrics["oracle_accuracy"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classify(), "task.label"),
        (lambda: Classify(label="root", label_column="topic"), "task.label=root"),
        (lambda: Classify(label="root", classes=["a", "b"]), "task.classes"),
        (lambda: Classify(label_column="topic", classes=["a", "a"]), "task.classes"),
        (lambda: Classify(label="root", node=-1), "task.node=-1"),
        (lambda: Classify(label="rot").class_names(TREE), "task.label=rot: is no latent variable.*root, level_0"),
        (lambda: Classify(label="level_0", node=1).class_names(TREE), "task.node=1: level_0 has 1 node"),
        (lambda: Classify(label="root").class_names(UniformSource()), "task.label=root.*it has none"),
    ],
)
def test_what_cannot_be_says_so(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_masked_lm_is_what_it_was() -> None:
    task, index_B = MLM(), torch.arange(5)
    assert task.num_outputs(TREE) == 4
    batch = task.maker(TREE, "val", Bernoulli(), 7)(TREE.rows("val")[index_B], index_B)
    expected = Bernoulli()(TREE.rows("val")[index_B], index_B, vocab=TREE.vocab, key=7)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
    assert "perplexity" in task.sums(4).compute(with_oracle=False)
    assert math.isnan(task.sums(4).compute(with_oracle=False)["loss"])
