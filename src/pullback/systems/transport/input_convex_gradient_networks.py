"""A network that is the gradient of a convex function without being the derivative of a network.

For one hidden layer the matrix J^T J of its Jacobian is the Hessian of a convex function, and integrating it along the
line from 0 gives the gradient of that function, in closed form (Richter-Powell, Lorraine, Amos, 2021). Such maps are
what is optimal for squared distances. Compared with the gradient of an input convex network of one layer and with a
plain network, on a quartic whose gradient is known; then used as the map between the colours of two photographs, which
are real. A hidden unit of it has fewer parameters than one of the others, so all have as many parameters, each with the
step size that suits it best. As in the paper it fits better than the convex network; that ends at 130 parameters, and
with as many hidden units it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from pullback import data, transport
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    parameters: Annotated[tuple[int, ...], at_least(8)] = (34, 74, 130)
    """Of the networks that are compared, up to half a hidden unit."""
    steps: Annotated[int, at_least(1)] = 800
    """Adam steps of each network."""
    batch: Annotated[int, at_least(2)] = 256
    """Points a step."""
    lr: Annotated[tuple[tuple[float, ...], ...], above(0)] = ((0.6, 0.6, 0.3), (0.6, 0.6, 0.6), (0.6, 0.6, 0.3))
    """Step sizes of Adam at the beginning, of each arm with so many parameters: the best of 0.1, 0.3, 0.6 and 1. They
    fall to 0 on a cosine."""
    pixel_lr: Annotated[tuple[float, float], above(0)] = (0.1, 0.01)
    """The same for the two maps of colours, the best of 0.003 to 0.3."""
    replicates: Annotated[int, at_least(1)] = 6
    """Initialisations, batches and pixels, each the same for all arms."""
    pixel_steps: Annotated[int, at_least(1)] = 150
    """Adam steps of the maps of colours."""
    pixel_units: Annotated[int, at_least(1)] = 64
    """Their hidden units."""
    tested: Annotated[int, at_least(4)] = 300
    """Unseen pixels on which they are judged."""

    def __post_init__(self) -> None:
        """Check that each arm has a step size for each number of parameters."""
        if len(self.lr) != 3 or any(len(rates) != len(self.parameters) for rates in self.lr):
            raise ValueError(f"lr must have 3 rows of {len(self.parameters)} step sizes, got {self.lr}")


@system(
    "input-convex-gradient-networks",
    family="transport",
    title="Input Convex Gradient Networks",
    paper="Richter-Powell, Lorraine, Amos, 2021, arXiv 2111.12187",
    config=Config,
    smoke={"parameters": (34,), "lr": ((0.1,),) * 3, "steps": 3, "replicates": 1, "pixel_steps": 2, "tested": 40},
    full={"steps": 10_000, "pixel_steps": 2000, "tested": 2000},
    data=("pictures",),
    blocks=tuple(
        f"transport.{b}" for b in ("InputConvexGradient", "InputConvexNetwork", "line_integral_field", "hessian_defect")
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check the closed form, fit a field that is known, carry colours by an optimal map."""
    _exact(lab)
    lab.data("gradient of a quartic in two dimensions", origin="simulated")
    lab.data("colours of two photographs, coffee and astronaut", origin="real")
    arms = [lab.arm(name, baseline=name != "ICGN") for name in FIELDS]
    ours, convex, plain = arms
    fields: dict[str, nn.Module] = {}
    for _ in lab.replicates(config.replicates):
        for arm, rates in zip(arms, config.lr, strict=True):
            for count, rate in zip(config.parameters, rates, strict=True):
                fields[arm.name] = _fit(lab, config, arm, count, rate)
                if arm is ours and count == config.parameters[0]:
                    least = fields[arm.name]
            _defects(lab, arm, fields[arm.name], _square(500, lab.fork("points"), torch.float64))
        maps: tuple[Field, Field] = (transport.InputConvexGradient, Displacement)
        shown = [_colours(lab, config, *of) for of in zip((ours, plain), maps, config.pixel_lr, strict=True)]
    few = [_error(count) for count in config.parameters[:2]]
    lab.claim(
        f"with {' and '.join(map(str, config.parameters[:2]))} parameters the mean squared error is at most 0.8 times "
        "that of the gradient of a convex network, and of a plain network",
        *(ours[error] <= 0.8 * other[error] for error in few for other in (convex, plain)),
    )
    lab.claim(
        "after training the Jacobian is symmetric to 1e-6 and positive to -1e-6, that of a plain network is not",
        ours["asymmetry"] <= 1e-6,
        ours["smallest eigenvalue"] >= -1e-6,
        plain["asymmetry"] > 1e-2,
    )
    excess, skew = "colours: paid above the best matching", "colours: asymmetry"
    lab.claim(
        "the map of colours matches unseen pixels optimally, to 1e-6 of what it pays, and its Jacobian is symmetric "
        "to 1e-6 there; that of a plain network, which begins as the identity, is not",
        ours[excess] <= 1e-6,
        ours[skew] <= 1e-6,
        plain[skew] > 1e-2,
    )
    left = "colours: divergence, part of that before"
    lab.claim(
        "it carries them: at most 0.3 of the divergence is left, and at most 0.85 of what the plain network leaves",
        ours[left] <= 0.3,
        ours[left] <= 0.85 * plain[left],
    )
    _draw(lab, config, arms, least, fields[plain.name])
    coffee, astronaut = (data.picture(n)[::3, ::3].movedim(-1, 0) for n in ("coffee", "astronaut"))
    astronaut = nn.functional.interpolate(astronaut[None], coffee.shape[1:], mode="area")[0]
    titles = ["source", ours.name, plain.name, "target"]
    lab.images([[coffee, *shown, astronaut]], titles=titles, name="colours", caption="Real photographs.")


class ConvexGradient(nn.Module):
    """The gradient of a convex network with one hidden layer."""

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.network = transport.InputConvexNetwork(dim, (units,))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gradient at x."""
        return self.network.gradient(x)


class Displacement(nn.Sequential):
    """``x + N(x)`` with a plain network N that begins at 0: the identity."""

    def __init__(self, dim: int, units: int) -> None:
        super().__init__(nn.Linear(dim, units), nn.Softplus(), nn.Linear(units, dim))
        for tensor in self[-1].parameters():
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Move every point."""
        moved: Tensor = super().forward(x)
        return x + moved


Field = Callable[[int, int], nn.Module]
"""From d and a number of hidden units to a map of points ``[n, d]``."""
FIELDS: dict[str, tuple[Field, int]] = {
    "ICGN": (transport.InputConvexGradient, 3),
    "ICNN gradient": (ConvexGradient, 4),
    "plain network": (lambda d, h: nn.Sequential(nn.Linear(d, h), nn.Softplus(), nn.Linear(h, d)), 5),
}
"""What is compared in two dimensions, and parameters a hidden unit; each has two more."""
DIRECTIONS = torch.tensor([[1.0, 0.0], [0.5, 0.8], [-0.6, 0.7]])


def quartic_gradient(x: Tensor) -> Tensor:
    """The gradient of the sum of ``(q x)^4 / 4`` over three directions q, and ``|x|^2 / 2``."""
    directions = DIRECTIONS.to(x)
    return (x @ directions.mT) ** 3 @ directions + x


def _error(parameters: int) -> str:
    return f"mean squared error, {parameters} parameters"


def _square(count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    return 3 * torch.rand(count, 2, generator=generator, dtype=dtype) - 1.5


def _exact(lab: Lab) -> None:
    """The closed form against nodes along the line and along another path, and a deep network that is no gradient."""
    g, arm = lab.fork("exact"), lab.arm("ICGN")
    net = transport.InputConvexGradient(5, 16, generator=g).double()
    x, corner = torch.randn(2, 500, 5, generator=g, dtype=torch.float64)
    with torch.no_grad():
        closed = net(x) - net.offset
        line = transport.line_integral_field(net.network, x)
        first = transport.line_integral_field(net.network, corner, nodes=32)
        second = transport.line_integral_field(lambda u: net.network(corner.repeat(32, 1) + u), x - corner, nodes=32)
    arm.metric("closed form less 16 nodes", (closed - line).abs().max(), better="lower")
    arm.metric("closed form less another path", (closed - first - second).abs().max(), better="lower")
    lab.claim(
        "the closed form is the integral of 16 nodes to 1e-6, and that along a path around a corner to 1e-5",
        arm["closed form less 16 nodes"] <= 1e-6,
        arm["closed form less another path"] <= 1e-5,
        scale="smoke",
    )
    shallow = transport.hessian_defect(net, x)
    layers = [torch.randn(16, size, generator=g, dtype=torch.float64) / size**0.5 for size in (5, 16)]

    def deep(x: Tensor) -> Tensor:
        return nn.functional.softplus(nn.functional.softplus(x @ layers[0].mT) @ layers[1].mT)

    two = lab.arm("two layers", baseline=True)
    defect = transport.hessian_defect(lambda x: transport.line_integral_field(deep, x), x)
    arm.metric("asymmetry of random weights", shallow.asymmetry.max(), better="lower")
    arm.metric("smallest eigenvalue of random weights", shallow.smallest.min())
    two.metric("asymmetry of random weights", defect.asymmetry.max(), better="lower")
    lab.claim(
        "at 500 points the Jacobian of one layer is symmetric to 1e-6 and positive to -1e-6, that of two layers is not",
        arm["asymmetry of random weights"] <= 1e-6,
        arm["smallest eigenvalue of random weights"] >= -1e-6,
        two["asymmetry of random weights"] > 1e-2,
        scale="smoke",
    )


def _fit(lab: Lab, config: Config, arm: Arm, parameters: int, lr: float) -> nn.Module:
    """Fit the gradient of the quartic on a square, and measure the error on a grid of it."""
    field, each = FIELDS[arm.name]
    with arm.weights():
        net = field(2, round((parameters - 2) / each))
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    batches = lab.fork(f"batches of {parameters}")
    for _ in arm.steps(config.steps, net, optimizer, schedule, batches, name=f"{parameters} parameters"):
        x = _square(config.batch, batches)
        arm.descend((net(x) - quartic_gradient(x)).square().mean(), optimizer, name=f"loss, {parameters} parameters")
        schedule.step()
    with torch.no_grad():
        error = (net(_grid()) - quartic_gradient(_grid())).square().mean()
    arm.metric(_error(parameters), error, better="lower")
    return net


def _grid(count: int = 41) -> Tensor:
    axis = torch.linspace(-1.5, 1.5, count)
    return torch.cartesian_prod(axis, axis)


def _defects(lab: Lab, arm: Arm, net: nn.Module, points: Tensor) -> None:
    found = transport.hessian_defect(net.double(), points)
    net.float()
    arm.metric("asymmetry", found.asymmetry.max(), better="lower")
    arm.metric("smallest eigenvalue", found.smallest.min(), better="higher")


def _colours(lab: Lab, config: Config, arm: Arm, field: Field, lr: float) -> Tensor:
    """Carry colours onto colours, at the least sum of squared distances; return the picture."""
    g = lab.fork("colours")
    pictures = [data.picture(name) for name in ("coffee", "astronaut")]
    clouds = [p.flatten(0, 1)[torch.randperm(p[..., 0].numel(), generator=g)] for p in pictures]
    with arm.weights("colours"):
        net = field(3, config.pixel_units)
    fit = transport.TransportMapFit(
        net,
        *(c[:2000] for c in clouds),
        regularization=0.0,
        steps=config.pixel_steps,
        lr=lr,
        batch=256,
        generator=lab.fork("colour batches"),
    )
    for _ in arm.steps(config.pixel_steps, fit, name="colours"):
        fit.step()
    x, y = (c[2000 : 2000 + config.tested].double() for c in clouds)
    asymmetry = transport.hessian_defect(net.double(), x).asymmetry.detach()
    arm.metric("colours: asymmetry", asymmetry.mean(), better="lower")
    divergence = partial(transport.sinkhorn_divergence, relative_epsilon=0.02, tolerance=1e-3)
    with torch.no_grad():
        image = net(x)
        gap = transport.monge_gap(x, image, epsilon=0).value / (x - image).square().sum(-1).mean()
        arm.metric("colours: paid above the best matching", gap, better="lower")
        left = divergence(image, y).value / divergence(x, y).value
        arm.metric("colours: divergence, part of that before", left, better="lower")
        small = pictures[0][::3, ::3]
        return net(small.double().flatten(0, 1)).clamp(0, 1).view_as(small).movedim(-1, 0)


def _draw(lab: Lab, config: Config, arms: list[Arm], least: nn.Module, plain: nn.Module) -> None:
    figure, (errors, field, odd) = lab.subplots(1, 3, figsize=(13, 4))
    for arm in arms:
        errors.plot(
            config.parameters,
            [float(arm[_error(n)]) for n in config.parameters],
            "o-",
            color=arm.colour,
            label=arm.name,
        )
    errors.set(xlabel="parameters", ylabel="mean squared error", xscale="log", yscale="log", title="error")
    errors.legend()
    at = _grid(13)
    with torch.no_grad():
        for values, colour, label in (
            (quartic_gradient(at), lab.colour("target"), "target"),
            (least(at), arms[0].colour, f"ICGN, {config.parameters[0]} parameters"),
        ):
            field.quiver(*at.T.numpy(), *values.T.numpy(), color=colour, label=label, scale=120, alpha=0.6)
    field.set(title="field", aspect="equal")
    field.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    at = _grid(31)
    defect = transport.hessian_defect(plain, at).asymmetry.detach().view(31, 31)
    drawn = odd.imshow(defect.T.numpy(), origin="lower", extent=(-1.5, 1.5, -1.5, 1.5))
    figure.colorbar(drawn, ax=odd)
    odd.set(title="asymmetry of the plain network")
    lab.figure("fields", figure, caption="Last replicate; errors are means over replicates.")
