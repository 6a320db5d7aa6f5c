"""Whether a language and its oracle belong together: identities that every exact oracle satisfies.

    joint()  all rows, their latents, their probabilities      a plain loop, for small languages
       │
       ├─ sums over it   =   posterior, log_likelihood, latents      for every pattern of what is observed
       ├─ chi-squared    ~   sample, and the rows that are drawn
       │
    chain rule           log P(x) = Σ log P(x_i | those revealed before), in any order
    all masks            -log P(x) = Σ over masks of n positions of 1 / (n · C(L, n)) · the loss there

`check_language(small)` runs them on a language that is small enough to be enumerated, and `large=` adds what can be seen of one
at its largest: the chain rule, calibration, and that nothing underflows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import comb
from typing import Any, cast

import torch
from torch import Tensor

from mlm_lightning.data.source import EndlessRows, ExactOracle, LatentRows, Rows, Source, Split, check_read
from mlm_lightning.randomness import key, row_keys

MAX_SEQUENCES = 4096
EXACT = 1e-10
CHAINED = 1e-9
"""Of sums of logarithms, in nats; at L positions L / 16 times as much."""
LEAST_P = 1e-4
"""Of chi-squared tests; seeds are fixed, so that a language that passes passes always."""
_DRAWS = 2**16


@dataclass
class _Small:
    """A small language, all of its rows (S of them, as often as they have latents), and what they weigh."""

    source: Source
    oracle: ExactOracle
    sequences_SL: Tensor
    latents: dict[str, Tensor]
    prob_S: Tensor
    num_symbols: int

    def expected(self, tokens_BL: Tensor, observed_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The share of each sequence among those that agree with what is observed, `share_BS`, and their sum, `prob_B`."""
        agrees_BS = ((self.sequences_SL == tokens_BL[:, None]) | ~observed_BL[:, None]).all(-1)
        weight_BS = agrees_BS * self.prob_S
        prob_B = weight_BS.sum(1)
        return weight_BS / prob_B[:, None], prob_B


def check_language(small: Source, large: Source | None = None) -> None:
    """Raises AssertionError, which says what differs and where.

    `small` has at most 4,096 sequences (ValueError otherwise); with a `joint` all identities are tried, without it those that
    need none. Of `large`, rows are drawn and asked about as far as that takes seconds."""
    for source in filter(None, (small, large)):
        check_rows(source)
    language = _small(small)
    _check_sums(language)
    _check_impossible(language)
    _check_samples(language)
    check_chain_rule(small, num_rows=4, num_hidden=small.seq_len)
    _check_all_masks(language)
    check_calibration(small, num_rows=4096)
    if large is not None:
        check_chain_rule(large, num_rows=4, num_hidden=min(12, large.seq_len))
        check_calibration(large, num_rows=max(16, min(1024, 2**17 // large.seq_len)))


def check_rows(source: Source) -> None:
    """A row is a function of its index alone, of symbols of the vocabulary."""
    for split in ("train", "val", "test"):
        rows = _rows(source, split)
        index_B = torch.arange(min(8, len(rows)))
        tokens_BL = _tokens(rows[index_B])
        try:
            check_read(tokens_BL, len(index_B), source)
        except ValueError as error:
            raise AssertionError(f"the rows of {split}: {error}") from error
        symbols = (tokens_BL >= 0) & (tokens_BL < source.vocab.size - 1)
        _demand(symbols.all(), "rows hold symbols, 0 … vocab.size - 2")
        alone = torch.cat([_tokens(rows[index_B[i : i + 1]]) for i in range(len(index_B))])
        _demand(torch.equal(alone, tokens_BL), f"the rows of {split} depend on the batch that they are asked for in")
        if isinstance(rows, LatentRows):
            alone_0 = {name: values_BN[:1] for name, values_BN in rows.latents(index_B).items()}
            for name, values_BN in rows.latents(index_B[:1]).items():
                _demand(torch.equal(values_BN, alone_0[name]), f"the latents {name} of {split} depend on the batch")


def check_chain_rule(source: Source, num_rows: int, num_hidden: int) -> None:
    """The probabilities of hidden tokens, each given those revealed before, multiply to what the likelihoods say, in any
    order."""
    oracle, length = _oracle(source), source.seq_len
    tokens_BL = _tokens(source.rows("val")[torch.arange(num_rows)])
    order_BL = torch.rand(num_rows, length, generator=_generator(0), dtype=torch.float64).argsort(1)
    hidden_BL = torch.zeros(num_rows, length, dtype=torch.bool).scatter_(1, order_BL[:, :num_hidden], True)
    rest_B = oracle.log_likelihood(tokens_BL, ~hidden_BL)
    whole_B = oracle.log_likelihood(tokens_BL, torch.ones_like(hidden_BL))
    sum_B = torch.zeros(num_rows, dtype=torch.float64)
    for position_B in order_BL[:, :num_hidden].unbind(1):
        probs_BV = oracle.posterior(tokens_BL, ~hidden_BL)[torch.arange(num_rows), position_B]
        sum_B += probs_BV.gather(1, tokens_BL.gather(1, position_B[:, None]))[:, 0].log()
        hidden_BL[torch.arange(num_rows), position_B] = False
    _demand(whole_B.isfinite().all(), "log_likelihood of a row of the language is not finite")
    _close(sum_B, whole_B - rest_B, CHAINED * max(1, length / 16), "chain rule: Σ log posterior against log_likelihood")


def check_calibration(source: Source, num_rows: int) -> None:
    """Posteriors are finite and sum to 1, and the truth is as surprising on average as they say: within 5 standard errors."""
    oracle, rows = _oracle(source), _rows(source, "val")
    index_B = torch.arange(min(num_rows, len(rows)))
    tokens_BL = _tokens(rows[index_B])
    observed_BL = torch.rand(tokens_BL.shape, generator=_generator(1)) < torch.tensor([0.2, 0.5, 0.8])[index_B % 3][:, None]
    answers = {"posterior": (oracle.posterior(tokens_BL, observed_BL), tokens_BL)}
    if isinstance(rows, LatentRows):
        true = rows.latents(index_B)
        found = oracle.latents(tokens_BL, observed_BL)
        _demand(set(found) == set(true), f"latents are {sorted(found)} to the oracle, and {sorted(true)} to the rows")
        answers |= {name: (found[name], true[name]) for name in found}
    for name, (probs_BNS, true_BN) in answers.items():
        _demand(probs_BNS.isfinite().all(), f"{name}: not all probabilities are finite")
        _close(probs_BNS.sum(-1), torch.ones(true_BN.shape, dtype=torch.float64), EXACT, f"{name}: sum of the probabilities")
        surprise_BN = -probs_BNS.gather(-1, true_BN[..., None])[..., 0].log()
        _demand(surprise_BN.isfinite().all(), f"{name}: something that happened has probability 0")
        over_B = (surprise_BN - torch.special.entr(probs_BNS).sum(-1)).mean(1)
        bound = 5 * over_B.std() / len(over_B) ** 0.5 + EXACT
        _demand(over_B.mean().abs() <= bound, f"{name}: surprise and entropy differ by {over_B.mean():.2g} nats on average")
    drawn_BL = oracle.sample(tokens_BL, observed_BL, _keys(len(tokens_BL)))
    _demand(torch.equal(drawn_BL[observed_BL], tokens_BL[observed_BL]), "sample changes tokens that are observed")
    possible = oracle.log_likelihood(drawn_BL, torch.ones_like(observed_BL)).isfinite()
    _demand(possible.all(), "sample gives rows that the language cannot have")


def _small(source: Source) -> _Small:
    oracle, num_symbols = _oracle(source), source.vocab.size - 1
    joint = source.joint()
    if joint is None:
        if num_symbols**source.seq_len > MAX_SEQUENCES:
            raise ValueError(
                f"{num_symbols}^{source.seq_len} rows are more than {MAX_SEQUENCES}; a smaller one, or joint(), is needed"
            )
        sequences_SL = torch.tensor(list(product(range(num_symbols), repeat=source.seq_len)))
        latents: dict[str, Tensor] = {}
        log_prob_S = oracle.log_likelihood(sequences_SL, torch.ones_like(sequences_SL, dtype=torch.bool))
        where = "the sum of exp(log_likelihood) over all rows"
    else:
        sequences_SL, latents, log_prob_S = joint
        if (distinct := len(sequences_SL.unique(dim=0))) > MAX_SEQUENCES:
            raise ValueError(f"{distinct} rows are more than {MAX_SEQUENCES}; give a smaller language")
        where = "the sum of the probabilities of joint()"
    prob_S = log_prob_S.exp()
    _close(prob_S.sum(), torch.tensor(1.0, dtype=torch.float64), EXACT, where)
    return _Small(source, oracle, sequences_SL, latents, prob_S, num_symbols)


def _check_sums(language: _Small) -> None:
    """Every pattern of what is observed, on a few rows: three that were drawn, and one of random symbols."""
    length, q = language.source.seq_len, language.num_symbols
    drawn_RL = _tokens(language.source.rows("val")[torch.arange(3)])
    any_RL = torch.cat((drawn_RL, torch.randint(q, (1, length), generator=_generator(2))))
    patterns_PL = torch.tensor(list(product([False, True], repeat=length)))
    one_hot_SLQ = torch.nn.functional.one_hot(language.sequences_SL, q).double()
    for row_L in any_RL:
        for observed_BL in patterns_PL.split(256):
            tokens_BL = row_L.expand_as(observed_BL)
            _, prob_B = language.expected(tokens_BL, observed_BL)
            log_prob_B = language.oracle.log_likelihood(tokens_BL, observed_BL)
            _close(log_prob_B.exp(), prob_B, EXACT, "log_likelihood: exp of it")
            tokens_BL, observed_BL = tokens_BL[prob_B > 0], observed_BL[prob_B > 0]
            _close(log_prob_B[prob_B > 0], prob_B[prob_B > 0].log(), CHAINED, "log_likelihood", tokens_BL, observed_BL)
            if len(tokens_BL) == 0:
                continue
            share_BS, _ = language.expected(tokens_BL, observed_BL)
            expected_BLQ = torch.einsum("bs,slq->blq", share_BS, one_hot_SLQ)
            probs_BLV = language.oracle.posterior(tokens_BL, observed_BL)
            _close(probs_BLV[..., :-1], expected_BLQ, EXACT, "posterior", tokens_BL, observed_BL)
            _demand((probs_BLV[..., -1] == 0).all(), "posterior: [MASK] has a probability above 0")
            found = language.oracle.latents(tokens_BL, observed_BL) if language.latents else {}
            for name, values_SN in language.latents.items():
                one_hot_SNS = torch.nn.functional.one_hot(values_SN, found[name].shape[-1]).double()
                expected_BNS = torch.einsum("bs,snk->bnk", share_BS, one_hot_SNS)
                _close(found[name], expected_BNS, EXACT, f"latents {name}", tokens_BL, observed_BL)


def _check_impossible(language: _Small) -> None:
    """Rows that the language cannot have are an error that names them."""
    possible_L, q = language.sequences_SL[0], language.num_symbols
    known = set(map(tuple, language.sequences_SL[language.prob_S > 0].tolist()))
    candidates = torch.randint(q, (4096, language.source.seq_len), generator=_generator(3)).tolist()
    impossible = next((row for row in candidates if tuple(row) not in known), None)
    if impossible is None:
        return
    tokens_BL = torch.stack((possible_L, torch.tensor(impossible)))
    everything_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    log_prob_B = language.oracle.log_likelihood(tokens_BL, everything_BL)
    _demand(log_prob_B[1] == -torch.inf, f"log_likelihood: {impossible} can't be, and has {log_prob_B[1]:.4g}, not -inf")
    asked: dict[str, Any] = {"posterior": (), "latents": (), "sample": (_keys(2),)}
    if not language.latents:
        del asked["latents"]
    for name, further in asked.items():
        try:
            getattr(language.oracle, name)(tokens_BL, everything_BL, *further)
        except ValueError as error:
            _demand("row 1" in str(error), f"{name}: an impossible row is refused, but not named: {error}")
        else:
            raise AssertionError(f"{name}: {impossible} can't be, and is not refused")


def _check_samples(language: _Small) -> None:
    """Rows that are drawn, and hidden tokens that are drawn given the others, come as often as they should."""
    rows = _rows(language.source, "train")
    drawn_BL = _tokens(rows[torch.arange(min(_DRAWS, len(rows)))])
    _check_counts(language, drawn_BL, language.prob_S, "rows")
    observed_RL = torch.rand(4, language.source.seq_len, generator=_generator(4)) < torch.tensor([0.0, 0.3, 0.5, 0.7])[:, None]
    tokens_RL = _tokens(language.source.rows("val")[torch.arange(4)])
    share_RS, _ = language.expected(tokens_RL, observed_RL)
    for row, observed_L in enumerate(observed_RL):
        tokens_BL = tokens_RL[row].expand(_DRAWS // 4, -1)
        drawn_BL = language.oracle.sample(tokens_BL, observed_L.expand_as(tokens_BL), _keys(len(tokens_BL), row))
        _check_counts(language, drawn_BL, share_RS[row], f"sample, given {_written(tokens_RL[row], observed_L)}")


def _check_counts(language: _Small, drawn_BL: Tensor, prob_S: Tensor, what: str) -> None:
    distinct_DL, index_S = language.sequences_SL.unique(dim=0, return_inverse=True)
    prob_D = torch.zeros(len(distinct_DL), dtype=torch.float64).index_add_(0, index_S, prob_S)
    places = {tuple(row): place for place, row in enumerate(distinct_DL.tolist())}
    drawn = list(map(tuple, drawn_BL.tolist()))
    unknown = next((row for row in drawn if row not in places), None)
    _demand(unknown is None, f"{what}: {unknown} was drawn, which the language cannot have")
    counts_D = torch.tensor([places[row] for row in drawn]).bincount(minlength=len(prob_D))
    _demand((counts_D[prob_D == 0] == 0).all(), f"{what}: a row of probability 0 was drawn")
    p = chi_squared(counts_D, prob_D * len(drawn_BL))
    _demand(p > LEAST_P, f"{what}: chi-squared test against the exact probabilities, p = {p:.2g}")


def chi_squared(counts_C: Tensor, expected_C: Tensor) -> float:
    """Pearson's p: how often counts as far from what is expected come about. Cells are pooled until 5 are expected in each."""
    order_C = expected_C.argsort(descending=True)
    counts, expected = [0.0], [0.0]
    for count, mean in zip(counts_C[order_C].tolist(), expected_C[order_C].tolist(), strict=True):
        if expected[-1] >= 5:
            counts.append(0.0)
            expected.append(0.0)
        counts[-1] += count
        expected[-1] += mean
    if len(expected) > 1 and expected[-1] < 5:
        counts[-2:], expected[-2:] = [sum(counts[-2:])], [sum(expected[-2:])]
    if len(expected) < 2:
        return 1.0
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    halves = torch.tensor([(len(expected) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(halves[0], halves[1]))


def _check_all_masks(language: _Small) -> None:
    """For each row, losses under all masks of n positions, weighed by 1 / (n · C(L, n)), sum to -log_likelihood: the chain
    rule, averaged over all orders."""
    length = language.source.seq_len
    if length > 10:
        return
    hidden_BL = torch.tensor(list(product([False, True], repeat=length))[1:])
    count_B = hidden_BL.sum(1)
    weight_B = torch.tensor([1 / (n * comb(length, n)) for n in count_B.tolist()], dtype=torch.float64)
    for row_L in _tokens(language.source.rows("val")[torch.arange(2)]):
        tokens_BL = row_L.expand_as(hidden_BL)
        probs_BLV = language.oracle.posterior(tokens_BL, ~hidden_BL)
        loss_BL = -probs_BLV.gather(2, tokens_BL[..., None])[..., 0].log()  # 0 where it is observed
        whole_1 = language.oracle.log_likelihood(row_L[None], torch.ones(1, length, dtype=torch.bool))
        _close((weight_B @ loss_BL.sum(1))[None], -whole_1, CHAINED, "losses under all masks against -log_likelihood")


def _oracle(source: Source) -> ExactOracle:
    oracle = source.oracle()
    if not isinstance(oracle, ExactOracle):
        has = "none" if oracle is None else type(oracle).__name__
        raise AssertionError(
            f"oracle(): {has} does not answer posterior, log_likelihood, sample and latents; a subclass of "
            "mlm_lightning.data.languages.oracle.LanguageOracle answers all of them from its _posterior"
        )
    return oracle


def _rows(source: Source, split: Split) -> Rows:
    rows = source.rows(split)
    _demand(not isinstance(rows, EndlessRows), f"the rows of {split} have no end")
    return cast(Rows, rows)


def _tokens(rows: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return rows if isinstance(rows, Tensor) else rows[0]


def _keys(num_rows: int, *words: int) -> Tensor:
    return row_keys(key(0, *words), torch.arange(num_rows))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _demand(holds: bool | Tensor, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _close(found: Tensor, expected: Tensor, tolerance: float, what: str, *evidence_BL: Tensor) -> None:
    off = (found - expected).abs()
    off = torch.where(off.isnan(), torch.inf, off)
    if not off.numel() or off.max() <= tolerance:
        return
    where = torch.unravel_index(off.argmax(), off.shape)
    row = int(where[0]) if where else 0
    given = f", given {_written(*(each_BL[row] for each_BL in evidence_BL))}" if evidence_BL else ""
    raise AssertionError(f"{what}: {float(found[where]):.10g}, should be {float(expected[where]):.10g}{given}")


def _written(tokens_L: Iterable[Tensor] | Tensor, observed_L: Iterable[Tensor] | Tensor) -> str:
    return " ".join(str(int(token)) if seen else "_" for token, seen in zip(tokens_L, observed_L, strict=True))
