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

from typing import NoReturn

import torch
from torch import Tensor

from mlm_lightning.data.languages.synthetic import observed_tokens

_TINY = torch.finfo(torch.float64).tiny
# Elements of the messages of a level, and of an outer product, that are worked on at once: on a CPU the latter stay in cache
_CHUNK = {"cpu": 2**20, "cuda": 2**25}
_BLOCK = {"cpu": 2**19, "cuda": 2**27}
_LARGEST_TABLE = 2**16  # elements
_FEW = 0.8
"""Of a level's nodes: where fewer have something to pass on, they are picked."""


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
        self._tables_QS = self._make_tables()

    def _make_tables(self) -> list[Tensor]:
        """What a node of the lowest levels is told from below, by what its leaves say: from the leaves on up."""
        q = self.num_symbols
        # 1 for the symbols that agree with what is observed; for all of them where nothing is
        tables_QS = [torch.cat((torch.eye(q, dtype=torch.float64), torch.ones(q, 1, dtype=torch.float64)), dim=1)]
        while len(tables_QS) <= self.depth - self.filter_level and q * tables_QS[-1].shape[1] ** 2 <= _LARGEST_TABLE:
            said = tables_QS[-1].shape[1]
            left_QS, right_QS = tables_QS[-1].repeat_interleave(said, dim=1), tables_QS[-1].repeat(1, said)
            tables_QS.append(_normalise(_contract(self._to_parent_QP, left_QS, right_QS)))
        return tables_QS

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`probs_BLV`, float64: all on the token where it is observed; `[MASK]` (the last) has probability 0.

        Tokens that are not observed may hold anything. Raises ValueError, naming the first such row, where what is observed is
        no symbol or has probability zero. (Every pair has a parent, so every row is possible; but the probability of a rule
        can underflow to zero where sigma is in the hundreds.)
        """
        if tokens_BL.device.type not in _CHUNK:  # such as Apple's GPUs, which have no float64
            return self.posterior(tokens_BL.cpu(), observed_BL.cpu()).float().to(tokens_BL.device)
        q, tokens_BL = self.num_symbols, self._said(tokens_BL, observed_BL)
        probs_BLV = torch.zeros(*tokens_BL.shape, q + 1, dtype=torch.float64, device=tokens_BL.device)
        first_T = torch.arange(0, probs_BLV.numel(), q + 1, device=tokens_BL.device)  # T: the tokens of all rows
        probs_BLV.view(-1).index_fill_(0, tokens_BL.flatten() + first_T, 1.0)
        num_rows = max(1, _CHUNK[tokens_BL.device.type] // (q << self.depth))
        for start in range(0, len(tokens_BL), num_rows):
            rows = slice(start, start + num_rows)
            self._fill(probs_BLV[rows], tokens_BL[rows], start)
        return probs_BLV

    def latents(self, tokens_BL: Tensor, observed_BL: Tensor) -> dict[str, Tensor]:
        """The posterior of the symbols of nodes, `probs_BNQ` (float64): `root` (N = 1), and `level_j` (N = 2^j, from left to
        right) for j = 0 and each j from the filter level on, since the nodes of that level hang on the root.

        Raises ValueError as `posterior` does."""
        if tokens_BL.device.type not in _CHUNK:
            found = self.latents(tokens_BL.cpu(), observed_BL.cpu())
            return {name: probs_BNQ.float().to(tokens_BL.device) for name, probs_BNQ in found.items()}
        q, tokens_BL = self.num_symbols, self._said(tokens_BL, observed_BL)
        num_rows = max(1, _CHUNK[tokens_BL.device.type] // (q << self.depth))
        chunks = [self._beliefs(tokens_BL[i : i + num_rows], i) for i in range(0, len(tokens_BL), num_rows)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]} if chunks else {}

    def _beliefs(self, tokens_BL: Tensor, first_row: int) -> dict[str, Tensor]:
        """Every message once, without tables: of every node, something is asked."""
        q, k, depth = self.num_symbols, self.filter_level, self.depth
        up = {depth: _pick(self._tables_QS[0], tokens_BL.T[self._leaf_order_L].flatten()).view(q, -1, len(tokens_BL))}
        for level in range(depth - 1, k - 1, -1):
            up[level] = _normalise(_contract(self._to_parent_QP, *up[level + 1].chunk(2, dim=1)))
        root_Q1B, down_QNB = self._star(up[k], first_row)
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
        found = {}
        for name, belief_QNB in beliefs.items():
            if not (possible_NB := belief_QNB.sum(0) > 0).all():  # what underflows on the way down alone
                _refuse(first_row + int((~possible_NB.all(0)).nonzero()[0]))
            order_N = _node_order_N(belief_QNB.shape[1].bit_length() - 1).to(tokens_BL.device)
            found[name] = torch.empty_like(belief_QNB).index_copy_(1, order_N, belief_QNB).permute(2, 1, 0).contiguous()
        return found

    def _said(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """What each leaf says, q where that is nothing; and all tables are on the device of the tokens."""
        if tokens_BL.shape[-1] != 2**self.depth:
            raise ValueError(f"rows of {tokens_BL.shape[-1]} tokens: a tree of depth {self.depth} has {2**self.depth} leaves")
        for name, table in vars(self).items():
            if isinstance(table, Tensor):
                setattr(self, name, table.to(tokens_BL.device))
        self._tables_QS = [table_QS.to(tokens_BL.device) for table_QS in self._tables_QS]
        return observed_tokens(tokens_BL, observed_BL, self.num_symbols)

    def _fill(self, probs_BLV: Tensor, tokens_BL: Tensor, first_row: int) -> None:
        """Writes the posteriors of those leaves that say nothing, whose token is q."""
        q, num_rows = self.num_symbols, len(tokens_BL)
        said_LB = tokens_BL.T[self._leaf_order_L]
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

        down_QM, node_M = self._star(up[self.filter_level], first_row)[1].flatten(1), None  # of all nodes
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
            _refuse(first_row + int(row_M[~possible_M].min()))
        belief_VM = torch.cat((belief_QM, belief_QM.new_zeros(1, len(node_M))))
        probs_BLV.flatten(0, 1).index_copy_(0, row_M * tokens_BL.shape[1] + leaf_M, belief_VM.T)

    def _star(self, up_QNB: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
        """From the nodes of level k to the root, and back to them: the root's belief, and the messages to the nodes.

        The root's belief is a product over up to 2^16 nodes: a sum of logarithms, with the zeros counted apart, so that a
        node's own message can be taken out of it again."""
        to_root_QNB = torch.einsum("nrx,xnb->rnb", self._star_NQQ, up_QNB)
        zero_QNB = to_root_QNB == 0
        num_zeros_Q1B = zero_QNB.sum(1, keepdim=True)
        if (impossible_B := (num_zeros_Q1B > 0).all(0)[0]).any():
            _refuse(first_row + int(impossible_B.nonzero()[0]))
        log_QNB = to_root_QNB.log().masked_fill_(zero_QNB, 0.0)
        root_Q1B = log_QNB.sum(1, keepdim=True).masked_fill_(num_zeros_Q1B > 0, -torch.inf).softmax(0)
        others_QNB = (log_QNB.sum(1, keepdim=True) - log_QNB).masked_fill_(num_zeros_Q1B - zero_QNB.long() > 0, -torch.inf)
        return root_Q1B, torch.einsum("nrx,rnb->xnb", self._star_NQQ, others_QNB.softmax(0))


def _refuse(row: int) -> NoReturn:
    raise ValueError(
        f"row {row} of the batch: the observed tokens have probability zero under the grammar; they must come from rows of "
        "the same source (the same num_symbols, depth, sigma, filter_level and grammar_seed)"
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


def _pick(x_QS: Tensor, chosen_M: Tensor) -> Tensor:
    # three to six times as fast as indexing
    return x_QS.gather(1, chosen_M.expand(len(x_QS), -1))


def _normalise(message_QNB: Tensor) -> Tensor:
    # at every level: the evidence of 256 leaves underflows even float64. Where all is zero, zero it stays, down to the root
    return message_QNB.div_(message_QNB.sum(0).clamp_min_(_TINY))
