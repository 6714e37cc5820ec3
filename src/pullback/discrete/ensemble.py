"""Ensembles whose members are chosen by keys near the input, softly enough that the keys learn; truncated top-k."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_choice, check_dim, check_floating, check_integer, check_positive, check_scalar
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.selection import soft_topk
from pullback.discrete.softness import widen

__all__ = ["KeyedEnsemble", "Vote", "key_loss", "score_loss", "sinkhorn_topk"]

SELECTIONS = ("soft", "hard")


def sinkhorn_topk(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    *,
    temperature: Scalar,
    iterations: int,
    start: float = 0.5,
) -> Float[Tensor, "*shape"]:
    r"""Return the top-k mask as a given number of Sinkhorn sweeps leaves it: its sum is k only once they converge.

    Entropic transport of n equal masses onto two anchors has the plan ``sigmoid((x - theta) / t)``, and one sweep moves

    .. math:: \theta \leftarrow \theta - t \Big( \log \frac{k}{n - k}
              - \log \frac{\sum_i \sigma((x_i - \theta) / t)}{\sum_i \sigma((\theta - x_i) / t)} \Big)

    :func:`~pullback.discrete.soft_topk` with ``method="sinkhorn"`` and ``scale=None`` is the limit, found as a root.
    At a small temperature a sweep moves theta by a few t, so hundreds of them can stop far from it: this is what code
    that unrolls a fixed number of sweeps computes.

    Args:
        x: ``[*shape]`` finite.
        k: 0 < k < n.
        dim: the dimension of the entries.
        temperature: t > 0, a number or a differentiable tensor without dimensions. For costs ``(s - anchor)^2 / C``
            with anchors 0 and 1 and ``s = 1 - x``, at the regularisation eps, it is ``eps C / 2``.
        iterations: number of sweeps, >= 0; each is part of the gradient.
        start: the first theta; 0.5 is where sweeps begin on anchors 0 and 1.

    Returns:
        ``[*shape]`` in [0, 1].

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``x`` is not a floating tensor, ``k`` or ``iterations`` is not an integer.
        ValueError: ``k`` or ``iterations`` is out of range, ``x`` is not finite, ``temperature`` is not > 0.

    Example:
        >>> x = torch.linspace(0, 1, 16)
        >>> for iterations in (10, 1000):
        ...     print(round(float(sinkhorn_topk(x, 4, temperature=0.001, iterations=iterations).sum()), 2))
        8.0
        4.01

    References:
        Xie et al. (2020), Differentiable top-k with optimal transport, algorithm 1.
    """
    dim = check_dim(check_floating("x", x), dim)
    n = x.shape[dim] if x.ndim else 1
    check_integer("k", k, 1, n - 1)
    check_integer("iterations", iterations, 0)
    check_scalar("temperature", temperature)
    if can_look(x) and not bool(x.isfinite().all()):
        raise ValueError("x must be finite")
    wide = widen(x)
    t = temperature.to(wide) if isinstance(temperature, Tensor) else float(temperature)
    z = (wide - start) / t
    shift = torch.zeros_like(z.narrow(dim, 0, 1))
    target = math.log(k) - math.log(n - k)
    for _ in range(iterations):
        inside, outside = nn.functional.logsigmoid(z + shift), nn.functional.logsigmoid(-z - shift)
        shift = shift + target - inside.logsumexp(dim, keepdim=True) + outside.logsumexp(dim, keepdim=True)
    return torch.sigmoid(z + shift).to(x.dtype)


class Vote(NamedTuple):
    """What an ensemble says.

    Attributes:
        scores: ``[*batch, classes]`` the weighted vote.
        similarity: ``[*batch, experts]`` cosines of the input and the keys.
        selection: ``[*batch, experts]`` in [0, 1], how much each expert is chosen.
    """

    scores: Tensor
    similarity: Tensor
    selection: Tensor


class KeyedEnsemble(nn.Module):
    r"""Linear experts with bounded scores, of which the k whose keys are nearest to the input vote.

    Expert n answers ``f_n(z) = b tanh((W_n z + c_n) / b)`` and has a key; ``s_n`` is the cosine of z and the key. With
    the selection ``g`` = the soft (or hard) mask of the k largest cosines, soft entries below 0.3 set to 0,

    .. math:: y = \frac{\sum_n g_n^2 s_n f_n(z)}{\sum_n g_n s_n}

    A hard selection has no gradient: its keys learn from the cosines that weigh the votes alone, as long as they may.

    Args:
        features: of the input.
        classes: scores of an expert.
        experts: N.
        k: 1 <= k <= N, experts that vote.
        bound: b > 0 of the scores.
        selection: ``"soft"`` or ``"hard"``.
        temperature: of the soft selection, in units of the cosine, > 0.
        trainable_keys: whether keys are parameters.
        generator: draws weights and keys.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: a number is out of range, ``selection`` is unknown.

    Example:
        >>> ensemble = KeyedEnsemble(8, 3, experts=16, k=4, generator=torch.Generator().manual_seed(0))
        >>> vote = ensemble(torch.randn(5, 8))
        >>> vote.scores.shape, bool(vote.scores.abs().max() <= 1)
        (torch.Size([5, 3]), True)

    References:
        Wojcik, Kosciukiewicz, Kajdanowicz, Gonczarek (2022), Neural architecture for online ensemble continual
        learning. Shanahan, Kaplanis, Mitrovic (2021), Encoders and ensembles for task-free continual learning.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        experts: int,
        k: int,
        bound: float = 1.0,
        selection: str = "soft",
        temperature: float = 0.01,
        trainable_keys: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features = check_integer("features", features, 1)
        self.classes = check_integer("classes", classes, 1)
        self.experts = check_integer("experts", experts, 1)
        self.k = check_integer("k", k, 1, experts)
        check_positive("bound", bound)
        check_positive("temperature", temperature)
        check_choice("selection", selection, SELECTIONS)
        self.bound, self.temperature, self.selection = bound, temperature, selection
        weight = torch.empty(experts, classes, features)
        nn.init.trunc_normal_(weight, std=1 / math.sqrt(features), a=-2, b=2, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(experts, classes))
        keys = nn.functional.normalize(torch.randn(experts, features, generator=generator), dim=-1)
        self.keys = nn.Parameter(keys, requires_grad=trainable_keys)

    def forward(self, z: Float[Tensor, "*batch features"]) -> Vote:
        """Return the vote, the cosines and the selection.

        Args:
            z: ``[*batch, features]``; the cosine of a vector of zeros is 0, and its scores are 0.

        Returns:
            :class:`Vote`: ``scores``, ``similarity``, ``selection``.

        Raises:
            TypeError: ``z`` is not a floating tensor.
            ValueError: its last dimension is not ``features``.
        """
        check_floating("z", z)
        if not z.ndim or z.shape[-1] != self.features:
            raise ValueError(f"z must have {self.features} features, got shape {tuple(z.shape)}")
        similarity = _cosines(z, self.keys)
        if self.selection == "hard":
            chosen = similarity.detach().topk(self.k, -1).indices
            selection = torch.zeros_like(similarity.detach()).scatter(-1, chosen, 1.0)
        else:
            selection = soft_topk(similarity, self.k, method="sinkhorn", temperature=self.temperature, scale=None)
            selection = torch.where(selection < 0.3, 0.0, selection)
        answers = torch.einsum("...f,ncf->...nc", z, self.weight) + self.bias
        answers = self.bound * torch.tanh(answers / self.bound)
        weights = selection * similarity
        total = weights.sum(-1, keepdim=True)
        voting = selection * weights / torch.where(total == 0, 1.0, total)
        return Vote((voting.unsqueeze(-1) * answers).sum(-2), similarity, selection)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"features={self.features}, classes={self.classes}, experts={self.experts}, k={self.k}, "
            f"bound={self.bound}, selection={self.selection!r}, temperature={self.temperature}"
        )


def score_loss(scores: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Return minus the mean score of the labels: no other class is pushed down, so what was learned of it stays.

    Args:
        scores: ``[*batch, classes]``, best bounded.
        labels: ``[*batch]`` in 0..classes - 1.

    Returns:
        A number.

    Raises:
        TypeError: ``scores`` is not floating, ``labels`` are no integers.
        ValueError: there is no sample, shapes do not fit, a label is no class.

    Example:
        >>> score_loss(torch.tensor([[0.5, -1.0], [0.0, 0.25]]), torch.tensor([0, 1]))
        tensor(-0.3750)

    References:
        Shanahan, Kaplanis, Mitrovic (2021), equation 3.
    """
    check_floating("scores", scores)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if not scores.ndim or labels.shape != scores.shape[:-1] or not labels.numel():
        came = f"{tuple(scores.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"labels must be one of each of at least one score vector, got shapes {came}")
    if can_look(labels) and not bool(((labels >= 0) & (labels < scores.shape[-1])).all()):
        raise ValueError(f"labels must be in 0..{scores.shape[-1] - 1}, got {int(labels.min())} to {int(labels.max())}")
    return -scores.gather(-1, labels.unsqueeze(-1)).mean()


def key_loss(similarity: Float[Tensor, "*batch experts"], selection: Float[Tensor, "*batch experts"]) -> Tensor:
    r"""Return the mean of :math:`\sum_n g_n (1 - s_n)`, which pulls the keys in use to the data.

    Args:
        similarity: ``[*batch, experts]`` cosines.
        selection: ``[*batch, experts]`` of the same.

    Returns:
        A number.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: the shapes differ, or there is no sample.

    Example:
        >>> key_loss(torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 0.5]]))
        tensor(0.2500)

    References:
        Wojcik et al. (2022), equation 6.
    """
    check_floating("similarity", similarity)
    check_floating("selection", selection)
    if similarity.shape != selection.shape or not similarity.numel():
        came = f"{tuple(similarity.shape)} and {tuple(selection.shape)}"
        raise ValueError(f"similarity and selection must be of the same samples, got shapes {came}")
    return (selection * (1 - similarity)).sum(-1).mean()


def _cosines(z: Tensor, keys: Tensor) -> Tensor:
    """Cosines whose gradient at a vector of zeros is zero."""
    largest = z.detach().abs().amax(-1, keepdim=True)
    unit = z / torch.where(largest > 0, largest, 1.0)  # its square does not overflow
    squares = unit.square().sum(-1, keepdim=True)
    direction = torch.where(squares > 0, unit / torch.where(squares > 0, squares, 1.0).sqrt(), 0.0)
    return direction @ nn.functional.normalize(keys, dim=-1).T
