"""A row says what each key's value is, and then is asked: associative recall.

    a  3  b  1  c  3   c  3  a  3  a  2  b  1  …         three keys a b c, in their order, each with a value of its own;
    └────── list ───┘  └────── queries ─────┘            then keys drawn with replacement, each with its value,
                                                         which is replaced by a uniform one with probability `noise`: a 2
    tokens: keys are 0 … num_keys - 1, values num_keys … num_keys + num_values - 1

A hidden value is found in the list, unless it is hidden there, too: then the row's other queries of its key vote. A hidden key
can only be told from its value, and by which keys share it. `num_keys` makes it harder, and `noise` leaves less to be told.

Given the map of keys to values, queries are independent; the posterior is a sum over the maps. Keys whose value is seen in the
list have one value only: it is over the values of the others, `num_values` to the power of their number.

Source: Ba, Hinton, Mnih, Leibo, Ionescu, "Using fast weights to attend to the recent past", NIPS 2016, arXiv 1610.06258; many
queries a row: Arora et al., "Zoology", ICLR 2024, arXiv 2312.04927.
"""

from itertools import product
from math import log
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.joint import Path, as_joint, check_size
from mlm_lightning.data.languages.noise import Noise
from mlm_lightning.data.languages.recall_oracle import RecallOracle
from mlm_lightning.data.languages.synthetic import MAX_SYMBOLS, NumRows, SyntheticSource
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import uniform
from mlm_lightning.values import checked

MAX_MAPS = 65_536
MAX_RECALL_LEN = 512


class RecallSource(SyntheticSource):
    """Rows of `seq_len` tokens, pairs of a key and a value."""

    @checked("data")
    def __init__(
        self,
        num_keys: Annotated[int, Interval(ge=1, le=16), "it is the number of keys that a row lists"] = 4,
        num_values: Annotated[int, Interval(ge=2, le=MAX_SYMBOLS - 2), "it is the number of different values"] = 8,
        noise: Annotated[float, Interval(ge=0, le=1), "a query's value is replaced with this probability"] = 0.1,
        seq_len: Annotated[int, Interval(ge=2, le=MAX_RECALL_LEN), "it is the number of tokens in a row"] = 64,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        if num_values**num_keys > MAX_MAPS:
            most = max(count for count in range(1, num_keys) if num_values**count <= MAX_MAPS)
            fewer = max(count for count in range(1, num_values) if count**num_keys <= MAX_MAPS)
            problem = f"with data.num_values={num_values} there are more than {MAX_MAPS} maps of keys to values"
            remedy = f"use data.num_keys={most} or fewer" + (f", or data.num_values={fewer}" if fewer > 1 else "")
            raise ConfigError("data.num_keys", num_keys, problem, remedy)
        super().__init__(num_keys + num_values, seed, train_size, val_size, test_size)
        if seq_len % 2:
            raise ConfigError("data.seq_len", seq_len, "rows are pairs of a key and a value", f"use data.seq_len={seq_len + 1}")
        if seq_len < 2 * num_keys:
            problem = f"the list of data.num_keys={num_keys} keys and their values is longer"
            raise ConfigError("data.seq_len", seq_len, problem, f"use data.seq_len={2 * num_keys} or more")
        self.num_keys, self.num_values, self._length = num_keys, num_values, seq_len
        self.noise = Noise(float(noise), num_values)

    @property
    def seq_len(self) -> int:
        return self._length

    def draw(self, keys_B: Tensor) -> Tensor:
        """One number a token; those of the list's keys are not used."""
        m, list_len = self.num_keys, 2 * self.num_keys
        value_BM = self._values(keys_B)
        tokens_BL = torch.empty(len(keys_B), self._length, dtype=torch.int64)
        tokens_BL[:, 0:list_len:2] = torch.arange(m)
        tokens_BL[:, 1:list_len:2] = m + value_BM
        u_BL = uniform(keys_B[:, None], torch.arange(list_len, self._length))
        key_BN = (u_BL[:, 0::2] * m).long()
        tokens_BL[:, list_len::2] = key_BN
        tokens_BL[:, list_len + 1 :: 2] = m + self.noise.apply(value_BM.gather(1, key_BN), u_BL[:, 1::2])
        return tokens_BL

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        return {"value": self._values(keys_B)}

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        return {"value": (self.num_keys, self.num_values)}

    def _values(self, keys_B: Tensor) -> Tensor:
        return uniform(keys_B[:, None], torch.arange(1, 2 * self.num_keys, 2)).mul_(self.num_values).long()

    def oracle(self) -> RecallOracle:
        return RecallOracle(self.num_keys, self.noise, self._length)

    def entropy_rate(self) -> float:
        """Of queries, where the map is known: of a key and of the noise, shared by the two tokens of a pair."""
        return (log(self.num_keys) + self.noise.entropy()) / 2

    def joint(self) -> Joint:
        m, noise, paths = self.num_keys, self.noise.share, list[Path]()
        num_queries = self._length // 2 - m
        check_size(self.num_values**m * (m * self.num_values) ** num_queries)
        for values in product(range(self.num_values), repeat=m):
            for queries in product(product(range(m), range(self.num_values)), repeat=num_queries):
                weight = self.num_values**-m
                for key, value in queries:
                    weight *= (noise / self.num_values + (1 - noise) * (value == values[key])) / m
                pairs = [*enumerate(values), *queries]
                if weight > 0:
                    paths.append((weight, [token for key, value in pairs for token in (key, m + value)], list(values)))
        return as_joint(paths, {"value": list})
