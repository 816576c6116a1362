"""The network that makes the weights of a convolution from a radial basis, with e3nn's arguments and state_dict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from eqtp.nn.activation import Normalized
from eqtp.nn.module import Module


class Layer(Module):
    """A matrix, and a function perhaps: the parameters of one layer of `FullyConnectedNet`."""

    def __init__(self, h_in: int, h_out: int, act: Normalized | None, var_in: float, var_out: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(h_in, h_out))  # [h_in, h_out]
        self.act, self.h_in, self.h_out, self.var_in, self.var_out = act, h_in, h_out, var_in, var_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., h_in] -> [..., h_out]"""
        x, factor = self.unscaled(x, 1.0)
        return x if factor == 1 else x * factor

    def unscaled(self, x: torch.Tensor, factor: float) -> tuple[torch.Tensor, float]:
        """The layer of ``factor * x``, x [..., h_in], as (y [..., h_out], factor of y)."""
        last = 1.0 if self.act is not None else self.var_out
        y = x @ (self.weight * (factor * (last / (self.h_in * self.var_in)) ** 0.5))
        return (y, 1.0) if self.act is None else (self.act.f(y), self.act.factor * self.var_out**0.5)


class FullyConnectedNet(Module, torch.nn.Sequential):
    """Fully connected layers of sizes hs, without biases. Source: e3nn.nn.FullyConnectedNet.

    act: elementwise function after every layer but the last (out_act: there, too), normalised by `Normalized`.
    variance_in, variance_out: of the input, and what that of the output shall be. The factors of normalisation are
    multiplied into the next matrix, so that the features of all edges are not written once more for each.
    """

    def __init__(
        self,
        hs: Sequence[int],
        act: Callable | None = None,
        variance_in: float = 1,
        variance_out: float = 1,
        out_act: bool = False,
    ):
        super().__init__()
        self.hs = list(hs)
        act = None if act is None else Normalized(act)
        last = len(self.hs) - 2
        for n, (h_in, h_out) in enumerate(pairwise(self.hs)):
            own = act if n < last or out_act else None
            var_in, var_out = variance_in if n == 0 else 1, variance_out if n == last else 1
            self.add_module(f"layer{n}", Layer(h_in, h_out, own, var_in, var_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., hs[0]] -> [..., hs[-1]]"""
        factor = 1.0
        for layer in self:
            x, factor = layer.unscaled(x, factor)
        return x if factor == 1 else x * factor

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.hs}"
