"""A row says what each key's value is, and then is asked: associative recall.

    a  3  b  1  c  3   c  3  a  3  a  2  b  1  …         three keys a b c, in their order, each with a value of its own;
    └────── list ───┘  └────── queries ─────┘            then keys drawn with replacement, each with its value,
                                                         which is replaced by a uniform one with probability `noise`: a 2
    tokens: keys are 0 … num_keys - 1, values num_keys … num_keys + num_values - 1

A hidden value is found in the list, unless it is hidden there, too: then the row's other queries of its key vote. Of a hidden
key there is no evidence but its value, and which keys share it. `num_keys` makes it harder, and `noise` leaves less to find.

Source: Ba, Hinton, Mnih, Leibo, Ionescu, "Using fast weights to attend to the recent past", NIPS 2016, arXiv 1610.06258; many
queries a row: Arora et al., "Zoology", ICLR 2024, arXiv 2312.04927.
"""

from math import log
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.noise import Noise
from mlm_lightning.data.languages.recall_oracle import RecallOracle
from mlm_lightning.data.languages.synthetic import MAX_SYMBOLS, Errors, Language, Sizes, language
from mlm_lightning.randomness import uniform

MAX_MAPS = 65_536
MAX_RECALL_LEN = 512


@language
class RecallSource(Language):
    """Rows of `seq_len` tokens, pairs of a key and a value."""

    num_keys: Annotated[int, Interval(ge=1, le=16), "it is the number of keys that a row lists"] = 4
    num_values: Annotated[int, Interval(ge=2, le=MAX_SYMBOLS - 2), "it is the number of different values"] = 8
    noise: Annotated[float, Interval(ge=0, le=1), "a query's value is replaced with this probability"] = 0.1
    seq_len: Annotated[int, Interval(ge=2, le=MAX_RECALL_LEN), "it is the number of tokens in a row"] = 64

    def errors(self) -> Errors:
        m, w = self.num_keys, self.num_values
        if w**m > MAX_MAPS:
            most = max(count for count in range(1, m) if w**count <= MAX_MAPS)
            fewer = max(count for count in range(1, w) if count**m <= MAX_MAPS)
            problem = f"with data.num_values={w} there are more than {MAX_MAPS} maps of keys to values"
            remedy = f"use data.num_keys={most} or fewer" + (f", or data.num_values={fewer}" if fewer > 1 else "")
            yield self.error("num_keys", problem, remedy)
        if self.seq_len % 2:
            remedy = f"use data.seq_len={self.seq_len + 1}"
            yield self.error("seq_len", "rows are pairs of a key and a value", remedy)
        if self.seq_len < 2 * m:
            problem = f"the list of data.num_keys={m} keys and their values is longer"
            yield self.error("seq_len", problem, f"use data.seq_len={2 * m} or more")

    @property
    def num_symbols(self) -> int:  # type: ignore[override]
        return self.num_keys + self.num_values

    @property
    def _noise(self) -> Noise:
        return Noise(self.noise, self.num_values)

    def draw(self, keys_B: Tensor) -> Tensor:
        """One number a token; those of the list's keys are not used."""
        m, list_len = self.num_keys, 2 * self.num_keys
        value_BM = self._values(keys_B)
        tokens_BL = torch.empty(len(keys_B), self.seq_len, dtype=torch.int64)
        tokens_BL[:, 0:list_len:2] = torch.arange(m)
        tokens_BL[:, 1:list_len:2] = m + value_BM
        u_BL = uniform(keys_B[:, None], torch.arange(list_len, self.seq_len))
        key_BN = (u_BL[:, 0::2] * m).long()
        tokens_BL[:, list_len::2] = key_BN
        tokens_BL[:, list_len + 1 :: 2] = m + self._noise.apply(value_BM.gather(1, key_BN), u_BL[:, 1::2])
        return tokens_BL

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        return {"value": self._values(keys_B)}

    def latent_sizes(self) -> Sizes:
        return {"value": (self.num_keys, self.num_values)}

    def _values(self, keys_B: Tensor) -> Tensor:
        return (uniform(keys_B[:, None], torch.arange(1, 2 * self.num_keys, 2)) * self.num_values).long()

    def oracle(self) -> RecallOracle:
        return RecallOracle(self.num_keys, self._noise, self.seq_len)

    def entropy_rate(self) -> float:
        """That of queries, where the map is known: of a key and of the noise, shared by the two tokens of a pair."""
        return (log(self.num_keys) + self._noise.entropy()) / 2
