"""The rules of a tree: which pairs of symbols a symbol branches into, and how probably.

    a ─► (b, c)   with probability M[a, b, c]      each pair has one possible parent

Shapes: Q symbols (also the rules of a symbol), N nodes of a level.
"""

import torch
from torch import Tensor

from mlm_lightning.randomness import Stream, generator


class Grammar:
    """The rules: the q² pairs of symbols, dealt at random to the q symbols, q rules each.

    `children_QQ2[a, i]` is the pair of the i-th rule of symbol a, and `probs_QQ[a, i]` the rule's probability: a softmax over i
    of sigma·N(0, 1) draws. The same `grammar_seed` gives the same pairs and the same draws at every sigma.
    """

    def __init__(self, num_symbols: int, sigma: float, grammar_seed: int) -> None:
        self.num_symbols = q = num_symbols
        source = generator(grammar_seed, Stream.GRAMMAR)
        pairs_QQ = torch.randperm(q * q, generator=source).view(q, q)
        draws_QQ = torch.randn(q, q, generator=source, dtype=torch.float64)
        self.children_QQ2 = torch.stack((pairs_QQ // q, pairs_QQ % q), dim=-1)
        self.probs_QQ = (sigma * draws_QQ).softmax(dim=-1)

    @property
    def M(self) -> Tensor:
        """`M[a, b, c]`: the probability that a node with symbol a has the children (b, c); float64 of shape (q, q, q)."""
        q = self.num_symbols
        M = torch.zeros(q, q, q, dtype=torch.float64)
        M[torch.arange(q)[:, None], self.children_QQ2[..., 0], self.children_QQ2[..., 1]] = self.probs_QQ
        return M

    def marginals_NQQ(self, level: int) -> Tensor:
        """`[v, a, b]`: the probability that the v-th node of a level has symbol b, given the root a. It is the product, along
        the node's path, of the left or right marginals of `M`."""
        zeros_QQ = torch.zeros(self.num_symbols, self.num_symbols, dtype=torch.float64)
        left_QQ = zeros_QQ.scatter_add(1, self.children_QQ2[..., 0], self.probs_QQ)
        right_QQ = zeros_QQ.scatter_add(1, self.children_QQ2[..., 1], self.probs_QQ)
        paths_NQQ = torch.eye(self.num_symbols, dtype=torch.float64)[None]
        for _ in range(level):
            paths_NQQ = torch.stack((paths_NQQ @ left_QQ, paths_NQQ @ right_QQ), dim=1).flatten(0, 1)
        return paths_NQQ
