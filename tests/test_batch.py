"""The words that all modules speak."""

import pickle

import pytest
import torch

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch, Vocab


def test_special_ids_always_hold_mask_and_padding():
    assert Vocab(size=10, mask_id=4).special_ids == (4,)
    assert Vocab(size=10, mask_id=4, special_ids=(7, 2, 2), pad_id=0).special_ids == (0, 2, 4, 7)


def test_regular_and_special_ids_partition_the_vocabulary():
    vocab = Vocab(size=6, mask_id=4, special_ids=(1,))
    assert vocab.regular_ids.tolist() == [0, 2, 3, 5]
    assert vocab.is_special_V.tolist() == [False, True, False, False, True, False]
    assert torch.equal(vocab.is_regular_V, ~vocab.is_special_V)


def test_a_vocabulary_travels_to_workers():
    vocab = Vocab(size=3, mask_id=2, continues_word=(False, True, False))
    tables = vocab.regular_ids, vocab.continues_word_V
    copy = pickle.loads(pickle.dumps(vocab))
    assert copy == vocab
    assert torch.equal(copy.regular_ids, tables[0])
    assert torch.equal(copy.continues_word_V, tables[1])


@pytest.mark.parametrize("mask_id", [-1, 5])
def test_mask_outside_the_vocabulary_is_refused(mask_id):
    with pytest.raises(ValueError, match=f"mask_id={mask_id}"):
        Vocab(size=5, mask_id=mask_id)


def test_names_of_tokens():
    assert [Vocab(size=3, mask_id=2).token(i) for i in range(3)] == ["0", "1", "[MASK]"]
    assert Vocab(size=2, mask_id=1, tokens=("a", "<mask>")).token(1) == "<mask>"


def test_ids_without_a_token_are_never_the_best():
    vocab = Vocab(size=4, mask_id=0, tokens=("<mask>", "a", "<unnamed 2>", "b"))
    assert vocab.named_ids.tolist() == [0, 1, 3]
    values_KT, ids_KT = vocab.best(torch.tensor([[0.1, 0.1, 0.4, 0.2, 0.2], [0.0, 0.3, 0.1, 0.1, 0.5]]), 2)
    assert ids_KT[0, 0] == 3
    assert ids_KT[1].tolist() == [1, 3]
    assert values_KT[1].tolist() == pytest.approx([0.3, 0.1])
    assert Vocab(size=3, mask_id=2).named_ids.tolist() == [0, 1, 2]


def test_the_first_tokens_that_differ():
    vocab = Vocab(size=3, mask_id=0, tokens=("<mask>", "a", "b"))
    other = Vocab(size=5, mask_id=0, tokens=("<mask>", "b", "b", "c", "d"))
    assert vocab.difference_from(other) == "5 tokens → 3 tokens; id 1: b → a; id 3: c → no token; id 4: d → no token"
    assert Vocab(size=4, mask_id=3).difference_from(Vocab(size=3, mask_id=2)) == "3 tokens → 4 tokens"


def test_labels_at_the_positions():
    labels_BL = torch.tensor([[IGNORE_INDEX, 3, IGNORE_INDEX, IGNORE_INDEX, 0, IGNORE_INDEX]])
    batch = MLMBatch(labels_BL, labels_BL, None, torch.tensor([[1, 4, 0]]), torch.tensor([0]))
    assert batch.labels_BK.tolist() == [[3, 0, IGNORE_INDEX]]


def test_trimming_drops_only_places_that_no_row_uses() -> None:
    labels_BL = torch.tensor([[-100, 3, -100, 4], [5, -100, -100, -100]])
    positions_BK = torch.tensor([[1, 3, 0, 0], [0, 1, 1, 1]])
    batch = MLMBatch(torch.zeros(2, 4, dtype=torch.long), labels_BL, None, positions_BK, torch.arange(2))
    assert batch.trimmed().labels_BK.tolist() == [[3, 4], [5, -100]]
    nothing = batch._replace(labels_BL=torch.full((2, 4), -100))
    assert nothing.trimmed().positions_BK.shape == (2, 1)
