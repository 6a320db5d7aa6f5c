"""What sources, oracles and counts compute is exact, whatever precision the model has."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch


@contextmanager
def exactly() -> Iterator[None]:
    """Within it, also as a decorator: no autocast on any device, and float32 as the default dtype, which precisions such as
    bf16-true change."""
    with ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, _devices()):
            stack.enter_context(torch.autocast(device, enabled=False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


@cache
def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]
