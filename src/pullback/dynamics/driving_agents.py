"""Who drives: students of a frozen teacher, by true masks or by those that are seen in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import check_choice, check_floating, check_positive, check_tensor
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Bool, Float, Shaped
from pullback.dynamics.adapters import FrozenBackbone
from pullback.dynamics.driving_networks import DrivingPlanner, GroundPerception
from pullback.dynamics.driving_town import DrivingState
from pullback.dynamics.driving_views import DrivingCamera
from pullback.dynamics.driving_world import DrivingWorld

__all__ = ["DrivingAgent", "PlannerView", "StudentPlanner", "perceive", "with_speed"]

_ROUTE = 1  # the mask that is told by the navigation
_SIDE = 8  # features for adapters
_PART = 32  # pictures at once


class PlannerView(NamedTuple):
    """What a planner is shown.

    Attributes:
        masks: ``[batch, 9, 32, 32]`` those of :attr:`DrivingWorld.MASKS` and the speed.
        features: ``[batch, 25, 16, 16]`` of perception, and the route.
    """

    masks: Float[Tensor, "batch 9 32 32"]
    features: Float[Tensor, "batch 25 16 16"]


def with_speed(
    masks: Shaped[Tensor, "batch masks rows columns"], speed: Float[Tensor, "batch"], *, fastest: float = 8.0
) -> Float[Tensor, "batch masks_and_one rows columns"]:
    """Return masks and one more, which is the speed in units of the fastest everywhere.

    Args:
        masks: ``[batch, masks, rows, columns]``, booleans or numbers.
        speed: ``[batch]`` [m/s].
        fastest: > 0 [m/s].

    Raises:
        TypeError: the speed is not floating.
        ValueError: shapes do not fit, or ``fastest`` is not positive.

    Example:
        >>> with_speed(torch.zeros(2, 8, 32, 32), torch.tensor([0.0, 4.0]))[:, 8, 0, 0].tolist()
        [0.0, 0.5]
    """
    if check_tensor("masks", masks).ndim != 4:
        raise ValueError(f"masks must have shape [batch, masks, rows, columns], got {tuple(masks.shape)}")
    if check_floating("speed", speed).shape != masks.shape[:1]:
        raise ValueError(f"speed must have shape [{len(masks)}] as masks have, got {tuple(speed.shape)}")
    check_positive("fastest", fastest)
    shown = (speed / fastest)[:, None, None, None].expand(-1, 1, *masks.shape[-2:])
    return torch.cat([masks.to(speed.dtype), shown], 1)


def perceive(
    see: GroundPerception,
    images: Shaped[Tensor, "batch channels 48 96"],
    route: Bool[Tensor, "batch 1 32 32"] | Float[Tensor, "batch 1 32 32"],
    speed: Float[Tensor, "batch"],
) -> PlannerView:
    """Return what a planner is shown of pictures: masks thresholded hard, with straight-through gradients.

    Args:
        see: perception of seven masks with 24 features, such as ``GroundPerception(ground, channels=6, masks=7)``.
        images: ``[batch, channels, 48, 96]`` in [0, 1], or bytes.
        route: ``[batch, 1, 32, 32]`` the mask that is told, not seen.
        speed: ``[batch]`` [m/s].

    Raises:
        TypeError, ValueError: as of :class:`GroundPerception` and :func:`with_speed`.

    Example:
        >>> see = GroundPerception(torch.zeros(32, 32, 2), channels=3, masks=7)
        >>> perceive(see, torch.rand(2, 3, 48, 96), torch.zeros(2, 1, 32, 32), torch.zeros(2)).masks.shape
        torch.Size([2, 9, 32, 32])
    """
    if len(images) > _PART:
        split = zip(images.split(_PART), route.split(_PART), speed.split(_PART), strict=True)
        return PlannerView(*(torch.cat(x) for x in zip(*(perceive(see, *part) for part in split), strict=True)))
    features, logits = see(images.float().div_(255) if images.dtype == torch.uint8 else images)
    soft, told = logits.sigmoid(), route.to(logits.dtype)
    masks = replace_gradient((logits > 0).to(soft.dtype), soft)
    masks = torch.cat([masks[:, :_ROUTE], told, masks[:, _ROUTE:]], 1)
    return PlannerView(with_speed(masks, speed), torch.cat([features, F.avg_pool2d(told, 2)], 1))


class StudentPlanner(nn.Module):
    """A frozen teacher that is shown what a student sees, with adapters or as it is, or its form from scratch.

    Args:
        teacher: the stages of a :class:`DrivingPlanner` of nine masks. It is not among the modules of the student.
        kind: ``"plain"`` for the teacher as it is, ``"adapted"`` with an adapter after each layer but the laws, beside
            eight features that are made of the view's, ``"cloned"`` for another :class:`DrivingPlanner`, of the masks
            and these eight.

    Raises:
        ValueError: another ``kind``.

    Example:
        >>> teacher = FrozenBackbone(DrivingPlanner(9).stages)
        >>> view = PlannerView(torch.zeros(2, 9, 32, 32), torch.zeros(2, 25, 16, 16))
        >>> plain, adapted = (DrivingPlanner.law(StudentPlanner(teacher, k)(view)) for k in ("plain", "adapted"))
        >>> torch.equal(plain.alpha, adapted.alpha)  # adapters start as the identity
        True

    References:
        Jia et al. (2023), DriveAdapter, arXiv 2308.00398, section 3.2.
    """

    def __init__(self, teacher: FrozenBackbone, kind: str) -> None:
        super().__init__()
        check_choice("kind", kind, ("plain", "adapted", "cloned"))
        self.kind, self._teacher = kind, [teacher]
        self.side = nn.Sequential(nn.Conv2d(25, _SIDE, 1), nn.ReLU())
        self.adapters = DrivingPlanner.adapters(_SIDE) if kind == "adapted" else nn.ModuleDict()
        self.cloned = DrivingPlanner(9 + _SIDE) if kind == "cloned" else nn.Identity()

    @property
    def teacher(self) -> FrozenBackbone:
        """Return the teacher."""
        return self._teacher[0]

    def forward(self, view: PlannerView) -> dict[str, Tensor]:
        """Return what follows each layer, by name; the laws of :meth:`DrivingPlanner.law` at the end."""
        masks, side = view.masks, self.side(view.features)
        if self.kind == "cloned":
            found: dict[str, Tensor] = self.cloned(torch.cat([masks, F.interpolate(side, scale_factor=2)], 1))
            return found
        if self.kind == "adapted":
            return self.teacher(masks, dict(self.adapters.items()), side)
        return self.teacher(masks)


class DrivingAgent:
    """What :meth:`DrivingWorld.drive` takes: students that drive an equal part of the scenes each.

    Args:
        world: of the scenes.
        students: one at least.
        see: perception, of the picture of now and of the step before; without one the masks are true.
        camera: for perception.
        rule: whether :meth:`DrivingWorld.must_brake` overrides the pedal.
        generator: of the camera's noise.

    Raises:
        ValueError: no students, or perception without a camera.

    Example:
        >>> world, teacher = DrivingWorld(), FrozenBackbone(DrivingPlanner(9).stages)
        >>> agent = DrivingAgent(world, [StudentPlanner(teacher, "plain")])
        >>> agent(world.sample(2, generator=torch.Generator().manual_seed(0))).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        world: DrivingWorld,
        students: Sequence[StudentPlanner],
        see: GroundPerception | None = None,
        camera: DrivingCamera | None = None,
        *,
        rule: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if not students:
            raise ValueError("students must hold at least one planner")
        if (see is None) != (camera is None):
            raise ValueError("perception needs a camera, and a camera perception")
        self.world, self.students, self.rule, self.generator = world, list(students), rule, generator
        self.see, self.camera = see, camera
        self._before: Tensor | None = None

    @torch.no_grad()
    def __call__(self, state: DrivingState) -> Float[Tensor, "batch 2"]:
        """Return the actions, ``[batch, 2]``."""
        masks, speed = self.world.render_bev(state), state.ego[:, 3]
        if self.see is None or self.camera is None:
            view = PlannerView(with_speed(masks, speed), masks.new_zeros(len(masks), 25, 16, 16))
        else:
            new = self.camera(state, generator=self.generator)
            both = torch.cat([new, new if self._before is None else self._before], 1)
            view, self._before = perceive(self.see, both, masks[:, _ROUTE : _ROUTE + 1], speed), new
        parts = zip(self.students, *(x.chunk(len(self.students)) for x in view), strict=True)
        action = torch.cat([DrivingPlanner.law(student(PlannerView(*part))).mean for student, *part in parts])
        if self.rule:
            action[self.world.must_brake(state), 0] = -1.0
        return action
