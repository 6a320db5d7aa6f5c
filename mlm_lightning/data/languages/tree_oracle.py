"""The exact posterior of every unobserved leaf of a tree: one pass of messages up and one down, a whole batch at once.

                  root                     up[v]    the evidence below a node, as a function of its symbol:
              ·  ·    ·  ·                          up[a] = Σ_bc M[a, b, c] · up_left[b] · up_right[c]
            v      …      w   level k      down[v]  the evidence elsewhere:
          ┌─┴─┐         ┌─┴─┐                       down_left[b] = Σ_ac down[a] · M[a, b, c] · up_right[c]
         2     M       0     M             posterior of a leaf  ∝  up · down

    Between the root and level k (the filter level) the factor graph is a star: the nodes of level k hang on the root, each by
    its marginal given the root. k = 0 is the star of one node, the root itself.

Each pair (b, c) has one parent only, so a sum over a, b and c has q² terms instead of q³.

Source: Garnier-Brun, Mézard, Moscato, Saglietti, "How transformers learn structured data: insights from hierarchical
filtering", ICML 2025, arXiv 2408.15138. Shapes beyond those of `batch`: Q symbols, N nodes of a level. The batch is the last
dimension of all messages (QNB), so that picking symbols copies contiguous memory.
"""

import torch
from torch import Tensor

from mlm_lightning.data.languages.synthetic import observed_tokens

_TINY = torch.finfo(torch.float64).tiny
# Elements of the messages of a level, and of an outer product, that are worked on at once: on a CPU the latter stay in cache
_CHUNK = {"cpu": 2**18, "cuda": 2**25}
_BLOCK = {"cpu": 2**16, "cuda": 2**27}


class TreeOracle:
    """The posterior of the leaves of `TreeSource`, given any of them, for every filter level."""

    def __init__(self, M: Tensor, star_NQQ: Tensor, depth: int, filter_level: int) -> None:
        """`M` and `star_NQQ`, the marginals of the nodes of level k given the root, are those of the tree's `Grammar`."""
        self.num_symbols, self.depth, self.filter_level = len(M), depth, filter_level
        self._to_parent_QP = M.flatten(1)  # P: pairs of symbols, here (left, right)
        self._to_left_QP = M.permute(1, 0, 2).flatten(1)  # (parent, right)
        self._to_right_QP = M.permute(2, 0, 1).flatten(1)  # (parent, left)
        self._star_NQQ = star_NQQ[_node_order_N(filter_level)]
        self._leaf_order_L = _node_order_N(depth)
        self._leaf_place_L = self._leaf_order_L.argsort()

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`probs_BLV`, float64: all on the token where it is observed; `[MASK]` (the last) has probability 0.

        Tokens that are not observed may hold anything. Raises ValueError, naming the first such row, where what is observed is
        no symbol or has probability zero. (Every pair has a parent, so every row is possible; but the probability of a rule
        can underflow to zero where sigma is in the hundreds.)
        """
        if tokens_BL.device.type not in _CHUNK:  # such as Apple's GPUs, which have no float64
            return self.posterior(tokens_BL.cpu(), observed_BL.cpu()).float().to(tokens_BL.device)
        q = self.num_symbols
        if tokens_BL.shape[-1] != 2**self.depth:
            raise ValueError(f"rows of {tokens_BL.shape[-1]} tokens: a tree of depth {self.depth} has {2**self.depth} leaves")
        tokens_BL = observed_tokens(tokens_BL, observed_BL, q)
        for name, table in vars(self).items():
            if isinstance(table, Tensor):
                setattr(self, name, table.to(tokens_BL.device))
        probs_BLV = torch.empty(*tokens_BL.shape, q + 1, dtype=torch.float64, device=tokens_BL.device)
        probs_BLV[..., q] = 0.0
        num_rows = max(1, _CHUNK[tokens_BL.device.type] // (q << self.depth))
        for start in range(0, len(tokens_BL), num_rows):
            rows = slice(start, start + num_rows)
            probs_BLV[rows, :, :q] = self._posterior(tokens_BL[rows], start).permute(2, 1, 0)
        return probs_BLV

    def _posterior(self, tokens_BL: Tensor, first_row: int) -> Tensor:
        # 1 for the symbols that agree with what is observed; for all of them where nothing is
        tokens_LB = tokens_BL.T[self._leaf_order_L]
        symbols_Q11 = torch.arange(self.num_symbols, device=tokens_LB.device)[:, None, None]
        evidence_QLB = ((tokens_LB == symbols_Q11) | (tokens_LB == self.num_symbols)).double()

        up = {self.depth: evidence_QLB}  # by level
        for level in range(self.depth - 1, self.filter_level - 1, -1):
            up[level] = _normalise(_contract(self._to_parent_QP, *up[level + 1].chunk(2, dim=1)))
        down_QNB = self._star(up[self.filter_level], first_row)
        for level in range(self.filter_level, self.depth):
            down_QNB = _normalise(down_QNB)
            left_QNB, right_QNB = up[level + 1].chunk(2, dim=1)
            to_left_QNB = _contract(self._to_left_QP, down_QNB, right_QNB)
            to_right_QNB = _contract(self._to_right_QP, down_QNB, left_QNB)
            down_QNB = torch.cat((to_left_QNB, to_right_QNB), dim=1)

        belief_QLB = _normalise(down_QNB.mul_(evidence_QLB))
        _refuse_impossible((belief_QLB.sum(0) == 0).any(0), first_row)  # what underflows on the way down alone
        return belief_QLB[:, self._leaf_place_L]

    def _star(self, up_QNB: Tensor, first_row: int) -> Tensor:
        """From the nodes of level k to the root and back to them. The root's belief is a product over up to 2^16 nodes: a sum
        of logarithms, with the zeros counted apart, so that a node's own message can be taken out of it again."""
        to_root_QNB = torch.einsum("nrx,xnb->rnb", self._star_NQQ, up_QNB)
        zero_QNB = to_root_QNB == 0
        num_zeros_Q1B = zero_QNB.sum(1, keepdim=True)
        _refuse_impossible((num_zeros_Q1B > 0).all(0)[0], first_row)
        log_QNB = to_root_QNB.log().masked_fill_(zero_QNB, 0.0)
        others_QNB = (log_QNB.sum(1, keepdim=True) - log_QNB).masked_fill_(num_zeros_Q1B - zero_QNB.long() > 0, -torch.inf)
        return torch.einsum("nrx,rnb->xnb", self._star_NQQ, others_QNB.softmax(0))


def _refuse_impossible(impossible_B: Tensor, first_row: int) -> None:
    if impossible_B.any():
        row = first_row + int(impossible_B.nonzero()[0])
        raise ValueError(
            f"row {row} of the batch: the observed tokens have probability zero under the grammar; they must come from "
            "rows of the same source (the same num_symbols, depth, sigma, filter_level and grammar_seed)"
        )


def _node_order_N(level: int) -> Tensor:
    """The nodes of a level, numbered from left to right, in the order of the messages: first the left children of the level
    above, then the right ones, so that either half is one block of memory."""
    order_N = torch.zeros(1, dtype=torch.int64)
    for _ in range(level):
        order_N = torch.cat((2 * order_N, 2 * order_N + 1))
    return order_N


def _contract(rules_QP: Tensor, x_QNB: Tensor, y_QNB: Tensor) -> Tensor:
    """Σ_P rules_QP · (x ⊗ y)_P over the pairs P of symbols: one outer product and one matrix product for all nodes and rows."""
    block = max(1, _BLOCK[x_QNB.device.type] // rules_QP.shape[1])
    sums = []
    for x_QM, y_QM in zip(x_QNB.flatten(1).split(block, 1), y_QNB.flatten(1).split(block, 1), strict=True):
        outer_QQM = x_QM[:, None] * y_QM
        sums.append(rules_QP @ outer_QQM.flatten(0, 1))
    return (torch.cat(sums, dim=1) if len(sums) > 1 else sums[0]).view(x_QNB.shape)


def _normalise(message_QNB: Tensor) -> Tensor:
    # at every level: the evidence of 256 leaves underflows even float64. Where all is zero, zero it stays, down to the root
    return message_QNB.div_(message_QNB.sum(0).clamp_min_(_TINY))
