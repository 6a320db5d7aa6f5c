"""Checks of a language and its oracle: identities that hold for every exact oracle.

    joint           all rows of a small language, their latent variables and probabilities, by a plain loop
       │
       ├─ sums over it   =   posterior, log_likelihood, latents      for every pattern of observed tokens
       └─ chi-squared    ~   sample, and the rows of the source
    chain rule           log P(x) = Σ log P(x_i | the tokens revealed before), in any order
    all masks            -log P(x) = Σ over masks of n positions of 1 / (n · C(L, n)) · the loss with that mask
    autocast             rows and answers are the same under bf16 autocast

`check_language(small)` checks them on a language that is small enough to be enumerated, and `large=` those that need no
enumeration on one of any size, where probabilities may underflow.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import comb
from typing import Any, cast

import torch
from torch import Tensor

from mlm_lightning.data.source import MAX_JOINT, SPLITS, ExactOracle, Joint, LatentRows, Rows, Source, Split, check_read
from mlm_lightning.randomness import key, row_keys

EXACT = 1e-10
CHAINED = 1e-9
"""The tolerance of sums of logarithms, in nats; with L positions it is L / 16 times as large."""
LEAST_P = 1e-4
"""The least p of chi-squared tests; their random numbers are fixed, so that the same language always passes or always fails."""
_DRAWS = 2**16


@dataclass
class _Small:
    """A small language and all of its S rows; a sequence comes as often as its latent variables differ."""

    source: Source
    oracle: ExactOracle
    sequences_SL: Tensor
    latents: dict[str, Tensor]
    prob_S: Tensor
    num_symbols: int

    def expected(self, tokens_BL: Tensor, observed_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior of the rows given the observed tokens, `share_BS`, and the probability of these, `prob_B`."""
        agrees_BS = ((self.sequences_SL == tokens_BL[:, None]) | ~observed_BL[:, None]).all(-1)
        weight_BS = agrees_BS * self.prob_S
        prob_B = weight_BS.sum(1)
        return weight_BS / prob_B[:, None], prob_B


def check_language(small: Source, large: Source | None = None, joint: Callable[[Any], Joint] | None = None) -> None:
    """Raises AssertionError, which says what differs and where.

    `small` has at most 4,096 sequences (ValueError otherwise), which `joint(small)` lists, or its own method `small.joint()`:
    `sequences_SL`, their latent variables `values_SN` by name, and `log_prob_S`. Without a list, the likelihoods of all rows
    must sum to 1 and imply the other answers. As much of `large` is checked as takes seconds."""
    for source in filter(None, (small, large)):
        check_rows(deepcopy(source))  # tables that it caches would not be computed once more under autocast
        check_autocast(source, num_rows=32)
    language = _small(small, joint)
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
    """Rows hold symbols of the vocabulary, and each is a function of its index alone."""
    _demand(not source.endless, "the rows for training have no end")
    for split in SPLITS:
        rows = cast(Rows, source.rows(split))
        index_B = torch.arange(min(8, len(rows)))
        tokens_BL = _tokens(rows, index_B)
        try:
            check_read(tokens_BL, len(index_B), source)
        except ValueError as error:
            raise AssertionError(f"the rows of {split}: {error}") from error
        _demand((tokens_BL < source.vocab.size - 1).all(), f"the rows of {split} hold [MASK]")
        alone_BL = torch.cat([_tokens(rows, index_1) for index_1 in index_B.split(1)])
        _demand(torch.equal(alone_BL, tokens_BL), f"the rows of {split} depend on the batch that they are asked for in")
        if isinstance(rows, LatentRows):
            first = {name: values_BN[:1] for name, values_BN in rows.latents(index_B).items()}
            message = f"the latents of {split} depend on the batch"
            torch.testing.assert_close(rows.latents(index_B[:1]), first, rtol=0, atol=0, msg=message)


def check_autocast(source: Source, num_rows: int) -> None:
    """Rows and answers are bit for bit the same under bf16 autocast; on a GPU up to rounding, as the order of its sums varies.
    The source should be new: tables that it has cached are not computed once more."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        with torch.autocast(device, dtype=torch.bfloat16):
            found = _answers(deepcopy(source), num_rows, device)
        for name, expected in _answers(deepcopy(source), num_rows, device).items():
            message = f"{name}: differs under bf16 autocast on {device}"
            torch.testing.assert_close(found[name], expected, rtol=0, atol=0.0 if device == "cpu" else EXACT, msg=message)


def check_chain_rule(source: Source, num_rows: int, num_hidden: int) -> None:
    """Log-probabilities of hidden tokens, each given those revealed before, sum to the log-likelihoods' difference."""
    oracle, length, row_B = _oracle(source), source.seq_len, torch.arange(num_rows)
    tokens_BL = _drawn(source, num_rows)
    order_BL = torch.rand(num_rows, length, generator=_generator(0), dtype=torch.float64).argsort(1)
    hidden_BL = torch.zeros(num_rows, length, dtype=torch.bool).scatter_(1, order_BL[:, :num_hidden], True)
    whole_B = _row_log_prob(oracle, tokens_BL)
    _demand(whole_B.isfinite().all(), "log_likelihood of a row of the language is not finite")
    expected_B = whole_B - oracle.log_likelihood(tokens_BL, ~hidden_BL)
    sum_B = torch.zeros_like(expected_B)
    for position_B in order_BL[:, :num_hidden].unbind(1):
        probs_BV = oracle.posterior(tokens_BL, ~hidden_BL)[row_B, position_B]
        sum_B += probs_BV[row_B, tokens_BL[row_B, position_B]].log()
        hidden_BL[row_B, position_B] = False
    _close(sum_B, expected_B, CHAINED * max(1, length / 16), "chain rule: Σ log posterior against log_likelihood")


def check_calibration(source: Source, num_rows: int) -> None:
    """Posteriors sum to 1, and -log of the true value's probability is their entropy on average (± 5 standard errors)."""
    oracle = _oracle(source)
    tokens_BL, observed_BL, true = _questions(source, num_rows)
    answers = {"posterior": (oracle.posterior(tokens_BL, observed_BL), tokens_BL)}
    if true is not None:
        found = oracle.latents(tokens_BL, observed_BL)
        _demand(set(found) == set(true), f"latents: the oracle has {sorted(found)}, and the rows have {sorted(true)}")
        answers |= {name: (found[name], true[name]) for name in found}
    for name, (probs_BNS, true_BN) in answers.items():
        _close(probs_BNS.sum(-1), torch.ones_like(probs_BNS[..., 0]), EXACT, f"{name}: sum of the probabilities")
        surprise_BN = -probs_BNS.gather(-1, true_BN[..., None])[..., 0].log()
        _demand(surprise_BN.isfinite().all(), f"{name}: the true value has probability 0")
        over_B = (surprise_BN - torch.special.entr(probs_BNS).sum(-1)).mean(1)
        bound = 5 * over_B.std() / len(over_B) ** 0.5 + EXACT
        _demand(over_B.mean().abs() <= bound, f"{name}: surprise and entropy differ by {over_B.mean():.2g} nats on average")
    drawn_BL = oracle.sample(tokens_BL, observed_BL, _keys(len(tokens_BL)))
    _demand(torch.equal(drawn_BL[observed_BL], tokens_BL[observed_BL]), "sample changes tokens that are observed")
    _demand(_row_log_prob(oracle, drawn_BL).isfinite().all(), "sample: a row that is drawn has probability 0")


def _questions(source: Source, num_rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor] | None]:
    """Rows of val, which of their tokens are observed, and their latent variables, where the rows know them."""
    rows, tokens_BL = source.rows("val"), _drawn(source, num_rows)
    index_B = torch.arange(len(tokens_BL))
    observed_BL = torch.rand(tokens_BL.shape, generator=_generator(1)) < torch.tensor([0.2, 0.5, 0.8])[index_B % 3, None]
    return tokens_BL, observed_BL, rows.latents(index_B) if isinstance(rows, LatentRows) else None


def _answers(source: Source, num_rows: int, device: str) -> dict[str, Any]:
    tokens_BL, observed_BL, latents = _questions(source, num_rows)
    found: dict[str, Any] = {"rows": tokens_BL, "latents of the rows": latents or {}}
    for question in ("posterior", "log_likelihood", "sample", "latents"):
        found[question] = _ask(_oracle(source), question, tokens_BL.to(device), observed_BL.to(device))
    return found


def _ask(oracle: ExactOracle, question: str, tokens_BL: Tensor, observed_BL: Tensor) -> Any:
    keys = [_keys(len(tokens_BL))] if question == "sample" else []
    return getattr(oracle, question)(tokens_BL, observed_BL, *keys)


def _small(source: Source, joint: Callable[[Any], Joint] | None) -> _Small:
    oracle, num_symbols = _oracle(source), source.vocab.size - 1
    found = joint(source) if joint else source.joint()
    if found is None:
        if (count := num_symbols**source.seq_len) > MAX_JOINT:
            raise ValueError(f"{count} rows are more than {MAX_JOINT}; give a smaller language, or its joint")
        everything_SL = torch.tensor(list(product(range(num_symbols), repeat=source.seq_len)))
        found = everything_SL, {}, _row_log_prob(oracle, everything_SL)
    sequences_SL, latents, log_prob_S = found
    if (count := len(sequences_SL.unique(dim=0))) > MAX_JOINT:
        raise ValueError(f"{count} rows are more than {MAX_JOINT}; give a smaller language")
    prob_S = log_prob_S.exp()
    _close(prob_S.sum(), torch.ones_like(prob_S[0]), EXACT, "sum of the probabilities of all rows")
    return _Small(source, oracle, sequences_SL, latents, prob_S, num_symbols)


def _check_sums(language: _Small) -> None:
    """Sums over all rows, for every pattern of observed tokens: of three rows of the source, and one of random symbols."""
    oracle, length = language.oracle, language.source.seq_len
    any_RL = torch.cat((_drawn(language.source, 3), torch.randint(language.num_symbols, (1, length), generator=_generator(2))))
    patterns_PL = torch.tensor(list(product([False, True], repeat=length)))
    for row_L in any_RL:
        for observed_BL in patterns_PL.split(256):
            tokens_BL = row_L.expand_as(observed_BL)
            share_BS, prob_B = language.expected(tokens_BL, observed_BL)
            log_prob_B = oracle.log_likelihood(tokens_BL, observed_BL)
            _close(log_prob_B.exp(), prob_B, EXACT, "log_likelihood: exp of it")
            possible_B = prob_B > 0
            share_BS, evidence = share_BS[possible_B], (tokens_BL[possible_B], observed_BL[possible_B])
            _close(log_prob_B[possible_B], prob_B[possible_B].log(), CHAINED, "log_likelihood", *evidence)
            if not possible_B.any():
                continue
            found = {"posterior": oracle.posterior(*evidence)}
            mask_BL1 = found["posterior"][..., language.num_symbols :]
            _demand(torch.equal(mask_BL1, torch.zeros_like(mask_BL1[..., :1])), "posterior: [MASK] has a probability above 0")
            if language.latents:
                found |= oracle.latents(*evidence)
            for name, values_SN in {"posterior": language.sequences_SL, **language.latents}.items():
                one_hot_SNK = torch.nn.functional.one_hot(values_SN, found[name].shape[-1]).double()
                expected_BNK = torch.einsum("bs,snk->bnk", share_BS, one_hot_SNK)
                _close(found[name], expected_BNK, EXACT, name, *evidence)


def _check_impossible(language: _Small) -> None:
    """A row that the language cannot have has the log-likelihood -inf, and is named by the ValueError of other questions."""
    known = set(map(tuple, language.sequences_SL[language.prob_S > 0].tolist()))
    candidates = torch.randint(language.num_symbols, (4096, language.source.seq_len), generator=_generator(3)).tolist()
    impossible = next((row for row in candidates if tuple(row) not in known), None)
    if impossible is None:
        return
    tokens_BL = torch.stack((language.sequences_SL[0], torch.tensor(impossible)))
    log_prob = _row_log_prob(language.oracle, tokens_BL)[1]
    _demand(log_prob == -torch.inf, f"log_likelihood: {log_prob:.4g} of the impossible row {impossible}, not -inf")
    for question in ("posterior", "sample", "latents") if language.latents else ("posterior", "sample"):
        try:
            _ask(language.oracle, question, tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))
        except ValueError as error:
            _demand("row 1" in str(error), f"{question}: an impossible row is refused, but not named: {error}")
        else:
            raise AssertionError(f"{question}: the impossible row {impossible} is not refused")


def _check_samples(language: _Small) -> None:
    """The rows, and the hidden tokens that are sampled given the others, are as frequent as they are probable."""
    _check_counts(language, _drawn(language.source, _DRAWS, "train"), language.prob_S, "rows")
    observed_RL = torch.rand(4, language.source.seq_len, generator=_generator(4)) < torch.tensor([0.0, 0.3, 0.5, 0.7])[:, None]
    tokens_RL = _drawn(language.source, 4)
    share_RS, _ = language.expected(tokens_RL, observed_RL)
    for row, observed_L in enumerate(observed_RL):
        tokens_BL = tokens_RL[row].expand(_DRAWS // 4, -1)
        drawn_BL = language.oracle.sample(tokens_BL, observed_L.expand_as(tokens_BL), _keys(len(tokens_BL), row))
        _check_counts(language, drawn_BL, share_RS[row], f"sample, given {_written(tokens_RL[row], observed_L)}")


def _check_counts(language: _Small, drawn_BL: Tensor, prob_S: Tensor, what: str) -> None:
    distinct_DL, index_N = torch.cat((language.sequences_SL, drawn_BL)).unique(dim=0, return_inverse=True)
    index_S, index_B = index_N.split([len(prob_S), len(drawn_BL)])
    prob_D = torch.zeros(len(distinct_DL), dtype=torch.float64).index_add_(0, index_S, prob_S)
    counts_D = index_B.bincount(minlength=len(prob_D))
    impossible_RL = distinct_DL[(counts_D > 0) & (prob_D == 0)]
    _demand(len(impossible_RL) == 0, f"{what}: {impossible_RL[:1].tolist()} was drawn, which has probability 0")
    p = chi_squared(counts_D, prob_D * len(drawn_BL))
    _demand(p > LEAST_P, f"{what}: chi-squared test against the exact probabilities, p = {p:.2g}")


def chi_squared(counts_C: Tensor, expected_C: Tensor) -> float:
    """Pearson's p: the probability of counts as far from the expected ones. Cells are pooled until 5 are expected in each."""
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
    return float(torch.special.gammaincc(*halves))


def _check_all_masks(language: _Small) -> None:
    """The chain rule, averaged over all orders: weights 1 / (n · C(L, n)) of the losses with all masks of n positions."""
    length = language.source.seq_len
    if length > 10:
        return
    hidden_BL = torch.tensor(list(product([False, True], repeat=length))[1:])
    weight_B = torch.tensor([1 / (n * comb(length, n)) for n in hidden_BL.sum(1).tolist()], dtype=torch.float64)
    for row_L in _drawn(language.source, 2):
        tokens_BL = row_L.expand_as(hidden_BL)
        probs_BLV = language.oracle.posterior(tokens_BL, ~hidden_BL)
        loss_BL = -probs_BLV.gather(2, tokens_BL[..., None])[..., 0].log()  # 0 where it is observed
        whole_1 = _row_log_prob(language.oracle, row_L[None])
        _close((weight_B @ loss_BL.sum(1))[None], -whole_1, CHAINED, "losses under all masks against -log_likelihood")


def _oracle(source: Source) -> ExactOracle:
    oracle = source.oracle()
    lacks = f"oracle(): {type(oracle).__name__} lacks posterior, log_likelihood, sample or latents"
    _demand(isinstance(oracle, ExactOracle), f"{lacks}; a LanguageOracle has them all, made from its _posterior")
    return cast(ExactOracle, oracle)


def _tokens(rows: Rows, index_B: Tensor) -> Tensor:
    read = rows[index_B]
    return read if isinstance(read, Tensor) else read[0]


def _drawn(source: Source, num_rows: int, split: Split = "val") -> Tensor:
    rows = cast(Rows, source.rows(split))
    return _tokens(rows, torch.arange(min(num_rows, len(rows))))


def _row_log_prob(oracle: ExactOracle, tokens_BL: Tensor) -> Tensor:
    return oracle.log_likelihood(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))


def _keys(num_rows: int, *words: int) -> Tensor:
    return row_keys(key(0, *words), torch.arange(num_rows))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _demand(holds: bool | Tensor, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _close(found: Tensor, expected: Tensor, tolerance: float, what: str, *evidence_BL: Tensor) -> None:
    off = (found - expected).abs().nan_to_num(torch.inf, torch.inf)
    if not off.numel() or off.max() <= tolerance:
        return
    where = torch.unravel_index(off.argmax(), off.shape)
    row = int(where[0]) if where else 0
    given = f", given {_written(*(each_BL[row] for each_BL in evidence_BL))}" if evidence_BL else ""
    raise AssertionError(f"{what}: {float(found[where]):.10g}, should be {float(expected[where]):.10g}{given}")


def _written(tokens_L: Tensor, observed_L: Tensor) -> str:
    return " ".join(str(token) if seen else "_" for token, seen in zip(tokens_L.tolist(), observed_L.tolist(), strict=True))
