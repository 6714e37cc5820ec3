"""Transitions of scenes made of slots: a graph network between them, or one network for all of them in an order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback.core.checks import check_floating, check_integer, check_same_dtype, check_tensor
from pullback.core.shapes import Float, Int
from pullback.core.transforms import can_look

__all__ = ["AlignedTransition", "GraphTransition"]


class GraphTransition(nn.Module):
    r"""Predict the next slots by a graph network on all pairs.

    .. math:: e_{ij} = f(S_i, a_i, S_j, a_j), \qquad S_i \leftarrow S_i + g\Big(S_i, a_i, \sum_{j \ne i} e_{ij}\Big)

    Permuting the slots with their actions permutes the result.

    Args:
        slot: numbers of a slot, >= 1.
        action: numbers of its action, >= 1.
        width: of both networks, >= 1.

    Raises:
        TypeError: a size is no integer.
        ValueError: it is out of range.

    Example:
        >>> GraphTransition(8, 4)(torch.randn(6, 3, 8), torch.randn(6, 3, 4)).shape
        torch.Size([6, 3, 8])

    References:
        Kipf, van der Pol, Welling (2020), Contrastive learning of structured world models, section 3.3.
    """

    def __init__(self, slot: int, action: int, width: int = 64) -> None:
        super().__init__()
        for name, value in (("slot", slot), ("action", action), ("width", width)):
            check_integer(name, value, 1)
        self.sizes = slot, action
        self.edge = nn.Sequential(nn.Linear(2 * (slot + action), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.node = nn.Sequential(nn.Linear(slot + action + width, width), nn.ReLU(), nn.Linear(width, slot))

    def forward(
        self, slots: Float[Tensor, "*batch slots dim"], actions: Float[Tensor, "*batch slots parts"]
    ) -> Float[Tensor, "*batch slots dim"]:
        """Return the next slots.

        Raises:
            TypeError: a tensor is not floating, or the dtypes differ.
            ValueError: shapes that do not fit.
        """
        x = _joined(slots, actions, self.sizes)
        pairs = torch.cat(torch.broadcast_tensors(x[..., :, None, :], x[..., None, :, :]), -1)
        others = ~torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)[..., None]
        change: Tensor = self.node(torch.cat([x, (self.edge(pairs) * others).sum(-2)], -1))
        return slots + change


class AlignedTransition(nn.Module):
    r"""Predict the next slots by one network for all of them, brought into an order first and back afterwards.

    .. math:: S \leftarrow S + P^T f(P [S, a])

    with the permutation matrix P of the order. It is as equivariant as the order: where that follows from what the
    slots are, permuted slots give permuted results.

    Args:
        slots: of a scene, >= 1.
        slot: numbers of a slot, >= 1.
        action: numbers of its action, >= 1.
        width: of the two hidden layers, >= 1.

    Raises:
        TypeError: a size is no integer.
        ValueError: it is out of range.

    Example:
        >>> order = torch.tensor([2, 0, 1]).expand(6, 3)
        >>> AlignedTransition(3, 8, 4)(torch.randn(6, 3, 8), torch.randn(6, 3, 4), order).shape
        torch.Size([6, 3, 8])

    References:
        Zhao, Kong, Walters, Wong (2022), Toward compositional generalization in object-oriented world modeling,
        section 4: slots aligned with a library of objects.
    """

    def __init__(self, slots: int, slot: int, action: int, width: int = 64) -> None:
        super().__init__()
        for name, value in (("slots", slots), ("slot", slot), ("action", action), ("width", width)):
            check_integer(name, value, 1)
        self.slots, self.sizes = slots, (slot, action)
        layers = [nn.Linear(slots * (slot + action), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, slots * slot))

    def forward(
        self,
        slots: Float[Tensor, "*batch slots dim"],
        actions: Float[Tensor, "*batch slots parts"],
        order: Int[Tensor, "*batch slots"],
    ) -> Float[Tensor, "*batch slots dim"]:
        """Return the next slots, in the order that they came in.

        Args:
            slots: ``[*batch, slots, dim]``.
            actions: ``[*batch, slots, parts]``.
            order: ``[*batch, slots]`` a permutation: the number of the slot at each place.

        Raises:
            TypeError: a tensor is not floating, or the order no integers.
            ValueError: shapes that do not fit, or an order that is none.
        """
        x = _joined(slots, actions, self.sizes)
        if check_tensor("order", order).is_floating_point() or order.dtype == torch.bool:
            raise TypeError(f"order must hold integers, got {order.dtype}")
        if order.shape != slots.shape[:-1] or slots.shape[-2] != self.slots:
            raise ValueError(
                f"slots and order must be of {self.slots} slots, got {tuple(slots.shape)} and {tuple(order.shape)}"
            )
        if can_look(order) and bool((order.sort(-1).values != torch.arange(self.slots, device=order.device)).any()):
            raise ValueError(f"order must hold 0..{self.slots - 1}, each once")
        index = order.long()[..., None]
        change = self.net(x.gather(-2, index.expand_as(x)).flatten(-2)).unflatten(-1, slots.shape[-2:])
        return slots + change.gather(-2, index.argsort(-2).expand_as(slots))


def _joined(slots: Tensor, actions: Tensor, sizes: tuple[int, int]) -> Tensor:
    check_same_dtype(slots=check_floating("slots", slots), actions=check_floating("actions", actions))
    for name, value, size in (("slots", slots, sizes[0]), ("actions", actions, sizes[1])):
        if value.ndim < 2 or value.shape[:-1] != slots.shape[:-1] or value.shape[-1] != size:
            raise ValueError(
                f"{name} must have shape (*batch, slots, {size}), got {tuple(value.shape)}, slots has "
                f"{tuple(slots.shape)}"
            )
    return torch.cat([slots, actions], -1)
