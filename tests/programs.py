"""Programs of `eqtp.signals` the slow way: values at all points of the grid, by dense tables, in torch, differentiable."""

import torch

from eqtp import gaunt as tables


def evaluate(program, inputs):
    """inputs: a tensor [..., (lmax+1)^2] for each input -> the outputs, [..., (lmax_out+1)^2] each."""
    points = tables.grid(program.rows, program.columns, 0.5)
    like = inputs[0]
    table = lambda a: torch.tensor(a, dtype=like.dtype, device=like.device).flatten(1)  # noqa: E731
    fields = {}
    for n, (x, lmax) in enumerate(zip(inputs, program.lmax_in, strict=True)):
        for field, y in enumerate((tables.synthesis(lmax, points), *tables.synthesis_gradient(lmax, points))):
            fields[n, field] = x @ table(y)  # [..., points]
    results = []
    for lmax, terms in zip(program.lmax_out, program.terms, strict=True):
        values = fields[0, 0] * 0
        for coefficient, factors in terms:
            product = torch.full_like(values, coefficient)
            for factor in factors:
                product = product * fields[factor]
            values = values + product
        results.append(values @ table(tables.synthesis(lmax, points) * points.weight[:, None]).mT)
    return results


def couple(couplings, inputs):
    """The same for `eqtp.couplings`: inputs [..., n] -> outputs [..., n]."""
    row = torch.cat([*inputs, torch.ones_like(inputs[0][..., :1])], -1)  # [..., components of all inputs, then 1]
    terms = row[..., couplings.a.tolist()] * row[..., couplings.b.tolist()] * torch.tensor(couplings.c, dtype=row.dtype)  # [..., nnz]
    sums = terms.new_zeros(*terms.shape[:-1], len(couplings.scale))
    for g, (first, last) in enumerate(zip(couplings.group_ptr, couplings.group_ptr[1:], strict=False)):
        sums[..., g] = terms[..., first:last].sum(-1) * row[..., int(couplings.scale[g])]
    bounds = zip(couplings.out_ptr, couplings.out_ptr[1:], strict=False)
    return torch.stack([sums[..., first:last].sum(-1) for first, last in bounds], -1).split(couplings.outputs, -1)
