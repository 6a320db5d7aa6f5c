"""The exact posterior of every unobserved leaf of a random hierarchy: messages up and down through nodes of s children.

    a rule  a ─► (b_1 … b_s)     up[a]      the evidence below a node:      mean over a's rules of  Π_c up_c[b_c]
                                 down_c[b]  the evidence elsewhere:         Σ over the rules with b_c = b of
                                                                            down[a] · Π of up_o[b_o] over the others o
        2                        posterior of a leaf  ∝  down
      ┌─┴─┐
      1   M                      sample: from the root down, each node's rule in proportion to  Π_c up_c[b_c]

A message along a rule goes from all of its members but one to that one, so both directions are one function, `_send`: the
symbols' messages are copied to the rules that hold them, multiplied, and summed over the rules of each receiving symbol. Leaves
say one of q + 1 things, so that the lowest messages are looked up in a table; down go only messages to nodes with a hidden leaf
below.

Source: Cagnetta, Petrini, Tomasini, Favero, Wyart, "How deep neural networks learn compositional data: the random hierarchy
model", PRX 2024, arXiv 2307.02129. Shapes beyond those of `batch`: D levels of rules, R rules of a level, S children of a rule,
C = S + 1 members of one (0 the parent), T slots for rules, Q symbols, N nodes of a level, M some nodes of some rows, X things
that the leaves below a node can say. The batch is the last dimension of all messages (QNB); nodes of a level in a batch are
numbered node · B + row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlm_lightning.data.languages.hidden import HiddenOracle, each_its_own
from mlm_lightning.data.languages.oracle import cdf, choose
from mlm_lightning.randomness import uniform

_TINY = torch.finfo(torch.float64).tiny
_PRODUCTS = {"cpu": 2**17, "cuda": 2**25}
"""Elements of the products over rules that are worked on at once: on a CPU they stay in cache."""
_MANY = 2**12
"""So many messages are worked on rule by rule, twice as many at once."""
_LARGEST_TABLE = 2**16  # elements


@dataclass
class _Evidence:
    """What the leaves say, and the messages up, by level: `said` as numbers where there are tables, `up` above those."""

    said: dict[int, Tensor]
    up: dict[int, Tensor]
    log_scale_B: Tensor
    """What the messages of a row were divided by, all in all."""


class RHMOracle(HiddenOracle):
    """The answers about the leaves of `RHMSource`."""

    def __init__(self, children_DRS: Tensor, num_symbols: int) -> None:
        """`children_DRS[level]`: those of the rules of a level, each symbol's rules in one block."""
        self.depth, num_rules, self.branching = children_DRS.shape
        self.num_rules = num_rules // num_symbols
        seq_len = self.branching**self.depth
        super().__init__(num_symbols, seq_len, row_elements=seq_len * num_symbols)
        parent_1R = torch.arange(num_rules)[None] // self.num_rules
        self._members = [torch.cat((parent_1R, children_RS.T)).contiguous() for children_RS in children_DRS]
        self._slots = [
            _slots(members_CR, receiver, num_symbols) for members_CR in self._members for receiver in range(self.branching + 1)
        ]
        self._orders = [_node_order_N(level, self.branching) for level in range(self.depth + 1)]
        # 1 for the symbols that agree with what is observed; for all of them where nothing is
        eye_QQ, ones_Q1 = torch.eye(num_symbols, dtype=torch.float64), torch.ones(num_symbols, 1, dtype=torch.float64)
        self._tables, self._log_tables = [torch.cat((eye_QQ, ones_Q1), dim=1)], [torch.zeros(num_symbols + 1).double()]
        self._add_tables()

    def _add_tables(self) -> None:
        """Of each level from the leaves up, while they are small: the message up by what the leaves below a node say, and the
        log of what it was divided by."""
        while len(self._tables) <= self.depth:
            num_said, s = self._tables[-1].shape[1], self.branching
            if self.num_symbols * num_said**s > _LARGEST_TABLE:
                break
            said_X = torch.arange(num_said**s)
            digits_SX = [said_X // num_said ** (s - 1 - child) % num_said for child in range(s)]
            level = self.depth - len(self._tables)
            message_QX = self._send(level, 0, [_pick(self._tables[-1], digit_X) for digit_X in digits_SX])
            scale_X = _scale(message_QX)
            self._log_tables.append(scale_X.log() + sum(self._log_tables[-1][digit_X] for digit_X in digits_SX))
            self._tables.append(message_QX)

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        evidence = self._upward(said_BL)
        return evidence.log_scale_B + self._at(evidence, 0).mean(0).log()

    def _hidden(self, said_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the posteriors of those leaves alone that say nothing."""
        num_rows, s = len(said_BL), self.branching
        evidence = self._upward(said_BL)
        possible_B = self._at(evidence, 0).sum(0) > 0
        hidden = {self.depth: evidence.said[self.depth] == self.num_symbols}  # by level: below which nodes a leaf is
        for level in range(self.depth - 1, -1, -1):
            hidden[level] = torch.stack(hidden[level + 1].chunk(s)).any(0)
        (node_M,) = hidden[0].flatten().nonzero(as_tuple=True)
        down_QM = torch.ones(self.num_symbols, len(node_M), dtype=torch.float64, device=said_BL.device)
        for level in range(self.depth):
            hidden_N = hidden[level + 1].flatten()
            children = [node_M + child * hidden[level].numel() for child in range(s)]
            asked = [hidden_N.index_select(0, child_M).nonzero()[:, 0] for child_M in children]
            sent = []
            for child, asked_M in enumerate(asked):
                others = [other_M.index_select(0, asked_M) for other, other_M in enumerate(children) if other != child]
                messages = [_pick(down_QM, asked_M), *(self._at(evidence, level + 1, other_M) for other_M in others)]
                sent.append(self._send(level, child + 1, messages))
            down_QM = torch.cat(sent, dim=1)
            node_M = torch.cat([child_M.index_select(0, asked_M) for child_M, asked_M in zip(children, asked, strict=True)])
            _scale(down_QM)
        total_M = down_QM.sum(0)
        row_M, leaf_M = node_M % num_rows, self._orders[self.depth].index_select(0, node_M // num_rows)
        possible_B[row_M[total_M == 0]] = False  # what underflows on the way down alone
        return *each_its_own(said_BL, row_M * said_BL.shape[1] + leaf_M, (down_QM / total_M).T), possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The symbols of all nodes: `root`, and `level_j` with N = s^j nodes from left to right."""
        evidence, num_rows = self._upward(said_BL), len(said_BL)
        possible_B = torch.ones(num_rows, dtype=torch.bool, device=said_BL.device)
        down_QM = torch.ones(self.num_symbols, num_rows, dtype=torch.float64, device=said_BL.device)
        found = {}
        for level in range(self.depth + 1):
            belief_QNB = (self._at(evidence, level) * down_QM).view(self.num_symbols, -1, num_rows)
            total_NB = belief_QNB.sum(0)
            possible_B &= (total_NB > 0).all(0)
            belief_QNB /= total_NB
            ordered_QNB = torch.empty_like(belief_QNB).index_copy_(1, self._orders[level], belief_QNB)
            found[f"level_{level}"] = ordered_QNB.permute(2, 1, 0).contiguous()
            if level < self.depth:
                below = self._at(evidence, level + 1).chunk(self.branching, dim=1)
                others = [[other_QM for o, other_QM in enumerate(below) if o != child] for child in range(self.branching)]
                down_QM = torch.cat([self._send(level, c + 1, [down_QM, *those]) for c, those in enumerate(others)], dim=1)
                _scale(down_QM)
        return {"root": found["level_0"], **found}, possible_B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> tuple[Tensor, Tensor]:
        """Number 0 of a row is the root's, the others those of the nodes, level by level from left to right."""
        evidence, m = self._upward(said_BL), self.num_rules
        root_QB = self._at(evidence, 0)
        num_nodes = (self.seq_len - 1) // (self.branching - 1)
        u_NB = uniform(keys_B[:, None], torch.arange(1 + num_nodes)).T.to(said_BL.device)
        symbol_M, first = choose(root_QB.T, u_NB[0]), 1
        for level in range(self.depth):
            order_N, members_CR = self._orders[level], self._members[level]
            rule_MM = symbol_M * m + torch.arange(m, device=said_BL.device)[:, None]  # the rules of each node's symbol
            weight_MM = torch.ones_like(rule_MM, dtype=torch.float64)
            for child_QM, symbol_R in zip(
                self._at(evidence, level + 1).chunk(self.branching, dim=1), members_CR[1:], strict=True
            ):
                weight_MM *= child_QM.gather(0, symbol_R[rule_MM])
            u_M = u_NB[first : first + len(order_N)][order_N].flatten()
            taken_M = (cdf(weight_MM, dim=0) <= u_M).sum(0).clamp_(max=m - 1)
            symbol_M = members_CR[1:, symbol_M * m + taken_M].flatten()
            first += len(order_N)
        drawn_LB = symbol_M.view(self.seq_len, -1)
        tokens_LB = torch.empty_like(drawn_LB).index_copy_(0, self._orders[self.depth], drawn_LB)
        return tokens_LB.T, root_QB.sum(0) > 0

    def _upward(self, said_BL: Tensor) -> _Evidence:
        said = {self.depth: said_BL.T[self._orders[self.depth]]}
        for height, table_QX in enumerate(self._tables[:-1]):
            code_NB = torch.zeros((), dtype=torch.int64, device=said_BL.device)
            for child_NB in said[self.depth - height].chunk(self.branching):
                code_NB = code_NB * table_QX.shape[1] + child_NB
            said[self.depth - height - 1] = code_NB
        top = min(said)
        evidence = _Evidence(said, {}, self._log_tables[-1][said[top]].sum(0))
        for level in range(top - 1, -1, -1):
            message_QM = self._send(level, 0, list(self._at(evidence, level + 1).chunk(self.branching, dim=1)))
            evidence.log_scale_B += _scale(message_QM).log().view(-1, len(said_BL)).sum(0)
            evidence.up[level] = message_QM
        return evidence

    def _at(self, evidence: _Evidence, level: int, node_M: Tensor | None = None) -> Tensor:
        """The messages up of a level's nodes, `up_QM`: of all of them, or of some."""
        if level in evidence.up:
            return evidence.up[level] if node_M is None else _pick(evidence.up[level], node_M)
        said_N = evidence.said[level].flatten()
        return _pick(self._tables[self.depth - level], said_N if node_M is None else said_N.index_select(0, node_M))

    def _send(self, level: int, receiver: int, messages: list[Tensor]) -> Tensor:
        """What the rules of a level tell a member, `message_QM`, by the messages of all the others in their order."""
        slots_ST = self._slots[level * (self.branching + 1) + receiver]
        if messages[0].shape[1] == 0:
            return messages[0]
        if messages[0].device.type == "cpu" and messages[0].shape[1] >= _MANY:
            return self._send_many(level, receiver, messages)
        size = max(1, _PRODUCTS[messages[0].device.type] // slots_ST.shape[1])
        sums = []
        for first_QM, *others in zip(*(message_QM.split(size, dim=1) for message_QM in messages), strict=True):
            told_TM = torch.cat((first_QM, torch.zeros_like(first_QM[:1]))).index_select(0, slots_ST[0])
            for other_QM, slot_T in zip(others, slots_ST[1:], strict=True):
                told_TM *= other_QM.contiguous().index_select(0, slot_T)
            sums.append(told_TM.view(self.num_symbols, -1, told_TM.shape[1]).sum(1).mul_(1 / self.num_rules))
        return torch.cat(sums, dim=1) if len(sums) > 1 else sums[0]

    def _send_many(self, level: int, receiver: int, messages: list[Tensor]) -> Tensor:
        """`_send`, rule by rule: nothing is copied, and with so many messages a loop over rules costs nothing."""
        rules = self._members[level].T.tolist()
        told_QM = torch.zeros_like(messages[0], memory_format=torch.contiguous_format)
        for sums_QM, *others in zip(*(each_QM.split(2 * _MANY, dim=1) for each_QM in (told_QM, *messages)), strict=True):
            sums_Q, others_Q = sums_QM.unbind(), [other_QM.unbind() for other_QM in others]
            for members in rules:
                symbol, (first, *rest, last) = members[receiver], members[:receiver] + members[receiver + 1 :]
                factor_M = others_Q[0][first]
                for other_Q, member in zip(others_Q[1:], rest, strict=False):
                    factor_M = factor_M * other_Q[member]
                sums_Q[symbol].addcmul_(factor_M, others_Q[-1][last])
        return told_QM.mul_(1 / self.num_rules)


def _slots(members_CR: Tensor, receiver: int, num_symbols: int) -> Tensor:
    """The rules by the symbol of the receiver, as many slots (T in all) for each symbol: the symbols of the other members,
    `slots_ST`. In slots left over, the first of them is `num_symbols`, which stands for a message of 0."""
    symbol_R = members_CR[receiver]
    count_Q = symbol_R.bincount(minlength=num_symbols)
    most, order_R = int(count_Q.max()), symbol_R.argsort(stable=True)
    place_R = torch.arange(len(symbol_R)) - (count_Q.cumsum(0) - count_Q)[symbol_R[order_R]]
    others = [member for member in range(len(members_CR)) if member != receiver]
    slots_ST = torch.zeros(len(others), num_symbols * most, dtype=torch.int64)
    slots_ST[0] = num_symbols
    slots_ST[:, symbol_R[order_R] * most + place_R] = members_CR[others][:, order_R]
    return slots_ST


def _node_order_N(level: int, branching: int) -> Tensor:
    """The nodes of a level, numbered from left to right, in the order of the messages: first the first children of the level
    above, then the second ones …, so that each of them is one block of memory."""
    order_N = torch.zeros(1, dtype=torch.int64)
    for _ in range(level):
        order_N = torch.cat([branching * order_N + child for child in range(branching)])
    return order_N


def _pick(x_QX: Tensor, chosen_M: Tensor) -> Tensor:
    # three to six times as fast as indexing
    return x_QX.gather(1, chosen_M.expand(len(x_QX), -1))


def _scale(message_QM: Tensor) -> Tensor:
    """Divides messages by their largest element, at every level, lest thousands of leaves underflow; returns what by (0 where
    all is zero, which it stays)."""
    scale_M = message_QM.amax(0)
    message_QM /= scale_M.clamp_min(_TINY)
    return scale_M
