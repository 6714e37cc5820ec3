"""Any solver made differentiable by its optimality conditions, without unrolling it.

The user states conditions ``F(x, theta) = 0`` that the solution satisfies; the implicit function theorem then gives the
derivative with one linear solve, whatever found ``x`` (Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez,
Pedregosa, Vert, NeurIPS 2022). Shown on four problems of the paper: the Jacobian of ridge and lasso against unrolling,
the regularisation of a multiclass SVM solved in its dual, a training set distilled to ten images, and the response of
jammed discs to a diameter.

Smaller than in the paper: digits of 8 x 8 pixels instead of MNIST, 150 SVM samples, 64 discs. Diabetes and digits are
real data; the discs are simulated (a soft-sphere potential relaxed by FIRE).
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.utils._python_dispatch import TorchDispatchMode

from pullback import data
from pullback.implicit import (
    KKTPoint,
    custom_fixed_point,
    custom_root,
    minimize,
    optimality,
    projection_simplex,
    prox_lasso,
    root_jvp,
)
from pullback.lab import Lab, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    ridge: float = 0.1
    """Weight of the squared norm in the ridge regression."""
    lasso: float = 0.3
    """Weight of the 1-norm in the lasso, as a part of the smallest weight that makes all coefficients zero."""
    iterations: int = 200
    """Iterations up to which unrolled and implicit Jacobians are compared."""
    svm_samples: int = 150
    """Training (and validation) digits of the SVM."""
    svm_steps: int = 20
    """Steps on the regularisation of the SVM."""
    memory_steps: tuple[int, ...] = (25, 50, 100, 200)
    """Inner iterations at which the memory of a hypergradient is measured."""
    distill_steps: int = 150
    """Adam steps on the ten images."""
    decay: float = 1e-3
    """Weight decay of the logistic regression that is trained on few images."""
    discs: int = 64
    """Discs in the periodic box, half of them small."""
    packings: int = 3
    """Packings from independent random starts."""


@system(
    "modular-implicit-differentiation",
    family="implicit",
    title="Efficient and Modular Implicit Differentiation",
    paper=("Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez, Pedregosa, Vert, NeurIPS 2022, arXiv 2105.15183"),
    config=Config,
    smoke={
        "iterations": 30,
        "svm_samples": 30,
        "svm_steps": 2,
        "memory_steps": (5, 10),
        "distill_steps": 3,
        "discs": 16,
        "packings": 1,
    },
    full={"svm_samples": 700, "svm_steps": 50, "distill_steps": 1000, "discs": 256, "packings": 10},
    data=("digits", "diabetes"),
    blocks=(
        "implicit.custom_root",
        "implicit.custom_fixed_point",
        "implicit.root_jvp",
        "implicit.minimize",
        "implicit.optimality",
        "implicit.projection_simplex",
        "implicit.prox_lasso",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Run the four problems, each with its claims and its figure."""
    lab.data("diabetes, 442 patients x 10 measurements", origin="real")
    lab.data("UCI digits, 1 797 images of 8 x 8", origin="real")
    lab.data(f"{config.discs} soft discs in a periodic box", origin="simulated")
    jacobians(lab, config)
    svm(lab, config)
    distillation(lab, config)
    packing(lab, config)


def jacobians(lab: Lab, config: Config) -> None:
    """Compare implicit and unrolled Jacobians of ridge and lasso with their closed forms, iteration by iteration."""
    table = data.diabetes(dtype=torch.float64)
    x = (table.features - table.features.mean(0)) / table.features.std(0)
    y = (table.target - table.target.mean()) / table.target.std()
    n = len(x)
    gram, moment = x.T @ x / n, x.T @ y / n
    step = 1 / torch.linalg.eigvalsh(gram)[-1].item()

    def ridge(w: Tensor, weight: Tensor) -> Tensor:
        return ((x @ w - y) ** 2).sum() / (2 * n) + weight * (w**2).sum() / 2

    def squares(w: Tensor, weight: Tensor) -> Tensor:
        return ((x @ w - y) ** 2).sum() / (2 * n)

    def shrink(w: Tensor, length: float, weight: Tensor) -> Tensor:
        return prox_lasso(w, length * weight)

    theta = torch.tensor(config.ridge, dtype=torch.float64)
    hessian = gram + theta * torch.eye(10, dtype=torch.float64)
    exact = torch.linalg.solve(hessian, moment)
    exact_jacobian = -torch.linalg.solve(hessian, exact)
    got = torch.func.jacrev(lambda t: minimize(ridge, torch.zeros(10, dtype=torch.float64), t, method="newton").value)(
        theta
    )
    difference = (got - exact_jacobian).abs().max()
    lab.metric("difference to the closed form", difference, of="ridge Jacobian", better="lower")
    lab.claim(
        "the ridge Jacobian equals its closed form to 1e-8", difference <= 1e-8, scale="smoke", difference=difference
    )

    # The lasso's closed form holds on the support, which the solution at high accuracy shows.
    weight = config.lasso * moment.abs().max()
    sparse = minimize(
        squares,
        torch.zeros(10, dtype=torch.float64),
        weight,
        prox=shrink,
        tolerance=1e-12,
        max_iterations=20_000,
        check=True,
    ).value
    active = sparse != 0
    sparse_jacobian = torch.zeros(10, dtype=torch.float64)
    sparse_jacobian[active] = -torch.linalg.solve(gram[active][:, active], sparse[active].sign())

    problems = {
        "ridge": (
            optimality.projected_gradient(ridge, lambda w, t: w, step=1 / (1 / step + config.ridge)),
            theta,
            exact,
            exact_jacobian,
        ),
        "lasso": (optimality.proximal_gradient(squares, shrink, step=step), weight, sparse, sparse_jacobian),
    }
    figure, axes = lab.subplots(2, 2, figsize=(10, 8))
    for (above, below), (name, (update, t, solution, jacobian)) in zip(axes.T, problems.items(), strict=True):

        def trajectory(t: Tensor, update: Callable[..., Tensor] = update) -> Tensor:
            w, path = torch.zeros(10, dtype=torch.float64), []
            for _ in range(config.iterations):
                w = update(w, t)
                path.append(w)
            return torch.stack(path)

        def residual(w: Tensor, t: Tensor, update: Callable[..., Tensor] = update) -> Tensor:
            return w - update(w, t)

        path, unrolled = torch.func.jvp(trajectory, (t,), (torch.ones_like(t),))[:2]
        implicit = torch.stack([root_jvp(residual, w, (t,), (torch.ones_like(t),)) for w in path])
        distance = (path - solution).norm(dim=-1)
        errors = {"implicit": (implicit - jacobian).norm(dim=-1), "unrolled": (unrolled - jacobian).norm(dim=-1)}
        for arm, error in errors.items():
            lab.metric(
                "Jacobian error at 50 iterations",
                error[min(49, len(error) - 1)],
                of=f"{name}, {arm}",
                better="lower",
                baseline=arm == "unrolled",
            )
            above.semilogy(range(1, config.iterations + 1), error, label=arm)
            below.loglog(distance, error, ".", label=arm, markersize=4)
        above.set(title=name, xlabel="iteration", ylabel="error of the Jacobian")
        below.set(xlabel="distance of the iterate to the solution", ylabel="error of the Jacobian")
        above.legend()
        if name == "ridge":
            late = slice(4, config.iterations)
            slope = _slope(distance[late], errors["implicit"][late])
            lab.metric("slope of Jacobian error against iterate error", slope, of="implicit")
            lab.claim(
                "the implicit Jacobian is as good as the iterate (theorem 1): log-log slope 1 within 0.1",
                abs(slope - 1) <= 0.1,
                slope=slope,
            )
            ratio = (errors["implicit"][late] / errors["unrolled"][late]).max()
            lab.claim(
                "implicit differentiation is at least as accurate as unrolling at every iteration count from 5 on",
                ratio <= 1,
                scale="smoke",
                largest_ratio=ratio,
            )
    lab.figure("Jacobians", figure, caption="Error of the Jacobian by iteration, and against the error of the iterate.")


def svm(lab: Lab, config: Config) -> None:
    """Tune the regularisation of a multiclass SVM through its dual, with three conditions for one solution."""
    problem = _Svm(config.svm_samples, lab.fork("svm"))
    # The Karush-Kuhn-Tucker system has 21 unknowns a sample: on 24 samples it is dense. Projected gradient and mirror
    # descent are compared on all samples, too.
    few = _Svm(24, lab.fork("svm"))
    log_weight = torch.tensor(2.0, dtype=torch.float64)
    slopes = {
        form: few.hypergradient(form, few.start, log_weight)[2]
        for form in ("projected gradient", "mirror descent", "KKT")
    }
    large = {
        form: problem.hypergradient(form, problem.start, log_weight)[2]
        for form in ("projected gradient", "mirror descent")
    }
    for form, slope in slopes.items():
        lab.metric("hypergradient, 24 samples", slope, of=form)
    for form, slope in large.items():
        lab.metric(f"hypergradient, {config.svm_samples} samples", slope, of=form)
    worst = max(_spread(slopes.values()), _spread(large.values()))
    lab.claim(
        "projected-gradient, mirror-descent and KKT conditions give the same hypergradient to 1e-4 relative",
        worst <= 1e-4,
        scale="smoke",
        largest_relative_difference=worst,
    )

    figure, axes = lab.subplots(1, 2, figsize=(10, 4))
    for form in ("projected gradient", "mirror descent"):
        state = {"log weight": torch.tensor(2.0, dtype=torch.float64), "dual": problem.start.clone()}
        for _ in lab.steps(config.svm_steps, f"SVM, {form}", save=state):
            dual, loss, slope = problem.hypergradient(form, state["dual"], state["log weight"])
            lab.record("validation loss", loss, of=form)
            lab.record("log weight", state["log weight"], of=form)
            state["dual"].copy_(dual)
            state["log weight"].sub_(slope)
        axes[0].plot(lab.series("log weight", of=form), lab.series("validation loss", of=form), ".-", label=form)
        lab.metric("validation loss", lab.last("validation loss", of=form), of=form, better="lower")
    axes[0].set(xlabel="log of the regularisation", ylabel="validation loss", title="tuning the regularisation")
    axes[0].legend()

    counts = config.memory_steps
    memory: dict[str, list[float]] = {"implicit": [], "unrolled": []}
    for steps in counts:
        for arm, sizes in memory.items():
            with _PeakMemory() as peak:
                problem.descend(steps, log_weight, unrolled=arm == "unrolled")
            sizes.append(peak.bytes / 1e6)
    for arm, sizes in memory.items():
        axes[1].plot(counts, sizes, ".-", label=arm)
        lab.metric(
            f"peak memory at {counts[-1]} inner iterations",
            sizes[-1],
            of=arm,
            unit="MB",
            better="lower",
            baseline=arm == "unrolled",
        )
    axes[1].set(xlabel="inner iterations", ylabel="peak memory / MB", title="memory of a hypergradient", ylim=(0, None))
    axes[1].legend()
    lab.figure("SVM", figure, caption="The SVM's regularisation tuned by hypergradients, and what one costs in memory.")
    growth = {arm: sizes[-1] / sizes[0] for arm, sizes in memory.items()}
    lab.claim(
        "the memory of a hypergradient does not grow with the inner iterations; unrolled it grows linearly",
        growth["implicit"] <= 1.05 and growth["unrolled"] >= 0.7 * counts[-1] / counts[0],
        implicit_growth=growth["implicit"],
        unrolled_growth=growth["unrolled"],
    )


class _Svm:
    """The dual of a multiclass SVM (Crammer and Singer): one point of the simplex a sample, weights linear in it."""

    def __init__(self, samples: int, generator: torch.Generator) -> None:
        digits = data.digits("train")
        order = torch.randperm(len(digits.labels), generator=generator)[: 2 * samples]
        pixels, classes = digits.images[order].flatten(1).double(), one_hot(digits.labels[order], 10).double()
        self.train, self.valid = pixels.split(samples)
        self.targets, self.wanted = classes.split(samples)
        self.curvature = torch.linalg.eigvalsh(self.train @ self.train.T)[-1].item()
        self.start = torch.full((samples, 10), 0.1, dtype=torch.float64)

    def weights(self, dual: Tensor, log_weight: Tensor) -> Tensor:
        return self.train.T @ (self.targets - dual) / log_weight.exp()

    def objective(self, dual: Tensor, log_weight: Tensor) -> Tensor:
        return log_weight.exp() * (self.weights(dual, log_weight) ** 2).sum() / 2 + (dual * self.targets).sum()

    def validation(self, dual: Tensor, log_weight: Tensor) -> Tensor:
        return ((self.valid @ self.weights(dual, log_weight) - self.wanted) ** 2).sum() / (2 * len(self.valid))

    def update(self, form: str, log_weight: Tensor) -> Callable[..., Any]:
        """Return a map whose fixed point is the solution; its step is the inverse of the largest curvature."""
        step = log_weight.exp().item() / self.curvature
        if form == "projected gradient":
            return optimality.projected_gradient(self.objective, lambda dual, t: projection_simplex(dual), step=step)
        # The solution has exact zeros, where the logarithm of the mirror map needs a floor.
        return optimality.mirror_descent(
            self.objective, lambda dual, t: dual.softmax(-1), lambda dual: dual.clamp(min=1e-300).log(), step=step
        )

    def solve(self, init: Tensor, log_weight: Tensor) -> Tensor:
        found = minimize(
            self.objective,
            init,
            log_weight,
            prox=lambda dual, step, t: projection_simplex(dual),
            tolerance=1e-8,
            max_iterations=20_000,
            check=True,
        )
        value: Tensor = found.value
        return value

    def solve_kkt(self, init: Tensor, log_weight: Tensor) -> KKTPoint:
        dual = self.solve(init, log_weight)
        slope = torch.func.grad(self.objective)(dual, log_weight)
        inside = dual > 0
        level = -(slope * inside).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)
        return KKTPoint(dual, level, torch.where(inside, 0, (slope + level).clamp(min=0)))

    def hypergradient(self, form: str, init: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the solution, the validation loss and its derivative in the logarithm of the regularisation."""
        t = log_weight.clone().requires_grad_()
        if form == "KKT":
            conditions = optimality.kkt(
                self.objective, lambda dual, t: dual.sum(-1, keepdim=True) - 1, lambda dual, t: -dual
            )
            dual = custom_root(conditions)(self.solve_kkt)(init, t).primal
        else:
            dual = custom_fixed_point(self.update(form, log_weight), tolerance=1e-9)(self.solve)(init, t)
        loss = self.validation(dual, t)
        (slope,) = torch.autograd.grad(loss, t)
        return dual.detach(), loss.detach(), slope

    def descend(self, steps: int, log_weight: Tensor, *, unrolled: bool) -> None:
        """Take projected-gradient steps and differentiate, through all of them or through the fixed point."""
        update = self.update("projected gradient", log_weight)

        def solver(init: Tensor, t: Tensor) -> Tensor:
            dual = init
            for _ in range(steps):
                dual = update(dual, t) if unrolled else update(dual, t).detach()
            return dual

        t = log_weight.clone().requires_grad_()
        solve = (
            solver if unrolled else custom_fixed_point(update, solve="gmres", max_iterations=60, tolerance=1e-2)(solver)
        )
        torch.autograd.grad(self.validation(solve(self.start, t), t), t)


def distillation(lab: Lab, config: Config) -> None:
    """Learn ten images such that a logistic regression trained on them alone reads the digits."""
    train, test = data.digits("train"), data.digits("test")
    images = train.images.flatten(1).double()
    ten = torch.arange(10)

    def training(weights: Tensor, few: Tensor) -> Tensor:
        return cross_entropy(few @ weights, ten) + config.decay * (weights**2).sum() / 2

    def fit(init: Tensor, few: Tensor) -> Tensor:
        # Away from the optimum of the images an inner minimum may be flat: more iterations than a default.
        value: Tensor = minimize(training, init, few, tolerance=1e-6, max_iterations=2000, check=True).value
        return value

    def accuracy(few: Tensor) -> float:
        weights = fit(torch.zeros(64, 10, dtype=torch.float64), few)
        return ((test.images.flatten(1).double() @ weights).argmax(-1) == test.labels).double().mean().item()

    # One image a class reads 65 % on average over many draws (standard deviation 6): the mean of five is compared with
    # the distilled images by its distance, not with a fixed level.
    stream = lab.fork("real images")
    real = []
    for _ in range(5):
        chosen = [torch.randperm(int((train.labels == c).sum()), generator=stream)[0] for c in range(10)]
        real.append(accuracy(torch.stack([images[train.labels == c][i] for c, i in enumerate(chosen)])))
    baseline = sum(real) / len(real)

    few = torch.zeros(10, 64, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([few], lr=0.1)
    state = {"weights": torch.zeros(64, 10, dtype=torch.float64), "images": few.detach()}
    for _ in lab.steps(config.distill_steps, "distil", save={**state, "optimizer": optimizer}):
        weights = fit(state["weights"], few)
        loss = cross_entropy(images @ weights, train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state["weights"].copy_(weights.detach())
        lab.record("loss on all training digits", loss, of="distilled")
    distilled = accuracy(few.detach())
    lab.metric("test accuracy", distilled, of="10 distilled images", better="higher")
    lab.metric("test accuracy", baseline, of="10 real images, mean of 5", better="higher", baseline=True)
    lab.claim(
        "a logistic regression trained on 10 distilled images reads at least 80 % of the test digits, and at least 20 "
        "points more than trained on 10 real ones",
        distilled >= 0.8 and distilled >= baseline + 0.2,
        distilled=distilled,
        real=baseline,
    )
    figure, axes = lab.subplots(2, 5, figsize=(8, 3.6))
    for digit, axis in enumerate(axes.flat):
        axis.imshow(few.detach()[digit].reshape(8, 8), cmap="gray")
        axis.set(title=str(digit), xticks=[], yticks=[])
    lab.figure("distilled digits", figure, caption="The whole training set: one image a class.")


def packing(lab: Lab, config: Config) -> None:
    """Derive the rest positions of soft discs in the diameter of the small ones, and compare with relaxing again."""
    count = config.discs
    small = torch.arange(count) < count // 2
    first, second = torch.triu_indices(count, count, 1)
    # The box holds the discs' area exactly once at the reference diameters: dense, well above jamming (0.84).
    area = math.pi / 4 * (count // 2 * 0.6**2 + (count - count // 2) * 1.0)
    side = math.sqrt(area)

    def energy(positions: Tensor, diameter: Tensor) -> Tensor:
        sizes = torch.where(small, diameter, 1.0)
        reach = (sizes[first] + sizes[second]) / 2
        gap = positions[first] - positions[second]
        gap = gap - side * (gap / side).round()
        squared = (gap**2).sum(-1)
        touching = squared < reach**2
        distance = torch.where(touching, squared, 1.0).sqrt()
        return (torch.where(touching, 1 - distance / reach, 0.0) ** 2).sum() / 2

    def relax(init: Tensor, diameter: Tensor) -> Tensor:
        # Translations and loose discs cost no energy: conjugate gradients stay out of those directions.
        found = minimize(
            energy,
            init,
            diameter,
            method="fire",
            step=0.1,
            tolerance=1e-11,
            max_iterations=50_000,
            solve="cg",
            check=True,
        )
        value: Tensor = found.value
        return value

    diameter, h = torch.tensor(0.6, dtype=torch.float64), 1e-6
    cosines = []
    for number in range(config.packings):
        start = side * torch.rand(count, 2, generator=lab.fork(f"packing {number}"), dtype=torch.float64)
        rest = relax(start, diameter)
        response = torch.func.jvp(lambda d, rest=rest: relax(rest, d), (diameter,), (torch.ones_like(diameter),))[1]
        differences = (relax(rest, diameter + h) - relax(rest, diameter - h)) / (2 * h)
        cosines.append(torch.cosine_similarity(response.flatten(), differences.flatten(), dim=0).item())
        lab.record("cosine to finite differences", cosines[-1])
        if number == 0:
            shown, arrows = rest % side, response
    lab.metric("cosine to finite differences", min(cosines), of="worst packing", better="higher")
    lab.claim(
        "the discs' response to a diameter matches finite differences of relaxed packings: cosine at least 0.99",
        min(cosines) >= 0.99,
        scale="smoke",
        worst=min(cosines),
    )
    figure, axis = lab.subplots(figsize=(6, 6))
    for place, is_small in zip(shown.tolist(), small.tolist(), strict=True):
        radius, colour = (0.3, "tab:orange") if is_small else (0.5, "tab:blue")
        for image in itertools.product((-side, 0, side), repeat=2):  # the box is periodic
            axis.add_patch(_disc((place[0] + image[0], place[1] + image[1]), radius, colour))
    axis.quiver(*shown.T, *arrows.T, angles="xy", zorder=2)
    axis.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[])
    axis.set_title("response to a larger diameter of the orange discs")
    lab.figure("discs", figure, caption="Simulated discs; arrows: derivative of the rest positions.")


class _PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._live = 0, 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._live += size
        self.bytes = max(self.bytes, self._live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._live -= size


def _disc(place: tuple[float, float], radius: float, colour: str) -> Any:
    from matplotlib.patches import Circle

    return Circle(place, radius, color=colour, alpha=0.5, zorder=1)


def _spread(values: Any) -> float:
    """Return the largest difference of the values relative to the largest of them."""
    numbers = [float(v) for v in values]
    return (max(numbers) - min(numbers)) / max(abs(v) for v in numbers)


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """Return the least-squares slope of ``log y`` against ``log x``."""
    u, v = x.log(), y.log()
    return ((u - u.mean()) * (v - v.mean())).sum() / ((u - u.mean()) ** 2).sum()
