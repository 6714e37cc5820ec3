"""Transformers that read a data set and answer with densities, and one that also chooses where to look next."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_positive, check_same_dtype, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.bar_distribution import BarDistribution

__all__ = ["Choice", "Decision", "NeuralAcquisition", "TransformerNeuralProcess"]


class TransformerNeuralProcess(nn.Module):
    r"""Predict a function at targets from its values at context points, in one pass.

    Context points are tokens :math:`W_x x + W_y y`, targets :math:`W_x x`, without positions. Context attends to
    context, a target to context and itself: the order of the context does not matter, and a target's answer does not
    depend on the others. Trained by :math:`-\log p(y \mid x, \mathrm{context})` on random splits of many functions, it
    does Bayesian inference for the prior from which they come.

    Args:
        features: of a point.
        width: of the tokens, a multiple of ``heads``.
        layers: >= 1, the norm before each part.
        heads: of attention.
        buckets: of the density.
        value_range: outer borders of the buckets, in the unit of y.
        prior: add a learned token to every context, so that it may be empty.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is out of range, ``width`` no multiple of ``heads``, or the range is empty.

    Example:
        >>> process = TransformerNeuralProcess(2, width=8, layers=1, heads=2, buckets=5)
        >>> law = process(torch.rand(3, 4, 2), torch.rand(3, 4), torch.rand(3, 6, 2))
        >>> law.mean.shape, law.log_prob(torch.rand(3, 6)).shape
        (torch.Size([3, 6]), torch.Size([3, 6]))

    References:
        Mueller, Hollmann, Pineda Arango, Grabocka, Hutter (2022), Transformers can do Bayesian inference, section 4.
        Nguyen, Grover (2022), Transformer neural processes.
    """

    borders: Tensor

    def __init__(
        self,
        features: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        buckets: int = 64,
        value_range: tuple[float, float] = (0.0, 1.0),
        prior: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"features": features, "width": width, "layers": layers, "heads": heads, "buckets": buckets}
        for name, size in sizes.items():
            check_integer(name, size, 1)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        if not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise ValueError(f"value_range must be an increasing pair of finite numbers, got {value_range}")
        self.features, self.width = features, width
        self.of_x, self.of_y = nn.Linear(features, width), nn.Linear(1, width)
        self.prior = nn.Parameter(torch.empty(width)) if prior else None
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.readout = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, buckets))
        self.register_buffer("borders", torch.linspace(*value_range, buckets + 1))
        _initialise(self, generator)

    def forward(
        self,
        context_x: Float[Tensor, "*batch m d"],
        context_y: Float[Tensor, "*batch m"],
        target_x: Float[Tensor, "*batch n d"],
        *,
        mask: Bool[Tensor, "*batch m"] | None = None,
    ) -> BarDistribution:
        """Return the law of y at each target.

        Args:
            context_x: ``[*batch, m, features]``.
            context_y: ``[*batch, m]`` in the unit of the range.
            target_x: ``[*batch, n, features]``.
            mask: ``[*batch, m]`` which context points are there; all by default. Others may hold any finite number.

        Returns:
            A :class:`BarDistribution` of shape ``[*batch, n]``.

        Raises:
            TypeError: a tensor is not floating, or the dtypes differ.
            ValueError: the shapes do not fit; a context is empty without a prior token; a value of the context lies
                outside of the range (values are not looked at under transforms).
        """
        self._check(context_x, context_y, target_x, mask)
        targets = self.of_x(target_x)
        context = self.of_x(context_x) + self.of_y(context_y[..., None])
        if self.prior is not None:
            context = torch.cat([self.prior.expand(*context.shape[:-2], 1, -1), context], -2)
            if mask is not None:
                mask = nn.functional.pad(mask, (1, 0), value=True)
        for layer in self.layers:
            context, targets = layer(context, targets, mask)
        return BarDistribution(self.readout(targets), self.borders)

    def loss(
        self,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch n"],
        most: int,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        r"""Return :math:`-\log p` of values, given a random number of others of the same function: the training loss.

        Args:
            x: ``[*batch, n, features]`` in random order: the first ``most`` are context, the others targets.
            y: ``[*batch, n]``.
            most: of the context, whose size is uniform in 0..most (1..most without a prior token), below n.
            generator: source of the sizes.

        Returns:
            The mean over all targets.

        Raises:
            TypeError, ValueError: as for a call, or ``most`` is not in 1..n-1.
        """
        check_integer("most", most, 1, x.shape[-2] - 1)
        fewest = int(self.prior is None)
        device = drawing_device(generator, x)
        sizes = torch.randint(fewest, most + 1, (*x.shape[:-2], 1), generator=generator, device=device).to(x.device)
        mask = torch.arange(most, device=x.device) < sizes
        law = self(x[..., :most, :], y[..., :most], x[..., most:, :], mask=mask)
        return -law.log_prob(y[..., most:]).mean()

    def _check(self, context_x: Tensor, context_y: Tensor, target_x: Tensor, mask: Tensor | None) -> None:
        for name, points in (("context_x", context_x), ("target_x", target_x)):
            check_shape(name, check_floating(name, points), (None, self.features))
        check_same_dtype(context_x=context_x, context_y=check_floating("context_y", context_y), target_x=target_x)
        if context_y.shape != context_x.shape[:-1] or target_x.shape[:-2] != context_x.shape[:-2]:
            raise ValueError(
                f"context_y must have one value a point, and targets the same batch, got {tuple(context_x.shape)}, "
                f"{tuple(context_y.shape)}, {tuple(target_x.shape)}"
            )
        if mask is not None and mask.shape != context_y.shape:
            raise ValueError(
                f"mask must have the shape of context_y, {tuple(context_y.shape)}, got {tuple(mask.shape)}"
            )
        there = torch.ones_like(context_y, dtype=torch.bool) if mask is None else mask
        if not can_look(there):
            return
        if self.prior is None and not bool(there.any(-1).all()):
            raise ValueError("context must hold at least one point where there is no prior token, got none")
        low, high = self.borders[0].item(), self.borders[-1].item()
        if can_look(context_y) and bool((out := there & ~((context_y >= low) & (context_y <= high))).any()):
            raise ValueError(f"context_y must be in [{low}, {high}], got {context_y[out][0].item()}")


class Decision(NamedTuple):
    """What an acquisition says about candidates.

    Attributes:
        logits: ``[*batch, n]`` of the policy, -inf for what is not available.
        value: ``[*batch]`` of the state: the return that is expected from it.
        prediction: the law of y at each candidate.
    """

    logits: Float[Tensor, "*batch n"]
    value: Float[Tensor, "*batch"]
    prediction: BarDistribution


class Choice(NamedTuple):
    """A candidate and how likely the choice was.

    Attributes:
        chosen: ``[*batch]`` number of the candidate.
        log_prob: ``[*batch]`` of the policy.
    """

    chosen: Int[Tensor, "*batch"]
    log_prob: Float[Tensor, "*batch"]


class NeuralAcquisition(nn.Module):
    r"""A policy over candidates that is learned end to end with the surrogate that it looks at.

    .. math::
        \pi(i) \propto \exp\bigl(\mathrm{MLP}[\,p(y \mid x_i, \mathrm{context}),\ W_x x_i,\ s\,] / \tau\bigr)

    The density is that of a :class:`TransformerNeuralProcess`, given by the masses of its buckets; s is a state, such
    as the best value so far and the share of the budget that is spent. Candidates do not see each other: their order
    does not matter. A second network gives the state's value.

    Args:
        process: the surrogate; it becomes a part of this module.
        states: numbers in a state.
        hidden: width of three hidden layers with ReLU.
        temperature: tau > 0.
        end_to_end: let the gradient of the policy reach the surrogate.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError, ValueError: the process is none, a size or the temperature is out of range.

    Example:
        >>> process = TransformerNeuralProcess(1, width=8, layers=1, heads=2, buckets=5)
        >>> policy = NeuralAcquisition(process, hidden=4)
        >>> seen, values, candidates = torch.rand(3, 2, 1), torch.rand(3, 2), torch.rand(3, 7, 1)
        >>> decision = policy(seen, values, candidates, torch.zeros(3, 2))
        >>> decision.logits.shape, policy.choose(decision).chosen.shape
        (torch.Size([3, 7]), torch.Size([3]))

    References:
        Maraval, Zimmer, Grosnit, Bou Ammar (2023), End-to-end meta-Bayesian optimisation with transformer neural
        processes, section 4.
    """

    def __init__(
        self,
        process: TransformerNeuralProcess,
        *,
        states: int = 2,
        hidden: int = 200,
        temperature: float = 0.1,
        end_to_end: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(process, TransformerNeuralProcess):
            raise TypeError(f"process must be a TransformerNeuralProcess, got {type(process).__name__}")
        check_integer("states", states, 1)
        check_integer("hidden", hidden, 1)
        check_positive("temperature", temperature)
        self.process, self.states, self.temperature, self.end_to_end = process, states, temperature, end_to_end
        seen = len(process.borders) - 1 + process.width + states
        self.acquisition = nn.Sequential(
            nn.Linear(seen, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        self.value = nn.Sequential(nn.Linear(states, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        _initialise(self.acquisition, generator)
        _initialise(self.value, generator)

    def forward(
        self,
        context_x: Float[Tensor, "*batch m d"],
        context_y: Float[Tensor, "*batch m"],
        candidates: Float[Tensor, "*batch n d"],
        state: Float[Tensor, "*batch states"],
        *,
        mask: Bool[Tensor, "*batch m"] | None = None,
        available: Bool[Tensor, "*batch n"] | None = None,
    ) -> Decision:
        """Judge candidates.

        Args:
            context_x: ``[*batch, m, features]`` where the function is known.
            context_y: ``[*batch, m]``.
            candidates: ``[*batch, n, features]``, n >= 2.
            state: ``[*batch, states]``.
            mask: ``[*batch, m]`` which context points are there; all by default.
            available: ``[*batch, n]`` what may be chosen; all by default.

        Raises:
            TypeError, ValueError: as the process, or ``state`` and ``available`` do not fit, there are fewer than two
                candidates, or none of them is available.
        """
        if candidates.ndim < 2 or candidates.shape[-2] < 2:
            raise ValueError(f"candidates must be at least two, got shape {tuple(candidates.shape)}")
        if check_floating("state", state).shape != (*candidates.shape[:-2], self.states):
            raise ValueError(f"state must have shape {(*candidates.shape[:-2], self.states)}, got {tuple(state.shape)}")
        check_same_dtype(candidates=candidates, state=state)
        prediction = self.process(context_x, context_y, candidates, mask=mask)
        masses, places = prediction.probs, self.process.of_x(candidates)
        if not self.end_to_end:
            masses, places = masses.detach(), places.detach()
        states = state[..., None, :].expand(*candidates.shape[:-1], self.states)
        logits = self.acquisition(torch.cat([masses, places, states], -1))[..., 0] / self.temperature
        if available is not None:
            if available.shape != logits.shape:
                raise ValueError(f"available must have shape {tuple(logits.shape)}, got {tuple(available.shape)}")
            if can_look(available) and not bool(available.any(-1).all()):
                raise ValueError("available must leave at least one candidate")
            logits = logits.masked_fill(~available, -torch.inf)
        return Decision(logits, self.value(state)[..., 0], prediction)

    @staticmethod
    def choose(decision: Decision, *, generator: torch.Generator | None = None) -> Choice:
        """Draw a candidate from the policy.

        Args:
            decision: of :meth:`forward`.
            generator: source of the draws.

        Returns:
            Its index and log probability, with a gradient.
        """
        log_probs = decision.logits.log_softmax(-1)
        flat = log_probs.detach().exp().flatten(0, -2).to(drawing_device(generator, log_probs))
        drawn = torch.multinomial(flat.view(-1, flat.shape[-1]), 1, generator=generator)
        index = drawn.view(log_probs.shape[:-1]).to(log_probs.device)
        return Choice(index, log_probs.gather(-1, index[..., None])[..., 0])


class _Layer(nn.Module):
    """Context attends to itself, each target to context and itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, context: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        m = context.shape[-2]
        tokens = torch.cat([context, targets], -2)
        q, k, v = self.project(self.first(tokens)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        q = q / math.sqrt(q.shape[-1])
        own = (q * k).sum(-1, keepdim=True)
        own = torch.cat([torch.full_like(own[..., :m, :], -torch.inf), own[..., m:, :]], -2)  # context counts once
        scores = q @ k[..., :m, :].mT
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None, None, :], -torch.inf)
        # A softmax over context and itself in two parts: joining them would copy what is largest here.
        top = torch.cat([scores, own], -1).detach().amax(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).min)
        among, alone = (scores - top).exp(), (own - top).exp()
        total = among.sum(-1, keepdim=True) + alone
        seen = (among @ v[..., :m, :] + alone * v) / torch.where(total > 0, total, 1)
        tokens = tokens + self.merge(seen.transpose(-2, -3).flatten(-2))
        tokens = tokens + self.mix(self.second(tokens))
        return tokens[..., :m, :], tokens[..., m:, :]


def _initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Weights of linear layers as torch draws them, from a generator; the prior token small."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            bound = part.in_features**-0.5
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, TransformerNeuralProcess) and part.prior is not None:
            nn.init.normal_(part.prior, std=part.width**-0.5, generator=generator)
