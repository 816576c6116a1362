"""Autograd, written once for every op.

`define` makes a kernel a torch op with a fake (shapes); `differentiable` gives it a backward, a forward-mode rule and a
vmap rule. torch has two mechanisms and neither covers everything: registered ops work under torch.compile and
torch.export but give silent zeros in forward mode and fail in torch.func; autograd.Function with setup_context works in
torch.func and forward mode but is silently wrong under torch.compile(torch.func.grad). So each op gets both, and a
third, quick one for plain calls, and its callable picks.

`register_multilinear` closes every derivative order of a product. With the form

    Phi(g, a_1 .. a_n) = <g, product(a_1 .. a_n)>,      linear in each of g, a_1 .. a_n,

the product is dPhi/dg and the backward op is dPhi/da_s for all s. A derivative of either, along a direction t of one
operand, is the same op with that operand replaced by t (and, for the backward op, without the output that does not
depend on it). So two kernels, product and backward, suffice for any order; a third, fused one may compute the second
order at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.autograd import forward_ad

from eqtp.backends.native import operators
from eqtp.ops.precision import without_autocast
from eqtp.plans.calls import Pass

LIBRARY = torch.library.Library("eqtp", "FRAGMENT")  # its ops on the CPU may be there already, from C++
IN_CPP: dict[str, Callable] = {}  # those, and their kernels in Python


def define(name: str, schema: str, kernel: Callable, fake: Callable):
    """Registers eqtp::name with its kernel, which serves every device, and its fake; returns the op.

    Where csrc/<engine>/ops.cpp has the op, it serves the family native on the CPU; what else runs there it asks of
    eqtp::python_name."""
    in_cpp = operators.loaded() and hasattr(torch.ops.eqtp, name)
    if not in_cpp:
        LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    else:
        LIBRARY.define(f"python_{name}{schema}")
        IN_CPP[name] = kernel
    for key, op in (("CPU", f"python_{name}" if in_cpp else name), ("CUDA", name), ("XPU", name)):
        LIBRARY.impl(op, kernel, key)
    torch.library.register_fake(f"eqtp::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.eqtp, name).default


class _Context:
    """What a Function keeps between the forward and the backward of an op: arguments and, if asked, outputs."""

    def __init__(self, op, outputs: bool):
        tensor = torch._C.TensorType.get()
        self.places = [n for n, a in enumerate(op._schema.arguments) if a.type.isSubtypeOf(tensor)]
        self.outputs = outputs

    def keep(self, ctx, inputs, output) -> None:
        """torch's setup_context."""
        ctx.set_materialize_grads(False)
        tensors = [inputs[n] for n in self.places]
        ctx.constants = list(inputs)
        for n in self.places:
            ctx.constants[n] = None
        if hasattr(ctx, "save_for_forward"):
            ctx.save_for_forward(*tensors)
        if self.outputs:
            tensors += [output] if isinstance(output, torch.Tensor) else output
        ctx.save_for_backward(*tensors)

    def kept(self, ctx) -> list:
        """[the arguments], or [the arguments, a tuple of the outputs]."""
        tensors = ctx.saved_tensors  # once: torch.utils.checkpoint gives them away
        arguments, count = ctx.constants.copy(), len(self.places)
        for n, t in zip(self.places, tensors[:count], strict=True):
            arguments[n] = t
        return [arguments, tensors[count:]] if self.outputs else [arguments]

    def asked(self, ctx) -> list[bool]:
        """The arguments whose gradient the running backward is asked for: of those that have one, some may only lead to
        weights, whose gradients `torch.autograd.grad(energy, positions)` does not take. Leaves count as asked for: of
        one that is, torch would raise an error, which takes longer than a small product."""
        needs = list(ctx.needs_input_grad)
        for n, (node, _) in zip(self.places, ctx.next_functions, strict=True):
            if needs[n] and type(node) is not torch._C._functions.AccumulateGrad:
                needs[n] = torch._C._will_engine_execute_node(node)
        return needs


def differentiable(
    op, backward: Callable, jvp: Callable, vmap: Callable | None = None, outputs: bool = False
) -> Callable:
    """The callable of an op, with all derivatives.

    backward(args, needs, grads) -> gradient (or None) per argument; grads: one per output, None where there is none.
    With outputs=True: backward(args, needs, grads, outputs), outputs a tuple of what the op returned.
    jvp(args, tangents) -> tangent(s) of the output(s); tangents: one per argument, None where there is none.
    vmap(info, in_dims, *args) as in torch.autograd.Function; by default one call per element of the batch.
    """
    context, name = _Context(op, outputs), op.name()

    def run_backward(ctx, *grads, needs=None):
        if all(g is None for g in grads):
            return (None,) * len(ctx.constants)
        arguments, *results = context.kept(ctx)
        with without_autocast(next(g for g in grads if g is not None).device.type):
            return tuple(backward(arguments, needs or ctx.needs_input_grad, grads, *results))

    class Plain(torch.autograd.Function):
        """For plain calls: without the parts for transforms, which take time."""

        @staticmethod
        def forward(ctx, *args):
            output = _below_autograd(op, args)
            context.keep(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return run_backward(ctx, *grads, needs=context.asked(ctx))

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args):
            return op(*args)

        @staticmethod
        def jvp(ctx, *tangents):
            return jvp(context.kept(ctx)[0], tangents)

        setup_context = staticmethod(context.keep)
        backward = staticmethod(run_backward)

    Function.vmap = staticmethod(vmap or _loop_over_batch(lambda *args: call(*args)))
    torch.library.register_autograd(op, run_backward, setup_context=context.keep, lib=LIBRARY)

    apply = super(torch.autograd.Function, Plain).apply  # Plain's own asks again about transforms

    def call(*args):
        if _is_plain(args):
            wanted = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
            return apply(*args) if wanted else _below_autograd(op, args)
        return Function.apply(*args) if _transform_active(name) else op(*args)

    return call


_PLAIN = {torch.Tensor, torch.nn.Parameter, str, bool, int, list, tuple}


def _is_plain(args) -> bool:
    """Whether a call is made outside of everything that traces or transforms it, with tensors of no subclass. It then
    goes past the derivative that torch keeps for the op, whose way takes several times as long."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ) and _PLAIN.issuperset(map(type, args))


def _transform_active(name: str) -> bool:
    """Whether forward mode or a transform of torch.func is active. Raises NotImplementedError where torch would
    silently lose a tangent."""
    forward = forward_ad._current_level >= 0
    if not (forward or torch._C._are_functorch_transforms_active()):
        return False
    if torch.compiler.is_compiling():
        if forward:
            raise NotImplementedError(f"{name}: forward-mode differentiation inside torch.compile is not supported")
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    if stack and not forward and all(f.key() == torch._C._functorch.TransformType.Functionalize for f in stack):
        return False
    # wrong results with any autograd.Function
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
        raise NotImplementedError(f"{name}: forward mode inside forward mode is not supported; nest reverse mode in it")
    return True


def _below_autograd(op, args):
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def run(op, *args):
    """op(*args), of which no derivative is wanted."""
    return _below_autograd(op, args) if _is_plain(args) else op(*args)


def _loop_over_batch(call: Callable) -> Callable:
    """vmap rule: a call for each element of the batch. Without elements, a call on their sums, which are zeros, tells
    the shapes of the outputs."""

    def rule(info, in_dims, *args):
        size = info.batch_size

        def element(a, d, n):
            return a if not isinstance(d, int) else a.select(d, n) if size else a.sum(d, dtype=a.dtype)

        each = [call(*(element(a, d, n) for a, d in zip(args, in_dims, strict=True))) for n in range(max(size, 1))]
        if isinstance(each[0], torch.Tensor):
            return torch.stack(each)[:size], 0
        return tuple(torch.stack(o)[:size] for o in zip(*each, strict=True)), tuple(0 for _ in each[0])

    return rule


def new_outputs(tensors, wanted) -> list[torch.Tensor | None]:
    """A contiguous output like each tensor; None where it is not wanted."""
    return [t.new_empty(t.shape) if w else None for t, w in zip(tensors, wanted, strict=True)]


def empty_for_none(like: torch.Tensor, *outputs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The outputs of an op, which may not be None: an unwanted one is an empty tensor."""
    return tuple(like.new_empty(0) if t is None else t for t in outputs)


def sum_present(terms: Sequence):
    """Sum of the terms that are not None; None if there are none."""
    terms = [t for t in terms if t is not None]
    return sum(terms[1:], terms[0]) if terms else None


def passes(n: int, run: Callable, fake: Callable) -> tuple[Callable, Callable, Callable]:
    """product, product_bwd and product_bwdbwd of `register_multilinear`, from one function.

    run(pass_, operands, outputs, *constants) fills the outputs that are not None. Operands: the n of the product, then
    g ("bwd", "bwdbwd"), then the n cotangents ("bwdbwd"). Outputs: the product ("fwd"); the gradients of the n operands
    ("bwd"); the gradients of g and of the n operands ("bwdbwd").
    """

    def product(*args):
        out = fake(*args)
        run(Pass.FWD, args[:n], [out], *args[n:])
        return out

    def product_bwd(g, *args):
        outputs = new_outputs(args[:n], args[n])
        run(Pass.BWD, (*args[:n], g), outputs, *args[n + 1 :])
        return empty_for_none(g, *outputs)

    def product_bwdbwd(g, *args):
        outputs = new_outputs((g, *args[:n]), args[2 * n])
        run(Pass.BWDBWD, (*args[:n], g, *args[n : 2 * n]), outputs, *args[2 * n + 1 :])
        return empty_for_none(g, *outputs)

    return product, product_bwd, product_bwdbwd


def register_multilinear(
    name: str,
    operands: Sequence[str],
    constants: str,
    product,
    product_bwd,
    product_bwdbwd,
    fake,
    part=lambda s, constants: constants,
    for_backward=lambda operands, constants: constants,
):
    """Registers eqtp::name and eqtp::name_bwd; returns the product's callable.

    operands: names of the n tensor operands. constants: schema text of the arguments after them.
    product(*operands, *constants) -> out
    product_bwd(g, *operands, wanted, *constants) -> n gradients; wanted: list of bools; an unwanted gradient is [0]
    product_bwdbwd(g, *operands, *cotangents, wanted, *constants) -> gradients of g and of the n operands
        The second order in one kernel, used if nothing differentiates further and at least two cotangents are given.
    fake(*operands, *constants) -> empty output
    part(s, constants) -> constants of the part of the product that depends on operand s, if that is not all of it
        (a path without a weight does not depend on the weights)
    for_backward(operands, constants) -> constants of the backward ops, which may need more than the product
    """
    n = len(operands)
    tensors = ", ".join(f"Tensor {o}" for o in operands)

    def like(t, want):
        return torch.empty_like(t, memory_format=torch.contiguous_format) if want else t.new_empty(0)

    def fake_bwd(g, *args):
        return tuple(like(t, w) for t, w in zip(args[:n], args[n], strict=True))

    def fake_bwdbwd(*args):
        return tuple(like(t, w) for t, w in zip(args[: n + 1], args[2 * n + 1], strict=True))

    product_op = define(name, f"({tensors}, {constants}) -> Tensor", product, fake)
    results = ", ".join(["Tensor"] * n)
    schema = f"(Tensor g, {tensors}, bool[] wanted, {constants}) -> ({results})"
    bwd_op = define(f"{name}_bwd", schema, product_bwd, fake_bwd)
    cotangents = ", ".join(f"Tensor c{o}" for o in operands)
    schema = f"(Tensor g, {tensors}, {cotangents}, bool[] wanted, {constants}) -> (Tensor, {results})"
    bwdbwd_op = define(f"{name}_bwdbwd", schema, product_bwdbwd, fake_bwdbwd)
    return _close_derivatives(n, product_op, bwd_op, bwdbwd_op, part, for_backward)


def _close_derivatives(n: int, product_op, bwd_op, bwdbwd_op, part: Callable, for_backward: Callable) -> Callable:
    """The callable of a product of n operands, whose derivatives are again products and backward ops."""

    def replaced(operands, s, t):
        return [t if i == s else a for i, a in enumerate(operands)]

    def gradients(g, operands, wanted, rest):
        """dPhi/da_s at (g, operands), None where unwanted."""
        if not any(wanted):
            return [None] * n
        rest = for_backward(operands, rest)
        return [r if w else None for r, w in zip(bwd(g, *operands, list(wanted), *rest), wanted, strict=True)]

    def backward(args, needs, grads):
        return [*gradients(grads[0], args[:n], needs[:n], args[n:]), *(None for _ in args[n:])]

    def jvp(args, tangents):
        given = [(s, t) for s, t in enumerate(tangents[:n]) if t is not None]
        return sum_present([call(*replaced(args[:n], s, t), *part(s, args[n:])) for s, t in given])

    def bwd_backward(args, needs, cotangents):
        """Gradient of sum_s <c_s, dPhi/da_s> = sum_s Phi(g, a with a_s replaced by c_s)."""
        g, operands, wanted, rest = args[0], args[1 : n + 1], args[n + 1], args[n + 2 :]
        given = [s for s in range(n) if wanted[s] and cotangents[s] is not None]
        if len(given) > 1 and not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            full = [cotangents[s] if s in given else torch.zeros_like(operands[s]) for s in range(n)]
            fused = run(bwdbwd_op, g, *operands, *full, list(needs[: n + 1]), *rest)
            return [r if want else None for r, want in zip(fused, needs, strict=False)] + [None] * (len(args) - n - 1)
        gg, parts = [], [[] for _ in range(n)]
        for s in given:
            a, rest_s = replaced(operands, s, cotangents[s]), part(s, rest)
            if needs[0]:
                gg.append(call(*a, *rest_s))
            for i, r in enumerate(gradients(g, a, [needs[i + 1] and i != s for i in range(n)], rest_s)):
                parts[i].append(r)
        return [sum_present(gg), *map(sum_present, parts), *(None for _ in args[n + 1 :])]

    def bwd_jvp(args, tangents):
        g, operands, wanted, rest = args[0], args[1 : n + 1], args[n + 1], args[n + 2 :]
        parts = [[] for _ in range(n)]
        for s, t in enumerate(tangents[: n + 1]):
            if t is None:
                continue
            a, rest_s = (operands, rest) if s == 0 else (replaced(operands, s - 1, t), part(s - 1, rest))
            for i, r in enumerate(
                gradients(t if s == 0 else g, a, [wanted[i] and i != s - 1 for i in range(n)], rest_s)
            ):
                parts[i].append(r)

        def zero(i):
            return operands[i].new_zeros(operands[i].shape if wanted[i] else 0)

        return tuple(zero(i) if (r := sum_present(p)) is None else r for i, p in enumerate(parts))

    call = differentiable(product_op, backward, jvp)
    bwd = differentiable(bwd_op, bwd_backward, bwd_jvp)
    return call
