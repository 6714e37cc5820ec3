"""Positions: argmax, sort, topk, draws; what reads a position is rewritten with it.

A position ``i`` of ``n`` becomes its one-hot row ``w`` (hard forward, soft backward), an order becomes the permutation
matrix of such rows. Then ``table[i]`` is ``lookup(w, table)``, ``one_hot(i, n)`` is ``w``, ``i == label`` is the entry
of ``w`` at the label, and a position used as a number is ``lookup(w, arange(n))``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import bound, called
from pullback.audit.remedy.template import ANY, Place, Template, number

__all__ = ["TEMPLATES"]

_PLAIN = frozenset({"item", "long", "int", "detach", "cpu", "contiguous", "clone", "tolist"})
_NUMBERS = frozenset({"float", "double", "half", "bfloat16", "to", "type", "type_as"})


class _Position:
    """Rewrites what reads a position whose one-hot rows ``draft`` computes at ``node``.

    Args:
        draft: takes the changes.
        size: text of ``arange(n)`` from the text of the rows.
        many: whether the position is an order (a list of positions along the last dimension), not a single choice.
    """

    def __init__(self, draft: Draft, many: bool) -> None:
        self.draft = draft
        self.many = many
        self.source = draft.source

    def spread(self, node: ast.expr) -> bool:
        """Rewrite the readers of the expression ``node``; whether all of them are of a known kind."""
        parent = self.source.parent(node)
        draft = self.draft
        if isinstance(parent, ast.Assign) and parent.value is node:
            return all(self._names(target, parent) for target in parent.targets)
        above = self.source.parent(parent) if parent is not None else None
        if isinstance(parent, ast.Attribute) and isinstance(above, ast.Call) and above.func is parent:
            return self._method(node, parent, above)
        if isinstance(parent, ast.Subscript):
            return self._subscript(node, parent)
        if isinstance(parent, ast.Tuple) and isinstance(above, ast.Subscript):
            return self._indexed_pair(node, parent, above)
        if isinstance(parent, ast.Compare) and len(parent.ops) == 1:
            return self._compared(node, parent)
        if isinstance(parent, ast.Call) and node in parent.args:
            return self._argument(node, parent)
        if isinstance(parent, ast.BinOp):
            draft.put(node, self._as_number(node))
            return True
        return False

    def _as_number(self, node: ast.expr):  # type: ignore[no-untyped-def]
        """The position as a number: the mean of the positions under the rows."""
        draft = self.draft
        torch, lookup = draft.module("torch"), draft.block("discrete.lookup")
        before = draft._new.get(node)

        def text() -> str:
            rows = before() if before is not None else draft.old(node)
            return f"{lookup}({rows}, {torch}.arange({_wrapped(rows)}.shape[-1], dtype={_wrapped(rows)}.dtype))"

        return text

    def _names(self, target: ast.expr, assignment: ast.Assign) -> bool:
        if not isinstance(target, ast.Name):
            return False
        loads = self.source.loads(target.id, assignment)
        return all(self.spread(load) for load in loads)

    def _method(self, node: ast.expr, attribute: ast.Attribute, call: ast.Call) -> bool:
        draft = self.draft
        if attribute.attr in _PLAIN:
            draft.put(call, lambda: draft.operand(node))
            return self.spread(call)
        if attribute.attr in _NUMBERS:
            draft.put(node, self._as_number(node))
            return True
        if attribute.attr in ("unsqueeze", "squeeze") and not self.many:
            above = self._gather_around(call)
            if attribute.attr == "unsqueeze" and above is not None:
                return self._gathered(node, *above, keep=True)
            if attribute.attr == "squeeze":
                draft.put(call, lambda: f"{draft.operand(node)}.squeeze(-2)")
                return self.spread(call)
        if attribute.attr == "argsort":
            return False
        return False

    def _subscript(self, node: ast.expr, subscript: ast.Subscript) -> bool:
        draft, index = self.draft, subscript.slice
        if index is node:  # table[i]
            above = self.source.parent(subscript)
            if isinstance(subscript.ctx, ast.Store):
                return self._marked(node, subscript, above)
            draft.put(
                subscript,
                lambda: f"{draft.block('discrete.lookup')}({draft.text(node)}, {draft.text(subscript.value)})",
            )
            return True
        if subscript.value is node:
            last = index.elts[-1] if isinstance(index, ast.Tuple) else None
            if isinstance(last, ast.Constant) and last.value is None:  # i[:, None] inside of a gather
                gather = self._gather_around(subscript)
                return gather is not None and self._gathered(node, *gather, keep=True)
            if isinstance(index, ast.Tuple) and isinstance(index.elts[0], ast.Constant) and index.elts[0].value is ...:
                draft.put(subscript, lambda: f"{draft.operand(node)}[{self._inside(index)}, :]")
            elif isinstance(index, ast.Tuple) and number(index.elts[-1]) is None and not isinstance(last, ast.Slice):
                return False
            return self.spread(subscript)  # i[:k] takes the first k rows
        return False

    def _inside(self, index: ast.Tuple) -> str:
        return self.source.text[self.source.start(index.elts[0]) : self.source.end(index.elts[-1])]

    def _marked(self, node: ast.expr, subscript: ast.Subscript, statement: ast.AST | None) -> bool:
        """``mask[i] = 1``: the rows themselves are the mask."""
        draft = self.draft
        if not isinstance(statement, ast.Assign) or number(statement.value) != 1 or statement.targets != [subscript]:
            return False
        name = self.source.segment(subscript.value)
        rows = ".sum(-2)" if self.many else ""
        torch = draft.module("torch")
        draft.put(statement, lambda: f"{name} = {torch}.maximum({name}, {draft.operand(node)}{rows})")
        return True

    def _indexed_pair(self, node: ast.expr, index: ast.Tuple, subscript: ast.Subscript) -> bool:
        """``table[arange(b), i]`` and ``table[:, i]``."""
        draft, torch = self.draft, self.draft.module("torch")
        if subscript.slice is not index or len(index.elts) != 2 or index.elts[1] is not node:
            return False
        first = index.elts[0]
        table = subscript.value
        if isinstance(first, ast.Slice) and first.lower is first.upper is first.step is None:
            rows = ".mT" if self.many else ""
            draft.put(subscript, lambda: f"{draft.operand(table)} @ {draft.operand(node)}{rows}")
        else:
            draft.put(subscript, lambda: f'{torch}.einsum("bn,bn...->b...", {draft.text(node)}, {draft.text(table)})')
        return True

    def _compared(self, node: ast.expr, compare: ast.Compare) -> bool:
        draft = self.draft
        other = compare.comparators[0] if compare.left is node else compare.left
        if not isinstance(compare.ops[0], ast.Eq | ast.NotEq):
            draft.put(node, self._as_number(node))
            return True
        constant = number(other)
        if constant is not None:
            found = lambda: f"{draft.operand(node)}[..., {constant}]"  # noqa: E731 (a text that is asked for later)
        else:
            found = lambda: f"{draft.operand(node)}.gather(-1, {draft.operand(other)}.unsqueeze(-1)).squeeze(-1)"  # noqa: E731
        draft.put(compare, found if isinstance(compare.ops[0], ast.Eq) else lambda: f"(1 - {found()})")
        return True

    def _gather_around(self, node: ast.expr) -> tuple[ast.Call, ast.expr] | None:
        """The gather that a node is the index of, and what is gathered from."""
        call = self.source.parent(node)
        if isinstance(call, ast.keyword):
            call = self.source.parent(call)
        if not isinstance(call, ast.Call) or called(call) not in ("gather", "take_along_dim"):
            return None
        order = ("input", "dim", "index") if called(call) == "gather" else ("input", "index", "dim")
        found = bound(self.source, call, *order)
        if found is None or found.get("index", found.get("indices")) is not node:
            return None
        return call, found["input"]

    def _gathered(self, node: ast.expr, call: ast.Call, table: ast.expr, keep: bool) -> bool:
        draft = self.draft
        if keep:
            draft.put(call, lambda: f"({draft.operand(node)} * {draft.operand(table)}).sum(-1, keepdim=True)")
        else:
            torch = draft.module("torch")
            draft.put(call, lambda: f'{torch}.einsum("...kn,...n->...k", {draft.text(node)}, {draft.text(table)})')
        return True

    def _argument(self, node: ast.expr, call: ast.Call) -> bool:
        draft, name = self.draft, called(call)
        if name == "one_hot":
            draft.put(call, lambda: draft.operand(node))
            return True
        gather = self._gather_around(node)
        if gather is not None:
            return self._gathered(node, *gather, keep=not self.many)
        if name in ("bincount",) and call.args[0] is node:
            draft.put(call, lambda: f"{draft.operand(node)}.sum(0)")
            return True
        if name == "index_select":
            found = bound(self.source, call, "input", "dim", "index")
            if found and found.get("index") is node and number(found.get("dim")) == 0:
                table = found["input"]
                draft.put(call, lambda: f"{draft.block('discrete.lookup')}({draft.text(node)}, {draft.text(table)})")
                return True
            return False
        if name == "embedding" and len(call.args) == 2 and call.args[0] is node:
            draft.put(call, lambda: f"{draft.block('discrete.lookup')}({draft.text(node)}, {draft.text(call.args[1])})")
            return True
        if name in ("scatter", "scatter_") and len(call.args) >= 2:
            found = bound(self.source, call, "input", "dim", "index", "src")
            marks = found.get("src", found.get("value")) if found else None
            if (
                found
                and found.get("index") is node
                and number(marks) == 1
                and "zeros" in self.source.segment(found["input"])
            ):
                rows = ".sum(-2)" if self.many else ""
                draft.put(call, lambda: f"{draft.operand(node)}{rows}")
                return True
            return False
        if name in ("int", "float") and len(call.args) == 1:
            if name == "float":
                draft.put(call, self._as_number(node))
                return True
            draft.put(call, lambda: draft.operand(node))
            return self.spread(call)
        if len(call.args) == 1 and not call.keywords and isinstance(call.func, ast.Attribute | ast.Name):
            # A module that is called with positions alone: an embedding.
            draft.put(
                call,
                lambda: f"{draft.block('discrete.lookup')}({draft.text(node)}, {draft.text(call.func)}.weight)",
            )
            return True
        return False


def _wrapped(text: str) -> str:
    return text if text.isidentifier() else f"({text})"


def _choose(place: Place) -> Iterator[Draft]:
    """``argmax`` and ``argmin``, and the indices of ``max(dim)`` and ``min(dim)``."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("argmax", "argmin", "max", "min"):
        return
    found = bound(source, node, "input", "dim", "keepdim")
    if found is None or set(found) - {"input", "dim", "keepdim"}:
        return
    pair = called(node) in ("max", "min")
    if pair and "dim" not in found:
        return
    for as_number in (False, True):
        draft = Draft(source)
        block = draft.block(f"discrete.arg{called(node)[-3:]}")

        def rows(draft: Draft = draft, block: str = block) -> str:
            if "dim" not in found or (isinstance(found["dim"], ast.Constant) and found["dim"].value is None):
                return f"{block}({draft.operand(found['input'])}.flatten(), temperature=0.1, hard=True)"
            dim, text = found["dim"], draft.text(found["input"])
            made = f"{block}({text}, dim={draft.text(dim)}, temperature=0.1, hard=True)"
            # The rows of what reads them are the last dimension.
            return made if number(dim) == -1 else f"{made}.movedim({draft.text(dim)}, -1)"

        if _place_rows(draft, place, node, rows, pair, many=False, as_number=as_number):
            yield draft


def _place_rows(  # type: ignore[no-untyped-def]
    draft: Draft, place: Place, node: ast.Call, rows, pair: bool, many: bool, as_number: bool
) -> bool:
    """Put the rows where the positions were made, and rewrite their readers."""
    source = place.source
    position = _Position(draft, many)
    target: ast.expr = node
    parent = source.parent(node)
    if pair:
        indexed = isinstance(parent, ast.Subscript) and number(parent.slice) == 1
        if indexed or (isinstance(parent, ast.Attribute) and parent.attr == "indices"):
            assert isinstance(parent, ast.expr)
            target = parent
        elif isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Tuple):
            names = parent.targets[0].elts
            if len(names) != 2 or not isinstance(names[1], ast.Name) or as_number:
                return False
            draft.put(node, lambda: f"{draft.old(node)}[0], {rows()}")
            return all(position.spread(load) for load in source.loads(names[1].id, parent))
        elif isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Name) and not as_number:
            # result = x.max(dim=1); result.values; result.indices: only the indices are made anew, where they are read.
            for load in source.loads(parent.targets[0].id, parent):
                read = source.parent(load)
                indices = isinstance(read, ast.Attribute) and read.attr == "indices"
                indices = indices or (isinstance(read, ast.Subscript) and number(read.slice) == 1)
                if indices:
                    assert isinstance(read, ast.expr)
                    draft.put(read, rows)
                    if not position.spread(read):
                        return False
            return not draft.empty
        else:
            return False
    draft.put(target, rows)
    if as_number:
        draft.put(target, position._as_number(target))
        return True
    return position.spread(target)


def _order(place: Place) -> Iterator[Draft]:
    """``argsort``, and the indices of ``sort``."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("argsort", "sort", "msort"):
        return
    found = bound(source, node, "input", "dim", "descending", "stable")
    if found is None or set(found) - {"input", "dim", "descending", "stable"}:
        return
    again = source.parent(node)
    outer = source.parent(again) if again is not None else None
    for call, inner in ((node, found["input"]), (outer, node)):  # argsort of an argsort is the rank
        if isinstance(call, ast.Call) and called(call) == called(inner) == "argsort" == called(node):
            first = found if inner is node else bound(source, inner, "input", "dim", "descending", "stable")  # type: ignore[arg-type]
            if first is None:
                return
            draft = Draft(source)
            block = draft.block("discrete.rank")
            draft.put(call, lambda d=draft, b=block, f=first: f"{b}({_ordering(d, f)}, temperature=0.1, hard=True)")  # type: ignore[misc]
            yield draft
            return
    for as_number in (False, True):
        draft = Draft(source)
        block = draft.block("discrete.argsort")
        text = lambda d=draft, b=block: f"{b}({_ordering(d, found)}, temperature=0.1, hard=True)"  # noqa: E731
        if _place_rows(draft, place, node, text, called(node) == "sort", many=True, as_number=as_number):
            yield draft


def _ordering(draft: Draft, found: dict[str, ast.expr]) -> str:
    words = [draft.text(found["input"])]
    words += [f"{name}={draft.text(found[name])}" for name in ("dim", "descending") if name in found]
    return ", ".join(words)


def _best(place: Place) -> Iterator[Draft]:
    """The indices of ``topk``."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) != "topk":
        return
    found = bound(source, node, "input", "k", "dim", "largest", "sorted")
    if found is None or set(found) - {"input", "k", "dim", "largest", "sorted"}:
        return
    for as_number in (False, True):
        draft = Draft(source)
        block = draft.block("discrete.topk")

        def rows(draft: Draft = draft, block: str = block) -> str:
            words = [draft.text(found["input"]), draft.text(found["k"])]
            words += [f"{name}={draft.text(found[name])}" for name in ("dim", "largest") if name in found]
            return f"{block}({', '.join(words)}, temperature=0.1, hard=True).permutation"

        if _place_rows(draft, place, node, rows, pair=True, many=True, as_number=as_number):
            yield draft


def _drawn(place: Place) -> Iterator[Draft]:
    """``multinomial``: the draw as one-hot rows."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) != "multinomial":
        return
    found = bound(source, node, "input", "num_samples", "replacement")
    if found is None or "num_samples" not in found:
        return
    draft = Draft(source)
    block = draft.block("discrete.multinomial")

    def rows() -> str:
        words = [draft.text(found["input"]), draft.text(found["num_samples"])]
        words += [f"{name}={draft.text(found[name])}" for name in ("replacement", "generator") if name in found]
        return f"{block}({', '.join(words)}, temperature=0.5, hard=True)"

    if _place_rows(draft, place, node, rows, pair=False, many=True, as_number=False):
        yield draft


def _sampled(place: Place) -> Iterator[Draft]:
    """``Categorical(...).sample()`` and ``Bernoulli(...).sample()``: relaxed draws of the same parameters."""
    node, source = place.node, place.source
    for call in (node, *place.alike, *ast.walk(source.statement(node))):
        if isinstance(call, ast.Call) and called(call) == "sample" and isinstance(call.func, ast.Attribute):
            break
    else:
        return
    made = call.func.value
    if isinstance(made, ast.Name):
        definition = source.definition(made.id, source.statement(call))
        made = definition.value if definition is not None else made
    draft = Draft(source)
    if isinstance(made, ast.Call) and called(made) in ("Categorical", "OneHotCategorical", "Bernoulli"):
        kind = called(made)
        found = (
            bound(source, made, "probs", "logits") if made.args else {k.arg: k.value for k in made.keywords if k.arg}
        )
        if not found or call.args or call.keywords:
            return
        torch = draft.module("torch")
        if kind == "Bernoulli":
            block = draft.block("discrete.bernoulli")
            p = (
                f"{source.segment(found['probs'])}"
                if "probs" in found
                else f"{torch}.sigmoid({source.segment(found['logits'])})"
            )
            draft.put(call, f"{block}({p}, temperature=0.5, hard=True)")
            yield draft
            return
        block = draft.block("discrete.gumbel_softmax")
        logits = (
            source.segment(found["logits"]) if "logits" in found else f"{torch}.log({source.segment(found['probs'])})"
        )
        draft.put(call, f"{block}({logits}, temperature=0.5, hard=True)")
        if kind == "OneHotCategorical" or _Position(draft, many=False).spread(call):
            yield draft


def _reparametrised(place: Place) -> Iterator[Draft]:
    """``sample`` becomes ``rsample``."""
    source = place.source
    for call in ast.walk(source.statement(place.node)):
        if isinstance(call, ast.Call) and called(call) == "sample" and isinstance(call.func, ast.Attribute):
            draft = Draft(source)
            draft.put(call.func, lambda d=draft, c=call.func: f"{d.text(c.value)}.rsample")  # type: ignore[misc]
            yield draft


def _shifted(place: Place) -> Iterator[Draft]:
    """``torch.normal(mean, std)``: noise drawn apart, scaled and shifted."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) != "normal":
        return
    found = bound(source, node, "mean", "std")
    if found is None or set(found) != {"mean", "std"}:
        return
    draft = Draft(source)
    torch = draft.module("torch")
    for shape in ("mean", "std"):
        if number(found[shape]) is None:
            text = draft.text(found[shape])
            draft.put(
                node, f"({draft.operand(found['mean'])} + {draft.operand(found['std'])} * {torch}.randn_like({text}))"
            )
            yield draft
            return


def _coin(place: Place) -> Iterator[Draft]:
    """``bernoulli``: a relaxed draw."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("bernoulli", "bernoulli_"):
        return
    found = bound(source, node, "input")
    if found is None or set(found) - {"input", "generator"}:
        return
    draft = Draft(source)
    words = [draft.text(found["input"]), "temperature=0.5", "hard=True"]
    words += [f"generator={draft.text(found['generator'])}"] if "generator" in found else []
    draft.put(node, f"{draft.block('discrete.bernoulli')}({', '.join(words)})")
    yield draft


TEMPLATES = {
    "argmax": Template(
        "discrete.argmax",
        "The position as its one-hot row: exact forwards, the gradient of a soft choice backwards.",
        ("cut.index",),
        ("argmax", "argmin", "max", "min", "choose", "choice", "select", "index", "one_hot", "embedding"),
        "best = scores.argmax(dim=1)\nchosen = table[best]",
        _choose,
    ),
    "argsort": Template(
        "discrete.argsort",
        "The order as a permutation matrix: exact forwards, the gradient of a soft sort backwards.",
        ("cut.index",),
        ("argsort", "sort", "rank", "ranking", "order", "msort", "permutation"),
        "order = torch.argsort(scores, descending=True)[:3]\nkept = values[order]",
        _order,
    ),
    "topk": Template(
        "discrete.topk",
        "The k positions as k one-hot rows: exact forwards, the gradient of a soft selection backwards.",
        ("cut.index",),
        ("topk", "kthvalue", "subset"),
        "best, where = scores.topk(3)\nkept = values[where]",
        _best,
    ),
    "multinomial": Template(
        "discrete.multinomial",
        "The draw as one-hot rows with a gradient to the probabilities.",
        ("cut.sampling", "cut.index"),
        ("multinomial", "draw"),
        "drawn = torch.multinomial(weights, 2)\nkept = values[drawn]",
        _drawn,
        ANY,
    ),
    "rsample": Template(
        "torch.distributions",
        "`rsample` draws noise and moves it by the parameters, so the draw has a gradient.",
        ("cut.sampling", "cut.no_grad", "cut.detach"),
        ("sample", "rsample", "normal", "poisson", "_standard_gamma", "_sample_dirichlet"),
        "z = torch.distributions.Normal(mean, std).sample()",
        _reparametrised,
        ANY,
    ),
    "gumbel_softmax": Template(
        "discrete.gumbel_softmax",
        "The draw of a category as its one-hot row, with a gradient to the logits.",
        ("cut.sampling", "cut.no_grad", "cut.index"),
        ("categorical", "sample", "gumbel", "multinomial", "bernoulli"),
        "action = torch.distributions.Categorical(logits=logits).sample()\nchosen = table[action]",
        _sampled,
        ANY,
    ),
    "normal": Template(
        "torch.randn_like",
        "Noise drawn apart, then scaled and shifted: the gradient passes to both parameters.",
        ("cut.sampling",),
        ("normal", "randn"),
        "z = torch.normal(mean, std)",
        _shifted,
        ANY,
    ),
    "bernoulli": Template(
        "discrete.bernoulli",
        "The draw of 0 or 1 with a gradient to the probability.",
        ("cut.sampling",),
        ("bernoulli", "binomial", "dropout"),
        "gate = torch.bernoulli(p)",
        _coin,
        ANY,
    ),
}
