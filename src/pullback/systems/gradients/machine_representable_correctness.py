"""Where networks with floating-point parameters have no derivative, and whether automatic differentiation errs there.

Parameters are floating-point numbers, a finite set, in which "almost everywhere" says nothing: kinks are hit exactly.
For networks whose units have biases and share no weights, Lee, Park and Aiken (ICML 2023, arXiv 2301.13370) prove that
automatic differentiation is right wherever a derivative exists, that it gives an element of Clarke's subdifferential
where none does, bound the fraction of such parameters by (kinks of all units) / (number of values), and give an exact
test. Measured here: all networks of one or two units over 4-bit numbers, with and without biases, and draws of networks
of 16 units over 8-bit numbers. Real are the inputs, rows of iris rounded to 8 bits; double precision adds all exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from sklearn.datasets import load_iris
from torch import Tensor

from pullback.gradients import clarke_contains, count_nondifferentiable, kink_report, minifloats
from pullback.lab import Arm, Lab, at_least, system

ACTIVATIONS = ("relu", "leaky_relu", "hardtanh")
FORMATS = ((1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3))
"""Bits of exponent and mantissa: 2 to 8 bits with the sign."""


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    draws: Annotated[int, at_least(100)] = 200_000
    """Networks of 16 units that are drawn, for each activation and input."""
    rows: Annotated[int, at_least(1)] = 2
    """Rows of iris that these networks see."""
    points: Annotated[int, at_least(1)] = 64
    """Points without derivative at which the subdifferential is looked at, for each family."""


@system(
    "machine-representable-correctness",
    family="gradients",
    title="On the Correctness of Automatic Differentiation for Neural Networks with Machine-Representable Parameters",
    paper="Lee, Park, Aiken, ICML 2023, arXiv 2301.13370",
    config=Config,
    smoke={"draws": 2000, "rows": 1, "points": 2},
    full={"draws": 10_000_000, "rows": 10},
    blocks=(
        "gradients.count_nondifferentiable",
        "gradients.minifloats",
        "gradients.clarke_contains",
        "gradients.kink_report",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Enumerate small networks, draw larger ones, look at what sharing a value does, and at formats of other sizes."""
    lab.data("rows of iris, rounded to 8 bits", origin="real")
    lab.data("all or uniformly drawn parameters of 2 to 8 bits", origin="simulated")
    arms = _enumerate(lab, config) + _draw(lab, config)
    points = sum(arm["points looked at"] for arm in arms)
    share = sum(arm["gradients in the subdifferential"] for arm in arms)
    moved = sum(arm["moved gradients in the subdifferential"] for arm in arms)
    lab.claim(
        "where there is no derivative, autograd's gradient is in Clarke's subdifferential at every point looked at; of "
        "gradients that are moved by their largest entry, at most one in twenty is",
        points > 0,
        share == points,
        moved <= 0.05 * points,
    )
    _sharing(lab)
    _formats(lab)


def _count(lab: Lab, config: Config, name: str, *what: Any, baseline: bool = False, **words: Any) -> Arm:
    """Count, and compare autograd's gradient at some points without derivative with the gradients around."""
    arm = lab.arm(name, baseline=baseline)
    for _ in arm.steps(1, {}, name="count"):
        found = count_nondifferentiable(*what, **words)
        points = [] if baseline else list(found.examples[: config.points])
        inside = outside = 0
        around: dict[str, Any] = {"generator": lab.fork("around"), "chunk": 256, "samples": 256}
        for point in points:
            gradient = torch.func.grad(found.network)(point)
            inside += clarke_contains(found.network, point, gradient, **around).contains
            moved = gradient + gradient.abs().max().clamp_min(1)
            outside += clarke_contains(found.network, point, moved, **around).contains
        numbers = {
            "networks": found.total,
            "with a pre-activation on a kink": found.touched,
            "without derivative": found.by_slopes,
            "wrong gradient": found.incorrect,
            "fraction over its bound": found.fraction / found.bound,
            "exact test and slopes agree": found.agreeing / found.touched if found.touched else 1,
            "points looked at": len(points),
            "gradients in the subdifferential": inside,
            "moved gradients in the subdifferential": outside,
        }
        for key, number in numbers.items():
            arm.metric(key, float(number))
    return arm


def _enumerate(lab: Lab, config: Config) -> list[Arm]:
    """All parameters of 4 bits: one unit, two side by side, two in a row, on one or two inputs."""
    values, one, two = minifloats(2, 1), torch.ones(1).double(), torch.tensor([1.0, 0.5]).double()
    shapes = {"one unit": ((1,), two), "two units": ((2,), one), "two layers": ((1, 1), one)}
    biased, bare = [], {}
    for activation in (*ACTIVATIONS, "clamp"):
        words: dict[str, Any] = {"activation": activation}
        for name, (widths, inputs) in shapes.items():
            biased.append(_count(lab, config, f"{name}, {activation}", widths, values, inputs, **words))
        name, words = f"2 + 1 units without biases, {activation}", words | {"bias": False, "baseline": True}
        bare[activation] = _count(lab, config, name, (2, 1), values, one, **words)
    lab.claim(
        "every network of one or two units with biases over 4-bit numbers: the gradient is wrong nowhere, and at most "
        "the bound has no derivative",
        *(arm["wrong gradient"] == 0 for arm in biased),
        *(arm["fraction over its bound"] <= 1 for arm in biased),
        scale="smoke",
    )
    lab.claim(
        "the exact test agrees with one-sided differences on every enumerated parameter that touches a kink",
        *(arm["exact test and slopes agree"] == 1 for arm in biased),
        scale="smoke",
    )
    lab.claim(
        "without biases gradients are wrong at some parameters (leaky relu, and a relu whose derivative at 0 is taken "
        "from the right), and with those without derivative they stay below the bound that counts zeros as kinks",
        *(bare[name]["wrong gradient"] > 0 for name in ("leaky_relu", "clamp")),
        *(arm["fraction over its bound"] <= 1 for arm in bare.values()),
        scale="smoke",
    )
    return biased


def _draw(lab: Lab, config: Config) -> list[Arm]:
    """Networks of 16 + 1 units over 8-bit numbers, on rows of iris."""
    values = minifloats(4, 3)
    rows = torch.as_tensor(load_iris().data)
    rows = values[(rows[:, :, None] - values).abs().argmin(-1)]  # rounded to the nearest
    chosen = torch.randperm(len(rows), generator=lab.fork("rows"))[: config.rows]
    arms = []
    for activation in ACTIVATIONS:
        for number, row in enumerate(rows[chosen]):
            words: dict[str, Any] = {"activation": activation, "samples": config.draws}
            words["generator"] = lab.fork(f"parameters {number}")
            name = f"16 + 1 units, {activation}, iris {number + 1}"
            arms.append(_count(lab, config, name, (16, 1), values, row, **words))
    lab.claim(
        "networks of 16 units over 8-bit numbers with biases: no drawn parameter has a wrong gradient, the test is "
        "right at all that touch a kink, and fewer than the bound have no derivative (some, of relu and leaky relu)",
        *(arm["wrong gradient"] == 0 for arm in arms),
        *(arm["exact test and slopes agree"] == 1 for arm in arms),
        *(arm["fraction over its bound"] <= 1 for arm in arms),
        *(arm["without derivative"] > 0 for arm in arms if "relu" in arm.name),
    )
    return arms


def _identity(x: Tensor) -> Tensor:
    return (torch.relu(x) - torch.relu(-x)).sum()


def _sharing(lab: Lab) -> None:
    """One value in two units, without parameters of their own: the identity, whose derivative comes out as 0."""
    zero = torch.zeros(1, dtype=torch.float64)
    report = kink_report(_identity, zero, generator=lab.fork("probes"))
    gradient = torch.func.grad(_identity)(zero)
    member = clarke_contains(_identity, zero, gradient, generator=lab.fork("around"))
    lab.table(
        "shared value",
        ("operation", "source", "matters"),
        [(kink.operation, kink.source, str(kink.matters)) for kink in report.kinks],
        "Kinks that relu(x) - relu(-x) touches at 0.",
    )
    right = [s.left == s.right and abs(abs(s.left) - 1) < 1e-6 and s.autograd == 0 for s in report.slopes]
    lab.claim(
        "relu(x) - relu(-x) at 0, one value in two units: the report names both kinks, one-sided slopes are 1 on both "
        "sides, autograd's is 0 and outside of the subdifferential",
        len(report.kinks) == 2 and all(kink.matters for kink in report.kinks),
        all(right) and not member.contains,
        scale="smoke",
        distance=member.distance,
    )


def _formats(lab: Lab) -> None:
    """The tight family, one unit on one input, over formats of 2 to 8 bits; beside it two units in a row, drawn."""
    one = torch.ones(1).double()
    sizes = [len(minifloats(*bits)) for bits in FORMATS]
    tight = [count_nondifferentiable((1,), minifloats(*bits), one) for bits in FORMATS]
    draws = [
        count_nondifferentiable((1, 1), minifloats(*bits), one, samples=50_000, generator=lab.fork("formats"))
        for bits in FORMATS
    ]
    fits = lab.scaling(
        sizes,
        {
            "one unit": [found.fraction for found in tight],
            "two layers": [found.fraction for found in draws],
            "bound, one unit": [found.bound for found in tight],
            "bound, two layers": [found.bound for found in draws],
        },
        name="fraction without derivative",
        xlabel="numbers that a parameter may be",
        ylabel="fraction of parameters",
        caption="Parameters without derivative, for formats of 2 to 8 bits, and bounds; one unit lies on its bound.",
    )
    for name, family in (("one unit, tight", tight), ("two layers, drawn", draws)):
        worst = max(found.fraction / found.bound for found in family)
        lab.arm(name).metric("largest fraction over its bound", worst)
        lab.arm(name).metric("least fraction over its bound", min(f.fraction / f.bound for f in family))
    lab.claim(
        "the fraction without derivative falls as the number of values grows, with an exponent in [-1.15, -0.85]; in "
        "the tight family it is between a tenth of the bound and the bound",
        *(fits[name].exponent <= -0.85 for name in ("one unit", "two layers")),
        *(fits[name].exponent >= -1.15 for name in ("one unit", "two layers")),
        lab.arms["one unit, tight"]["least fraction over its bound"] >= 0.1,
        lab.arms["one unit, tight"]["largest fraction over its bound"] <= 1,
    )
