r"""The evidence of a linear Gaussian state-space model with its gradient in closed form.

With innovations :math:`v_t` of covariance :math:`F_t`, gains :math:`K_t=AP_tC^TF_t^{-1}` and :math:`L_t=A-K_tC`, one
sweep backwards from :math:`r_T=0,\ N_T=0`,

.. math:: u_t=F_t^{-1}v_t-K_t^Tr_t,\quad r_{t-1}=C^Tu_t+A^Tr_t,\quad N_{t-1}=C^TF_t^{-1}C+L_t^TN_tL_t,

holds all derivatives: the smoothed state is :math:`\hat x_t=a_t+P_tr_{t-1}`, and of :math:`\log p(y)`

.. math::
    \partial_A=\sum_{t<T}r_t\hat x_t^T-N_tL_tP_t,\quad
    \partial_C=\sum_tu_t\hat x_t^T-(F_t^{-1}C-K_t^TN_tL_t)P_t,\quad
    \partial_{y_t}=-u_t,

    \partial_Q=\tfrac12\sum_{t<T}r_tr_t^T-N_t,\quad
    \partial_R=\tfrac12\sum_tu_tu_t^T-F_t^{-1}-K_t^TN_tK_t,\quad
    \partial_m=r_0,\quad\partial_P=\tfrac12(r_0r_0^T-N_0).

No covariance of states is inverted: they may be singular. (By Fisher's identity these are expectations under the
smoothed states; the terms with N are their covariances.)
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.gaussian_models import LinearGaussian, check_observations, covariance_factor

__all__ = ["kalman_evidence"]

_Seven = tuple[Tensor, ...]
"""y, A, C, Q, R, m, P."""


def kalman_evidence(model: LinearGaussian, y: Float[Tensor, "*#batch T k"]) -> Float[Tensor, "*batch"]:
    r"""Return :math:`\log p(y_1\dots y_T)` of a linear Gaussian model, its gradient by one sweep in closed form.

    The value is ``kalman_filter(model, y).log_evidence``. The gradient does not go through the orthogonal
    transformations of the filter: it costs about what the value costs, is right where covariances of states are
    singular, and has derivatives itself.

    Args:
        model: :class:`LinearGaussian`; its batch broadcasts against that of y.
        y: ``[*batch, T, k]`` finite, T >= 1.

    Returns:
        ``[*batch]``.

    Raises:
        TypeError: ``model`` is no LinearGaussian; y is no floating tensor or of another dtype.
        ValueError: shapes do not fit, y is not finite, a covariance is not positive semi-definite (R: definite).

    Example:
        >>> a, one, still = torch.tensor([[0.5]], requires_grad=True), torch.eye(1), torch.zeros(1, 1)
        >>> model = LinearGaussian(a, one, still, one, torch.ones(1), still)  # no noise: the state is 1, a, a^2
        >>> kalman_evidence(model, torch.tensor([[1.0], [0.7], [0.2]])).backward()
        >>> a.grad  # (0.7 - a) + 2 a (0.2 - a^2)
        tensor([[0.1500]])

    References:
        Koopman, Shephard (1992), Exact score for time series models in state space form. de Jong (1989), Smoothing and
        interpolation with the state-space model.
    """
    if not isinstance(model, LinearGaussian):
        raise TypeError(f"model must be a LinearGaussian, got {type(model).__name__}")
    m = model
    seven = (y, m.dynamics, m.emission, m.process_noise, m.observation_noise, m.mean, m.covariance)
    evidence: Tensor = _Evidence.apply(*seven)[0]
    return evidence


class _Evidence(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*seven: Tensor) -> _Seven:
        return _sweep(seven)

    @staticmethod
    def setup_context(ctx: Any, inputs: _Seven, output: _Seven) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *_: Tensor) -> _Seven:
        saved = ctx.saved_tensors
        seven, known = saved[:7], saved[7:]
        if torch.is_grad_enabled():  # derivatives of the gradient are wanted
            known = _sweep(seven)[1:]
        gradients = _scores(seven, *known)
        weighed = (g * cotangent.reshape(*cotangent.shape, *[1] * n) for g, n in zip(gradients, _RANKS, strict=True))
        return tuple(g.sum_to_size(x.shape) for g, x in zip(weighed, seven, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None, None, None]:
        with nested_forward_mode():
            seven = primals(ctx.saved_tensors)
            gradients = _scores(seven, *_sweep(seven)[1:])
            moved = [
                (g * t).flatten(-n).sum(-1)
                for g, t, n in zip(gradients, tangents, _RANKS, strict=True)
                if t is not None
            ]
            return torch.stack(torch.broadcast_tensors(*moved)).sum(0), None, None, None


_RANKS = (2, 2, 2, 2, 2, 1, 2)
"""How many dimensions each of the seven has besides the batch."""


def _sweep(seven: _Seven) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the evidence, means ``[*batch, T, d]`` and factors of predictions, and arrays of factors after a step.

    Both halves of a step are one triangularisation, of ``[[C S, Lr, 0], [A S, 0, Lq]]``; its rows are the factor of
    an observation, and the gain and the factor of the next prediction. They do not depend on y.
    """
    dtype = seven[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    factor = covariance_factor("covariance", seven[6])
    q = covariance_factor("process_noise", seven[3])
    r = covariance_factor("observation_noise", seven[4], definite=True)
    y, a, c, _, _, mean, _ = (x.to(wide) for x in seven)
    k, d = c.shape[-2:]
    matrices = torch.broadcast_shapes(*(x.shape[:-2] for x in (a, c, q, r, factor)))
    batch = check_observations(seven[0], seven[5], k, torch.broadcast_shapes(matrices, mean.shape[:-1]))
    both = torch.cat([c.expand(*matrices, k, d), a.expand(*matrices, d, d)], -2)
    noise = both.new_zeros(*matrices, k + d, k + d)
    noise = torch.cat(
        [
            torch.cat([r.expand(*matrices, k, k), noise[..., :k, k:]], -1),
            torch.cat([noise[..., k:, :k], q.expand(*matrices, d, d)], -1),
        ],
        -2,
    )
    factor = factor.expand(*matrices, d, d)
    factors, arrays = [], []
    for _ in range(y.shape[-2]):
        factors.append(factor)
        array = torch.linalg.qr(torch.cat([both @ factor, noise], -1).mT).R.mT
        arrays.append(array)
        factor = array[..., k:, k:]
    array = torch.stack(arrays, -3)
    scale, mixed = array[..., :k, :k], array[..., k:, :k]
    gain = torch.linalg.solve_triangular(scale, mixed, upper=False, left=False)
    left = a.unsqueeze(-3) - gain @ c.unsqueeze(-3)
    come = gain @ y.unsqueeze(-1)
    state = mean.expand(*batch, d).unsqueeze(-1)
    means = []
    for t in range(y.shape[-2]):
        means.append(state)
        state = left[..., t, :, :] @ state + come[..., t, :, :]
    middle = torch.stack(means, -3)
    white = torch.linalg.solve_triangular(scale, y.unsqueeze(-1) - c.unsqueeze(-3) @ middle, upper=False)
    spread = scale.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1) + k * math.log(2 * math.pi) / 2
    evidence = -(white.square().sum((-2, -1)) / 2 + spread).sum(-1)
    return evidence.to(dtype), middle.squeeze(-1), torch.stack(factors, -3), array


def _scores(seven: _Seven, means: Tensor, factors: Tensor, array: Tensor) -> _Seven:
    """Return the gradient in each of the seven, of the shape ``[*batch, ...]``."""
    dtype = seven[0].dtype
    y, a, c, *_ = (x.to(means.dtype) for x in seven)
    step, look = a.unsqueeze(-3), c.unsqueeze(-3)  # beside the dimension of time
    k = c.shape[-2]
    scale, mixed = array[..., :k, :k], array[..., k:, :k]
    gap = y.unsqueeze(-1) - look @ means.unsqueeze(-1)
    # inv(F) v, inv(F) C and inv(F), and the gain, from the factor of F; its signs do not matter
    root = torch.linalg.solve_triangular(scale, torch.eye(k, dtype=means.dtype, device=y.device), upper=False)
    precision = root.mT @ root
    white, seen, gain = precision @ gap, precision @ look, mixed @ root
    prior = factors @ factors.mT
    left = step - gain @ look
    push, fisher = look.mT @ white, look.mT @ seen
    slope, bend = torch.zeros_like(means[..., 0, :, None]), torch.zeros_like(prior[..., 0, :, :])
    slopes, bends = [slope], [bend]
    for t in reversed(range(y.shape[-2])):
        back = left[..., t, :, :].mT
        slope = push[..., t, :, :] + back @ slope
        bend = fisher[..., t, :, :] + back @ bend @ back.mT
        slopes.append(slope)
        bends.append(bend)
    r_t, n_t = torch.stack(slopes[::-1], -3), torch.stack(bends[::-1], -3)  # from time 0 to T
    before, after, curved = r_t[..., :-1, :, :], r_t[..., 1:, :, :], n_t[..., 1:, :, :]
    error = white - gain.mT @ after
    smooth = means.unsqueeze(-1) + prior @ before
    to_c = error @ smooth.mT - (seen - gain.mT @ curved @ left) @ prior
    to_r = (error @ error.mT - precision - gain.mT @ curved @ gain) / 2
    to_a = (after @ smooth.mT - curved @ left @ prior)[..., :-1, :, :]
    to_q = (after @ after.mT - curved)[..., :-1, :, :] / 2
    first = r_t[..., 0, :, :]
    to_p = (first @ first.mT - n_t[..., 0, :, :]) / 2
    sums = (-error.squeeze(-1), to_a.sum(-3), to_c.sum(-3), to_q.sum(-3), to_r.sum(-3), first.squeeze(-1), to_p)
    return tuple(x.to(dtype) for x in sums)
