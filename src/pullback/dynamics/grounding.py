"""Modes of a task, grounded in which perturbed demonstrations fail, and the policy that replans by them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int
from pullback.dynamics.min_norm import min_norm_filter

__all__ = [
    "GroundingLoss",
    "ModeClassifier",
    "ModePolicy",
    "feasibility_matrix",
    "grounding_loss",
    "mode_feasibility",
    "perturb_trajectories",
]


def perturb_trajectories(
    demonstrations: Float[Tensor, "demos time dim"],
    *,
    count: int,
    low: float,
    high: float,
    sharpness: float = 5.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "count time dim"]:
    r"""Return demonstrations that a push in some interval drew towards a random place.

    .. math:: \tau_t \leftarrow \tau_t + (g - \tau_t) \exp\left(-c \, \frac{(t - m)^2}{(b - m)^2}\right)

    with g uniform in the box, the interval [b, e] of steps random and m its middle.

    Args:
        demonstrations: ``[demos, time, dim]``; each copy is of a random one.
        count: of copies.
        low, high: the box, in every coordinate.
        sharpness: the c above, > 0: what is left of the push at the ends of the interval is ``exp(-c)``.
        generator: of the draws.

    Returns:
        ``[count, time, dim]``, differentiable in the demonstrations.

    Raises:
        ValueError: fewer than three steps, or numbers out of range.

    Example:
        >>> still = torch.zeros(1, 20, 2)
        >>> moved = perturb_trajectories(still, count=3, low=1.0, high=2.0, generator=torch.Generator().manual_seed(0))
        >>> moved.shape, bool((moved.amax(1) > 0.9).all()), bool((moved >= 0).all())
        (torch.Size([3, 20, 2]), True, True)

    References:
        Wang et al. (2024), Grounding language plans in demonstrations, section 3.2, arXiv 2403.17124, and their code.
    """
    check_floating("demonstrations", demonstrations)
    if demonstrations.ndim != 3 or demonstrations.shape[0] == 0 or demonstrations.shape[1] < 3:
        got = tuple(demonstrations.shape)
        raise ValueError(f"demonstrations must be [demos, time, dim] with at least one and three steps, got {got}")
    check_integer("count", count, 1)
    check_positive("sharpness", sharpness)
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    demos, steps, dim = demonstrations.shape
    device = drawing_device(generator, demonstrations)
    chosen = torch.randint(demos, (count,), generator=generator, device=device)
    begin = torch.randint(steps - 1, (count,), generator=generator, device=device)
    share = torch.rand(count, generator=generator, device=device)
    end = begin + 1 + (share * (steps - 1 - begin)).floor().long()
    target = low + (high - low) * torch.rand(count, 1, dim, generator=generator, device=device)
    middle, begin = ((begin + end) / 2).to(demonstrations), begin.to(demonstrations)
    at = torch.arange(steps, device=demonstrations.device).to(demonstrations)
    kernel = torch.exp(-sharpness * ((at - middle[:, None]) / (begin - middle)[:, None]) ** 2)[..., None]
    path = demonstrations[chosen.to(demonstrations.device)]
    return path + (target.to(demonstrations) - path) * kernel


def feasibility_matrix(plan: Sequence[str], *, reversible: bool = True) -> Float[Tensor, "modes modes"]:
    """Return how infeasible each transition of a plan is: 0 for staying, the next mode, and going back.

    Skipping forwards from mode i to j costs ``-(j - i - 1)``; going back costs ``-(i - j)`` where the plan is not
    reversible.

    Args:
        plan: the names of the modes, in order, two or more.
        reversible: whether an earlier mode may follow.

    Raises:
        ValueError: fewer than two modes, or two of one name.

    Example:
        >>> feasibility_matrix(["free", "grasp", "lift"]).tolist()
        [[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]

    References:
        Wang et al. (2024), section 3.1, arXiv 2403.17124.
    """
    if len(plan) < 2 or len(set(plan)) != len(plan):
        raise ValueError(f"plan must name two or more different modes, got {list(plan)}")
    place = torch.arange(len(plan), dtype=torch.get_default_dtype())
    ahead = place - place[:, None]
    cost = (ahead - 1).clamp(min=0) if reversible else (ahead - 1).clamp(min=0) + (-ahead).clamp(min=0)
    return 0.0 - cost


def mode_feasibility(
    probabilities: Float[Tensor, "*batch time modes"], feasibility: Float[Tensor, "modes modes"]
) -> Float[Tensor, "*batch time-1"]:
    r"""Return how feasible every step of trajectories is, ``q_t = p_t^T F p_{t+1}``.

    Args:
        probabilities: ``[*batch, time, modes]``, of each step's mode.
        feasibility: ``[modes, modes]``, from mode (row) to mode, <= 0.

    Returns:
        ``[*batch, time - 1]``.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: the matrix is not ``[modes, modes]``, or there are fewer than two steps.

    Example:
        >>> steps = torch.eye(3)[[0, 1, 1, 0, 2]]
        >>> mode_feasibility(steps, feasibility_matrix(["a", "b", "c"])).tolist()
        [0.0, 0.0, 0.0, -1.0]

    References:
        Wang et al. (2024), equation 2, arXiv 2403.17124.
    """
    check_floating("probabilities", probabilities)
    check_floating("feasibility", feasibility)
    modes = probabilities.shape[-1] if probabilities.ndim else 0
    if probabilities.ndim < 2 or probabilities.shape[-2] < 2:
        raise ValueError(
            f"probabilities must be [*, time, modes] with two steps or more, got {tuple(probabilities.shape)}"
        )
    if tuple(feasibility.shape) != (modes, modes):
        raise ValueError(f"feasibility must be [{modes}, {modes}], got {tuple(feasibility.shape)}")
    dtype = torch.promote_types(probabilities.dtype, feasibility.dtype)
    ahead = probabilities[..., :-1, :].to(dtype) @ feasibility.to(dtype)
    return (ahead * probabilities[..., 1:, :]).sum(-1)


class ModeClassifier(nn.Module):
    """Several guesses at the mode of a state: one perceptron, one head for each guess.

    Args:
        dim: of the state.
        modes: >= 2.
        guesses: heads, of which the one of the least loss is used.
        hidden: sizes of the hidden layers.
        scale: the states are divided by it, > 0.

    Attributes:
        best: the guess that ``probabilities`` uses; set it to the one of the least loss.

    Example:
        >>> ModeClassifier(2, 3, guesses=4)(torch.zeros(5, 2)).shape
        torch.Size([5, 4, 3])

    References:
        Wang et al. (2024), section 3.2, arXiv 2403.17124.
    """

    best: Tensor

    def __init__(
        self, dim: int, modes: int, *, guesses: int = 10, hidden: Sequence[int] = (64, 64), scale: float = 1.0
    ) -> None:
        super().__init__()
        check_integer("modes", modes, 2)
        check_integer("guesses", guesses, 1)
        check_positive("scale", scale)
        sizes = [check_integer("dim", dim, 1), *(check_integer("hidden", size, 1) for size in hidden)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], guesses * modes))
        self.dim, self.modes, self.guesses, self.scale = dim, modes, guesses, float(scale)
        self.register_buffer("best", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch guesses modes"]:
        """Return the logits of every guess."""
        check_shape("x", x, (self.dim,))
        return self.layers(x / self.scale).unflatten(-1, (self.guesses, self.modes))

    def log_probabilities(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch modes"]:
        """Return the log probabilities of the best guess."""
        return F.log_softmax(self(x)[..., self.best, :], -1)

    def mode(self, x: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch"]:
        """Return the most probable mode of the best guess."""
        return self.log_probabilities(x).argmax(-1)


class GroundingLoss(NamedTuple):
    """What :func:`grounding_loss` returns.

    Attributes:
        total: the loss to descend.
        guesses: ``[guesses]`` the loss of each.
        best: the index of the least.
    """

    total: Float[Tensor, ""]
    guesses: Float[Tensor, "guesses"]
    best: Int[Tensor, ""]


def grounding_loss(
    success: Float[Tensor, "successes time guesses modes"],
    failure: Float[Tensor, "failures time guesses modes"],
    feasibility: Float[Tensor, "modes modes"],
    *,
    weights: tuple[float, float, float] = (1000.0, 1.0, 10.0),
    spread: float = 0.1,
) -> GroundingLoss:
    r"""Return the loss by which modes explain which trajectories failed.

    With ``q`` of :func:`mode_feasibility` and the first and last mode of the plan at the ends of all trajectories,

    .. math:: w_1 \, \overline{(-\overline{q_t})}_{success} + w_2 \, \overline{\max(\textstyle\sum_t q_t, -1)}_{failure}
              + w_3 \, (\mathrm{NLL}(p_0, 0) + \mathrm{NLL}(p_T, K - 1))_{each set}

    for each guess; the total is ``spread`` of their mean and the rest of the best one, so that the best goes on.

    Args:
        success: ``[successes, time, guesses, modes]`` logits of the successful trajectories' states.
        failure: ``[failures, time, guesses, modes]``; without any, modes mean nothing.
        feasibility: ``[modes, modes]``.
        weights: the w above.
        spread: share of the mean of all guesses, in [0, 1].

    Returns:
        :class:`GroundingLoss`.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: shapes do not fit, or there is no success or no failure.

    Example:
        >>> logits = torch.zeros(2, 5, 3, 4)
        >>> grounding_loss(logits, logits, feasibility_matrix(["a", "b", "c", "d"])).guesses.shape
        torch.Size([3])

    References:
        Wang et al. (2024), equation 4, arXiv 2403.17124; weights and the clamp of the authors' code.
    """
    check_floating("success", success)
    check_floating("failure", failure)
    if failure.ndim != 4 or len(failure) == 0:
        raise ValueError(
            "failure must be [failures, time, guesses, modes] with at least one: no perturbation failed? Larger "
            f"targets make more of them fail; got {tuple(failure.shape)}"
        )
    if success.ndim != 4 or len(success) == 0 or success.shape[1:] != failure.shape[1:]:
        got = f"got {tuple(success.shape)} beside failures {tuple(failure.shape)}"
        raise ValueError(f"success must be [successes, time, guesses, modes] with at least one, {got}")
    logs = [F.log_softmax(logits, -1).transpose(1, 2) for logits in (success, failure)]
    succeeded, failed = (mode_feasibility(log.exp(), feasibility) for log in logs)
    ends = sum(-(log[:, :, 0, 0] + log[:, :, -1, -1]).mean(0) for log in logs)
    first = -succeeded.mean((0, 2))
    second = failed.sum(-1).clamp(min=-1).mean(0)
    each = weights[0] * first + weights[1] * second + weights[2] * ends
    best = each.detach().argmin()
    return GroundingLoss(spread * each.mean() + (1 - spread) * each[best], each, best)


class ModePolicy:
    r"""A policy that replans by modes: in mode i it heads for where demonstrations enter mode i + 1.

    Where it might slip into a mode that may not follow, the velocity is changed the least such that the log odds h of
    the feasible modes against the others stay above a margin: ``dh/dt + p (h - margin) >= 0``, by
    :func:`min_norm_filter`.

    Args:
        classifier: of the modes.
        demonstrations: ``[demos, time, dim]``.
        feasibility: ``[modes, modes]``, transitions below 0 are avoided.
        speed: length of the velocity, > 0; close to a target it falls.
        classk: the p above, > 0.
        margin: what is taken off the log odds, >= 0: how sure the classifier has to be.
        attract: the nominal velocity ``attract(x, target)``; default: straight to the target.

    Raises:
        TypeError: ``demonstrations`` is not floating, or ``attract`` cannot be called.
        ValueError: shapes do not fit, or a number is out of range.

    Example:
        >>> world = [torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])]
        >>> classifier = ModeClassifier(2, 2, guesses=1)
        >>> policy = ModePolicy(classifier, torch.stack(world), feasibility_matrix(["a", "b"]))
        >>> policy.velocity(torch.zeros(5, 2)).shape
        torch.Size([5, 2])

    References:
        Wang et al. (2024), section 3.3, arXiv 2403.17124.
    """

    def __init__(
        self,
        classifier: ModeClassifier,
        demonstrations: Float[Tensor, "demos time dim"],
        feasibility: Float[Tensor, "modes modes"],
        *,
        speed: float = 1.0,
        classk: float = 5.0,
        margin: float = 1.0,
        attract: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        check_positive("speed", speed)
        check_positive("classk", classk)
        check_positive("margin", margin, zero=True)
        if attract is not None:
            check_callable("attract", attract)
        check_floating("demonstrations", demonstrations)
        check_shape("demonstrations", demonstrations, (None, None, classifier.dim))
        if demonstrations.ndim != 3 or demonstrations.numel() == 0:
            raise ValueError(f"demonstrations must be [demos, time, dim], got {tuple(demonstrations.shape)}")
        check_shape("feasibility", feasibility, (classifier.modes, classifier.modes))
        self.classifier, self.feasibility = classifier, feasibility
        self.speed, self.classk, self.margin, self.attract = float(speed), float(classk), float(margin), attract
        with torch.no_grad():
            mode = classifier.mode(demonstrations)
            goal = demonstrations[:, -1].mean(0)
            targets = []
            for k in range(1, classifier.modes):
                entered = mode >= k  # in it or a later one; demonstrations that never are do not count
                first = demonstrations[torch.arange(len(mode)), entered.int().argmax(1)][entered.any(1)]
                targets.append(first.mean(0) if len(first) else goal)
            # a step further in than the boundary itself
            inner = [(1 - 0.3) * a + 0.3 * b for a, b in zip(targets, [*targets[1:], goal], strict=True)]
        self.targets = torch.stack([*inner, goal])

    def velocity(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the velocity at states."""
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            log = self.classifier.log_probabilities(state)
            mode = log.argmax(-1)
            allowed = self.feasibility.to(log)[mode] >= 0
            odds = log.masked_fill(~allowed, -torch.inf).logsumexp(-1)
            against = log.masked_fill(allowed, -torch.inf)
            free = allowed.all(-1)
            h = odds - torch.where(free[..., None], 0, against).logsumexp(-1)
            (gradient,) = torch.autograd.grad(torch.where(free, 0, h).sum(), state)
        target = self.targets[mode]
        if self.attract is None:
            way = target - x
            length = torch.linalg.vector_norm(way, dim=-1, keepdim=True)
            nominal = self.speed * way / length.clamp(min=0.2)
        else:
            nominal = self.attract(x, target)
        offset = torch.where(free, 0, self.classk * (h.detach() - self.margin).clamp(min=-1, max=10))
        found = min_norm_filter(nominal, gradient[..., None, :], offset[..., None], check=False).value
        fast = torch.linalg.vector_norm(found, dim=-1, keepdim=True)
        return found * (self.speed / fast.clamp(min=self.speed))

    def mode(self, x: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch"]:
        """Return the mode that the classifier sees."""
        return self.classifier.mode(x)
