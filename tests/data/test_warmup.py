"""Rows that begin short and batches that begin small: the same stream of rows, the same masks, cut elsewhere."""

from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_datamodule import Counted, CountedForever, CountedRows, frozen, masks, stream
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch, Vocab
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.batches import BatchRange, Plan, TrainBatches
from mlm_lightning.data.datamodule import MLMDataModule, _loader
from mlm_lightning.data.warmup import BatchSchedule, BatchSizes, LengthSchedule
from mlm_lightning.errors import ConfigError
from mlm_lightning.masking import Bernoulli, Masking, Single, Span, WholeWord

# lengths and sizes


@pytest.mark.parametrize("seq_len", [16, 64, 100, 512])
@pytest.mark.parametrize("start", [2, 8, 13, 16])
@pytest.mark.parametrize("steps", [1, 7, 0.3, 400])
def test_lengths_grow_from_the_start_to_the_whole_row_in_multiples_of_8(seq_len: int, start: int, steps: float) -> None:
    schedule = LengthSchedule(start=start, steps=steps)
    lengths = [schedule.at(step, 1000, seq_len) for step in range(1000)]
    end = 300 if steps == 0.3 else int(steps)
    assert lengths[0] == start
    assert lengths == sorted(lengths)
    assert set(lengths[end:]) == {seq_len}
    assert all(length % 8 == 0 for length in lengths[:end] if length != start)
    lines = (start + Fraction((seq_len - start) * step, end) for step in range(end))
    assert all(0 <= line - length < 8 or length == start for line, length in zip(lines, lengths[:end], strict=True))


@pytest.mark.parametrize(("start", "first"), [(0.25, 4), (0.01, 1), (1, 1), (5, 5), (0.5, 8), (0.99, 16), (16, 16)])
@pytest.mark.parametrize("steps", [1, 3, 5, 0.2, 0.9, 64])
def test_sizes_grow_in_a_straight_line_and_their_sums_are_exact(start: float, first: int, steps: float) -> None:
    sizes = BatchSchedule(start=start, steps=steps).sizes(16, total_steps=80)
    each = [sizes.at(step) for step in range(80)]
    end = sizes.steps
    assert end == (round(80 * steps) if steps < 1 else steps)
    assert (each[0], each[end:]) == (first, [16] * (80 - end))
    assert all(0 <= first + (16 - first) * step / end - each[step] < 1 for step in range(end))
    assert [sizes.before(step) for step in range(81)] == [sum(each[:step]) for step in range(81)]


def test_the_sums_of_a_long_run_take_no_time() -> None:
    sizes = BatchSizes(full=4096, start=1, steps=10**11)
    before, after = sizes.before(10**11), sizes.before(10**11 + 1)
    assert after - before == 4096
    assert before / 10**11 == pytest.approx(4096 / 2, rel=1e-3)


# rows


class Words(Counted):
    """Rows of random tokens, of which every third kind goes on with a word; the last rows are padded."""

    def __init__(self, count: int = 50, seq_len: int = 40, padded: bool = False) -> None:
        super().__init__(count)
        self.length, self.padded = seq_len, padded

    @property
    def vocab(self) -> Vocab:
        continues = tuple(token % 3 == 0 for token in range(self.count + 1))
        return Vocab(size=self.count + 1, mask_id=self.count, continues_word=continues)

    @property
    def seq_len(self) -> int:
        return self.length

    def rows(self, split: str) -> Any:
        tokens_NL = torch.randint(self.count, (self.count, self.length), generator=torch.Generator().manual_seed(3))
        if not self.padded:
            return Table(tokens_NL, None)
        lengths_N = torch.arange(self.count) % self.length + 1
        return Table(tokens_NL, (torch.arange(self.length) < lengths_N[:, None]).long())


class Table(CountedRows):
    def __init__(self, tokens_NL: Tensor, attention_mask_NL: Tensor | None) -> None:
        super().__init__(*tokens_NL.shape)
        self.tokens_NL, self.attention_mask_NL = tokens_NL, attention_mask_NL

    def __getitem__(self, index_B: Tensor) -> Any:
        if self.attention_mask_NL is None:
            return self.tokens_NL[index_B]
        return self.tokens_NL[index_B], self.attention_mask_NL[index_B]


GROWING = BatchSchedule(start=0.25, steps=7)


def growing(
    rows: Any, batch_size: int, accumulation: int, rank: int = 0, world_size: int = 1, schedule: BatchSchedule | None = GROWING
) -> TrainBatches:
    """A run of twelve optimizer steps."""
    sizes = schedule and schedule.sizes(batch_size, 12)
    plan = Plan(12, accumulate_grad_batches=accumulation, batch_sizes=sizes)
    mask = partial(Bernoulli(rate=0.3), vocab=Counted(1000).vocab, key=3)
    return TrainBatches(rows, mask, batch_size, 0, rank, world_size, plan)


@pytest.mark.parametrize("count", [3, 50])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("endless", [False, True])
def test_growing_batches_cut_the_same_stream_elsewhere(count: int, world_size: int, accumulation: int, endless: bool) -> None:
    rows = CountedForever(count) if endless else CountedRows(count)
    ranks = [growing(rows, 8, accumulation, rank, world_size) for rank in range(world_size)]
    found: list[tuple[int, int]] = []
    sizes = []
    for index in range(12 * accumulation):
        parts = [stream(rank, range(index, index + 1)) for rank in ranks]
        sizes += [len(part) for part in parts]
        found += [pair for part in parts for pair in part]
    expected_sizes = [
        [2, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8][step] for step in range(12) for _ in range(accumulation * world_size)
    ]
    assert sizes == expected_sizes
    reference = stream(growing(rows, 1, 1, schedule=None), range(len(found)))
    assert found == reference


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_accumulated_batches_and_ranks_see_the_rows_of_one_large_batch(world_size: int, accumulation: int) -> None:
    parts = world_size * accumulation
    large = BatchSchedule(start=parts, steps=4)  # to 5 times as many, in steps that `parts` divides
    whole = growing(CountedRows(50), 5 * parts, 1, schedule=large)
    small = BatchSchedule(start=1, steps=4)
    ranks = [growing(CountedRows(50), 5, accumulation, rank, world_size, small) for rank in range(world_size)]
    for step in range(12):
        micro_batches = range(step * accumulation, (step + 1) * accumulation)
        found = [pair for index in micro_batches for rank in ranks for pair in stream(rank, range(index, index + 1))]
        assert found == stream(whole, range(step, step + 1))


def test_a_block_is_read_ahead_of_growing_batches() -> None:
    batches = growing(CountedForever(20), 8, accumulation=2, rank=1, world_size=2)
    rows = 0
    for index, size in enumerate([2, 2, 2, 2, 3, 3, 4, 4]):
        batches[index]
        rows += 2 * size
        assert batches.rows.asked[-1] == rows + 20  # type: ignore[union-attr]


# lengths of rows


def cut(masking: Masking, source: Words, length: int | None, accumulation: int = 1, total_steps: int = 4) -> MLMDataModule:
    """Half of the run at `length` positions."""
    schedule = None if length is None else LengthSchedule(start=length, steps=0.5)
    plan = Plan(total_steps, accumulate_grad_batches=accumulation)
    return MLMDataModule(source, masking, batch_size=source.count, plan=plan, length_schedule=schedule)


@pytest.mark.parametrize("length", [2, 7, 16, 39])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_a_cut_row_has_the_masks_of_the_whole_one_where_it_is_left(length: int, padded: bool, rate: float) -> None:
    source = Words(padded=padded)
    short, whole = (cut(Bernoulli(rate=rate), source, each).train_batches()[0] for each in (length, None))
    assert torch.equal(short.row_ids_B, whole.row_ids_B)
    assert short.input_ids_BL.shape == (50, length)
    if padded:
        assert torch.equal(short.attention_mask_BL, whole.attention_mask_BL[:, :length])  # type: ignore[index,arg-type]
    # the whole row's, where it has its rate's: a row without any predicted position predicts one
    predicted_BL = whole.labels_BL[:, :length] != IGNORE_INDEX
    some_B = predicted_BL.any(1) & ((whole.labels_BL != IGNORE_INDEX).sum(1) > 1)
    assert torch.equal(short.labels_BL[some_B], whole.labels_BL[some_B, :length])
    assert torch.equal(short.input_ids_BL[some_B], whole.input_ids_BL[some_B, :length])
    counts_B = (short.labels_BL != IGNORE_INDEX).sum(1)
    assert (counts_B[~some_B] == 1).all()  # each row has a maskable token: it is never without a label
    assert (some_B if rate > 0.02 else ~some_B).any()
    tokens_BL = torch.where(short.labels_BL == IGNORE_INDEX, short.input_ids_BL, short.labels_BL)
    assert torch.equal(tokens_BL, source.rows("train").tokens_NL[short.row_ids_B, :length])


@pytest.mark.parametrize("masking", [Bernoulli(rate=0.15), WholeWord(rate=0.15), Span(rate=0.15), Single()], ids=repr)
def test_a_batch_of_cut_rows_has_the_shape_of_its_length(masking: Masking) -> None:
    source = Words(seq_len=256)
    train = cut(masking, source, 64).train_batches()
    assert [train[step].input_ids_BL.shape[1] for step in range(4)] == [64, 160, 256, 256]
    for step in range(4):
        batch = train[step]
        assert batch.labels_BL.shape == batch.input_ids_BL.shape
        assert batch.positions_BK.shape[1] == masking.num_predicted(batch.input_ids_BL.shape[1])
        assert batch.input_ids_BL.is_contiguous()
        assert int(batch.positions_BK.max()) < batch.input_ids_BL.shape[1]


@pytest.mark.parametrize("masking", [WholeWord(rate=0.15), Span(rate=0.15)], ids=repr)
def test_words_and_spans_of_a_cut_row_are_those_of_the_whole_one(masking: Masking) -> None:
    source = Words(seq_len=256)
    short, whole = (cut(masking, source, each).train_batches()[0] for each in (128, None))
    same_B = (short.labels_BL == whole.labels_BL[:, :128]).all(1)
    assert same_B.double().mean() >= 0.95  # the others have more positions than there are places


def test_all_batches_of_a_step_have_its_length_on_every_rank() -> None:
    module = cut(Bernoulli(rate=0.3), Words(), 8, accumulation=3)
    lengths = [
        [module.train_batches(rank, world_size=2)[index].input_ids_BL.shape[1] for index in range(12)] for rank in range(2)
    ]
    assert lengths == [[8] * 3 + [24] * 3 + [40] * 6] * 2


def test_validation_sees_whole_rows() -> None:
    schedule, sizes = LengthSchedule(start=4, steps=9), BatchSchedule(start=1, steps=9).sizes(16, 10)
    plan = Plan(10, batch_sizes=sizes)
    plain = MLMDataModule(Words(), Bernoulli(rate=0.3), batch_size=16, plan=Plan(10))
    warm = MLMDataModule(Words(), Bernoulli(rate=0.3), batch_size=16, plan=plan, length_schedule=schedule)
    for split in ("val", "test"):
        expected, found = (frozen(module, split) for module in (plain, warm))
        assert len(found) == len(expected) == 4
        assert masks([found[index] for index in range(4)]) == masks([expected[index] for index in range(4)])


def equal(one: MLMBatch, other: MLMBatch) -> bool:
    return all(a is b or torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_reads_the_batches_of_the_uninterrupted_one(workers: int) -> None:
    plan = Plan(10, accumulate_grad_batches=3, batch_sizes=GROWING.sizes(8, 10))
    masking = Bernoulli(rate={"start": 0.9, "end": 0.2, "schedule": "cosine"})
    schedule = LengthSchedule(start=8, steps=0.6)
    module = MLMDataModule(Words(), masking, batch_size=8, plan=plan, length_schedule=schedule)
    whole = list(_loader(module.train_batches(), BatchRange(0, 30), num_workers=0))
    assert len({batch.input_ids_BL.shape for batch in whole}) > 6
    for start in (3, 12, 27):
        later = list(_loader(module.train_batches(), BatchRange(start, 30), workers))
        assert len(later) == 30 - start
        assert all(equal(one, other) for one, other in zip(later, whole[start:], strict=True))


def test_a_length_above_the_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.length_schedule\.start=41: rows have 40 positions"):
        MLMDataModule(Words(), Bernoulli(), batch_size=8, length_schedule=LengthSchedule(start=41, steps=3))


# how long a run is


def plan_of(rows: int, batch_size: int, epochs: int, schedule: Any, **values: Any) -> Plan:
    settings = {"max_epochs": epochs, "max_steps": None, "batch_schedule": schedule, "accelerator": "cpu"} | values
    return TrainerSettings(**settings).plan(rows, batch_size)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("devices", [1, 2])
def test_epochs_end_a_run_at_the_first_step_that_has_read_them(accumulation: int, devices: int) -> None:
    parts = accumulation * devices
    for rows in (1, 2, 7, 30, 97):
        for batch_size in (1, 2, 5, 8):
            for epochs in (1, 3):
                for start in (1, 0.25, batch_size):
                    for steps in (1, 4, 50, 0.05, 0.3, 0.99):
                        schedule = BatchSchedule(start=start, steps=steps)
                        values = {"accumulate_grad_batches": accumulation, "devices": devices}
                        plan = plan_of(rows, batch_size, epochs, schedule, **values)

                        def rows_of(total: int, schedule: BatchSchedule = schedule, batch_size: int = batch_size) -> int:
                            sizes = schedule.sizes(batch_size, total)
                            return parts * sum(sizes.at(step) for step in range(total))

                        expected = next(total for total in range(1, 10**6) if rows_of(total) >= epochs * rows)
                        assert plan.total_steps == expected, (rows, batch_size, epochs, schedule)
                        done = parts * plan.batch_sizes.before(expected)  # type: ignore[union-attr]
                        assert plan.epoch(expected) == pytest.approx(done / rows)


def test_max_steps_may_come_first_and_the_share_is_of_the_run_as_it_is() -> None:
    schedule = BatchSchedule(start=0.5, steps=0.5)
    assert plan_of(1000, 10, 1, schedule).total_steps == 118  # 1,001 rows; 117 steps have 994
    plan = plan_of(1000, 10, 1, schedule, max_steps=20)
    assert plan.total_steps == 20
    assert plan.batch_sizes == BatchSizes(full=10, start=5, steps=10)


def test_a_constant_size_is_the_plan_without_a_schedule() -> None:
    schedule = BatchSchedule(start=8, steps=0.4)
    for rows, epochs in ((97, 3), (64, 1), (5, 4)):
        plain, warm = plan_of(rows, 8, epochs, None), plan_of(rows, 8, epochs, schedule)
        steps = range(plain.total_steps + 1)
        assert [plain.epoch(step) for step in steps] == [warm.epoch(step) for step in steps]
        assert [plain.validation_due(step) for step in steps[1:]] == [warm.validation_due(step) for step in steps[1:]]
        assert plain.total_steps == warm.total_steps


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_validation_at_a_share_of_an_epoch_counts_rows(share: float) -> None:
    """Eight rows a step of full size, so that shares are exact in floating point."""
    plan = plan_of(52, 8, 5, BatchSchedule(start=1, steps=0.6), val_check_interval=share)
    read = [Fraction(plan.batch_sizes.before(step), 52) for step in range(plan.total_steps + 1)]  # type: ignore[union-attr]
    passed = [epochs // Fraction(share) for epochs in read]
    expected = [step for step in range(1, plan.total_steps) if passed[step] > passed[step - 1]] + [plan.total_steps]
    due = [step for step in range(1, plan.total_steps + 1) if plan.validation_due(step)]
    assert due == expected
    assert [plan.validations_after(step) for step in range(plan.total_steps + 1)] == [
        sum(each > step for each in expected) for step in range(plan.total_steps + 1)
    ]
    if share == 1.0:
        assert len({later - earlier for earlier, later in pairwise(due)}) > 1  # the first epochs take more steps


def test_a_number_of_steps_between_validations_stays_one() -> None:
    plan = plan_of(52, 8, 5, BatchSchedule(start=1, steps=0.6), val_check_interval=7)
    due = [step for step in range(1, plan.total_steps + 1) if plan.validation_due(step)]
    assert due == [*range(7, plan.total_steps, 7), plan.total_steps]
