"""What `mlm analyse` has written into the folders of runs, for a page to show.

    RUN/analysis/attention.json     {"analysis", "step", "finding": [sentence…], "figures": [{"file", "caption"}…]}
                 attention_maps.png …

A folder that is damaged, or written by hand, is left out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlm_lightning.report.results import Collection
from mlm_lightning.report.style import DPI

FOLDER = "analysis"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    caption: str
    png: bytes

    @property
    def inches(self) -> float:
        """Its width."""
        return int.from_bytes(self.png[16:20]) / DPI


@dataclass(frozen=True)
class Analysis:
    """`title` says of what: a run, or several side by side."""

    title: str
    sentences: list[str]
    figures: list[Figure]


def analyses(collection: Collection) -> list[Analysis]:
    """Those of several runs side by side first."""
    folders = [("side by side", collection.home)] if collection.home else []
    folders += [(result.name, result.folder) for result in collection.results]
    return [each for name, folder in folders for each in _read(name, folder / FOLDER)]


def _read(name: str, folder: Path) -> Iterator[Analysis]:
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            figures = [Figure(str(each["caption"]), _png(folder, str(each["file"]))) for each in content["figures"]]
            step = f", step {content['step']:,}" if content.get("step") else ""
            yield Analysis(f"{content['analysis']}: {name}{step}", [str(each) for each in content["finding"]], figures)
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _png(folder: Path, name: str) -> bytes:
    """Raises ValueError for what is no picture in this folder."""
    content = (folder / Path(name).name).read_bytes()
    if not content.startswith(_PNG):
        raise ValueError(f"{name} is no PNG")
    return content
