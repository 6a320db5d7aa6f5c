"""A model's hidden states, taken by hooks on its layers: no forward pass is written again.

embeddings   what goes into the first layer
layer 1 …    what comes out of each: the layers are the list of modules that holds the most
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def layers_of(model: nn.Module) -> list[nn.Module]:
    """None, where a model has no list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [*max(lists, key=lambda each: len(list(each.modules())))] if lists else []


@contextmanager
def watched(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, each forward pass fills the list anew: the embeddings, and the output of each layer, BLD."""
    states: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[:] = [_hidden((*args, *kwargs.values()))]

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states.append(_hidden(output if isinstance(output, tuple) else (output,)))

    handles = [layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _hidden(values: Sequence[Any]) -> Tensor:
    """The hidden states are what a layer takes, and gives, first."""
    return next(each for each in values if isinstance(each, torch.Tensor))
