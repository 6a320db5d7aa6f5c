"""Documents of the Hugging Face hub, or of a folder that `datasets` opens."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents import base
from mlm_lightning.data.text.documents.base import Problems
from mlm_lightning.errors import ConfigError, one_line

log = logging.getLogger(__name__)


class HubDocuments:
    """The documents of a split of a `datasets.Dataset`. Their numbers are its row numbers, empty rows included, so that a
    choice of rows is the one that `datasets` would make. A shard is an array of row numbers."""

    def __init__(self, dataset: Any, text_column: str, name: str):
        self.dataset = dataset
        self.text_column = text_column
        self.name = name
        if text_column not in dataset.column_names:
            names = ", ".join(map(repr, dataset.column_names))
            raise ConfigError("data.text_column", text_column, f"{name} has no such column", f"it has {names}")
        dtype = getattr(dataset.features[text_column], "dtype", None)
        if dtype not in ("string", "large_string"):
            raise ConfigError("data.text_column", text_column, f"the column of {name} holds {dtype}, not strings")
        self._row_bytes = max(1, dataset.select_columns([text_column]).data.nbytes // max(1, len(dataset)))

    def content(self) -> str:
        return str(self.dataset._fingerprint)

    def shards(self) -> list[np.ndarray]:
        return self._shards_of(np.arange(len(self.dataset)))

    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Split by split, in the order in which they were chosen: that of `train_test_split`."""
        return [
            (shard, np.full(len(shard), SPLITS.index(split), dtype=np.uint8))
            for split, chosen in numbers.items()
            for shard in self._shards_of(chosen)
        ]

    def _shards_of(self, numbers: np.ndarray) -> list[np.ndarray]:
        rows = max(1, base.SHARD_BYTES // self._row_bytes)
        return [numbers[start : start + rows] for start in range(0, len(numbers), rows)]

    def size(self, shard: np.ndarray) -> int:
        return len(shard) * self._row_bytes

    def read(self, shard: np.ndarray, problems: Problems) -> Iterator[str]:
        column = self.dataset.select_columns([self.text_column])
        for start in range(0, len(shard), 256):
            for text in column[shard[start : start + 256]][self.text_column]:
                # an empty row yields "", for the caller to count: it has a number and may be among those asked for
                yield text or ""

    def check(self, problems: Problems) -> None:
        """A dataset has its columns from the start."""


def open_hub(name: str, config: str | None, revision: str | None, streaming: bool = False) -> Any:
    """A `datasets.DatasetDict` from the hub or from a local folder, an `IterableDatasetDict` where `streaming`; never runs a
    dataset's own code.

    Raises ConfigError where it cannot be opened.
    """
    from datasets import load_dataset

    local = Path(name).expanduser().exists()
    try:
        try:
            return load_dataset(str(Path(name).expanduser()) if local else name, config, revision=revision, streaming=streaming)
        except RuntimeError as error:
            if local or "scripts are no longer supported" not in str(error):
                raise
            log.info("data.dataset=%s is a script; taking the copy that the hub converted to parquet", name)
            return load_dataset(name, config, revision="refs/convert/parquet", streaming=streaming)
    except Exception as error:  # the hub's errors have no common ancestor
        raise ConfigError(
            "data.dataset",
            name,
            f"cannot be opened ({type(error).__name__}: {one_line(error)})",
            f"{'' if local else 'there is no such folder here; '}check the name, data.dataset_config, data.revision and the "
            "connection, or give data.path",
        ) from error
