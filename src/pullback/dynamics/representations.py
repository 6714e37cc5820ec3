"""Auxiliary values of random rewards, which teach a network the geometry of its states, and how to measure that."""

from __future__ import annotations

import torch
from torch import nn

from pullback.core.checks import check_choice, check_floating, check_integer, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Scalar, Shaped, Tensor
from pullback.core.transforms import can_look
from pullback.dynamics.td_learning import td_loss

__all__ = ["AuxiliaryValueHeads", "RandomRewards", "subspace_alignment"]


def subspace_alignment(x: Float[Tensor, "*#batch n k"], y: Float[Tensor, "*#batch n m"]) -> Float[Tensor, "*batch r"]:
    r"""Return the squared cosines of the principal angles between the spans of the columns, largest first.

    They are the squared singular values of :math:`Q_x^TQ_y` with orthonormal bases of the columns: 1 for a direction
    that both spans have, 0 for one that is at right angles to the other span. Their mean is 1 if and only if the
    smaller span lies inside of the larger one, and m / n on average for a random span of k <= m columns.

    Args:
        x: ``[*batch, n, k]``, k <= n columns that are linearly independent.
        y: ``[*batch, n, m]``, likewise.

    Returns:
        ``[*batch, min(k, m)]`` in [0, 1].

    Raises:
        TypeError: a tensor that is not floating, or two dtypes.
        ValueError: shapes that do not fit, or columns that depend on each other.

    Example:
        >>> plane = torch.eye(3)[:, :2]
        >>> [round(c, 4) for c in subspace_alignment(plane, torch.tensor([[1.0], [0.0], [1.0]])).tolist()]
        [0.5]

    References:
        Bjoerck, Golub (1973), Numerical methods for computing angles between linear subspaces.
    """
    check_same_dtype(x=check_floating("x", x), y=check_floating("y", y))
    for name, value in (("x", x), ("y", y)):
        if value.ndim < 2 or not 1 <= value.shape[-1] <= value.shape[-2]:
            raise ValueError(f"{name} must have shape (..., n, k) with 1 <= k <= n, got {tuple(value.shape)}")
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(f"x and y must have equally many rows, got {x.shape[-2]} and {y.shape[-2]}")
    cosines = torch.linalg.svdvals(_basis("x", x).mT @ _basis("y", y))
    return cosines.clamp(0, 1).square().to(x.dtype)


def _basis(name: str, x: Tensor) -> Tensor:
    """Orthonormal columns with the span of those of ``x``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    sizes = wide.detach().abs().amax(-2, keepdim=True)
    q, r = torch.linalg.qr(wide / torch.where(sizes > 0, sizes, 1.0))
    if can_look(r):
        diagonal = r.detach().diagonal(dim1=-2, dim2=-1).abs()
        eps = torch.finfo(wide.dtype).eps
        if not bool((diagonal > 10 * x.shape[-2] * eps).all()):
            raise ValueError(f"{name} must have linearly independent columns")
    return q


class RandomRewards(nn.Module):
    r"""Random rewards of states that are fixed once drawn, ``count`` of them at once.

    * ``"hash"``: independent standard normal numbers, one for each reward and each state: a state is a number, or an
      observation whose bits are hashed. Nothing is stored, and equal observations have equal rewards.
    * ``"network"``: a random network with one hidden layer of tanh, scaled to unit variance on inputs of unit
      variance: nearby observations have nearby rewards.

    Args:
        count: of rewards, >= 1.
        kind: ``"hash"`` or ``"network"``.
        inputs: numbers of one observation; needed by ``"network"``.
        hidden: units of ``"network"``, >= 1.
        event_ndim: dimensions of one observation: 0 for the number of a state, 1 for a vector, 3 for an image.
        generator: source of the draws.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range, ``"network"`` without ``inputs`` or for states without dimensions.

    Example:
        >>> rewards = RandomRewards(3, generator=torch.Generator().manual_seed(0))
        >>> rewards(torch.arange(1000)).shape, torch.equal(rewards(torch.tensor(7)), rewards(torch.arange(9))[7])
        (torch.Size([1000, 3]), True)

    References:
        Tang, Munos (2023), arXiv 2305.18491, section 6; Steele, Lea, Flood (2014), Fast splittable pseudorandom number
        generators (the mixing of bits).
    """

    seeds: Tensor
    first: Tensor
    bias: Tensor
    last: Tensor

    def __init__(
        self,
        count: int,
        *,
        kind: str = "hash",
        inputs: int | None = None,
        hidden: int = 64,
        event_ndim: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("count", count, 1)
        check_choice("kind", kind, ("hash", "network"))
        check_integer("hidden", hidden, 1)
        check_integer("event_ndim", event_ndim, 0)
        self.count, self.kind, self.event_ndim = count, kind, event_ndim
        device = drawing_device(generator, torch.device("cpu"))
        if kind == "hash":
            seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, device=device)
            self.register_buffer("seeds", seeds.cpu())
            return
        if inputs is None or not event_ndim:
            raise ValueError('inputs and event_ndim >= 1 must be given for kind="network", which sees observations')
        check_integer("inputs", inputs, 1)
        for name, shape in (("first", (inputs, hidden)), ("bias", (hidden,)), ("last", (hidden, count))):
            self.register_buffer(name, torch.randn(shape, generator=generator, device=device).cpu())
        # E tanh(a)^2 = 0.51998 for a of variance 2, of weights and biases of unit variance
        self.scale = (0.51998 * hidden) ** -0.5

    def forward(self, states: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch count"]:
        """Return the rewards of states ``[*batch, *event]``, of their dtype where they are floating.

        Raises:
            ValueError: fewer dimensions than an observation has, or observations of another size.
        """
        if states.ndim < self.event_ndim:
            raise ValueError(f"states must have at least {self.event_ndim} dimensions, got shape {tuple(states.shape)}")
        batch = states.shape[: states.ndim - self.event_ndim]
        flat = states.flatten(len(batch)) if self.event_ndim else states.unsqueeze(-1)
        dtype = states.dtype if states.is_floating_point() else torch.get_default_dtype()
        if self.kind == "network":
            if flat.shape[-1] != len(self.first) or not states.is_floating_point():
                raise ValueError(f"states must be observations of {len(self.first)} floating numbers, got "
                                 f"{tuple(states.shape)} of {states.dtype}")  # fmt: skip
            first = self.first.to(dtype) * len(self.first) ** -0.5
            return torch.tanh(flat @ first + self.bias.to(dtype)) @ self.last.to(dtype) * self.scale
        code = _code(flat.detach())
        bits = _mix(code[..., None] ^ self.seeds)
        uniform = ((bits >> 11) & (2**53 - 1)).double().add(0.5).mul(2.0**-53)
        return torch.special.ndtri(uniform).to(dtype)


def _code(flat: Tensor) -> Tensor:
    """One int64 for each row: a hash of the order and the bits of its numbers."""
    if flat.is_floating_point():
        flat = (flat.double() + 0.0).view(torch.int64)  # -0 is 0
    places = torch.arange(1, flat.shape[-1] + 1, device=flat.device) * -7046029254386353131
    return _mix(_mix(flat.long() + places).sum(-1))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: a bijection of int64 that every bit of the input reaches."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -4658895280553007687
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -7723592293110705685
    return x ^ (x >> 31 & (1 << 33) - 1)


class AuxiliaryValueHeads(nn.Module):
    r"""Linear heads that predict the discounted sums of random rewards beside what a network is trained for.

    :math:`\frac12\,\overline{(w_j\cdot\phi(s)-r_j(s)-\gamma\,w_j\cdot\phi(s'))^2}`, the mean over samples and heads,
    with the second value as a number: its gradient is the semi-gradient, and shapes :math:`\phi` towards the leading
    eigenvectors of the transitions.

    Args:
        features: of :math:`\phi`, >= 1.
        rewards: their :class:`RandomRewards`, or any callable from states to ``[*batch, count]`` with ``count``.
        discount: gamma in [0, 1].
        generator: source of the initial weights, normal with variance 1 / features.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range.

    Example:
        >>> heads = AuxiliaryValueHeads(8, RandomRewards(5), discount=0.9)
        >>> phi = torch.randn(32, 8, requires_grad=True)
        >>> heads(torch.arange(32), phi, phi.roll(-1, 0)).shape, heads.values(phi).shape
        (torch.Size([]), torch.Size([32, 5]))

    References:
        Tang, Munos (2023), arXiv 2305.18491, section 6.
    """

    def __init__(
        self,
        features: int,
        rewards: RandomRewards,
        *,
        discount: Scalar = 0.99,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("features", features, 1)
        if not callable(rewards) or not hasattr(rewards, "count"):
            raise TypeError(f"rewards must be RandomRewards or alike, got {type(rewards).__name__}")
        self.rewards, self.discount = rewards, discount
        drawn = torch.randn(
            features, rewards.count, generator=generator, device=drawing_device(generator, torch.device("cpu"))
        )
        self.weight = nn.Parameter(drawn.cpu() * features**-0.5)

    def values(self, features: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch count"]:
        """Return what the heads predict.

        Raises:
            ValueError: another number of features.
        """
        if check_floating("features", features).shape[-1:] != self.weight.shape[:1]:
            raise ValueError(f"features must have shape (..., {len(self.weight)}), got {tuple(features.shape)}")
        return features @ self.weight

    def forward(
        self,
        states: Shaped[Tensor, "..."],
        features: Float[Tensor, "*batch k"],
        next_features: Float[Tensor, "*batch k"],
        done: Bool[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of transitions from ``states``, whose features are given, to those of ``next_features``."""
        found = self.values(features)
        rewards = self.rewards(states).to(found.dtype)
        return td_loss(found, rewards, self.values(next_features), discount=self.discount, done=done)
