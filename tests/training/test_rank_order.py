"""Gradients of several ranks are summed in their order, wherever in a bucket an element lies."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

RANK = """
import sys
from types import SimpleNamespace
import torch
from torch import distributed
from mlm_lightning.training.rank_order import mean_gradients, sum_in_rank_order
folder, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
gradient_N = torch.randn(1003, generator=torch.Generator().manual_seed(rank))

def mean(start, stop):
    return mean_gradients(None, SimpleNamespace(buffer=lambda: gradient_N[start:stop].clone())).wait()

whole_N = mean(0, 1003)
cut_N = torch.cat([mean(start, start + 59) for start in range(0, 1003, 59)])
wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 5))
sum_in_rank_order(wrapped)
wrapped(gradient_N[:6].view(2, 3)).square().sum().backward()
torch.save((whole_N, cut_N, wrapped.module.weight.grad), f"{folder}/{rank}.pt")
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_sum_has_one_order(tmp_path: Path, ranks: int) -> None:
    commands = [[sys.executable, "-c", RANK, str(tmp_path), str(rank), str(ranks)] for rank in range(ranks)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in processes] == [0] * ranks
    gradients = [torch.randn(1003, generator=torch.Generator().manual_seed(rank)) for rank in range(ranks)]
    sum_N = gradients[0]
    for other_N in gradients[1:]:
        sum_N = sum_N + other_N
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    for whole_N, cut_N, weight_grad in found:
        assert torch.equal(whole_N, sum_N / ranks)
        assert torch.equal(cut_N, whole_N)
        assert torch.equal(weight_grad, found[0][2])


def test_what_is_no_model_of_several_ranks_stays_as_it_is() -> None:
    from mlm_lightning.training.rank_order import sum_in_rank_order

    sum_in_rank_order(torch.nn.Linear(2, 2))
