"""Which of a model's parameters is what, by the modules that hold them: every model has names of its own.

embeddings, positions  ─►  layers: 0 1 … N-1  ─►  norm, output layer       the layers: the list that holds the most modules
depth: N + 1                       N N-1 … 1      0
                                   └─ hidden matrices: weights of linear maps between hidden vectors
"""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class _NamesOutputLayer(Protocol):
    """A model of transformers."""

    def get_output_embeddings(self) -> nn.Module | None: ...


def depths(model: nn.Module) -> dict[Tensor, int]:
    """How far each parameter is from the top: 0 behind the layers, 1 in the last of them, the number of layers in the first,
    one more before it. A tied weight counts as an embedding, and one that layers share where it comes first."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [*max(lists, key=lambda each: len(list(each.modules())))] if lists else []
    in_layer = {p: i for i, layer in reversed(list(enumerate(layers))) for p in layer.parameters()}
    embeddings = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    found, before = dict[Tensor, int](), bool(layers)
    for parameter in model.parameters():
        if parameter in in_layer:
            found[parameter], before = len(layers) - in_layer[parameter], False
        else:
            found[parameter] = len(layers) + 1 if before or parameter in embeddings else 0
    return found


def hidden_matrices(model: nn.Module) -> dict[Tensor, int]:
    """The weights that map hidden vectors to hidden vectors, each with the number of equal matrices that are stacked in it:
    queries, keys and values in one, or both halves of a gated layer. Neither embeddings nor the output layer, tied or not."""
    output = _output_layer(model)
    outside = [module for module in model.modules() if isinstance(module, nn.Embedding) or module is output]
    excluded = {parameter for module in outside for parameter in module.parameters()}
    found = dict[Tensor, int]()
    for module in model.modules():
        linears = [each for each in module.children() if isinstance(each, nn.Linear)]
        for each in linears:
            found[each.weight] = _stacked(each, linears)
        fused = getattr(module, "in_proj_weight", None)  # nn.MultiheadAttention's, and that of our own attention
        if isinstance(fused, nn.Parameter):
            found[fused] = 3
    return {parameter: count for parameter, count in found.items() if parameter not in excluded}


def _output_layer(model: nn.Module) -> nn.Module | None:
    """As the model names it, else its last linear map."""
    for module in model.modules():
        if isinstance(module, _NamesOutputLayer) and (named := module.get_output_embeddings()) is not None:
            return named
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else None


def _stacked(linear: nn.Linear, siblings: list[nn.Linear]) -> int:
    """By what its sibling takes in: D → 3D before D → D are queries, keys and values; D → 2F before F → D are a gated layer's
    values and gates, since without the gate 2F would come in."""
    width, outputs = linear.in_features, linear.out_features
    back = {each.in_features for each in siblings if each is not linear and each.out_features == width}
    if outputs == 3 * width and width in back:
        return 3
    return 2 if outputs % 2 == 0 and outputs // 2 in back and outputs not in back else 1
