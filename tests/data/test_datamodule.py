from collections.abc import Iterable
from functools import partial

import pytest
import torch
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, MLMBatch, Vocab
from mlm_lightning.data.batches import BatchRange, EvalBatches, Plan, TrainBatches
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.datamodule import MLMDataModule, _loader
from mlm_lightning.data.source import Source
from mlm_lightning.masking import Bernoulli


class CountedRows:
    """Row i is i, i, i, …: its tokens say which row was read."""

    def __init__(self, count: int, seq_len: int = 8) -> None:
        self.count, self.seq_len = count, seq_len

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index_B: Tensor) -> Tensor:
        return index_B.unsqueeze(1).expand(-1, self.seq_len).clone()


class CountedForever:
    """Row i is i, i, i, …, without an end; `asked` is what was to be read ahead."""

    def __init__(self, shuffle_buffer: int) -> None:
        self.shuffle_buffer = shuffle_buffer
        self.asked: list[int] = []

    def __getitem__(self, index_B: Tensor) -> Tensor:
        return index_B.unsqueeze(1).expand(-1, 8).clone()

    def read_ahead(self, stop: int) -> None:
        self.asked.append(stop)


class Counted(Source):
    def __init__(self, count: int = 50) -> None:
        self.count = count

    @property
    def vocab(self) -> Vocab:
        return Vocab(size=self.count + 1, mask_id=self.count)

    @property
    def seq_len(self) -> int:
        return 8

    def rows(self, split: str) -> CountedRows:
        return CountedRows(self.count)


def datamodule(count: int = 50, batch_size: int = 8, seed: int = 0, rows_per_epoch: int | None = None) -> MLMDataModule:
    plan = Plan(total_steps=10, rows_per_epoch=rows_per_epoch)
    return MLMDataModule(Counted(count), Bernoulli(rate=0.3), batch_size=batch_size, seed=seed, plan=plan)


def frozen(module: MLMDataModule, split: str = "val", rank: int = 0, world_size: int = 1) -> EvalBatches:
    """The batches of the training's own condition."""
    return module.eval_batches(split, module.conditions[0], rank, world_size)


def stream(batches: TrainBatches, indices: range) -> list[tuple[int, int]]:
    """(epoch, row) of the batches, one after the other."""
    pairs = []
    for index in indices:
        rows_B, epochs_B = batches.row_ids(index)
        pairs += list(zip(epochs_B.tolist(), rows_B.tolist(), strict=True))
    return pairs


def masks(batches: list[MLMBatch]) -> dict[int, tuple[list[int], list[int]]]:
    """By row: what the model reads and what it is to predict."""
    return {
        int(row): (inputs.tolist(), labels.tolist())
        for batch in batches
        for row, inputs, labels in zip(batch.row_ids_B, batch.input_ids_BL, batch.labels_BL, strict=True)
    }


def test_each_epoch_is_a_permutation_and_epochs_differ() -> None:
    pairs = stream(datamodule(count=50, batch_size=8).train_batches(), range(25))
    first, second = [row for epoch, row in pairs if epoch == 0], [row for epoch, row in pairs if epoch == 1]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert [epoch for epoch, _ in pairs] == sorted(epoch for epoch, _ in pairs)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_stream_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    reference = stream(datamodule(batch_size=1).train_batches(), range(128))
    count = -(-128 // batch_size)
    assert stream(datamodule(batch_size=batch_size).train_batches(), range(count))[:128] == reference


def test_a_batch_larger_than_an_epoch_holds_several_epochs() -> None:
    pairs = stream(datamodule(count=3, batch_size=8).train_batches(), range(1))
    assert [epoch for epoch, _ in pairs] == [0, 0, 0, 1, 1, 1, 2, 2]


def endless(batch_size: int, shuffle_buffer: int = 20, seed: int = 0, rank: int = 0, world_size: int = 1) -> TrainBatches:
    mask = datamodule().train_batches().make
    return TrainBatches(CountedForever(shuffle_buffer), mask, batch_size, seed, rank, world_size)


def test_each_block_of_endless_rows_is_a_permutation_of_its_own() -> None:
    pairs = stream(endless(batch_size=8), range(25))
    assert {epoch for epoch, _ in pairs} == {0}
    blocks = [[row for _, row in pairs[start : start + 20]] for start in range(0, 200, 20)]
    assert [sorted(block) for block in blocks] == [list(range(start, start + 20)) for start in range(0, 200, 20)]
    orders = [tuple(row % 20 for row in block) for block in blocks]
    assert len(set(orders)) == 10
    assert stream(endless(batch_size=8, seed=1), range(25)) != pairs
    assert [row for _, row in stream(endless(batch_size=8, shuffle_buffer=1), range(5))] == list(range(40))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("world_size", [1, 3])
def test_endless_rows_depend_neither_on_the_batch_size_nor_on_ranks(batch_size: int, world_size: int) -> None:
    reference = stream(endless(batch_size=1), range(400))
    ranks = [endless(batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    count = -(-128 // (batch_size * world_size))
    found = [pair for index in range(count) for rank in ranks for pair in stream(rank, range(index, index + 1))]
    assert found == reference[: len(found)]


def test_a_block_is_read_ahead_of_all_ranks() -> None:
    batches = endless(batch_size=4, rank=1, world_size=2)
    for index in range(3):
        batches[index]
    assert batches.rows.asked == [8 + 20, 16 + 20, 24 + 20]  # type: ignore[union-attr]


def test_ranks_share_the_rows_of_one_large_batch() -> None:
    whole = datamodule(batch_size=16).train_batches()
    ranks = [datamodule(batch_size=8).train_batches(rank, world_size=2) for rank in range(2)]
    for index in range(6):
        expected = stream(whole, range(index, index + 1))
        assert stream(ranks[0], range(index, index + 1)) + stream(ranks[1], range(index, index + 1)) == expected


def test_a_share_of_the_rows_makes_shorter_epochs_of_new_rows_each() -> None:
    pairs = stream(datamodule(count=50, batch_size=10, rows_per_epoch=20).train_batches(), range(4))
    assert [epoch for epoch, _ in pairs] == [0] * 20 + [1] * 20
    assert {row for epoch, row in pairs if epoch == 0} != {row for epoch, row in pairs if epoch == 1}


@pytest.mark.parametrize("batch_size", [7, 48])
def test_masks_of_a_row_do_not_depend_on_the_batch(batch_size: int) -> None:
    reference = masks([datamodule(batch_size=1).train_batches()[i] for i in range(48)])
    batches = [datamodule(batch_size=batch_size).train_batches()[i] for i in range(-(-48 // batch_size))]
    found = masks(batches)
    assert all(found[row] == reference[row] for row in reference)


def test_masks_of_a_row_differ_between_epochs_and_seeds() -> None:
    train = datamodule(count=8, batch_size=8).train_batches()
    epochs = [masks([train[i]]) for i in range(4)]
    assert any(epochs[0][row] != epochs[1][row] for row in range(8))
    other = masks([datamodule(count=8, batch_size=8, seed=1).train_batches()[0]])
    assert any(epochs[0][row] != other[row] for row in range(8))


def test_workers_give_the_same_batches_in_the_same_order() -> None:
    train = datamodule().train_batches()
    alone, shared = (list(_loader(train, BatchRange(2, 8), num_workers=workers)) for workers in (0, 2))
    assert len(alone) == 6
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


def test_a_loader_that_starts_late_counts_the_batches_before() -> None:
    sampler = BatchRange(3, 10)
    assert len(sampler) == 10
    assert list(sampler) == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("total_steps", "expected"), [(1, [1.0]), (2, [0.0, 1.0]), (5, [0.0, 0.25, 0.5, 0.75, 1.0]), (3, [0.0, 0.5, 1.0, 1.0])]
)
def test_progress_goes_from_the_first_step_to_the_last(total_steps: int, expected: list[float]) -> None:
    assert [Plan(total_steps).progress(step) for step in range(len(expected))] == expected


def scheduled(batch_size: int, accumulation: int, rank: int = 0, world_size: int = 1) -> TrainBatches:
    """Ten optimizer steps of 16 rows."""
    source, masking = Counted(50), Bernoulli(rate={"start": 0.9, "end": 0.2, "schedule": "cosine"})
    plan = Plan(total_steps=10, accumulate_grad_batches=accumulation)
    return TrainBatches(
        source.rows("train"), partial(masking, vocab=source.vocab, key=3), batch_size, 0, rank, world_size, plan
    )


def labels_of_steps(batches: Iterable[MLMBatch]) -> Tensor:
    """The labels of all rows, one after the other, by steps: (10, 16, L)."""
    return torch.cat([batch.labels_BL for batch in batches]).unflatten(0, (10, 16))


def test_a_scheduled_rate_belongs_to_the_optimizer_step() -> None:
    reference = labels_of_steps(scheduled(16, 1)[step] for step in range(10))
    rate = [float((labels != IGNORE_INDEX).double().mean()) for labels in reference]
    assert rate[0] > 0.8 > 0.6 > rate[5] > 0.4 > rate[9]
    for batch_size, accumulation in ((4, 4), (8, 2), (1, 16)):
        train = scheduled(batch_size, accumulation)
        assert torch.equal(labels_of_steps(train[j] for j in range(10 * accumulation)), reference)
    ranks = [scheduled(4, 2, rank, world_size=2) for rank in range(2)]
    assert torch.equal(labels_of_steps(ranks[j % 2][j // 2] for j in range(40)), reference)
    for workers in (0, 2):  # also of a run that goes on after step 3
        loader = _loader(scheduled(8, 2), BatchRange(6, 20), workers)
        assert torch.equal(torch.cat([batch.labels_BL for batch in loader]), reference[3:].flatten(0, 1))


def test_the_datamodule_knows_the_optimizer_step_of_a_batch() -> None:
    masking = Bernoulli(rate={"start": 1.0, "end": 1e-6, "schedule": "linear"})
    for total_steps, accumulation, expected in ((1, 2, [1, 1]), (2, 3, [8, 8, 8, 1, 1, 1]), (None, 1, [1, 1])):
        plan = None if total_steps is None else Plan(total_steps, accumulate_grad_batches=accumulation)
        module = MLMDataModule(Counted(), masking, batch_size=4, plan=plan)
        train = module.train_batches()
        counts = [(train[j].labels_BL != IGNORE_INDEX).sum(dim=1) for j in range(len(expected))]
        assert [count.tolist() for count in counts] == [[each] * 4 for each in expected]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_sees_each_row_once_with_the_same_mask(batch_size: int, world_size: int) -> None:
    module = datamodule(batch_size=batch_size)
    ranks = [frozen(module, "val", rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1  # or the ranks would wait for each other forever
    batches = [rank[i] for rank in ranks for i in range(len(rank))]
    rows = [row for batch in batches for row in batch.row_ids_B.tolist() if row != PADDING_ROW]
    assert sorted(rows) == list(range(50))
    reference = masks([frozen(datamodule(batch_size=50))[0]])
    found = masks(batches)
    found.pop(PADDING_ROW, None)
    assert found == reference


def test_padding_rows_have_no_labels() -> None:
    batches = EvalBatches(CountedRows(5), frozen(datamodule()).make, 4, rank=1, world_size=2)
    padding = [batch.labels_BL[batch.row_ids_B == PADDING_ROW] for batch in (batches[i] for i in range(len(batches)))]
    assert sum(len(each) for each in padding) > 0
    assert all((each == IGNORE_INDEX).all() for each in padding)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_further_source_is_read_once_with_the_masks_of_the_runs_own(batch_size: int, world_size: int) -> None:
    masking = Bernoulli(rate=0.3)
    source = Counted(50)
    conditions = [Condition(("",), masking.frozen(), source), Condition(("few",), masking.frozen(), Counted(20))]
    module = MLMDataModule(source, masking, conditions, batch_size=batch_size)
    ranks = [module.eval_batches("val", conditions[1], rank, world_size) for rank in range(world_size)]
    found = masks([rank[i] for rank in ranks for i in range(len(rank))])
    found.pop(PADDING_ROW, None)
    assert sorted(found) == list(range(20))
    own = masks([frozen(module)[i] for i in range(-(-50 // batch_size))])
    for row, (inputs, labels) in found.items():
        assert labels == own[row][1]
        assert [each == 20 for each in inputs] == [each == 50 for each in own[row][0]]  # their [MASK]s


def test_frozen_masks_are_the_same_whatever_the_training_seed() -> None:
    one, other = (masks([frozen(datamodule(seed=seed))[0]]) for seed in (0, 1))
    assert one == other
    test = masks([frozen(datamodule(), "test")[0]])
    assert one != test
