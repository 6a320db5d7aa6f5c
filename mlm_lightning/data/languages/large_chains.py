"""Two kinds of chains whose matrix of steps is too large beyond some sizes: the same messages, each step in fewer terms.

    Brackets   step[s, t] = [after[s] = before[t]]       a bracket follows another that leaves open what it finds open
    Contexts   step[(o, k), (k, x)] = next[o, k, x]      the oldest token o goes, the k others stay, x comes

With 4,096 contexts, posteriors of rows of 1,024 tokens take 0.6 s a row, and 17 s with the matrix; with 49,152 brackets, whose
matrix would have 19 GB, rows of 84 tokens take 0.2 s. At default sizes the matrix is as fast.

Shapes beyond those of `chain`: O sets of open brackets, K contexts without their oldest token.
"""

import torch
from torch import Tensor

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.forward_backward import ForwardBackward


class Brackets(ForwardBackward):
    """States are brackets, each with the brackets that are open before and after it, as numbers."""

    def __init__(self, chain: Chain, before_S: Tensor, after_S: Tensor) -> None:
        super().__init__(chain)
        self.before_S, self.after_S, self.num_open = before_S, after_S, int(after_S.max()) + 1

    def _step(self, message_BMS: Tensor) -> Tensor:
        return self._at_open(self.after_S, message_BMS)[:, :, self.before_S]

    def _step_back(self, message_BMS: Tensor) -> Tensor:
        return self._at_open(self.before_S, message_BMS)[:, :, self.after_S]

    def _at_open(self, open_S: Tensor, message_BMS: Tensor) -> Tensor:
        sum_BMO = message_BMS.new_zeros(*message_BMS.shape[:2], self.num_open)
        return sum_BMO.index_add(2, open_S, message_BMS)


class Contexts(ForwardBackward):
    """States are the last tokens, as a number whose highest digit is the oldest."""

    def _step(self, message_BMS: Tensor) -> Tensor:
        next_OKQ = self.step_MSR.view(self.num_symbols, -1, self.num_symbols)
        message_BOK = message_BMS.view(len(message_BMS), *next_OKQ.shape[:2])
        return torch.einsum("bok,okq->bkq", message_BOK, next_OKQ).reshape(message_BMS.shape)

    def _step_back(self, message_BMS: Tensor) -> Tensor:
        next_OKQ = self.step_MSR.view(self.num_symbols, -1, self.num_symbols)
        message_BKQ = message_BMS.view(len(message_BMS), *next_OKQ.shape[1:])
        return torch.einsum("bkq,okq->bok", message_BKQ, next_OKQ).reshape(message_BMS.shape)
