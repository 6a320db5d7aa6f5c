"""A symbol that is replaced, now and then, by a uniform one: what makes `periodic` and `recall` hard or easy.

    hit     1 - share + share / q      the probability of what was meant
    miss    share / q                  of each other symbol

Logarithms of weights that may be 0: `LOG_ZERO` stands for -inf, and can be multiplied by 0, added and subtracted without NaN.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

LOG_ZERO = -1e30


@dataclass(frozen=True)
class Noise:
    """With probability `share`, a symbol is replaced by one of all `num_symbols`, itself among them."""

    share: float
    num_symbols: int

    @property
    def miss(self) -> float:
        return self.share / self.num_symbols

    @property
    def log_hit(self) -> float:
        return log(1 - self.share + self.miss)

    @property
    def log_miss(self) -> float:
        return log(self.miss) if self.miss > 0 else LOG_ZERO

    def entropy(self) -> float:
        """Nats, where it is known what was meant."""
        hit = 1 - self.share + self.miss
        return -hit * self.log_hit - (self.num_symbols - 1) * self.miss * self.log_miss

    def log_prob(self, hits: Tensor, all_: Tensor) -> Tensor:
        """Of so many symbols, `hits` of which are what was meant."""
        return hits * self.log_hit + (all_ - hits) * self.log_miss

    def apply(self, meant: Tensor, u: Tensor) -> Tensor:
        """Symbols, each by one number of [0, 1): below `share` it says which one takes its place."""
        if self.share == 0:
            return meant
        return torch.where(u < self.share, (u / self.share * self.num_symbols).clamp_(max=self.num_symbols - 1).long(), meant)


def log_prob_of(log_weight: Tensor) -> Tensor:
    """-inf where a weight is 0."""
    return log_weight.masked_fill(log_weight < LOG_ZERO / 2, -torch.inf)
