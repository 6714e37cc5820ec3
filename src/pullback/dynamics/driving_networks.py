"""Networks that drive: a planner on masks from above, layer by layer, and what turns pictures into such masks."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import check_floating, check_integer, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.dynamics.adapters import Adapter

__all__ = ["ActionLaw", "DrivingPlanner", "GroundPerception", "GroundView"]

_SIDE = 32  # of the masks


class ActionLaw(NamedTuple):
    """Beta laws of actions, moved from [0, 1] to [-1, 1].

    Attributes:
        alpha: ``[*batch, actions]`` > 0.
        beta: ``[*batch, actions]`` > 0.
    """

    alpha: Float[Tensor, "*batch actions"]
    beta: Float[Tensor, "*batch actions"]

    @property
    def mean(self) -> Float[Tensor, "*batch actions"]:
        """Return the mean action."""
        return 2 * self.alpha / (self.alpha + self.beta) - 1

    def draw(self, *, generator: torch.Generator | None = None) -> Float[Tensor, "*batch actions"]:
        """Return normal actions of the laws' mean and variance, cut to [-1, 1], with derivatives in both."""
        total = self.alpha + self.beta
        spread = 2 * (self.alpha * self.beta / (total + 1)).sqrt() / total
        device = drawing_device(generator, spread)
        noise = torch.randn(spread.shape, generator=generator, device=device, dtype=spread.dtype)
        return (self.mean + spread * noise.to(spread.device)).clamp(-1, 1)


class DrivingPlanner(nn.Module):
    r"""Six convolutions, a linear layer and a policy layer, then Beta laws of pedal and steering.

    The laws have :math:`\alpha, \beta = 1 + \mathrm{softplus}(\cdot)`, of 5 each or so at first: one hump, not wide.

    Args:
        channels: masks that it takes, 32 x 32 each, >= 1.

    Attributes:
        stages: ``nn.ModuleDict`` of :attr:`LAYERS` and ``"law"``, in order: what
            :class:`~pullback.dynamics.FrozenBackbone` takes.

    Raises:
        ValueError: ``channels`` < 1.

    Example:
        >>> planner = DrivingPlanner(9)
        >>> law = planner.law(planner(torch.zeros(2, 9, 32, 32)))
        >>> law.mean.shape, bool((law.alpha > 1).all()), planner(torch.zeros(2, 9, 32, 32))["conv6"].shape
        (torch.Size([2, 2]), True, torch.Size([2, 32, 2, 2]))

    References:
        Zhang et al. (2021), End-to-end urban driving by imitating a reinforcement learning coach, arXiv 2108.08265,
        with smaller layers and the speed as a mask instead of a network of its own.
    """

    LAYERS: ClassVar[dict[str, int]] = {
        **{"conv1": 12, "conv2": 16, "conv3": 24, "conv4": 32, "conv5": 32, "conv6": 32},
        **{"linear": 64, "policy": 64},
    }
    """Channels after each layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, 1)
        self.stages = nn.ModuleDict()
        for name, size in self.LAYERS.items():
            if name.startswith("conv"):
                stride = 1 if name in ("conv3", "conv5") else 2
                self.stages[name] = nn.Sequential(nn.Conv2d(channels, size, 3, stride, 1), nn.ReLU())
            elif name == "linear":
                self.stages[name] = nn.Sequential(nn.Flatten(), nn.Linear(4 * channels, size), nn.ReLU())
            else:
                self.stages[name] = nn.Sequential(nn.Linear(channels, size), nn.ReLU())
            channels = size
        law = nn.Linear(channels, 4)
        self.stages["law"] = nn.Sequential(law, nn.Softplus())
        _begin(self, last=law)
        nn.init.constant_(law.bias, 4.0)

    def forward(self, masks: Float[Tensor, "batch channels 32 32"]) -> dict[str, Tensor]:
        """Return what follows each layer, by name.

        Raises:
            TypeError: the masks are not floating.
            ValueError: masks of another shape.
        """
        check_shape("masks", check_floating("masks", masks), (None, self.channels, _SIDE, _SIDE))
        found = {}
        for name, stage in self.stages.items():
            masks = found[name] = stage(masks)
        return found

    @staticmethod
    def law(features: dict[str, Tensor]) -> ActionLaw:
        """Return the laws of pedal and steering that features end with."""
        alpha, beta = (1 + features["law"]).chunk(2, -1)
        return ActionLaw(alpha, beta)

    @classmethod
    def adapters(cls, side: int) -> nn.ModuleDict:
        """Return a full-width :class:`~pullback.dynamics.Adapter` a layer but the laws, beside ``side`` features."""
        return nn.ModuleDict(
            {
                name: Adapter(size, side, reduction=1, kind="conv" if name.startswith("conv") else "mlp")
                for name, size in cls.LAYERS.items()
            }
        )


class GroundView(NamedTuple):
    """What pictures look like from above.

    Attributes:
        features: ``[batch, features, 16, 16]`` a feature vector for each 2 x 2 m.
        logits: ``[batch, masks, 32, 32]`` of masks.
    """

    features: Float[Tensor, "batch features 16 16"]
    logits: Float[Tensor, "batch masks 32 32"]


class GroundPerception(nn.Module):
    r"""Pictures to masks from above: what is seen is laid on the ground, and a small U-net looks at it there.

    Pixels and features of them are taken from where the camera sees each cell of the ground (inverse perspective
    mapping). What stands upright is smeared there, and what hangs above it, like lights, is not there at all: a vector
    made of the upper third of the picture is added to every cell.

    Args:
        ground: ``[32, 32, 2]`` where in the picture the cells are, such as :meth:`DrivingCamera.ground`.
        channels: of the pictures, >= 1; two pictures of one camera are stacked.
        masks: that are told, >= 1.
        features: of a cell of 2 x 2 m, >= 1.

    Raises:
        TypeError: ``ground`` is not floating.
        ValueError: it has another shape, or a number is out of range.

    Example:
        >>> see = GroundPerception(torch.zeros(32, 32, 2), channels=3, masks=5)
        >>> view = see(torch.zeros(2, 3, 48, 96))
        >>> view.features.shape, view.logits.shape
        (torch.Size([2, 24, 16, 16]), torch.Size([2, 5, 32, 32]))

    References:
        Mallot, Buelthoff, Little, Bohrer (1991), Inverse perspective mapping simplifies optical flow computation and
        obstacle detection, Biological Cybernetics 64.
    """

    ground: Tensor

    def __init__(self, ground: Float[Tensor, "32 32 2"], *, channels: int, masks: int, features: int = 24) -> None:
        super().__init__()
        check_shape("ground", check_floating("ground", ground), (_SIDE, _SIDE, 2))
        self.channels, wide = check_integer("channels", channels, 1), check_integer("features", features, 1)
        check_integer("masks", masks, 1)
        self.register_buffer("ground", ground[None].clone())
        relu = nn.ReLU()
        self.stem = nn.Sequential(nn.Conv2d(channels, 16, 4, 4), relu, nn.Conv2d(16, 16, 3, 1, 1), relu)
        taken = channels + 16 + 1
        self.near = nn.Sequential(nn.Conv2d(taken, wide, 3, 2, 1), relu, nn.Conv2d(wide, wide, 3, 1, 1), relu)
        self.deep = nn.Sequential(nn.Conv2d(wide, 32, 3, 2, 1), relu, nn.Conv2d(32, 32, 3, 1, 1), relu)
        self.back = nn.Conv2d(32, wide, 1)
        self.above = nn.Sequential(nn.Flatten(), nn.Linear(16 * 4 * 24, 32), relu, nn.Linear(32, wide))
        self.last = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1), relu)
        told = nn.Conv2d(wide, 4 * masks, 1)
        self.head = nn.Sequential(told, nn.PixelShuffle(2))
        _begin(self, last=told)

    @torch.no_grad()
    def expect(self, rates: Float[Tensor, "masks"]) -> None:
        """Begin with logits around those of how often a cell of each mask is set: rare ones are found much sooner.

        Args:
            rates: ``[masks]`` in (0, 1).

        Raises:
            TypeError: they are not floating.
            ValueError: they have another shape or range.
        """
        _, bias = self.head.parameters()
        check_shape("rates", check_floating("rates", rates), (len(bias) // 4,))
        if not bool(((rates > 0) & (rates < 1)).all()):
            raise ValueError(f"rates must be in (0, 1), got {rates.tolist()}")
        bias.copy_(rates.logit().repeat_interleave(4))

    def forward(self, images: Float[Tensor, "batch channels 48 96"]) -> GroundView:
        """Return features and logits.

        Args:
            images: ``[batch, channels, 48, 96]`` in [0, 1].

        Raises:
            TypeError: the images are not floating.
            ValueError: images of other shapes.
        """
        check_shape("images", check_floating("images", images), (None, self.channels, 48, 96))
        stem, grid = self.stem(images), self.ground.expand(len(images), -1, -1, -1)
        pixels, seen = (F.grid_sample(x, grid, align_corners=False) for x in (images, stem))
        inside = (self.ground.abs() <= 1).all(-1).to(stem).expand(len(images), 1, -1, -1)
        near = self.near(torch.cat([pixels - 0.5 * inside, seen, inside], 1))
        above = self.above(stem[:, :, :4])[..., None, None]
        features = self.last(near + above + F.interpolate(self.back(self.deep(near)), scale_factor=2))
        return GroundView(features, self.head(features))


def _begin(network: nn.Module, last: nn.Conv2d | nn.Linear) -> None:
    """Draw weights such that layers keep the size of what passes, and a third of that in the last one."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
    last.weight.data.mul_(0.3)
