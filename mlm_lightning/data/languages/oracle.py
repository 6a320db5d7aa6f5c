"""What the oracle of a language answers, each a question about the tokens that are not observed:

    tokens      2   .   .   1          "." is not observed
    posterior   1  .7  .4   1          the probability of each symbol at each of them, here of symbol 0
    sample      2   0   3   1          all of them drawn together
    latents        root: 3             the posterior of what the row grew from
    log_likelihood      -4.2           log P(2 . . 1): of what is observed, the rest summed out

A language says how a block of rows is worked on (`_posterior`, `_sample`, `_latents`, `_log_likelihood`); what surrounds it is
here: the checks of what is observed, blocks that fit the memory, the device, the error that names an impossible row.
"""

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor

from mlm_lightning.data.languages.synthetic import observed_tokens
from mlm_lightning.randomness import uniform

_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}
"""Elements (of 8 bytes) that a block of rows may need, by the device; on others there is no float64."""

Answer = tuple[Tensor, Tensor]
"""Of a block of rows: what is asked, and `possible_B`, False where what is observed has probability zero."""


class LanguageOracle:
    """Exact answers in float64, for `num_symbols` symbols and rows of `seq_len` tokens, about any tokens given any others.

    Tokens that are not observed may hold anything. All but `log_likelihood` raise ValueError, naming the first such row, where
    what is observed has probability zero; all of them where it is no symbol."""

    def __init__(self, num_symbols: int, seq_len: int, row_elements: int) -> None:
        """`row_elements`: how many numbers are kept for one row while it is worked on."""
        self.num_symbols, self.seq_len, self._row_elements = num_symbols, seq_len, row_elements
        self._one_hot_VV = torch.eye(num_symbols + 1, dtype=torch.float64)

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`probs_BLV`: all on the token where it is observed; `[MASK]` (the last) has probability 0."""
        if tokens_BL.device.type not in _ELEMENTS:
            return self.posterior(tokens_BL.cpu(), observed_BL.cpu()).float().to(tokens_BL.device)
        said_BL = self._said(tokens_BL, observed_BL)
        probs_BLV = torch.empty(*said_BL.shape, self.num_symbols + 1, dtype=torch.float64, device=said_BL.device)
        for rows in self._blocks(said_BL):
            self._refuse_impossible(self._write(probs_BLV[rows], said_BL[rows]), rows.start)
        return probs_BLV

    def log_likelihood(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`log_prob_B` (nats): of the tokens that are observed, the others summed out; -inf where they are impossible."""
        if tokens_BL.device.type not in _ELEMENTS:
            return self.log_likelihood(tokens_BL.cpu(), observed_BL.cpu()).float().to(tokens_BL.device)
        said_BL = self._said(tokens_BL, observed_BL)
        parts = [self._log_likelihood(said_BL[rows]) for rows in self._blocks(said_BL)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=said_BL.device)

    def sample(self, tokens_BL: Tensor, observed_BL: Tensor, keys_B: Tensor) -> Tensor:
        """`tokens_BL` (int64): the observed tokens, and the others drawn jointly from their posterior, each row a function of
        its key (`randomness.row_keys`)."""
        if tokens_BL.device.type not in _ELEMENTS:
            return self.sample(tokens_BL.cpu(), observed_BL.cpu(), keys_B.cpu()).to(tokens_BL.device)
        said_BL = self._said(tokens_BL, observed_BL)
        drawn_BL = said_BL.clone()
        for rows in self._blocks(said_BL):
            sampled_BL, possible_B = self._sample(said_BL[rows], keys_B[rows])
            self._refuse_impossible(possible_B, rows.start)
            drawn_BL[rows] = torch.where(said_BL[rows] == self.num_symbols, sampled_BL, said_BL[rows])
        return drawn_BL

    def latents(self, tokens_BL: Tensor, observed_BL: Tensor) -> dict[str, Tensor]:
        """The posterior of the latent variables, `probs_BNS` by name (N nodes, S states); empty where the language has none."""
        if tokens_BL.device.type not in _ELEMENTS:
            found = self.latents(tokens_BL.cpu(), observed_BL.cpu())
            return {name: probs_BNS.float().to(tokens_BL.device) for name, probs_BNS in found.items()}
        said_BL = self._said(tokens_BL, observed_BL)
        parts: list[dict[str, Tensor]] = []
        for rows in self._blocks(said_BL):
            found, possible_B = self._latents(said_BL[rows])
            self._refuse_impossible(possible_B, rows.start)
            parts.append(found)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _write(self, probs_BLV: Tensor, said_BL: Tensor) -> Tensor:
        """Writes the whole posterior of a block of rows, hidden and observed tokens alike; returns `possible_B`."""
        pick_rows(self._one_hot_VV, said_BL, probs_BLV)
        return self._fill(probs_BLV, said_BL)

    def _fill(self, probs_BLV: Tensor, said_BL: Tensor) -> Tensor:
        """Writes the posterior of those tokens that are hidden, where `probs_BLV` has all on `[MASK]`; returns `possible_B`."""
        probs_BLQ, possible_B = self._posterior(said_BL)
        hidden_BL1 = (said_BL == self.num_symbols)[..., None]
        probs_BLV[..., :-1] = torch.where(hidden_BL1, probs_BLQ, probs_BLV[..., :-1])
        probs_BLV[..., -1] = 0.0
        return possible_B

    def _posterior(self, said_BL: Tensor) -> Answer:
        """`probs_BLQ` of the symbols, right wherever a token is hidden. In `said_BL`, hidden tokens are `num_symbols`."""
        raise NotImplementedError

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        """`log_prob_B`, -inf where impossible. By default each token's given those before it, which takes L posteriors."""
        log_prob_B = torch.zeros(len(said_BL), dtype=torch.float64, device=said_BL.device)
        seen_BL = torch.full_like(said_BL, self.num_symbols)
        for position, token_B in enumerate(said_BL.unbind(1)):
            probs_BQ = self._posterior(seen_BL)[0][:, position]
            told_B = token_B < self.num_symbols
            prob_B = probs_BQ.gather(1, token_B.clamp(max=self.num_symbols - 1)[:, None])[:, 0].masked_fill(~told_B, 1.0)
            log_prob_B = torch.where(log_prob_B == -torch.inf, log_prob_B, log_prob_B + prob_B.log())
            seen_BL[:, position] = token_B
        return log_prob_B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        """`tokens_BL`, right wherever a token is hidden. By default one after the other, which takes L posteriors."""
        drawn_BL = said_BL.clone()
        u_BL = uniform(keys_B[:, None], torch.arange(said_BL.shape[1])).to(said_BL.device)
        possible_B = self._posterior(said_BL)[1]
        for position in range(said_BL.shape[1]):
            probs_BQ = self._posterior(drawn_BL)[0][:, position]
            token_B = choose(probs_BQ, u_BL[:, position])
            drawn_BL[:, position] = torch.where(said_BL[:, position] == self.num_symbols, token_B, said_BL[:, position])
        return drawn_BL, possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {}, torch.ones(len(said_BL), dtype=torch.bool, device=said_BL.device)

    def _said(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """What each token says: itself, or `num_symbols` where it is hidden. And all tables are on the tokens' device."""
        if tokens_BL.dim() != 2 or tokens_BL.shape[1] != self.seq_len:
            raise ValueError(f"tokens_BL of shape {tuple(tokens_BL.shape)}: rows have {self.seq_len} tokens")
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(tokens_BL.device))
            elif isinstance(value, list) and value and isinstance(value[0], Tensor):
                setattr(self, name, [each.to(tokens_BL.device) for each in value])
        return observed_tokens(tokens_BL, observed_BL, self.num_symbols)

    def _blocks(self, said_BL: Tensor) -> Iterator[slice]:
        num_rows, largest = len(said_BL), max(1, _ELEMENTS[said_BL.device.type] // self._row_elements)
        num_blocks = max(1, ceil(num_rows / largest))
        size = max(1, ceil(num_rows / num_blocks))  # all alike: a small one takes nearly as long
        return (slice(start, min(start + size, len(said_BL))) for start in range(0, len(said_BL), size))

    def _refuse_impossible(self, possible_B: Tensor, first_row: int) -> None:
        if not possible_B.all():
            row = first_row + int((~possible_B).nonzero()[0])
            raise ValueError(
                f"row {row} of the batch: the observed tokens have probability zero in this language; they must come from rows "
                "of a source with the same settings"
            )


def pick_rows(table_TV: Tensor, index_BL: Tensor, out_BLV: Tensor) -> None:
    """Writes `table_TV[index_BL]`."""
    # half of the time of indexing, and a third of that of zeros and a scatter
    torch.index_select(table_TV, 0, index_BL.flatten().int(), out=out_BLV.view(-1, table_TV.shape[1]))


def cdf(weights: Tensor, dim: int = -1) -> Tensor:
    """The share of the weights up to each: 1 exactly from the last weight above 0 on, so that no u < 1 takes one of 0."""
    sums = weights.cumsum(dim)
    return sums / sums.select(dim, -1).unsqueeze(dim)


def choose(weights: Tensor, u: Tensor) -> Tensor:
    """A place of the last dimension, in proportion to the weights, for each number of [0, 1)."""
    return (cdf(weights) <= u[..., None]).sum(-1).clamp_(max=weights.shape[-1] - 1)
