import torch

from mlm_lightning.models.packing import attendable, positions_within

DOCUMENT_BL = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0]])


def test_positions_count_from_each_documents_start():
    assert positions_within(DOCUMENT_BL).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_every_position_attends_to_its_own_document_alone():
    attendable_B1LL = attendable(DOCUMENT_BL)
    for b, row in enumerate(DOCUMENT_BL.tolist()):
        assert attendable_B1LL[b, 0].tolist() == [[theirs == own for theirs in row] for own in row]
    assert attendable_B1LL.any(-1).all()


def test_some_positions_are_rows_of_all():
    positions_BK = torch.tensor([[5, 0], [2, 2], [1, 3]])
    expected_BKL = torch.stack([attendable(DOCUMENT_BL)[b, 0, positions_BK[b]] for b in range(3)])
    assert torch.equal(attendable(DOCUMENT_BL, positions_BK)[:, 0], expected_BKL)
