"""What to put where the gradient dies: one table, used by findings and by ``pullback find``.

An entry names a block, says in one sentence what changes, and holds a short example in which ``{x}`` is the user's own
expression. Every example runs when pasted below ``import torch`` (a test does that).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from difflib import get_close_matches

from pullback.audit.report.findings import Finding
from pullback.audit.report.remedy import Remedy as Shown
from pullback.audit.report.report import Report

__all__ = ["REMEDIES", "Remedy", "find", "remedies_for", "suggest", "with_remedies"]


@dataclass(frozen=True)
class Remedy:
    """One piece of advice.

    Attributes:
        block: dotted name under ``pullback``, or a torch function where torch has the answer.
        what: one sentence on what changes.
        code: two or three lines; ``{x}`` stands for the user's expression.
        codes: finding codes (or their first part) it answers.
        operations: torch names it answers; also the words of ``pullback find``.
    """

    block: str
    what: str
    code: str
    codes: tuple[str, ...]
    operations: tuple[str, ...] = ()

    def for_expression(self, expression: str = "x") -> dict[str, str]:
        """Return the entry as it stands in a finding."""
        return {"block": self.block, "what": self.what, "code": self.code.replace("{x}", expression)}


_RELAXED = Remedy(
    "relaxed",
    "Keeps the code and its values as they are and sends soft gradients back through it.",
    "import pullback\n\nwith pullback.relaxed(temperature=0.1):\n    loss = compute_loss()  # your unchanged code",
    ("cut.index", "cut.comparison", "cut.cast", "cut.sampling", "cut.control_flow", "control-flow", "zero"),
    ("relaxed", "relax", "unchanged"),
)

REMEDIES: tuple[Remedy, ...] = (
    Remedy(
        "discrete.argmax",
        "A distribution over the positions instead of one index; `take` reads a table with it.",
        "from pullback import discrete\nweights = discrete.argmax({x}, temperature=0.1)\n"
        "chosen = discrete.take(torch.arange(weights.shape[-1], dtype=weights.dtype), weights)",
        ("cut.index",),
        ("argmax", "argmin", "max", "min", "choose", "choice", "select", "index"),
    ),
    Remedy(
        "discrete.rank",
        "The rank of every entry as a number with a gradient (0 for the smallest).",
        "from pullback import discrete\nranks = discrete.rank({x}, temperature=0.1)",
        ("cut.index",),
        ("argsort", "sort", "rank", "ranking", "order", "msort", "searchsorted", "bucketize", "unique"),
    ),
    Remedy(
        "discrete.sort",
        "The sorted values and, when read, the soft permutation matrix that carries other tensors along.",
        "from pullback import discrete\nordered = discrete.sort({x}, temperature=0.1)\n"
        "carried = ordered.permutation @ {x}.unsqueeze(-1)",
        ("cut.index",),
        ("argsort", "sort", "permutation"),
    ),
    Remedy(
        "discrete.soft_topk",
        "A mask in [0, 1] that sums to k instead of k indices.",
        "from pullback import discrete\nmask = discrete.soft_topk({x}, 2, temperature=0.1)",
        ("cut.index",),
        ("topk", "kthvalue", "subset"),
    ),
    Remedy(
        "discrete.greater",
        "The probability that the comparison holds: exact in the forward pass with hard=True, a gradient backwards.",
        "from pullback import discrete\ngate = discrete.greater({x}, 0.0, temperature=0.1, hard=True)",
        ("cut.comparison", "zero"),
        ("gt", "ge", "lt", "le", "greater", "less", "comparison", "threshold", "mask", "bool", "compare"),
    ),
    Remedy(
        "discrete.equal",
        "A bump that is 1 at equality and falls to 0 within the temperature.",
        "from pullback import discrete\nsame = discrete.equal({x}, 0.0, temperature=0.1)",
        ("cut.comparison",),
        ("eq", "ne", "equal", "isclose"),
    ),
    Remedy(
        "discrete.where",
        "Blends the two branches by the probability of the condition, so the condition gets a gradient too.",
        "from pullback import discrete\ngate = discrete.greater({x}, 0.0, temperature=0.1)\n"
        "value = discrete.where(gate, {x}, torch.zeros_like({x}))",
        ("cut.comparison", "cut.control_flow", "control-flow"),
        ("where", "if", "branch", "masked_fill", "masked_select", "nonzero", "while", "bool", "__bool__"),
    ),
    Remedy(
        "discrete.straight_through",
        "Any hard function forward, the gradient of a smooth one backwards.",
        "from pullback import discrete\nhard = discrete.straight_through({x}.detach().round(), {x})",
        ("zero", "cut.rounding", "cut.custom", "cut.operation"),
        ("straight_through", "ste", "quantize", "function", "custom"),
    ),
    Remedy(
        "discrete.round",
        "Rounded values forward, the slope of a smooth staircase backwards.",
        "from pullback import discrete\nrounded = discrete.round({x}, temperature=0.1, hard=True)",
        ("zero", "cut.cast", "cut.rounding"),
        ("round", "long", "int", "to", "type", "quantize", "cast", "__int__", "byte", "short", "bool"),
    ),
    Remedy(
        "discrete.floor",
        "Floor (ceil and trunc alike) forward, the slope of a smooth staircase backwards.",
        "from pullback import discrete\nlower = discrete.floor({x}, temperature=0.1, hard=True)",
        ("zero", "cut.rounding"),
        ("floor", "ceil", "trunc", "fix", "floor_divide", "div", "frac", "__floordiv__"),
    ),
    Remedy(
        "discrete.sign",
        "The sign forward, the slope of a smooth step backwards.",
        "from pullback import discrete\nsigns = discrete.sign({x}, temperature=0.1, hard=True)",
        ("zero",),
        ("sign", "sgn", "signbit"),
    ),
    Remedy(
        "discrete.heaviside",
        "The step forward, the slope of a smooth step backwards.",
        "from pullback import discrete\nstep = discrete.heaviside({x}, torch.zeros(()), temperature=0.1, hard=True)",
        ("zero",),
        ("heaviside", "step"),
    ),
    Remedy(
        "discrete.clamp",
        "The clamped value with a gradient that fades outside of the bounds instead of stopping at them.",
        "from pullback import discrete\nbounded = discrete.clamp({x}, 0.0, 1.0, temperature=0.1)",
        ("zero",),
        ("clamp", "clip", "clamp_", "clamp_min", "clamp_max", "hardtanh", "hardsigmoid", "relu6"),
    ),
    Remedy(
        "torch.nn.functional.leaky_relu",
        "Every unit of this layer is off for every sample; a leak (or a smaller step or bias) lets it come back.",
        "import torch.nn.functional as F\nactive = F.leaky_relu({x}, 0.01)",
        ("zero",),
        ("relu", "relu_", "threshold", "maximum"),
    ),
    Remedy(
        "torch.nn.functional.binary_cross_entropy_with_logits",
        "The output is saturated: take the loss of the logits, not of the squashed value.",
        "import torch.nn.functional as F\nloss = F.binary_cross_entropy_with_logits({x}, torch.ones_like({x}))",
        ("zero", "vanishing"),
        ("sigmoid", "tanh", "softmax", "hardsigmoid"),
    ),
    Remedy(
        "a term that varies",
        "The value is the same for every input (a sum of ranks or of a softmax): weight the entries differently.",
        "weights = torch.linspace(0, 1, {x}.shape[-1])\nvalue = (torch.softmax({x}, -1) * weights).sum()",
        ("zero",),
        ("invariant", "sum", "softmax"),
    ),
    Remedy(
        "discrete.gumbel_softmax",
        "A draw of one category with a gradient to the logits.",
        "from pullback import discrete\nchoice = discrete.gumbel_softmax({x}, temperature=0.5, hard=True)",
        ("cut.sampling",),
        ("multinomial", "categorical", "sample", "draw", "gumbel"),
    ),
    Remedy(
        "discrete.bernoulli",
        "A draw of 0 or 1 with a gradient to the probability.",
        "from pullback import discrete\ndraw = discrete.bernoulli(torch.sigmoid({x}), hard=True)",
        ("cut.sampling",),
        ("bernoulli", "dropout", "binomial", "poisson", "mask"),
    ),
    Remedy(
        "torch.randn_like",
        "Draw the noise apart and shift and scale it (rsample of torch.distributions does the same).",
        "draw = {x} + torch.randn_like({x})",
        ("cut.sampling",),
        ("normal", "normal_", "randn", "sample", "rand"),
    ),
    Remedy(
        "the tensor itself",
        "Leave out `.detach()` (or `.data`) where the gradient should pass.",
        "kept = {x}.clone()  # instead of {x}.detach()",
        ("cut.detach", "cut.data"),
        ("detach", "detach_", "data", "stop_gradient"),
    ),
    Remedy(
        "torch.enable_grad",
        "Compute outside of no_grad / inference_mode, or switch gradients on for this part.",
        "with torch.enable_grad():\n    value = {x} * 2.0",
        ("cut.no_grad", "cut.inference"),
        ("no_grad", "inference_mode", "set_grad_enabled", "torch.no_grad"),
    ),
    Remedy(
        "the tensor itself",
        "Keep the value a tensor: a Python number carries no gradient.",
        "value = {x}.sum()  # instead of {x}.sum().item()",
        ("cut.item", "cut.number"),
        ("item", "tolist", "float", "__float__", "__int__", "__index__", "int"),
    ),
    Remedy(
        "implicit.custom_root",
        "Stay in torch; a solver from outside becomes differentiable by the equation that its result satisfies.",
        "from pullback import implicit\n"
        "solver = implicit.custom_root(lambda y, a: y * y - a)(lambda start, a: a.detach().sqrt())\n"
        "root = solver(torch.ones(()), {x}.abs().sum())",
        ("cut.numpy",),
        ("numpy", "__array__", "scipy", "solve", "optimize", "fsolve", "root"),
    ),
    Remedy(
        "torch.stack",
        "Join tensors instead of building a new one from their values.",
        "joined = torch.stack([{x}.sum(), {x}.mean()])  # instead of torch.tensor([...])",
        ("cut.rebuild",),
        ("tensor", "as_tensor", "from_numpy", "Tensor", "FloatTensor", "new_tensor", "rebuild"),
    ),
    Remedy(
        "torch.where",
        "Make the input safe before the operation: both branches of `where` are differentiated.",
        "safe = torch.where({x} > 0, {x}, torch.ones_like({x}))\nvalue = torch.where({x} > 0, safe.log(), 0.0)",
        ("nan",),
        ("log", "sqrt", "div", "pow", "norm", "where", "nan", "acos", "asin", "reciprocal", "rsqrt", "atan2", "std"),
    ),
    Remedy(
        "an epsilon inside the root",
        "A norm whose gradient at zero is zero instead of NaN.",
        "length = ({x}.square().sum(-1) + 1e-12).sqrt()",
        ("nan", "kink"),
        ("norm", "vector_norm", "cdist", "std", "hypot", "sqrt"),
    ),
    Remedy(
        "torch.nn.LayerNorm",
        "Normalise between the steps, or shorten the path (residual connections, gates), so that products stay near 1.",
        "import torch.nn.functional as F\nnormalised = {x} + F.layer_norm({x}, {x}.shape[-1:])",
        ("vanishing", "exploding"),
        ("vanishing", "exploding", "rnn", "recurrent", "depth"),
    ),
    Remedy(
        "torch.nn.utils.clip_grad_norm_",
        "Bound the gradient's norm before the optimizer's step.",
        "parameters = [torch.ones(3, requires_grad=True)]\nparameters[0].square().sum().backward()\n"
        "torch.nn.utils.clip_grad_norm_(parameters, 1.0)",
        ("exploding",),
        ("exploding", "clip", "gradient"),
    ),
    Remedy(
        "gradients.evolution_gradient",
        "Beyond the horizon of a chaotic (or biased) step, the gradient of the smoothed loss is the useful one.",
        "from pullback import gradients\n"
        "noise = torch.Generator().manual_seed(0)\n"
        "estimate = gradients.evolution_gradient(\n"
        '    lambda p: p["x"].sin().sum(), {"x": {x}.detach()}, smoothing=0.1, pairs=16, generator=noise\n'
        ').gradient["x"]',
        ("chaotic", "biased"),
        ("chaos", "chaotic", "lyapunov", "horizon", "smoothed", "evolution", "biased"),
    ),
    Remedy(
        "torch.nn.functional.softplus",
        "A smooth activation has no kink to sit on.",
        "import torch.nn.functional as F\nsmooth = F.softplus({x}, beta=10.0)",
        ("kink",),
        ("relu", "abs", "kink", "l1_loss", "max", "min", "maximum", "minimum"),
    ),
    Remedy(
        "torch.autograd.grad",
        "Keep the graph of the inner gradient, so that what is computed from it can be differentiated.",
        "(inner,) = torch.autograd.grad({x}.square().sum(), {x}, create_graph=True)",
        ("cut.create_graph",),
        ("grad", "create_graph", "penalty", "backward"),
    ),
    _RELAXED,
)


def find(word: str) -> list[Remedy]:
    """Return the advice for a word: a torch operation, a finding's code, or what one wants to do.

    Args:
        word: such as ``"argmax"``, ``"torch.round"``, ``"cut.index"``.

    Returns:
        The fitting entries, the most specific first; empty if nothing fits (see :func:`suggest`).

    Example:
        >>> [remedy.block for remedy in find("torch.argsort")]
        ['discrete.rank', 'discrete.sort']
    """
    plain = word.strip().removeprefix("torch.").removeprefix("Tensor.").removeprefix("nn.functional.").lower()
    by_operation = [r for r in REMEDIES if plain in {o.lower() for o in r.operations}]
    by_code = [r for r in REMEDIES if any(_answers(code, plain) for code in r.codes)]
    by_block = [r for r in REMEDIES if r.block.rpartition(".")[2] == plain]
    return list(dict.fromkeys([*by_block, *by_operation, *by_code]))


def suggest(word: str) -> list[str]:
    """Return known words that are close to an unknown one.

    Example:
        >>> "argmax" in suggest("argmx")
        True
    """
    words = sorted({o for r in REMEDIES for o in r.operations} | {c for r in REMEDIES for c in r.codes})
    return get_close_matches(word, words, n=3)


def remedies_for(finding: Finding) -> tuple[dict[str, str], ...]:
    """Return what fits a finding, at most three, with the user's own expression in the examples.

    An entry fits if it answers the finding's code and names its operation; where none names the operation, those that
    answer the very code, then those that answer its kind.
    """
    operation = finding.operation.rpartition(".")[2].strip("_").lower()
    fitting = [r for r in REMEDIES if any(_answers(code, finding.code) for code in r.codes)]
    named = [r for r in fitting if r is not _RELAXED and operation in {o.strip("_").lower() for o in r.operations}]
    exact = [r for r in fitting if finding.code in r.codes and r is not _RELAXED]
    chosen = named or exact or [r for r in fitting if r is not _RELAXED]
    if _RELAXED in fitting and not _tried_in_vain(finding):
        chosen = [*chosen[:2], _RELAXED]
    expression = _expression(finding)
    return tuple(remedy.for_expression(expression) for remedy in dict.fromkeys(chosen[:3]))


def _tried_in_vain(finding: Finding) -> bool:
    """Whether under ``relaxed`` there was no gradient, or one that surely points away from the smoothed one."""
    evidence = finding.evidence
    if evidence.get("relaxed_gradient") == 0:
        return True
    return evidence.get("relaxed_cosine", 0.0) + 2 * evidence.get("relaxed_cosine_error", 0.0) < 0


def with_remedies(report: Report) -> Report:
    """Return the report with the remedies of every error and warning filled in (those already there are kept)."""
    return replace(
        report,
        findings=tuple(
            f if f.remedies or f.severity == "info" else replace(f, remedies=_shown(f)) for f in report.findings
        ),
    )


def _shown(finding: Finding) -> tuple[Shown, ...]:
    return tuple(Shown(r["block"], r["what"], finding.file, r["code"], "") for r in remedies_for(finding))


def _answers(code: str, asked: str) -> bool:
    return asked == code or asked.startswith(code + ".") or code.startswith(asked + ".")


def _expression(finding: Finding) -> str:
    """The receiver or first argument of the finding's call in the user's source, ``x`` where it cannot be read."""
    text = finding.source
    if finding.column and finding.end_column > finding.column:
        text = text[finding.column - 1 : finding.end_column - 1]
    try:
        tree = ast.parse(text.strip())
    except SyntaxError:
        return "x"
    operation = finding.operation.rpartition(".")[2]
    nodes = list(ast.walk(tree))
    if "comparison" in finding.code:
        nodes = [node for node in nodes if isinstance(node, ast.Compare)] or nodes
    for node in nodes:
        found = _operand(node, operation)
        if found is not None:
            written = ast.unparse(found)
            return written if isinstance(found, ast.Name | ast.Attribute | ast.Call | ast.Subscript) else f"({written})"
    return "x"


def _operand(node: ast.AST, operation: str) -> ast.expr | None:
    if isinstance(node, ast.Compare):
        return node.left
    if isinstance(node, ast.Attribute) and node.attr == operation and operation in {"data", "T"}:
        return node.value
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    if isinstance(function, ast.Attribute):
        module = isinstance(function.value, ast.Name) and function.value.id in {"torch", "F", "np", "numpy", "nn"}
        if not module and function.attr.rstrip("_") == operation.rstrip("_").strip("_"):
            return function.value
        if not module and function.attr in {"item", "detach", "numpy", "tolist", "long", "int", "float", "to", "cpu"}:
            return function.value
    if node.args and not isinstance(node.args[0], ast.Starred):
        return node.args[0]
    return None
