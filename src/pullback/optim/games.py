"""Games: every player has a loss of its own, and all of them move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_choice, check_integer
from pullback.optim.optimistic import Extragradient

__all__ = ["Round", "game_gradient", "game_spectrum", "play"]

Player = Tensor | Sequence[Tensor]
"""The parameters of a player."""

Order = Literal["simultaneous", "alternating"]


class Round(NamedTuple):
    """What a round of a game was played on.

    Attributes:
        number: of the round, from 0.
        losses: ``[players]`` values before the player moved, detached.
    """

    number: int
    losses: Tensor


def game_gradient(
    losses: Sequence[Tensor], players: Sequence[Player], *, create_graph: bool = False
) -> tuple[tuple[Tensor, ...], ...]:
    r"""Return the gradient of every player's loss by its own parameters: the vector field of the game.

    Args:
        losses: a scalar for each player, of one graph or several.
        players: the parameters of each: a tensor or a sequence of them.
        create_graph: whether the gradients are differentiable.

    Returns:
        For each player a tuple of gradients shaped like its parameters, zeros where its loss does not depend on one.

    Raises:
        TypeError: a loss or a parameter is no tensor.
        ValueError: there are not as many losses as players, a loss is no scalar, or no loss depends on its player.

    Example:
        >>> x, y = (torch.tensor(v, requires_grad=True) for v in (2.0, 3.0))
        >>> game_gradient([x * y, -x * y], [x, y])
        ((tensor(3.),), (tensor(-2.),))

    References:
        Balduzzi et al. (2018), The mechanics of n-player differentiable games, definition 1.
    """
    given = _players(players)
    _check_losses(losses, len(given))
    gradients = []
    for number, (loss, own) in enumerate(zip(losses, given, strict=True)):
        found = torch.autograd.grad(loss, own, create_graph=create_graph, retain_graph=True, allow_unused=True)
        if all(g is None for g in found):
            raise ValueError(f"losses[{number}] must depend on a parameter of players[{number}], but on none it does")
        gradients.append(tuple(torch.zeros_like(p) if g is None else g for g, p in zip(found, own, strict=True)))
    return tuple(gradients)


def play(
    losses: Callable[[], Sequence[Tensor]],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    steps: int,
    order: Order = "simultaneous",
) -> Iterator[Round]:
    r"""Play a game: every optimizer moves its player along the gradient of that player's loss.

    Any optimizer of torch can be one; :class:`~pullback.optim.Extragradient` takes both of its halves, where all
    players extrapolate before any of them steps.

    Args:
        losses: evaluates the loss of each player at the parameters as they are.
        optimizers: one for each player, of its parameters.
        steps: rounds, >= 1.
        order: ``"simultaneous"``: all gradients are taken at the same point; ``"alternating"``: each player sees the
            moves of those before it.

    Yields:
        The number of each round and the losses that were seen, after the round is played.

    Raises:
        TypeError: ``losses`` cannot be called, or an optimizer is none.
        ValueError: ``order`` is unknown, or losses and optimizers do not match.

    Example:
        >>> x, y = (torch.nn.Parameter(torch.ones(())) for _ in range(2))
        >>> players = [torch.optim.SGD([p], lr=0.5) for p in (x, y)]
        >>> for _ in play(lambda: (x * y, -x * y), players, steps=2):
        ...     print(x.item(), y.item())
        0.5 1.5
        -0.25 1.75

    References:
        Gidel et al. (2019), Negative momentum for improved game dynamics, equations 4 and 5.
    """
    check_callable("losses", losses)
    check_integer("steps", steps, 1)
    check_choice("order", order, get_args(Order))
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizers must be torch.optim.Optimizer, got {type(optimizer).__name__}")
    players = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    return _rounds(losses, optimizers, players, steps, order)


def _rounds(
    losses: Callable[[], Sequence[Tensor]],
    optimizers: Sequence[torch.optim.Optimizer],
    players: list[list[Tensor]],
    steps: int,
    order: Order,
) -> Iterator[Round]:
    turns = [list(range(len(players)))] if order == "simultaneous" else [[i] for i in range(len(players))]
    for number in range(steps):
        seen: list[Tensor] = []
        for movers in turns:
            ahead = [i for i in movers if isinstance(optimizers[i], Extragradient)]
            if ahead:
                seen += _differentiate(losses, players, movers)
                for i in ahead:
                    optimizers[i].extrapolate()  # type: ignore[attr-defined]
                _differentiate(losses, players, movers)
            else:
                seen += _differentiate(losses, players, movers)
            for i in movers:
                optimizers[i].step()
        yield Round(number, torch.stack(seen))


def game_spectrum(losses: Sequence[Tensor], players: Sequence[Player], *, count: int | None = None) -> Tensor:
    r"""Return the eigenvalues of the Jacobian of the game's vector field at the parameters as they are.

    ``J = d g / d w`` for ``g`` of :func:`game_gradient`. Real positive eigenvalues: players cooperate; imaginary ones:
    they turn around each other. :func:`~pullback.optim.momentum_radius` says which steps converge.

    Args:
        losses: a scalar for each player, twice differentiable.
        players: the parameters of each.
        count: how many eigenvalues of large modulus to approximate, by as many products with the Jacobian (Arnoldi's
            method from a constant start). ``None``: all, from the dense matrix.

    Returns:
        ``[n]`` or at most ``[count]`` complex numbers of double precision (single for parameters of single), those of
        large modulus first.

    Raises:
        TypeError: a loss or a parameter is no tensor.
        ValueError: there are not as many losses as players, a loss is no scalar, second derivatives are not finite, or
            ``count`` is not in range.

    Example:
        >>> x, y = (torch.tensor(v, requires_grad=True) for v in (0.0, 0.0))
        >>> game_spectrum([x * y, -x * y], [x, y]).abs()
        tensor([1., 1.])

    References:
        Lorraine et al. (2022), Complex momentum for optimization in games, section 3. Saad (2011), Numerical methods
        for large eigenvalue problems, algorithm 6.1.
    """
    given = _players(players)
    flat = [p for own in given for p in own]
    gradients = [g for own in game_gradient(losses, players, create_graph=True) for g in own]
    field = torch.cat([g.reshape(-1) for g in gradients])
    size = len(field)
    if count is not None:
        check_integer("count", count, 1, size)

    def transposed(v: Tensor) -> Tensor:
        """J^T v: its eigenvalues are those of J."""
        if not field.requires_grad:
            return torch.zeros_like(v)
        found = torch.autograd.grad(field, flat, v, retain_graph=True, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(found, flat, strict=True)]
        )

    if count is None:
        matrix = torch.stack([transposed(e) for e in torch.eye(size, dtype=field.dtype, device=field.device)])
    else:
        matrix = _arnoldi(transposed, torch.ones_like(field.detach()), count)
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))  # LAPACK knows nothing narrower
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("losses must have finite second derivatives by the parameters of players")
    values = torch.linalg.eigvals(matrix)
    return values[values.abs().argsort(descending=True, stable=True)]


def _arnoldi(product: Callable[[Tensor], Tensor], start: Tensor, count: int) -> Tensor:
    """Return the Hessenberg matrix of a Krylov space, smaller than ``count`` where the space ends before."""
    # A start without symmetry: entries of the golden ratio's sequence, the same on every device.
    turns = torch.arange(1, len(start) + 1, dtype=start.dtype, device=start.device) * 0.6180339887498949
    basis = [torch.nn.functional.normalize(turns.frac() + 0.1, dim=0)]
    matrix = start.new_zeros(count + 1, count)
    for k in range(count):
        v = product(basis[k])
        scale = torch.linalg.vector_norm(v)
        for _ in range(2):  # twice is enough for orthogonality
            for i, b in enumerate(basis):
                part = b @ v
                matrix[i, k] += part
                v = v - part * b
        matrix[k + 1, k] = torch.linalg.vector_norm(v)
        if not bool(matrix[k + 1, k] > 100 * torch.finfo(v.dtype).eps * scale):
            return matrix[: k + 1, : k + 1]
        basis.append(v / matrix[k + 1, k])
    return matrix[:count]


def _differentiate(
    losses: Callable[[], Sequence[Tensor]], players: list[list[Tensor]], movers: list[int]
) -> list[Tensor]:
    """Fill ``.grad`` of those that move; return their losses."""
    values = losses()
    _check_losses(values, len(players))
    chosen = [values[i] for i in movers]
    for i, gradients in zip(movers, game_gradient(chosen, [players[i] for i in movers]), strict=True):
        for p, g in zip(players[i], gradients, strict=True):
            p.grad = g
    return [v.detach().reshape(()) for v in chosen]


def _players(players: Sequence[Player]) -> list[list[Tensor]]:
    given = [[p] if isinstance(p, Tensor) else list(p) for p in players]
    for number, own in enumerate(given):
        for p in own:
            if not isinstance(p, Tensor):
                raise TypeError(f"players[{number}] must hold tensors, got {type(p).__name__}")
            if not p.requires_grad:
                raise ValueError(f"players[{number}] must hold tensors with requires_grad, got one without")
        if not own:
            raise ValueError(f"players[{number}] must hold at least one tensor, got none")
    return given


def _check_losses(losses: Sequence[Tensor], players: int) -> None:
    if len(losses) != players:
        raise ValueError(f"losses must be as many as players, {players}, got {len(losses)}")
    for number, loss in enumerate(losses):
        if not isinstance(loss, Tensor):
            raise TypeError(f"losses[{number}] must be a tensor, got {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(f"losses[{number}] must be a scalar, got shape {tuple(loss.shape)}")
