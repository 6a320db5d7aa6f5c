"""The posterior of hidden keys and values, by a sum over all maps of keys to values.

    p(map | evidence)  ∝  Π over pairs of  p(key, value | map)       pairs seen whole, values without their key, keys alone
    p(value | key)     =  Σ over maps of   p(map | evidence) · p(value | key, map)
    p(key | value)     =  Σ over maps of   p(map | evidence) · p(value | key, map) / Σ over keys of p(value | key, map)

In the list, keys are certain and a value is the map's; the evidence there leaves some of the maps.

Shapes beyond those of `batch`: N pairs of a row, M keys, W values, S maps (W^M), V symbols with `[MASK]`.
"""

from math import log

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mlm_lightning.data.languages.noise import Noise
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, LatentAnswer, choose, possible

_LOG_0 = -1e30  # in products with counts: 0 times it is 0


class RecallOracle(LanguageOracle):
    """Exact for any pattern: hidden keys, hidden values, a hidden list."""

    def __init__(self, num_keys: int, noise: Noise, seq_len: int) -> None:
        self.num_keys, self.num_values, self.noise = num_keys, noise.num_symbols, noise
        num_maps = noise.num_symbols**num_keys
        super().__init__(num_keys + noise.num_symbols, seq_len, seq_len * (num_keys + noise.num_symbols) + num_keys * num_maps)
        self.map_SM = torch.cartesian_prod(*[torch.arange(self.num_values)] * num_keys).view(-1, num_keys)
        self.meant_SMW = one_hot(self.map_SM, self.num_values).double()
        # whether a token may stand at a place: keys and values in turns, the list's keys in their order
        self.in_place_LX = torch.zeros(seq_len, self.num_symbols + 1, dtype=torch.bool)
        self.in_place_LX[0::2, :num_keys] = self.in_place_LX[1::2, num_keys:] = self.in_place_LX[:, -1] = True
        self.in_place_LX[0 : 2 * num_keys : 2, :num_keys] = torch.eye(num_keys, dtype=torch.bool)
        # the probability that a query has a value, given its key and the map
        self.says_SMW = noise.miss + (1 - noise.share) * self.meant_SMW

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        m, w = self.num_keys, self.num_values
        key_BN, value_BN = self._pairs(evidence_BL)
        log_BS = self._log_weights(evidence_BL)
        weight_BS = log_BS.softmax(1)

        meant_BMW = _mean(weight_BS, self.meant_SMW)
        says_BMW = _mean(weight_BS, self.says_SMW)
        total_S1W = self.says_SMW.sum(1, keepdim=True)
        key_BMW = _mean(weight_BS, self.says_SMW / total_S1W.where(total_S1W > 0, 1.0))
        # of queries: a hidden value by its key, or by the mean key; a hidden key by its value, or by nothing
        row_B1 = torch.arange(len(evidence_BL), device=evidence_BL.device)[:, None]
        of_key_BNW = torch.cat((says_BMW, says_BMW.mean(1, keepdim=True)), dim=1)[row_B1, key_BN]
        of_value_BNM = torch.cat((key_BMW, torch.full_like(key_BMW[..., :1], 1 / m)), dim=2)[row_B1, :, value_BN]
        # of the list: its keys stand in their order, its values are the map's
        of_key_BNW[:, :m], of_value_BNM[:, :m] = meant_BMW, torch.eye(m).to(meant_BMW)

        probs_BLQ = meant_BMW.new_zeros(*evidence_BL.shape, m + w)
        probs_BLQ[:, 0::2, :m], probs_BLQ[:, 1::2, m:] = of_value_BNM, of_key_BNW
        return probs_BLQ, possible(log_BS)

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        log_BS, (key_BN, _) = self._log_weights(evidence_BL), self._pairs(evidence_BL)
        num_keys_B = (key_BN[:, self.num_keys :] < self.num_keys).sum(1)
        log_prob_B = log_BS.logsumexp(1) - log(log_BS.shape[1]) - num_keys_B.double() * log(self.num_keys)
        return log_prob_B.masked_fill(~possible(log_BS), -torch.inf)

    def _latents(self, evidence_BL: Tensor) -> LatentAnswer:
        log_BS = self._log_weights(evidence_BL)
        return {"value": _mean(log_BS.softmax(1), self.meant_SMW)}, possible(log_BS)

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        """The number of the list's first key chooses the map, and then there is one a token."""
        m, w, list_len = self.num_keys, self.num_values, 2 * self.num_keys
        u_BL = self._uniform(keys_B, torch.arange(self.seq_len))
        log_BS = self._log_weights(evidence_BL)
        map_BM = self.map_SM[choose(log_BS.softmax(1), u_BL[:, 0])]

        key_BN, value_BN = (each_BN[:, m:] for each_BN in self._pairs(evidence_BL))
        weight_BNM = self.noise.miss + (1 - self.noise.share) * (map_BM[:, None] == value_BN[..., None]).double()
        weight_BNM = weight_BNM.masked_fill((value_BN == w)[..., None], 1.0)  # a hidden value is no evidence of its key
        key_BN = torch.where(key_BN == m, choose(weight_BNM, u_BL[:, list_len::2]), key_BN)

        tokens_BL = evidence_BL.clone()
        tokens_BL[:, 0:list_len:2] = torch.arange(m, device=evidence_BL.device)
        tokens_BL[:, 1:list_len:2] = m + map_BM
        tokens_BL[:, list_len::2] = key_BN
        tokens_BL[:, list_len + 1 :: 2] = m + self.noise.apply(map_BM.gather(1, key_BN), u_BL[:, list_len + 1 :: 2])
        return tokens_BL, possible(log_BS)

    def _pairs(self, evidence_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all pairs, `key_BN` and `value_BN`: a hidden key is M, a hidden value W."""
        return evidence_BL[:, 0::2].clamp(max=self.num_keys), (evidence_BL[:, 1::2] - self.num_keys).clamp(min=0)

    def _log_weights(self, evidence_BL: Tensor) -> Tensor:
        """log p(evidence | map) but for the keys that are seen, `log_BS`; -inf where it is impossible."""
        m, w = self.num_keys, self.num_values
        key_BN, value_BN = self._pairs(evidence_BL)
        row_BN = torch.arange(len(key_BN), device=key_BN.device)[:, None].expand_as(key_BN)
        # of the pairs of a key and a value in queries, hidden ones last
        count_BMW = self.meant_SMW.new_zeros(len(key_BN), m + 1, w + 1)
        pairs = (row_BN[:, m:], key_BN[:, m:], value_BN[:, m:])
        count_BMW.index_put_(pairs, self.meant_SMW.new_ones(()), accumulate=True)
        log_pairs_BS = count_BMW[:, :m, :w].flatten(1) @ _log(self.says_SMW).flatten(1).T
        log_values_BS = count_BMW[:, m, :w] @ _log(self.says_SMW.mean(1)).T
        log_BS = log_pairs_BS + log_values_BS

        listed_B1M = value_BN[:, None, :m]
        agrees_BS = ((listed_B1M == self.map_SM) | (listed_B1M == w)).all(2)
        in_place_B1 = self.in_place_LX[torch.arange(self.seq_len), evidence_BL].all(1, keepdim=True)
        return log_BS.masked_fill(~(agrees_BS & in_place_B1) | (log_BS < _LOG_0 / 2), -torch.inf)


def _mean(weight_BS: Tensor, table_SMW: Tensor) -> Tensor:
    return torch.einsum("bs,smw->bmw", weight_BS, table_SMW)


def _log(probs: Tensor) -> Tensor:
    return probs.log().clamp(min=_LOG_0)
