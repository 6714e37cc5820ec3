"""Steps and saturated functions: rounding, signs, quantising, casts, clamps, counts of values in bins."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import Source, bound, called
from pullback.audit.remedy.template import ANY, SMALL, Place, Template, number

__all__ = ["TEMPLATES"]

_STAIRS = {"round": "round", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "fix": "trunc"}
_INTEGERS = frozenset({"long", "int", "short", "byte", "char"})


def _assign(draft: Draft, node: ast.Call, receiver: ast.expr, text) -> None:  # type: ignore[no-untyped-def]
    """Put a text in place of a call; ``x.round_()`` alone on its line becomes ``x = ...``."""
    statement = draft.source.parent(node)
    name = called(node)
    if name.endswith("_") and not name.endswith("__") and isinstance(statement, ast.Expr):
        draft.put(statement, lambda: f"{draft.source.segment(receiver)} = {text()}")
    else:
        draft.put(node, text)


def _rounded(place: Place) -> Iterator[Draft]:
    source = place.source
    draft = Draft(source)
    for node in (place.node, *place.alike):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv):
            a, b = node.left, node.right
            quotient = lambda a=a, b=b: f"{draft.operand(a)} / {draft.operand(b)}"  # noqa: E731
            draft.put(node, lambda q=quotient: f"{draft.block('discrete.floor')}({q()}, temperature=0.25, hard=True)")  # type: ignore[misc]
            continue
        if not isinstance(node, ast.Call):
            continue
        name = called(node).strip("_")
        if name in ("div", "divide", "true_divide", "floor_divide"):
            found = bound(source, node, "input", "other")
            mode = found.get("rounding_mode") if found else None
            kind = mode.value if isinstance(mode, ast.Constant) else "floor" if name == "floor_divide" else None
            if found is None or kind not in ("floor", "trunc"):
                continue
            draft.put(
                node,
                lambda f=found, k=kind: (
                    f"{draft.block(f'discrete.{k}')}("  # type: ignore[misc]
                    f"{draft.operand(f['input'])} / {draft.operand(f['other'])}, temperature=0.25, hard=True)"
                ),
            )
            continue
        if name not in _STAIRS:
            continue
        found = bound(source, node, "input", "decimals")
        if found is None or set(found) - {"input", "decimals"}:
            continue
        x, decimals = found["input"], found.get("decimals")

        def text(x: ast.expr = x, decimals: ast.expr | None = decimals, name: str = name) -> str:
            block = draft.block(f"discrete.{_STAIRS[name]}")
            if decimals is None:
                return f"{block}({draft.text(x)}, temperature=0.25, hard=True)"
            factor = f"10 ** {draft.operand(decimals)}"
            return f"({block}({draft.operand(x)} * {factor}, temperature=0.25, hard=True) / {factor})"

        _assign(draft, node, x, text)
    if not draft.empty:
        yield draft


def _wrapped_around(place: Place) -> Iterator[Draft]:
    """``x % d``, ``torch.remainder`` and ``torch.fmod``."""
    node, source = place.node, place.source
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        name, x, divisor = "remainder", node.left, node.right
    elif isinstance(node, ast.Call) and called(node).strip("_") in ("remainder", "fmod"):
        found = bound(source, node, "input", "other")
        if found is None or set(found) != {"input", "other"}:
            return
        name, x, divisor = called(node).strip("_"), found["input"], found["other"]
    else:
        return
    draft = Draft(source)
    words = f"{source.segment(x)}, {source.segment(divisor)}"
    draft.put(node, lambda: f"{draft.block(f'discrete.{name}')}({words}, temperature=0.1, hard=True)")
    yield draft


def _one_block(name: str, *more: str):  # type: ignore[no-untyped-def]
    """Make the rewriting of calls of one name into the block of that name."""

    def rewrite(place: Place) -> Iterator[Draft]:
        node = place.node
        if not isinstance(node, ast.Call) or called(node).strip("_") not in (name, *more):
            return
        found = bound(place.source, node, "input", "values")
        if found is None or set(found) - {"input", "values"}:
            return
        draft = Draft(place.source)

        def text() -> str:
            words = [draft.text(v) for v in found.values()]
            return f"{draft.block(f'discrete.{name}')}({', '.join(words)}, temperature=0.1, hard=True)"

        _assign(draft, node, found["input"], text)
        yield draft

    return rewrite


def _cast(place: Place) -> Iterator[Draft]:
    """``x.long()`` where a number, a table's index or a class is wanted."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    if called(node) not in _INTEGERS | {"to", "type"}:
        return
    if called(node) in ("to", "type") and not any(
        "int" in source.segment(a) or "long" in source.segment(a) for a in node.args
    ):
        return
    x = node.func.value
    rounded = isinstance(x, ast.Call) and called(x).strip("_") in _STAIRS
    block = f"discrete.{_STAIRS[called(x).strip('_')]}" if rounded else "discrete.trunc"
    if rounded:
        found = bound(source, x, "input")  # type: ignore[arg-type]
        if found is None or set(found) != {"input"}:
            return
        x = found["input"]
    draft = Draft(source)
    draft.put(node, lambda: f"{draft.block(block)}({draft.text(x)}, temperature=0.25, hard=True)")
    for reader in _readers(source, node):
        above = source.parent(reader)
        if isinstance(above, ast.Subscript) and above.slice is reader:
            _read_softly(draft, above, above.value, reader)
        elif (
            isinstance(above, ast.Call)
            and called(above) == "one_hot"
            and above.args[0] is reader
            and (len(above.args) > 1 or above.keywords)
        ):
            size = above.args[1] if len(above.args) > 1 else above.keywords[0].value
            draft.put(
                above,
                lambda r=reader, n=size: (
                    f"{draft.block('discrete.one_hot')}({draft.text(r)}, {draft.text(n)}, hard=True)"
                ),  # type: ignore[misc]
            )
        elif isinstance(above, ast.Call) and called(above) == "embedding" and len(above.args) == 2:
            _read_softly(draft, above, above.args[1], reader)
    yield draft


def _clamped(place: Place) -> Iterator[Draft]:
    """A clamp that every value lies outside of: its value, the gradient of what was clamped."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call):
        return
    found = bound(source, node, "input", "min", "max", "inplace")
    if found is None:
        return
    draft = Draft(source)
    x = found["input"]
    plain = called(node).rstrip("_")

    def text() -> str:
        call = draft.old(node)
        if called(node).endswith("_"):
            call = call.replace(f".{called(node)}(", f".{plain}(", 1)
        return f"{draft.block('discrete.straight_through')}({call}, {draft.text(x)})"

    _assign(draft, node, x, text)
    yield draft


def _leaky(place: Place) -> Iterator[Draft]:
    """A relu that is off for every sample."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node).strip("_") not in ("relu", "clamp_min", "clamp"):
        return
    found = bound(source, node, "input", "min")
    if found is None or number(found.get("min", ast.Constant(0))) != 0 or set(found) - {"input", "min"}:
        return
    draft = Draft(source)
    _assign(draft, node, found["input"], lambda: f"{draft.functional()}.leaky_relu({draft.text(found['input'])}, 0.01)")
    yield draft


def _logits(place: Place) -> Iterator[Draft]:
    """A loss of a squashed value: the loss of the logits."""
    source = place.source
    for above in (place.node, *source.ancestors(place.node)):
        if not isinstance(above, ast.Call) or called(above) != "binary_cross_entropy" or not above.args:
            continue
        squashed = above.args[0]
        if isinstance(squashed, ast.Name):
            definition = source.definition(squashed.id, source.statement(above))
            squashed = definition.value if definition is not None else squashed
        if not isinstance(squashed, ast.Call) or called(squashed) != "sigmoid":
            continue
        found = bound(source, squashed, "input")
        if found is None:
            continue
        draft = Draft(source)
        name = source.segment(above.func).replace("binary_cross_entropy", "binary_cross_entropy_with_logits")
        draft.put(above.func, name)
        draft.put(above.args[0], lambda f=found: source.segment(f["input"]))  # type: ignore[misc]
        yield draft
        return


def _readers_of_logits(place: Place) -> Iterator[Draft]:
    """The squashing line itself is named: look for the loss below it."""
    source = place.source
    yield from _logits(place)
    for node in ast.walk(source.scope(place.node)):
        if isinstance(node, ast.Call) and called(node) == "binary_cross_entropy":
            yield from _logits(Place(source, node, place.operation))


def _histogram(place: Place) -> Iterator[Draft]:
    """``histc``: how many values lie above each edge, and the differences."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("histc", "histogram"):
        return
    found = bound(source, node, "input", "bins", "min", "max")
    if found is None or not {"bins", "min", "max"} <= set(found) or set(found) - {"input", "bins", "min", "max"}:
        return
    if number(found["min"]) == number(found["max"]) is not None:
        return  # torch takes the data's own limits then
    draft = Draft(source)
    bins, low, high = (draft.text(found[n]) for n in ("bins", "min", "max"))
    sizes = [number(found[n]) for n in ("bins", "min", "max")]
    if None not in sizes:
        width = f"{(sizes[2] - sizes[1]) / sizes[0] / 2:.6g}"  # type: ignore[operator]
    else:
        width = f"({high} - {low}) / {bins} / 2"
    x = draft.text(found["input"])
    draft.put(node, f"{draft.block('discrete.histc')}({x}, {bins}, {low}, {high}, temperature={width}, hard=True)")
    yield draft


def _bins(place: Place) -> Iterator[Draft]:
    """``bucketize``, ``searchsorted``, and NumPy's ``digitize``, whose ``right`` is the other one."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) not in ("bucketize", "searchsorted", "digitize"):
        return
    in_order = called(node) == "searchsorted"
    found = bound(source, node, *(("boundaries", "input") if in_order else ("input", "boundaries")))
    if found is None or set(found) - {"input", "values", "boundaries", "bins", "sorted_sequence", "right"}:
        return
    x = found.get("input", found.get("values"))
    boundaries = found.get("boundaries", found.get("sorted_sequence", found.get("bins")))
    right = found.get("right", ast.Constant(False))
    if x is None or boundaries is None or not isinstance(right, ast.Constant):
        return
    draft = Draft(source)
    block = draft.block("discrete.searchsorted" if in_order else "discrete.bucketize")
    both = [draft.text(boundaries), draft.text(x)] if in_order else [draft.text(x), draft.text(boundaries)]
    side = ", right=True" if bool(right.value) != (called(node) == "digitize") else ""
    draft.put(node, f"{block}({', '.join(both)}{side}, temperature=0.1, hard=True)")
    for reader in _readers(source, node):
        above = source.parent(reader)
        if isinstance(above, ast.Subscript) and above.slice is reader:
            _read_softly(draft, above, above.value, reader)
    yield draft


def _readers(source: Source, node: ast.expr) -> list[ast.expr]:
    """Return the node, and where the name that it is assigned to is read."""
    parent = source.parent(node)
    if isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Name):
        return [node, *source.loads(parent.targets[0].id, parent)]
    return [node]


def _read_softly(draft: Draft, above: ast.expr, table: ast.expr, position: ast.expr) -> None:
    """Read a table between its rows where it is read at a position."""
    draft.put(
        above,
        lambda: f"{draft.block('discrete.embedding')}({draft.text(position)}, {draft.text(table)}, hard=True)",
    )


def _counted(place: Place) -> Iterator[Draft]:
    """``bincount`` with weights: a sum by index, which torch differentiates."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) != "bincount":
        return
    found = bound(source, node, "input", "weights", "minlength")
    if found is None or "weights" not in found:
        return
    draft = Draft(source)
    torch = draft.module("torch")
    index, weights = draft.text(found["input"]), draft.text(found["weights"])
    size = draft.text(found["minlength"]) if "minlength" in found else f"int({draft.operand(found['input'])}.max()) + 1"
    made = f"{torch}.zeros({size}, dtype={draft.operand(found['weights'])}.dtype)"
    draft.put(node, f"{made}.index_add(0, {index}, {weights})")
    yield draft


def _bilinear(place: Place) -> Iterator[Draft]:
    """``grid_sample(mode="nearest")``."""
    node = place.node
    if not isinstance(node, ast.Call) or called(node) != "grid_sample":
        return
    modes = [k.value for k in node.keywords if k.arg == "mode"] + node.args[2:3]
    for mode in modes:
        if isinstance(mode, ast.Constant) and mode.value == "nearest":
            draft = Draft(place.source)
            draft.put(mode, place.source.segment(mode).replace("nearest", "bilinear"))
            yield draft


def _smooth(place: Place) -> Iterator[Draft]:
    """A function whose input lies on its kink: its smooth form."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call):
        return
    name = {"absolute": "abs"}.get(called(node).strip("_"), called(node).strip("_"))
    draft = Draft(source)
    if name in ("abs", "relu"):
        found = bound(source, node, "input")
        if found is not None and set(found) == {"input"}:
            x = found["input"]
            _assign(draft, node, x, lambda: f"{draft.block(f'discrete.{name}')}({draft.text(x)}, temperature=0.1)")
            yield draft
    elif name in ("maximum", "minimum"):
        found = bound(source, node, "input", "other")
        if found is not None and set(found) == {"input", "other"}:
            words = ", ".join(source.segment(v) for v in found.values())
            draft.put(node, lambda: f"{draft.block(f'discrete.{name}')}({words}, temperature=0.1)")
            yield draft
    elif name == "l1_loss":
        draft.put(node.func, source.segment(node.func).replace("l1_loss", "smooth_l1_loss"))
        yield draft


TEMPLATES = {
    "smooth": Template(
        "discrete.abs",
        "The smooth form of the function, which has a derivative at the kink too.",
        ("kink",),
        (
            *("abs", "absolute", "fabs", "relu", "maximum", "minimum", "l1_loss", "kink", "leaky_relu", "prelu"),
            *("hinge", "softshrink", "hardshrink", "erf"),
        ),
        "distance = torch.abs(x)",
        _smooth,
        SMALL,
    ),
    "round": Template(
        "discrete.round",
        "The rounded value forwards, the slope of a smooth staircase backwards.",
        ("zero", "cut.rounding", "cut.cast"),
        ("round", "floor", "ceil", "trunc", "fix", "floor_divide", "floordiv", "div", "quantize", "quantise", "frac"),
        "q = torch.round(x / scale) * scale",
        _rounded,
    ),
    "remainder": Template(
        "discrete.remainder",
        "The remainder forwards; backwards a gradient that knows of the jump at the multiples.",
        ("zero", "kink", "nan"),
        ("remainder", "fmod", "mod"),
        "phase = x % period",
        _wrapped_around,
    ),
    "cast": Template(
        "discrete.trunc",
        "The whole number as a float with the slope of a smooth staircase; tables are read between their rows.",
        ("cut.cast", "zero"),
        (
            "long",
            "int",
            "short",
            "byte",
            "char",
            "to",
            "type",
            "type_as",
            "half",
            "double",
            "bfloat16",
            "cast",
            "one_hot",
            "round",
            "floor",
            "ceil",
            "trunc",
        ),
        "level = (x * 4).long()\nvalue = table[level]",
        _cast,
    ),
    "sign": Template(
        "discrete.sign",
        "The sign forwards, the slope of a smooth step backwards.",
        ("zero",),
        ("sign", "sgn"),
        "bits = torch.sign(x)",
        _one_block("sign", "sgn"),
    ),
    "heaviside": Template(
        "discrete.heaviside",
        "The step forwards, the slope of a smooth step backwards.",
        ("zero",),
        ("heaviside", "step"),
        "spikes = torch.heaviside(x, torch.zeros(()))",
        _one_block("heaviside"),
    ),
    "relu": Template(
        "torch.nn.functional.leaky_relu",
        "Every unit is off for every sample; a leak lets them come back.",
        ("zero",),
        ("relu", "clamp_min", "threshold", "clamp"),
        "active = torch.relu(x)",
        _leaky,
        ANY,
    ),
    "clamp": Template(
        "discrete.straight_through",
        "The clamped value forwards, the gradient of what was clamped backwards.",
        ("zero",),
        ("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "hardsigmoid", "relu6", "threshold", "hardshrink"),
        "bounded = x.clamp(0, 1)",
        _clamped,
    ),
    "logits": Template(
        "torch.nn.functional.binary_cross_entropy_with_logits",
        "The loss of the logits, whose gradient does not vanish where the squashed value saturates.",
        ("zero", "vanishing", "nan"),
        ("sigmoid", "binary_cross_entropy", "tanh", "softmax"),
        "loss = torch.nn.functional.binary_cross_entropy(torch.sigmoid(x), labels)",
        _readers_of_logits,
        ANY,
    ),
    "histc": Template(
        "discrete.histc",
        "The same counts, with a gradient to the values.",
        ("cut.index", "cut.operation"),
        ("histc", "histogram", "count"),
        "counts = torch.histc(x, bins=16, min=0.0, max=1.0)",
        _histogram,
        SMALL,
    ),
    "bucketize": Template(
        "discrete.bucketize",
        "The same bin, with a gradient to the value.",
        ("cut.index",),
        ("bucketize", "searchsorted", "digitize"),
        "bin = torch.bucketize(x, boundaries)\nvalue = table[bin]",
        _bins,
    ),
    "bincount": Template(
        "torch.Tensor.index_add",
        "A sum by index, which torch differentiates with respect to the weights.",
        ("cut.index", "cut.operation"),
        ("bincount",),
        "sums = torch.bincount(labels, weights=weights, minlength=5)",
        _counted,
    ),
    "grid_sample": Template(
        "torch.nn.functional.grid_sample",
        "Bilinear sampling has a gradient to the grid; nearest has none.",
        ("zero", "cut"),
        ("grid_sample", "nearest"),
        'warped = torch.nn.functional.grid_sample(image, grid, mode="nearest", align_corners=False)',
        _bilinear,
        ANY,
    ),
}
