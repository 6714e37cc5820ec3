"""Scenes as sets of slots, one vector for each object: an autoencoder, matching of sets, retrieval of scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import check_broadcast, check_finite, check_floating, check_integer, check_same_dtype
from pullback.core.shapes import Float, Int
from pullback.core.transforms import can_look
from pullback.transport import assignment

__all__ = [
    "AssignedSlots",
    "DecodedSlots",
    "ObjectScorer",
    "RetrievalMetrics",
    "SlotAutoencoder",
    "assign_slots",
    "object_crops",
    "retrieval_metrics",
]


class DecodedSlots(NamedTuple):
    """A scene from its slots.

    Attributes:
        image: ``[*batch, channels, size, size]`` the sum of the parts by their alphas, and of the background.
        parts: ``[*batch, slots, channels, size, size]`` what each slot shows.
        alphas: ``[*batch, slots, size, size]`` its share of each pixel; what is left is background.
    """

    image: Float[Tensor, "*batch channels size size"]
    parts: Float[Tensor, "*batch slots channels size size"]
    alphas: Float[Tensor, "*batch slots size size"]


class AssignedSlots(NamedTuple):
    """A set of slots in the order of another.

    Attributes:
        slots: ``[*batch, slots, dim]`` those of the second set.
        order: ``[*batch, slots]`` the number of the slot that is matched with each of the first set.
        distance: ``[*batch]`` sum of the squared distances of the pairs.
    """

    slots: Float[Tensor, "*batch slots dim"]
    order: Int[Tensor, "*batch slots"]
    distance: Float[Tensor, "*batch"]


class RetrievalMetrics(NamedTuple):
    """How well predictions find their scene among others.

    Attributes:
        hits: share of the predictions with their own scene among the ``k`` nearest, in [0, 1].
        reciprocal_rank: mean of 1 / rank of their own scene, in (0, 1].
        ranks: ``[n]`` of their own scene, from 1; ties count against it.
    """

    hits: float
    reciprocal_rank: float
    ranks: Int[Tensor, "n"]


class SlotAutoencoder(nn.Module):
    r"""Encode the objects of a picture into slots, decode each slot alone, put the parts together by their alphas.

    Given masks, a slot is a convolutional code of the masked picture and its mask, the same network for all. Without
    masks the slots compete for the features of the picture: with keys k and values v of each place and queries of each
    slot, :math:`A = \mathrm{softmax}_{\text{slots}}(k q^T / \sqrt d)`, and a recurrent cell takes each slot to the mean
    of its values, three times. A decoded part has channels and a logit :math:`l_s`, and with the background's logit 0

    .. math:: x = \sum_s \alpha_s x_s + \alpha_0 b, \qquad \alpha = \mathrm{softmax}(l_1, \dots, l_S, 0) .

    Args:
        channels: of a picture, >= 1.
        slots: objects of a picture at most, >= 1.
        dim: numbers of a slot, >= 1.
        size: pixels of a side, a multiple of 4.
        width: channels of the layers, >= 1.
        flat: every part has one colour; else a texture is added to it.

    Raises:
        TypeError: a number is no integer.
        ValueError: a number is out of range.

    Example:
        >>> model = SlotAutoencoder(3, 4, 8)
        >>> slots = model.encode(torch.rand(2, 3, 32, 32), torch.rand(2, 4, 32, 32))
        >>> slots.shape, model.decode(slots).image.shape, model.encode(torch.rand(2, 3, 32, 32)).shape
        (torch.Size([2, 4, 8]), torch.Size([2, 3, 32, 32]), torch.Size([2, 4, 8]))

    References:
        Burgess et al. (2019), MONet, section 2.2 (composition by alphas); Locatello et al.
        (2020), Object-centric learning with slot attention, algorithm 1; Sehgal et al. (2024), Neurosymbolic grounding
        for compositional world models, section 3.
    """

    def __init__(
        self, channels: int, slots: int, dim: int, *, size: int = 32, width: int = 32, flat: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("slots", slots), ("dim", dim)):
            check_integer(name, value, 1)
        check_integer("width", width, 1)
        if check_integer("size", size, 4) % 4:
            raise ValueError(f"size must be a multiple of 4, got {size}")
        self.channels, self.slots, self.dim, self.size = channels, slots, dim, size
        cells = (size // 4) ** 2
        self.encoder = nn.Sequential(
            nn.Conv2d(channels + 1, width, 4, 4),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(width * cells, dim),
        )
        drawn = 16 * (1 if flat else channels + 1)
        last = nn.Conv2d(width, drawn, 1)
        with torch.no_grad():  # nearly transparent at first: slots take what they explain
            last.bias[-16:] -= 1  # type: ignore[index]
        self.decoder = nn.Sequential(
            nn.Linear(dim, width * cells),
            nn.LeakyReLU(0.1),
            nn.Unflatten(1, (width, size // 4, size // 4)),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.LeakyReLU(0.1),
            last,
        )
        self.colour = nn.Sequential(nn.Linear(dim, width), nn.LeakyReLU(0.1), nn.Linear(width, channels))
        self.background = nn.Parameter(torch.zeros(channels))
        self.features = nn.Sequential(
            nn.Conv2d(channels + 2, width, 4, 4), nn.LeakyReLU(0.1), nn.Conv2d(width, width, 3, 1, 1), nn.LeakyReLU(0.1)
        )
        self.start = nn.Parameter(torch.randn(slots, dim))
        self.key_value, self.query = nn.Linear(width, 2 * dim), nn.Linear(dim, dim)
        self.cell, self.norm = nn.GRUCell(dim, dim), nn.LayerNorm(dim)

    def encode(
        self,
        image: Float[Tensor, "*batch channels size size"],
        masks: Float[Tensor, "*batch objects size size"] | None = None,
    ) -> Float[Tensor, "*batch objects dim"]:
        """Return the slots of pictures: of the objects whose masks are given, or of the parts that slots compete for.

        Raises:
            TypeError: a tensor is not floating, or of another dtype.
            ValueError: shapes that do not fit, or more objects than slots.
        """
        check_floating("image", image)
        frame = (self.channels, self.size, self.size)
        if tuple(image.shape[-3:]) != frame:
            raise ValueError(f"image must have shape (..., {', '.join(map(str, frame))}), got {tuple(image.shape)}")
        if masks is None:
            return self._compete(image)
        check_same_dtype(image=image, masks=check_floating("masks", masks))
        if masks.shape != (*image.shape[:-3], *masks.shape[-3:-2], self.size, self.size):
            raise ValueError(f"masks must be of the pictures, {tuple(image.shape)}, got {tuple(masks.shape)}")
        if masks.shape[-3] > self.slots:
            raise ValueError(f"masks must be of at most {self.slots} objects, the slots, got {masks.shape[-3]}")
        seen = torch.cat([image[..., None, :, :, :] * masks[..., None, :, :], masks[..., None, :, :]], -3)
        codes: Tensor = self.encoder(seen.reshape(-1, *seen.shape[-3:]))
        return codes.reshape(*masks.shape[:-2], self.dim)

    def decode(self, slots: Float[Tensor, "*batch objects dim"]) -> DecodedSlots:
        """Return the scenes that slots make.

        Raises:
            TypeError: ``slots`` is not floating.
            ValueError: its shape does not fit.
        """
        if check_floating("slots", slots).ndim < 2 or slots.shape[-1] != self.dim:
            raise ValueError(f"slots must have shape (..., objects, {self.dim}), got {tuple(slots.shape)}")
        tiles = self.decoder(slots.reshape(-1, self.dim)).unflatten(1, (-1, 4, 4))
        drawn = tiles.permute(0, 1, 4, 2, 5, 3).reshape(*slots.shape[:-1], tiles.shape[1], self.size, self.size)
        texture, logits = drawn[..., :-1, :, :], drawn[..., -1, :, :]
        colour = self.colour(slots)[..., None, None]
        parts = colour + texture if texture.shape[-3] else colour.expand(*colour.shape[:-2], self.size, self.size)
        alphas = torch.cat([logits, torch.zeros_like(logits[..., :1, :, :])], -3).softmax(-3)
        image = (alphas[..., :-1, None, :, :] * parts).sum(-4)
        image = image + alphas[..., -1:, :, :] * self.background[:, None, None]
        return DecodedSlots(image, parts, alphas[..., :-1, :, :])

    def _compete(self, image: Tensor) -> Tensor:
        line = torch.linspace(-1, 1, self.size, dtype=image.dtype, device=image.device)
        flat = image.reshape(-1, *image.shape[-3:])
        places = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(flat), -1, -1, -1)
        key, value = self.key_value(self.features(torch.cat([flat, places], 1)).flatten(2).mT).chunk(2, -1)
        slots = self.start.expand(len(flat), -1, -1)
        for _ in range(3):
            share = (key @ self.query(self.norm(slots)).mT / self.dim**0.5).softmax(-1) + 1e-6
            mean = (share / share.sum(1, keepdim=True)).mT @ value
            slots = self.cell(mean.reshape(-1, self.dim), slots.reshape(-1, self.dim)).view_as(slots)
        return slots.reshape(*image.shape[:-3], self.slots, self.dim)


class ObjectScorer(nn.Module):
    r"""Score the values of attributes of an object, from a picture and the object's mask.

    What the object is like is scored by the pixels around it: the first attribute by two convolutions, which see its
    form, the others by one hidden layer. Where it is is scored by the profiles of the mask, its means over columns and
    over rows, linearly.

    Args:
        like: numbers of values of each attribute of the object itself, at least two.
        where: numbers of values of its row and of its column.
        channels: of a picture, >= 1.
        size: pixels of a side, >= 1.
        side: pixels of a side of what is cut out around the object, even.
        width: channels of the second convolution, even.

    Raises:
        TypeError: a number is no integer.
        ValueError: it is out of range.

    Example:
        >>> scorer = ObjectScorer((5, 7), (4, 4), size=16)
        >>> scorer(torch.rand(2, 3, 4, 16, 16)).shape
        torch.Size([2, 3, 20])

    References:
        Sehgal et al. (2024), Neurosymbolic grounding for compositional world models, section 3: what a vision-language
        model is asked there.
    """

    def __init__(
        self,
        like: Sequence[int],
        where: tuple[int, int],
        *,
        channels: int = 3,
        size: int = 32,
        side: int = 8,
        width: int = 48,
    ) -> None:
        super().__init__()
        if len(like) < 2:
            raise ValueError(f"like must have two numbers of values or more, got {like}")
        for name, value in (("channels", channels), ("size", size), *(("values", n) for n in (*like, *where))):
            check_integer(name, value, 1)
        if check_integer("side", side, 2) % 2 or check_integer("width", width, 2) % 2:
            raise ValueError(f"side and width must be even, got {side} and {width}")
        self.channels, self.size, self.side = channels, size, side
        self.form = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * (side // 2) ** 2, like[0]),
        )
        pixels = channels * side**2
        self.tint = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, sum(like[1:])))
        self.row, self.column = nn.Linear(size, where[0]), nn.Linear(size, where[1])

    def forward(self, objects: Float[Tensor, "*batch channels_and_mask size size"]) -> Float[Tensor, "*batch values"]:
        """Return logits of the values of all attributes, those of the place last.

        Args:
            objects: ``[*batch, channels + 1, size, size]`` the picture and, as last channel, the mask of the object.

        Raises:
            TypeError: ``objects`` is not floating.
            ValueError: its shape does not fit.
        """
        frame = (self.channels + 1, self.size, self.size)
        if check_floating("objects", objects).ndim < 3 or tuple(objects.shape[-3:]) != frame:
            raise ValueError(f"objects must have shape (..., {', '.join(map(str, frame))}), got {tuple(objects.shape)}")
        flat = objects.reshape(-1, *frame)
        crop, mask = object_crops(flat[:, :-1], flat[:, -1:], self.side)[:, 0], flat[:, -1]
        joined = torch.cat([self.form(crop), self.tint(crop), self.row(mask.mean(2)), self.column(mask.mean(1))], -1)
        return joined.reshape(*objects.shape[:-3], joined.shape[-1])


def assign_slots(a: Float[Tensor, "*#batch slots dim"], b: Float[Tensor, "*#batch slots dim"]) -> AssignedSlots:
    r"""Put the slots of ``b`` into the order of ``a`` that makes :math:`\sum_i |a_i - b_{\pi(i)}|^2` least.

    Args:
        a: ``[*batch, slots, dim]``.
        b: ``[*batch, slots, dim]``, of as many slots.

    Returns:
        :class:`AssignedSlots`; slots and distance are differentiable, with the order held.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes that do not fit, or a number that is not finite.

    Example:
        >>> found = assign_slots(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]]))
        >>> found.order.tolist(), found.distance.item()
        ([1, 0], 2.0)

    References:
        Kuhn (1955), The Hungarian method for the assignment problem; Locatello et al. (2020), section 3.2, for sets.
    """
    check_same_dtype(a=check_floating("a", a), b=check_floating("b", b))
    if a.ndim < 2 or b.ndim < 2 or a.shape[-2:] != b.shape[-2:] or not a.shape[-2]:
        raise ValueError(f"a and b must have the same slots [..., slots, dim], got {tuple(a.shape)}, {tuple(b.shape)}")
    for name, value in (("a", a), ("b", b)):
        if can_look(value):
            check_finite(name, value)
    batch = check_broadcast(a=tuple(a.shape[:-2]), b=tuple(b.shape[:-2]))
    a, b = (x.expand(*batch, *x.shape[-2:]) for x in (a, b))
    scale = torch.maximum(a.detach().abs().amax((-2, -1)), b.detach().abs().amax((-2, -1)))[..., None, None]
    scale = torch.where(scale > 0, scale, 1)
    apart = (a / scale).detach()[..., :, None, :] - (b / scale).detach()[..., None, :, :]
    order = assignment(apart.square().sum(-1)).columns
    slots = b.gather(-2, order[..., None].expand_as(b))
    return AssignedSlots(slots, order, (a - slots).square().sum((-2, -1)))


def retrieval_metrics(
    predicted: Float[Tensor, "n *shape"], candidates: Float[Tensor, "n *shape"], *, k: int = 1
) -> RetrievalMetrics:
    """Rank each prediction's own scene among all by the Euclidean distance.

    Args:
        predicted: ``[n, *shape]``, n >= 1.
        candidates: ``[n, *shape]``; the one of the same place is the prediction's own.
        k: how many of the nearest count as a hit, in 1..n.

    Returns:
        :class:`RetrievalMetrics`.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes differ, are empty, or ``k`` is out of range.

    Example:
        >>> scenes = torch.tensor([[0.0], [1.0], [5.0]])
        >>> found = retrieval_metrics(torch.tensor([[0.1], [0.2], [9.0]]), scenes)
        >>> found.ranks.tolist(), round(found.hits, 2), round(found.reciprocal_rank, 2)
        ([1, 2, 1], 0.67, 0.83)

    References:
        Kipf, van der Pol, Welling (2020), Contrastive learning of structured world models, section 4.3.
    """
    check_same_dtype(
        predicted=check_floating("predicted", predicted), candidates=check_floating("candidates", candidates)
    )
    if predicted.ndim < 1 or predicted.shape != candidates.shape or not predicted.numel():
        raise ValueError(
            f"predicted and candidates must have one shape, not empty, got {tuple(predicted.shape)} and "
            f"{tuple(candidates.shape)}"
        )
    check_integer("k", k, 1, len(predicted))
    with torch.no_grad():
        a, b = (x.reshape(len(x), -1).double() for x in (predicted, candidates))
        apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        ranks = (apart <= apart.diagonal()[:, None]).sum(1)
        return RetrievalMetrics(float((ranks <= k).double().mean()), float((1 / ranks.double()).mean()), ranks)


def object_crops(
    image: Float[Tensor, "*batch channels height width"], masks: Float[Tensor, "*batch objects height width"], side: int
) -> Float[Tensor, "*batch objects channels side side"]:
    """Cut a square out of a picture around each object, around the middle of where its mask is above a half.

    Args:
        image: ``[*batch, channels, height, width]``.
        masks: ``[*batch, objects, height, width]``; an object whose mask is nowhere above a half has its middle at 0.
        side: of the squares, >= 1; what is outside of the picture is 0.

    Returns:
        ``[*batch, objects, channels, side, side]``, differentiable in the picture.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: shapes that do not fit.

    Example:
        >>> masks = torch.zeros(1, 5, 5)
        >>> masks[0, 1:4, 3] = 1.0
        >>> object_crops(masks, masks, 3)[0, 0].tolist()
        [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]

    References:
        Sehgal et al. (2024), Neurosymbolic grounding for compositional world models, section 3: objects are shown to
        the vision-language model one by one.
    """
    check_floating("image", image)
    check_floating("masks", masks)
    check_integer("side", side, 1)
    if image.ndim < 3 or 0 in image.shape[-3:]:
        raise ValueError(
            f"image must have shape (..., channels, height, width), none of them 0, got {tuple(image.shape)}"
        )
    if masks.ndim < 3 or masks.shape != (*image.shape[:-3], *masks.shape[-3:-2], *image.shape[-2:]):
        raise ValueError(f"masks must be of the pictures, {tuple(image.shape)}, got {tuple(masks.shape)}")
    there = masks.detach() > 0.5
    channels = image.shape[-3]
    padded = F.pad(image, [side] * 4)
    padded = padded[..., None, :, :, :].expand(*masks.shape[:-2], *padded.shape[-3:])
    for axis in (-1, -2):  # the columns of that dimension, then the rows
        line = there.any(-2 if axis == -1 else -1)
        numbers = torch.arange(line.shape[-1], device=line.device)
        low = torch.where(line, numbers, line.shape[-1]).amin(-1)
        high = torch.where(line, numbers, -1).amax(-1)
        start = torch.where(line.any(-1), (low + high + 1) // 2, 0) + side - side // 2
        index = start[..., None] + torch.arange(side, device=line.device)
        index = index[..., None, None, :] if axis == -1 else index[..., None, :, None]
        shape = list(padded.shape)
        shape[axis] = side
        padded = padded.gather(axis, index.expand(shape))
    return padded.reshape(*masks.shape[:-2], channels, side, side)
