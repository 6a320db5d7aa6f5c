"""The parts that encoders are made of: norms, positions, feed-forward networks, dropout.

Shapes: B rows, L positions, K predicted positions a row, D width, H heads, E width of a head.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "identity": lambda x: x,
}
GATED = {"swiglu": "silu", "geglu": "gelu"}
"""Gated linear units (Shazeer 2020, arXiv 2002.05202): by name, the activation of the gate."""

EMBEDDING_STD = 0.02
NormKind = Literal["layer", "rms"]


def make_norm(kind: NormKind, size: int, eps: float, bias: bool = True) -> nn.Module:
    """LayerNorm (Ba et al. 2016), with a `bias` or without, or RMSNorm (Zhang, Sennrich 2019), which has none."""
    return nn.RMSNorm(size, eps=eps) if kind == "rms" else nn.LayerNorm(size, eps=eps, bias=bias)


class FFNN(nn.Module):
    """A feed-forward network on the last dimension: linear layers, each but the last followed by an activation and perhaps a
    norm, and one activation after the last."""

    def __init__(
        self,
        in_size: int,
        hidden_sizes: Sequence[int],
        out_size: int,
        activation: str,
        output_activation: str | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        hidden_bias: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        sizes = (in_size, *hidden_sizes, out_size)
        self.hidden = nn.ModuleList(nn.Linear(n, m, hidden_bias) for n, m in pairwise(sizes[:-1]))
        self.norms = nn.ModuleList(nn.Identity() if norm is None else norm(m) for m in hidden_sizes)
        self.head = nn.Linear(sizes[-2], out_size, bias)
        self.activation = ACTIVATIONS[activation]
        self.output_activation = ACTIVATIONS[output_activation or "identity"]

    def forward(self, x: Tensor) -> Tensor:
        return self.output_activation(self.head(self.last_hidden(x)))

    def last_hidden(self, x: Tensor) -> Tensor:
        """What the last linear layer is applied to."""
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            x = norm(self.activation(linear(x)))
        return x


class Positions(nn.Module):
    """Adds a vector to each token, by its position: 0, 1, 2 … or `position_BL`.

    learned      parameters, `weight_LD`
    sinusoidal   sines and cosines of geometrically spaced wavelengths, 2π … 10000·2π (Vaswani et al. 2017, section 3.5), scaled
                 to the size of the token vectors at the start of training, which they would drown otherwise
    none         nothing: tokens know their company, not their order
    rotary       nothing: queries and keys are turned instead (Rotary)
    """

    def __init__(self, kind: str, seq_len: int, d_model: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.weight_LD = nn.Parameter(torch.empty(seq_len, d_model))
        elif kind == "sinusoidal":
            frequencies = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
            angles = torch.arange(seq_len).unsqueeze(1) * frequencies
            # sine and cosine take turns; an odd width has one sine more
            table_LD = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d_model]
            self.register_buffer("table_LD", table_LD * (EMBEDDING_STD * math.sqrt(2)), persistent=False)

    def forward(self, x_BLD: Tensor, position_BL: Tensor | None = None) -> Tensor:
        if self.kind in ("none", "rotary"):
            return x_BLD
        vectors_LD = self.weight_LD if self.kind == "learned" else self.get_buffer("table_LD")
        return x_BLD + (vectors_LD[: x_BLD.shape[1]] if position_BL is None else F.embedding(position_BL, vectors_LD))


class Rotary(nn.Module):
    """Turns queries and keys by angles that grow with their positions, so that their products depend on distances alone
    (Su et al. 2021, arXiv 2104.09864): entries i and i + E/2 of a head are a pair, which turns by position · theta^(-2i/E).

    The angles are in float32, whatever is turned: in bfloat16 neighbours would share a position from 256 on.
    """

    def __init__(self, seq_len: int, head_size: int, theta: float) -> None:
        super().__init__()
        self.theta = theta
        frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        angles = torch.arange(seq_len, dtype=torch.float32).unsqueeze(1) * frequencies
        self.register_buffer("turns_LE", torch.cat([angles.cos(), angles.sin()], dim=-1), persistent=False)

    def at(self, length: int, position_BL: Tensor | None, positions_BK: Tensor | None) -> Tensor:
        """The turns of rows of `length` positions, or of the places `positions_BK` in them: something to be given to `turn`.
        `position_BL` are the positions that tokens have, where these are not 0, 1, 2 …"""
        turns_LE = self.get_buffer("turns_LE")
        if position_BL is not None and positions_BK is not None:
            position_BL = position_BL.gather(1, positions_BK)
        elif position_BL is None:
            position_BL = positions_BK
        return turns_LE[:length] if position_BL is None else F.embedding(position_BL, turns_LE).unsqueeze(1)


def turn(x_BHLE: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys, turned as `Rotary.at` says."""
    cos, sin = turns.chunk(2, dim=-1)
    if x_BHLE.device.type == "cpu" and x_BHLE.dtype == torch.float32 and not torch.compiler.is_compiling():
        return _Turn.apply(x_BHLE, cos, sin)
    first, second = x_BHLE.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BHLE.dtype)


class _Turn(torch.autograd.Function):
    """The same in a quarter of the time, without what autograd would keep: the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _Turn._turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Turn._turned(gradient, cos, -sin), None, None

    @staticmethod
    def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = torch.empty(x.shape, dtype=x.dtype)
        (first, second), (to_first, to_second) = x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
        torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=to_second).addcmul_(first, sin)
        return turned


class Dropout(nn.Dropout):
    """`nn.Dropout`, with `drop`."""

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p) if self.training else x


def drop(x: Tensor, p: float) -> Tensor:
    """`F.dropout`, several times faster on a CPU: 16 random bits an element, four elements from each 64-bit number of torch's
    global generator.

    An element is kept with probability q, 1 - p rounded to a multiple of 2^-16, and scaled by 1 / q: the mean is exact.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    num_dropped = min(round(p * 2**16), 2**16 - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    # a comparison that writes floats: a mask of booleans would have to be converted, which takes as long
    scale = torch.ge(bits, num_dropped - 2**15, out=torch.empty_like(bits, dtype=x.dtype))
    return x * scale.mul_(2**16 / (2**16 - num_dropped))


def detach_token(embedding: nn.Module, token_id: int) -> None:
    """From now on, what an embedding gives for a token takes no gradient: its vector stays as it is (weight decay aside)."""

    def detach(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.where((inputs[0] == token_id).unsqueeze(-1), output.detach(), output)

    embedding.register_forward_hook(detach)


def take(x_BLD: Tensor, positions_BK: Tensor | None) -> Tensor:
    """The vectors at some positions of each row, BKD; all of them where `positions_BK` is None."""
    if positions_BK is None:
        return x_BLD
    return x_BLD.gather(1, positions_BK.unsqueeze(-1).expand(-1, -1, x_BLD.shape[-1]))
