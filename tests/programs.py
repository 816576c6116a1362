"""Programs of `eqtp.plans.signals` the slow way: values at all points of the grid, by dense tables, in torch,
differentiable. And what tests of kernels of samples share."""

import calls
import torch

from eqtp import testing
from eqtp.math import sphere as tables


def evaluate(program, inputs):
    """inputs: a tensor [..., (lmax+1)^2] for each input -> the outputs, [..., (lmax_out+1)^2] each."""
    points = tables.grid(program.rows, program.columns, 0.5)
    like = inputs[0]

    def table(a):
        return torch.tensor(a, dtype=like.dtype, device=like.device).flatten(1)

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
    """The same for `eqtp.plans.couplings`: inputs [..., n] -> outputs [..., n]."""
    row = torch.cat([*inputs, torch.ones_like(inputs[0][..., :1])], -1)  # [..., components of all inputs, then 1]
    # [..., nnz]
    terms = row[..., couplings.a.tolist()] * row[..., couplings.b.tolist()] * torch.tensor(couplings.c, dtype=row.dtype)
    sums = terms.new_zeros(*terms.shape[:-1], len(couplings.scale))
    for g, (first, last) in enumerate(zip(couplings.group_ptr, couplings.group_ptr[1:], strict=False)):
        sums[..., g] = terms[..., first:last].sum(-1) * row[..., int(couplings.scale[g])]
    bounds = zip(couplings.out_ptr, couplings.out_ptr[1:], strict=False)
    return torch.stack([sums[..., first:last].sum(-1) for first, last in bounds], -1).split(couplings.outputs, -1)


def operands(sizes, batch, channels, dtype):
    """Random inputs [batch, channels, n] for numbers of components."""
    return [testing.random(batch, channels, n, seed=i).to(dtype) for i, n in enumerate(sizes)]


def squares(degrees):
    """Numbers of components."""
    return [(l + 1) ** 2 for l in degrees]


def run(engine, what, inputs, sizes, target):
    """Outputs of an engine of a family, as views of one tensor, which are NaN before; checks that nothing beside them
    is written.

    target: (family, device); inputs [b, c, n], b and c broadcast; sizes: of the outputs."""
    family, device = target
    batch, channels = torch.broadcast_shapes(*(t.shape[:2] for t in inputs))
    inputs = [t.to(device).expand(batch, channels, -1) for t in inputs]
    memory = torch.full((batch, channels, 3 + sum(sizes) + 2), torch.nan, dtype=inputs[0].dtype, device=device)
    outputs = memory[..., 3:-2].split(list(sizes), -1)
    calls.run(family, engine, what, inputs, outputs)
    assert memory[..., :3].isnan().all() and memory[..., -2:].isnan().all()
    return [t.cpu() for t in outputs]


def check(found, slowly, what, inputs, tolerance):
    """Compares outputs with slowly(what, inputs), calculated in float64."""
    shape = torch.broadcast_shapes(*(t.shape[:2] for t in inputs))
    for n, (a, e) in enumerate(zip(found, slowly(what, [t.double().expand(*shape, -1) for t in inputs]), strict=True)):
        testing.assert_close(a.double(), e, f"output {n}", tolerance)


def check_weights_and_broadcasting(product):
    """product(x1, x2, lmax_out, w1=, w2=, w3=): weights scale each degree, leading dimensions broadcast, no rows are
    fine."""

    def coefficients(*shape, lmax, seed):
        return testing.random(*shape, (lmax + 1) ** 2, seed=seed)

    x1, x2 = coefficients(4, 1, lmax=2, seed=1), coefficients(3, lmax=1, seed=2)
    w1, w2, w3 = testing.random(3, seed=3), testing.random(3, 2, seed=4), testing.random(4, 1, 4, seed=5)

    def spread(w):
        return torch.cat([w[..., l : l + 1].expand(*w.shape[:-1], 2 * l + 1) for l in range(w.shape[-1])], -1)

    found = product(x1, x2, 3, w1=w1, w2=w2, w3=w3)
    assert found.shape == (4, 3, 16)
    testing.assert_close(found, product(x1 * spread(w1), x2 * spread(w2), 3) * spread(w3))
    for n, m in ((0, 1), (3, 2)):
        testing.assert_close(product(x1[n, 0], x2[m], 3), product(x1, x2, 3)[n, m])
    assert product(x1[:0], x2, 3).shape == (0, 3, 16)
