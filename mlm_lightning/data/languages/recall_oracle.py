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

from mlm_lightning.data.languages.hidden import HiddenOracle, nonzero_flat
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
    log_weight_RS: Tensor
    row_N: Tensor
    value_N: Tensor
    """Each value that is seen without its key, and the row of the group."""
    count_NS: Tensor
    """How many keys have that value, in each map (int32)."""

    def of_key(self, number: int, weight_RS: Tensor) -> Tensor:
        """The weight of the maps that give each value to an open key, `weight_RW`."""
        w, num_after = self.num_values, self.open_RH.shape[1] - 1 - number
        return weight_RS.view(len(weight_RS), w**number, w, w**num_after).sum((1, 3))


@dataclass(frozen=True, eq=False)
class Beliefs:
    value_BMW: Tensor
    """Of each key's value."""
    lonely_N: Tensor
    """Row · W + value, of each value that is seen without its key."""
    key_NM: Tensor
    """Which key is asked for there."""
    possible_B: Tensor


class RecallOracle(HiddenOracle):
    """Exact for any pattern: hidden keys, hidden values, a hidden list."""

    def __init__(self, num_keys: int, noise: Noise, seq_len: int) -> None:
        m, w = num_keys, noise.num_symbols
        super().__init__(m + w, seq_len, row_elements=seq_len * (m + w + 1))
        self._num_keys, self._num_values, self._noise = m, w, noise
        # of a value that is seen without its key, by the number of keys that have it: the sum over keys, of its probability
        self._share_C = torch.arange(m + 1, dtype=torch.float64) * (1 - noise.share) + m * noise.miss
        said_X, key_K = torch.arange(m + w + 1), torch.arange(m)[:, None]
        is_key_X, is_value_X = (said_X < m) | (said_X == m + w), said_X >= m
        listed_KX = torch.stack(((said_X == key_K) | (said_X == m + w), is_value_X.expand(m, -1)), dim=1)
        queries_X = torch.stack((is_key_X, is_value_X)).repeat(seq_len // 2 - m, 1)
        self._possible_X = torch.cat((listed_KX.flatten(), queries_X.flatten())).byte()
        """What each place may say, one place after the other."""

    def _read(self, said_BL: Tensor) -> Said:
        m, w, device = self._num_keys, self._num_values, said_BL.device
        place_L = torch.arange(self.seq_len, dtype=torch.int32, device=device) * (m + w + 1)
        allowed_X = self._possible_X.index_select(0, (said_BL.int() + place_L).flatten())
        key_BN, value_BN = said_BL[:, 0::2].clamp(max=m), (said_BL[:, 1::2] - m).clamp_(min=0)
        row_B1 = torch.arange(len(said_BL), device=device)[:, None]
        cell_BN = (key_BN[:, m:] * (w + 1)).add_(value_BN[:, m:]).add_(row_B1 * ((m + 1) * (w + 1)))
        pairs_BKV = cell_BN.flatten().bincount(minlength=len(said_BL) * (m + 1) * (w + 1)).view(-1, m + 1, w + 1)
        votes_BMW = pairs_BKV[:, :m, :w].double()
        log_vote_BMW = self._noise.log_prob(votes_BMW, votes_BMW.sum(2, keepdim=True)).sub_(log(w))
        num_seen_B = (self.seq_len // 2 - m - pairs_BKV[:, m, w]).double()
        possible_B = allowed_X.view(said_BL.shape).amin(1).bool()
        return Said(key_BN, value_BN, possible_B, log_vote_BMW, pairs_BKV[:, m, :w].double(), num_seen_B)

    def _maps(self, said: Said) -> Iterator[Maps]:
        m, w, device = self._num_keys, self._num_values, said.key_BN.device
        log_share_C = self._share_C.log().clamp_(min=LOG_ZERO)
        listed_BM = said.value_BN[:, :m]
        log_listed_B = torch.nn.functional.pad(said.log_vote_BMW, (0, 1)).gather(2, listed_BM[..., None]).sum((1, 2))
        count_BX = torch.zeros(len(listed_BM), w + 1, dtype=torch.int32, device=device)
        count_BX.scatter_add_(1, listed_BM, torch.ones((), dtype=torch.int32, device=device).expand_as(listed_BM))
        most_lonely = 1 + int((said.lonely_BW > 0).sum(1).max())
        for num_open in count_BX[:, w].unique().tolist():
            count_WS = _all_counts(w, num_open).to(device)
            all_rows_R = nonzero_flat(count_BX[:, w] == num_open)
            for rows_R in all_rows_R.split(max(1, _GROUP // (count_WS.shape[1] * most_lonely))):
                open_RH = (nonzero_flat(listed_BM.index_select(0, rows_R) == w) % m).view(len(rows_R), num_open)
                log_weight_RS = log_listed_B[rows_R, None]
                for key_R in open_RH.unbind(1):
                    log_vote_RW = said.log_vote_BMW.flatten(0, 1).index_select(0, rows_R * m + key_R)
                    log_weight_RS = (log_weight_RS[:, :, None] + log_vote_RW[:, None]).flatten(1)
                lonely_RW = said.lonely_BW.index_select(0, rows_R)
                cell_N = nonzero_flat(lonely_RW != 0)
                row_N = cell_N // w
                value_N = cell_N - row_N * w
                listed_N = count_BX.flatten().index_select(0, rows_R.index_select(0, row_N) * (w + 1) + value_N)
                count_NS = count_WS.index_select(0, value_N).int().add_(listed_N[:, None])
                log_share_NS = _look_up(log_share_C, count_NS).mul_(lonely_RW.flatten().index_select(0, cell_N)[:, None])
                log_weight_RS.index_add_(0, row_N, log_share_NS)
                yield Maps(w, rows_R, open_RH, log_weight_RS, row_N, value_N, count_NS)

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        said = self._read(said_BL)
        log_prob_B = torch.empty(len(said_BL), dtype=torch.float64, device=said_BL.device)
        for maps in self._maps(said):
            log_prob_B[maps.rows_R] = maps.log_weight_RS.logsumexp(1)
        log_prob_B -= said.num_seen_B * log(self._num_keys)
        return log_prob_of(log_prob_B).masked_fill_(~said.possible_B, -torch.inf)

    def _beliefs(self, said: Said) -> Beliefs:
        m, w, device = self._num_keys, self._num_values, said.key_BN.device
        listed_BM, most_B = said.value_BN[:, :m], torch.empty_like(said.num_seen_B)
        one_hot_XW = torch.eye(w + 1, dtype=torch.float64, device=device)[:, :w].contiguous()
        value_XW = one_hot_XW.index_select(0, listed_BM.flatten())
        per_share_C = 1 / self._share_C.clamp(min=torch.finfo(torch.float64).tiny)  # a map in which it is 0 has no weight
        lonely, keys = [], []
        for maps in self._maps(said):
            most_B[maps.rows_R] = maps.log_weight_RS.amax(1)
            weight_RS = maps.log_weight_RS.softmax(1)
            for number, key_R in enumerate(maps.open_RH.unbind(1)):
                value_XW.index_copy_(0, maps.rows_R * m + key_R, maps.of_key(number, weight_RS))
            share_NS = _look_up(per_share_C, maps.count_NS).mul_(weight_RS.index_select(0, maps.row_N))
            total_N1, row_N = share_NS.sum(1, keepdim=True), maps.rows_R.index_select(0, maps.row_N)
            has_NM = (listed_BM.index_select(0, row_N) == maps.value_N[:, None]) * total_N1
            for number, key_N in enumerate(maps.open_RH.index_select(0, maps.row_N).unbind(1)):
                has_NM.scatter_(1, key_N[:, None], maps.of_key(number, share_NS).gather(1, maps.value_N[:, None]))
            lonely.append(row_N * w + maps.value_N)
            keys.append(has_NM.mul_(1 - self._noise.share).add_(total_N1, alpha=self._noise.miss))
        possible_B = said.possible_B & (most_B > LOG_ZERO / 2)
        return Beliefs(value_XW.view(-1, m, w), torch.cat(lonely), torch.cat(keys), possible_B)

    def _hidden(self, said_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distributions: of a key of which nothing is known; of keys, where a value is seen without; and of each row's values,
        2M + 1 of them: in the list, of queries by the key, and of queries without."""
        said = self._read(said_BL)
        beliefs = self._beliefs(said)
        m, w, q = self._num_keys, self._num_values, self.num_symbols
        num_rows, num_lonely = len(said_BL), len(beliefs.lonely_N)
        table_TV = torch.zeros(1 + num_lonely + num_rows * (2 * m + 1), q + 1, dtype=torch.float64, device=said_BL.device)
        table_TV[0, :m] = 1 / m
        table_TV[1 : 1 + num_lonely, :m] = beliefs.key_NM
        values_BTW = table_TV[1 + num_lonely :].view(num_rows, 2 * m + 1, -1)[..., m:-1]
        values_BTW[:, :m] = beliefs.value_BMW
        values_BTW[:, m:-1] = beliefs.value_BMW * (1 - self._noise.share) + self._noise.miss
        values_BTW[:, -1] = values_BTW[:, m:-1].mean(1)

        index_BL = said_BL.int()
        hidden_BL = torch.eq(index_BL, q, out=torch.empty_like(index_BL))
        of_key_BX = torch.zeros(num_rows, w + 1, dtype=torch.int32, device=said_BL.device)
        number_N = torch.arange(1, 1 + num_lonely, dtype=torch.int32, device=said_BL.device)
        row_N = beliefs.lonely_N // w
        of_key_BX.view(-1)[beliefs.lonely_N + row_N] = number_N  # a row has one more, of a hidden value: 0
        key_BN = of_key_BX.gather(1, said.value_BN)
        key_BN[:, :m] = torch.arange(-q, m - q, dtype=torch.int32, device=said_BL.device)  # in the list it is certain
        value_BN = said.key_BN.int().add_(1 + num_lonely + m)
        value_BN[:, :m] = torch.arange(m, dtype=torch.int32, device=said_BL.device) + (1 + num_lonely)
        value_BN += torch.arange(num_rows, dtype=torch.int32, device=said_BL.device)[:, None] * (2 * m + 1)
        index_BL[:, 0::2].addcmul_(hidden_BL[:, 0::2], key_BN)
        index_BL[:, 1::2].addcmul_(hidden_BL[:, 1::2], value_BN)
        return index_BL, table_TV, beliefs.possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        beliefs = self._beliefs(self._read(said_BL))
        return {"value": beliefs.value_BMW}, beliefs.possible_B

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
            value_BM[maps.rows_R[:, None], maps.open_RH] = _digits(w, maps.open_RH.shape[1], chosen_R)
        asked_BNM = (value_BM[:, None] == value_BN[..., None]).double() * (1 - self._noise.share) + self._noise.miss
        asked_BNM = asked_BNM.masked_fill_((value_BN == w)[..., None], 1.0)  # what it is says nothing of the key
        key_BN = torch.where(key_BN == m, choose(asked_BNM, u_BL[:, list_len::2]), key_BN)
        tokens_BL = said_BL.clone()
        tokens_BL[:, 0:list_len:2] = torch.arange(m, device=said_BL.device)
        tokens_BL[:, 1:list_len:2] = m + value_BM
        tokens_BL[:, list_len::2] = key_BN
        tokens_BL[:, list_len + 1 :: 2] = m + self._noise.apply(value_BM.gather(1, key_BN), u_BL[:, list_len + 1 :: 2])
        return tokens_BL, possible_B


def _look_up(table_C: Tensor, count_NS: Tensor) -> Tensor:
    return table_C.index_select(0, count_NS.flatten()).view(count_NS.shape)


def _digits(num_values: int, num_open: int, map_S: Tensor) -> Tensor:
    """`digits_SH`, the values of the open keys in some maps; those of the first change last."""
    return map_S[:, None] // num_values ** torch.arange(num_open - 1, -1, -1, device=map_S.device) % num_values


@lru_cache(maxsize=16)
def _all_counts(num_values: int, num_open: int) -> Tensor:
    """How many of the open keys have each value, `count_WS`, in each map."""
    count_WS, value_W1 = torch.zeros(num_values, num_values**num_open, dtype=torch.uint8), torch.arange(num_values)[:, None]
    for digit_S in _digits(num_values, num_open, torch.arange(num_values**num_open)).unbind(1):
        count_WS += digit_S == value_W1
    return count_WS
