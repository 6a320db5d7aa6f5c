"""Gradients of several ranks on CPUs, summed in the order of the ranks.

    rank 0   a0 a1 a2         a0 b0 c0  ─► a0 + b0 + c0         every rank has all sums,
    rank 1   b0 b1 b2   ─►    a1 b1 c1  ─► a1 + b1 + c1   ─►    whatever bucket an element lies in
    rank 2   c0 c1 c2         a2 b2 c2  ─► a2 + b2 + c2

gloo's own order depends on where an element lies in its bucket, and DDP makes other buckets after a process's first backward
pass: a resumed run would differ in the last bits. Of two numbers there is one order alone.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.futures import Future
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel


def sum_in_rank_order(model: Any) -> None:
    """Registers it with what DDP has wrapped, before the first backward pass; of anything else, and of accelerators, whose
    libraries have orders of their own, it does nothing."""
    if isinstance(model, DistributedDataParallel) and model.device_type == "cpu" and distributed.get_world_size() > 2:
        model.register_comm_hook(None, mean_gradients)


def mean_gradients(group: Any, bucket: distributed.GradBucket) -> Future[Tensor]:
    """The mean over the ranks of a bucket's gradients: a communication hook of DDP."""
    local_N = bucket.buffer()
    ranks = distributed.get_world_size(group)
    sent_M = pad(local_N, (0, -len(local_N) % ranks))
    received_M = torch.empty_like(sent_M)
    distributed.all_to_all_single(received_M, sent_M, group=group)
    sum_K, *others_K = received_M.view(ranks, -1)
    for other_K in others_K:
        sum_K += other_K
    sum_K /= ranks
    distributed.all_gather_into_tensor(sent_M, sum_K, group=group)
    done: Future[Tensor] = Future()
    done.set_result(sent_M[: len(local_N)])
    return done
