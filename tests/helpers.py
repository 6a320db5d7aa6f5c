"""What several tests need: runs that must be alike, processes to stop, and a callback that does something at a given step."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from conftest import TOY

from mlm_lightning.runs.folder import Run


def settings_of(config: dict[str, Any], trusted: bool = True) -> Any:
    from mlm_lightning.config.composed import Composed
    from mlm_lightning.config.parse import parse

    return parse(Composed(config), trusted)


def train(config: dict[str, Any]) -> dict[str, Any]:
    import mlm_lightning

    return mlm_lightning.train(settings_of(config))


def run_of(config: dict[str, Any]) -> Run:
    return Run.find(settings_of(config))


def conditions_of(config: dict[str, Any]) -> list[Any]:
    """The conditions of an evaluation, on sources that need no preparation."""
    from mlm_lightning.config.build import prepare

    return prepare(settings_of(config))


def problems(config: dict[str, Any], trusted: bool = True) -> list[str]:
    """What is wrong with a config, a line each."""
    from mlm_lightning.errors import ConfigError, InvalidConfigError

    try:
        settings_of(config, trusted)
    except InvalidConfigError as error:
        return [str(each) for each in error.errors]
    except ConfigError as error:
        return [str(error)]
    return []


def dna_tokenizer(folder: Path) -> str:
    """A tokenizer's folder: [CLS] … [SEP] around four letters, and no token for anything else."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *"ACGT"])}, []))
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="$A $B", special_tokens=ends)
    roles = dict(zip(("pad_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    return str(folder)


AT = "helpers.At"
TIMES = {"seconds", "tokens_per_second"}


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name not in TIMES}


def lines_without_times(run: Run) -> list[dict[str, str]]:
    from mlm_lightning.training.loggers import read_metrics

    lines = read_metrics(run.folder / "metrics.csv")
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def assert_equal_checkpoints(one: Path, other: Path, only: tuple[str, ...] = ()) -> None:
    """Everything in them (or the entries `only`) is equal to the last bit, but for the times that the throughput adds up."""
    states = [torch.load(path, weights_only=True) for path in (one, other)]
    for state in states:
        state["callbacks"].pop("Throughput", None)
    assert set(states[0]) == set(states[1])
    for key in only or states[0]:
        assert_bitwise_equal(*(state[key] for state in states), f"{one.name} {key}")


def assert_bitwise_equal(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_bitwise_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_bitwise_equal(a, b, f"{where}.{place}")
    elif isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        # as bytes: == takes 0.0 for -0.0, and nan for no nan
        assert one.numpy().tobytes() == other.numpy().tobytes(), where
    else:
        assert one == other, where


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard shows them, without those of times, and without the points that make a run of a sweep a line of
    its table: copies of how the others end."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith(("perf/", "final/"))]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def assert_one_curve_a_tag(run: Run) -> None:
    for name, points in curves(run).items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), name


def assert_equal_runs(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert_equal_results(run_of(one), run_of(other))


def assert_equal_results(*runs: Run) -> None:
    """Two runs have the same summary, metrics.csv, curves and checkpoints, bitwise, times aside."""
    summaries = [run.summary for run in runs]
    assert summaries[0] is not None
    assert summaries[1] is not None
    assert timeless(summaries[0]) == timeless(summaries[1])
    assert lines_without_times(runs[0]) == lines_without_times(runs[1])
    for run in runs:
        assert_one_curve_a_tag(run)
    assert curves(runs[0]) == curves(runs[1])
    for name in ("last.ckpt", "best.ckpt"):
        assert_equal_checkpoints(*(run.checkpoints / name for run in runs))


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mlm_lightning", "train", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=dict(os.environ))


def wait_for(folder: Path, name: str, lines: int) -> Path:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for path in folder.rglob(name):
            if path.read_bytes().count(b"\n") >= lines:
                return path
        time.sleep(0.02)
    raise AssertionError(f"{folder} has no {name} of {lines} lines")


class At(L.Callback):
    """Does `At.action` where training or validation comes by `At.place`, if a test has set them: ("train", step, -) after an
    optimizer step, ("validation", step, batch) before a batch of the validation after it."""

    place: tuple[str, int, int] | None = None
    action: Callable[[], None]

    @classmethod
    def set(cls, place: tuple[str, int, int], action: Callable[[], None]) -> None:
        cls.place, cls.action = place, staticmethod(action)

    def _pass(self, *place: Any) -> None:
        if At.place == place:
            At.place = None
            At.action()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._pass("train", trainer.global_step, 0)

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._pass("validation", trainer.global_step, batch_idx)


class Fails(L.Callback):
    """Raises, or kills its process, before the first step of the runs with `seeds`, as long as `marker` is there. Each step
    that a process makes adds a line to `<marker>.steps`: the run's seed and the step."""

    def __init__(self, marker: str, seeds: list[int], kill: bool = False) -> None:
        self.marker, self.seeds, self.kill = Path(marker), seeds, kill

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if pl_module.seed in self.seeds and self.marker.exists():
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(f"no luck with seed {pl_module.seed}")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        with self.marker.with_suffix(".steps").open("a") as file:
            file.write(f"{pl_module.seed} {trainer.global_step}\n")


def failing(marker: Path, seeds: list[int], kill: bool = False) -> tuple[str, ...]:
    node = f"{{_target_: helpers.Fails, marker: {marker}, seeds: {seeds}, kill: {str(kill).lower()}}}"
    return (f"callbacks.fails={node}",)


def runs_in(folder: Path) -> dict[int, Run]:
    """The runs of a sweep by their seeds."""
    expected = json.loads((folder / "default" / "sweep.json").read_text())["jobs"]
    seeds = [next(int(each[5:]) for each in job["overrides"] if each.startswith("seed=")) for job in expected]
    return {seed: Run(folder / "default" / job["folder"]) for seed, job in zip(seeds, expected, strict=True)}


def steps_of(marker: Path) -> Counter[str]:
    file = marker.with_suffix(".steps")
    return Counter(line.split()[0] for line in file.read_text().splitlines()) if file.exists() else Counter()


def start_sweep(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mlm_lightning", "train", "-m", *TOY, f"output_dir={folder}", *overrides]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )
