"""Points where a value or a derivative is infinite: the input is kept away from them.

Where a ``torch.where`` hides the bad values already, the input is made harmless on the hidden side, which changes no
value at all; elsewhere the input is bounded.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import bound, called
from pullback.audit.remedy.template import ANY, SMALL, Place, Template, number

__all__ = ["TEMPLATES"]

_HARMLESS = {
    **dict.fromkeys("sqrt rsqrt log log2 log10 pow reciprocal div rdiv rtruediv std var norm".split(), "1.0"),
    **dict.fromkeys("exp expm1 log1p acos asin atanh tan sinh cosh square".split(), "0.0"),
    "logit": "0.5",
    "acosh": "2.0",
}
"""A value at which the function and its derivative are finite."""
_OUTER = {"acosh": "1 + 1e-6"}


def _input(place: Place, node: ast.AST) -> ast.expr | None:
    """Return what of an operation has to stay away from the bad point: the base, the denominator, the argument."""
    if isinstance(node, ast.BinOp):
        return node.right if isinstance(node.op, ast.Div | ast.FloorDiv) else node.left
    if not isinstance(node, ast.Call):
        return None
    found = bound(place.source, node, "input", "other")
    if found is None:
        return None
    return found.get("other") if called(node).strip("_") in ("div", "divide", "true_divide") else found["input"]


def _name(place: Place, node: ast.AST) -> str:
    if isinstance(node, ast.BinOp):
        return {ast.Div: "div", ast.Pow: "pow"}.get(type(node.op), "")
    return {"divide": "div", "true_divide": "div"}.get(called(node).strip("_"), called(node).strip("_"))


def _set(draft: Draft, place: Place, node: ast.AST, part: ast.expr, text: str) -> None:
    """Give the input of an operation another text; that of a method or an operator so that it stays one operand."""
    receiver = isinstance(node, ast.BinOp) or (isinstance(node, ast.Call) and getattr(node.func, "value", None) is part)
    draft.put(part, text if _is_operand(text) or not receiver else f"({text})")


def _is_operand(text: str) -> bool:
    tree = ast.parse(text, mode="eval").body
    return isinstance(tree, ast.Name | ast.Attribute | ast.Call | ast.Subscript) or text.startswith("(")


def _hidden(place: Place) -> Iterator[Draft]:
    """The input is replaced where ``torch.where`` throws the result away."""
    source, draft = place.source, Draft(place.source)
    torch = draft.module("torch")
    done = False
    for node in (place.node, *place.alike):
        part, harmless = _input(place, node), _HARMLESS.get(_name(place, node))
        if part is None or harmless is None:
            continue
        found = _where_around(place, node)
        if found is None:
            continue
        condition, first = found
        if condition.lineno > getattr(node, "lineno", 0) and any(
            isinstance(n, ast.Name)
            and (d := source.definition(n.id, source.statement(condition))) is not None
            and d.lineno >= source.statement(node).lineno
            for n in ast.walk(condition)
        ):
            continue  # the condition is not known yet where the input is made
        sides = (draft.text(part), harmless) if first else (harmless, draft.text(part))
        text = f"{torch}.where({source.segment(condition)}, {sides[0]}, {sides[1]})"
        _set(draft, place, node, part, text)
        done = True
    if done:
        yield draft


def _where_around(place: Place, node: ast.AST) -> tuple[ast.expr, bool] | None:
    """The condition of the ``where`` that a result goes to, and whether it is taken where that holds."""
    source = place.source
    readers: list[ast.AST] = [node]
    statement = source.statement(node)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        readers += source.loads(statement.targets[0].id, statement)
    for reader in readers:
        below = reader
        for above in source.ancestors(reader):
            if isinstance(above, ast.stmt):
                break
            if isinstance(above, ast.Call) and called(above) == "where":
                found = bound(source, above, "condition", "input", "other")
                if found and "other" in found and below in (found["input"], found["other"]):
                    return found["condition"], below is found["input"]
            if isinstance(above, ast.Call) and called(above) == "masked_fill":
                found = bound(source, above, "input", "mask", "value")
                if found and "value" in found and below is found["input"]:
                    return found["mask"], False
            below = above
    return None


def _bounded(below: str | None, above: str | None = None) -> Callable[[Place], Iterator[Draft]]:
    """Make the rewriting that bounds the input from below, from above, or both."""

    def rewrite(place: Place) -> Iterator[Draft]:
        draft = Draft(place.source)
        for node in (place.node, *place.alike):
            part = _input(place, node)
            if part is None or number(part) is not None:
                continue
            if below is not None and above is not None:
                words = f"clamp({below}, {above})"
            else:
                words = f"clamp_min({below})" if below is not None else f"clamp_max({above})"
            draft.put(part, lambda p=part, w=words: f"{_operand_of(draft, p)}.{w}")  # type: ignore[misc]
        if not draft.empty:
            yield draft

    return rewrite


def _operand_of(draft: Draft, node: ast.expr) -> str:
    text = draft.old(node)
    return text if _is_operand(text) and not text.startswith("(") else f"({text})"


def _divided(place: Place) -> Iterator[Draft]:
    """A denominator that is 0 is replaced by 1."""
    source = place.source
    draft = Draft(source)
    for node in (place.node, *place.alike):
        part = _input(place, node)
        if part is None or number(part) is not None or _name(place, node) != "div":
            continue
        torch, text = draft.module("torch"), source.segment(part)
        zero = text if _is_operand(text) else f"({text})"
        draft.put(part, f"{torch}.where({zero} == 0, 1.0, {text})")
    if not draft.empty:
        yield draft
    bounded = Draft(source)
    part = _input(place, place.node)
    if part is not None and number(part) is None and _name(place, place.node) == "div":
        bounded.put(part, lambda: f"{_operand_of(bounded, part)}.clamp_min(1e-12)")
        yield bounded


def _log_of(place: Place) -> Iterator[Draft]:
    """``log(softmax(x))``, ``log(sigmoid(x))``, ``log(exp(x).sum())``: one stable function."""
    source = place.source
    for node in (place.node, *source.ancestors(place.node)):
        if isinstance(node, ast.stmt):
            return
        if not isinstance(node, ast.Call) or called(node) != "log":
            continue
        inner = _input(place, node)
        if not isinstance(inner, ast.Call):
            return
        draft = Draft(source)
        found = bound(source, inner, "input", "dim", "keepdim", "dtype")
        if found is None:
            return
        words = [source.segment(found["input"])]
        dim = [f"dim={source.segment(found['dim'])}"] if "dim" in found else []
        if called(inner) == "softmax" and dim:
            draft.put(node, f"{draft.functional()}.log_softmax({', '.join(words + dim)})")
            yield draft
        elif called(inner) == "sigmoid":
            draft.put(node, f"{draft.functional()}.logsigmoid({words[0]})")
            yield draft
        elif called(inner) == "sum" and isinstance(found["input"], ast.Call) and called(found["input"]) == "exp":
            powers = bound(source, found["input"], "input")
            if powers is not None:
                keep = [f"keepdim={source.segment(found['keepdim'])}"] if "keepdim" in found else []
                x = source.segment(powers["input"])
                all_of = [x, *dim, *keep] if dim else [f"({x}).flatten()", "dim=0"]
                draft.put(node, f"{draft.module('torch')}.logsumexp({', '.join(all_of)})")
                yield draft
        return


def _softplus(place: Place) -> Iterator[Draft]:
    """``log(1 + exp(x))``."""
    source = place.source
    for node in (place.node, *source.ancestors(place.node)):
        if isinstance(node, ast.stmt):
            return
        if isinstance(node, ast.Call) and called(node) in ("log", "log1p"):
            inner = _input(place, node)
            if called(node) == "log" and isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add):
                one = [side for side in (inner.left, inner.right) if number(side) == 1]
                other = [side for side in (inner.left, inner.right) if number(side) != 1]
                inner = other[0] if len(one) == 1 else None
            if isinstance(inner, ast.Call) and called(inner) == "exp":
                found = bound(source, inner, "input")
                if found is not None:
                    draft = Draft(source)
                    draft.put(node, f"{draft.functional()}.softplus({source.segment(found['input'])})")
                    yield draft
            return


def _polar(place: Place) -> Iterator[Draft]:
    """``atan2(y, x)`` at the origin: ``atan2(0, 1)``, which is the same angle."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("atan2", "arctan2"):
        return
    found = bound(source, node, "input", "other")
    if found is None or "other" not in found:
        return
    draft = Draft(source)
    y, x = draft.operand(found["input"]), draft.operand(found["other"])
    draft.put(
        found["other"],
        f"{draft.module('torch')}.where(({y} == 0) & ({x} == 0), 1.0, {source.segment(found['other'])})",
    )
    yield draft


def _length(place: Place) -> Iterator[Draft]:
    """A Euclidean norm as the root of a sum that is never zero."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("norm", "vector_norm"):
        return
    order = (
        ("input", "ord", "dim", "keepdim")
        if called(node) == "vector_norm" or _in_linalg(node)
        else ("input", "p", "dim", "keepdim")
    )
    found = bound(source, node, *order)
    if found is None or set(found) - set(order):
        return
    power = found.get("p", found.get("ord"))
    euclidean = (
        power is None or number(power) == 2 or (isinstance(power, ast.Constant) and power.value in (None, "fro"))
    )
    if not euclidean:
        return
    draft = Draft(source)
    words = [f"{n}={source.segment(found[n])}" for n in ("dim", "keepdim") if n in found]
    draft.put(node, lambda: f"({draft.operand(found['input'])}.square().sum({', '.join(words)}) + 1e-12).sqrt()")
    yield draft


def _in_linalg(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and "linalg" in ast.dump(node.func.value)


def _spread(place: Place) -> Iterator[Draft]:
    """``std`` of equal values, and of a single one."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("std", "var"):
        return
    draft = Draft(source)
    call = source.segment(node)
    torch = draft.module("torch")
    if called(node) == "std":
        at = source.start(node.func) + len(source.segment(node.func)) - 3 - source.start(node)
        draft.put(node, f"{torch}.sqrt({call[:at]}var{call[at + 3 :]} + 1e-12)")
        yield draft
    if not any(k.arg in ("unbiased", "correction") for k in node.keywords):
        single = Draft(source)
        text = call[:-1].rstrip().rstrip(",")
        single.put(node, f"{text}{'' if text.endswith('(') else ', '}correction=0)")
        yield single


def _decomposed(place: Place) -> Iterator[Draft]:
    """``svd`` and ``eigh`` with equal values: the vectors left out where they are not used, else values set apart."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("svd", "eigh", "eig"):
        return
    found = bound(source, node, "A", "UPLO")
    if found is None:
        found = bound(source, node, "input", "some")
    if found is None:
        return
    matrix = found.get("A", found.get("input"))
    parent = source.parent(node)
    only = {"svd": (1, "S"), "eigh": (0, "eigenvalues")}.get(called(node))
    draft = Draft(source)
    values = f"{draft.module('torch')}.linalg.{'svdvals' if called(node) == 'svd' else 'eigvalsh'}"
    assert matrix is not None
    indexed = isinstance(parent, ast.Subscript) and only is not None and number(parent.slice) == only[0]
    if indexed or (isinstance(parent, ast.Attribute) and only is not None and parent.attr == only[1]):
        assert parent is not None
        draft.put(parent, f"{values}({source.segment(matrix)})")
        yield draft
    elif only and isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Tuple):
        targets = parent.targets[0].elts
        unread = [
            isinstance(t, ast.Name) and not source.loads(t.id, parent) for i, t in enumerate(targets) if i != only[0]
        ]
        if all(unread) and only[0] < len(targets):
            draft.put(parent, f"{source.segment(targets[only[0]])} = {values}({source.segment(matrix)})")
            yield draft
    apart = Draft(source)
    torch = apart.module("torch")
    text = apart.operand(matrix)
    size = f"min({text}.shape[-2:])" if called(node) == "svd" else f"{text}.shape[-1]"
    if called(node) == "eigh":
        ladder = f"{torch}.diag({torch}.linspace(0, 1e-4, {size}, dtype={text}.dtype))"
    else:
        ladder = (
            f"1e-4 * {torch}.eye(*{text}.shape[-2:], dtype={text}.dtype) * {torch}.linspace(1, 2, {text}.shape[-1])"
        )
    apart.put(matrix, f"{source.segment(matrix)} + {ladder}")
    yield apart


def _distances(place: Place) -> Iterator[Draft]:
    """``cdist`` of points that coincide."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) != "cdist":
        return
    found = bound(source, node, "x1", "x2", "p")
    if (
        found is None
        or "x2" not in found
        or set(found) - {"x1", "x2", "p"}
        or number(found.get("p", ast.Constant(2))) != 2
    ):
        return
    draft = Draft(source)
    a, b = draft.operand(found["x1"]), draft.operand(found["x2"])
    draft.put(node, f"(({a}.unsqueeze(-2) - {b}.unsqueeze(-3)).square().sum(-1) + 1e-12).sqrt()")
    yield draft


def _masked_row(place: Place) -> Iterator[Draft]:
    """A softmax over a row that is masked whole: the least finite number in place of minus infinity."""
    node, source = place.node, place.source
    calls = [node] if isinstance(node, ast.Call) and called(node) in ("softmax", "log_softmax") else []
    if not calls:
        # The finding may name what reads the row's NaN: look for the softmax above it in the same function.
        calls = [
            n
            for n in ast.walk(source.scope(node))
            if isinstance(n, ast.Call) and called(n) in ("softmax", "log_softmax") and n.lineno <= node.lineno  # type: ignore[attr-defined]
        ]
    for call in calls:
        found = bound(source, call, "input", "dim", "dtype")
        if found is None:
            continue
        x = found["input"]
        draft = Draft(source)
        text = source.segment(x)
        simple = isinstance(x, ast.Name | ast.Attribute | ast.Subscript)
        least = f"{draft.module('torch')}.finfo({text}.dtype).min" if simple else "-1e30"
        draft.put(x, lambda d=draft, x=x, least=least: f"{_operand_of(d, x)}.clamp_min({least})")  # type: ignore[misc]
        yield draft


_NAN = ("nan", "exploding")


def _determinant(place: Place) -> Iterator[Draft]:
    """``logdet(a)`` and ``log(det(a))``: the logarithm of the absolute determinant, without forming it."""
    source = place.source
    for node in (place.node, *place.alike):
        outer = node if isinstance(node, ast.Call) and called(node) in ("logdet", "log") else None
        inner = bound(source, outer, "input") if outer is not None else None
        if outer is None or inner is None:
            continue
        matrix = inner["input"]
        if called(outer) == "log":
            while isinstance(matrix, ast.Call) and called(matrix) == "abs":
                matrix = (bound(source, matrix, "input") or {"input": matrix.func})["input"]
            found = bound(source, matrix, "input") if isinstance(matrix, ast.Call) and called(matrix) == "det" else None
            if found is None:
                continue
            matrix = found["input"]
        draft = Draft(source)
        draft.put(outer, f"{draft.module('torch')}.linalg.slogdet({source.segment(matrix)})[1]")
        yield draft


def _other_dimension(place: Place) -> Iterator[Draft]:
    """A normalisation over a dimension of one entry: over the one in front of it."""
    source = place.source
    node = place.node
    if not isinstance(node, ast.Call) or called(node) not in ("softmax", "log_softmax", "normalize"):
        return
    names = ("input", "p", "dim") if called(node) == "normalize" else ("input", "dim")
    found = bound(source, node, *names)
    dim = None if found is None else found.get("dim")
    given = number(dim)
    if dim is None or not isinstance(given, int):
        return
    for other in (given - 1, given + 1):
        draft = Draft(source)
        draft.put(dim, str(other))
        yield draft


TEMPLATES = {
    "one entry": Template(
        "torch.softmax",
        "It is taken over the dimension beside the one that has a single entry, where it was constant.",
        ("zero",),
        ("softmax", "log_softmax", "normalize"),
        "weights = torch.softmax(scores, dim=-1)",
        _other_dimension,
        ANY,
    ),
    "determinant": Template(
        "torch.linalg.slogdet",
        "The logarithm of the absolute determinant, which is finite where the determinant is negative, too small or "
        "too large for a number.",
        _NAN,
        ("logdet", "det", "log"),
        "volume = torch.logdet(matrix)",
        _determinant,
        ANY,
    ),
    "hidden by where": Template(
        "torch.where",
        "The input is harmless where the result is thrown away: `where` multiplies the gradient of that side by zero, "
        "and zero times infinity is NaN.",
        _NAN,
        (*_HARMLESS, "where", "masked_fill", "nan"),
        "value = torch.where(x > 0, torch.log(x), 0.0)",
        _hidden,
    ),
    "stable log": Template(
        "torch.nn.functional.log_softmax",
        "The logarithm and what it is taken of as one function that neither overflows nor meets log(0).",
        _NAN,
        ("log", "exp", "softmax", "sigmoid", "logsumexp", "nan"),
        "value = torch.log(torch.softmax(x, dim=-1))",
        _log_of,
        ANY,
    ),
    "softplus": Template(
        "torch.nn.functional.softplus",
        "log(1 + exp(x)) as one function that does not overflow.",
        _NAN,
        ("exp", "log", "log1p", "softplus"),
        "value = torch.log(1 + torch.exp(x))",
        _softplus,
        ANY,
    ),
    "root": Template(
        "torch.Tensor.clamp_min",
        "The input stays off zero, where the derivative is infinite.",
        _NAN,
        ("sqrt", "rsqrt", "pow", "reciprocal"),
        "value = torch.sqrt(x)",
        _bounded("1e-12"),
        SMALL,
    ),
    "logarithm": Template(
        "torch.Tensor.clamp_min",
        "The input stays off zero, where the logarithm is infinite.",
        _NAN,
        ("log", "log2", "log10", "log1p", "nan"),
        "value = p.log()",
        _bounded("1e-12"),
        SMALL,
    ),
    "exponential": Template(
        "torch.Tensor.clamp_max",
        "The input stays below the point from which the exponential overflows.",
        _NAN,
        ("exp", "expm1", "sinh", "cosh"),
        "value = torch.exp(x)",
        _bounded(None, "80.0"),
        SMALL,
    ),
    "arc": Template(
        "torch.Tensor.clamp",
        "The input stays inside of (-1, 1), at whose ends the derivative is infinite.",
        _NAN,
        ("acos", "asin", "arccos", "arcsin", "atanh", "arctanh"),
        "angle = torch.acos(cosine)",
        _bounded("-1 + 1e-6", "1 - 1e-6"),
        SMALL,
    ),
    "logit": Template(
        "torch.Tensor.clamp",
        "The input stays inside of (0, 1), at whose ends the logit is infinite.",
        _NAN,
        ("logit",),
        "x = torch.logit(p)",
        _bounded("1e-6", "1 - 1e-6"),
        ANY,
    ),
    "acosh": Template(
        "torch.Tensor.clamp_min",
        "The input stays above 1, where the derivative is infinite.",
        _NAN,
        ("acosh", "arccosh"),
        "d = torch.acosh(x)",
        _bounded("1 + 1e-6"),
        SMALL,
    ),
    "atan2": Template(
        "torch.where",
        "At the origin the angle is that of (1, 0), which is the same value, with a finite derivative.",
        (*_NAN, "zero"),
        ("atan2", "arctan2"),
        "angle = torch.atan2(y, x)",
        _polar,
    ),
    "division": Template(
        "torch.where",
        "A denominator that is zero becomes one: zero over it stays zero, and the derivative is finite.",
        _NAN,
        ("div", "divide", "true_divide", "truediv", "rdiv", "rtruediv", "nan"),
        "share = count / total",
        _divided,
        SMALL,
    ),
    "norm": Template(
        "torch.sqrt",
        "The root of a sum that is never zero: at the origin the gradient is zero.",
        (*_NAN, "kink"),
        ("norm", "vector_norm", "hypot", "normalize"),
        "length = v.norm(dim=-1, keepdim=True)",
        _length,
        SMALL,
    ),
    "spread": Template(
        "torch.var",
        "The root of a variance that is never zero; of a single value without Bessel's correction.",
        (*_NAN, "zero", "kink"),
        ("std", "var"),
        "scale = h.std(dim=0)",
        _spread,
        SMALL,
    ),
    "decomposition": Template(
        "torch.linalg.eigvalsh",
        "Values alone have a gradient where they are equal; vectors need them set apart.",
        _NAN,
        ("svd", "eigh", "eig"),
        "values, _ = torch.linalg.eigh(matrix)",
        _decomposed,
        SMALL,
    ),
    "cdist": Template(
        "torch.sqrt",
        "Distances as the root of a sum that is never zero.",
        (*_NAN, "kink", "zero"),
        ("cdist", "pairwise_distance"),
        "distances = torch.cdist(a, b)",
        _distances,
        SMALL,
    ),
    "masked row": Template(
        "torch.Tensor.clamp_min",
        "A row that is masked whole has a uniform softmax instead of NaN; the other rows keep their values.",
        _NAN,
        ("softmax", "log_softmax", "masked_fill", "einsum", "matmul", "bmm", "mul", "nan"),
        'weights = scores.masked_fill(mask, float("-inf")).softmax(-1)',
        _masked_row,
    ),
}
