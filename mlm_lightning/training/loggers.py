"""`metrics.csv`: a line a step, written as it happens; TensorBoard's events, cut back where a run continues; W&B's run.

    step,train/loss,lr,val/loss
    50,1.31,0.003,
    100,1.22,0.003,1.25

Lightning's CSVLogger deletes its file on a restart and holds lines back; this one continues the file.
"""

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mlm_lightning.files import damaged, sync, write_atomically
from mlm_lightning.runs.folder import read_metrics
from mlm_lightning.training.lightning_internals import add_summary


class CSVLogger(Logger):
    """Writes `metrics.csv` in `save_dir`. Lines after `purge_step` are from a future that was lost, and are dropped."""

    def __init__(self, save_dir: str, purge_step: int | None = None) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] = []  # those of the file, once it is opened
        self._line: dict[str, Any] = {}
        self._purge_step = purge_step
        self._last_step: int | None = None  # in the file
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
        # the last line is of this step: an interrupted run began it, or what callbacks log was written with it
        begun, self._last_step = self._last_step == self._line["step"], self._line["step"]
        new = [name for name in self._line if name not in self._columns]
        rewritten = begun or new or not self.path.exists()  # somebody may have removed it
        lines = self._read() if rewritten else []
        if begun and lines:
            self._rewrite(self._columns + new, [*lines[:-1], lines[-1] | self._line])
        else:
            if rewritten:
                self._rewrite(self._columns + new, lines)
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
        self._has_chart = False

    @property
    def log_dir(self) -> str:
        """Lightning's would expand a `~` or a `$NAME` of the run's folder once more."""
        return os.path.join(self.root_dir, str(self.version))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """The tab of custom scalars has the loss, what counting tokens gives, and the best possible loss in one chart."""
        super().log_metrics(metrics, step)
        if "val/bigram_loss" in metrics and not self._has_chart:
            self._has_chart = True
            losses = ["train/loss", "val/loss", "val/unigram_loss", "val/bigram_loss"]
            losses += [name for name in ("val/oracle_loss",) if name in metrics]
            tab = "language" if "val/oracle_loss" in metrics else "text"
            self.experiment.add_custom_scalars({tab: {"loss beside what counting gives": ["Multiline", losses]}})


def sync_logs(folder: Path) -> None:
    """Waits until the disk has the curves of a run, for a checkpoint after which none is drawn again."""
    files = [*folder.glob("metrics.csv"), *folder.rglob("events.out.tfevents.*")]
    with contextlib.suppress(OSError):  # the checkpoint says what the disk refuses
        for file in files:
            sync(file)
        for each in {folder, *(file.parent for file in files)}:
            sync(each)


_FINAL = ("accuracy", "excess_loss", "loss", "oracle_loss", "perplexity")


def fill_hparams(
    logger: LightningTensorBoardLogger, settings: Mapping[str, Any], summary: Mapping[str, Any], compared: bool
) -> None:
    """Makes a complete run a line of TensorBoard's HParams tab: all that decides its result, and how its curves end.

    Lightning's way, and torch's, write a table's header into each run, and TensorBoard takes that of any one: with runs of
    several sweeps the keys of the others are missing. Without a header its columns are all keys, those that differ first, and
    all curves, of which it shows the first five of the alphabet. Runs that are `compared` get such ones, `final/…`; a single
    run is spared charts of one point.
    """
    from torch.utils.tensorboard.summary import hparams

    _, *line = hparams({key: _cell(key, value) for key, value in settings.items()}, {})
    for part in line:
        add_summary(logger, part)
    for name in _FINAL:
        if compared and f"val/{name}" in summary:
            # behind the last step: a run that was killed before its summary was written draws it again, and purges from there
            logger.experiment.add_scalar(f"final/{name}", summary[f"val/{name}"], summary["steps"] + 1)


def _cell(key: str, value: Any) -> int | float | str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.rpartition(".")[2] if key.endswith("_target_") else value
    return json.dumps(value)


class WandbLogger(LightningWandbLogger):
    """Lightning's, for the run of a folder: named like it, grouped by the sweep (the folder around it), and found again by the
    same command. `project` and the others are as in wandb.init."""

    def __init__(
        self,
        save_dir: str,
        project: str = "mlm_lightning",
        offline: bool = False,
        name: str | None = None,
        group: str | None = None,
        entity: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
    ) -> None:
        folder = Path(save_dir)
        sweep = group or folder.parent.name
        # the hash of the settings makes it one run of a project, whatever the folder is called
        run_id = re.sub(r"[^\w.-]+", "-", f"{folder.parent.name}-{folder.name.rpartition('-')[2]}")
        more: dict[str, Any] = {"entity": entity, "tags": tags, "notes": notes}
        super().__init__(name or folder.name, save_dir, run_id, offline, project=project, group=sweep, **more)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends W&B's run: the next one of this process would be taken for the same."""
        if self._experiment is not None:
            super().finalize(status)
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None
