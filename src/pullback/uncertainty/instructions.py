"""Reading instructions: attention to words, a decoder of steps, a network that reads maps as words say."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look

__all__ = ["Attended", "DecodedSteps", "InstructionDecoder", "LingUNet", "attend"]


class Attended(NamedTuple):
    """What attention found.

    Attributes:
        context: ``[*batch, v]`` the mean of the values.
        weights: ``[*batch, n]`` of each value; they sum to 1.
    """

    context: Float[Tensor, "*batch v"]
    weights: Float[Tensor, "*batch n"]


def attend(
    query: Float[Tensor, "*batch d"],
    keys: Float[Tensor, "*batch n d"],
    values: Float[Tensor, "*batch n v"],
    mask: Bool[Tensor, "*batch n"] | None = None,
) -> Attended:
    r"""Return :math:`\sum_i w_i v_i` with :math:`w = \mathrm{softmax}(q \cdot k_i / \sqrt d)`.

    Args:
        query: ``[*batch, d]``.
        keys: ``[*batch, n, d]``.
        values: ``[*batch, n, v]``.
        mask: ``[*batch, n]`` which values are there; all by default.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes do not fit, or nothing is there to attend to (not looked at under transforms).

    Example:
        >>> attend(torch.tensor([9.0]), torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [5.0]])).context
        tensor([3.])

    References:
        Vaswani et al. (2017), Attention is all you need, equation 1.
    """
    for name, value in (("query", query), ("keys", keys), ("values", values)):
        check_floating(name, value)
    check_same_dtype(query=query, keys=keys, values=values)
    if query.ndim < 1 or keys.ndim < 2 or keys.shape[:-2] != query.shape[:-1] or keys.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"keys must be [*batch, n, d] for query [*batch, d], got {tuple(keys.shape)} and {tuple(query.shape)}"
        )
    if values.ndim < 2 or values.shape[:-1] != keys.shape[:-1] or not keys.shape[-2]:
        raise ValueError(
            f"values must be one for each of at least one key, got {tuple(values.shape)} and {tuple(keys.shape)}"
        )
    scores = (keys @ query[..., None])[..., 0] / math.sqrt(query.shape[-1])
    if mask is not None:
        if mask.shape != scores.shape:
            raise ValueError(f"mask must have shape {tuple(scores.shape)}, got {tuple(mask.shape)}")
        if can_look(mask) and not bool(mask.any(-1).all()):
            raise ValueError("mask must leave at least one value")
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1)
    return Attended((weights[..., None, :] @ values)[..., 0, :], weights)


class DecodedSteps(NamedTuple):
    """What an instruction says step by step.

    Attributes:
        action: ``[*batch, steps, 2 hidden]`` words about the motion.
        observation: ``[*batch, steps, 2 hidden]`` words about what is seen afterwards.
        state: ``[*batch, steps, 2 hidden]`` of the decoder: how far the instruction is followed.
        action_weights: ``[*batch, steps, n]`` to which words the motion attends.
        observation_weights: ``[*batch, steps, n]``.
    """

    action: Float[Tensor, "*batch steps d"]
    observation: Float[Tensor, "*batch steps d"]
    state: Float[Tensor, "*batch steps d"]
    action_weights: Float[Tensor, "*batch steps n"]
    observation_weights: Float[Tensor, "*batch steps n"]


class InstructionDecoder(nn.Module):
    """Turn an instruction into a motion and an observation for each step, by attention to its words.

    A bidirectional LSTM reads the words. A second LSTM goes through the steps; its state asks for the words of the
    motion, these and the state ask for the words of the observation, and both go into the next step.

    Args:
        vocabulary: number of words; word 0 fills up short instructions.
        hidden: width of the states, in each direction.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError, ValueError: a size is no integer >= 1 (vocabulary: >= 2).

    Example:
        >>> decoder = InstructionDecoder(5, 4)
        >>> decoder(torch.tensor([[1, 2, 3, 0]]), 6).action.shape
        torch.Size([1, 6, 8])

    References:
        Anderson, Shrivastava, Parikh, Batra, Lee (2019), Chasing ghosts: instruction following as Bayesian state
        tracking, section 3.2 (motion and observation from words).
    """

    def __init__(self, vocabulary: int, hidden: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.vocabulary = check_integer("vocabulary", vocabulary, 2)
        self.hidden = check_integer("hidden", hidden, 1)
        both = 2 * hidden
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.encoder = nn.LSTM(hidden, hidden, bidirectional=True, batch_first=True)
        self.cell = nn.LSTMCell(2 * both, both)
        self.ask_action, self.ask_observation = nn.Linear(both, both), nn.Linear(2 * both, both)
        _initialise(self, generator)

    def forward(self, words: Int[Tensor, "*batch n"], steps: int) -> DecodedSteps:
        """Read instructions.

        Args:
            words: ``[*batch, n]``, n >= 1, filled up with 0 behind the last word.
            steps: to decode, >= 1.

        Raises:
            TypeError: ``words`` holds no integers.
            ValueError: a word is not in the vocabulary, or an instruction has none (not looked at under transforms).
        """
        if words.is_floating_point() or words.dtype == torch.bool:
            raise TypeError(f"words must hold integers, got {words.dtype}")
        check_integer("steps", steps, 1)
        if can_look(words):
            if words.numel() and not 0 <= int(words.min()) <= int(words.max()) < self.vocabulary:
                raise ValueError(
                    f"words must be in 0..{self.vocabulary - 1}, got {int(words.min())} to {int(words.max())}"
                )
            if words.ndim < 1 or not bool((words != 0).any(-1).all()):
                raise ValueError("words must hold at least one word in each instruction, got none")
        batch = words.shape[:-1]
        flat = words.reshape(-1, words.shape[-1])
        mask, lengths = flat != 0, (flat != 0).sum(-1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(flat), lengths, batch_first=True, enforce_sorted=False
        )
        read, (last, _) = self.encoder(packed)
        keys, _ = nn.utils.rnn.pad_packed_sequence(read, batch_first=True, total_length=flat.shape[-1])
        hidden = torch.cat([last[0], last[1]], -1)
        cell, given = torch.zeros_like(hidden), torch.cat([hidden, hidden], -1)
        found = []
        for _ in range(steps):
            hidden, cell = self.cell(given, (hidden, cell))
            action = attend(self.ask_action(hidden), keys, keys, mask)
            seen = attend(self.ask_observation(torch.cat([hidden, action.context], -1)), keys, keys, mask)
            given = torch.cat([action.context, seen.context], -1)
            found.append((action.context, seen.context, hidden, action.weights, seen.weights))
        stacked = (torch.stack(part, 1) for part in zip(*found, strict=True))
        return DecodedSteps(*(part.view(*batch, *part.shape[1:]) for part in stacked))


class LingUNet(nn.Module):
    r"""A U-Net over a map whose filters between its two halves are written by words.

    .. math::
        F_0 = \mathrm{map}, \quad F_k = \mathrm{conv}(F_{k-1}), \quad G_k = W_k(\mathrm{words})\,F_k, \quad
        H_k = \mathrm{up}(\mathrm{conv}([G_k, H_{k+1}]))

    :math:`W_k` is a 1 x 1 convolution, linear in its own part of the words' features. Every level halves the map.

    Args:
        inputs: channels of the map.
        channels: of every level.
        words: features of the words, a multiple of ``levels``.
        outputs: channels of the result.
        levels: >= 1; the sides of a map are multiples of ``2 ** (levels - 1)``.
        normalize: bring every channel of a map to mean 0 and variance 1 after each convolution, so that what is rare
            on a map stands out; the smallest map then needs at least two cells.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError, ValueError: a size is no integer >= 1, or ``words`` no multiple of ``levels``.

    Example:
        >>> network = LingUNet(3, 4, 8, outputs=1, levels=2)
        >>> network(torch.rand(5, 3, 8, 8), torch.rand(5, 8)).shape
        torch.Size([5, 1, 8, 8])

    References:
        Misra, Bennett, Blukis, Niklasson, Shatkhin, Artzi (2018), Mapping instructions to actions in 3D environments
        with visual goal prediction, section 4.1. Anderson et al. (2019), Chasing ghosts, whose code normalises.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        words: int,
        *,
        outputs: int = 1,
        levels: int = 2,
        normalize: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "channels": channels, "words": words, "outputs": outputs, "levels": levels}
        for name, size in sizes.items():
            check_integer(name, size, 1)
        if words % levels:
            raise ValueError(f"words must be a multiple of levels, got {words} and {levels}")
        self.inputs, self.channels, self.words, self.levels = inputs, channels, words, levels
        self.normalize = normalize
        self.down = nn.ModuleList(
            nn.Conv2d(inputs if not k else channels, channels, 3, padding=1) for k in range(levels)
        )
        self.write = nn.ModuleList(nn.Linear(words // levels, channels * channels) for _ in range(levels))
        self.up = nn.ModuleList(
            nn.Conv2d(channels if k == levels - 1 else 2 * channels, channels, 3, padding=1) for k in range(levels)
        )
        self.readout = nn.Conv2d(channels, outputs, 1)
        _initialise(self, generator)

    def forward(
        self, map_: Float[Tensor, "*#batch inputs h w"], words: Float[Tensor, "*#batch words"]
    ) -> Float[Tensor, "*batch outputs h w"]:
        """Read a map as the words say.

        Args:
            map_: ``[*batch, inputs, h, w]``; one map for many words is read once.
            words: ``[*batch, words]``.

        Raises:
            TypeError: a tensor is not floating, or the dtypes differ.
            ValueError: the shapes do not fit.
        """
        check_same_dtype(map_=check_floating("map_", map_), words=check_floating("words", words))
        check_shape("map_", map_, (self.inputs, None, None))
        check_shape("words", words, (self.words,))
        least = 2 ** (self.levels - 1)
        if map_.shape[-1] % least or map_.shape[-2] % least or not map_.numel():
            raise ValueError(f"map_ must have sides that are multiples of {least}, got {tuple(map_.shape)}")
        batch = check_broadcast(map_=tuple(map_.shape[:-3]), words=tuple(words.shape[:-1]))
        normed = nn.functional.normalize(words.unflatten(-1, (self.levels, -1)), dim=-1)
        level, filtered = map_.reshape(-1, *map_.shape[-3:]), []
        for k, (conv, write) in enumerate(zip(self.down, self.write, strict=True)):
            level = self._normal(conv(nn.functional.avg_pool2d(level, 2) if k else level).relu())
            filters = write(normed[..., k, :]).unflatten(-1, (self.channels, self.channels))
            mixed = filters @ level.flatten(2).view(*map_.shape[:-3], self.channels, -1)
            filtered.append(mixed.view(-1, *level.shape[1:]))
        found: Tensor | None = None
        for part, conv in zip(filtered[::-1], self.up[::-1], strict=True):
            if found is not None:
                found = found.repeat_interleave(2, -1).repeat_interleave(2, -2)
                part = torch.cat([part, found], 1)
            found = self._normal(conv(part).relu())
        result: Tensor = self.readout(found)
        return result.view(*batch, *result.shape[1:])

    def _normal(self, maps: Tensor) -> Tensor:
        return nn.functional.instance_norm(maps) if self.normalize else maps


def _initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw weights as torch does, from a generator."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, generator=generator)
        elif isinstance(part, nn.Linear | nn.Conv2d):
            bound = part.weight[0].numel() ** -0.5
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            if part.bias is not None:
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.LSTM | nn.LSTMCell):
            for parameter in part.parameters():
                nn.init.uniform_(parameter, -(part.hidden_size**-0.5), part.hidden_size**-0.5, generator=generator)
