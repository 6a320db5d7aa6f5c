"""A step of several ranks on CPUs, whose gradients are summed in the order of the ranks or by gloo: in turns, in one run.

    python benchmarks/ranks.py

Two ranks have one order in any case, so there `mlm train` leaves the sum to gloo; here the hook is measured with them, too.
"""

import statistics
import time

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.training.rank_order import mean_gradients

SHAPE = {"d_model": 256, "num_layers": 4, "nhead": 4, "dim_feedforward": 1024}
ROWS, LENGTH, VOCABULARY = 16, 64, 1000
ROUNDS, STEPS = 6, 10


def measure(rank: int, ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    models = {}
    for name in ("gloo", "in order"):
        models[name] = DistributedDataParallel(TransformerClassifier(VOCABULARY, LENGTH, **SHAPE))
    models["in order"].register_comm_hook(None, mean_gradients)
    ids_BL = torch.randint(VOCABULARY, (ROWS, LENGTH))
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(ROUNDS + 1):
        for name, model in models.items():
            began = time.perf_counter()
            for _ in range(STEPS):
                model(ids_BL).square().mean().backward()
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - began) / STEPS)
    if rank == 0:
        gloo, ordered = (statistics.median(times[name]) for name in models)
        ratio = statistics.median(one / other for one, other in zip(times["in order"], times["gloo"], strict=True))
        megabytes = sum(parameter.numel() for parameter in models["gloo"].parameters()) * 4 / 1e6
        print(
            f"{ranks} ranks, {megabytes:.0f} MB of gradients: gloo {gloo:.3f} s, in order {ordered:.3f} s a step, {ratio:.2f} x"
        )
    distributed.destroy_process_group()


def main() -> None:
    for ranks in (2, 3, 4):
        multiprocessing.spawn(measure, (ranks, 29500 + ranks), ranks)


if __name__ == "__main__":
    main()
