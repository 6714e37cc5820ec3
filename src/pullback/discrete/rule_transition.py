"""Symbols that select and slots that compute: attributes of objects, actions for objects, and modular transitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
    check_scalar,
    check_tensor,
)
from pullback.core.shapes import Float, Int, Scalar
from pullback.core.transforms import can_look
from pullback.discrete.sampling import gumbel_softmax, straight_through

__all__ = ["MatchedActions", "RuleTransition", "RuleUpdate", "SymbolicAttributes", "match_actions"]


class MatchedActions(NamedTuple):
    """Actions, each given to the slot that it is for.

    Attributes:
        actions: ``[*batch, slots, parts]`` sum of what each slot gets.
        weights: ``[*batch, actions, slots]`` how each action is shared out; rows sum to 1.
    """

    actions: Float[Tensor, "*batch slots parts"]
    weights: Float[Tensor, "*batch actions slots"]


class RuleUpdate(NamedTuple):
    """What a transition did, and why.

    Attributes:
        slots: ``[*batch, slots, dim]`` after all steps.
        primary: ``[*batch, steps, slots]`` which slot was updated; all 0 where none was.
        rule: ``[*batch, steps, rules]`` by which rule; all 0 where none was.
        context: ``[*batch, steps, slots]`` with a look at which other slot.
    """

    slots: Float[Tensor, "*batch slots dim"]
    primary: Float[Tensor, "*batch steps slots"]
    rule: Float[Tensor, "*batch steps rules"]
    context: Float[Tensor, "*batch steps slots"]


class SymbolicAttributes(nn.Module):
    r"""Name the attributes of objects: :math:`\Lambda_i`, a distribution over the values of each attribute, joined.

    The scorer gives a logit for every value of every attribute; the attributes are scored apart from each other, so
    that a combination of values that never occurred is as good as any other. It may be a network trained for the
    purpose, or a vision-language model that scores the texts "a photo of a <value> object".

    Args:
        names: of the attributes, at least one.
        values: the values of each, at least one.
        scorer: from objects ``[n, *object]`` to logits ``[n, values]``, the values of all attributes in order.

    Raises:
        TypeError: ``scorer`` cannot be called.
        ValueError: names without values, or named twice.

    Example:
        >>> symbols = SymbolicAttributes(["shape", "colour"], [["round", "square"], ["red", "blue"]], lambda x: x)
        >>> seen = torch.tensor([[2.0, 0.0, 0.0, 1.0]])
        >>> symbols(seen, hard=True), symbols.decide(seen)
        (tensor([[1., 0., 0., 1.]]), tensor([[0, 1]]))
        >>> symbols.words(symbols.decide(seen)[0])
        ['round', 'blue']

    References:
        Sehgal, Grayeli, Sun, Chaudhuri (2024), Neurosymbolic grounding for compositional world models, section 3.
    """

    def __init__(
        self, names: Sequence[str], values: Sequence[Sequence[str]], scorer: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        check_callable("scorer", scorer)
        if not names or len(names) != len(values) or not all(values) or len(set(names)) != len(names):
            raise ValueError(f"names must be different and each have values, got {list(names)} and {list(values)}")
        for name, options in zip(names, values, strict=True):
            if len(set(options)) != len(options):
                raise ValueError(f"values of {name} must be different, got {list(options)}")
        self.names, self.values = tuple(names), tuple(tuple(options) for options in values)
        self.sizes = [len(options) for options in values]
        self.scorer = scorer

    def forward(
        self, objects: Float[Tensor, "*batch slots ..."], *, temperature: Scalar = 1.0, hard: bool = False
    ) -> Float[Tensor, "*batch slots values"]:
        """Return the symbols of objects.

        Args:
            objects: what the scorer takes, of any batch; its first dimension but one or more is that of the objects.
            temperature: of the softmax of each attribute, > 0.
            hard: return exact one-hot vectors, with the gradient of the soft ones.

        Raises:
            TypeError: ``objects`` is not floating.
            ValueError: the scorer returns another number of values, or ``temperature`` is out of range.
        """
        check_scalar("temperature", temperature)
        parts = []
        for logits in self._logits(objects):
            soft = (logits / temperature).softmax(-1)
            exact = F.one_hot(logits.argmax(-1), logits.shape[-1])
            parts.append(straight_through(exact, soft) if hard else soft)
        return torch.cat(parts, -1)

    def decide(self, objects: Float[Tensor, "*batch slots ..."]) -> Int[Tensor, "*batch slots attributes"]:
        """Return the number of the likeliest value of each attribute."""
        return torch.stack([logits.argmax(-1) for logits in self._logits(objects)], -1)

    def loss(
        self, objects: Float[Tensor, "*batch slots ..."], truth: Int[Tensor, "*batch slots attributes"]
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the true values, summed over attributes [nats].

        Args:
            objects: what the scorer takes.
            truth: numbers of the values; -1 where it is not known.

        Raises:
            ValueError: shapes that do not fit, or a value outside of the vocabulary.
        """
        found = self._logits(objects)
        self._check(truth, found[0].shape[:-1], -1)
        nats = torch.zeros((), dtype=found[0].dtype, device=found[0].device)
        for logits, known in zip(found, truth.unbind(-1), strict=True):
            total = F.cross_entropy(logits.flatten(0, -2), known.flatten().long(), ignore_index=-1, reduction="sum")
            nats = nats + total / (known >= 0).sum().clamp_min(1)
        return nats

    def encode(self, truth: Int[Tensor, "*batch slots attributes"]) -> Int[Tensor, "*batch slots values"]:
        """Return the one-hot symbols of attributes that are known.

        Raises:
            ValueError: another number of attributes, or a value outside of the vocabulary.
        """
        self._check(truth, truth.shape[:-1])
        return torch.cat([F.one_hot(truth[..., i].long(), size) for i, size in enumerate(self.sizes)], -1)

    def words(self, numbers: Int[Tensor, "attributes"]) -> list[str]:
        """Return the words of one object's attributes."""
        self._check(numbers, ())
        return [options[int(n)] for options, n in zip(self.values, numbers, strict=True)]

    def _logits(self, objects: Tensor) -> tuple[Tensor, ...]:
        if check_floating("objects", objects).ndim < 1:
            raise ValueError("objects must have a dimension or more, got a tensor without")
        logits = self.scorer(objects)
        if logits.shape[-1] != sum(self.sizes):
            raise ValueError(f"scorer must return {sum(self.sizes)} values, got {tuple(logits.shape)}")
        return logits.split(self.sizes, -1)

    def _check(self, truth: Tensor, batch: Sequence[int], least: int = 0) -> None:
        if check_tensor("truth", truth).is_floating_point():
            raise TypeError(f"truth must hold integers, got {truth.dtype}")
        if truth.shape != (*batch, len(self.names)):
            raise ValueError(f"truth must have shape {(*batch, len(self.names))}, got {tuple(truth.shape)}")
        for i, (name, size) in enumerate(zip(self.names, self.sizes, strict=True)):
            wrong = (truth[..., i] < least) | (truth[..., i] >= size)
            if can_look(truth) and bool(wrong.any()):
                got = int(truth[..., i][wrong][0])
                raise ValueError(f"truth must hold a {name} in {least}..{size - 1}, got {got}")


def match_actions(
    keys: Float[Tensor, "*#batch slots dim"],
    queries: Float[Tensor, "*#batch actions dim"],
    actions: Float[Tensor, "*#batch actions parts"],
    *,
    temperature: Scalar = 1.0,
    hard: bool = False,
) -> MatchedActions:
    r"""Give each action to the slot that it is for, by attention.

    .. math:: w_{js} = \mathrm{softmax}_s\left(\frac{q_j \cdot k_s}{\sqrt d\,\tau}\right), \qquad
              a_s = \sum_j w_{js} A_j

    Permuting the slots permutes the result; permuting the actions with their queries leaves it as it is.

    Args:
        keys: ``[*batch, slots, dim]`` of the slots.
        queries: ``[*batch, actions, dim]`` of what the actions say they are for.
        actions: ``[*batch, actions, parts]``.
        temperature: tau > 0, a number or a differentiable tensor without dimensions.
        hard: give each action to one slot, with the gradient of the soft attention.

    Returns:
        :class:`MatchedActions`.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes that do not fit, keys or queries that are not finite, or ``temperature`` out of range.

    Example:
        >>> keys, queries = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([[0.0, 9.0]])
        >>> match_actions(keys, queries, torch.ones(1, 1), hard=True).actions
        tensor([[0.],
                [1.]])

    References:
        Zhao, Kong, Walters, Wong (2022), Toward compositional generalization in object-oriented world modeling,
        section 4.2; Sehgal et al. (2024), Neurosymbolic grounding for compositional world models, section 3.
    """
    check_same_dtype(
        keys=check_floating("keys", keys),
        queries=check_floating("queries", queries),
        actions=check_floating("actions", actions),
    )
    check_scalar("temperature", temperature)
    if min(keys.ndim, queries.ndim, actions.ndim) < 2 or keys.shape[-1] != queries.shape[-1] or not keys.shape[-2]:
        raise ValueError(
            f"keys [..., slots, dim] and queries [..., actions, dim] must have one dim, got {tuple(keys.shape)} and "
            f"{tuple(queries.shape)}"
        )
    if actions.shape[-2] != queries.shape[-2]:
        raise ValueError(f"actions must be {queries.shape[-2]}, as queries, got shape {tuple(actions.shape)}")
    for name, value in (("keys", keys), ("queries", queries)):
        if can_look(value):
            check_finite(name, value)
    check_broadcast(keys=tuple(keys.shape[:-2]), queries=tuple(queries.shape[:-2]), actions=tuple(actions.shape[:-2]))
    logits = queries @ keys.mT * keys.shape[-1] ** -0.5 / temperature
    weights = logits.softmax(-1)
    if hard:
        weights = straight_through(F.one_hot(logits.argmax(-1), logits.shape[-1]), weights)
    return MatchedActions(weights.mT @ actions, weights)


class RuleTransition(nn.Module):
    r"""Predict the next slots by a few rules, each applied to one slot with a look at another; symbols select.

    From symbols :math:`\Lambda` and actions a, an attention by likeness makes keys
    :math:`k_i = k(\Lambda_i, a_i, \sum_j w_{ij} V(\Lambda_j, a_j))` with
    :math:`w_{i\cdot} = \mathrm{softmax}_j(W\Lambda_i \cdot W\Lambda_j / \sqrt w)`. Each of the ``steps`` chooses a
    primary slot p and a rule r together, or that nothing happens, and a context slot c:

    .. math:: (p, r) \sim \mathrm{softmax}\left(\frac{k_i \cdot q(e_r)}{\sqrt w\,\tau}\right), \qquad
              c \sim \mathrm{softmax}_{j \ne p}\left(\frac{q'(k_p, e_r) \cdot k'(\Lambda_j, a_j)}{\sqrt w\,\tau}\right),
              \qquad S_p \leftarrow S_p + f_r(S_p, S_c, a_p, a_c) ,

    with embeddings :math:`e_r` and networks :math:`f_r` of the rules. A slot is primary once at most, and a context is
    seen as it was before the first step: so all changes are computed side by side, and the gradient of a choice that
    was not made is that of its own change. Permuted slots with their symbols and actions are predicted permuted, but
    where two are exactly as likely, as with equal symbols and actions: there the first is chosen. Slots that choose for
    themselves, ``symbols=slots``, make it a neural production system.

    Args:
        slot: numbers of a slot, >= 1.
        symbol: numbers of its symbols, >= 1.
        action: numbers of its action, >= 1.
        rules: >= 1.
        steps: updates, >= 1.
        width: of keys and embeddings, >= 1.
        hidden: of each rule's network, >= 1.
        temperature: tau > 0.

    Raises:
        TypeError: a size is no integer.
        ValueError: a number is out of range.

    Example:
        >>> model = RuleTransition(8, 5, 4, rules=3, steps=2)
        >>> found = model(torch.randn(6, 3, 8), torch.randn(6, 3, 5), torch.randn(6, 3, 4))
        >>> found.slots.shape, found.primary.shape, bool((found.primary.sum(-1) <= 1).all())
        (torch.Size([6, 3, 8]), torch.Size([6, 2, 3]), True)

    References:
        Goyal et al. (2021), Neural production systems, algorithm 1; Sehgal, Grayeli, Sun, Chaudhuri (2024),
        Neurosymbolic grounding for compositional world models, section 3 and algorithm 1.
    """

    def __init__(
        self,
        slot: int,
        symbol: int,
        action: int,
        *,
        rules: int = 4,
        steps: int = 4,
        width: int = 32,
        hidden: int = 64,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = {"slot": slot, "symbol": symbol, "action": action, "rules": rules, "steps": steps}
        for name, value in {**sizes, "width": width, "hidden": hidden}.items():
            check_integer(name, value, 1)
        check_scalar("temperature", temperature)
        self.slot, self.symbol, self.action, self.rules, self.steps = slot, symbol, action, rules, steps
        self.temperature, self.width = temperature, width
        known = symbol + action
        self.like, self.value = nn.Linear(symbol, width, bias=False), nn.Linear(known, width)
        self.key = nn.Sequential(nn.Linear(known + width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.rule_embedding = nn.Parameter(torch.randn(rules, width))
        self.rule_query = nn.Linear(width, width, bias=False)
        self.nothing = nn.Parameter(torch.zeros(1))
        self.context_query, self.context_key = nn.Linear(2 * width, width), nn.Linear(known, width)
        given = 2 * (slot + action)
        self.first = nn.Parameter((2 * torch.rand(rules, given, hidden) - 1) * given**-0.5)
        self.first_bias = nn.Parameter((2 * torch.rand(rules, 1, hidden) - 1) * given**-0.5)
        self.second = nn.Parameter((2 * torch.rand(rules, hidden, slot) - 1) * hidden**-0.5)

    def forward(
        self,
        slots: Float[Tensor, "*batch slots dim"],
        symbols: Float[Tensor, "*batch slots symbols"],
        actions: Float[Tensor, "*batch slots parts"],
        *,
        hard: bool = True,
        temperature: Scalar | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> RuleUpdate:
        """Return the next slots and what was chosen.

        Args:
            slots: ``[*batch, slots, dim]``.
            symbols: ``[*batch, slots, symbols]``; they select and do nothing else.
            actions: ``[*batch, slots, parts]``, the slots' own: :func:`match_actions`.
            hard: choose exactly one, with the gradient of the softmax; else average over all choices.
            temperature: instead of the module's, > 0.
            sample: draw the choices (Gumbel-softmax) instead of taking the likeliest.
            generator: of the draws.

        Raises:
            TypeError: a tensor is not floating, or the dtypes differ.
            ValueError: shapes that do not fit, or ``temperature`` out of range.
        """
        tensors = {"slots": slots, "symbols": symbols, "actions": actions}
        check_same_dtype(**{name: check_floating(name, value) for name, value in tensors.items()})
        temperature = self.temperature if temperature is None else temperature
        check_scalar("temperature", temperature)
        for (name, value), size in zip(tensors.items(), (self.slot, self.symbol, self.action), strict=True):
            if value.ndim < 2 or value.shape[:-1] != slots.shape[:-1] or value.shape[-1] != size or not value.shape[-2]:
                raise ValueError(
                    f"{name} must have shape (*batch, slots, {size}), got {tuple(value.shape)}, slots has "
                    f"{tuple(slots.shape)}"
                )

        def choose(logits: Tensor) -> Tensor:
            if sample:
                return gumbel_softmax(logits, temperature=temperature, hard=hard, generator=generator)
            soft = (logits / temperature).softmax(-1)
            return straight_through(F.one_hot(logits.argmax(-1), logits.shape[-1]), soft) if hard else soft

        count, scale = slots.shape[-2], self.width**-0.5
        known, own = torch.cat([symbols, actions], -1), torch.cat([slots, actions], -1)
        like = self.like(symbols)
        shared = (like @ like.mT * scale).softmax(-1) @ self.value(known)
        keys = self.key(torch.cat([known, shared], -1))
        logits = keys @ self.rule_query(self.rule_embedding).mT * scale  # [*batch, slots, rules]

        # For every slot, if it should be primary, and every rule: the context and the change.
        shape = (*keys.shape[:-1], self.rules, self.width)
        asked = torch.cat([keys[..., None, :].expand(shape), self.rule_embedding.expand(shape)], -1)
        near = self.context_query(asked) @ self.context_key(known).mT[..., None, :, :] * scale
        if count > 1:
            itself = torch.eye(count, dtype=torch.bool, device=slots.device)[:, None]
            near = near.masked_fill(itself, -torch.inf)
        contexts = choose(near)  # [*batch, slots, rules, slots]
        first, other = self.first.chunk(2, 1)
        inner = torch.einsum("...ki,rih->...krh", own, first) + self.first_bias[:, 0]
        inner = inner + torch.einsum("...krj,...jrh->...krh", contexts, torch.einsum("...ki,rih->...krh", own, other))
        changes = torch.einsum("...krh,rhd->...krd", inner.relu(), self.second)

        left = torch.ones_like(logits[..., :1])
        nothing = self.nothing.expand(*slots.shape[:-2], 1)
        chosen = []
        for _ in range(self.steps):
            free = logits.masked_fill(left < 0.5, -torch.inf) if hard else logits + left.clamp_min(1e-6).log()
            both = choose(torch.cat([free.flatten(-2), nothing], -1))[..., :-1].unflatten(-1, (count, self.rules))
            taken = both.sum(-1, keepdim=True)
            left = left * (1 - (taken.detach() if hard else taken))
            chosen.append(both)
        picked = torch.stack(chosen, -3)  # [*batch, steps, slots, rules]
        slots = slots + (picked.sum(-3)[..., None] * changes).sum(-2)
        context = torch.einsum("...tkr,...krj->...tj", picked, contexts)
        return RuleUpdate(slots, picked.sum(-1), picked.sum(-2), context)
