"""kill -9, more than fifty times and aimed: each run's result is bitwise that of the uninterrupted run.

    start ─ train ─ save ─ train ─ validation ─ save ─ train …
      ▲                ✗ killed in a chosen phase
      └── the same command again ──┘      … after the last kill, to the end

The runs cover every three of: kind of data, data workers, precision, accumulation (half of the sixteen combinations do), each
with dropout; a ninth trains DistilBERT, and two more read a stream. `pytest tests/slow/test_kill_campaign.py` takes about 20
minutes.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_equal_checkpoints, assert_equal_results, curves
from phases import PHASES, read_phase, write_phase

from mlm_lightning.runs.folder import Run

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
KILLS = 6  # of each run
CHECKPOINTS = ("last.ckpt", "previous.ckpt", "best.ckpt")
VOCABULARY = "the a cat dog bird sees hears follows quiet loud old young river house garden and near of walking walked"

# Steps are short, so that there are many saves, validations and ends of epochs between two kills.
COMMON = (
    *("schedule=cosine", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"),
    *("trainer.val_check_interval=35", "callbacks.checkpoint.every_n_train_steps=10"),
    "callbacks.phases._target_=phases.Phases",
)
TREE = ("data.num_symbols=3", "data.depth=4", "data.train_size=300", "data.val_size=400", "data.test_size=64")
TEXT = ("data=text", "data.tokenizer=train", "data.vocab_size=200", "data.chunk_size=16", "data.val_size=0.4")
TRANSFORMER = ("model.d_model=32", "model.num_layers=2", "model.nhead=2", "model.dim_feedforward=64", "model.dropout=0.1")
STREAM = ("data=text", "data.streaming=true", "data.chunk_size=16", "data.shuffle_buffer=200", "data.val_size=100")
DISTILBERT = ("model=distilbert", "model.config={n_layers: 2, dim: 32, n_heads: 2, hidden_dim: 64, dropout: 0.1}")


@dataclass(frozen=True)
class Case:
    data: str
    num_workers: int
    precision: str
    accumulate: int
    model: tuple[str, ...] = TRANSFORMER

    def __str__(self) -> str:
        words = [self.data, f"{self.num_workers} workers", self.precision, f"accumulate {self.accumulate}"]
        return " ".join([*words, "distilbert"] if self.model is DISTILBERT else words)

    def arguments(self, folder: Path, name: str) -> list[str]:
        """The run `name` of `folder`. Its runs train one at a time: they share the corpus, its cache, and the phase file, whose
        name is part of what identifies a run."""
        rows, steps = (24, 1000) if self.accumulate == 1 else (8, 600)
        cache = f"data.cache_dir={folder / 'cache'}"
        data = {
            "tree": TREE,
            "text": (*TEXT, f"data.path={folder / 'corpus'}", cache),
            "stream": (*STREAM, f"data.dataset={folder / 'corpus'}", f"data.tokenizer={folder / 'vocab.txt'}", cache),
        }
        return [
            *data[self.data],
            *(*self.model, *COMMON, f"trainer.max_steps={steps}", f"trainer.accumulate_grad_batches={self.accumulate}"),
            *(f"data.batch_size={rows}", f"data.num_workers={self.num_workers}", f"trainer.precision={self.precision}"),
            *(f"output_dir={folder / name}", f"callbacks.phases.file={folder / 'phase'}"),
        ]


CASES = (
    Case("tree", 0, "32-true", 1),
    Case("tree", 0, "bf16-mixed", 3),
    Case("tree", 2, "32-true", 3),
    Case("tree", 2, "bf16-mixed", 1),
    Case("text", 0, "32-true", 3),
    Case("text", 0, "bf16-mixed", 1),
    Case("text", 2, "32-true", 1),
    Case("text", 2, "bf16-mixed", 3),
    Case("text", 2, "bf16-mixed", 3, DISTILBERT),
    Case("stream", 0, "bf16-mixed", 3),
    Case("stream", 2, "32-true", 1),
)


# processes


@dataclass
class Training:
    """A started command in a process group of its own, and where it says what it is doing."""

    process: "subprocess.Popen[bytes]"
    phases: Path
    stderr: Path

    @classmethod
    def start(cls, case: Case, folder: Path, name: str) -> "Training":
        phases, stderr = folder / "phase", folder / f"{name}.stderr"
        write_phase(phases, "start")
        command = [sys.executable, "-m", "mlm_lightning", "train", *case.arguments(folder, name)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        # to a file: nobody reads a pipe while the killer waits, and a killed process' workers would keep it open
        with stderr.open("wb") as errors:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=errors, stderr=errors, start_new_session=True
            )
        return cls(process, phases, stderr)

    def wait_for(self, phases: tuple[str, ...], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while read_phase(self.phases) not in phases:
            assert self.process.poll() is None, f"ended before it could be killed: {self.stderr.read_text()}"
            assert time.monotonic() < deadline, f"no {' or '.join(phases)} in {seconds} seconds: {self.stderr.read_text()}"
            time.sleep(0.0005)

    def kill(self) -> str:
        """Kills the process and its data workers; the phase in which that hit it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL, self.stderr.read_text()
        return read_phase(self.phases)

    def complete(self) -> None:
        assert self.process.wait(timeout=180) == 0, self.stderr.read_text()


@pytest.fixture(autouse=True)
def _no_process_survives(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remembered(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remembered)
    yield
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def train_killed(case: Case, folder: Path, name: str, draw: random.Random) -> Counter[str]:
    """Trains to the end in `KILLS` + 1 starts; the phases in which it was killed."""
    hits: Counter[str] = Counter()
    while hits.total() < KILLS:
        # a phase may be over before the signal arrives, so the next kill aims where the fewest hit
        fewest = min(hits[phase] for phase in PHASES)
        wanted = draw.choice([phase for phase in PHASES if hits[phase] == fewest])
        training = Training.start(case, folder, name)
        training.wait_for(PHASES, seconds=90)
        time.sleep(draw.uniform(0, 0.8))
        training.wait_for((wanted,), seconds=30)
        time.sleep(draw.uniform(0, 0.02))
        hits[training.kill()] += 1
    Training.start(case, folder, name).complete()
    return hits


# results


def run_in(folder: Path) -> Run:
    (summary,) = folder.glob("*/*/summary.json")
    return Run(summary.parent)


# the campaign


@pytest.fixture(scope="module")
def tally() -> dict[Case, Counter[str]]:
    return {}


def write_corpus(folder: Path) -> None:
    """Three files of documents, and a vocabulary."""
    draw, words = random.Random(0), VOCABULARY.split(" ")
    (folder / "corpus").mkdir()
    for number in range(3):
        documents = [" ".join(draw.choices(words, k=draw.randint(5, 25))) for _ in range(170)]
        (folder / "corpus" / f"train-{number}.txt").write_text("".join(f"{document} .\n" for document in documents))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).replace(" ", "-"))
def test_a_run_killed_in_all_its_phases_equals_the_uninterrupted_one(
    case: Case, tmp_path: Path, tally: dict[Case, Counter[str]]
) -> None:
    write_corpus(tmp_path)
    Training.start(case, tmp_path, "whole").complete()
    hits = train_killed(case, tmp_path, "killed", random.Random(str(case)))
    tally[case] = hits
    whole, killed = run_in(tmp_path / "whole"), run_in(tmp_path / "killed")
    assert {"train/loss", "train/grad_norm", "lr", "val/loss"} <= set(curves(whole))
    assert_equal_results(whole, killed)
    for run in (whole, killed):
        assert {path.name for path in run.checkpoints.iterdir()} == set(CHECKPOINTS)


def test_every_phase_was_hit_often(tally: dict[Case, Counter[str]], capsys: pytest.CaptureFixture[str]) -> None:
    if set(tally) != set(CASES):
        pytest.skip("not all runs were trained")
    total: Counter[str] = sum(tally.values(), Counter())
    with capsys.disabled():
        print(f"\n{'run':48}{'kills':>6}" + "".join(f"{phase:>12}" for phase in PHASES))
        for name, hits in [*tally.items(), ("total", total)]:
            print(f"{name!s:48}{hits.total():6}" + "".join(f"{hits[phase]:12}" for phase in PHASES))
    assert sum(total[phase] for phase in PHASES) >= 50
    assert min(total[phase] for phase in PHASES) >= 8


# between two file operations

SHORT = (
    *(*COMMON, *TREE, *TRANSFORMER, "data.batch_size=16", "data.train_size=64", "data.val_size=64"),
    *("trainer.max_steps=8", "trainer.val_check_interval=4", "callbacks.checkpoint.every_n_epochs=1"),
)
LAST_STEP = 8
DYING = f"""
import os, signal, sys
import lightning
from mlm_lightning.__main__ import main

fatal, seen = int(sys.argv[1]), 0
save = lightning.Trainer.save_checkpoint

def dying(function):
    def call(*arguments, **options):
        global seen
        seen += 1
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

def save_checkpoint(trainer, *arguments, **options):
    if trainer.global_step == {LAST_STEP}:
        os.replace, os.link = dying(os.replace), dying(os.link)
    save(trainer, *arguments, **options)

lightning.Trainer.save_checkpoint = save_checkpoint
sys.exit(main(["train", *sys.argv[2:]]))
"""


def call(program: list[str], folder: Path, name: str) -> int:
    """The exit status of a short run; all runs of a folder are the same one, in different places."""
    arguments = [*SHORT, f"output_dir={folder / name}", f"callbacks.phases.file={folder / 'phase'}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run([sys.executable, *program, *arguments], cwd=REPOSITORY, env=environment, timeout=120).returncode


def test_a_run_killed_before_any_rename_of_its_last_save_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    assert call(["-m", "mlm_lightning", "train"], tmp_path, "whole") == 0
    whole = run_in(tmp_path / "whole")
    assert whole.summary is not None
    assert whole.summary["best/step"] == LAST_STEP  # so the last save gives a file each of its names
    fatal = 1
    while (status := call(["-c", DYING, str(fatal)], tmp_path, f"killed-{fatal}")) == -signal.SIGKILL:
        assert call(["-m", "mlm_lightning", "train"], tmp_path, f"killed-{fatal}") == 0
        killed = run_in(tmp_path / f"killed-{fatal}")
        assert_equal_results(whole, killed)
        assert sorted(path.name for path in whole.checkpoints.iterdir()) == sorted(
            path.name for path in killed.checkpoints.iterdir()
        ), fatal
        for name in ("epoch-1.ckpt", "epoch-2.ckpt"):
            assert_equal_checkpoints(whole.checkpoints / name, killed.checkpoints / name)
        fatal += 1
    assert status == 0
    assert fatal > 5
