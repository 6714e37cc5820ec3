"""Worlds of polygons, perturbed demonstrations, feasibility and the policy of modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pullback import dynamics


def _square(left: float) -> list[list[float]]:
    return [[left, 0.0], [left + 1, 0.0], [left + 1, 1.0], [left, 1.0]]


WORLD = dynamics.PolygonWorld(torch.tensor([_square(0.0), _square(1.0), _square(2.0)]))


def test_modes_and_validity_of_a_plane_of_squares() -> None:
    points = torch.tensor([[-1.0, 0.5], [0.5, 0.5], [1.5, 0.2], [2.5, 0.9], [2.5, 1.1]])
    assert WORLD.mode(points).tolist() == [0, 1, 2, 3, 0]
    paths = torch.stack([points[[0, 1, 2, 3]], points[[0, 1, 3, 3]], points[[0, 1, 0, 1]], points[[2, 0, 2, 3]]])
    assert WORLD.valid(paths).tolist() == [True, False, False, False]
    back = points[[0, 1, 2, 0, 1, 2, 3]]
    assert bool(WORLD.valid(back))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_worlds_are_convex_and_connected_and_their_demonstrations_succeed(count: int) -> None:
    g = torch.Generator().manual_seed(count)
    for _ in range(20):
        world = dynamics.polygon_world(count, generator=g)
        edge = world.vertices.roll(-1, 1) - world.vertices
        after = edge.roll(-1, 1)
        assert bool((edge[..., 0] * after[..., 1] - edge[..., 1] * after[..., 0] > 0).all())  # left turns alone
        assert torch.equal(world.vertices[:-1, [1, 2]], world.vertices[1:, [0, 3]])
        demonstrations = world.demonstrations(3, 80, noise=0.02, generator=g)
        assert bool(world.valid(demonstrations).all())
        length = demonstrations.diff(dim=1).norm(dim=-1)
        assert bool((length <= length.mean(1, keepdim=True) * 1.1).all())  # equal speed, but where a corner is cut


def test_perturbations_are_drawn_to_the_target_and_fade_out() -> None:
    still = torch.zeros(1, 41, 1, dtype=torch.float64)
    moved = dynamics.perturb_trajectories(
        still, count=200, low=1.0, high=1.0 + 1e-9, generator=torch.Generator().manual_seed(0)
    )[..., 0]
    peak, place = moved.max(1)
    logs = -moved.clamp(min=1e-300).log()
    for row, at, top in zip(logs, place.tolist(), peak.tolist(), strict=True):
        if top < 1 - 1e-6 or not 0 < at < 40:
            continue
        assert row[at - 1].item() == pytest.approx(row[at + 1].item(), abs=1e-6)  # symmetric about the middle
        width = (5 / row[at + 1]).sqrt()  # half of the interval, in steps: a whole or half number
        assert (2 * width).item() == pytest.approx(round((2 * width).item()), abs=1e-6)


def test_feasibility_of_certain_modes_is_the_table() -> None:
    for reversible in (True, False):
        table = dynamics.feasibility_matrix(["a", "b", "c", "d"], reversible=reversible)
        pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        found = dynamics.mode_feasibility(torch.eye(4)[pairs], table)[:, 0]
        assert torch.equal(found, table.flatten())
    assert table[3].tolist() == [-3.0, -2.0, -1.0, 0.0]
    with pytest.raises(ValueError, match="plan must name two or more"):
        dynamics.feasibility_matrix(["alone"])


class Strips(dynamics.ModeClassifier):
    """Mode 0 left of x = 0, mode 1 for 0 < x < 2, mode 2 beyond, but above y = 1 at once mode 2: known boundaries."""

    def __init__(self) -> None:
        super().__init__(2, 3, guesses=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        last = torch.logaddexp(20 * (a - 2), 20 * (b - 1))
        return torch.stack([-20 * a, torch.zeros_like(a), last], -1)[..., None, :]


def test_the_policy_keeps_out_of_what_may_not_follow_and_arrives() -> None:
    demonstrations = torch.stack([torch.linspace(-1, 3, 41), torch.full((41,), 0.0)], -1)[None]
    classifier = Strips()
    policy = dynamics.ModePolicy(classifier, demonstrations, dynamics.feasibility_matrix(["a", "b", "c"]))
    assert policy.mode(policy.targets).tolist() == [1, 2, 2]
    x = torch.tensor([[-1.0, 0.0], [-2.0, -2.0], [-1.0, 0.8]])
    modes = []
    for _ in range(200):
        modes.append(policy.mode(x))
        x = x + 0.05 * policy.velocity(x)
    seen = torch.stack(modes, 1)
    assert bool((seen.diff(dim=1) <= 1).all())
    assert seen[:, -1].tolist() == [2, 2, 2]
    assert torch.allclose(x, torch.tensor([[3.0, 0.0]]).expand(3, 2), atol=0.1)


def test_a_demonstration_that_never_enters_a_mode_gives_no_target() -> None:
    whole = torch.stack([torch.linspace(-1, 3, 41), torch.full((41,), 0.0)], -1)
    idle = torch.tensor([-5.0, 0.0]).expand(41, 2)
    table = dynamics.feasibility_matrix(["a", "b", "c"])
    alone, both = (dynamics.ModePolicy(Strips(), torch.stack(d), table) for d in ([whole], [whole, idle]))
    entered = alone.targets[0] - 0.3 * (alone.targets[1] - 0.3 * whole[-1]) / 0.7  # undo the step further in
    again = both.targets[0] - 0.3 * (both.targets[1] - 0.3 * both.targets[2]) / 0.7
    assert torch.allclose(entered, again, atol=1e-6)


@pytest.mark.parametrize(("demos", "table"), [((0, 5, 2), (3, 3)), ((1, 5, 3), (3, 3)), ((1, 5, 2), (2, 2))])
def test_the_policy_refuses_shapes_that_do_not_fit(demos: tuple[int, ...], table: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must (be|have)"):
        dynamics.ModePolicy(Strips(), torch.zeros(demos), torch.zeros(table))


def test_calling_everything_a_failure_does_not_pay() -> None:
    """With the weights of the system: a success called a failure costs more than an explained failure gains."""
    skipping = torch.full((4, 6, 1, 3), -30.0)
    skipping[:, :3, 0, 0] = skipping[:, 3:, 0, 2] = 30.0  # from mode 0 to mode 2 at once, once
    going = skipping.clone()
    going[:, 2, 0] = torch.tensor([-30.0, 30.0, -30.0])
    table = dynamics.feasibility_matrix(["a", "b", "c"])
    losses = {
        name: dynamics.grounding_loss(*pair, table, weights=(1.5 * 4 * 5, 4.0, 10.0)).guesses.item()
        for name, pair in {"all fail": (skipping, skipping), "none": (going, going), "told": (going, skipping)}.items()
    }
    assert losses["told"] == pytest.approx(-4)
    assert losses["none"] == pytest.approx(0, abs=1e-6)
    assert losses["all fail"] == pytest.approx(2)


def test_the_best_guess_carries_the_loss() -> None:
    g = torch.Generator().manual_seed(0)
    success, failure = (torch.randn(n, 5, 4, 3, generator=g) for n in (2, 3))
    found = dynamics.grounding_loss(success, failure, dynamics.feasibility_matrix(["a", "b", "c"]), spread=0.25)
    assert int(found.best) == int(found.guesses.argmin())
    assert found.total.item() == pytest.approx((0.25 * found.guesses.mean() + 0.75 * found.guesses.min()).item())
