"""Codewords of a linear code: a hidden token is either certain or uniform.

    check 1     x_1     +  x_4 + x_6          = 0        sums modulo `num_symbols` = p, a prime; each has `check_weight`
    check 2          x_2 + 2 x_4        + x_7 = 0        tokens, with coefficients other than 0

    row         2  1  0  2  0  2  1  …                   uniform over all rows that satisfy all `num_checks` checks
    hidden      2  1  0  .  0  2  1                      one unknown, and a check that has it: certain

Always the same checks, drawn by `grammar_seed`: what is to be learned is which tokens belong together. `check_weight` goes from
easy to hard: 2 is copying (up to a permutation of symbols), 3 modular addition, `num_checks=1 check_weight=SEQ_LEN` parity;
with null, coefficients are dense and random. A token whose checks all have other hidden ones can seldom be told.

Solved for one token each, its `given` place, the checks say how the given tokens follow from the others, which are free. The
latent variable `message` is what the row holds at the free places.

Source: Gallager, "Low-density parity-check codes", IRE Transactions on Information Theory 1962. As tasks: Barak, Edelman, Goel,
Kakade, Malach, Zhang, "Hidden progress in deep learning: SGD learns parities near the computational limit", NeurIPS 2022,
arXiv 2207.08799; Power, Burda, Edwards, Babuschkin, Misra, "Grokking", 2022, arXiv 2201.02177.
Shapes beyond those of `batch`: C checks, K free places.
"""

from dataclasses import dataclass
from itertools import product
from math import log
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.data.languages.code_oracle import CodeOracle
from mlm_lightning.data.languages.joint import as_joint, check_size
from mlm_lightning.data.languages.synthetic import NumRows, SyntheticSource
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import Stream, generator, uniform
from mlm_lightning.values import checked

MAX_PRIME, MAX_CODE_LEN = 251, 512


@dataclass(frozen=True, eq=False)
class Solved:
    """Checks, each solved for its given place: x[given_C] = -rest_CK @ x[free_K] modulo p."""

    given_C: Tensor
    free_K: Tensor
    rest_CK: Tensor


class CodeSource(SyntheticSource):
    """Rows of `seq_len` tokens that satisfy the checks that `grammar_seed` draws; `seed` makes the rows alone."""

    @checked("data")
    def __init__(
        self,
        num_symbols: Annotated[int, Interval(ge=2, le=MAX_PRIME), "checks are sums modulo this prime number"] = 2,
        seq_len: Annotated[int, Interval(ge=2, le=MAX_CODE_LEN), "it is the number of tokens in a row"] = 32,
        num_checks: Annotated[int, Ge(1), "a row satisfies so many sums"] = 12,
        check_weight: Annotated[int, Ge(2), "so many tokens are in a check (null: any number of them)"] | None = 3,
        grammar_seed: int = 0,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        if not _is_prime(num_symbols):
            near = [next(filter(_is_prime, range(num_symbols, stop, way))) for stop, way in ((1, -1), (2 * num_symbols, 1))]
            remedy = f"use data.num_symbols={near[0]} or {near[1]}"
            raise ConfigError("data.num_symbols", num_symbols, "is no prime number: some symbols have no inverse", remedy)
        if num_checks >= seq_len:
            problem = f"with data.seq_len={seq_len}, so many checks leave one row at most"
            raise ConfigError("data.num_checks", num_checks, problem, f"use data.num_checks={seq_len - 1} or fewer")
        if check_weight is not None and check_weight > seq_len:
            problem = f"rows have data.seq_len={seq_len} tokens"
            raise ConfigError("data.check_weight", check_weight, problem, f"use data.check_weight={seq_len} or less")
        if num_symbols == 2 and check_weight == seq_len and num_checks > 1:
            problem = "there is one check of all tokens modulo 2"
            raise ConfigError("data.num_checks", num_checks, problem, "use data.num_checks=1, or a lower data.check_weight")
        self.num_checks, self._length = num_checks, seq_len
        self.checks_CL, self._solved = _independent_checks(num_symbols, seq_len, num_checks, check_weight, grammar_seed)

    @property
    def seq_len(self) -> int:
        return self._length

    def draw(self, keys_B: Tensor) -> Tensor:
        free_K, given_C, rest_CK = self._solved.free_K, self._solved.given_C, self._solved.rest_CK
        message_BK = uniform(keys_B[:, None], free_K).mul_(self.num_symbols).long()
        tokens_BL = torch.empty(len(keys_B), self._length, dtype=torch.int64)
        tokens_BL[:, free_K] = message_BK
        tokens_BL[:, given_C] = (message_BK.float() @ -rest_CK.T).long().remainder_(self.num_symbols)
        return tokens_BL

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        return {"message": self.draw(keys_B)[:, self._solved.free_K]}

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        return {"message": (len(self._solved.free_K), self.num_symbols)}

    def oracle(self) -> CodeOracle:
        return CodeOracle(self.num_symbols, self._solved.given_C, self._solved.free_K, self._solved.rest_CK)

    def entropy_rate(self) -> float:
        """Of a row, shared by its tokens: those at free places are uniform, and the others follow."""
        return (1 - self.num_checks / self._length) * log(self.num_symbols)

    def joint(self) -> Joint:
        check_size(self.num_symbols**self._length)  # all of them are tried
        checks = self.checks_CL.tolist()
        rows = [
            list(tokens)
            for tokens in product(range(self.num_symbols), repeat=self._length)
            if all(sum(map(int.__mul__, check, tokens)) % self.num_symbols == 0 for check in checks)
        ]
        free = self._solved.free_K.tolist()
        return as_joint([(1.0, row, row) for row in rows], {"message": lambda row: [row[place] for place in free]})


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _independent_checks(p: int, seq_len: int, num_checks: int, weight: int | None, seed: int) -> tuple[Tensor, Solved]:
    """`checks_CL` as they are drawn, and solved. One that follows from those before it is drawn again."""
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
        new_L = (check_L - check_L[given] @ solved_CL[:count]) % p  # says nothing of the places that others give
        if not new_L.any():
            continue
        place = int(new_L.nonzero()[-1])  # the last: free places come first, as a message before its checks
        new_L = new_L * pow(int(new_L[place]), -1, p) % p
        solved_CL[:count] = (solved_CL[:count] - solved_CL[:count, place, None] * new_L) % p
        drawn_CL[count], solved_CL[count] = check_L, new_L
        given.append(place)
    free_K = torch.tensor([place for place in range(seq_len) if place not in given])
    rest_CK = solved_CL[:, free_K]
    # residues around 0: then all sums of products stay below 2^24, and are exact in float32
    rest_CK = torch.where(rest_CK > p // 2, rest_CK - p, rest_CK).float()
    return drawn_CL, Solved(torch.tensor(given), free_K, rest_CK)
