"""e3nn's Linear in plain torch, to be traced: e3nn's own has more ops, and may be TorchScript, which makes constants of
numbers of rows."""

from __future__ import annotations

import math

import torch


class Linear(torch.nn.Module):
    """In the place of an e3nn.o3.Linear, with its parameters: x [..., dim_in] -> [..., dim_out].

    Raises ValueError for one whose weights are not its own and those of all rows.
    """

    def __init__(self, original):
        super().__init__()
        if not original.internal_weights or original.weight.ndim > 1:
            raise ValueError("an e3nn Linear with weights from outside or with f_in is not supported")
        self.weight, self.bias = original.weight, original.bias  # [weight_numel], [bias_numel]
        self.widths = [mul * ir.dim for mul, ir in original.irreps_in]
        self.blocks = [(mul, ir.dim) for mul, ir in original.irreps_out]
        self.instructions = [tuple(ins) for ins in original.instructions]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., dim_in]"""
        rows = math.prod(x.shape[:-1])
        blocks = x.split(self.widths, -1)  # its gradient is one cat
        terms = [[] for _ in self.blocks]
        used = {-1: 0, 0: 0}  # of bias and weight
        for i_in, i_out, shape, scale in self.instructions:
            mul, d = self.blocks[i_out]
            source, size = (self.bias, mul) if i_in == -1 else (self.weight, shape[0] * mul)
            begin = used[min(i_in, 0)]
            used[min(i_in, 0)] = begin + size
            values = scale * source[begin : begin + size]
            if i_in == -1:  # scalars: [mul]
                terms[i_out].append(values.expand(*x.shape[:-1], mul))
                continue
            block, weight = blocks[i_in], values.reshape(shape)  # [..., u * d], [u, mul]
            if d > 1:
                block = block.reshape(rows, shape[0], d).transpose(1, 2).reshape(rows * d, shape[0])  # [rows * d, u]
            block = block @ weight
            if d > 1:
                block = block.reshape(rows, d, mul).transpose(1, 2).reshape(*x.shape[:-1], mul * d)
            terms[i_out].append(block)
        out = [
            sum(found[1:], found[0]) if found else x.new_zeros(*x.shape[:-1], mul * d)
            for found, (mul, d) in zip(terms, self.blocks, strict=True)
        ]
        return torch.cat(out, -1)


def replace_linears(model: torch.nn.Module) -> None:
    """In place, all of e3nn's own in a model; parameters stay the same objects. Raises ValueError as `Linear`."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module).__name__ == "Linear" and type(module).__module__.split(".")[0] == "e3nn":
                setattr(parent, name, Linear(module))
