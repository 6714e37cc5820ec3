"""Attention of several heads that can be closed one by one; how much each matters, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer
from pullback.core.shapes import Bool, Float

__all__ = ["HeadAttention", "head_importance", "head_similarity"]


class HeadOutputs(nn.Module):
    """What the heads of an attention say, one by one, and which of them are open: where importance is read and cut."""

    open: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("open", torch.ones(heads, dtype=torch.bool))

    def keep(self, heads: Sequence[int]) -> None:
        """Compute these heads only from now on.

        Raises:
            ValueError: an index is out of range, or none is kept.
        """
        chosen = [check_integer("head", head, 0, len(self.open) - 1) for head in heads]
        if not chosen:
            raise ValueError("heads must keep at least one")
        self.open.fill_(False)
        self.open[chosen] = True

    def forward(self, outputs: Float[Tensor, "*batch heads n width"]) -> Tensor:
        """Return what came."""
        return outputs


class HeadAttention(nn.Module):
    r"""Self-attention of several heads, of which closed ones are not computed.

    .. math:: y = \sum_{h\ open} \mathrm{softmax}\left(Q_h K_h^T / \sqrt{d_h}\right) V_h W_h + b

    Args:
        width: of the tokens, a multiple of ``heads``.
        heads: number of heads.
        causal: a token attends to none that comes after it.
        generator: of the initial weights; torch's own by default.

    Attributes:
        outputs: the module through which :math:`softmax(\cdot) V_h` of the open heads goes, ``[*batch, open, n,
            d_h]``; ``outputs.keep([0, 2])`` closes all others.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is < 1, ``width`` is no multiple of ``heads``.

    Example:
        >>> attention = HeadAttention(8, 4)
        >>> attention.outputs.keep([0, 3])
        >>> attention(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])

    References:
        Vaswani et al. (2017), Attention is all you need, section 3.2.
    """

    def __init__(
        self, width: int, heads: int, *, causal: bool = False, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.causal = causal
        check_integer("width", width, 1)
        check_integer("heads", heads, 1)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        size = width // heads
        self.project = nn.Parameter(torch.empty(3, heads, size, width))
        self.combine = nn.Parameter(torch.empty(heads, size, width))
        self.bias = nn.Parameter(torch.zeros(width))
        for weight in (self.project, self.combine):
            nn.init.uniform_(weight, -(width**-0.5), width**-0.5, generator=generator)
        self.outputs = HeadOutputs(heads)

    def forward(
        self, x: Float[Tensor, "*batch n width"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch n width"]:
        """Return ``[*batch, n, width]``.

        Args:
            x: the tokens.
            mask: ``[*batch, n]``, a token whose ``mask`` is false is no key, and its result means nothing; or, with as
                many dimensions as ``x``, ``[*batch, n, n]``: which keys (last) each query (second to last) may see.
        """
        shares, values = self._shares_and_values(x, mask)
        said = self.outputs(shares @ values)
        combine: Tensor = self.combine
        return said.transpose(-3, -2).flatten(-2) @ combine[self.outputs.open].flatten(0, 1) + self.bias

    @torch.no_grad()
    def cut(self, weights: Float[Tensor, "heads"]) -> None:
        """Drop the parameters of all heads of weight 0, and scale what the others say by their weight.

        Without any head left the bias is the whole result.

        Raises:
            ValueError: there are not as many weights as open heads.
        """
        heads = self.outputs.open.nonzero()[:, 0]
        if weights.shape != heads.shape:
            raise ValueError(f"weights must be {len(heads)}, got shape {tuple(weights.shape)}")
        kept, factors = heads[weights.to(heads.device) != 0], weights[weights != 0].to(self.combine)
        self.project = nn.Parameter(self.project[:, kept], self.project.requires_grad)
        self.combine = nn.Parameter(self.combine[kept] * factors[:, None, None], self.combine.requires_grad)
        self.outputs = HeadOutputs(len(kept)).to(heads.device)

    def shares(
        self, x: Float[Tensor, "*batch n width"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch open n n"]:
        """Return what each token of each open head attends to: rows sum to 1."""
        return self._shares_and_values(x, mask)[0]

    def _shares_and_values(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        width = self.project.shape[-1]
        if check_floating("x", x).ndim < 2 or x.shape[-1] != width:
            raise ValueError(f"x must have shape (..., n, {width}), got {tuple(x.shape)}")
        project: Tensor = self.project
        project = project[:, self.outputs.open]
        heads, size = project.shape[1:3]
        parts = (x @ project.flatten(0, 2).mT).unflatten(-1, (3, heads, size))
        queries, keys, values = parts.movedim(-3, 0).transpose(-3, -2)
        logits = queries @ keys.mT / size**0.5
        if mask is not None:
            seen = mask[..., None, :, :] if mask.ndim == x.ndim else mask[..., None, None, :]
            logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
        if self.causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(later, torch.finfo(logits.dtype).min)
        return logits.softmax(-1), values


def head_importance(
    module: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    method: str = "gradient",
) -> Float[Tensor, "layers heads"]:
    r"""Return how much each head matters to the loss: :math:`I_h = E \left| \sum \frac{\partial L}{\partial O_h}
    \cdot O_h \right|`.

    To first order that is the change of a graph's loss when the output :math:`O_h` of the head goes to 0, read off
    one backward pass. ``method="removal"`` silences one head after the other and returns that change itself, :math:`E
    |L(O_h = 0) - L|`, by a forward pass for each.

    Args:
        module: has :class:`HeadAttention` layers inside; each is used once a call, on tokens of ``[graphs, n, width]``.
        loss: ``loss(module, batch)`` returns the losses of the graphs of a batch, ``[graphs]``.
        batches: what the expectation is over.
        method: ``"gradient"`` or ``"removal"``.

    Returns:
        ``[layers, heads]`` in the order of ``module.modules()``, >= 0; 0 for a closed head.

    Raises:
        TypeError: ``loss`` cannot be called.
        ValueError: the module has no head, the losses are not one a graph, there is no batch, layers differ in heads,
            ``method`` is unknown.

    Example:
        >>> attention = HeadAttention(4, 2)
        >>> importance = head_importance(attention, lambda m, x: m(x).square().sum((1, 2)), [torch.randn(3, 5, 4)])
        >>> importance.shape
        torch.Size([1, 2])

    References:
        Michel, Levy, Neubig (2019), Are sixteen heads really better than one, equation 2. Liu et al. (2024), section
        3.3.
    """
    check_callable("loss", loss)
    check_choice("method", method, ("gradient", "removal"))
    layers = [attention.outputs for attention in _attentions(module)]
    opened = torch.stack([layer.open for layer in layers])
    total, graphs = torch.zeros(opened.shape), 0
    for batch in batches:
        effects = _first_order if method == "gradient" else _removed
        changes = effects(partial(_losses, loss, module, batch), layers)
        for row, change in enumerate(changes):
            total[row, opened[row].cpu()] += change.abs().sum(0).cpu()
        graphs += changes[0].shape[0]
    if not graphs:
        raise ValueError("batches must hold at least one batch")
    return total / graphs


def head_similarity(module: nn.Module, call: Callable[[], Any]) -> Float[Tensor, "heads heads"]:
    r"""Return how alike the attention of each pair of heads is: :math:`S_{gh} = 1 - E\, \mathrm{JS}(a_g, a_h)`.

    :math:`a_h` is what a token attends to by head :math:`h`, a distribution over tokens; :math:`\mathrm{JS}` is the
    Jensen-Shannon divergence in bits, so that 1 is the same attention and 0 one that meets in no token. The mean is
    over tokens and batches. Heads of different layers are compared on the same tokens.

    Args:
        module: has :class:`HeadAttention` layers inside, all given the same tokens and mask shapes (no token pruned).
        call: runs it, for example ``lambda: model(x, graphs)``.

    Returns:
        ``[heads, heads]`` in [0, 1], the open heads of all layers in the order of ``module.modules()``.

    Raises:
        TypeError: ``call`` cannot be called.
        ValueError: the module has no head, or ``call`` does not run all of its layers on tokens of one shape.

    Example:
        >>> attention = HeadAttention(4, 2)
        >>> head_similarity(attention, lambda: attention(torch.zeros(3, 5, 4)))  # equal tokens: all attend to all
        tensor([[1., 1.],
                [1., 1.]])

    References:
        Clark, Khandelwal, Levy, Manning (2019), What does BERT look at, section 6. Liu et al. (2024), section 5, for
        the redundancy of heads.
    """
    check_callable("call", call)
    attentions, seen = _attentions(module), dict[nn.Module, tuple[Any, ...]]()
    hooks = [a.register_forward_pre_hook(lambda layer, given: seen.update({layer: given})) for a in attentions]
    with torch.no_grad():
        try:
            call()
        finally:
            for hook in hooks:
                hook.remove()
        if len(seen) < len(attentions) or len({given[0].shape[:-1] for given in seen.values()}) > 1:
            raise ValueError("call must run all layers of attention in the module, on tokens of one shape")
        shares = torch.cat([attention.shares(*seen[attention]) for attention in attentions], -3)
        given = seen[attentions[0]]
        present = given[1] if len(given) > 1 and given[1] is not None else torch.ones_like(shares[..., 0, :, 0]) > 0
        rows = shares.movedim(-3, 0)[:, present].double()  # [heads, tokens, n]
        middle = (rows[:, None] + rows) / 2
        bits = (torch.xlogy(rows, rows).sum(-1)[:, None] + torch.xlogy(rows, rows).sum(-1)) / 2
        divergence = (bits - torch.xlogy(middle, middle).sum(-1)).mean(-1) / math.log(2)
        return (1 - divergence).clamp(0, 1).to(shares.dtype)


def _attentions(module: nn.Module) -> list[HeadAttention]:
    found = [m for m in module.modules() if isinstance(m, HeadAttention)]
    if not found:
        raise ValueError("module has no HeadAttention inside")
    return found


def _losses(loss: Callable[[nn.Module, Any], Tensor], module: nn.Module, batch: Any) -> Tensor:
    losses = loss(module, batch)
    if losses.ndim != 1:
        raise ValueError(f"loss must return one number a graph, got shape {tuple(losses.shape)}")
    return losses


def _first_order(losses: Callable[[], Tensor], layers: list[HeadOutputs]) -> list[Tensor]:
    """The slope of each graph's loss as the output of a head grows, ``[graphs, open]`` for each layer."""
    said: dict[nn.Module, Tensor] = {}
    with _hooked(layers, lambda layer, _, output: said.update({layer: output})):
        found = losses()
    outputs = [said[layer] for layer in layers if layer in said]
    slopes = dict(zip(said, torch.autograd.grad(found.sum(), outputs, allow_unused=True), strict=True))
    silent = found.new_zeros(len(found), 1)
    return [
        silent if slopes.get(layer) is None else (slopes[layer] * said[layer]).detach().sum((-2, -1))
        for layer in layers
    ]


@torch.no_grad()
def _removed(losses: Callable[[], Tensor], layers: list[HeadOutputs]) -> list[Tensor]:
    """The change of each graph's loss as a head falls silent."""
    before, changes = losses(), []
    for layer in layers:
        own = []
        for head in range(int(layer.open.sum())):

            def silenced(_: nn.Module, __: Any, output: Tensor, head: int = head) -> Tensor:
                return output.index_fill(-3, torch.tensor([head], device=output.device), 0)

            with _hooked([layer], silenced):
                own.append(losses() - before)
        changes.append(torch.stack(own, 1))
    return changes


@contextmanager
def _hooked(layers: Sequence[nn.Module], hook: Callable[[nn.Module, Any, Tensor], Any]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
