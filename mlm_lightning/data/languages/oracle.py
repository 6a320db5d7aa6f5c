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

import torch
from torch import Tensor
from torch.nn.functional import pad

from mlm_lightning.data.exact import exactly
from mlm_lightning.randomness import uniform

_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}
"""Elements (of 8 bytes) that a block of rows may need, by the device; on others there is no float64."""

Answer = tuple[Tensor, Tensor]
"""The answer about a block of rows, and `possible_B`, False where the evidence has probability zero."""
LatentAnswer = tuple[dict[str, Tensor], Tensor]


class LanguageOracle:
    """Exact answers in float64, for `num_symbols` symbols and rows of `seq_len` tokens, about any tokens given any others.

    Tokens that are not observed may hold anything. ValueError for tokens that are not whole numbers, observed ones that are no
    symbol, and an `observed_BL` with other values than True and False, 1 and 0. All questions but `log_likelihood` raise
    ValueError, naming the first such row, where the evidence has probability zero."""

    def __init__(self, num_symbols: int, seq_len: int, row_elements: int) -> None:
        """`row_elements`: how many numbers are kept for one row while it is worked on."""
        self.num_symbols, self.seq_len, self._row_elements = num_symbols, seq_len, row_elements
        self._one_hot_VV = torch.eye(num_symbols + 1, dtype=torch.float64)

    @exactly()
    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`probs_BLV`: all on the token where it is observed; `[MASK]` (the last) has probability 0."""
        evidence_BL = self._evidence(tokens_BL, observed_BL)
        shape = (*evidence_BL.shape, self.num_symbols + 1)
        probs_BLV = torch.empty(shape, dtype=torch.float64, device=evidence_BL.device)
        for rows in self._blocks(evidence_BL):
            probs_BLQ, possible_B = self._posterior(evidence_BL[rows])
            hidden_BL1 = (evidence_BL[rows] == self.num_symbols)[..., None]
            probs_BLV[rows] = torch.where(hidden_BL1, pad(probs_BLQ, (0, 1)), self._one_hot_VV[evidence_BL[rows]])
            _refuse_impossible(rows, possible_B, probs_BLV[rows])
        return _on_device_of(tokens_BL, probs_BLV)

    @exactly()
    def log_likelihood(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`log_prob_B` (nats): of the tokens that are observed, the others summed out; -inf where they are impossible."""
        evidence_BL = self._evidence(tokens_BL, observed_BL)
        parts = [self._log_likelihood(evidence_BL[rows]) for rows in self._blocks(evidence_BL)]
        return _on_device_of(tokens_BL, torch.cat(parts))

    @exactly()
    def sample(self, tokens_BL: Tensor, observed_BL: Tensor, keys_B: Tensor) -> Tensor:
        """`tokens_BL` (int64): the observed tokens, and the others drawn jointly from their posterior, each row a function of
        its key (`randomness.row_keys`)."""
        evidence_BL = self._evidence(tokens_BL, observed_BL)
        drawn_BL = torch.empty_like(evidence_BL)
        for rows in self._blocks(evidence_BL):
            sampled_BL, possible_B = self._sample(evidence_BL[rows], keys_B[rows])
            _refuse_impossible(rows, possible_B)
            drawn_BL[rows] = torch.where(evidence_BL[rows] == self.num_symbols, sampled_BL, evidence_BL[rows])
        return _on_device_of(tokens_BL, drawn_BL)

    @exactly()
    def latents(self, tokens_BL: Tensor, observed_BL: Tensor) -> dict[str, Tensor]:
        """The posterior of the latent variables, `probs_BNS` by name (N nodes, S states); empty where the language has none."""
        evidence_BL = self._evidence(tokens_BL, observed_BL)
        parts: list[dict[str, Tensor]] = []
        for rows in self._blocks(evidence_BL):
            found, possible_B = self._latents(evidence_BL[rows])
            _refuse_impossible(rows, possible_B, *found.values())
            parts.append(found)
        return {name: _on_device_of(tokens_BL, torch.cat([part[name] for part in parts])) for name in parts[0]}

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        """`probs_BLQ` of the symbols, right wherever a token is hidden. In `evidence_BL`, hidden tokens are `num_symbols`."""
        raise NotImplementedError

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        """`log_prob_B`, -inf where impossible. By default each token's given those before it, which takes L posteriors."""
        log_prob_B = self._one_hot_VV.new_zeros(len(evidence_BL))
        seen_BL = torch.full_like(evidence_BL, self.num_symbols)
        for position, token_B in enumerate(evidence_BL.unbind(1)):
            probs_BQ = self._posterior(seen_BL)[0][:, position]
            prob_B = pad(probs_BQ, (0, 1), value=1.0).gather(1, token_B[:, None])[:, 0]
            log_prob_B = log_prob_B + prob_B.log()
            seen_BL[:, position] = token_B
        return log_prob_B.nan_to_num(nan=-torch.inf, neginf=-torch.inf)  # after what is impossible, nothing has a posterior

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        """`tokens_BL`, right wherever a token is hidden. By default one after the other, which takes L posteriors."""
        drawn_BL = evidence_BL.clone()
        u_BL = self._uniform(keys_B, torch.arange(self.seq_len))
        _, possible_B = self._posterior(evidence_BL)
        for position in range(self.seq_len):
            probs_BLQ, _ = self._posterior(drawn_BL)
            token_B = choose(probs_BLQ[:, position], u_BL[:, position])
            hidden_B = evidence_BL[:, position] == self.num_symbols
            drawn_BL[:, position] = torch.where(hidden_B, token_B, evidence_BL[:, position])
        return drawn_BL, possible_B

    def _latents(self, evidence_BL: Tensor) -> LatentAnswer:
        return {}, always(evidence_BL)

    def _uniform(self, keys_B: Tensor, positions_N: Tensor) -> Tensor:
        """Random numbers of each row, `u_BN`."""
        return uniform(keys_B[:, None], positions_N.cpu()).to(self._one_hot_VV.device)

    def _evidence(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """The observed tokens, and `num_symbols` where they are hidden. All tables go to the tokens' device."""
        check_tokens(tokens_BL, observed_BL, self.seq_len)
        device = tokens_BL.device if tokens_BL.device.type in _ELEMENTS else torch.device("cpu")
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        tokens_BL, observed_BL = tokens_BL.to(device, torch.int64), observed_BL.to(device, torch.bool)
        wrong_BL = observed_BL & ((tokens_BL < 0) | (tokens_BL >= self.num_symbols))
        if wrong_BL.any():
            row, position = wrong_BL.nonzero()[0].tolist()
            raise ValueError(
                f"row {row} of the batch: the token {int(tokens_BL[row, position])} observed at position {position} is no "
                f"symbol (0 … {self.num_symbols - 1}); observe only positions that hold a symbol"
            )
        return torch.where(observed_BL, tokens_BL, self.num_symbols).contiguous()

    def _blocks(self, evidence_BL: Tensor) -> Iterator[slice]:
        """Blocks of rows that fit the memory; an empty one where there are no rows, so that answers have their shapes."""
        size = max(1, _ELEMENTS[evidence_BL.device.type] // self._row_elements)
        for start in range(0, max(1, len(evidence_BL)), size):
            yield slice(start, start + size)


def _refuse_impossible(rows: slice, possible_B: Tensor, *probs: Tensor) -> None:
    for each in probs:  # a message that underflows leaves 0 / 0
        possible_B = possible_B & each.isfinite().flatten(1).all(1)
    if not possible_B.all():
        row = rows.start + int((~possible_B).nonzero()[0])
        raise ValueError(
            f"row {row} of the batch: the observed tokens have probability zero in this language; they must come from rows "
            "of a source with the same settings"
        )


def check_tokens(tokens_BL: Tensor, observed_BL: Tensor, seq_len: int) -> None:
    """Raises ValueError for other shapes, tokens that are not whole numbers, and values of `observed_BL` that mean nothing."""
    if tokens_BL.dim() != 2 or tokens_BL.shape[1] != seq_len:
        raise ValueError(f"tokens_BL of shape {tuple(tokens_BL.shape)}: rows have {seq_len} tokens")
    if tokens_BL.shape != observed_BL.shape:
        raise ValueError(f"tokens_BL and observed_BL differ in shape: {tuple(tokens_BL.shape)} and {tuple(observed_BL.shape)}")
    if tokens_BL.is_floating_point() or tokens_BL.is_complex():
        raise ValueError(f"tokens_BL is {tokens_BL.dtype}: tokens are whole numbers, such as int64")
    if not torch.equal(observed_BL.bool().to(observed_BL.dtype), observed_BL):
        raise ValueError("observed_BL has values other than True and False (or 1 and 0)")


def always(evidence_BL: Tensor) -> Tensor:
    """`possible_B` where nothing is impossible."""
    return torch.ones_like(evidence_BL[:, 0], dtype=torch.bool)


def possible(log_BX: Tensor) -> Tensor:
    """`possible_B` where the evidence has a log-probability with each of X alternatives."""
    return (log_BX > -torch.inf).any(1)


def cdf(weights: Tensor, dim: int = -1) -> Tensor:
    """The share of the weights up to each: 1 exactly from the last weight above 0 on, so that no u < 1 takes one of 0."""
    sums = weights.cumsum(dim)
    return sums / sums.select(dim, -1).unsqueeze(dim)


def choose(weights: Tensor, u: Tensor) -> Tensor:
    """A place of the last dimension, in proportion to the weights, for each number of [0, 1)."""
    return (cdf(weights) <= u[..., None]).sum(-1).clamp(max=weights.shape[-1] - 1)


def _on_device_of(tokens_BL: Tensor, answer: Tensor) -> Tensor:
    """On the device of the tokens; in float32 where that has no float64."""
    if answer.device == tokens_BL.device:
        return answer
    return answer.to(tokens_BL.device, torch.float32 if answer.is_floating_point() else answer.dtype)
