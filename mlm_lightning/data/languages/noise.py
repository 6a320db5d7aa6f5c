"""A symbol that is replaced, now and then, by a uniform one: it makes `periodic` and `recall` hard or easy.

hit     1 - share + share / q      the probability of the symbol that was meant
miss    share / q                  of each other symbol
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """With probability `share`, a symbol is replaced by one of all `num_symbols`, itself among them."""

    share: float
    num_symbols: int

    @property
    def miss(self) -> float:
        return self.share / self.num_symbols

    @property
    def hit(self) -> float:
        return 1 - self.share + self.miss

    def entropy(self) -> float:
        """Nats, where it is known what was meant."""
        probs_Q = torch.tensor([self.hit, *[self.miss] * (self.num_symbols - 1)], dtype=torch.float64)
        return float(torch.special.entr(probs_Q).sum())

    def log_prob(self, hits: Tensor, misses: Tensor) -> Tensor:
        """The log-probability of so many symbols that were meant, and so many others (float64); -inf where it is 0."""
        return torch.xlogy(hits, self.hit) + torch.xlogy(misses, self.miss)

    def apply(self, meant: Tensor, u: Tensor) -> Tensor:
        """Symbols, each by one number of [0, 1): below `share` it says which one takes its place."""
        if self.share == 0:
            return meant
        other = (u / self.share * self.num_symbols).clamp(max=self.num_symbols - 1).long()
        return torch.where(u < self.share, other, meant)
