"""Estimates of transfer operators from pairs of states, on given features: eigenfunctions and forecasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_callable,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
)
from pullback.core.shapes import Float, Shaped, Tensor
from pullback.dynamics.operator_scores import covariances

__all__ = ["OperatorSingular", "OperatorSpectrum", "TransferOperator"]


class OperatorSpectrum(NamedTuple):
    """Eigenvalues of an estimated operator, largest modulus first.

    Attributes:
        values: ``[r]`` complex.
        right: ``[r, r]`` complex, in columns the coefficients of the eigenfunctions on the features.
        left: ``[r, r]`` complex, in columns u with :math:`u^HG=\\lambda u^H` and :math:`u_i^Hv_i=1`.
    """

    values: Tensor
    right: Tensor
    left: Tensor


class OperatorSingular(NamedTuple):
    """Singular values of an estimated operator, largest first.

    Attributes:
        values: ``[k]``; k is the rank, or the number of features.
        left: ``[r, k]``, in columns the coefficients of functions u of the state now, with :math:`Tv=\\sigma u`.
        right: ``[r, k]``, in columns the coefficients of functions v of the state one step later.
    """

    values: Tensor
    left: Tensor
    right: Tensor


class TransferOperator:
    r"""The operator :math:`(Tf)(x)=E[f(X_{t+1})\mid X_t=x]` on the span of features, by regression.

    For :math:`f=\psi^Tc` the estimate is :math:`\psi^TGc` with the matrix
    :math:`G=(C_x+\rho I)^{-1}C_{xy}`; ``"reduced_rank"`` takes the best G of rank k for the same loss, which keeps the
    k leading directions of :math:`(C_x+\rho I)^{-1/2}C_{xy}`. All is computed in double precision, without gradient.

    Args:
        features: :math:`\psi`, from states ``[n, *event]`` to ``[n, r]``.
        ridge: :math:`\rho\ge0`, in units of squared features.
        rank: k in 1..r; needed by ``"reduced_rank"``, and by it alone.
        method: ``"least_squares"`` or ``"reduced_rank"``.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range, or a rank that does not go with the method.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> operator = TransferOperator(lambda x: x, ridge=0.0).fit(x, x / 2)
        >>> operator.eig().values.real.tolist(), operator.forecast(x, 2).tolist()
        ([0.5], [[0.25], [0.5]])

    References:
        Kostic, Novelli, Maurer, Ciliberto, Rosasco, Pontil (2022), Learning dynamical systems via Koopman operator
        regression in reproducing kernel Hilbert spaces, arXiv 2205.14027.
    """

    matrix: Tensor
    """``[r, r]`` G, after :meth:`fit`."""

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        *,
        ridge: float = 1e-6,
        rank: int | None = None,
        method: str = "least_squares",
    ) -> None:
        check_callable("features", features)
        check_positive("ridge", ridge, zero=True)
        check_choice("method", method, ("least_squares", "reduced_rank"))
        if (rank is None) != (method == "least_squares"):
            raise ValueError(f'rank must be given for method="reduced_rank" alone, got {rank} for "{method}"')
        if rank is not None:
            check_integer("rank", rank, 1)
        self.features, self.ridge, self.rank, self.method = features, ridge, rank, method

    @torch.no_grad()
    def fit(
        self,
        x: Shaped[Tensor, "n ..."],
        y: Shaped[Tensor, "n ..."],
        observed: Float[Tensor, "n p"] | None = None,
    ) -> TransferOperator:
        """Estimate the operator from pairs, and what :meth:`forecast` foretells.

        Args:
            x: ``[n, *event]`` states now.
            y: ``[n, *event]`` states one step later.
            observed: ``[n, p]`` numbers seen at ``y``; by default ``y`` itself, flattened.

        Returns:
            Itself.

        Raises:
            TypeError: ``features`` or ``observed`` are not floating.
            ValueError: shapes that do not fit, numbers that are not finite, a rank above that of the features, or
                dependent features (fewer pairs than features, say) without a ridge.
        """
        if len(x) != len(y):
            raise ValueError(f"y must have as many states as x, {len(x)}, got {len(y)}")
        now, later = self._features(x), self._features(y)
        seen = y.flatten(1) if observed is None else observed
        check_finite("observed", check_floating("observed", seen))
        if seen.ndim != 2 or len(seen) != len(x):
            raise ValueError(f"observed must have shape ({len(x)}, p), got {tuple(seen.shape)}")
        size = now.shape[1]
        if self.rank is not None and self.rank > size:
            raise ValueError(f"rank must be at most the {size} features, got {self.rank}")
        cx, cy, cxy = covariances(now, later)
        root = self._inverse_root(cx, f"{len(x)} pairs")
        if self.rank is not None:
            leading = torch.linalg.svd(root @ cxy).U[:, : self.rank]
            inverse = root @ leading @ leading.mT @ root
        else:
            inverse = root @ root
        self.matrix = inverse @ cxy
        self._root, self._later = root, cy
        self.weights = inverse @ (now.mT @ seen.to(now) / len(x))
        return self

    def eig(self) -> OperatorSpectrum:
        """Return eigenvalues and eigenfunctions.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        self._fitted()
        values, right = torch.linalg.eig(self.matrix)
        order = values.abs().argsort(descending=True, stable=True)
        values, right = values[order], right[:, order]
        left = torch.linalg.pinv(right).mH
        return OperatorSpectrum(values, right, left)

    def svd(self) -> OperatorSingular:
        r"""Return singular values and functions, of the squared norms :math:`c^T(C+\rho I)c` before and after a step.

        They are those of :math:`(C_x+\rho I)^{1/2}G(C_y+\rho I)^{-1/2}`; squared, they sum to the projection score of
        the features (with the ridge, and where no rank is asked for). Functions of one side are orthonormal.

        Raises:
            RuntimeError: before :meth:`fit`.
            ValueError: features that depend on each other one step later, without a ridge.
        """
        self._fitted()
        later = self._inverse_root(self._later, "the states one step later")
        u, values, v = torch.linalg.svd(torch.linalg.solve(self._root, self.matrix) @ later)
        kept = slice(self.rank)
        return OperatorSingular(values[kept], self._root @ u[:, kept], later @ v.mT[:, kept])

    @torch.no_grad()
    def eigenfunctions(self, x: Shaped[Tensor, "n ..."]) -> Tensor:
        """Return the values ``[n, r]`` (complex) of the right eigenfunctions at states ``[n, *event]``.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        right = self.eig().right
        return self._features(x).to(right) @ right

    @torch.no_grad()
    def forecast(self, x: Shaped[Tensor, "n ..."], steps: int = 1) -> Float[Tensor, "n p"]:
        r"""Return :math:`\psi(x)^TG^{k-1}B`, the expected observation k steps after ``x``.

        Args:
            x: ``[n, *event]`` states.
            steps: k >= 1.

        Returns:
            ``[n, p]`` in double precision.

        Raises:
            RuntimeError: before :meth:`fit`.
            ValueError: ``steps`` out of range.
        """
        check_integer("steps", steps, 1)
        self._fitted()
        return self._features(x) @ torch.linalg.matrix_power(self.matrix, steps - 1) @ self.weights

    def _inverse_root(self, c: Tensor, where: str) -> Tensor:
        """``(c + ridge)^(-1/2)``, refused where there is none."""
        values, vectors = torch.linalg.eigh(c)
        values = values.clamp_min(0) + self.ridge
        if not bool(values[0] > len(c) * torch.finfo(c.dtype).eps * values[-1]):
            raise ValueError(f"features must be independent on {where} for ridge {self.ridge}: a ridge is needed")
        return vectors / values.sqrt() @ vectors.mT

    def _features(self, x: Tensor) -> Tensor:
        found = check_floating("features(x)", self.features(x)).double()
        if found.ndim != 2 or len(found) != len(x) or not found.numel():
            raise ValueError(f"features must map {len(x)} states to shape ({len(x)}, r), got {tuple(found.shape)}")
        check_finite("features(x)", found)
        return found

    def _fitted(self) -> None:
        if not hasattr(self, "matrix"):
            raise RuntimeError("fit must be called first")
