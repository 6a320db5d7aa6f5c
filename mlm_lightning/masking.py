"""Masks: every position has a score, a pure function of (seed, epoch, row, position), and those below a limit are predicted.

The kinds differ in the score alone; the limit is set by the rate, so that every position has exactly that chance. A rate may
change in the course of a run (`RateSchedule`): then the limit moves, and the scores stay.

                  the  em  ##bank  ##ment  was  built  .
    Bernoulli      .    x    .       .      .     .    x     a score of its own for every token
    WholeWord      .    x    x       x      .     .    .     the tokens of a word share the score of its first
    Span           .    x    x       x      x     .    .     words near a low one inherit it: spans of geometric lengths
    Single         .    .    .       .      x     .    .     the lowest score of the row, whatever it is: limit 0

What follows holds for all of them. A higher rate only raises the limit, so the masks are nested: what is predicted at 15 % is
predicted at 30 %. A row where nothing falls below the limit predicts its lowest score; one with more than K positions below it
keeps the lowest: both are matters of that row alone, so batch size, order, workers and ranks change nothing. K follows from the
length of a row and the highest rate of the run: shapes are static.

A predicted position shows `[MASK]` (M) with probability mask_share, a random token (R) with random_share, else its own token:

    tokens      7  3  3  1  0  5
    mask        .  x  .  x  x  .
    input_ids   7  M  3  R  0  5
    labels      -  3  -  1  0  -         "-" is IGNORE_INDEX
    positions   1  3  4  0  0            K = 5: the predicted positions; unused places point to the first of the others

`hiding` says how a predicted position is kept from the model:

    token            as above: what stands there is another token
    key_padding      the token stays, and no position attends to it: batch.hidden_BL. Its own residual path still carries it
                     to its own logits, which therefore know it
    both             another token, and no position attends to it
    token_detached   as token, and the embedding of [MASK] is not learned (the model's, not the batch's matter)

The work is done in numpy on the host, where batches are built: unsigned integers, in place, few calls.
Shapes: B rows, L positions, K places for predicted positions in a row, N predicted positions of all rows together.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Interval, Le
from torch import Tensor

from mlm_lightning import randomness
from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, MLMBatch, Vocab
from mlm_lightning.errors import NO_VALUE, ConfigError, refuse
from mlm_lightning.randomness import Stream
from mlm_lightning.values import check, check_fields

OVERFLOW = 1e-6
"""The chance that a row has more than K predicted positions."""

LONGEST_WORD = 16
"""K leaves room for a word of so many tokens, however low the rate."""

_HALF, _LOWER = np.uint64(32), np.uint64(2**32 - 1)

Rate = Annotated[float, Gt(0), Le(1), "a share of the tokens, such as 0.15"]
Share = Annotated[float, Interval(ge=0, le=1), "a share of the predicted positions"]


@dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """A rate on its way from `start`, at a run's first optimizer step, to `end`, at its last.

        start ┤──╮           linear: a straight line
              │   ╲          cosine: half a cosine, which leaves slowly and arrives slowly
          end ┤    ╰──
              └────────► progress, from 0 to 1

    Evaluation happens at `end`, throughout the run.
    """

    start: Rate
    end: Rate
    schedule: Literal["linear", "cosine"]

    def __post_init__(self) -> None:
        check_fields(self, "masking.rate")

    def at(self, progress: float) -> float:
        share = progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return (1 - share) * self.start + share * self.end  # exactly `start` and `end` at the two ends


@dataclass(frozen=True, kw_only=True)
class Masking(ABC):
    """How the predicted positions are chosen, and what the model sees there.

    `mask_share` of them show `[MASK]`, `random_share` a token drawn uniformly from the regular ones, the rest their own token
    (80/10/10: Devlin et al., "BERT", 2019). The draw is made for each token, also within words and spans, as in BERT.
    With `mask_share=1` nothing is left for `random_share`, which then has no effect; with `hiding=key_padding` neither has.
    """

    mask_share: Share = 0.8
    random_share: Share = 0.1
    hiding: Literal["token", "key_padding", "both", "token_detached"] = "token"

    def __post_init__(self) -> None:
        check_fields(self, "masking")
        if self.mask_share < 1 and self.mask_share + self.random_share > 1 + 1e-9:
            problem = f"and masking.mask_share={self.mask_share} add up to more than 1"
            remedy = f"set masking.random_share to at most {1 - self.mask_share:.6g}"
            raise ConfigError("masking.random_share", self.random_share, problem, remedy)

    def rate_at(self, progress: float) -> float | None:
        """The rate at a share of a run's progress, from 0 to 1; None for a kind without a rate."""
        return None

    @property
    def is_scheduled(self) -> bool:
        """Whether the rate changes in the course of a run."""
        return False

    @abstractmethod
    def num_predicted(self, seq_len: int) -> int:
        """K, the places for predicted positions in a row of `seq_len` positions."""

    @abstractmethod
    def limit(self, progress: float) -> np.uint64 | float:
        """The highest score that is predicted; `progress` is 0 at a run's first optimizer step and 1 at its last."""

    def scores(self, keys_B: np.ndarray, tokens_BL: np.ndarray, maskable_BL: np.ndarray, vocab: Vocab) -> np.ndarray:
        """The scores of all positions, (B, L): 64 random bits of each position's own, unless a kind says otherwise. Tokens with
        equal scores are one word and stay together."""
        return randomness.random_bits_at(keys_B[:, None], randomness.position_offsets(tokens_BL.shape[1]))

    def frozen(self, rate: float | None = None) -> "Masking":
        """The same kind for evaluation, 100 % `[MASK]`, at another rate if one is given; a scheduled one stands at its end."""
        if rate is not None:
            refuse(check("eval.mask_rates", rate, Rate))
            problem = f"{type(self).__name__} masks have no rate that could be {rate}"
            remedy = "set eval.masking=bernoulli, or leave eval.mask_rates at null"
            raise ConfigError("eval.mask_rates", NO_VALUE, problem, remedy)
        return replace(self, mask_share=1.0, random_share=0.0)

    def __call__(
        self,
        tokens_BL: Tensor,
        row_ids_B: Tensor,
        *,
        vocab: Vocab,
        key: int,
        epochs_B: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
        progress: float = 1.0,
    ) -> MLMBatch:
        """Masks rows. `key` is `randomness.key(seed, split)`; `epochs_B` is None where masks are the same in every epoch.
        `progress`, on which a scheduled rate depends, is 0 at a run's first optimizer step and 1 at its last."""
        tokens, row_ids = tokens_BL.numpy(), row_ids_B.numpy()
        keys_B, replacement_keys_B = _row_keys(key, None if epochs_B is None else epochs_B.numpy(), row_ids)

        maskable_BL = vocab.is_regular_array_V[tokens]
        if attention_mask_BL is not None:
            maskable_BL &= attention_mask_BL.numpy() != 0
        if row_ids.min(initial=0) == PADDING_ROW:
            maskable_BL &= (row_ids != PADDING_ROW)[:, None]

        num_places = self.num_predicted(tokens.shape[1])
        scores_BL = self.scores(keys_B, tokens, maskable_BL, vocab)
        predicted_BL, count_B = _predicted(scores_BL, self.limit(progress), maskable_BL, num_places)

        predicted_N = np.flatnonzero(predicted_BL)
        row_N = predicted_N // tokens.shape[1]
        position_N = predicted_N - row_N * tokens.shape[1]
        labels_N = tokens.reshape(-1)[predicted_N]
        offsets_N = randomness.position_offsets(tokens.shape[1])[position_N]

        input_ids_BL, labels_BL = tokens.copy(), np.empty(tokens.shape, dtype=tokens.dtype)
        labels_BL.fill(IGNORE_INDEX)
        if self.hiding != "key_padding":
            input_ids_BL.reshape(-1)[predicted_N] = self._replacements(labels_N, replacement_keys_B[row_N], offsets_N, vocab)
        labels_BL.reshape(-1)[predicted_N] = labels_N
        # ascending; the places that are left point to the first position not predicted
        positions_BK = np.repeat(predicted_BL.argmin(axis=1)[:, None], num_places, axis=1)
        positions_BK[np.arange(num_places, dtype=np.int32) < count_B[:, None]] = position_N
        return MLMBatch(
            input_ids_BL=torch.from_numpy(input_ids_BL),
            labels_BL=torch.from_numpy(labels_BL),
            attention_mask_BL=attention_mask_BL,
            positions_BK=torch.from_numpy(positions_BK),
            row_ids_B=row_ids_B,
            hidden_BL=torch.from_numpy(predicted_BL) if self.hiding in ("key_padding", "both") else None,
        )

    @cached_property
    def _shares(self) -> tuple[np.uint64, ...]:
        """The two shares of 64 bits, in steps of 2^-32; all of them is one less, the highest number that there is."""
        shares = (self.mask_share, self.random_share)
        return tuple(np.uint64(min(round(share * 2**32) << 32, 2**64 - 1)) for share in shares)

    def _replacements(self, labels_N: np.ndarray, keys_N: np.ndarray, offsets_N: np.ndarray, vocab: Vocab) -> np.ndarray | int:
        """What the model sees at the predicted positions."""
        if self.mask_share == 1:
            return vocab.mask_id
        # the upper half chooses among the three, the lower half a token
        bits_N = randomness.random_bits_at(keys_N, offsets_N)
        mask_below, random_width = self._shares
        input_N = labels_N.copy()
        np.putmask(input_N, bits_N < mask_below, vocab.mask_id)
        (random_M,) = (bits_N - mask_below < random_width).nonzero()  # below mask_below the difference wraps to huge
        lower_M, regular_ids = bits_N[random_M] & _LOWER, vocab.regular_ids_array
        input_N[random_M] = regular_ids[(lower_M * np.uint64(len(regular_ids))) >> _HALF]
        return input_N


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Masking):
    """Every token on its own: predicted where `u(seed, epoch, row, position) < rate`.

    `rate` is a number, or a `RateSchedule`, also as the mapping of its arguments: `{start: 0.3, end: 0.15, schedule: linear}`.
    """

    rate: Rate | RateSchedule = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rate, dict):  # as a config writes it
            object.__setattr__(self, "rate", RateSchedule(**self.rate))

    def rate_at(self, progress: float) -> float:
        return self.rate.at(progress) if isinstance(self.rate, RateSchedule) else self.rate

    @property
    def is_scheduled(self) -> bool:
        return isinstance(self.rate, RateSchedule)

    @cached_property
    def highest_rate(self) -> float:
        """Of the whole run."""
        return max(self.rate_at(0.0), self.rate_at(1.0))

    def num_predicted(self, seq_len: int) -> int:
        return _count_quantile(seq_len, self.highest_rate, (1.0,))

    def limit(self, progress: float) -> np.uint64 | float:
        # the highest 64 bits whose u is below the rate: u = (bits >> 11) / 2**53, without leaving the integers
        return np.uint64((math.ceil(self.rate_at(progress) * 2**53) << 11) - 1)

    def frozen(self, rate: float | None = None) -> Masking:
        if rate is not None:
            refuse(check("eval.mask_rates", rate, Rate))
        return replace(self, mask_share=1.0, random_share=0.0, rate=self.rate_at(1.0) if rate is None else rate)


@dataclass(frozen=True, kw_only=True)
class Single(Masking):
    """Exactly one position a row, uniformly among the maskable ones; no rate.

    Source: Garnier-Brun, Mézard, Moscato, Saglietti, "How transformers learn structured data", ICML 2025.
    """

    mask_share: Share = 1.0
    random_share: Share = 0.0

    def num_predicted(self, seq_len: int) -> int:
        return 1

    def limit(self, progress: float) -> np.uint64:
        return np.uint64(0)


@dataclass(frozen=True, kw_only=True)
class WholeWord(Bernoulli):
    """Whole words: what `Bernoulli` decides at a word's first token holds for all its tokens.

    Words are those of `vocab.continues_word`; where that is None every token is a word, and the masks are Bernoulli's. A row
    may begin inside a word: its first token there counts as the word's first. Special tokens and padding end words. A row with
    more than K predicted positions drops whole words; only a single word of more than K tokens is cut.
    """

    def num_predicted(self, seq_len: int) -> int:
        # long words make the count of tokens vary more: count as if every word had three tokens, most have one
        return min(seq_len, max(LONGEST_WORD, 3 * _count_quantile(math.ceil(seq_len / 3), self.highest_rate, (1.0,))))

    def scores(self, keys_B: np.ndarray, tokens_BL: np.ndarray, maskable_BL: np.ndarray, vocab: Vocab) -> np.ndarray:
        bits_BL = super().scores(keys_B, tokens_BL, maskable_BL, vocab)
        if vocab.continues_word_V is None:
            return bits_BL
        starts = _starts_word(tokens_BL, maskable_BL, vocab).ravel()
        first = np.maximum.accumulate(np.where(starts, np.arange(starts.size), 0))  # each row begins with a start
        return bits_BL.ravel()[first].reshape(bits_BL.shape)


@dataclass(frozen=True, kw_only=True)
class Span(Bernoulli):
    """Spans of whole words, their lengths in words geometric and at most `max_length`, `mean_length` on average.

    Every word may start a span; the predicted words are the union of the spans, and the chance s of a start is such that the
    union covers exactly `rate` at every place of the row. Spans that start left of the row reach into it, or its first words
    would be covered less. Special tokens and padding interrupt: no span crosses them, and what follows is like a new row.
    Spans may touch and overlap, so a run of predicted words can be longer than `max_length`.

    One uniform a word decides its start and its length: from word i a span covers word i + d where u_i < s · P(length > d).
    A word's score is therefore the minimum over d of u_(i-d) / P(length > d), and the limit is s.

    K is exact where every token is a word. With long words a row overflows more often (at 15 % and L = 128, K is 74), and then
    loses the words of the highest scores, which are the ends of its spans.

    Source: Joshi et al., "SpanBERT", 2020: p = 0.2 and at most 10 words, 3.8 on average; there spans are drawn until 15 % of
    a text is covered, here without an order.
    """

    mean_length: Annotated[float, Ge(1), "it is a number of words, such as 3.8"] = 3.8
    max_length: Annotated[int, Ge(1), "it is a number of words, such as 10"] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = (self.max_length + 1) / 2
        if self.mean_length > longest:
            problem = f"must be from 1 to {longest:g}, which is (max_length + 1) / 2 with masking.max_length={self.max_length}"
            raise ConfigError("masking.mean_length", self.mean_length, problem, "give a shorter mean, or a higher maximum")

    def num_predicted(self, seq_len: int) -> int:
        return min(seq_len, max(LONGEST_WORD, _count_quantile(seq_len, self.highest_rate, self.survival)))

    @cached_property
    def survival(self) -> tuple[float, ...]:
        """P(length > d) for d = 0, 1, …: of a geometric distribution on 1 … max_length with the mean `mean_length`."""
        lengths = np.arange(1, self.max_length + 1)

        def chances(ratio: float) -> np.ndarray:
            weights = ratio ** (lengths - 1.0)
            return weights / weights.sum()

        ratio = _bisect(lambda ratio: float(chances(ratio) @ lengths), self.mean_length)
        survival = 1 - np.concatenate([[0.0], np.cumsum(chances(ratio))[:-1]])
        return tuple(float(chance) for chance in survival if chance > 1e-12)

    def limit(self, progress: float) -> float:
        return _start_chance(self.rate_at(progress), self.survival)

    def scores(self, keys_B: np.ndarray, tokens_BL: np.ndarray, maskable_BL: np.ndarray, vocab: Vocab) -> np.ndarray:
        reach = len(self.survival) - 1
        # each token's word in its row, with as many words left out at an interruption as no span can cross
        step_BL = (maskable_BL & _starts_word(tokens_BL, maskable_BL, vocab)).astype(np.int64)
        step_BL[:, 0] = 0
        step_BL[:, 1:][maskable_BL[:, :-1] & ~maskable_BL[:, 1:]] = reach
        word_BL = np.cumsum(step_BL, axis=1)
        words = int(word_BL.max(initial=0)) + 1
        counters = np.arange(-reach, words).view(np.uint64)  # from the words left of the row on
        u_BW = (randomness.random_bits_numpy(keys_B[:, None], counters) >> np.uint64(11)) * 2.0**-53
        scores_BW = u_BW[:, reach:].copy()
        for d in range(1, reach + 1):
            np.minimum(scores_BW, u_BW[:, reach - d : reach - d + words] / self.survival[d], out=scores_BW)
        return np.take_along_axis(scores_BW, word_BL, axis=1)


MASKINGS: dict[str, type[Masking]] = {"bernoulli": Bernoulli, "single": Single, "span": Span, "whole_word": WholeWord}
"""The kinds by their names in a config."""


def _row_keys(key: int, epochs_B: np.ndarray | None, row_ids_B: np.ndarray) -> np.ndarray:
    """The rows' keys for their masks and for their replacements, (2, B)."""
    epoch = 0 if epochs_B is None or not len(epochs_B) else int(epochs_B[0])
    ids_B = row_ids_B.view(np.uint64)
    if epochs_B is None or (epochs_B == epoch).all():  # all but the batches between two epochs
        return randomness.row_keys_numpy(_stream_keys(key, epoch), ids_B)
    return randomness.row_keys_numpy(_stream_keys(key), epochs_B.view(np.uint64), ids_B)


@lru_cache(maxsize=64)
def _stream_keys(key: int, *epoch: int) -> np.ndarray:
    """Those of masks and of replacements, hashed with the epoch if one is given, (2, 1)."""
    keys = [randomness.key(key, Stream.MASK), randomness.key(key, Stream.REPLACEMENT)]
    words = (np.array([each]).view(np.uint64) for each in epoch)
    return randomness.row_keys_numpy(np.array(keys).view(np.uint64)[:, None], *words)


def _starts_word(tokens_BL: np.ndarray, maskable_BL: np.ndarray, vocab: Vocab) -> np.ndarray:
    """Where words start: at tokens that continue nothing, at the row's first, at and after special tokens and padding."""
    if vocab.continues_word_V is None:
        return np.ones_like(maskable_BL)
    starts_BL = ~(vocab.continues_word_V.numpy()[tokens_BL] & maskable_BL)
    starts_BL[:, 0] = True
    starts_BL[:, 1:] |= ~maskable_BL[:, :-1]
    return starts_BL


def _predicted(
    scores_BL: np.ndarray, limit: np.uint64 | float, maskable_BL: np.ndarray, num_places: int
) -> tuple[np.ndarray, np.ndarray]:
    """The maskable positions up to the limit, at least one word in a row and at most `num_places` positions, and their
    number in each row."""
    predicted_BL = scores_BL <= limit
    predicted_BL &= maskable_BL
    count_B = predicted_BL.sum(axis=1, dtype=np.int32)
    if not count_B.all():  # the word of the lowest score
        rows = np.flatnonzero(count_B == 0)
        highest = np.inf if scores_BL.dtype.kind == "f" else np.iinfo(scores_BL.dtype).max
        scores_RL = np.where(maskable_BL[rows], scores_BL[rows], highest)
        predicted_BL[rows] = maskable_BL[rows] & (scores_RL == scores_RL.min(axis=1, keepdims=True))
        count_B = predicted_BL.sum(axis=1, dtype=np.int32)
    for row in np.flatnonzero(count_B > num_places):  # without the words of the highest scores, until the rest has room
        predicted_L, scores_L = predicted_BL[row], scores_BL[row]
        first_out = np.partition(scores_L[predicted_L], num_places)[num_places]
        kept_L = predicted_L & (scores_L < first_out)
        if not kept_L.any():  # a single word is longer than `num_places`
            kept_L[np.flatnonzero(predicted_L & (scores_L == first_out))[:num_places]] = True
        predicted_BL[row] = kept_L
        count_B[row] = kept_L.sum()
    return predicted_BL, count_B


@lru_cache(maxsize=256)
def _start_chance(rate: float, survival: tuple[float, ...]) -> float:
    """s such that the chance of being covered, 1 - Π_d (1 - s · P(length > d)), is the rate."""
    return _bisect(lambda s: 1 - math.prod(1 - s * chance for chance in survival), rate)


def _bisect(increasing, target: float) -> float:  # type: ignore[no-untyped-def]
    """Where an increasing function on [0, 1] takes the target value."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if increasing(middle) < target else (low, middle)
    return high


@lru_cache(maxsize=256)
def _count_quantile(seq_len: int, rate: float, survival: tuple[float, ...]) -> int:
    """The least count (from 1 to seq_len) that the covered places of a row exceed with a chance below OVERFLOW.

    Exact, place after place: `chance[r, n]` is that of n covered places so far and a span that covers r - 1 places more.
    """
    # a span from here covers at most d places (0: none starts)
    at_most_D = np.array([1 - _start_chance(rate, survival) * chance for chance in survival] + [1.0])
    # counts beyond eight standard deviations, with every neighbour in reach fully correlated, are not followed
    most = min(seq_len, math.ceil(seq_len * rate + 8 * math.sqrt(seq_len * rate * (2 * len(survival) - 1))))
    chance = np.zeros((len(at_most_D), most + 1))
    chance[0, 0] = 1
    for place in range(-len(survival), seq_len):
        passed = np.vstack([chance[:1] + chance[1:2], chance[2:], np.zeros((1, most + 1))])
        chance = np.diff(np.cumsum(passed, axis=0) * at_most_D[:, None], axis=0, prepend=0)  # the longer of the two
        if place >= 0:
            chance[1:, 1:] = chance[1:, :-1]
            chance[1:, 0] = 0
    exceeds = np.cumsum(chance.sum(axis=0)[::-1])[::-1]  # P(count >= n)
    return max(1, int(np.argmax(np.append(exceeds[1:], 0.0) < OVERFLOW)))
