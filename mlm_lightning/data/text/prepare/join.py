"""Parts become whole files: the tokens and the documents' ends of each shard, one after the other, in the order of the tasks.

part 0  part 1  part 2 …     in whichever order they are finished      ─►  train.tokens  train.ends  val.tokens …
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.prepare.shards import ENDS_DTYPE, Task
from mlm_lightning.files import write_atomically

_COMMIT_BYTES = 64_000_000
"""Of tokens joined between two waits for the disk."""


class Joined:
    """The token files that grow part by part, in the order of the tasks. `joined.json` says how many parts, and how much of
    the files, the disk has for sure; what an interrupted command wrote beyond is cut off."""

    def __init__(self, work: Path, tasks: list[Task], dtype: np.dtype) -> None:
        self.work, self.tasks, self.dtype = work, tasks, dtype
        self._note = work / "tokens" / "joined.json"
        splits = [s for number, s in enumerate(SPLITS) if any(np.any(task.split_N == number) for task in tasks)]
        nothing = {"documents": 0, "tokens": 0, "unknown": 0, "empty": 0}
        self.num_parts, self.counts = 0, {split: dict(nothing) for split in splits}
        if self._note.exists():
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            self.num_parts, self.counts = noted["parts"], noted["counts"]
        self._committed, self._uncommitted = self.num_parts, 0
        for split, counts in self.counts.items():
            for ending, itemsize, number in (("tokens", dtype.itemsize, "tokens"), ("ends", ENDS_DTYPE.itemsize, "documents")):
                file = work / f"{split}.{ending}"
                file.touch()
                os.truncate(file, counts[number] * itemsize)

    def join_finished(self) -> None:
        """Appends the parts that are next."""
        while self.num_parts < len(self.tasks) and (result := self.tasks[self.num_parts].result()) is not None:
            for split, counts in result["splits"].items():
                self._append(self.tasks[self.num_parts], split, counts)
            self.num_parts += 1
            if self._uncommitted > _COMMIT_BYTES:
                self.commit()

    def _append(self, task: Task, split: Split, counts: dict[str, int]) -> None:
        with open(f"{task.output}.{split}.tokens", "rb") as part, (self.work / f"{split}.tokens").open("ab") as whole:
            shutil.copyfileobj(part, whole, 1 << 20)
        ends = np.fromfile(f"{task.output}.{split}.ends", ENDS_DTYPE) + self.counts[split]["tokens"]
        with (self.work / f"{split}.ends").open("ab") as whole:
            whole.write(ends.astype(ENDS_DTYPE).data)
        for name, number in counts.items():
            self.counts[split][name] += number
        self._uncommitted += counts["tokens"] * self.dtype.itemsize

    def commit(self) -> None:
        """Makes sure that the disk has what is joined, then deletes its parts."""
        for split in self.counts:
            for ending in ("tokens", "ends"):
                with (self.work / f"{split}.{ending}").open("rb") as file:
                    os.fsync(file.fileno())
        write_atomically(self._note, json.dumps({"parts": self.num_parts, "counts": self.counts}).encode())
        for task in self.tasks[self._committed : self.num_parts]:
            for split in self.counts:
                for ending in ("tokens", "ends"):
                    Path(f"{task.output}.{split}.{ending}").unlink(missing_ok=True)
            task.result_file.unlink()
        self._committed, self._uncommitted = self.num_parts, 0
