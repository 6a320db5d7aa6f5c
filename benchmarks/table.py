"""A benchmark's table: printed row by row as Markdown, and kept as JSON in build/benchmarks.

python benchmarks/table.py      all that were kept, together: build/benchmarks.md and build/benchmarks.json
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BUILD = Path(__file__).parent.parent / "build"


class Table:
    """`columns` are formats by the names of the columns: `Table("start", "From a command on", seconds=".2f")`; an underscore in
    a name is shown as a space."""

    def __init__(self, name: str, title: str, columns: Mapping[str, str]) -> None:
        self.name, self.title, self.columns = name, title, dict(columns)
        self.rows: list[dict[str, Any]] = []
        print(f"\n{title}\n\n{self._header()}", flush=True)

    def _header(self) -> str:
        return f"| {' | '.join(self.columns)} |\n|{'---|' * len(self.columns)}"

    def add(self, **cells: Any) -> None:
        """A row; a column without a cell stays empty."""
        assert cells.keys() <= self.columns.keys()
        self.rows.append(cells)
        print(self._line(cells), flush=True)
        file = BUILD / "benchmarks" / f"{self.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"title": self.title, "columns": self.columns, "rows": self.rows, "machine": machine()}
        file.write_text(json.dumps(content, indent=2) + "\n")

    def _line(self, cells: Mapping[str, Any]) -> str:
        shown = ("" if cells.get(name) is None else format(cells[name], form) for name, form in self.columns.items())
        return f"| {' | '.join(shown)} |"

    def __str__(self) -> str:
        return "\n".join([f"## {self.title}", "", self._header(), *map(self._line, self.rows), ""])


def machine() -> dict[str, Any]:
    import torch

    return {
        "torch": torch.__version__,
        "processor": torch.cpu.get_capabilities().get("architecture", platform.machine()),
        "cores": os.cpu_count(),
    }


def together() -> None:
    tables = [json.loads(file.read_text()) for file in sorted((BUILD / "benchmarks").glob("*.json"))]
    parts = []
    for each in tables:
        table = Table.__new__(Table)
        table.title, table.columns, table.rows = each["title"], each["columns"], each["rows"]
        parts.append(str(table))
    (BUILD / "benchmarks.md").write_text("\n".join(parts))
    (BUILD / "benchmarks.json").write_text(json.dumps(tables, indent=2) + "\n")
    print(f"{len(tables)} tables in {BUILD / 'benchmarks.md'} and benchmarks.json")


if __name__ == "__main__":
    together()
