"""Training: optimizers that hold what was replaced, gradients that are cleared, sums that cancel, size of steps."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import Source, bound, called
from pullback.audit.remedy.template import ANY, EXACT, Place, Template

__all__ = ["TEMPLATES"]


def _optimizer_last(place: Place) -> Iterator[Draft]:
    """An optimizer that was built before the layers it is to train: below the last line that replaces them."""
    source = place.source
    for statement, trained in _optimizers(place):
        body = _block(source, statement)
        name = source.segment(statement.targets[0])
        last = None
        for later in body[body.index(statement) + 1 :]:
            if any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(later)):
                break
            roots = {_root(t) for t in later.targets} if isinstance(later, ast.Assign) else set()
            if isinstance(later, ast.Expr) and isinstance(later.value, ast.Call):
                roots = {_root(later.value.func), *(_root(a) for a in later.value.args)}
            if roots & trained:
                last = later
        if last is None:
            continue
        draft = Draft(source)
        start, end = source.line_start(statement.lineno), source.line_start((statement.end_lineno or 0) + 1)
        at = source.line_start((last.end_lineno or last.lineno) + 1)
        draft.cut(start, end)
        draft.cut(at, at, source.text[start:end])
        yield draft


def _optimizers(place: Place) -> Iterator[tuple[ast.Assign, set[str]]]:
    """The statements of the file that build an optimizer, that of the finding first, with the names that they train."""
    source = place.source
    here = source.statement(place.node)
    for statement in [here, *ast.walk(source.tree)]:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
            continue
        dotted = source.segment(statement.value.func)
        if statement is not here and "optim" not in dotted:
            continue
        parts = [*statement.value.args, *statement.value.keywords]
        names = {n.id for a in parts for n in ast.walk(a) if isinstance(n, ast.Name)}
        if names:
            yield statement, names


def _block(source: Source, statement: ast.stmt) -> list[ast.stmt]:
    parent = source.parent(statement)
    blocks = [getattr(parent, field, None) for field in ("body", "orelse", "finalbody")]
    return next((b for b in blocks if isinstance(b, list) and statement in b), [statement])


def _same_leaf(place: Place) -> Iterator[Draft]:
    """A trained tensor that is made anew: its values are written into the one that the optimizer holds."""
    source = place.source
    for statement, trained in _optimizers(place):
        draft = Draft(source)
        for later in ast.walk(source.scope(statement)):
            if not isinstance(later, ast.Assign) or later.lineno <= statement.lineno or len(later.targets) != 1:
                continue
            target, value = later.targets[0], later.value
            if _root(target) not in trained or not isinstance(value, ast.Call):
                continue
            inner = _made_from(value)
            if inner is not None:
                draft.put(later, f"{source.segment(target)}.data.copy_({source.segment(inner)})")
        if not draft.empty:
            yield draft


def _made_from(call: ast.Call) -> ast.expr | None:
    """What a new leaf is made of: of ``x.requires_grad_()`` and ``nn.Parameter(x)`` it is ``x``."""
    if called(call) == "requires_grad_" and isinstance(call.func, ast.Attribute):
        return call.func.value
    return call.args[0] if called(call) == "Parameter" and call.args else None


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _registered(place: Place) -> Iterator[Draft]:
    """A plain list of layers, or a dictionary, as an attribute of a module: the container that registers them."""
    source = place.source
    statement = source.statement(place.node)
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return
    of_names = isinstance(statement.value, ast.Dict | ast.DictComp) or called(statement.value) == "dict"
    value = statement.value
    for container in ("ModuleDict", "ParameterDict") if of_names else ("ModuleList", "ParameterList"):
        draft = Draft(source)
        draft.put(value, lambda d=draft, c=container: f"{d.module('torch')}.nn.{c}({d.old(value)})")  # type: ignore[misc]
        yield draft


def _cleared_first(place: Place) -> Iterator[Draft]:
    """``zero_grad`` between ``backward`` and ``step``: above ``backward``."""
    source = place.source
    body = _block(source, source.statement(place.node))
    names = [called(s.value) if isinstance(s, ast.Expr) else "" for s in body]
    if "backward" not in names or "zero_grad" not in names[names.index("backward") :]:
        return
    first, clear = names.index("backward"), names.index("zero_grad", names.index("backward"))
    if "step" not in names[clear:]:
        return
    draft = Draft(source)
    start, end = source.line_start(body[clear].lineno), source.line_start((body[clear].end_lineno or 0) + 1)
    at = source.line_start(body[first].lineno)
    draft.cut(at, at, source.text[start:end])
    draft.cut(start, end)
    yield draft


def _kept_apart(place: Place) -> Iterator[Draft]:
    """A difference whose two sides carry the same gradient: one of them without it."""
    source = place.source
    for node in (place.node, *ast.walk(source.statement(place.node))):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            draft = Draft(source)
            draft.put(node.right, lambda d=draft, n=node: f"{_closed(d, n.right)}.detach()")  # type: ignore[misc]
            yield draft


def _closed(draft: Draft, node: ast.expr) -> str:
    text = draft.old(node)
    return text if isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript) else f"({text})"


def _clipped(place: Place) -> Iterator[Draft]:
    """Bound the gradient between ``backward`` and ``step``."""
    source = place.source
    body = _block(source, source.statement(place.node))
    for statement in body:
        if isinstance(statement, ast.Expr) and called(statement.value) == "step":
            name = source.segment(statement.value.func.value)  # type: ignore[attr-defined]
            draft = Draft(source)
            at = source.line_start(statement.lineno)
            parameters = f'[p for group in {name}.param_groups for p in group["params"]]'
            line = f"{draft.module('torch')}.nn.utils.clip_grad_norm_({parameters}, 1.0)\n"
            draft.cut(at, at, source.indent(statement) + line)
            yield draft
            return


def _shortened(place: Place) -> Iterator[Draft]:
    """``h = f(h)`` becomes ``h = h + f(h)``: a path whose derivative stays near one."""
    source = place.source
    statement = source.statement(place.node)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        name = statement.targets[0].id
        if any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(statement.value)):
            draft = Draft(source)
            draft.put(statement.value, lambda: f"{name} + {draft.old(statement.value)}")
            yield draft


def _smoothed(place: Place) -> Iterator[Draft]:
    """``torch.autograd.grad(f(x), x)`` of a chaotic ``f``: the gradient of its smoothed form."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) != "grad" or len(node.args) != 2:
        return
    value, x = node.args
    if (
        not isinstance(value, ast.Call)
        or not isinstance(x, ast.Name)
        or not isinstance(source.parent(node), ast.Assign)
    ):
        return
    draft = Draft(source)
    for name in ast.walk(value):
        if isinstance(name, ast.Name) and name.id == x.id:
            draft.put(name, f'p["{x.id}"]')
    block = draft.block("gradients.evolution_gradient")
    draft.put(
        node,
        lambda: (
            f'({block}(lambda p: {draft.text(value)}, {{"{x.id}": {x.id}.detach()}}, smoothing=0.1, pairs=16, '
            f"generator={draft.module('torch')}.Generator())"
            f'.gradient["{x.id}"],)'
        ),
    )
    yield draft


def _straight_through(place: Place) -> Iterator[Draft]:
    """``Quantise.apply(x)``: its value, the gradient of ``x``."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) != "apply":
        return
    found = bound(source, node, "function", "input")
    if found is None or set(found) != {"function", "input"}:
        return
    draft = Draft(source)
    x = source.segment(found["input"])
    draft.put(node, lambda: f"{draft.block('discrete.straight_through')}({draft.old(node)}.detach(), {x})")
    yield draft


def _solved(place: Place) -> Iterator[Draft]:
    """``fsolve`` of an equation: the same solver, differentiated by the equation."""
    node, source = place.node, place.source
    if (
        not isinstance(node, ast.Call)
        or called(node) not in ("fsolve", "root", "newton", "brentq")
        or len(node.args) < 2
    ):
        return
    draft = Draft(source)
    function, start = source.segment(node.args[0]), source.segment(node.args[1])
    parameters = next((source.segment(k.value) for k in node.keywords if k.arg == "args"), "")
    inside = parameters.strip("()").rstrip(",")
    more = f", {inside}" if inside else ""
    block = draft.block("implicit.custom_root")
    draft.put(
        node,
        f"{block}({function})(lambda y{more}: {draft.module('torch')}.as_tensor("
        f"{source.segment(node.func)}({function}, y{more and f', args=({inside},)'}), dtype=y.dtype))({start}{more})",
    )
    yield draft


def _proximal(place: Place) -> Iterator[Draft]:
    """``loss + c * w.abs().sum()`` stepped by SGD: the loss alone, by an optimizer that knows the penalty."""
    source = place.source
    statement = source.statement(place.node)
    if not any(isinstance(n, ast.Call) and called(n) in ("abs", "norm") for n in ast.walk(statement)):
        return
    descents = [n for n in ast.walk(source.tree) if isinstance(n, ast.Call) and called(n) == "SGD"]
    for sum_ in (n for n in ast.walk(statement) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add)):
        weight = _penalty(source, sum_.right)
        if weight is None or any(k.arg not in ("params", "lr", "momentum") for d in descents for k in d.keywords):
            continue
        draft = Draft(source)
        draft.put(sum_, lambda d=draft, s=sum_: d.old(s.left))  # type: ignore[misc]
        for descent in descents:
            block = draft.block("gradients.ProximalSGD")
            draft.put(
                descent, f"{block}({source.segment(descent).split('(', 1)[1][:-1].rstrip(', ')}, weight={weight})"
            )
        yield draft


def _penalty(source: Source, term: ast.expr) -> str | None:
    """What an L1 penalty is multiplied by; ``None`` for another term."""
    if not any(isinstance(n, ast.Call) and called(n) in ("abs", "norm") for n in ast.walk(term)):
        return None
    if isinstance(term, ast.BinOp) and isinstance(term.op, ast.Mult):
        plain = [side for side in (term.left, term.right) if isinstance(side, ast.Constant | ast.Name | ast.Attribute)]
        return source.segment(plain[0]) if plain else None
    return "1.0" if isinstance(term, ast.Call) else None


TEMPLATES = {
    "penalty": Template(
        "gradients.ProximalSGD",
        "The penalty is taken by its proximal operator, which makes the weights that it removes exactly 0. Parameters "
        "without penalty go in a group of their own, with weight=0.",
        ("kink.penalty",),
        ("l1", "l1_penalty", "lasso", "penalty", "sparsity", "soft_threshold"),
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nloss = loss + 0.01 * weight.abs().sum()",
        _proximal,
        ANY,
    ),
    "optimizer": Template(
        "torch.optim",
        "The optimizer is built when all layers are in place, so that it holds the parameters that are used.",
        ("cut.optimizer", "cut.unstepped"),
        ("optimizer", "step", "SGD", "Adam", "AdamW", "RMSprop", "stale", "Parameter"),
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nmodel.head = torch.nn.Linear(4, 2)",
        _optimizer_last,
        ANY,
    ),
    "same leaf": Template(
        "torch.Tensor.copy_",
        "New values are written into the tensor that the optimizer holds, instead of making another one.",
        ("cut.optimizer", "cut.unstepped"),
        ("optimizer", "requires_grad_", "Parameter", "reset"),
        "optimizer = torch.optim.SGD([angles], lr=0.1)\nangles = torch.randn(2).requires_grad_()",
        _same_leaf,
        ANY,
    ),
    "registered": Template(
        "torch.nn.ModuleList",
        "Layers in a module's list are among its parameters(), so that the optimizer steps them.",
        ("cut.unregistered",),
        ("ModuleList", "ModuleDict", "ParameterList", "list", "register", "parameters"),
        "self.blocks = [torch.nn.Linear(4, 4) for _ in range(3)]",
        _registered,
    ),
    "zero_grad": Template(
        "torch.optim.Optimizer.zero_grad",
        "The gradients of the last step are cleared before this step's are computed, not after.",
        ("unused.gradient",),
        ("zero_grad", "step", "SGD.step", "Adam.step"),
        "loss.backward()\noptimizer.zero_grad()\noptimizer.step()",
        _cleared_first,
        ANY,
    ),
    "cancels": Template(
        "torch.Tensor.detach",
        "The two sides of the difference carry the same gradient, which cancels: one of them goes without.",
        ("zero.cancels",),
        ("sub", "cancels", "residual", "rsub"),
        "residual = residual - quantised",
        _kept_apart,
        EXACT,
    ),
    "straight through": Template(
        "discrete.straight_through",
        "The function's value forwards, the gradient of its input backwards.",
        ("zero.custom", "cut.custom", "cut.operation", "biased.custom"),
        ("straight_through", "ste", "function", "custom", "apply"),
        "codes = Quantise.apply(x)",
        _straight_through,
    ),
    "clip": Template(
        "torch.nn.utils.clip_grad_norm_",
        "The gradient's norm is bounded before the step.",
        ("exploding",),
        ("exploding", "clip_grad_norm_", "gradient", "step"),
        "loss.backward()\noptimizer.step()",
        _clipped,
        ANY,
    ),
    "residual": Template(
        "a residual connection",
        "The derivative of one step stays near one, so that products of many neither vanish nor explode.",
        (),
        ("vanishing", "exploding", "recurrent", "rnn", "depth"),
        "h = torch.tanh(h @ w)",
        _shortened,
        ANY,
    ),
    "smoothed": Template(
        "gradients.evolution_gradient",
        "Beyond the horizon of a chaotic (or biased) step the gradient of the smoothed loss is the useful one.",
        ("chaotic", "biased"),
        ("chaos", "chaotic", "lyapunov", "horizon", "smoothed", "evolution", "biased"),
        "(gradient,) = torch.autograd.grad(rollout(x), x)",
        _smoothed,
        ANY,
    ),
    "solver": Template(
        "implicit.custom_root",
        "The solver stays what it is; its result is differentiated by the equation that it satisfies.",
        (),
        ("scipy", "fsolve", "root", "solve", "newton", "brentq", "optimize", "numpy"),
        "y = scipy.optimize.fsolve(residual, start, args=(a,))",
        _solved,
    ),
}
