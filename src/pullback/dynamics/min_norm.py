"""The least change of a vector that satisfies linear inequalities: the filter of control barrier functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_broadcast, check_finite, check_floating, check_positive, check_same_dtype
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Bool, Float
from pullback.core.transforms import can_look
from pullback.kernels.complementarity import differentiable_complementarity

__all__ = ["Filtered", "min_norm_filter"]

_RIDGE = 1e-13
"""Added to the diagonal of the Gramian of unit rows: dependent rows share their multiplier."""
_TOLERANCE = 1e-6
"""Relative to the largest violation of the nominal vector: what may be left of it."""


class Filtered(NamedTuple):
    """What :func:`min_norm_filter` returns.

    Attributes:
        value: ``[*batch, n]`` the filtered vectors.
        active: ``[*batch, m]`` rows that hold the vector back: with a multiplier above 0.
        slack: ``[*batch, m]`` >= 0, by how much a row was relaxed; 0 where its slack has no price.
        residual: ``[*batch]`` the largest distance by which a row, relaxed, is still violated, in the unit of value.
    """

    value: Float[Tensor, "*batch n"]
    active: Bool[Tensor, "*batch m"]
    slack: Float[Tensor, "*batch m"]
    residual: Float[Tensor, "*batch"]


def min_norm_filter(
    nominal: Float[Tensor, "*#batch n"],
    rows: Float[Tensor, "*#batch m n"],
    offsets: Float[Tensor, "*#batch m"],
    *,
    weight: Float[Tensor, "*#batch n"] | None = None,
    slack: float | Float[Tensor, "*#batch m"] | None = None,
    check: bool = True,
) -> Filtered:
    r"""Return the vector nearest to a nominal one that satisfies every row.

    .. math:: \min_{z, s} \sum_i w_i (z_i - \bar z_i)^2 + \sum_j \rho_j s_j^2
              \quad\text{with}\quad A z + c + s \ge 0, \; s \ge 0 .

    ``z`` is the nominal vector plus ``W^-1 A^T l``, where the multipliers l >= 0 solve a linear complementarity problem
    of m unknowns, exactly, by an active set method; one row has the closed form
    ``z = nominal + a max(0, -(a . nominal + c)) / |a|^2``. Derivatives of every order are those of the equations of the
    active rows (at a kink, of one side).

    Args:
        nominal: ``[*batch, n]``, of any scale.
        rows: ``[*batch, m, n]`` the matrix A. A row of zeros constrains nothing; its offset must be >= 0.
        offsets: ``[*batch, m]`` the vector c.
        weight: ``[*batch, n]`` > 0, the w; default 1.
        slack: the price rho > 0 of relaxing a row, a number or ``[*batch, m]``; ``inf``: that row is hard. ``None``:
            all are.
        check: raise where no vector satisfies the rows; else the residual says so. Never under ``torch.func``
            transforms.

    Returns:
        :class:`Filtered`.

    Raises:
        TypeError: an argument is no floating tensor, or their dtypes differ.
        ValueError: shapes do not fit, a number is NaN or infinite, ``weight`` or ``slack`` is not positive.
        ConvergenceError: the rows contradict each other and have no slack; names the first sample, carries the result.

    Example:
        >>> rows, offsets = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([-1.0, 0.0])
        >>> found = min_norm_filter(torch.tensor([0.0, 0.5]), rows, offsets)  # first entry at least 1
        >>> found.value.tolist(), found.active.tolist()
        ([1.0, 0.5], [True, False])

    References:
        Ames, Xu, Grizzle, Tabuada (2017), Control barrier function based quadratic programs, equation (CBF-QP), arXiv
        1609.06408; Xiao et al. (2023), On the forward invariance of neural ODEs, arXiv 2210.04763.
    """
    check_floating("nominal", nominal)
    n = nominal.shape[-1] if nominal.ndim else 0
    check_floating("rows", rows)
    if n == 0 or rows.ndim < 2 or rows.shape[-1] != n or rows.shape[-2] == 0:
        got = f"got {tuple(nominal.shape)} and {tuple(rows.shape)}"
        raise ValueError(f"nominal must be [*, n] and rows [*, m, n] with n, m >= 1, {got}")
    m = rows.shape[-2]
    check_floating("offsets", offsets)
    given = {"nominal": nominal, "rows": rows, "offsets": offsets}
    shapes = {"nominal": nominal.shape[:-1], "rows": rows.shape[:-2], "offsets": offsets.shape[:-1]}
    if offsets.shape[-1:] != (m,):
        raise ValueError(f"offsets must be [*, {m}] for {m} rows, got {tuple(offsets.shape)}")
    if weight is not None:
        given["weight"] = check_floating("weight", weight)
        shapes["weight"] = weight.shape[:-1]
        if weight.shape[-1:] != (n,):
            raise ValueError(f"weight must be [*, {n}] for vectors of {n}, got {tuple(weight.shape)}")
    if isinstance(slack, Tensor):
        given["slack"] = check_floating("slack", slack)
        shapes["slack"] = slack.shape[:-1]
        if slack.shape[-1:] != (m,):
            raise ValueError(f"slack must be a number or [*, {m}] for {m} rows, got {tuple(slack.shape)}")
    elif slack is not None:
        check_positive("slack", slack if slack != float("inf") else 1.0)
    check_same_dtype(**given)
    batch = check_broadcast(**{name: tuple(shape) for name, shape in shapes.items()})
    for name, value in given.items():
        if can_look(value):
            _check_values(name, value.detach())
    return _filtered(batch, nominal, rows, offsets, weight, slack, check)


def _check_values(name: str, value: Tensor) -> None:
    if name == "slack":
        if not bool((value > 0).all()):
            raise ValueError(f"slack must be > 0 everywhere, got minimum {value.min().item()}")
        return
    check_finite(name, value)
    if name == "weight":
        check_positive(name, value)


def _filtered(
    batch: torch.Size,
    nominal: Tensor,
    rows: Tensor,
    offsets: Tensor,
    weight: Tensor | None,
    slack: float | Tensor | None,
    check: bool,
) -> Filtered:
    m, n = rows.shape[-2:]
    z0, a, c = nominal.double().expand(*batch, n), rows.double().expand(*batch, m, n), offsets.double()
    # in the unknown sqrt(w) (z - nominal) the weights are 1, and so are the lengths of the rows
    scaled = a if weight is None else a / weight.double().sqrt()[..., None, :]
    length = torch.linalg.vector_norm(scaled, dim=-1)
    length = torch.where(length == 0, 1, length)
    unit = scaled / length[..., None]
    lacking = (unit @ (z0 if weight is None else z0 * weight.double().sqrt())[..., None])[..., 0] + c / length
    eased = lacking.new_zeros(())
    if slack is not None:
        eased = 1 / (torch.as_tensor(slack, dtype=z0.dtype, device=z0.device) * length**2)
    gramian = unit @ unit.mT
    idle = (gramian.diagonal(dim1=-2, dim2=-1) == 0) & (eased == 0)  # a row of zeros that cannot give way
    diagonal = torch.where(idle, 1.0, _RIDGE) + eased
    if m == 1:
        multiplier = torch.where(idle, 0, torch.relu(-lacking) / (gramian[..., 0] + diagonal))
    else:
        right = torch.where(idle, 1, lacking).expand(*batch, m)
        matrix = gramian + torch.diag_embed(diagonal.expand(*batch, m))
        multiplier = differentiable_complementarity(matrix, right[..., None, :])[..., 0, :]
    change = (multiplier[..., None, :] @ unit)[..., 0, :]
    value = (z0 + (change if weight is None else change / weight.double().sqrt())).to(nominal.dtype)
    relaxed = multiplier * eased  # in lengths
    left = lacking + (gramian @ multiplier[..., None])[..., 0] + relaxed
    residual = (-left).clamp(min=0).amax(-1)
    result = Filtered(value, multiplier > 0, (relaxed * length).to(nominal.dtype), residual.to(nominal.dtype))
    if check and can_look(residual):
        missed = residual > _TOLERANCE * lacking.abs().amax(-1) + 1e-12 * torch.linalg.vector_norm(z0, dim=-1)
        if bool(missed.any()):
            sample = tuple(int(i) for i in missed.nonzero()[0])
            raise ConvergenceError(
                f"min_norm_filter: the rows of sample {sample} contradict each other, the best vector misses one by "
                f"{residual[sample].item():.3g}; give them a slack",
                result,
            )
    return result
