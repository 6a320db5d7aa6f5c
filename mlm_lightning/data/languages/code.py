"""Codewords of a linear code: a hidden token is either certain or uniform.

    check 1     x_1     +  x_4 + x_6          = 0        sums modulo `num_symbols` = p, a prime; each has `check_weight`
    check 2          x_2 + 2 x_4        + x_7 = 0        tokens, with coefficients other than 0

    row         2  1  0  2  0  2  1  …                   uniform over all rows that satisfy all `num_checks` checks
    hidden      2  1  0  .  0  2  1                      one unknown, and a check that has it: certain

Always the same checks, drawn by `grammar_seed`: what is to be learned is which tokens belong together. `check_weight` goes from
easy to hard: 2 is copying (up to a permutation of symbols), 3 modular addition, `num_checks=1 check_weight=SEQ_LEN` parity;
with null, coefficients are dense and random. A token whose checks all have other hidden ones is seldom certain.

Solved for one token each, its `given` place, the checks say how the given tokens follow from the others, which are free. The
latent variable `message` is what the row holds at the free places.

Source: Gallager, "Low-density parity-check codes", IRE Transactions on Information Theory 1962. As tasks: Barak, Edelman, Goel,
Kakade, Malach, Zhang, "Hidden progress in deep learning: SGD learns parities near the computational limit", NeurIPS 2022,
arXiv 2207.08799; Power, Burda, Edwards, Babuschkin, Misra, "Grokking", 2022, arXiv 2201.02177.
Shapes beyond those of `batch`: C checks, K free places.
"""

from functools import cached_property
from math import log
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.data.languages.code_oracle import CodeOracle
from mlm_lightning.data.languages.synthetic import Errors, Language, Sizes, language
from mlm_lightning.randomness import Stream, generator, uniform

MAX_PRIME, MAX_CODE_LEN = 251, 512


@language
class CodeSource(Language):
    """Rows of `seq_len` tokens that satisfy the checks that `grammar_seed` draws; `seed` makes the rows alone."""

    num_symbols: Annotated[int, Interval(ge=2, le=MAX_PRIME), "checks are sums modulo this prime number"] = 2
    seq_len: Annotated[int, Interval(ge=2, le=MAX_CODE_LEN), "it is the number of tokens in a row"] = 32
    num_checks: Annotated[int, Ge(1), "a row satisfies so many sums"] = 12
    check_weight: Annotated[int, Ge(2), "so many tokens are in a check (null: any number of them)"] | None = 3
    grammar_seed: int = 0

    def errors(self) -> Errors:
        p, rows = self.num_symbols, f"rows have data.seq_len={self.seq_len} tokens"
        if not _is_prime(p):
            near = [next(filter(_is_prime, numbers)) for numbers in (range(p, 1, -1), range(p, 2 * p))]
            remedy = f"use data.num_symbols={near[0]} or {near[1]}"
            yield self.error("num_symbols", "is no prime number: some symbols have no inverse", remedy)
        if self.num_checks >= self.seq_len:
            problem = f"with data.seq_len={self.seq_len}, so many checks leave one row at most"
            remedy = f"use data.num_checks={self.seq_len - 1} or fewer"
            yield self.error("num_checks", problem, remedy)
        if self.check_weight is not None and self.check_weight > self.seq_len:
            yield self.error("check_weight", rows, f"use data.check_weight={self.seq_len} or less")
        if p == 2 and self.check_weight == self.seq_len and self.num_checks > 1:
            remedy = "use data.num_checks=1, or a lower data.check_weight"
            yield self.error("num_checks", "there is one check of all tokens modulo 2", remedy)

    @property
    def checks_CL(self) -> Tensor:
        """The coefficients of the checks, as they are drawn."""
        return self._drawn_and_solved[0]

    @cached_property
    def free_K(self) -> Tensor:
        """The free places of a row."""
        is_given_L = torch.zeros(self.seq_len, dtype=torch.bool)
        is_given_L[self.given_C] = True
        return (~is_given_L).nonzero()[:, 0]

    @property
    def given_C(self) -> Tensor:
        """The place that each check is solved for."""
        return self._drawn_and_solved[2]

    @cached_property
    def _drawn_and_solved(self) -> tuple[Tensor, Tensor, Tensor]:
        return independent_checks(self.num_symbols, self.seq_len, self.num_checks, self.check_weight, self.grammar_seed)

    def draw(self, keys_B: Tensor) -> Tensor:
        _, solved_CL, given_C = self._drawn_and_solved
        message_BK = (uniform(keys_B[:, None], self.free_K) * self.num_symbols).floor()
        tokens_BL = torch.empty(len(keys_B), self.seq_len, dtype=torch.int64)
        tokens_BL[:, self.free_K] = message_BK.long()
        # products of whole numbers are exact in float64, and a multiple of the speed of int64
        tokens_BL[:, given_C] = (-message_BK @ solved_CL[:, self.free_K].double().T).long() % self.num_symbols
        return tokens_BL

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        return {"message": self.draw(keys_B)[:, self.free_K]}

    def latent_sizes(self) -> Sizes:
        return {"message": (len(self.free_K), self.num_symbols)}

    def oracle(self) -> CodeOracle:
        return CodeOracle(self.checks_CL, self.num_symbols, self.given_C, self.free_K)

    def entropy_rate(self) -> float:
        """That of a row, shared by its tokens: those at free places are uniform, and the others follow."""
        return (1 - self.num_checks / self.seq_len) * log(self.num_symbols)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def independent_checks(p: int, seq_len: int, num_checks: int, weight: int | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """`checks_CL` as they are drawn, the same solved for one place each, and those places, `given_C`. One that follows from
    those before it is drawn again."""
    source = generator(seed, Stream.GRAMMAR)
    drawn_CL = torch.zeros(num_checks, seq_len, dtype=torch.int64)
    solved_CL = torch.zeros_like(drawn_CL)
    given: list[int] = []
    while (count := len(given)) < num_checks:
        if weight is None:
            check_L = torch.randint(p, (seq_len,), generator=source)
        else:
            places_W = torch.randperm(seq_len, generator=source)[:weight]
            check_L = torch.zeros(seq_len, dtype=torch.int64)
            check_L[places_W] = torch.randint(1, p, (weight,), generator=source)
        new_L = (check_L - check_L[given] @ solved_CL[:count]) % p  # without the places that others give
        if not new_L.any():
            continue
        place = int(new_L.nonzero()[-1])  # the last: free places come first, as a message before its checks
        new_L = new_L * pow(int(new_L[place]), -1, p) % p
        solved_CL[:count] = (solved_CL[:count] - solved_CL[:count, place, None] * new_L) % p
        drawn_CL[count], solved_CL[count] = check_L, new_L
        given.append(place)
    return drawn_CL, solved_CL, torch.tensor(given)
