"""`metrics.csv`: a line a step, written as it happens; and TensorBoard's events, cut back where a run continues.

    step,train/loss,lr,val/loss
    50,1.31,0.003,
    100,1.22,0.003,1.25

Lightning's CSVLogger deletes its file on a restart and holds lines back; this one continues the file.
"""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mlm_lightning.files import damaged, write_atomically


class CSVLogger(Logger):
    """Writes `metrics.csv` in `save_dir`. Lines after `purge_step` are from a future that was lost, and are dropped."""

    def __init__(self, save_dir: str, purge_step: int | None = None) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] = []  # those of the file, once it is opened
        self._line: dict[str, Any] = {}
        self._purge_step = purge_step
        self._last_step: int | None = None  # in the file when it was opened
        self._read()  # what is wrong with it is found before anything is trained

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._line.get("step") != step:
            self.save()
        self._line = {"step": step} | self._line | metrics

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml has them."""

    @rank_zero_only
    def save(self) -> None:
        """Writes the line at hand. Called with every new step and with every checkpoint."""
        if not self._columns:
            lines = self._read()
            if self._purge_step is not None:
                lines = [line for line in lines if int(line["step"]) < self._purge_step]
            filled = (name for line in lines for name, value in line.items() if value and name != "step")
            self._rewrite(["step", *dict.fromkeys(filled)], lines)
            self._last_step = int(lines[-1]["step"]) if lines else None
        if not self._line:
            return
        begun = self._last_step == self._line["step"]  # by an interrupted run: this is the rest of its last line
        self._last_step = None
        new = [name for name in self._line if name not in self._columns]
        if begun:
            *lines, last = read_metrics(self.path)
            self._rewrite(self._columns + new, [*lines, last | self._line])
        else:
            if new:
                self._rewrite(self._columns + new, read_metrics(self.path))
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(self._line)
        self._line = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _read(self) -> list[dict[str, str]]:
        """The lines that are there already. Raises UserError where the file is damaged."""
        try:
            lines = read_metrics(self.path) if self.path.exists() else []
            [int(line["step"]) for line in lines]
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            remedy = "remove it, and the run goes on without the values before its last checkpoint"
            raise damaged(self.path, error, remedy) from error
        return lines

    def _rewrite(self, columns: list[str], lines: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
        write_atomically(self.path, text.getvalue().encode())
        self._columns = columns


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's, which hides the events of step `purge_step` and later that are there already. Lightning itself takes that
    argument, and anything else, through `**kwargs`, where a mistyped key would vanish."""

    def __init__(
        self,
        save_dir: str,
        name: str = "",
        version: str = "tensorboard",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
    ) -> None:
        super().__init__(save_dir, name, version, purge_step=purge_step, max_queue=max_queue, flush_secs=flush_secs)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The lines of a `metrics.csv`, each a dict of its columns; a last line that was cut off in the middle is left out."""
    text = path.read_bytes().decode()
    whole = text[: text.rfind("\n") + 1]
    return [line for line in csv.DictReader(io.StringIO(whole, newline="")) if line["step"]]
