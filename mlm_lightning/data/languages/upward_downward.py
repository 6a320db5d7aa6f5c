"""Messages up and down a tree whose nodes are rewritten by rules a ─► (b_1 … b_s): upward-downward.

                  root                     up[a]      =  Σ over rules r of a          of  p(r | a) · Π_c up_c[b_c]
              ·  ·    ·  ·                 down_c[b]  =  Σ over rules r with b_c = b  of  p(r | a) · down[a] · Π_o≠c up_o[b_o]
            v      …      w   level k      belief     =  p(symbol of a node | evidence)  ∝  up · down
          ┌─┴─┐         ┌─┴─┐
         2     M       0     M             up holds the evidence below a node, down all other; a leaf's belief is its posterior

Above the rules stands a star: the nodes of level k hang on a uniform root, each by a table of its own, p(node | root).

    hears_n[a]  =  Σ_b star_n[a, b] · up_n[b]                the evidence of node n, as a function of the root
    down_n[b]   =  Σ_a star_n[a, b] · Π_i≠n hears_i[a]       (in logarithms, as there may be thousands of nodes)

A `tree` with the filter level k has the 2^k nodes of that level in its star; with k = 0, and in `rhm`, the star is the root
alone, p(node | root) = [node = root]. Messages are divided by their largest number at every level.

Shapes beyond those of `batch`: D levels of rules, Q symbols, R rules of a level (R / Q of each symbol, in blocks), S children
of a rule, N nodes of a level.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import log, prod
from operator import add, mul

import torch
from torch import Tensor

from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, LatentAnswer, choose, possible

_TINY = torch.finfo(torch.float64).tiny
_ELEMENTS = 2**24  # of a level's nodes times rules, that are worked on at once: one row may have more than the memory


class UpwardDownward(LanguageOracle):
    """The answers about the leaves of `TreeSource` and `RHMSource`, and about the nodes above them."""

    def __init__(self, children_DSR: Tensor, weight_R: Tensor, star_NQQ: Tensor, star_level: int = 0) -> None:
        """`weight_R`: p(rule | its parent). `star_NQQ`: p(node | root), from the row's root to the column's node."""
        depth, self.num_children, _ = children_DSR.shape
        num_nodes, num_symbols, _ = star_NQQ.shape
        seq_len = num_nodes * self.num_children**depth
        super().__init__(num_symbols, seq_len, row_elements=8 * seq_len * max(num_symbols, len(weight_R) // self.num_children))
        self.children_DSR, self.weight_R, self.star_NQQ, self.star_level = children_DSR, weight_R, star_NQQ, star_level
        self.parent_R = torch.arange(num_symbols).repeat_interleave(len(weight_R) // num_symbols)
        eye_QQ = torch.eye(num_symbols, dtype=torch.float64)
        self.says_XQ = torch.cat((eye_QQ, torch.ones_like(eye_QQ[:1])))

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        up, log_root_BQ = self._upward(evidence_BL)
        return self._beliefs(up)[-1], possible(log_root_BQ)

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        return self._upward(evidence_BL)[1].logsumexp(1) - log(self.num_symbols)

    def _latents(self, evidence_BL: Tensor) -> LatentAnswer:
        """The symbols of nodes, `probs_BNQ`: `root` (N = 1), and `level_j` for j = 0 and each j from the star's level on, nodes
        from left to right."""
        up, log_root_BQ = self._upward(evidence_BL)
        root_B1Q = log_root_BQ.softmax(1)[:, None]
        levels = {f"level_{self.star_level + d}": belief_BNQ for d, belief_BNQ in enumerate(self._beliefs(up))}
        return {"root": root_B1Q, "level_0": root_B1Q} | levels, possible(log_root_BQ)

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        """From the root down, each node's rule given the evidence below it. A node's random number is the one that chooses its
        rule where rows are drawn: 0 is the root's, then come the inner nodes, level by level from the root, then the star's."""
        up, log_root_BQ = self._upward(evidence_BL)
        s, device, star_nodes = self.num_children, evidence_BL.device, len(self.star_NQQ)
        u_BN = self._uniform(keys_B, torch.arange(self.seq_len + star_nodes))
        symbol_BN = choose(log_root_BQ.softmax(1)[:, None], u_BN[:, :1])
        if self.star_level > 0:
            star_BNQ = self.star_NQQ[torch.arange(star_nodes, device=device), symbol_BN]
            symbol_BN = choose(star_BNQ * up[0], u_BN[:, self.seq_len :])
        for children_SR, up_BNQ in zip(self.children_DSR, up[1:], strict=True):
            num_nodes, num_rules = symbol_BN.shape[1], len(self.weight_R) // self.num_symbols
            rule_BNI = symbol_BN[..., None] * num_rules + torch.arange(num_rules, device=device)  # the rules of its symbol
            weight_BNI = self.weight_R[rule_BNI]
            for child_R, child_BNQ in zip(children_SR, up_BNQ.unflatten(1, (-1, s)).unbind(2), strict=True):
                weight_BNI = weight_BNI * child_BNQ.gather(2, child_R[rule_BNI])
            first = 1 + (num_nodes - 1) // (s - 1)
            taken_BN1 = choose(weight_BNI, u_BN[:, first : first + num_nodes])[..., None]
            symbol_BN = children_SR.T[rule_BNI.gather(2, taken_BN1)[..., 0]].flatten(1)
        return symbol_BN, possible(log_root_BQ)

    def _upward(self, evidence_BL: Tensor) -> tuple[list[Tensor], Tensor]:
        """`up_BNQ` of each level from the star's to the leaves', and `log_root_BQ`, log p(evidence | root)."""
        up = [self.says_XQ[evidence_BL]]
        log_B = torch.zeros(len(evidence_BL), dtype=torch.float64, device=evidence_BL.device)
        for children_SR in self.children_DSR.flip(0):
            up_BNQ = self._in_parts(self._up, children_SR, up[0].unflatten(1, (-1, self.num_children)))
            log_B = log_B + up_BNQ.amax(2).log().sum(1)
            up.insert(0, _scaled(up_BNQ))
        return up, log_B[:, None] + self._log_hears(up[0]).sum(1)

    def _beliefs(self, up: list[Tensor]) -> list[Tensor]:
        """p(node | evidence), `belief_BNQ`, of each level from the star's to the leaves'."""
        others_BNQ = torch.stack(_others(self._log_hears(up[0]).unbind(1), add, 0), dim=1).softmax(2)
        down = [torch.einsum("bna,nac->bnc", others_BNQ, self.star_NQQ)]
        for children_SR, up_BNQ in zip(self.children_DSR, up[1:], strict=True):
            child_BNSQ = up_BNQ.unflatten(1, (-1, self.num_children))
            down.append(_scaled(self._in_parts(self._down, children_SR, child_BNSQ, down[-1]).flatten(1, 2)))
        beliefs = [up_BNQ * down_BNQ for up_BNQ, down_BNQ in zip(up, down, strict=True)]
        return [belief_BNQ / belief_BNQ.sum(2, keepdim=True) for belief_BNQ in beliefs]

    def _up(self, children_SR: Tensor, child_BNSQ: Tensor) -> Tensor:
        """From children with `child_BNSQ` to their parents, `up_BNQ`."""
        rule_BNR = self.weight_R * prod(_at_rules(children_SR, child_BNSQ))
        return rule_BNR.unflatten(2, (self.num_symbols, -1)).sum(3)

    def _down(self, children_SR: Tensor, child_BNSQ: Tensor, down_BNQ: Tensor) -> Tensor:
        """From nodes with `down_BNQ` to their children, `down_BNSQ`; their messages up are `child_BNSQ`."""
        parent_BNR = self.weight_R * down_BNQ[..., self.parent_R]
        others = _others(_at_rules(children_SR, child_BNSQ), mul, 1)
        zero_BNQ = torch.zeros_like(down_BNQ)
        to_children = [
            zero_BNQ.index_add(2, child_R, parent_BNR * others_BNR)
            for child_R, others_BNR in zip(children_SR, others, strict=True)
        ]
        return torch.stack(to_children, dim=2)

    def _in_parts(self, send: Callable[..., Tensor], children_SR: Tensor, *messages: Tensor) -> Tensor:
        """What `send` gives for all nodes of a level, some of them at a time."""
        num_rows = max(1, len(messages[0]))
        size = max(1, _ELEMENTS // (num_rows * children_SR.numel()))
        parts = zip(*(message.split(size, dim=1) for message in messages), strict=True)
        return torch.cat([send(children_SR, *part) for part in parts], dim=1)

    def _log_hears(self, up_BNQ: Tensor) -> Tensor:
        return torch.einsum("bnc,nac->bna", up_BNQ, self.star_NQQ).log()


def _at_rules(children_SR: Tensor, child_BNSQ: Tensor) -> list[Tensor]:
    """Each child's message at the symbol that a rule gives it, `message_BNR`."""
    return [child_BNSQ[:, :, c, child_R] for c, child_R in enumerate(children_SR)]


def _others(parts: Sequence[Tensor], together: Callable[[Tensor, Tensor], Tensor], nothing: int) -> list[Tensor]:
    """For each part those before it and those after it, put together; its own is not taken out of all, as it may be 0."""
    empty = torch.full_like(parts[0], nothing)
    before = accumulate(parts[:-1], together, initial=empty)
    after = accumulate(parts[:0:-1], together, initial=empty)
    return [together(*both) for both in zip(before, reversed(list(after)), strict=True)]


def _scaled(message_BNQ: Tensor) -> Tensor:
    return message_BNQ / message_BNQ.amax(2, keepdim=True).clamp(min=_TINY)
