"""The exact posterior of every unobserved leaf of a tree: one pass of messages up and one down, a whole batch at once.

                  root                     up[v]    the evidence below a node, as a function of its symbol:
              ·  ·    ·  ·                          up[a] = Σ_bc M[a, b, c] · up_left[b] · up_right[c]
            v      …      w   level k      down[v]  the evidence elsewhere:
          ┌─┴─┐         ┌─┴─┐                       down_left[b] = Σ_ac down[a] · M[a, b, c] · up_right[c]
         2     M       0     M             posterior of a leaf  ∝  up · down

    Between the root and level k (the filter level) the factor graph is a star: the nodes of level k hang on the root, each by
    its marginal given the root. k = 0 is the star of one node, the root itself.

Each pair (b, c) has one parent only, so a sum over a, b and c has q² terms instead of q³. Little is computed in vain:

    up      a leaf says one of q + 1 things (its symbol, or nothing), a pair of leaves one of (q + 1)², and four of them one of
            (q + 1)⁴: the messages of the lowest levels are looked up in a table
    down    where a level has few nodes that any unobserved leaf hangs on, messages go to those alone

Source: Garnier-Brun, Mézard, Moscato, Saglietti, "How transformers learn structured data: insights from hierarchical
filtering", ICML 2025, arXiv 2408.15138. Shapes beyond those of `batch`: Q symbols, N nodes of a level, M some nodes of some
rows, S things that the leaves below a node can say. The batch is the last dimension of all messages (QNB), so that picking
symbols copies contiguous memory; nodes of a level in a batch are numbered node · B + row.
"""

from math import log

import torch
from torch import Tensor

from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, choose
from mlm_lightning.randomness import uniform

_TINY = torch.finfo(torch.float64).tiny
# Elements of an outer product that are worked on at once: on a CPU they stay in cache
_BLOCK = {"cpu": 2**19, "cuda": 2**27}
_LARGEST_TABLE = 2**16  # elements
_FEW = 0.8
"""Of a level's nodes: where fewer have something to pass on, they are picked."""


class TreeOracle(LanguageOracle):
    """Of the leaves of `TreeSource`, given any of them, for every filter level.

    Every pair has a parent, so every row is possible; but the probability of a rule can underflow to zero where sigma is in the
    hundreds."""

    def __init__(self, M: Tensor, star_NQQ: Tensor, depth: int, filter_level: int) -> None:
        """`M` and `star_NQQ`, the marginals of the nodes of level k given the root, are those of the tree's `Grammar`."""
        q = len(M)
        super().__init__(q, 2**depth, row_elements=4 * q << depth)
        self.depth, self.filter_level = depth, filter_level
        self._to_parent_QP = M.flatten(1)  # P: pairs of symbols, here (left, right)
        self._to_left_QP = M.permute(1, 0, 2).flatten(1)  # (parent, right)
        self._to_right_QP = M.permute(2, 0, 1).flatten(1)  # (parent, left)
        self._star_NQQ = star_NQQ[_node_order_N(filter_level)]
        self._leaf_order_L = _node_order_N(depth)
        # 1 for the symbols that agree with what is observed; for all of them where nothing is
        self._leaf_QX = torch.cat((torch.eye(q, dtype=torch.float64), torch.ones(q, 1, dtype=torch.float64)), dim=1)
        self._tables_QS = self._make_tables()
        # each symbol's rules: the pairs that it can have, as many as there are symbols
        self._prob_QR, pair_QR = self._to_parent_QP.topk(q)
        self._left_QR, self._right_QR = pair_QR // q, pair_QR % q

    def _make_tables(self) -> list[Tensor]:
        """What a node of the lowest levels is told from below, by what its leaves say: from the leaves on up."""
        q = self.num_symbols
        tables_QS = [self._leaf_QX]
        while len(tables_QS) <= self.depth - self.filter_level and q * tables_QS[-1].shape[1] ** 2 <= _LARGEST_TABLE:
            said = tables_QS[-1].shape[1]
            left_QS, right_QS = tables_QS[-1].repeat_interleave(said, dim=1), tables_QS[-1].repeat(1, said)
            tables_QS.append(_normalise(_contract(self._to_parent_QP, left_QS, right_QS)))
        return tables_QS

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        up, log_scale_B = self._upward(said_BL)
        return log_scale_B + self._log_root(up[self.filter_level])[0].logsumexp(0)[0] - log(self.num_symbols)

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The symbols of nodes, `probs_BNQ`: `root` (N = 1), and `level_j` (N = 2^j, from left to right) for j = 0 and each j
        from the filter level on, since the nodes of that level hang on the root."""
        k, depth = self.filter_level, self.depth
        up, _ = self._upward(said_BL)
        root_Q1B, down_QNB = self._star(up[k])
        beliefs = {"root": root_Q1B, "level_0": root_Q1B}
        for level in range(k, depth + 1):
            if level > 0:
                beliefs[f"level_{level}"] = _normalise(up[level] * down_QNB)
            if level < depth:
                left_QNB, right_QNB = up[level + 1].chunk(2, dim=1)
                sides = ((self._to_left_QP, right_QNB), (self._to_right_QP, left_QNB))
                down_QNB = _normalise(
                    torch.cat([_contract(rules, _normalise(down_QNB), other) for rules, other in sides], dim=1)
                )
        found, possible_B = {}, said_BL.new_ones(len(said_BL), dtype=torch.bool)
        for name, belief_QNB in beliefs.items():
            possible_B &= (belief_QNB.sum(0) > 0).all(0)  # what underflows on the way down alone
            order_N = _node_order_N(belief_QNB.shape[1].bit_length() - 1).to(said_BL.device)
            found[name] = torch.empty_like(belief_QNB).index_copy_(1, order_N, belief_QNB).permute(2, 1, 0).contiguous()
        return found, possible_B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        """From the root down, each node's rule given what is observed below it. A node's random number is the one that chooses
        its rule where rows are drawn (`TreeSource`)."""
        k, depth, device = self.filter_level, self.depth, said_BL.device

        def numbers_NB(first: int, level: int) -> Tensor:
            return uniform(keys_B, first + _node_order_N(level)[:, None]).to(device)

        up, _ = self._upward(said_BL)
        root_Q1B, _ = self._star(up[k])
        symbol_NB = choose(root_Q1B.permute(1, 2, 0), uniform(keys_B, torch.zeros(1, 1, dtype=torch.int64)).to(device))
        if k > 0:
            weight_NBQ = self._star_NQQ[:, symbol_NB[0]] * up[k].permute(1, 2, 0)
            symbol_NB = choose(weight_NBQ, numbers_NB(2**depth, k))
        for level in range(k, depth):
            left_NBQ, right_NBQ = (up_QNB.permute(1, 2, 0) for up_QNB in up[level + 1].chunk(2, dim=1))
            left_NBR, right_NBR = self._left_QR[symbol_NB], self._right_QR[symbol_NB]
            weight_NBR = self._prob_QR[symbol_NB] * left_NBQ.gather(2, left_NBR) * right_NBQ.gather(2, right_NBR)
            rule_NB1 = choose(weight_NBR, numbers_NB(2**level, level))[..., None]
            symbol_NB = torch.cat((left_NBR.gather(2, rule_NB1), right_NBR.gather(2, rule_NB1)))[..., 0]
        tokens_LB = torch.empty_like(symbol_NB).index_copy_(0, self._leaf_order_L, symbol_NB)
        return tokens_LB.T.contiguous(), root_Q1B.sum(0)[0] > 0

    def _upward(self, said_BL: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Every message up, by the level, without tables, and the log of all that they were divided by: `up, log_scale_B`."""
        q, depth = self.num_symbols, self.depth
        up = {depth: _pick(self._leaf_QX, said_BL.T[self._leaf_order_L].flatten()).view(q, -1, len(said_BL))}
        log_scale_B = torch.zeros(len(said_BL), dtype=torch.float64, device=said_BL.device)
        for level in range(depth - 1, self.filter_level - 1, -1):
            up[level] = _contract(self._to_parent_QP, *up[level + 1].chunk(2, dim=1))
            log_scale_B += up[level].sum(0).log().sum(0)
            _normalise(up[level])
        return up, log_scale_B

    def _fill(self, probs_BLV: Tensor, said_BL: Tensor) -> Tensor:
        """Computes the posteriors of those leaves alone that say nothing."""
        q, num_rows = self.num_symbols, len(said_BL)
        said_LB = said_BL.T[self._leaf_order_L]
        # by level: what the leaves below a node say as a number, where there is a table; which nodes something is unsaid below
        said, unsaid = {self.depth: said_LB}, {self.depth: said_LB == q}
        for level in range(self.depth - 1, self.filter_level - 1, -1):
            left_NB, right_NB = unsaid[level + 1].chunk(2)
            unsaid[level] = left_NB | right_NB
            if (height := self.depth - level) < len(self._tables_QS):
                left_NB, right_NB = said[level + 1].chunk(2)
                said[level] = left_NB * self._tables_QS[height - 1].shape[1] + right_NB
        up = {}
        for level in range(min(said), self.filter_level - 1, -1):
            if level in said:
                up[level] = _pick(self._tables_QS[self.depth - level], said[level].flatten()).view(q, *said[level].shape)
            else:
                up[level] = _normalise(_contract(self._to_parent_QP, *up[level + 1].chunk(2, dim=1)))

        def up_at(level: int, node_M: Tensor) -> Tensor:
            if level in up:
                return _pick(up[level].flatten(1), node_M)
            return _pick(self._tables_QS[self.depth - level], said[level].flatten().index_select(0, node_M))

        root_Q1B, down_QNB = self._star(up[self.filter_level])
        possible_B = root_Q1B.sum(0)[0] > 0
        down_QM, node_M = down_QNB.flatten(1), None  # of all nodes
        for level in range(self.filter_level, self.depth):
            unsaid_N, unsaid_below_N = unsaid[level].flatten(), unsaid[level + 1].flatten()
            if node_M is None and unsaid_N.count_nonzero() < _FEW * len(unsaid_N):
                (node_M,) = unsaid_N.nonzero(as_tuple=True)
                down_QM = _pick(down_QM, node_M)
            down_QM = _normalise(down_QM)
            if node_M is None:
                if level + 1 not in up:
                    up[level + 1] = _pick(self._tables_QS[self.depth - level - 1], said[level + 1].flatten())
                left_QM, right_QM = up[level + 1].flatten(1).chunk(2, dim=1)
                to_both = [_contract(self._to_left_QP, down_QM, right_QM), _contract(self._to_right_QP, down_QM, left_QM)]
            else:
                to_both, children = [], []
                left_M, right_M = node_M, node_M + len(unsaid_N)
                sides = ((self._to_left_QP, left_M, right_M), (self._to_right_QP, right_M, left_M))
                for rules_QP, child_M, sibling_M in sides:
                    (asked,) = unsaid_below_N.index_select(0, child_M).nonzero(as_tuple=True)
                    sibling_QM = up_at(level + 1, sibling_M.index_select(0, asked))
                    to_both.append(_contract(rules_QP, _pick(down_QM, asked), sibling_QM))
                    children.append(child_M.index_select(0, asked))
                node_M = torch.cat(children)
            down_QM = torch.cat(to_both, dim=1)

        if node_M is None:
            (node_M,) = unsaid[self.depth].flatten().nonzero(as_tuple=True)
            down_QM = _pick(down_QM, node_M)
        row_M, leaf_M = node_M % num_rows, self._leaf_order_L.index_select(0, node_M // num_rows)
        belief_QM = _normalise(down_QM)
        possible_M = belief_QM.sum(0) > 0
        if not possible_M.all():  # what underflows on the way down alone
            possible_B[row_M[~possible_M]] = False
        belief_VM = torch.cat((belief_QM, belief_QM.new_zeros(1, len(node_M))))
        probs_BLV.flatten(0, 1).index_copy_(0, row_M * said_BL.shape[1] + leaf_M, belief_VM.T)
        return possible_B

    def _star(self, up_QNB: Tensor) -> tuple[Tensor, Tensor]:
        """From the nodes of level k to the root, and back to them: the root's belief (0 in rows that cannot be), and the
        messages to the nodes."""
        log_Q1B, log_QNB, zero_QNB = self._log_root(up_QNB)
        num_zeros_Q1B = zero_QNB.sum(1, keepdim=True)
        # where no root is possible, softmax would give NaN
        possible_11B = (num_zeros_Q1B == 0).any(0, keepdim=True)
        root_Q1B = torch.where(possible_11B, log_Q1B, 0.0).softmax(0) * possible_11B
        others_QNB = (log_QNB.sum(1, keepdim=True) - log_QNB).masked_fill_(num_zeros_Q1B - zero_QNB.long() > 0, -torch.inf)
        others_QNB = torch.where(possible_11B, others_QNB, 0.0).softmax(0) * possible_11B
        return root_Q1B, torch.einsum("nrx,rnb->xnb", self._star_NQQ, others_QNB)

    def _log_root(self, up_QNB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The root's belief, not normalised, `log_Q1B`; what each node of level k says of it, and where that is "never".

        It is a product over up to 2^16 nodes: a sum of logarithms, with the zeros counted apart, so that a node's own message
        can be taken out of it again."""
        to_root_QNB = torch.einsum("nrx,xnb->rnb", self._star_NQQ, up_QNB)
        zero_QNB = to_root_QNB == 0
        log_QNB = to_root_QNB.log().masked_fill_(zero_QNB, 0.0)
        log_Q1B = log_QNB.sum(1, keepdim=True).masked_fill_(zero_QNB.any(1, keepdim=True), -torch.inf)
        return log_Q1B, log_QNB, zero_QNB


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


def _pick(x_QS: Tensor, chosen_M: Tensor) -> Tensor:
    # three to six times as fast as indexing
    return x_QS.gather(1, chosen_M.expand(len(x_QS), -1))


def _normalise(message_QNB: Tensor) -> Tensor:
    # at every level: the evidence of 256 leaves underflows even float64. Where all is zero, zero it stays, down to the root
    return message_QNB.div_(message_QNB.sum(0).clamp_min_(_TINY))
