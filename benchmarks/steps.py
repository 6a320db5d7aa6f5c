"""A training step, as users get it, beside the loop that one would write with the libraries alone.

    python benchmarks/steps.py                    all works
    python benchmarks/steps.py tiny default       some of them
    python benchmarks/steps.py tiny --side ours   one side, in this process: a line of JSON

Each side of a work runs in a process of its own, the two taking turns; the table has medians. Ours is `mlm train`: Lightning,
data, logs and callbacks included. The share of peak is the matrix work that the loss needs, by the time of a step and the rate
of large matrix products in the same process.
"""

import argparse
import copy
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from table import Table
from torch import Tensor, nn
from tutorial import training_step

from mlm_lightning.batch import IGNORE_INDEX, Vocab
from mlm_lightning.config.build import build_model, prepare
from mlm_lightning.config.parse import settings
from mlm_lightning.config.trainer import cpu_multiplies_bf16
from mlm_lightning.data.batches import Plan, TrainBatches
from mlm_lightning.data.source import Source
from mlm_lightning.metrics import masked_cross_entropy
from mlm_lightning.randomness import key
from mlm_lightning.training.limit import matrix_peak, matrix_work, peak_memory_gb

HAS_BF16 = cpu_multiplies_bf16()
FEW = ("trainer.limit_val_batches=0", "callbacks.samples=null", "trainer.enable_progress_bar=false", "callbacks.progress=null")
WARMING_UP = 3


CONF = str(Path(__file__).parent / "conf")


def text_rows(rows: int) -> list[str]:
    """128 tokens each, of which 15 % are predicted."""
    return ["data=random_text", f"data.batch_size={rows}", "masking.rate=0.15"]


Step = Callable[[int], None]
Theirs = Callable[["Problem"], Step]
"""The i-th step of the other loop."""


@dataclass(frozen=True)
class Work:
    title: str
    overrides: list[str]
    theirs: "Theirs"
    steps: int
    what: str
    """What the other side is."""


class RandomText(Source):
    """Rows as long as those of text, of tokens drawn at random."""

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocab, self.seq_len = Vocab(size=vocabulary, mask_id=3, pad_id=0, special_ids=(0, 1, 2, 3)), length

    def rows(self, split: str) -> Tensor:
        return torch.randint(4, self.vocab.size, (4096, self.seq_len), generator=torch.Generator().manual_seed(0))


class Problem:
    """Settings, and what they make; Lightning is not imported for it."""

    def __init__(self, overrides: list[str]) -> None:
        self.settings = settings([*overrides, *FEW, "trainer.max_steps=1000"], CONF)
        self.conditions = prepare(self.settings)
        self.source = self.conditions[0].source
        mask = partial(self.settings.masking.instance, vocab=self.source.vocab, key=key(0, 0))
        size, plan = self.settings.loader.batch_size, Plan(total_steps=1000)
        self.batch_at = TrainBatches(self.source.rows("train"), mask, size, seed=0, plan=plan).__getitem__

    def model(self) -> nn.Module:
        return build_model(self.settings.model, 0, self.source, False)


def library(problem: Problem) -> nn.Module:
    """The library's own model, of the architecture and sizes of ours."""
    from transformers import AutoModelForMaskedLM

    from mlm_lightning.models.convert import as_transformers
    from mlm_lightning.models.pretrained import PretrainedMLM

    model = problem.model()
    ours = model if isinstance(model, PretrainedMLM) else as_transformers(model, problem.source.vocab)
    assert ours is not None
    config = copy.deepcopy(ours.hf_model.config)
    config._attn_implementation = "sdpa"
    return AutoModelForMaskedLM.from_config(config).train()


def tutorial(autocast: bool) -> Theirs:
    """The tutorial's loop: all logits, AdamW. Its batches are made before."""

    def make(problem: Problem) -> Step:
        model, batches = library(problem), [problem.batch_at(i) for i in range(4)]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

        def step(i: int) -> None:
            batch = batches[i % 4]
            inputs = {"input_ids": batch.input_ids_BL, "labels": batch.labels_BL}
            training_step(model, optimizer, inputs, autocast and HAS_BF16)

        return step

    return make


def bare_loop(problem: Problem) -> Step:
    """Our data, model, loss and optimizer in a loop: without Lightning, schedule and logs."""
    model = problem.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(i: int) -> None:
        batch = problem.batch_at(i).trimmed()
        optimizer.zero_grad()
        loss_sum, predicted = masked_cross_entropy(model(batch.input_ids_BL, None, batch.positions_BK), batch.labels_BK)
        (loss_sum / predicted).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def papers(problem: Problem) -> Step:
    """The paper's training step: logits at all positions, and after the optimizer another forward pass for the accuracy."""
    layer = nn.TransformerEncoderLayer(128, 1, 2048, 0.1, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    embedding, decoder, positions_LD = nn.Embedding(5, 128), nn.Linear(128, 5), nn.Parameter(torch.randn(16, 128))
    optimizer = torch.optim.Adam([*nn.ModuleList([encoder, embedding, decoder]).parameters(), positions_LD], lr=1e-4)
    batches = [problem.batch_at(i) for i in range(4)]

    def logits(ids_BL: Tensor) -> Tensor:
        return decoder(encoder(embedding(ids_BL) + positions_LD))

    def step(i: int) -> None:
        batch = batches[i % 4]
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(batch.input_ids_BL).flatten(0, 1), batch.labels_BL.flatten(), ignore_index=IGNORE_INDEX)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            (logits(batch.input_ids_BL).argmax(-1) == batch.labels_BL).sum()

    return step


TINY = ["model.num_layers=1", "model.d_model=16", "model.nhead=2", "model.dim_feedforward=32", "data.batch_size=16"]
PAPER = [
    *("model.num_layers=4", "model.d_model=128", "model.nhead=1", "model.dim_feedforward=2048", "model.dropout=0.1"),
    *("model.norm_first=false", "model.activation=relu", "data.batch_size=32", "masking=single"),
]
BERT = "model.config={hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 512}"
DISTILBERT = ["model=distilbert", *text_rows(64), "optim.lr=1e-5"]
WORKS = {
    "distilbert": Work(
        "DistilBERT, 64 x 128, fp32", [*DISTILBERT, "trainer.precision=32-true"], tutorial(False), 3, "the tutorial's loop"
    ),
    "distilbert_bf16": Work(
        "DistilBERT, 64 x 128, bf16",
        [*DISTILBERT, "trainer.precision=bf16-mixed"],
        tutorial(False),
        3,
        "the tutorial's loop (fp32)",
    ),
    "modernbert": Work(
        "ModernBERT of 8 layers, width 384, 64 x 128",
        ["model=modern", "model.size=small", *text_rows(64)],
        tutorial(True),
        4,
        "transformers' ModernBERT",
    ),
    "bert": Work(
        "BERT of 2 layers, width 128, 32 x 128",
        ["model=distilbert", "model.architecture=bert", BERT, *text_rows(32)],
        tutorial(False),
        20,
        "the tutorial's loop",
    ),
    "paper": Work("4 layers, width 128, feed-forward 2048, dropout 0.1, 32 x 16", PAPER, papers, 60, "the paper's step"),
    "default": Work("the default experiment", [], bare_loop, 40, "its bare loop"),
    "tiny": Work("1 layer, width 16, 16 x 16", TINY, bare_loop, 600, "its bare loop"),
}


def ours(work: Work) -> list[float]:
    """Seconds of each step of `mlm train`."""
    from lightning.pytorch.callbacks import Callback

    from mlm_lightning.training import fit
    from mlm_lightning.training.train import train

    times: list[float] = []

    class Clock(Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    build = fit.build_trainer
    fit.build_trainer = lambda trainer, callbacks, loggers: build(trainer, [*callbacks, Clock()], loggers)
    number = f"trainer.max_steps={work.steps + WARMING_UP + 1}"
    with tempfile.TemporaryDirectory() as folder:
        train(settings([*work.overrides, *FEW, number, f"output_dir={folder}"], CONF))
    return [after - before for before, after in itertools.pairwise(times)]


def theirs(work: Work) -> list[float]:
    """Seconds of each step of the other loop."""
    step = work.theirs(Problem(work.overrides))
    seconds = []
    for i in range(work.steps + WARMING_UP):
        start = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(work: Work, side: str) -> dict[str, float]:
    """One side, in this process."""
    seconds = statistics.median({"ours": ours, "theirs": theirs}[side](work)[WARMING_UP:])
    memory = peak_memory_gb(torch.device("cpu"))["peak_memory_gb"]
    problem = Problem(work.overrides)
    batch = problem.batch_at(0)
    dtype = torch.bfloat16 if "bf16" in problem.settings.trainer.resolved_precision() else torch.float32
    share = matrix_work(problem.model(), batch) / seconds / matrix_peak(torch.device("cpu"), dtype)
    return {"seconds": seconds, "memory_gb": memory, "share_of_peak": share, "tokens": batch.input_ids_BL.numel()}


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Both sides, each in processes of its own, in turn; medians. A row of the table."""
    results: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for side, found in results.items():
            command = [sys.executable, __file__, name, "--side", side]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    sides = {side: {key: statistics.median(each[key] for each in found) for key in found[0]} for side, found in results.items()}
    mine, other = sides["ours"], sides["theirs"]
    times = {"ms": 1000 * mine["seconds"], "theirs": 1000 * other["seconds"], "tokens/s": mine["tokens"] / mine["seconds"]}
    times |= {"times as fast": other["seconds"] / mine["seconds"], "share of peak": mine["share_of_peak"]}
    memory = {"GB": mine["memory_gb"], "of theirs": mine["memory_gb"] / other["memory_gb"]}
    return {"work": WORKS[name].title, "against": WORKS[name].what} | times | memory


COLUMNS = {
    "work": "",
    "against": "",
    "ms": ",.1f",
    "theirs": ",.1f",
    "times as fast": ".2f",
    "tokens/s": ",.0f",
    "share of peak": ".2f",
    "GB": ".2f",
    "of theirs": ".2f",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"{', '.join(WORKS)}; all of them without one")
    parser.add_argument("--side", choices=["ours", "theirs"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.works if name not in WORKS]:
        parser.error(f"no such work: {', '.join(unknown)}")
    if arguments.side:
        print(json.dumps(measure(WORKS[arguments.works[0]], arguments.side)))
        return
    title = f"Steps of training, {torch.get_num_threads()} threads, {'bfloat16' if HAS_BF16 else 'no bfloat16'}"
    table = Table("steps", title, COLUMNS)
    for name in arguments.works or WORKS:
        if "bf16" in name and not HAS_BF16:  # emulated, it is slower than fp32
            continue
        table.add(**compare(name, arguments.rounds))


if __name__ == "__main__":
    main()
