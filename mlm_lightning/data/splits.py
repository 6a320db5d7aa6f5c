"""The parts of a dataset. Apart from `source`, because processes that only read text need no torch."""

from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
