"""Learning under constraints by dual ascent: the last model is nearly feasible, if its parametrisation is rich.

``min loss(f)`` subject to ``constraint_i(f) <= c_i`` is solved by ascent on its multipliers, each step of which follows
some steps of training on the Lagrangian. Convergence is known of the objective alone; feasible is the randomised model,
which draws one of the iterates for each prediction. The paper shows that the last one is feasible too, up to a distance
that vanishes as the parametrisation becomes rich (Elenter, Chamon, Ribeiro, ICLR 2024, arXiv 2403.11844).

Its experiment: predict recidivism (COMPAS) where a changed sex or race may hardly change the prediction. There the
minimiser of the Lagrangian moves continuously with the multipliers, whatever the width, and no width is too poor. Where
it jumps, richness decides: linear autoencoders of digits that must lose of none of the ten digits much more than of the
others. The minimiser is a principal subspace, which swaps an axis for another at once. Of few axes, each counts.
Dual ascent then alternates, with steps ten times smaller too, and the augmented Lagrangian finds a feasible model in
between. The data sets are real; of the persons' race they keep whether white or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from pullback import data, implicit
from pullback.implicit import AugmentedLagrangian, ConstrainedProblem, DualAscent
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    bound: Annotated[float, above(0)] = 1e-3
    """Largest mean divergence, in nats, of a prediction from that for a changed sex or race; the paper's."""
    widths: Annotated[tuple[int, ...], at_least(1)] = (2, 8, 32)
    """Hidden units."""
    dual_steps: Annotated[int, at_least(4)] = 100
    """Steps of the multipliers."""
    primal_steps: Annotated[int, at_least(1)] = 5
    """Steps of Adam before each of them."""
    dual_lr: Annotated[float, above(0)] = 12.0
    """Step size of the multipliers of the divergences."""
    ranks: Annotated[tuple[int, ...], at_least(1)] = (1, 2, 4, 8)
    """Dimensions of the codes of the autoencoders."""
    subspace_steps: Annotated[int, at_least(2)] = 60
    """Steps of the multipliers of the autoencoders; at most 40 are taken on the convex model."""
    replicates: Annotated[int, at_least(1)] = 3
    """Splits, initialisations, batches."""


ACCURACY, DIVERGENCE = "accuracy on unseen persons", "largest divergence on unseen persons, in bounds"
ERROR, LOSS = "largest error of a digit, in bounds", "cross-entropy of the training persons"
Losses = tuple[Tensor, Tensor]


@system(
    "near-optimal-constrained-learning",
    family="implicit",
    title="Near-Optimal Solutions of Constrained Learning Problems",
    paper="Elenter, Chamon, Ribeiro, ICLR 2024, arXiv 2403.11844",
    config=Config,
    smoke={"widths": (2,), "dual_steps": 4, "primal_steps": 2, "ranks": (2,), "subspace_steps": 4, "replicates": 1},
    full={"widths": (2, 8, 32, 128, 512), "dual_steps": 1000, "ranks": (1, 2, 4, 8, 16, 32), "replicates": 10},
    data=("fairness", "digits"),
    blocks=("implicit.DualAscent", "implicit.AugmentedLagrangian", "implicit.counterfactual_gap"),
)
def run(lab: Lab, config: Config) -> None:
    """Predict recidivism fairly, solve a convex model, keep the digits with few axes."""
    lab.data("COMPAS: 6 167 persons, their charge and record, whether charged again within two years", origin="real")
    lab.data("UCI digits, 1 797 images of 8 x 8", origin="real")
    ours = lab.arm("dual ascent")
    names = ("unconstrained", "best of ten fixed penalties", "augmented Lagrangian", "quadratic programming")
    free, fixed, augmented, solver = (lab.arm(name, baseline=True) for name in names)
    for _ in lab.replicates(config.replicates):
        _fair(lab, config, ours, free, fixed)
        _convex(lab, config, ours, solver)
        _subspaces(lab, config, ours, augmented)
    at = f"width {config.widths[-1]}: "
    lab.claim(
        "the last iterate of the widest network is within 1.5 bounds on unseen persons, without constraints beyond 8",
        ours[at + DIVERGENCE] <= 1.5,
        free[at + DIVERGENCE] >= 8,
    )
    lab.claim(
        "it is as accurate as the randomised iterate of the second half, within half a point, and its multipliers "
        "change by at most a fifth in the last quarter",
        abs(ours[at + ACCURACY] - ours["accuracy of the randomised iterate"]) <= 0.5,
        ours["change of the multipliers in the last quarter"] <= 0.2,
    )
    lab.claim(
        "one run is within half a point as accurate as the best of ten penalties within 1.1 bounds, at no larger loss",
        ours[at + LOSS] <= fixed[at + LOSS],
        ours[at + ACCURACY] >= fixed[at + ACCURACY] - 0.5,
    )
    value, price = "convex model: value", "convex model: price of the bounds"
    lab.claim(
        "convex model: the dual value is the constrained minimum, to 2 % of what the bounds cost",
        abs(ours[value] - solver[value]) <= 0.02 * solver[price],
    )
    worst, randomised = "rank {}: violation", "rank {}: violation of the randomised iterate"
    poor, rich = config.ranks[:2], config.ranks[2:]
    lab.claim(
        "autoencoders: of the last 20 iterates one violates a bound by at least 5 % at ranks 1 and 2, none by 2 % at 4 "
        "and more",
        *(ours[worst.format(rank)] >= 0.05 for rank in poor),
        *(ours[worst.format(rank)] <= 0.02 for rank in rich),
    )
    lab.claim(
        "the randomised iterate violates them by at most 2 % at any rank, the last five augmented ones by 1 %",
        *(ours[randomised.format(rank)] <= 0.02 for rank in config.ranks),
        *(augmented[worst.format(rank)] <= 0.01 for rank in config.ranks),
    )
    _draw(lab, config, ours, augmented)


class _People:
    """Persons as they are and with another sex, another race: ``[3, n, 10]``, standardised, and labels ``[n]``."""

    def __init__(self, lab: Lab) -> None:
        table = data.fairness("compas")
        names = ["sex", "race", "age-num", "juv-fel-count", "juv-misd-count", "juv-other-count", "priors-count"]
        names += ["c-charge-degree_F", "age-cat_25 - 45", "age-cat_Greater than 45"]
        raw = torch.stack([table.column(name) for name in names], -1).repeat(3, 1, 1)
        for which in (0, 1):
            raw[1 + which, :, which] = 1 - raw[0, :, which]
        train, test = torch.randperm(raw.shape[1], generator=lab.fork("persons")).tensor_split([4000])
        inputs = ((raw - raw[0, train].mean(0)) / raw[0, train].std(0)).float()
        labels = table.column("two-year-recid").float()
        self.inputs, self.labels, self.unseen = inputs[:, train], labels[train], (inputs[:, test], labels[test])


def _losses(net: nn.Module, inputs: Tensor, labels: Tensor) -> Losses:
    """Return the cross-entropy, and the divergences for a changed sex and a changed race."""
    logits = net(inputs.flatten(0, 1)).view(inputs.shape[:2])
    return cross_entropy(logits[0], labels), torch.stack(
        [implicit.counterfactual_gap(logits[0], z) for z in logits[1:]]
    )


def _train(
    lab: Lab, config: Config, arm: Arm, people: _People, width: int, dual_lr: float = 0.0, penalty: float = 0.0
) -> dict[str, float]:
    """Train a network; without a step size for its multipliers they stay at the penalty."""
    with arm.weights():
        net = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 1))
    inputs, labels, batches = people.inputs, people.labels, lab.fork("batches")

    def draw(net: nn.Module) -> Losses:
        chosen = torch.randint(len(labels), (256,), generator=batches)
        return _losses(net, inputs[:, chosen], labels[chosen])

    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)  # falls to zero along a cosine
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.dual_steps)
    ascent = DualAscent(
        ConstrainedProblem(draw, torch.full((2,), config.bound), net),
        optimizer=optimizer,
        dual_lr=dual_lr,
        primal_steps=config.primal_steps,
        initial=penalty,
        measure=None if penalty else lambda net: _losses(net, inputs, labels),  # of all persons, for the dual step
    )
    drawn = not penalty and width == config.widths[-1]
    for step in arm.steps(config.dual_steps, ascent, schedule, batches, name=f"width {width}, penalty {penalty:.2g}"):
        state = ascent.step()
        schedule.step()
        for which, name in enumerate(("sex", "race") if drawn else ()):
            arm.record(f"multiplier of the {name}", state.multipliers[which], step=step)
            arm.record(f"divergence for another {name}, in bounds", 1 + state.slacks[which] / config.bound, step=step)
        if drawn and 2 * step >= config.dual_steps:
            arm.record("accuracy of late iterates", _judge(net, config, *people.unseen)["accuracy"], step=step)
    seen = _judge(net, config, inputs, labels)
    return _judge(net, config, *people.unseen) | {"seen": seen["loss"], "within": seen["divergence"]}


def _judge(net: nn.Module, config: Config, inputs: Tensor, labels: Tensor) -> dict[str, float]:
    with torch.no_grad():
        loss, divergences = _losses(net, inputs, labels)
        right = ((net(inputs[0])[:, 0] > 0) == labels.bool()).double().mean()
    return {"loss": float(loss), "divergence": float(divergences.max()) / config.bound, "accuracy": 100 * float(right)}


def _report(arm: Arm, width: int, found: dict[str, float]) -> None:
    arm.metric(f"width {width}: {DIVERGENCE}", found["divergence"], better="lower")
    arm.metric(f"width {width}: {ACCURACY}", found["accuracy"], better="higher", unit="%")
    arm.metric(f"width {width}: {LOSS}", found["seen"], better="lower", unit="nats")


def _fair(lab: Lab, config: Config, ours: Arm, free: Arm, fixed: Arm) -> None:
    """Train every width with the constraints and without, the widest with each of the fixed penalties, too."""
    people, wide = _People(lab), config.widths[-1]
    for width in config.widths:
        _report(ours, width, _train(lab, config, ours, people, width, config.dual_lr))
        _report(free, width, _train(lab, config, free, people, width))
    late = ours.series("accuracy of late iterates")
    ours.metric("accuracy of the randomised iterate", sum(late) / len(late), better="higher", unit="%")
    paths = [ours.series(f"multiplier of the {name}")[-max(1, config.dual_steps // 4) :] for name in ("sex", "race")]
    drift = max((max(path) - min(path)) / max(path) for path in paths)
    ours.metric("change of the multipliers in the last quarter", drift, better="lower")
    grid = torch.logspace(-1, 1, 10).tolist()
    runs = [_train(lab, config, fixed, people, wide, penalty=penalty) for penalty in grid]
    within = [run for run in runs if run["within"] <= 1.1] or runs[-1:]
    _report(fixed, wide, min(within, key=lambda run: run["seen"]))


def _convex(lab: Lab, config: Config, ours: Arm, solver: Arm) -> None:
    """Solve a convex model by dual ascent, and by sequential quadratic programming, which knows no dual function."""
    people, stream = _People(lab), lab.fork("features")
    weight, shift = torch.randn(10, 48, generator=stream), torch.randn(48, generator=stream)
    features = torch.tanh(people.inputs @ weight / 10**0.5 + shift).double()
    labels, change = people.labels.double(), features[1:] - features[0]
    # An eighth of the mean squared difference of logits bounds the divergence, and is convex.
    squares = change.mT @ change / (8 * len(labels))

    def losses(theta: Tensor) -> Losses:
        return cross_entropy(features[0] @ theta, labels) + 1e-4 * (theta**2).sum(), (squares @ theta) @ theta

    bounds, theta = torch.full((2,), config.bound).double(), torch.zeros(48).double()
    newton = torch.optim.LBFGS([theta], max_iter=25, tolerance_change=1e-14, line_search_fn="strong_wolfe")
    ascent = DualAscent(ConstrainedProblem(losses, bounds, theta), optimizer=newton, dual_lr=100.0)
    for _ in ours.steps(min(40, config.subspace_steps), ascent, name="convex model"):
        ascent.step()
    ours.metric("convex model: value", ascent.states[-1].dual)

    f, y, q, start = features[0].numpy(), labels.numpy(), squares.numpy(), np.zeros(48)
    c = config.bound
    inside = {"type": "ineq", "fun": lambda t: 1 - q @ t @ t / c, "jac": lambda t: -2 * q @ t / c}
    values = [
        optimize.minimize(
            lambda t: np.mean(np.logaddexp(0, f @ t) - y * (f @ t)) + 1e-4 * t @ t,
            start,
            jac=lambda t: f.T @ (special.expit(f @ t) - y) / len(y) + 2e-4 * t,
            method="SLSQP",
            constraints=constraints,
            options={"maxiter": 300, "ftol": 1e-9},
        ).fun
        for constraints in ([inside], [])
    ]
    solver.metric("convex model: value", values[0])
    solver.metric("convex model: price of the bounds", values[0] - values[1])


def _subspaces(lab: Lab, config: Config, ours: Arm, augmented: Arm) -> None:
    """Encode digits linearly so that the mean error is least and no digit's error above a bound, rank by rank."""
    images, labels = data.digits("train")[:2]
    chosen = torch.randperm(len(labels), generator=lab.fork("digits"))[: len(labels) * 3 // 4]
    x, labels = images.flatten(1)[chosen].double(), labels[chosen]
    x = x - x.mean(0)
    second = torch.stack([x[labels == digit].mT @ x[labels == digit] / (labels == digit).sum() for digit in range(10)])
    share, total = torch.bincount(labels) / len(labels), second.diagonal(0, 1, 2).sum(-1)
    for rank in config.ranks:
        axes = torch.linalg.eigh(torch.einsum("g,gij->ij", share.double(), second)).eigenvectors[:, -rank:]
        plain = total - torch.einsum("gij,ik,jk->g", second, axes, axes)
        bound = (plain.max() + (share * plain).sum()) / 2  # between the mean error and that of the worst digit

        def losses(w: Tensor, bound: Tensor = bound) -> Losses:
            """Return errors |x - w w^T x|^2 as shares of the bound."""
            twice = 2 * torch.eye(w.shape[1]).double()
            moved = (second.flatten(0, 1) @ (w @ (w.mT @ w - twice))).view(10, *w.shape)
            errors = (total + (w * moved).sum((1, 2))) / bound
            return (share * errors).sum(), errors

        for arm in (ours, augmented):
            with arm.weights(f"rank {rank}"):
                w = torch.randn(64, rank).double() / 8
            newton = torch.optim.LBFGS(
                [w], max_iter=10, tolerance_change=1e-14, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
            )
            problem = ConstrainedProblem(losses, torch.ones(10).double(), w)
            method: DualAscent | AugmentedLagrangian = DualAscent(problem, optimizer=newton, dual_lr=0.2)
            if arm is augmented:
                method = AugmentedLagrangian(problem, optimizer=newton, penalty=0.3, growth=1.3, progress=0.8)
            count = config.subspace_steps // (2 if arm is augmented else 1)  # it needs no more
            for _ in arm.steps(count, method, name=f"rank {rank}"):
                arm.record(f"rank {rank}: {ERROR}", 1 + method.step().slacks.max())
            found = implicit.feasibility_report(list(method.states)[-(20 if arm is ours else 5) :])
            arm.metric(f"rank {rank}: violation", found.worst, better="lower")
            arm.metric(f"rank {rank}: violation of the randomised iterate", found.randomized, better="lower")


def _draw(lab: Lab, config: Config, ours: Arm, augmented: Arm) -> None:
    caption = f"Width {config.widths[-1]}, all training persons, every replicate. The bound is 1."
    lab.curves(*(f"divergence for another {name}, in bounds" for name in ("sex", "race")), log=True, caption=caption)
    lab.curves(*(f"multiplier of the {name}" for name in ("sex", "race")), caption="They start at 0 and slow down.")
    figure, axes = lab.subplots(1, 3, figsize=(11, 3.2))
    for axis, rank in zip(axes, (config.ranks[0], config.ranks[-1]), strict=False):
        for arm in (ours, augmented):
            axis.plot(arm.series(f"rank {rank}: {ERROR}", replicate=0), color=arm.colour, label=arm.name)
        axis.set(title=f"rank {rank}", xlabel="step of the multipliers", ylabel=ERROR, ylim=(0.95, 1.3))
        axis.legend()
    for name, style in (("violation", "o-"), ("violation of the randomised iterate", "x--")):
        values = [100 * float(ours[f"rank {rank}: {name}"]) for rank in config.ranks]
        axes[2].plot(config.ranks, values, style, color=ours.colour)
    axes[2].set(xlabel="rank", xticks=config.ranks, ylabel="violation, % of the bound", title="last 20 of dual ascent")
    axes[2].legend(["worst iterate", "randomised iterate"], loc="upper right")
    caption = "Of few axes dual ascent alternates between subspaces on either side of a bound. Left: one replicate."
    lab.figure("autoencoders", figure, caption)
