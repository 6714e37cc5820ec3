"""Any solver made differentiable by its optimality conditions, without unrolling it.

The user states conditions ``F(x, theta) = 0`` that the solution satisfies; the implicit function theorem then gives the
derivative with one linear solve, whatever found ``x`` (Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez,
Pedregosa, Vert, NeurIPS 2022). Shown on four problems of the paper: the Jacobian of ridge and lasso against unrolling,
the regularisation of a multiclass SVM solved in its dual, a training set distilled to ten images, and the response of
jammed discs to a diameter. Smaller than in the paper: digits of 8 x 8 pixels instead of MNIST, 150 SVM samples, 64
discs. Diabetes and digits are real data; the discs are simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Annotated, Any

import torch
from torch import Tensor, func
from torch.nn.functional import cross_entropy, one_hot

from pullback import data
from pullback.implicit import MulticlassSVM, minimize, optimality, prox_lasso, root_jvp, soft_disc_energy
from pullback.lab import Arm, Lab, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    iterations: Annotated[int, at_least(20)] = 200
    """Iterations up to which unrolled and implicit Jacobians of ridge and lasso are compared."""
    svm_samples: Annotated[int, at_least(2)] = 150
    """Training (and validation) digits of the SVM."""
    svm_steps: Annotated[int, at_least(1)] = 20
    """Steps on the regularisation of the SVM."""
    inner_steps: tuple[Annotated[int, at_least(1)], ...] = (100, 200, 400, 800)
    """Steps of the SVM's solver at which the cost of a hypergradient is measured; converged at the last."""
    distill_steps: Annotated[int, at_least(1)] = 150
    """Adam steps on the ten images."""
    discs: Annotated[int, at_least(4)] = 64
    """Discs in the periodic box, half of them small."""
    packings: Annotated[int, at_least(1)] = 3
    """Packings from independent random starts."""


@system(
    "modular-implicit-differentiation",
    family="implicit",
    title="Efficient and Modular Implicit Differentiation",
    paper="Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez, Pedregosa, Vert, NeurIPS 2022, arXiv 2105.15183",
    config=Config,
    smoke={"iterations": 20, "svm_samples": 12, "svm_steps": 1, "inner_steps": (5, 9)}
    | {"distill_steps": 2, "discs": 9, "packings": 1},
    full={"svm_samples": 700, "svm_steps": 50, "distill_steps": 1000, "discs": 256, "packings": 10},
    data=("digits", "diabetes"),
    blocks=(
        *("implicit.custom_root", "implicit.custom_fixed_point", "implicit.root_jvp", "implicit.minimize"),
        *("implicit.optimality", "implicit.prox_lasso", "implicit.MulticlassSVM", "implicit.soft_disc_energy"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Run the four problems, each with its claims and its figures."""
    lab.data("diabetes, 442 patients x 10 measurements", origin="real")
    lab.data("UCI digits, 1 797 images of 8 x 8", origin="real")
    lab.data(f"{config.discs} soft discs in a periodic box", origin="simulated")
    implicit, unrolled = lab.arm("implicit"), lab.arm("unrolled", baseline=True)
    jacobians(lab, config, implicit, unrolled)
    svm(lab, config)
    cost(lab, config, implicit, unrolled)
    distillation(lab, config)
    packing(lab, config, implicit)


def jacobians(lab: Lab, config: Config, implicit: Arm, unrolled: Arm) -> None:
    """Compare implicit and unrolled Jacobians of ridge and lasso with their closed forms, iteration by iteration."""
    table = data.diabetes(dtype=torch.float64)
    x = (table.features - table.features.mean(0)) / table.features.std(0)
    y = (table.target - table.target.mean()) / table.target.std()
    gram, moment, zeros = x.T @ x / len(x), x.T @ y / len(x), x.new_zeros(10)
    step = 1 / torch.linalg.eigvalsh(gram)[-1].item()

    def squares(w: Tensor, weight: Tensor) -> Tensor:
        return ((x @ w - y) ** 2).sum() / (2 * len(x))

    def ridge(w: Tensor, weight: Tensor) -> Tensor:
        return squares(w, weight) + weight * (w**2).sum() / 2

    def prox(w: Tensor, length: float, weight: Tensor) -> Tensor:
        return prox_lasso(w, length * weight)

    theta = x.new_tensor(0.1)
    hessian = gram + theta * torch.eye(10, dtype=torch.float64)
    exact = torch.linalg.solve(hessian, moment)
    closed = -torch.linalg.solve(hessian, exact)
    got = func.jacrev(lambda t: minimize(ridge, zeros, t, method="newton").value)(theta)
    off = implicit.metric("ridge: difference to the closed form", (got - closed).abs().max(), better="lower")
    lab.claim("the ridge Jacobian equals its closed form to 1e-8", off <= 1e-8, scale="smoke")

    # The lasso's closed form holds on the support, which the solution at high accuracy shows.
    weight = 0.3 * moment.abs().max()
    sparse = minimize(squares, zeros, weight, prox=prox, tolerance=1e-12, max_iterations=20_000, check=True).value
    support, sparse_closed = sparse != 0, zeros.clone()
    sparse_closed[support] = -torch.linalg.solve(gram[support][:, support], sparse[support].sign())

    ridge_map = optimality.projected_gradient(ridge, lambda w, t: w, step=step / (1 + 0.1 * step))
    lasso_map = optimality.proximal_gradient(squares, prox, step=step)
    errors: dict[str, Tensor] = {}
    for name, update, t, jacobian in (("lasso", lasso_map, weight, sparse_closed), ("ridge", ridge_map, theta, closed)):

        def trajectory(t: Tensor, update: Callable[..., Tensor] = update) -> Tensor:
            path = accumulate(range(config.iterations), lambda w, _: update(w, t), initial=zeros)
            return torch.stack(list(path)[1:])

        path, along = func.jvp(trajectory, (t,), (torch.ones_like(t),))[:2]
        conditions = partial(lambda update, w, t: w - update(w, t), update)
        at_path = func.vmap(partial(root_jvp, conditions), (0, None, None))(path, (t,), (torch.ones_like(t),))
        for arm, found in ((implicit, at_path), (unrolled, along)):
            errors[arm.name] = (found - jacobian).norm(dim=-1)
            for iteration, error in enumerate(errors[arm.name], 1):
                arm.record(f"{name}: error of the Jacobian", error, step=iteration)
            arm.metric(f"{name}: error of the Jacobian after 20 iterations", errors[arm.name][19], better="lower")
    # Of ridge, the last, from iteration 5 on.
    slope = lab.slope((path - exact).norm(dim=-1)[4:], errors["implicit"][4:], of="implicit").exponent
    largest = (errors["implicit"] / errors["unrolled"])[4:].max()
    ratio = implicit.metric("ridge: largest error relative to unrolling", largest, better="lower")
    lab.claim("implicit Jacobians are as good as iterates (theorem 1): log-log slope 1 +- 0.1", abs(slope - 1) <= 0.1)
    lab.claim("implicit is at least as accurate as unrolling at every iteration from 5 on", ratio <= 1, scale="smoke")
    lab.curves("ridge: error of the Jacobian", "lasso: error of the Jacobian", log=True, xlabel="iteration")


class Tuning:
    """The choice of an SVM's regularisation ``exp(t)`` by its squared loss on validation digits."""

    def __init__(self, samples: int, generator: torch.Generator) -> None:
        digits = data.digits("train")
        order = torch.randperm(len(digits.labels), generator=generator)[: 2 * samples]
        train, self._valid = digits.images[order].flatten(1).double().split(samples)
        targets, self._wanted = one_hot(digits.labels[order], 10).double().split(samples)
        self.svm = MulticlassSVM(train, targets)

    def loss(self, dual: Tensor, t: Tensor) -> Tensor:
        """Return the outer loss."""
        scores = self._valid @ self.svm.weights(dual, t.exp())
        return ((scores - self._wanted) ** 2).sum() / (2 * len(self._valid))

    def hypergradient(self, solver: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        """Return the derivative of the outer loss in ``t`` through a solution as a function of ``exp(t)``."""
        live = t.clone().requires_grad_()
        return torch.autograd.grad(self.loss(solver(live.exp()), live), live)[0]


def svm(lab: Lab, config: Config) -> None:
    """Tune the regularisation of a multiclass SVM through its dual, with three conditions for one solution."""
    forms = [lab.arm(name) for name in ("projected gradient", "mirror descent", "KKT")]
    start, differences = torch.tensor(2.0, dtype=torch.float64), []
    for samples, arms in ((min(24, config.svm_samples), forms), (config.svm_samples, forms[:2])):  # KKT is larger
        problem, name = Tuning(samples, lab.fork("svm")), f"hypergradient, {samples} samples"
        dual = problem.svm.solve(problem.svm.uniform(), start.exp())
        for arm in arms:
            solution = partial(problem.svm.differentiable, dual, condition=arm.name)
            found = arm.metric(name, problem.hypergradient(solution, start))
            differences.append(abs(found / forms[0][name] - 1))
    near = [problem.loss(problem.svm.solve(dual, t.exp()), t) for t in (start - 1e-5, start + 1e-5)]
    numerical = lab.arm("central differences", baseline=True).metric(name, (near[1] - near[0]) / 2e-5)
    statement = "projected-gradient, mirror-descent and KKT conditions give the same hypergradient to 1e-4 relative"
    lab.claim(statement, max(differences) <= 1e-4, scale="smoke")
    lab.claim("it is that of central differences of dual solutions to 1 %", abs(forms[0][name] / numerical - 1) <= 0.01)

    losses, dual = [], problem.svm.uniform()
    for t in torch.linspace(1, 6, config.svm_steps, dtype=torch.float64):
        dual = problem.svm.solve(dual, t.exp())
        losses.append(problem.loss(dual, t))
    best = lab.arm("grid search", baseline=True).metric("validation loss after tuning", min(losses), better="lower")
    for arm in forms[:2]:
        t, dual = start.clone(), problem.svm.uniform()
        for _ in arm.steps(config.svm_steps, t, dual, name="tune"):
            dual.copy_(problem.svm.solve(dual, t.exp()))
            arm.record("validation loss", problem.loss(dual, t))
            t.sub_(problem.hypergradient(partial(problem.svm.differentiable, dual, condition=arm.name), t))
        arm.metric("validation loss after tuning", arm.last("validation loss"), better="lower")
    statement = "tuning by either hypergradient ends at most 0.1 % above the best of a grid of as many regularisations"
    lab.claim(statement, *(arm["validation loss after tuning"] <= 1.001 * best for arm in forms[:2]))
    lab.curves("validation loss", xlabel="step on the regularisation", caption="The two conditions agree: one curve.")


def cost(lab: Lab, config: Config, implicit: Arm, unrolled: Arm) -> None:
    """Measure what a hypergradient of the SVM costs, through all steps of its solver or through its fixed point."""
    problem, t = Tuning(config.svm_samples, lab.fork("svm")), torch.tensor(4.0, dtype=torch.float64)
    svm, start = problem.svm, problem.svm.uniform()

    def hypergradient(arm: Arm, steps: int) -> Tensor:
        def solution(r: Tensor) -> Tensor:
            found = svm.iterate(start, r if arm is unrolled else r.detach(), steps)
            return found if arm is unrolled else svm.differentiable(found, r, tolerance=1e-4, max_iterations=300)

        return problem.hypergradient(solution, t)

    exact = problem.hypergradient(partial(svm.differentiable, svm.solve(start, t.exp())), t)
    memory: dict[str, list[float]] = {"implicit": [], "unrolled": []}
    for arm in (implicit, unrolled):
        for steps in config.inner_steps:
            memory[arm.name].append(lab.peak_memory(partial(hypergradient, arm, steps), of=arm.name))
            arm.record("hypergradient: relative error", abs(hypergradient(arm, steps) / exact - 1), step=steps)
        arm.metric("hypergradient: error when converged", arm.last("hypergradient: relative error"), better="lower")
        arm.metric("hypergradient: memory", memory[arm.name][-1], unit="bytes", better="lower")
    lab.curves("hypergradient: relative error", log=True, xlabel="inner iterations")
    growth = lab.scaling(config.inner_steps, memory, name="memory", xlabel="inner iterations", ylabel="memory / bytes")
    lab.claim(
        "at a converged dual, where both hypergradients are right to 1 %, the memory of the implicit one does not grow "
        "with the inner iterations, and that of the unrolled one grows linearly",
        *(arm["hypergradient: error when converged"] <= 0.01 for arm in (implicit, unrolled)),
        abs(growth["implicit"].exponent) <= 0.05,
        growth["unrolled"].exponent >= 0.9,
    )
    converged = {arm.name: partial(hypergradient, arm, config.inner_steps[-1]) for arm in (implicit, unrolled)}
    race = lab.race(converged, rounds=5)
    for arm in (implicit, unrolled):
        arm.metric("hypergradient: time", 1e3 * race[arm.name], unit="ms", better="lower")
    statement = "an implicit hypergradient takes at most 0.8 of the time of an unrolled one"
    lab.claim(statement, race.ratio("implicit", "unrolled") <= 0.8)


def distillation(lab: Lab, config: Config) -> None:
    """Learn ten images such that a logistic regression trained on them alone reads the digits."""
    train, test = data.digits("train"), data.digits("test")
    images = train.images.flatten(1).double()

    def training(weights: Tensor, few: Tensor) -> Tensor:
        right = (few @ weights).log_softmax(-1).diagonal(dim1=-2, dim2=-1)  # image c shows the digit c
        return 1e-3 * (weights**2).sum((-2, -1)) / 2 - right.mean(-1)

    def fit(init: Tensor, few: Tensor) -> Tensor:
        # Away from the optimum of the images an inner minimum may be flat: more iterations than a default.
        batch = few.ndim - 2
        return minimize(training, init, few, batch_ndim=batch, tolerance=1e-6, max_iterations=2000, check=True).value

    ours, means = lab.arm("distilled images"), lab.arm("class means", baseline=True)
    real = lab.arm("real images, mean of 5", baseline=True)
    few, weights = images.new_zeros(10, 64).requires_grad_(), images.new_zeros(64, 10)
    optimizer = torch.optim.Adam([few], lr=0.1)
    for _ in ours.steps(config.distill_steps, few, weights, optimizer, name="distil"):
        live = fit(weights, few)
        ours.descend(cross_entropy(images @ live, train.labels), optimizer)
        weights.copy_(live.detach())
    orders = [torch.randperm(len(images), generator=lab.fork(f"real {draw}")) for draw in range(5)]
    draws = [images[torch.stack([o[train.labels[o] == c][0] for c in range(10)])] for o in orders]
    sets = torch.stack([few.detach(), torch.stack([images[train.labels == c].mean(0) for c in range(10)]), *draws])
    read = test.images.flatten(1).double() @ fit(images.new_zeros(7, 64, 10), sets)  # seven trainings, one solve
    accuracy = (read.argmax(-1) == test.labels).double().mean(-1)
    values = zip((ours, means, real), (accuracy[0], accuracy[1], accuracy[2:].mean()), strict=True)
    best, by_means, by_real = (arm.metric("test accuracy", value, better="higher") for arm, value in values)
    statement = "10 distilled images teach to read 2 points more digits than 10 class means, 15 more than real images"
    lab.claim(statement, best >= by_means + 0.02, best >= by_real + 0.15)
    lab.bars("test accuracy", caption="One image a class is the whole training set.")
    rows = dict(zip([ours.name, means.name, "real images"], sets.reshape(7, 10, 8, 8), strict=False))
    lab.images(rows, titles=[str(c) for c in range(10)], name="training sets", limits=(-1.0, 1.0))


def packing(lab: Lab, config: Config, arm: Arm) -> None:
    """Derive the rest positions of soft discs in the diameter of the small ones, and compare with relaxing again."""
    from matplotlib.collections import EllipseCollection

    count = config.discs
    small = torch.arange(count) < count // 2
    # The box holds the discs' area exactly once at the reference diameters: dense, well above jamming (0.84).
    side = math.sqrt(math.pi / 4 * (count // 2 * 0.6**2 + (count - count // 2) * 1.0))

    def relax(init: Tensor, diameter: Tensor) -> Tensor:
        # Translations and loose discs cost no energy: conjugate gradients stay out of those directions.
        limits: dict[str, Any] = {"tolerance": 1e-11, "max_iterations": 50_000, "check": True}
        energy = lambda x, d: soft_disc_energy(x, torch.where(small, d, 1), side)  # noqa: E731
        return minimize(energy, init, diameter, method="fire", step=0.1, solve="cg", **limits).value

    diameter, h = torch.tensor(0.6, dtype=torch.float64), 1e-6
    shown, arrows = torch.zeros(2, count, 2, dtype=torch.float64)
    for number in arm.steps(config.packings, shown, arrows, name="packings"):
        start = torch.rand(count, 2, generator=lab.fork(f"packing {number}"), dtype=torch.float64)
        rest = relax(side * start, diameter)
        response = func.jvp(lambda d, rest=rest: relax(rest, d), (diameter,), (torch.ones_like(diameter),))[1]
        differences = (relax(rest, diameter + h) - relax(rest, diameter - h)) / (2 * h)
        arm.record("discs: cosine", torch.cosine_similarity(response.flatten(), differences.flatten(), dim=0))
        shown.copy_(rest % side)
        arrows.copy_(response)
    worst = arm.metric("discs: smallest cosine to differences", min(arm.series("discs: cosine")), better="higher")
    statement = "the response to a diameter is that of finite differences of relaxed packings: cosine at least 0.99"
    lab.claim(statement, worst >= 0.99, scale="smoke")

    figure, axis = lab.subplots(figsize=(6, 6))
    axis.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[], title="response of soft discs")
    shifts = side * torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 2)  # the box is periodic
    sizes, places = torch.where(small, 0.6, 1.0).repeat(9).numpy(), (shown + shifts[:, None]).flatten(0, 1).numpy()
    colours = [lab.colour("small discs" if disc else "large discs") for disc in small.repeat(9)]
    shape: dict[str, Any] = {"units": "xy", "offset_transform": axis.transData, "facecolors": colours, "alpha": 0.5}
    axis.add_collection(EllipseCollection(sizes, sizes, 0 * sizes, offsets=places, **shape))
    axis.quiver(*shown.T, *arrows.T, angles="xy", zorder=2)
    lab.figure("discs", figure, caption="Simulated; arrows: derivative in the small ones' diameter.")
