"""What an analysis has found: sentences, a short table, all numbers as a CSV, and figures; and how a folder keeps it.

RUN/analysis/attention.json       sentences, table, names and captions of the figures: written last
             attention.csv        every number
             attention.png …      the figures
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlm_lightning.files import write_atomically
from mlm_lightning.report.style import Picture

Record = Mapping[str, Any]


@dataclass
class Finding:
    """`table` and `numbers` are records of equal keys; `name` is that of the analysis, and of its files."""

    name: str
    sentences: Sequence[str]
    table: Sequence[Record]
    numbers: Sequence[Record]
    pictures: Sequence[Picture] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"finding": list(self.sentences), "table": [dict(each) for each in self.table]}

    def write(self, folder: Path, **more: Any) -> list[Path]:
        """Writes its files and returns their paths, the figures first; `more` is noted beside the finding."""
        files = {f"{picture.name}.png": picture.png for picture in self.pictures}
        files[f"{self.name}.csv"] = as_csv(self.numbers).encode()
        figures = [{"file": f"{picture.name}.png", "caption": picture.caption} for picture in self.pictures]
        content = {"analysis": self.name, **more, **self.to_json(), "figures": figures}
        files[f"{self.name}.json"] = json.dumps(content, indent=2, ensure_ascii=False).encode()
        for name, data in files.items():
            write_atomically(folder / name, data)
        return [folder / name for name in files]


def as_csv(records: Sequence[Record]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value, 8) for name, value in each.items()} for each in records)
    return text.getvalue()


def as_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table on a terminal."""
    return list(records[0]), [[_cell(value, 3) for value in each.values()] for each in records]


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
