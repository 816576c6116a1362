"""e3nn's Linear in plain torch, to be traced: e3nn's own is TorchScript, which makes constants of numbers of rows."""

from __future__ import annotations

import torch


class Linear(torch.nn.Module):
    """In the place of an e3nn.o3.Linear, with its parameters: x [..., dim_in] -> [..., dim_out].

    Raises ValueError for one whose weights are not those of all rows.
    """

    def __init__(self, original):
        super().__init__()
        if not original.shared_weights or original.weight.ndim > 1:
            raise ValueError("an e3nn Linear with weights for each row or with f_in is not supported")
        self.weight, self.bias = original.weight, original.bias  # [weight_numel], [bias_numel]
        self.slices = original.irreps_in.slices()
        self.blocks = [(mul, ir.dim) for mul, ir in original.irreps_out]
        self.instructions = [tuple(ins) for ins in original.instructions]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., dim_in]"""
        out = [x.new_zeros(*x.shape[:-1], mul, d) for mul, d in self.blocks]
        used = {-1: 0, 0: 0}  # of bias and weight
        for i_in, i_out, shape, scale in self.instructions:
            mul, d = self.blocks[i_out]
            source, size = (self.bias, mul) if i_in == -1 else (self.weight, shape[0] * mul)
            begin = used[min(i_in, 0)]
            used[min(i_in, 0)] = begin + size
            values = source[begin : begin + size]
            if i_in == -1:  # scalars: [mul] -> [mul, 1]
                out[i_out] = out[i_out] + scale * values.unsqueeze(-1)
                continue
            block = x[..., self.slices[i_in]].reshape(*x.shape[:-1], shape[0], d)
            out[i_out] = out[i_out] + scale * torch.einsum("...ui,uw->...wi", block, values.reshape(shape))
        return torch.cat([block.flatten(-2) for block in out], -1)
