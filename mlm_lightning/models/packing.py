"""Documents that share a row, kept apart: nobody attends to another document's tokens, and positions count from its own start.

    document_BL        1  1  1  2  2  0            attendable_B1LL    # # # . . .
    positions_within   0  1  2  0  1  0                               # # # . . .
                                                                      # # # . . .
                                                                      . . . # # .
                                                                      . . . # # .
                                                                      . . . . . #    padding, which no token reads

Each document's logits are then those that it has in a row of its own, and no gradient flows from one to another.

Shapes: B rows, L positions, K predicted positions a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attendable(document_BL: Tensor, positions_BK: Tensor | None = None) -> Tensor:
    """What the positions `positions_BK` (None: all, K = L) may attend to, B1KL: True at their own document."""
    # padding attends to padding, itself at the least: no softmax over nothing
    document_BK = document_BL if positions_BK is None else document_BL.gather(1, positions_BK)
    return (document_BK.unsqueeze(-1) == document_BL.unsqueeze(1)).unsqueeze(1)


def positions_within(document_BL: Tensor) -> Tensor:
    """How many positions of the same document, or of the same padding, come before each; int64."""
    position_L = torch.arange(document_BL.shape[1], device=document_BL.device)
    is_first_BL = F.pad(document_BL[:, 1:] != document_BL[:, :-1], (1, 0), value=True)
    if torch.compiler.is_exporting():  # ONNX has no cummax: the same, counted
        return attendable(is_first_BL.cumsum(1)).squeeze(1).tril(-1).sum(-1)
    return position_L - (position_L * is_first_BL).cummax(1).values
