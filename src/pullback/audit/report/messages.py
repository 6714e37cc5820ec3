"""The sentence of a finding."""

from __future__ import annotations

__all__ = ["describe", "explain"]

_CUT = {
    "index": "{op} returns positions, which carry no gradient, and the loss depends on them",
    "comparison": "{op} returns a truth value, which carries no gradient, and the loss depends on it",
    "cast": "{op} to a type without gradients cuts the path to the loss",
    "detach": "detach cuts a value that the loss depends on",
    "data": ".data cuts a value that the loss depends on",
    "no_grad": "{op} runs without gradients (no_grad), and the loss depends on its result",
    "inference": "{op} runs in inference mode, and the loss depends on its result",
    "item": "{op} turns a tensor into a Python number, and the loss depends on that number",
    "number": "{op} turns a tensor into a Python number, and the loss depends on that number",
    "numpy": "the value leaves for NumPy and comes back without its gradient",
    "rebuild": "{op} builds a new tensor from values and drops their gradient",
    "sampling": "{op} draws a sample, and no gradient passes through the draw",
    "create_graph": "autograd.grad without create_graph=True returns a constant, and the loss depends on it",
    "custom": "the custom function {op} returns a result without gradient, and the loss depends on it",
    "optimizer": "{count} tensors of {op} get no gradient: they were replaced or copied after it was built, and it "
    "does not step the new ones",
    "unstepped": "what is made here gets the gradient, but the optimizer was built before and steps what it replaces",
    "unregistered": "what is made here gets a gradient and is not stepped: {name} is a plain container, whose tensors "
    "parameters() does not list",
    "operation": "{op} has no derivative, and the loss depends on its result",
}
_OTHER = {
    "zero": "{op} has derivative zero here, so nothing passes back although the value matters",
    "vanishing": "the cotangent shrinks by {factor} on the way back; this line loses most of it",
    "exploding": "the cotangent grows by {factor} on the way back; this line adds most of it",
    "kink": "{count} of {size} values of {op} lie exactly on a point without derivative; autograd takes one side",
    "chaotic": "the loop separates neighbouring states exponentially: exponent {exponent} a step",
    "biased": "the gradient that the backward of {op} returns disagrees with the slope of its forward",
    "control-flow.number": "a trained value becomes a whole number (a bound, a size, rounds): no gradient passes",
    "control-flow": "a Python branch depends on a trained value; no gradient passes through the choice",
    "unused": "{name} was computed with, but its value reaches no backward pass",
}


def explain(code: str, **words: object) -> str:
    """Return one sentence for a finding's code.

    Example:
        >>> explain("cut.index", op="argmax")
        'argmax returns positions, which carry no gradient, and the loss depends on them'
    """
    if "reason" in words:
        return "{op} passes nothing back: {reason}".format(**words)
    return _template(code).format(**words)


def describe(code: str) -> str:
    """Return what a finding of this code is, whatever operation and numbers are in it.

    Example:
        >>> describe("cut.index")
        'an operation returns positions, which carry no gradient, and the loss depends on them'
    """
    return _template(code).format_map(_General(op="an operation"))


class _General(dict[str, str]):
    """Words for what only a finding knows."""

    def __missing__(self, name: str) -> str:
        return {
            "factor": "a large factor",
            "count": "some",
            "size": "the",
            "name": "a value",
            "exponent": "above 0",
        }.get(name, "some " + name)


def _template(code: str) -> str:
    kind, _, detail = code.partition(".")
    if kind == "nan":
        if detail == "forward":
            return "{op} is the first operation whose result is not finite, and the loss depends on it"
        if detail == "where":
            return (
                "{op} has an infinite derivative at values that a later mask or where hides: "
                "zero times infinity makes the gradient NaN"
            )
        return "{op} receives a finite cotangent and passes on one that is not finite"
    if code == "unused.gradient":
        return "{op} finds no gradient: they were computed and set to None before it, by zero_grad or by hand"
    if code == "kink.penalty":
        return (
            "SGD steps along the derivative of the penalty on {name}, whose weights then bounce around 0, by step size "
            "times penalty, and never are 0; gradients.ProximalSGD makes them 0"
        )
    if code == "zero.cancels":
        return "the gradients that reach {name} through the two sides of {op} cancel exactly, although the value stays"
    if code == "biased.operation":
        return (
            "the derivative that torch has for {op} is not that of its values at these inputs: it holds for others "
            "only, such as logarithms of probabilities or symmetric matrices"
        )
    if code == "biased.gradient":
        return "the gradient of this value is not that of its randomly smoothed form: something on the way biases it"
    return _CUT.get(detail, _CUT["operation"]) if kind == "cut" else _OTHER[kind]
