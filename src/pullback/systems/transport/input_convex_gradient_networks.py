"""A network that is the gradient of a convex function without being the derivative of a network.

For one hidden layer the matrix J^T J of its Jacobian is the Hessian of a convex function, and integrating it along the
line from 0 gives the gradient of that function, in closed form (Richter-Powell, Lorraine, Amos, 2021). Such maps are
what is optimal for squared distances. Compared with the gradient of an input convex network and with a plain network of
as many hidden units, on a quartic whose gradient is known; then used as the map between the colours of two photographs.
The photographs are real. The paper has it ahead of a convex network; with the step size tuned for both it is behind
with 4 units, as good with 32, and cheaper, as nothing is differentiated to get a gradient.
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

    units: Annotated[tuple[int, ...], at_least(1)] = (4, 8, 32)
    """Hidden units of the networks that are compared."""
    steps: Annotated[int, at_least(1)] = 800
    """Adam steps of each network."""
    batch: Annotated[int, at_least(2)] = 256
    """Points a step."""
    lr: Annotated[float, above(0)] = 0.3
    """Step size of Adam at the beginning, best of 0.01 to 0.3 for all arms; it falls to 0 on a cosine."""
    pixel_lr: Annotated[float, above(0)] = 3e-2
    """The same for the maps of colours."""
    replicates: Annotated[int, at_least(1)] = 5
    """Initialisations and batches, each the same for all arms."""
    pixel_steps: Annotated[int, at_least(1)] = 150
    """Adam steps of the maps of colours."""
    pixel_units: Annotated[int, at_least(1)] = 64
    """Their hidden units."""
    tested: Annotated[int, at_least(4)] = 300
    """Unseen pixels on which they are judged."""


@system(
    "input-convex-gradient-networks",
    family="transport",
    title="Input Convex Gradient Networks",
    paper="Richter-Powell, Lorraine, Amos, 2021, arXiv 2111.12187",
    config=Config,
    smoke={"units": (4,), "steps": 3, "batch": 16, "replicates": 1, "pixel_steps": 2, "pixel_units": 8, "tested": 40},
    full={"steps": 10_000, "units": (4, 8, 32, 128), "pixel_steps": 2000, "tested": 2000},
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
        for arm in arms:
            for units in config.units:
                fields[arm.name] = _fit(lab, config, arm, units)
                if arm is ours and units == config.units[0]:
                    least = fields[arm.name]
            _defects(lab, arm, fields[arm.name])
    most = _error(config.units[-1])
    lab.claim(
        "with 32 units the mean squared error is at most 1.5 times that of the gradient of a convex network and 0.8 "
        "times that of a plain one",
        ours[most] <= 1.5 * convex[most],
        ours[most] <= 0.8 * plain[most],
    )
    lab.claim(
        "after training the Jacobian is symmetric to 1e-6 and positive to -1e-6, that of a plain network is not",
        ours["asymmetry"] <= 1e-6,
        ours["smallest eigenvalue"] >= -1e-6,
        plain["asymmetry"] > 1e-2,
    )
    if lab.scale != "smoke":
        _cost(lab, config, fields)
    _colours(lab, config, [ours, plain])
    _draw(lab, config, arms, least, fields[plain.name])


FIELDS: dict[str, Callable[[int, int], nn.Module]] = {
    "ICGN": transport.InputConvexGradient,
    "ICNN gradient": lambda dim, units: ConvexGradient(dim, units),
    "plain network": lambda dim, units: nn.Sequential(nn.Linear(dim, units), nn.Softplus(), nn.Linear(units, dim)),
}
DIRECTIONS = torch.tensor([[1.0, 0.0], [0.5, 0.8], [-0.6, 0.7]])


class ConvexGradient(nn.Module):
    """The gradient of a convex network with one hidden layer."""

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.network = transport.InputConvexNetwork(dim, (units,))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gradient at x."""
        return self.network.gradient(x)


def quartic_gradient(x: Tensor) -> Tensor:
    """The gradient of the sum of ``(q x)^4 / 4`` over three directions q, and ``|x|^2 / 2``."""
    directions = DIRECTIONS.to(x)
    return (x @ directions.mT) ** 3 @ directions + x


def _error(units: int) -> str:
    return f"mean squared error, {units} units"


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


def _fit(lab: Lab, config: Config, arm: Arm, units: int) -> nn.Module:
    """Fit the gradient of the quartic on a square, and measure the error on a grid of it."""
    with arm.weights():
        net = FIELDS[arm.name](2, units)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    batches = lab.fork(f"batches of {units}")
    for _ in arm.steps(config.steps, net, optimizer, schedule, batches, name=f"{units} units"):
        x = 3 * torch.rand(config.batch, 2, generator=batches) - 1.5
        arm.descend((net(x) - quartic_gradient(x)).square().mean(), optimizer, name=f"loss, {units} units")
        schedule.step()
    with torch.no_grad():
        error = (net(_grid()) - quartic_gradient(_grid())).square().mean()
    arm.metric(_error(units), error, better="lower")
    return net


def _cost(lab: Lab, config: Config, fields: dict[str, nn.Module]) -> None:
    """What a gradient of the loss takes, with the most units."""
    x = 3 * torch.rand(config.batch, 2, generator=lab.fork("race")) - 1.5

    def derive(net: nn.Module) -> None:
        torch.autograd.grad((net(x) - quartic_gradient(x)).square().mean(), list(net.parameters()))

    race = lab.race({name: partial(derive, net) for name, net in fields.items()}, seconds=0.05)
    lab.arm("ICGN").metric("gradient of the loss", 1e6 * race["ICGN"], unit="us", better="lower")
    lab.arm("ICNN gradient").metric("gradient of the loss", 1e6 * race["ICNN gradient"], unit="us", better="lower")
    statement = (
        "a gradient of the loss takes at most 0.7 of the time of that of a convex network, which is a derivative"
    )
    lab.claim(statement, race.ratio("ICGN", "ICNN gradient") <= 0.7)


def _grid(count: int = 41) -> Tensor:
    axis = torch.linspace(-1.5, 1.5, count)
    return torch.cartesian_prod(axis, axis)


def _defects(lab: Lab, arm: Arm, net: nn.Module) -> None:
    points = 3 * torch.rand(500, 2, generator=lab.fork("points"), dtype=torch.float64) - 1.5
    found = transport.hessian_defect(net.double(), points)
    net.float()
    arm.metric("asymmetry", found.asymmetry.max(), better="lower")
    arm.metric("smallest eigenvalue", found.smallest.min(), better="higher")


def _colours(lab: Lab, config: Config, arms: list[Arm]) -> None:
    """Carry colours onto colours: what is the gradient of a convex function is an optimal map by itself."""
    g = lab.fork("colours")
    pictures = [data.picture(name) for name in ("coffee", "astronaut")]
    clouds = [p.flatten(0, 1)[torch.randperm(p[..., 0].numel(), generator=g)] for p in pictures]
    train, unseen = [c[:2000] for c in clouds], [c[2000 : 2000 + config.tested] for c in clouds]
    small = [p[::3, ::3] for p in pictures]
    shown = [small[0]]
    for arm in arms:
        with arm.weights("colours"):
            net = FIELDS[arm.name](3, config.pixel_units)
        fit = transport.TransportMapFit(
            net,
            *train,
            regularization=0.0,
            steps=config.pixel_steps,
            lr=config.pixel_lr,
            batch=256,
            generator=lab.fork("colour batches"),
        )
        for _ in arm.steps(config.pixel_steps, fit, name="colours"):
            fit.step()
        with torch.no_grad():
            x, image = unseen[0].double(), net.double()(unseen[0].double())
            paid = (x - image).square().sum(-1).mean()
            gap = transport.monge_gap(x, image, epsilon=0).value
            target = unseen[1].double()
            divergence = transport.sinkhorn_divergence(image, target, relative_epsilon=0.02, tolerance=1e-3).value
            arm.metric("colours: paid above the best matching", gap / paid, better="lower")
            arm.metric("colours: divergence", divergence, better="lower")
            shown.append(net(small[0].double().flatten(0, 1)).clamp(0, 1).view_as(small[0]))
    lab.claim(
        "the map of colours matches unseen pixels optimally, to 1e-6 of what it pays; a plain network does not",
        arms[0]["colours: paid above the best matching"] <= 1e-6,
        arms[1]["colours: paid above the best matching"] > 1e-3,
    )
    target = nn.functional.interpolate(small[1].movedim(-1, 0)[None], small[0].shape[:2], mode="area")[0]
    images = [*(s.movedim(-1, 0) for s in shown), target]
    lab.images(
        [images], titles=["source", *(a.name for a in arms), "target"], name="colours", caption="Real photographs."
    )


def _draw(lab: Lab, config: Config, arms: list[Arm], least: nn.Module, plain: nn.Module) -> None:
    figure, (errors, field, odd) = lab.subplots(1, 3, figsize=(13, 4))
    for arm in arms:
        errors.plot(config.units, [float(arm[_error(n)]) for n in config.units], "o-", color=arm.colour, label=arm.name)
    errors.set(xlabel="hidden units", ylabel="mean squared error", xscale="log", yscale="log", title="error")
    errors.legend()
    at = _grid(13)
    with torch.no_grad():
        for values, colour, label in (
            (quartic_gradient(at), lab.colour("target"), "target"),
            (least(at), arms[0].colour, f"ICGN, {config.units[0]} units"),
        ):
            field.quiver(*at.T.numpy(), *values.T.numpy(), color=colour, label=label, scale=120, alpha=0.6)
    field.set(title="field", aspect="equal")
    field.legend(loc="upper right", frameon=True, framealpha=1)
    at = _grid(31)
    defect = transport.hessian_defect(plain, at).asymmetry.detach().view(31, 31)
    drawn = odd.imshow(defect.T.numpy(), origin="lower", extent=(-1.5, 1.5, -1.5, 1.5))
    figure.colorbar(drawn, ax=odd)
    odd.set(title="asymmetry of the plain network")
    lab.figure("fields", figure, caption="Last replicate; errors are means over replicates.")
