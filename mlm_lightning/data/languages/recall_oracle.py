"""What visible keys and values say about the others, by a sum over the maps of keys to values.

    a 3  b .  c .   c 1  . 3  b .         maps: a to 3, b and c to anything: num_values² of them

The weight of a map is that of what it explains: a pair of key and value `c 1` votes for what c is mapped to; a value whose key
is hidden, `. 3`, comes from any key, and votes for maps that have many keys with this value; a key alone tells nothing.

Rows are worked on together that have as many keys without a listed value.
Shapes beyond those of `batch`: M keys, W values, N pairs or other things picked out, R rows of a group, H keys without a
listed value, S maps of those (W^H).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import log

import torch
from torch import Tensor

from mlm_lightning.data.languages.hidden import HiddenOracle
from mlm_lightning.data.languages.noise import LOG_ZERO, Noise, log_prob_of
from mlm_lightning.data.languages.oracle import Answer, choose
from mlm_lightning.randomness import uniform

_GROUP = 2**20
"""Numbers of a group of rows, one a map, and a value that is seen without its key."""


@dataclass(frozen=True, eq=False)
class Said:
    """What is observed of a block of rows, pair by pair, the list's first; a hidden key is M, a hidden value W."""

    key_BN: Tensor
    value_BN: Tensor
    possible_B: Tensor
    log_vote_BMW: Tensor
    """Of each key to have each value: a uniform one, seen in the list or not, by its pairs."""
    lonely_BW: Tensor
    """How often a value is seen without its key."""
    num_seen_B: Tensor
    """Queries of which anything is seen."""


@dataclass(frozen=True, eq=False)
class Maps:
    """All maps that rows of a group may have."""

    num_values: int
    rows_R: Tensor
    open_RH: Tensor
    """The keys without a listed value."""
    digits_SH: Tensor
    """The values that they have in each map."""
    log_weight_RS: Tensor
    listed_RW: Tensor
    """How many keys have each value in the list."""

    def by_count(self, row_N: Tensor, value_N: Tensor, table_C: Tensor) -> Tensor:
        """`table_C` at the number of keys that have a value, for some rows, each with a value, and each map."""
        values_U, which_N = value_N.unique(return_inverse=True)
        count_US = (self.digits_SH == values_U[:, None, None]).sum(2)
        return table_C[self.listed_RW[row_N, value_N][:, None] + count_US[which_N]]

    def of_key(self, number: int, weight_RS: Tensor) -> Tensor:
        """The weight of the maps that give each value to an open key, `weight_RW`."""
        w, num_after = self.num_values, self.open_RH.shape[1] - 1 - number
        return weight_RS.view(len(weight_RS), w**number, w, w**num_after).sum((1, 3))


class RecallOracle(HiddenOracle):
    """Exact for any pattern: hidden keys, hidden values, a hidden list."""

    def __init__(self, num_keys: int, noise: Noise, seq_len: int) -> None:
        super().__init__(num_keys + noise.num_symbols, seq_len, row_elements=seq_len * (num_keys + noise.num_symbols + 1))
        self._num_keys, self._num_values, self._noise = num_keys, noise.num_symbols, noise
        # of a value that is seen without its key, by the number of keys that have it: the sum over keys, of its probability
        self._share_C = torch.arange(num_keys + 1, dtype=torch.float64) * (1 - noise.share) + num_keys * noise.miss

    def _read(self, said_BL: Tensor) -> Said:
        m, w = self._num_keys, self._num_values
        key_BN, value_BN = said_BL[:, 0::2], said_BL[:, 1::2] - m
        possible_B = ((key_BN < m) | (key_BN == self.num_symbols)).all(1) & (value_BN >= 0).all(1)
        key_BN, value_BN = key_BN.clamp(max=m), value_BN.clamp(min=0)
        possible_B &= ((key_BN[:, :m] == torch.arange(m, device=said_BL.device)) | (key_BN[:, :m] == m)).all(1)
        row_B1 = torch.arange(len(said_BL), device=said_BL.device)[:, None]
        cell_BN = (row_B1 * (m + 1) + key_BN[:, m:]) * (w + 1) + value_BN[:, m:]
        pairs_BKV = cell_BN.flatten().bincount(minlength=len(said_BL) * (m + 1) * (w + 1)).view(-1, m + 1, w + 1)
        votes_BMW = pairs_BKV[:, :m, :w].double()
        log_vote_BMW = self._noise.log_prob(votes_BMW, votes_BMW.sum(2, keepdim=True)) - log(w)
        num_seen_B = (self.seq_len // 2 - m - pairs_BKV[:, m, w]).double()
        return Said(key_BN, value_BN, possible_B, log_vote_BMW, pairs_BKV[:, m, :w].double(), num_seen_B)

    def _maps(self, said: Said) -> Iterator[Maps]:
        w, log_share_C = self._num_values, self._share_C.log().clamp_(min=LOG_ZERO)
        listed_BM = said.value_BN[:, : self._num_keys]
        open_BM = listed_BM == w
        num_open_B, most_lonely = open_BM.sum(1), 1 + int((said.lonely_BW > 0).sum(1).max())
        for num_open in num_open_B.unique().tolist():
            digits_SH = _all_maps(w, num_open).to(listed_BM.device)
            for rows_R in (num_open_B == num_open).nonzero()[:, 0].split(max(1, _GROUP // (len(digits_SH) * most_lonely))):
                open_RM, listed_RM, log_vote_RMW = open_BM[rows_R], listed_BM[rows_R], said.log_vote_BMW[rows_R]
                open_RH = open_RM.nonzero()[:, 1].view(len(rows_R), num_open)
                told_RM = log_vote_RMW.gather(2, listed_RM.clamp(max=w - 1)[..., None])[..., 0].masked_fill(open_RM, 0.0)
                log_weight_RS = told_RM.sum(1, keepdim=True)
                for log_vote_RW in log_vote_RMW.gather(1, open_RH[..., None].expand(-1, -1, w)).unbind(1):
                    log_weight_RS = (log_weight_RS[:, :, None] + log_vote_RW[:, None]).flatten(1)
                listed_RW = torch.nn.functional.one_hot(listed_RM, w + 1).sum(1)[:, :w]
                maps = Maps(w, rows_R, open_RH, digits_SH, log_weight_RS, listed_RW)
                lonely_RW = said.lonely_BW[rows_R]
                row_N, value_N = lonely_RW.nonzero(as_tuple=True)
                log_share_NS = maps.by_count(row_N, value_N, log_share_C)
                log_weight_RS.index_add_(0, row_N, log_share_NS.mul_(lonely_RW[row_N, value_N, None]))
                yield maps

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        said = self._read(said_BL)
        log_prob_B = torch.empty(len(said_BL), dtype=torch.float64, device=said_BL.device)
        for maps in self._maps(said):
            log_prob_B[maps.rows_R] = maps.log_weight_RS.logsumexp(1)
        log_prob_B -= said.num_seen_B * log(self._num_keys)
        return log_prob_of(log_prob_B).masked_fill_(~said.possible_B, -torch.inf)

    def _beliefs(self, said: Said) -> tuple[Tensor, Tensor, Tensor]:
        """Of each key's value, `value_BMW`; of the key of each value that is seen without one, `key_BWM`; and `possible_B`."""
        m, w, possible_B = self._num_keys, self._num_values, said.possible_B.clone()
        value_BMW = torch.nn.functional.one_hot(said.value_BN[:, :m], w + 1)[..., :w].double()
        key_BWM = torch.full((len(value_BMW), w, m), 1 / m, dtype=torch.float64, device=value_BMW.device)
        per_share_C = 1 / self._share_C.clamp(min=torch.finfo(torch.float64).tiny)  # a map in which it is 0 has no weight
        for maps in self._maps(said):
            possible_B[maps.rows_R] &= maps.log_weight_RS.amax(1) > LOG_ZERO / 2
            weight_RS = maps.log_weight_RS.softmax(1)
            listed_RMW = value_BMW[maps.rows_R]
            for number, key_R in enumerate(maps.open_RH.unbind(1)):
                value_BMW[maps.rows_R, key_R] = maps.of_key(number, weight_RS)
            row_N, value_N = said.lonely_BW[maps.rows_R].nonzero(as_tuple=True)
            share_NS = maps.by_count(row_N, value_N, per_share_C).mul_(weight_RS[row_N])
            total_N1 = share_NS.sum(1, keepdim=True)
            has_NM = listed_RMW[row_N, :, value_N] * total_N1
            for number, key_N in enumerate(maps.open_RH[row_N].unbind(1)):
                has_NM.scatter_(1, key_N[:, None], maps.of_key(number, share_NS).gather(1, value_N[:, None]))
            key_BWM[maps.rows_R[row_N], value_N] = (1 - self._noise.share) * has_NM + self._noise.miss * total_N1
        return value_BMW, key_BWM, possible_B

    def _hidden(self, said_BL: Tensor, row_N: Tensor, place_N: Tensor) -> Answer:
        said = self._read(said_BL)
        m = self._num_keys
        value_BMW, key_BWM, possible_B = self._beliefs(said)
        # of keys: those of the list; of queries, by the value, and one more for a hidden value. The same of values
        query_BMW = value_BMW * (1 - self._noise.share) + self._noise.miss
        listed_key_BMM = torch.eye(m, dtype=torch.float64, device=said_BL.device).expand(len(said_BL), -1, -1)
        nothing_B1M = torch.full_like(key_BWM[:, :1], 1 / m)
        keys_BTM = torch.cat((listed_key_BMM, key_BWM, nothing_B1M), dim=1)
        values_BTW = torch.cat((value_BMW, query_BMW, query_BMW.mean(1, keepdim=True)), dim=1)
        num_keys, num_values = keys_BTM.shape[1], values_BTW.shape[1]
        table_BTV = value_BMW.new_zeros(len(said_BL), num_keys + num_values, self.num_symbols + 1)
        table_BTV[:, :num_keys, :m] = keys_BTM
        table_BTV[:, num_keys:, m:-1] = values_BTW
        pair_N, is_value_N = place_N // 2, place_N % 2 == 1
        partner_N = torch.where(is_value_N, said.key_BN[row_N, pair_N], said.value_BN[row_N, pair_N])
        entry_N = torch.where(pair_N < m, pair_N, m + partner_N) + num_keys * is_value_N
        return table_BTV.flatten(0, 1)[row_N * (num_keys + num_values) + entry_N], possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        value_BMW, _, possible_B = self._beliefs(self._read(said_BL))
        return {"value": value_BMW}, possible_B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        """The number of the list's first key chooses the map, and then there is one a token."""
        said = self._read(said_BL)
        m, w, list_len = self._num_keys, self._num_values, 2 * self._num_keys
        u_BL = uniform(keys_B[:, None], torch.arange(self.seq_len)).to(said_BL.device)
        key_BN, value_BN = said.key_BN[:, m:], said.value_BN[:, m:]
        value_BM, possible_B = said.value_BN[:, :m].clone(), said.possible_B.clone()
        for maps in self._maps(said):
            possible_B[maps.rows_R] &= maps.log_weight_RS.amax(1) > LOG_ZERO / 2
            chosen_R = choose(maps.log_weight_RS.softmax(1), u_BL[maps.rows_R, 0])
            value_BM[maps.rows_R[:, None], maps.open_RH] = maps.digits_SH[chosen_R]
        asked_BNM = (value_BM[:, None] == value_BN[..., None]).double() * (1 - self._noise.share) + self._noise.miss
        asked_BNM = asked_BNM.masked_fill_((value_BN == w)[..., None], 1.0)  # what it is says nothing of the key
        key_BN = torch.where(key_BN == m, choose(asked_BNM, u_BL[:, list_len::2]), key_BN)
        tokens_BL = said_BL.clone()
        tokens_BL[:, 0:list_len:2] = torch.arange(m, device=said_BL.device)
        tokens_BL[:, 1:list_len:2] = m + value_BM
        tokens_BL[:, list_len::2] = key_BN
        tokens_BL[:, list_len + 1 :: 2] = m + self._noise.apply(value_BM.gather(1, key_BN), u_BL[:, list_len + 1 :: 2])
        return tokens_BL, possible_B


@lru_cache(maxsize=16)
def _all_maps(num_values: int, num_open: int) -> Tensor:
    """`digits_SH`, the values of the open keys in each map; those of the first change last."""
    return torch.arange(num_values**num_open)[:, None] // num_values ** torch.arange(num_open - 1, -1, -1) % num_values
