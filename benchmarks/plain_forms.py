"""Languages of closed forms in plain NumPy, one row after the other.

Shapes: P places of a pattern, Q symbols; C checks, K free places; M keys, W values.
"""

import numpy as np
from plain import Plain

from mlm_lightning.data.languages.code import CodeSource
from mlm_lightning.data.languages.periodic import PeriodicSource
from mlm_lightning.data.languages.recall import RecallSource
from mlm_lightning.data.languages.urn import UrnSource


def urn(source: UrnSource) -> Plain:
    """Counting; rows come from their Dirichlet."""
    q, c, length = source.num_symbols, source.concentration, source.seq_len

    def row(rng: np.random.Generator) -> np.ndarray:
        return rng.choice(q, size=length, p=rng.dirichlet(np.full(q, c)))

    def posterior(tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
        counts = np.bincount(tokens[observed], minlength=q)
        return one_hot_where(observed, tokens, np.tile((counts + c) / (counts.sum() + q * c), (length, 1)))

    return Plain(row, posterior)


def code(source: CodeSource) -> Plain:
    """Gaussian elimination of the hidden free places, column by column, with the checks whose given place is seen."""
    p, solved = source.num_symbols, source._solved
    free_K, given_C, rest_CK = solved.free_K.numpy(), solved.given_C.numpy(), solved.rest_CK.numpy().astype(np.int64)
    inverse = np.array([0, *(pow(value, -1, p) for value in range(1, p))])

    def row(rng: np.random.Generator) -> np.ndarray:
        tokens = np.empty(source.seq_len, dtype=np.int64)
        tokens[free_K] = rng.integers(p, size=len(free_K))
        tokens[given_C] = -(rest_CK @ tokens[free_K]) % p
        return tokens

    def reduced(table: np.ndarray, usable: np.ndarray) -> dict[int, int]:
        """The check that gives each column, if there is one; `table` is reduced, and `usable` what is left of the checks."""
        pivots = {}
        for column in range(table.shape[1] - 1):
            candidates = np.flatnonzero(usable & (table[:, column] != 0))
            if not len(candidates):
                continue
            check = int(candidates[0])
            line = table[check] * inverse[table[check, column]] % p
            table[:] = (table - table[:, column, None] * line) % p
            table[check] = line
            usable[check] = False
            pivots[column] = check
        return pivots

    def posterior(tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
        told = np.where(observed, tokens, 0)
        hidden, seen = np.flatnonzero(~observed[free_K]), observed[given_C]
        right_side = -told[given_C] - rest_CK @ told[free_K]
        table = np.concatenate((rest_CK[:, hidden], right_side[:, None]), axis=1) % p
        pivots = reduced(table, seen.copy())
        loose = (table[:, :-1] != 0).sum(1)
        probs = np.full((len(tokens), p), 1 / p)
        certain = [(given_C[check], check) for check in np.flatnonzero(~seen & (loose == 0)).tolist()]
        certain += [(free_K[hidden[column]], check) for column, check in pivots.items() if loose[check] == 1]
        for place, check in certain:
            probs[place] = 0.0
            probs[place, table[check, -1]] = 1.0
        return one_hot_where(observed, tokens, probs)

    return Plain(row, posterior)


def periodic(source: PeriodicSource) -> Plain:
    """For each period, the votes of its residue classes."""
    q, length, noise = source.num_symbols, source.seq_len, source.noise

    def row(rng: np.random.Generator) -> np.ndarray:
        period = rng.integers(source.min_period, source.max_period + 1)
        tokens = rng.integers(q, size=period)[np.arange(length) % period]
        flipped = rng.random(length) < noise.share
        tokens[flipped] = rng.integers(q, size=flipped.sum())
        return tokens

    def posterior(tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
        seen = np.flatnonzero(observed)
        classes, evidence = [], []
        for period in range(source.min_period, source.max_period + 1):
            counts_PQ = np.bincount(seen % period * q + tokens[seen], minlength=period * q).reshape(period, q)
            log_PQ = counts_PQ * noise.log_hit + (counts_PQ.sum(1, keepdims=True) - counts_PQ) * noise.log_miss - np.log(q)
            most_P1 = log_PQ.max(1, keepdims=True)
            log_total_P1 = most_P1 + np.log(np.exp(log_PQ - most_P1).sum(1, keepdims=True))
            classes.append(np.exp(log_PQ - log_total_P1))
            evidence.append(log_total_P1.sum())
        weight = np.exp(np.array(evidence) - max(evidence))
        probs = np.zeros((length, q))
        for share, probs_PQ in zip(weight / weight.sum(), classes, strict=True):
            probs += share * probs_PQ[np.arange(length) % len(probs_PQ)]
        return one_hot_where(observed, tokens, (1 - noise.share) * probs + noise.miss)

    return Plain(row, posterior)


def recall(source: RecallSource) -> Plain:
    """A sum over the maps of those keys whose value is not listed."""
    m, w, length, noise = source.num_keys, source.num_values, source.seq_len, source.noise
    maps = [np.arange(w**n)[:, None] // w ** np.arange(n - 1, -1, -1) % w for n in range(m + 1)]

    def row(rng: np.random.Generator) -> np.ndarray:
        values, tokens = rng.integers(w, size=m), np.empty(length, dtype=np.int64)
        tokens[0 : 2 * m : 2], tokens[1 : 2 * m : 2] = np.arange(m), m + values
        keys = rng.integers(m, size=length // 2 - m)
        answers, replaced = values[keys], rng.random(len(keys)) < noise.share
        answers[replaced] = rng.integers(w, size=replaced.sum())
        tokens[2 * m :: 2], tokens[2 * m + 1 :: 2] = keys, m + answers
        return tokens

    def posterior(tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
        said = np.where(observed, tokens, m + w)
        key, value = np.minimum(said[0::2], m), said[1::2] - m
        pairs = np.bincount(key[m:] * (w + 1) + value[m:], minlength=(m + 1) * (w + 1)).reshape(m + 1, w + 1)
        votes, lonely, listed = pairs[:m, :w], pairs[m, :w], value[:m]
        log_vote = votes * noise.log_hit + (votes.sum(1, keepdims=True) - votes) * noise.log_miss - np.log(w)
        unlisted, known = np.flatnonzero(listed == w), np.flatnonzero(listed < w)
        log_weight = np.full(1, log_vote[known, listed[known]].sum())
        for each in unlisted:
            log_weight = (log_weight[:, None] + log_vote[each]).ravel()
        listed_count, shares = np.bincount(listed[known], minlength=w), {}
        for answer in np.flatnonzero(lonely):
            count = listed_count[answer] + (maps[len(unlisted)] == answer).sum(1)
            shares[answer] = (1 - noise.share) * count + m * noise.miss
            log_weight = log_weight + lonely[answer] * np.log(np.maximum(shares[answer], 1e-300))
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()

        belief, of_key = np.zeros((m, w)), np.full((w + 1, m), 1 / m)
        belief[known, listed[known]] = 1.0
        for number, each in enumerate(unlisted):
            belief[each] = weight.reshape(w**number, w, -1).sum((0, 2))
        for answer, share in shares.items():
            scaled = weight / np.maximum(share, 1e-300)
            has = np.zeros(m)
            has[known] = (listed[known] == answer) * scaled.sum()
            for number, each in enumerate(unlisted):
                has[each] = scaled.reshape(w**number, w, -1)[:, answer].sum()
            of_key[answer] = (1 - noise.share) * has + noise.miss * scaled.sum()
        probs = np.zeros((length, m + w))
        probs[0 : 2 * m : 2, :m], probs[1 : 2 * m : 2, m:] = np.eye(m), belief
        of_value = np.concatenate((belief, belief.mean(0, keepdims=True))) * (1 - noise.share) + noise.miss
        probs[2 * m :: 2, :m], probs[2 * m + 1 :: 2, m:] = of_key[value[m:]], of_value[key[m:]]
        return one_hot_where(observed, tokens, probs)

    return Plain(row, posterior)


def one_hot_where(observed: np.ndarray, tokens: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """All on the token where it is observed."""
    seen = np.flatnonzero(observed)
    probs[seen] = 0.0
    probs[seen, tokens[seen]] = 1.0
    return probs
