"""One training step of a model: ours beside what one would write with the libraries alone.

    python benchmarks/model_step.py            a minute or two on two cores
    python benchmarks/model_step.py --full     DistilBERT at its real size, 32 × 128 tokens

Each pair has weights of the same shapes, the same rows and the same predicted tokens; the lines print milliseconds a step (the
best of some, the two alternating) and how many times ours is faster. `K` is the number of places for predicted positions: as
many as hold all predictions of nearly every row (mean + 3 standard deviations), of which the unused are computed in vain.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.models.transformer import TransformerClassifier

Step = Callable[[], None]


class PlainTransformer(nn.Module):
    """What a tutorial writes: embeddings, `nn.TransformerEncoder`, a linear layer at every position."""

    def __init__(self, vocab_size: int, seq_len: int, d_model: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocab_size, d_model), nn.Embedding(seq_len, d_model)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(d_model, 4, dim_feedforward, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.decoder = nn.Linear(d_model, vocab_size)

    def forward(self, input_ids_BL: Tensor) -> Tensor:
        positions_L = torch.arange(input_ids_BL.shape[1])
        return self.decoder(self.encoder(self.dropout(self.embedding(input_ids_BL) + self.position(positions_L))))


def masked_rows(rows: int, seq_len: int, vocab_size: int, rate: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and predicted positions; a rate of None is exactly one position a row."""
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(vocab_size - 1, (rows, seq_len), generator=generator)
    u_BL = torch.rand(rows, seq_len, generator=generator)
    if rate is None:
        places, rate_B1 = 1, u_BL.min(1, keepdim=True).values.nextafter(torch.tensor(1.0))
    else:
        places = min(seq_len, round(seq_len * rate + 3 * math.sqrt(seq_len * rate * (1 - rate))))
        rate_B1 = torch.full((rows, 1), rate)
    # the smallest numbers are the predicted positions; those beyond the places of a very unlucky row stay unpredicted
    positions_BK = u_BL.topk(places, largest=False).indices
    predicted_BL = torch.zeros_like(tokens_BL, dtype=torch.bool).scatter_(
        1, positions_BK, u_BL.gather(1, positions_BK) < rate_B1
    )
    labels_BL = tokens_BL.masked_fill(~predicted_BL, IGNORE_INDEX)
    return tokens_BL.masked_fill(predicted_BL, vocab_size - 1), labels_BL, positions_BK


def training_step(
    model: nn.Module, logits: Callable[[], Tensor], labels: Tensor, bf16: bool, optimizer: torch.optim.Optimizer | None = None
) -> Step:
    def step() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(logits().flatten(0, 1), labels.flatten())
        loss.backward()
        if optimizer is not None:
            optimizer.step()

    return step


def milliseconds(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """The shortest time of each step: other work on the machine only adds. They take turns, for the same reason."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat > 0:  # the first warms up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: min(values) for name, values in times.items()}


def report(title: str, steps: dict[str, Step], repeats: int) -> None:
    """The first step is what the others are compared with."""
    print(title)
    measured = milliseconds(steps, repeats)
    baseline = next(iter(measured.values()))
    for name, ms in measured.items():
        print(f"    {name:<58}{ms:10.1f} ms {baseline / ms:8.2f} x", flush=True)


def compare_transformers(
    rows: int, seq_len: int, vocab_size: int, d_model: int, ffn: int, dropout: float, rate: float | None, repeats: int
) -> None:
    ids_BL, labels_BL, positions_BK = masked_rows(rows, seq_len, vocab_size, rate)
    labels_BK = labels_BL.gather(1, positions_BK)
    theirs = PlainTransformer(vocab_size, seq_len, d_model, ffn, dropout)
    ours = TransformerClassifier(vocab_size, seq_len, d_model=d_model, dim_feedforward=ffn, dropout=dropout)
    steps = {
        "nn.TransformerEncoder, all logits": training_step(theirs, lambda: theirs(ids_BL), labels_BL, False),
        "ours, predicted positions": training_step(ours, lambda: ours(ids_BL, None, positions_BK), labels_BK, False),
    }
    if has_bf16():
        steps["ours, predicted positions, bf16"] = training_step(
            ours, lambda: ours(ids_BL, None, positions_BK), labels_BK, True
        )
    report(
        f"4 layers, width {d_model}, feed-forward {ffn}, {rows} × {seq_len} tokens, V = {vocab_size}, "
        f"K = {positions_BK.shape[1]}, dropout {dropout}: forward and backward",
        steps,
        repeats,
    )


def compare_distilbert(full: bool, rows: int, seq_len: int, repeats: int) -> None:
    from transformers import AutoModelForMaskedLM

    from mlm_lightning.models.pretrained import PretrainedMLM

    vocab_size = 30_522
    config = {} if full else {"dim": 256, "hidden_dim": 1024, "n_layers": 4, "n_heads": 4}
    ids_BL, labels_BL, positions_BK = masked_rows(rows, seq_len, vocab_size, 0.15)
    labels_BK = labels_BL.gather(1, positions_BK)
    ours = PretrainedMLM(vocab_size, seq_len, architecture="distilbert", config=config, pad_token_id=0)
    theirs = AutoModelForMaskedLM.from_config(ours.hf_model.config)
    foreach = torch.optim.AdamW(theirs.parameters(), lr=1e-5, foreach=True)
    fused = torch.optim.AdamW(ours.parameters(), lr=1e-5, fused=True)
    name = "ours: predicted positions, fused AdamW, " + ("bf16" if has_bf16() else "fp32")
    steps = {
        "the tutorial: all logits, AdamW, fp32": training_step(
            theirs, lambda: theirs(input_ids=ids_BL).logits, labels_BL, False, foreach
        ),
        name: training_step(ours, lambda: ours(ids_BL, None, positions_BK), labels_BK, has_bf16(), fused),
    }
    size = ours.hf_model.config
    report(
        f"DistilBERT, {size.n_layers} layers, width {size.dim}, {rows} × {seq_len} tokens, V = {vocab_size}, "
        f"K = {positions_BK.shape[1]}: a whole training step",
        steps,
        repeats,
    )


def has_bf16() -> bool:
    """Emulated bf16 is slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="DistilBERT at its real size instead of 4 layers of width 256")
    parser.add_argument("--rows", type=int, default=32, help="rows of the small transformer and, with --full, of DistilBERT")
    parser.add_argument("--text-rows", type=int, default=8, help="rows of 128 tokens of the larger models")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    for dropout in (0.0, 0.1):
        compare_transformers(arguments.rows, 16, 5, 128, 2048, dropout, None, arguments.repeats)
    few = max(arguments.repeats // 3, 2)
    compare_transformers(arguments.text_rows, 128, 30_522, 256, 1024, 0.1, 0.15, few)
    compare_distilbert(arguments.full, arguments.rows if arguments.full else arguments.text_rows, 128, few)


if __name__ == "__main__":
    main()
