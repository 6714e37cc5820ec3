"""The two constrained structure learners that smooth orientations are compared with: DAGMA and NOTEARS."""

from __future__ import annotations

import torch

from pullback.causal.acyclicity import acyclicity
from pullback.causal.structure import StructureResult, least_squares_score, second_moments
from pullback.core.checks import check_positive
from pullback.core.shapes import Shaped, Tensor

__all__ = ["dagma", "notears"]


def dagma(
    data: Shaped[Tensor, "*batch n d"],
    *,
    covariance: bool = False,
    penalty: float = 0.02,
    path: tuple[tuple[float, float], ...] = ((1.0, 1.0), (0.1, 0.9), (0.01, 0.8), (0.001, 0.7)),
    steps: int = 10_000,
    lr: float = 3e-4,
    tolerance: float = 1e-6,
    check_every: int = 1000,
) -> StructureResult:
    r"""Learn a DAG on the central path of the log-determinant barrier.

    For every ``(mu, s)`` of the path, from the last solution,

    .. math:: \min_W\; \mu\big(\tfrac12\mathrm{tr}((I-W)^TC(I-W)) + \lambda\|W\|_1\big)
              - \log\det(sI - W\circ W) + d\log s

    by Adam; a graph whose step leaves the domain (an M-matrix) takes it back and halves its step size.

    Args:
        data: ``[*batch, n, d]`` samples or ``[*batch, d, d]`` covariance; the batch is solved as one tensor program.
        covariance: whether ``data`` is a covariance.
        penalty: ``lambda >= 0``.
        path: pairs ``(mu, s)``.
        steps: Adam steps a pair; the last pair gets twice as many.
        lr: step size.
        tolerance: relative change of the objective between checks below which a pair is finished.
        check_every: steps between checks.

    Returns:
        :class:`StructureResult`; ``converged`` is ``False`` if the last pair ran out of steps. Threshold with
        ``result.graph(0.3)``.

    Raises:
        ValueError: bad data or arguments.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> dagma(x.double(), steps=4000, lr=1e-3).graph().tolist()
        [[False, False], [True, False]]

    References:
        Bello, Aragam, Ravikumar (2022), DAGMA: Learning DAGs via M-matrices, algorithm 1 and section 4.
    """
    check_positive("penalty", penalty, zero=True)
    for name, number in (("steps", steps), ("lr", lr), ("tolerance", tolerance), ("check_every", check_every)):
        check_positive(name, number)
    moments = second_moments(data, covariance=covariance).detach()
    nodes, batch = moments.shape[-1], moments.shape[:-2]
    identity = torch.eye(nodes, dtype=moments.dtype, device=moments.device)
    weights = torch.zeros_like(moments)
    history: list[Tensor] = []
    converged = True
    for index, (mu, scale) in enumerate(path):
        rate = torch.full((*batch, 1, 1), lr, dtype=moments.dtype, device=moments.device)
        mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
        previous: Tensor | None = None
        step_taken = torch.zeros_like(weights)
        budget = steps * (2 if index == len(path) - 1 else 1)
        converged = False
        for step in range(1, budget + 1):
            inverse, outside = _inverse_in_domain(scale * identity - weights * weights)
            while bool(outside.any()):
                # Back half a step: closer to the last point inside the domain.
                rate = torch.where(outside, rate / 2, rate)
                weights = torch.where(outside, weights + step_taken / 2, weights)
                step_taken = torch.where(outside, step_taken / 2, step_taken)
                inverse, outside = _inverse_in_domain(scale * identity - weights * weights)
            gradient = mu * (moments @ (weights - identity) + penalty * weights.sign()) + 2 * weights * inverse.mT
            mean = 0.99 * mean + 0.01 * gradient
            square = 0.999 * square + 0.001 * gradient * gradient
            direction = mean / (1 - 0.99**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            step_taken = rate * direction * (1 - identity)
            weights = weights - step_taken
            if step % check_every == 0 or step == budget:
                value = mu * _penalised(weights, moments, penalty) + acyclicity(weights, scale=scale)
                history.append(value)
                if previous is not None and bool(((value - previous).abs() <= tolerance * previous.abs()).all()):
                    converged = True
                    break
                previous = value
    return _result(weights, moments, history, converged)


def notears(
    data: Shaped[Tensor, "*batch n d"],
    *,
    covariance: bool = False,
    penalty: float = 0.1,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
    max_penalty: float = 1e16,
    inner_iterations: int = 200,
) -> StructureResult:
    r"""Learn a DAG by the augmented Lagrangian of :math:`h(W) = \mathrm{tr}\,e^{W\circ W} - d = 0`.

    Each inner problem

    .. math:: \min_W \tfrac12\mathrm{tr}((I-W)^TC(I-W)) + \lambda\|W\|_1 + \alpha h + \tfrac\rho2 h^2

    is solved by L-BFGS in the variables :math:`W = u\circ u - v\circ v`, where :math:`\|W\|_1 = \|u\|^2 + \|v\|^2`: the
    smooth form of the split into positive and negative parts. ``alpha`` and ``rho`` follow the paper.

    Args:
        data: ``[*batch, n, d]`` samples or ``[*batch, d, d]`` covariance; a batch is solved one by one.
        covariance: whether ``data`` is a covariance.
        penalty: ``lambda >= 0``.
        tolerance: stop when ``h`` is below.
        max_iterations: multiplier updates.
        max_penalty: bound of ``rho``.
        inner_iterations: L-BFGS iterations an inner problem.

    Returns:
        :class:`StructureResult`; ``converged`` says whether ``h <= tolerance`` was reached. Threshold with
        ``result.graph(0.3)``.

    Raises:
        ValueError: bad data or arguments.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> notears(x.double()).graph().tolist()
        [[False, False], [True, False]]

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), DAGs with NO TEARS, algorithm 1.
    """
    check_positive("penalty", penalty, zero=True)
    for name, value in (("tolerance", tolerance), ("max_iterations", max_iterations), ("max_penalty", max_penalty)):
        check_positive(name, value)
    moments = second_moments(data, covariance=covariance).detach()
    flat = moments.reshape(-1, *moments.shape[-2:])
    solved = [_augmented_lagrangian(c, penalty, tolerance, max_iterations, max_penalty, inner_iterations) for c in flat]
    weights = torch.stack([w for w, _, _ in solved]).reshape(moments.shape)
    history = [torch.stack([h for _, h, _ in solved]).reshape(moments.shape[:-2])]
    return _result(weights, moments, history, all(done for _, _, done in solved))


def _augmented_lagrangian(
    moments: Tensor, penalty: float, tolerance: float, max_iterations: int, max_penalty: float, inner_iterations: int
) -> tuple[Tensor, Tensor, bool]:
    nodes = moments.shape[-1]
    off = 1 - torch.eye(nodes, dtype=moments.dtype, device=moments.device)
    # Away from zero, where the squares have no gradient; equal parts, so that W starts at zero.
    parts = [(0.1 * off).clone().requires_grad_() for _ in range(2)]
    rho, alpha, last = 1.0, 0.0, float("inf")

    def weights() -> Tensor:
        return (parts[0] * parts[0] - parts[1] * parts[1]) * off

    value = torch.zeros((), dtype=moments.dtype)
    for _ in range(max_iterations):
        saved = [p.detach().clone() for p in parts]
        while rho < max_penalty:
            optimizer = torch.optim.LBFGS(
                parts, max_iter=inner_iterations, line_search_fn="strong_wolfe", tolerance_change=1e-12
            )

            def closure(rho: float = rho, alpha: float = alpha, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
                optimizer.zero_grad()
                w = weights()
                h = acyclicity(w, method="exponential")
                fit = 0.5 * nodes * least_squares_score(w, moments)
                size = sum((p * off).square().sum() for p in parts)
                loss = fit + penalty * size + alpha * h + 0.5 * rho * h * h
                loss.backward()
                return loss

            optimizer.step(closure)
            value = acyclicity(weights().detach(), method="exponential")
            if value > 0.25 * last:
                rho *= 10
                with torch.no_grad():
                    for p, s in zip(parts, saved, strict=True):
                        p.copy_(s)
            else:
                break
        last = float(value)
        alpha += rho * last
        if last <= tolerance or rho >= max_penalty:
            break
    return weights().detach(), value, last <= tolerance


def _inverse_in_domain(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse and whether the matrix fails to be an M-matrix (``[*batch, 1, 1]``)."""
    inverse, information = torch.linalg.inv_ex(matrix)
    negative = (inverse < -1e-12 * inverse.abs().amax((-2, -1), keepdim=True)).any(-1, keepdim=True)
    outside = negative.any(-2, keepdim=True) | (information > 0)[..., None, None] | ~inverse.isfinite().all()
    return inverse, outside


def _penalised(weights: Tensor, moments: Tensor, penalty: float) -> Tensor:
    return 0.5 * weights.shape[-1] * least_squares_score(weights, moments) + penalty * weights.abs().sum((-2, -1))


def _result(weights: Tensor, moments: Tensor, history: list[Tensor], converged: bool) -> StructureResult:
    # Nodes by the length of the weighted walks that end in them: a topological order wherever the graph is a DAG.
    depth = torch.zeros(weights.shape[:-1], dtype=weights.dtype, device=weights.device)
    arcs = (weights.abs() > 0.3).to(weights.dtype)
    for _ in range(weights.shape[-1]):
        depth = ((depth + 1).unsqueeze(-1) * arcs).amax(-2)
    score = least_squares_score(weights, moments)
    return StructureResult(
        weights=weights,
        order=depth.argsort(dim=-1, stable=True),
        score=score,
        restart_weights=weights.unsqueeze(-3),
        restart_scores=score.unsqueeze(-1),
        history={"objective": torch.stack(history)},
        converged=converged,
    )
