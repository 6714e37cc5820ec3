"""Where a value leaves the graph: numbers, NumPy, rebuilt tensors, detach, no_grad, writes in place, new leaves."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import Source, bound, called
from pullback.audit.remedy.template import SMALL, Place, Template, number

__all__ = ["TEMPLATES", "joined", "stay"]

_LEAVING = frozenset({"item", "tolist", "numpy", "detach", "cpu", "__array__"})
_BUILDERS = frozenset(
    {"tensor", "as_tensor", "asarray", "from_numpy", "FloatTensor", "Tensor", "DoubleTensor", "array"}
)
_NUMPY = {
    **{n: n for n in "log exp sqrt abs sin cos tan tanh sum mean prod square dot maximum minimum where stack".split()},
    **{n: n for n in "clip outer cumsum sign floor ceil round log1p expm1 arctan2 std var max min einsum".split()},
    "concatenate": "cat",
    "power": "pow",
    "linalg.norm": "linalg.norm",
    "linalg.solve": "linalg.solve",
    "linalg.inv": "linalg.inv",
    "linalg.det": "linalg.det",
}


def stay(draft: Draft, node: ast.AST) -> None:
    """Take ``.item()``, ``.detach()``, ``.numpy()``, ``.tolist()`` and ``float()`` off everything below a node."""
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        if isinstance(call.func, ast.Attribute) and called(call) in _LEAVING and not call.args:
            draft.put(call, lambda c=call: draft.operand(c.func.value))  # type: ignore[misc]
        elif called(call) == "float" and len(call.args) == 1 and not isinstance(call.args[0], ast.Constant):
            draft.put(call, lambda c=call: draft.operand(c.args[0]))  # type: ignore[misc]


def _kept(place: Place) -> Iterator[Draft]:
    """``x.item()``, ``float(x)``, ``x.tolist()``: the tensor itself, here; on the whole line; in the whole function."""
    source = place.source
    statement = source.statement(place.node)
    if isinstance(statement, ast.If | ast.While | ast.For | ast.With | ast.FunctionDef):
        return
    for part in (place.node, statement):
        draft = Draft(source)
        stay(draft, part)
        if not draft.empty:
            yield draft
    whole = Draft(source)
    _all_stay(whole, source.scope(place.node))
    if not whole.empty:
        yield whole


def _all_stay(draft: Draft, scope: ast.AST) -> None:
    """Keep every value of a function a tensor: no departures, ``np.log`` as ``torch.log``, lists stacked."""
    source = draft.source
    stay(draft, scope)
    for node in ast.walk(scope):
        if not isinstance(node, ast.Call):
            continue
        dotted = source.segment(node.func)
        root, _, name = dotted.partition(".")
        if source.modules.get(root, "") in ("numpy", "math") and name in _NUMPY:
            draft.put(node.func, f"{draft.module('torch')}.{_NUMPY[name]}")
            for keyword in node.keywords:
                if keyword.arg == "axis":
                    start = source.start(keyword)
                    draft.cut(start, start + 4, "dim")
        elif called(node) in _BUILDERS and node.args and not draft.changed(node):
            joined(draft, node)


def _rebuilt(place: Place) -> Iterator[Draft]:
    """``torch.tensor([a, b])``: the entries stacked; ``torch.tensor(x)``: the tensor itself."""
    source, node = place.source, place.node
    calls = [n for n in (node, *source.ancestors(node)) if isinstance(n, ast.Call) and called(n) in _BUILDERS]
    statement = source.statement(node)
    calls += [n for n in ast.walk(statement) if isinstance(n, ast.Call) and called(n) in _BUILDERS and n not in calls]
    for call in calls[:1]:
        for join in ("stack", "cat"):
            draft = Draft(source)
            if call.args and joined(draft, call, join):
                stay(draft, call.args[0])
                _drop_requires_grad(draft, call)
                yield draft
    whole = Draft(source)
    _all_stay(whole, source.scope(node))
    if not whole.empty:
        yield whole


def joined(draft: Draft, call: ast.Call, join: str = "stack") -> bool:
    """Put ``torch.stack`` in place of a call that builds a tensor from values; whether it could be."""
    content = call.args[0]
    torch = draft.module("torch")
    if isinstance(content, ast.List | ast.Tuple):
        if all(number(e) is not None for e in content.elts):
            return False
        draft.put(call, lambda: _stacked(draft, content, torch, join))
        return True
    if isinstance(content, ast.ListComp | ast.GeneratorExp):
        draft.put(call, lambda: f"{torch}.{join}({draft.text(content)})")
        return True
    if isinstance(content, ast.Name):
        made = draft.source.definition(content.id, draft.source.statement(call))
        listed = made is not None and isinstance(made.value, ast.List | ast.ListComp)
        listed = listed or any(
            called(n) == "append" and draft.source.segment(n.func).startswith(f"{content.id}.")
            for n in ast.walk(draft.source.scope(call))
            if isinstance(n, ast.Call)
        )
        if listed:
            if made is not None:
                stay(draft, made.value)
            for n in ast.walk(draft.source.scope(call)):
                if isinstance(n, ast.Call) and called(n) == "append" and n.args:
                    stay(draft, n)
            draft.put(call, lambda: f"{torch}.{join}({draft.text(content)})")
            return True
    draft.put(call, lambda: draft.operand(content))
    return True


def _stacked(draft: Draft, content: ast.List | ast.Tuple, torch: str, join: str) -> str:
    parts = []
    tensors = [e for e in content.elts if number(e) is None and not isinstance(e, ast.List | ast.Tuple)]
    for element in content.elts:
        if isinstance(element, ast.List | ast.Tuple):
            parts.append(_stacked(draft, element, torch, join))
        elif number(element) is not None:
            like = draft.operand(tensors[0]) if tensors else ""
            text = draft.source.segment(element)
            parts.append(f"{like}.new_tensor({text})" if like else f"{torch}.tensor({text})")
        else:
            parts.append(draft.text(element))
    return f"{torch}.{join}([{', '.join(parts)}])"


def _drop_requires_grad(draft: Draft, call: ast.Call) -> None:
    """``c.requires_grad = True`` below a rebuilt ``c`` goes."""
    source = draft.source
    statement = source.statement(call)
    if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
        return
    name = statement.targets[0].id
    for node in ast.walk(source.scope(call)):
        set_flag = isinstance(node, ast.Assign) and source.segment(node.targets[0]) == f"{name}.requires_grad"
        called_flag = isinstance(node, ast.Expr) and source.segment(node).startswith(f"{name}.requires_grad_(")
        if set_flag or called_flag:
            draft.cut(source.line_start(node.lineno), source.line_start((node.end_lineno or node.lineno) + 1))  # type: ignore[attr-defined]


def _passed(place: Place) -> Iterator[Draft]:
    """``x.detach()`` and ``x.data`` without it."""
    source = place.source
    statement = source.statement(place.node)
    found: list[ast.AST] = [place.node] if _is_cut(source, place.node) else []
    found += [n for n in ast.walk(statement) if _is_cut(source, n) and n not in found]
    for node in found:
        draft = Draft(source)
        inner = node.func.value if isinstance(node, ast.Call) else node.value  # type: ignore[attr-defined]
        draft.put(node, lambda d=draft, i=inner: d.operand(i))  # type: ignore[misc]
        yield draft
    if isinstance(statement, ast.Expr) and called(statement.value) == "detach_":
        draft = Draft(source)
        draft.cut(
            source.line_start(statement.lineno), source.line_start((statement.end_lineno or statement.lineno) + 1)
        )
        yield draft


def _is_cut(source: Source, node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and node.attr == "data" and isinstance(node.ctx, ast.Load):
        return not source.is_module(node.value)
    return (
        isinstance(node, ast.Call)
        and called(node) == "detach"
        and not node.args
        and isinstance(node.func, ast.Attribute)
    )


def _with_gradients(place: Place) -> Iterator[Draft]:
    """The ``with torch.no_grad():`` around a line, or the decorator above it, goes."""
    source = place.source
    for node in (place.node, *source.ancestors(place.node)):
        if isinstance(node, ast.With):
            kept = [i for i in node.items if not _switches_off(i.context_expr)]
            if len(kept) == len(node.items):
                continue
            draft = Draft(source)
            if kept:
                first, last = node.items[0], node.items[-1]
                start = source.start(first.context_expr)
                end = source.end(last.optional_vars or last.context_expr)
                texts = [
                    source.text[source.start(i.context_expr) : source.end(i.optional_vars or i.context_expr)]
                    for i in kept
                ]
                draft.cut(start, end, ", ".join(texts))
            else:
                _dedent(draft, node)
            yield draft
            return
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if _switches_off(decorator):
                    draft = Draft(source)
                    draft.cut(source.line_start(decorator.lineno), source.line_start((decorator.end_lineno or 0) + 1))
                    draft.unwrapped.append(node.name)
                    yield draft
                    return


def _switches_off(node: ast.expr) -> bool:
    name = called(node) or (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", ""))
    if name == "set_grad_enabled":
        return isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant) and node.args[0].value is False
    return name in ("no_grad", "inference_mode")


def _dedent(draft: Draft, node: ast.With) -> None:
    source = draft.source
    first = node.body[0]
    outer = source.indent(node)
    if first.lineno == node.lineno:  # with torch.no_grad(): y = f(x)
        draft.cut(source.start(node), source.start(first))
        return
    inner = source.indent(first)
    start, end = source.line_start(node.lineno), source.line_start((node.end_lineno or node.lineno) + 1)
    head = source.line_start(node.items[-1].context_expr.end_lineno + 1)  # type: ignore[operator]
    lines = source.text[head:end].splitlines(keepends=True)
    body = "".join(outer + line[len(inner) :] if line.startswith(inner) else line for line in lines)
    draft.cut(start, end, body)


def _out_of_place(place: Place) -> Iterator[Draft]:
    """``x.mul_(s)`` and ``x.data.add_(y)`` alone on a line: ``x = x * s``."""
    source = place.source
    statement = source.statement(place.node)
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return
    call = statement.value
    name = called(call)
    if not name.endswith("_") or name.endswith("__") or not isinstance(call.func, ast.Attribute):
        return
    receiver = call.func.value
    if isinstance(receiver, ast.Attribute) and receiver.attr == "data":
        receiver = receiver.value
    elif isinstance(receiver, ast.Call) and called(receiver) == "detach":
        receiver = receiver.func.value  # type: ignore[attr-defined]
    draft = Draft(source)
    target = source.segment(receiver)
    arguments = source.text[source.end(call.func) : source.end(call)]
    if name == "copy_":
        draft.put(statement, f"{target} = {arguments.strip('()')}")
    else:
        draft.put(statement, f"{target} = {target}.{name.rstrip('_')}{arguments}")
    yield draft


def _same_value(place: Place) -> Iterator[Draft]:
    """``nn.Parameter(x)`` of a value that is computed: the value itself."""
    source = place.source
    for node in ast.walk(source.statement(place.node)):
        if (
            isinstance(node, ast.Call)
            and called(node) in ("Parameter", "Variable", "requires_grad_")
            and not isinstance(source.parent(node), ast.Expr)
        ):
            inner = node.args[0] if node.args else None
            if called(node) == "requires_grad_" and isinstance(node.func, ast.Attribute):
                inner = node.func.value
            if inner is not None:
                draft = Draft(source)
                stay(draft, inner)
                draft.put(node, lambda d=draft, i=inner: d.operand(i))  # type: ignore[misc]
                yield draft


def _second_order(place: Place) -> Iterator[Draft]:
    """``torch.autograd.grad`` that keeps its graph."""
    source = place.source
    for node in (place.node, *ast.walk(source.statement(place.node))):
        if (
            isinstance(node, ast.Call)
            and called(node) in ("grad", "jacobian", "hessian", "jvp", "vjp")
            and not any(k.arg == "create_graph" for k in node.keywords)
        ):
            draft = Draft(source)
            text = source.segment(node)[:-1].rstrip().rstrip(",")
            draft.put(node, f"{text}, create_graph=True)")
            yield draft
            return


def _shifted(place: Place) -> Iterator[Draft]:
    """``x[int(a) : int(a) + n]``: the same cut, with the slope of ``x`` along it as its derivative in ``a``."""
    source = place.source
    for node in (place.node, *source.ancestors(place.node), *ast.walk(source.statement(place.node))):
        if not isinstance(node, ast.Subscript) or not isinstance(node.ctx, ast.Load):
            continue
        axes = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        bounds = [(i, _whole_of(axis.lower)) for i, axis in enumerate(axes) if isinstance(axis, ast.Slice)]
        after = next((i for i, axis in enumerate(axes) if isinstance(axis, ast.Constant) and axis.value is ...), None)
        terms = []
        draft = Draft(source)
        torch = draft.module("torch")
        array, cut = source.segment(node.value), source.segment(node)[len(source.segment(node.value)) :]
        for i, start in bounds:
            if start is None or any(not isinstance(axis, ast.Slice) for axis in axes[:i] if after is None):
                continue
            dim = i - len(axes) if after is not None and i > after else i
            at = draft.operand(start)
            terms.append(f"({at} - {at}.detach()) * {torch}.gradient({array}, dim={dim})[0]{cut}")
        if terms:
            whole = " + ".join([source.segment(node), *terms])
            alone = isinstance(source.parent(node), ast.Assign | ast.Return)
            draft.put(node, whole if alone else f"({whole})")
            yield draft
            return


def _whole_of(bound: ast.expr | None) -> ast.expr | None:
    """The value of which a bound is the whole part: ``a`` of ``int(a)``, ``a.int()``, ``int(a.item()) + 1``."""
    for node in ast.walk(bound) if bound is not None else ():
        inner: ast.expr | None = None
        if isinstance(node, ast.Call) and called(node) == "int":
            inner = node.args[0] if node.args else node.func.value if isinstance(node.func, ast.Attribute) else None
        while isinstance(inner, ast.Call) and called(inner) in (*_LEAVING, "round", "floor") and not inner.args:
            inner = inner.func.value if isinstance(inner.func, ast.Attribute) else None
        if isinstance(inner, ast.Call) and called(inner) in ("round", "floor") and len(inner.args) == 1:
            inner = inner.args[0]
        if inner is not None:
            return inner
    return None


def _rolled(place: Place) -> Iterator[Draft]:
    """``x.roll(int(a), d)``: the same entries, with the slope of ``x`` along ``d`` as their derivative in ``a``."""
    source = place.source
    for node in (place.node, *source.ancestors(place.node), *ast.walk(source.statement(place.node))):
        found = bound(source, node, "input", "shifts", "dims") if isinstance(node, ast.Call) else None
        if called(node) != "roll" or found is None or "dims" not in found:
            continue
        by = _whole_of(found["shifts"])
        if by is None:
            continue
        draft = Draft(source)
        at, whole, dim = draft.operand(by), source.segment(node), source.segment(found["dims"])
        slope = f"{draft.module('torch')}.gradient({source.segment(found['input'])}, dim={dim})[0]"
        shifted = f"{slope}.roll({source.segment(found['shifts'])}, {dim})"
        text = f"{whole} - ({at} - {at}.detach()) * {shifted}"
        draft.put(node, text if isinstance(source.parent(node), ast.Assign | ast.Return) else f"({text})")
        yield draft
        return


def _own_part(place: Place) -> Iterator[Draft]:
    """``all_gather(parts, x)``: the part that this process sent is ``x`` itself, with its gradient."""
    source = place.source
    statement = source.statement(place.node)
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and called(node) == "all_gather" and len(node.args) >= 2:
            draft = Draft(source)
            at = source.line_start((statement.end_lineno or statement.lineno) + 1)
            parts, own = source.segment(node.args[0]), source.segment(node.args[1])
            rank = f"{draft.module('torch')}.distributed.get_rank()"
            draft.cut(at, at, f"{source.indent(statement)}{parts}[{rank}] = {own}\n")
            yield draft
            return


TEMPLATES = {
    "roll": Template(
        "torch.gradient",
        "The entries keep their values; their derivative in the shift is the slope along the dimension of the shift.",
        ("cut.item", "cut.number", "control-flow"),
        ("roll", "shift", "delay", "int", "__int__", "__index__"),
        "late = sound.roll(int(delay), -1)",
        _rolled,
    ),
    "gathered": Template(
        "torch.distributed",
        "The part that this process sent keeps its gradient; every process does so with its own.",
        ("cut.operation",),
        ("all_gather", "gather", "distributed"),
        "torch.distributed.all_gather(parts, features)",
        _own_part,
    ),
    "crop": Template(
        "torch.gradient",
        "The cut keeps its values; its derivative in its bound is the slope along the dimension that is cut.",
        ("cut.item", "cut.number", "control-flow"),
        ("crop", "int", "__int__", "__index__", "slice", "item", "window"),
        "patch = image[:, int(top) : int(top) + 8]",
        _shifted,
    ),
    "number": Template(
        "the tensor itself",
        "The value stays a tensor: a Python number carries no gradient.",
        ("cut.item", "cut.number", "cut.control_flow", "control-flow"),
        ("item", "tolist", "float", "__float__", "__int__", "__index__", "__complex__"),
        "total = loss + 0.1 * penalty.item()",
        _kept,
    ),
    "numpy": Template(
        "the tensor itself",
        "The same functions of torch, so that the value does not leave the graph.",
        ("cut.numpy", "cut.rebuild", "cut.detach", "cut.item"),
        ("numpy", "__array__", "from_numpy"),
        "value = torch.from_numpy(x.detach().numpy()).log()",
        _rebuilt,
        SMALL,
    ),
    "stack": Template(
        "torch.stack",
        "Joins the tensors instead of building a new one from their values.",
        ("cut.rebuild", "cut.item", "cut.number"),
        (
            "tensor",
            "as_tensor",
            "asarray",
            "from_numpy",
            "FloatTensor",
            "new_tensor",
            "scalar_tensor",
            "rebuild",
            "item",
        ),
        "c = torch.tensor([a, b])",
        _rebuilt,
    ),
    "detach": Template(
        "the tensor itself",
        "The gradient passes where `.detach()` (or `.data`) stopped it.",
        ("cut.detach", "cut.data", "cut.item", "cut.numpy"),
        ("detach", "detach_", "data", "stop_gradient"),
        "target = features.detach() * weight",
        _passed,
    ),
    "no_grad": Template(
        "torch.enable_grad",
        "The lines run with gradients.",
        ("cut.no_grad", "cut.inference"),
        ("no_grad", "inference_mode", "set_grad_enabled"),
        "with torch.no_grad():\n    h = x @ w",
        _with_gradients,
    ),
    "in place": Template(
        "out of place",
        "The result is bound to the name instead of written over a value behind autograd's back.",
        ("cut.data", "cut.detach", "cut.no_grad", "cut.operation"),
        ("mul_", "add_", "sub_", "div_", "copy_", "clamp_", "in-place", "inplace"),
        "x.data.mul_(scale)",
        _out_of_place,
    ),
    "parameter": Template(
        "the tensor itself",
        "A new parameter is a new leaf: the value that it was made of gets no gradient. The value itself passes it on.",
        ("cut.rebuild", "cut.detach", "cut.data", "cut.operation"),
        ("Parameter", "Variable", "requires_grad_", "detach"),
        "w = torch.nn.Parameter(base * scale)",
        _same_value,
    ),
    "create_graph": Template(
        "torch.autograd.grad",
        "The graph of the inner gradient is kept, so that what is computed from it can be differentiated.",
        ("cut.create_graph",),
        ("grad", "create_graph", "penalty", "backward", "jacobian", "hessian"),
        "(inner,) = torch.autograd.grad(energy.sum(), x)",
        _second_order,
    ),
}
