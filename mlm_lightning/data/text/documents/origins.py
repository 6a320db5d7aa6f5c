"""The documents of each split, from where the settings say that they are: files, a dataset, or a stream."""

from functools import cached_property
from typing import Any

from mlm_lightning.data.splits import Split
from mlm_lightning.data.text.documents.base import Documents
from mlm_lightning.data.text.documents.files import FileDocuments
from mlm_lightning.data.text.documents.hub import HubDocuments, open_hub
from mlm_lightning.data.text.documents.streamed import FirstDocuments, StreamedDocuments
from mlm_lightning.data.text.settings import TextSettings, path_key
from mlm_lightning.errors import ConfigError


class Origins:
    """A dataset is opened when its documents are first asked for, and once."""

    def __init__(self, settings: TextSettings) -> None:
        self._settings = settings

    def documents(self) -> dict[Split, Documents]:
        """Those for training, and for validation and test where they have files or splits of their own; of a stream those that
        are set aside."""
        settings = self._settings
        if settings.streaming:
            return self._first_documents()
        if settings.dataset is None:
            column, txt = settings.text_column, settings.txt_documents
            return {
                split: FileDocuments(files, column, txt, f"data.{path_key(split)}") for split, files in settings.files().items()
            }
        return {
            split: HubDocuments(rows, settings.text_column, f"{settings.dataset} ({self._split_names[split]})")
            for split, rows in self._hub_splits.items()
        }

    def streamed(self, split: Split) -> StreamedDocuments:
        assert self._settings.dataset is not None
        return StreamedDocuments(self._hub_splits[split], self._settings.text_column, self._settings.dataset)

    def _first_documents(self) -> dict[Split, Documents]:
        settings, documents = self._settings, dict[Split, Documents]()
        if settings.val_split is not None:
            documents["val"] = FirstDocuments(self.streamed("val"), settings.val_size)  # type: ignore[arg-type]
        elif settings.num_held_out:
            documents["val"] = FirstDocuments(self.streamed("train"), settings.num_held_out)
        if settings.test_split is not None:
            documents["test"] = FirstDocuments(self.streamed("test"), settings.test_size)  # type: ignore[arg-type]
        return documents

    @property
    def _split_names(self) -> dict[Split, str]:
        """Of a dataset's own splits."""
        names: dict[Split, str | None] = {
            "train": "train",
            "val": self._settings.val_split,
            "test": self._settings.test_split,
        }
        return {split: name for split, name in names.items() if name is not None}

    @cached_property
    def _hub_splits(self) -> dict[Split, Any]:
        """What `datasets` has of each split that is named."""
        settings = self._settings
        assert settings.dataset is not None
        opened = open_hub(settings.dataset, settings.dataset_config, settings.revision, settings.streaming)
        for split, name in self._split_names.items():
            if name not in opened:
                setting = ("data.dataset", settings.dataset) if split == "train" else (f"data.{split}_split", name)
                raise ConfigError(*setting, f"there is no split {name!r}", f"the dataset has {', '.join(opened)}")
        return {split: opened[name] for split, name in self._split_names.items()}
