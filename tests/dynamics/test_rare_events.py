"""Biases, basins, free energies and hills against sums by hand, scipy, histograms and differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tests.contracts.law import seeded
from torch import Tensor

from pullback import dynamics

POINTS = torch.randn(400, 3, generator=seeded(), dtype=torch.float64) @ torch.tensor(
    [[1.0, 0.5, 0.0], [0.0, 2.0, 0.1], [0.3, 0.0, 0.02]], dtype=torch.float64
)


def test_batches_of_trajectories_add_up_to_the_gradient_of_all() -> None:
    g = seeded()
    bias = dynamics.GaussianGridBias((0.0, 0.0), (1.0, 1.0), resolution=3, width=0.5, height=0.1).double()
    x, a = (torch.rand(5, 2, 7, 2, generator=g, dtype=torch.float64) for _ in "xa")
    whole = torch.autograd.grad((bias.force(x) * a).sum(), bias.heights)[0]
    total, sizes = torch.zeros_like(whole), []
    seen: list[Tensor] = []

    def force(z: Tensor) -> Tensor:
        seen.append(z)
        return bias.force(z)

    for loss in dynamics.minibatch_parameter_gradient(force, x, a, batch=4, generator=g):
        sizes.append(seen[-1].shape[1])
        total += torch.autograd.grad(loss, bias.heights)[0] * sizes[-1] / 14
    assert sizes == [4, 4, 4, 2]
    torch.testing.assert_close(total, whole)
    drawn = torch.cat(seen, 1)[0, :, 0].sort().values
    torch.testing.assert_close(drawn, x[0, ..., 0].flatten().sort().values)


def test_the_optimizer_may_step_between_batches() -> None:
    slope = torch.zeros((), requires_grad=True)
    x = torch.ones(2, 6, 1)
    optimizer = torch.optim.SGD([slope], lr=0.01)
    seen = []
    for loss in dynamics.minibatch_parameter_gradient(lambda z: slope * z, x, x, batch=2, generator=seeded()):
        seen.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert seen == pytest.approx([0.0, -1.44, -2.88])  # 12 slope, the slope having become -0.12 and -0.24


@pytest.mark.parametrize("layers", [1, 3])
def test_the_force_of_a_network_is_the_slope_of_its_bias_and_trains(layers: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bias = dynamics.NeuralBias(lambda x: torch.cat([x.cos(), x.sin()], -1), 6, hidden=5, layers=layers).double()
    x = torch.randn(4, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    pushed = bias.force(x)
    torch.testing.assert_close(pushed, -torch.autograd.grad(bias(x).sum(), x, create_graph=True)[0])
    weight = bias.hidden[0].weight
    got = torch.autograd.grad(pushed.square().sum(), weight)[0]
    slow = torch.autograd.grad(bias(x).sum(), x, create_graph=True)[0].square().sum()
    torch.testing.assert_close(got, torch.autograd.grad(slow, weight)[0])
    molecule = dynamics.NeuralBias(lambda x: dynamics.pair_distances(x, torch.tensor([[0, 1]])), 1, hidden=4)
    assert molecule.force(torch.rand(2, 5, 3)).shape == (2, 5, 3)


def test_networks_of_other_descriptors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"descriptors must return a tensor of shape \(..., 3\), got \(4, 2\)"):
        dynamics.NeuralBias(torch.cos, 3)(torch.zeros(4, 2))
    with pytest.raises(TypeError, match="descriptors must be"):
        dynamics.NeuralBias(3, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden must be"):
        dynamics.NeuralBias(torch.cos, 3, hidden=0)


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e12])
def test_a_basin_is_the_normal_distribution_of_its_points(unit: float) -> None:
    points = unit * POINTS
    well = dynamics.basin(points)
    off = (points - points.mean(0)).numpy()
    wanted = np.sqrt(np.einsum("ni,ij,nj->n", off, np.linalg.inv(np.cov(off.T / unit)) / unit**2, off))
    np.testing.assert_allclose(well.distance(points).numpy(), wanted, rtol=1e-6)
    for p in (0.5, 0.05, 1e-3):
        np.testing.assert_array_equal(well.inside(points, p).numpy(), wanted**2 <= chi2.isf(p, 3))


def test_points_that_make_no_basin_are_refused() -> None:
    for points, message in (
        (POINTS[:3], r"points must have shape \(n, d\) with n > d"),
        (POINTS[:, [0, 0, 1]], "points must span the space"),
        (POINTS * torch.tensor([1.0, 0.0, 1.0]), "points must differ in every coordinate"),
        (POINTS / 0, "points must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            dynamics.basin(points)
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\)"):
        dynamics.basin(POINTS).inside(POINTS, 1.0)


def test_the_nearest_frame_is_that_of_a_search_by_hand() -> None:
    g = seeded()
    wells = [dynamics.basin(0.3 * POINTS[:, :2] + m) for m in (0.0, 8.0)]
    paths = (
        torch.randn(30, 6, 2, generator=g, dtype=torch.float64).cumsum(0) + torch.linspace(0, 8, 6).double()[:, None]
    )
    which, first = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 3, 5, 7, 9, 29])
    found = dynamics.approach(paths, wells, which, first=first, p=0.05)
    for n in range(6):
        well, rows = wells[which[n]], range(int(first[n]), 30)
        scores = [0.0 if well.inside(paths[t, n]) else float((paths[t, n] - well.mean).square().sum()) for t in rows]
        assert int(found.frame[n]) == rows[int(np.argmin(scores))]
        assert float(found.loss[n]) == pytest.approx(min(scores))
        assert bool(found.arrived[n]) == (min(scores) == 0)
        nearest = min(float((paths[t, n] - well.mean).norm()) for t in rows)
        assert float(found.distance[n]) == pytest.approx(nearest)
        slope = 2 * (paths[found.frame[n], n] - well.mean) * (min(scores) > 0)
        torch.testing.assert_close(found.cotangent[n], slope)
    assert 0 < int(found.arrived.sum()) < 6


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"first": 4}, ValueError, r"first must be in 0\.\.3, got 4 to 4"),
        ({"first": 0.0}, TypeError, "first must hold integers"),
        ({"which": torch.tensor([2])}, ValueError, r"which must be in 0\.\.1, got 2 to 2"),
        ({"which": torch.tensor([0, 1])}, ValueError, r"which must have shape \(1,\)"),
        ({"goals": [dynamics.basin(POINTS)]}, ValueError, "goals must hold two basins at least"),
        (
            {"goals": [dynamics.basin(POINTS), dynamics.basin(POINTS + 0.01)]},
            ValueError,
            r"goals must be apart, got two whose means are \d+\.\d\d standard deviations away",
        ),
    ],
)
def test_approaches_that_cannot_be_are_refused(
    words: dict, error: type[Exception], message: str, without_shape_checks: None
) -> None:
    given = {"positions": torch.zeros(4, 1, 3).double(), "which": torch.tensor([0])}
    given |= {"goals": [dynamics.basin(POINTS), dynamics.basin(POINTS + 50)]}
    with pytest.raises(error, match=message):
        dynamics.approach(**{**given, **words})


def test_weighted_samples_give_the_free_energy_without_the_bias() -> None:
    g, temperature = seeded(), 0.7
    x = torch.randn(200_000, 1, generator=g, dtype=torch.float64) * 1.5  # of x^2 / 2 k with a bias that is known
    bias = temperature * x[:, 0].square() / 2 * (1 / 2.25 - 1)  # leaves a standard normal distribution
    edges = torch.linspace(-2, 2, 9, dtype=torch.float64)
    found = dynamics.free_energy(x, bias + 1e5, temperature=temperature, bins=[edges])
    share = torch.special.ndtr(edges).diff()
    exact = -temperature * (share / share.sum()).log()
    torch.testing.assert_close(found.values, exact, atol=0.02, rtol=0)
    assert 0.5 < float(found.effective) / float((x.abs() < 2).sum()) < 1
    plane = dynamics.free_energy(
        x[:1000].reshape(-1, 2), torch.zeros(500).double(), temperature=1.0, bins=[edges, edges[::2]]
    )
    counts, _, _ = np.histogram2d(*x[:1000].reshape(-1, 2).T.numpy(), bins=[edges.numpy(), edges[::2].numpy()])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(plane.values.numpy(), -np.log(counts / counts.sum()), rtol=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"temperature": 0.0}, "temperature must be"),
        ({"bins": []}, "bins must have the edges of 1 variables, got 0"),
        ({"bins": [torch.tensor([1.0, 0.0])]}, "bins must hold ascending edges"),
        ({"bins": [torch.tensor([5.0, 6.0])]}, "bins must hold samples, got none of 3"),
        ({"bias": torch.zeros(2)}, r"samples and bias must have shapes \(n, d\) and \(n,\)"),
        ({"bias": torch.full((3,), torch.nan)}, "samples and bias must be finite"),
    ],
)
def test_free_energies_that_cannot_be_are_refused(words: dict, message: str, without_shape_checks: None) -> None:
    given = {"samples": torch.zeros(3, 1), "bias": torch.zeros(3), "temperature": 1.0}
    with pytest.raises(ValueError, match=message):
        dynamics.free_energy(**{**given, "bins": [torch.tensor([-1.0, 1.0])], **words})


@pytest.mark.parametrize("axes", [1, 2])
def test_hills_on_a_grid_are_their_sum(axes: int) -> None:
    g = seeded()
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    bias = dynamics.HillBias(
        lambda x: (x @ turn)[..., :axes], (-3.0,) * axes, (3.0,) * axes, width=0.8, dtype=torch.float64
    )
    centres = 2 * torch.rand(20, axes, generator=g, dtype=torch.float64) - 1
    heights = torch.rand(20, generator=g, dtype=torch.float64)
    bias.add(centres[:12], heights[:12])
    bias.add(centres[12:], heights[12:])
    x = (2 * torch.rand(50, 2, generator=g, dtype=torch.float64) - 1).requires_grad_()
    off = (x @ turn)[:, None, :axes] - centres
    exact = (heights * torch.exp(-off.square().sum(-1) / (2 * 0.64))).sum(-1)
    torch.testing.assert_close(bias(x), exact, rtol=0.02, atol=0)
    slope = -torch.autograd.grad(exact.sum(), x)[0]
    assert float((bias.force(x).detach() - slope).norm() / slope.norm()) <= 0.02
    far = torch.full((1, 2), 50.0, dtype=torch.float64)
    assert not bias.force(far).any()


def test_metadynamics_fills_a_well_and_tells_its_shape() -> None:
    words = {"low": (-4.0,), "high": (4.0,), "width": 0.3, "every": 20, "step": 0.05, "temperature": 0.2}

    def force(x: Tensor) -> Tensor:  # minus the slope of (x^2 - 1)^2, ten temperatures high
        return -8 * x * (x.square() - 1)

    start = torch.full((40, 1), -1.0)
    found = dynamics.metadynamics(
        force, start, lambda x: x, height=0.05, steps=3000, bias_factor=12.0, generator=seeded(), **words
    )
    assert found.positions.shape == (151, 40, 1)
    assert found.centres.shape == (150 * 40, 1)
    assert float((found.positions[-50:] > 0).float().mean()) > 0.25
    assert float(found.heights[-40:].mean()) < 0.5 * float(found.heights[:40].mean())
    place = torch.linspace(-1.2, 1.2, 25)[:, None]
    shape = found.bias(place) * 12 / 11  # well tempered: B tends to -(1 - 1/gamma) F
    off = shape + 2 * (place[:, 0].square() - 1).square()
    assert float(off.std()) < 0.2  # of a well that is 2 deep
    other = dynamics.metadynamics(
        force, start, lambda x: x.square(), height=0.05, steps=40, generator=seeded(), **words
    )
    assert bool((other.heights == 0.05).all())


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"height": 0.0}, ValueError, "height must be"),
        ({"every": 3}, ValueError, "every must divide steps 4, got 3"),
        ({"bias_factor": 1.0}, ValueError, "bias_factor must be > 1"),
        ({"low": (0.0, 1.0, 2.0)}, ValueError, "low and high must have one or two numbers"),
        ({"high": (-1.0,)}, ValueError, "high must be above low"),
        ({"width": math.nan}, ValueError, "width must be"),
        (
            {"variables": lambda x: x[..., 0]},
            ValueError,
            r"variables must return a tensor of shape \(1, 1\)",
        ),
        ({"start": torch.zeros(1)}, ValueError, r"start must have shape \(walkers, d\)"),
        ({"force": lambda x: 1e30 * (x + 1)}, ValueError, "step must be smaller"),
    ],
)
def test_metadynamics_that_cannot_be_is_refused(
    words: dict, error: type[Exception], message: str, without_shape_checks: None
) -> None:
    given = {"force": torch.neg, "start": torch.ones(1, 1), "variables": lambda x: x, "low": (0.0,), "high": (1.0,)}
    given |= {"height": 1.0, "width": 0.5, "every": 2, "steps": 4, "step": 0.1}
    with pytest.raises(error, match=message):
        dynamics.metadynamics(**{**given, **words})


@pytest.mark.parametrize("described", [False, True])
def test_crossings_are_taken_back_like_the_gradient_of_their_losses(described: bool) -> None:
    g = seeded()
    bias = dynamics.GaussianGridBias((-1.0, -1.0), (3.0, 3.0), resolution=3, width=1.0).double()
    bias.heights.data = torch.randn(3, 3, generator=g, dtype=torch.float64)
    descriptors = (lambda x: torch.stack([x[..., 0] ** 3, x.sum(-1)], -1)) if described else None
    wells = [dynamics.Basin(torch.full((2,), m).double(), 20 * torch.eye(2).double()) for m in (0.0, 1.0)]
    origin = torch.tensor([0, 1, 0, 1, 0])
    start = torch.stack([well.mean for well in wells])[origin]
    words = {"step": 0.1, "friction": 0.2, "mass": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    way = {"temperature": 0.3, "steps": 30, "detach_position": True, "generator": g, **words}
    path = dynamics.underdamped_langevin(bias.force, start, torch.zeros_like(start), **way).positions
    found = dynamics.crossing_adjoints(
        bias.force, path, wells, origin, 1 - origin, steps=8, descriptors=descriptors, **words
    )
    seen = path if descriptors is None else descriptors(path)
    assert bool((found.home.frame[found.there.frame < 30] > found.there.frame[found.there.frame < 30]).all())
    assert 0 < int(found.there.arrived.sum()) < 5
    got = (bias.force(found.positions) * found.adjoints).sum((0, 2))
    for n in range(5):
        for part, (near, well) in enumerate(((found.there, wells[1 - origin[n]]), (found.home, wells[origin[n]]))):
            frame = int(near.frame[n])
            if bool(near.arrived[n]) or (part and not bool(found.there.arrived[n])):
                assert not found.adjoints[:, n + 5 * part].any()
                continue
            at = path[frame, n].detach().requires_grad_()
            loss = ((at if descriptors is None else descriptors(at)) - well.mean).square().sum()
            assert float(loss.detach()) == pytest.approx(float((seen[frame, n] - well.mean).square().sum()))
            pull = torch.autograd.grad(loss, at)[0]
            one = dynamics.trajectory_adjoint(bias.force, path[:, n], pull, start=frame, steps=8, **words)
            torch.testing.assert_close(one.adjoints, found.adjoints[:, n + 5 * part])
            torch.testing.assert_close((bias.force(one.positions) * one.adjoints).sum(), got[n + 5 * part])
    assert int(found.there.frame.min()) > 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"steps": 4}, "steps must be below the number of frames after the first, 4, got 4"),
        ({"positions": torch.zeros(5, 3)}, r"positions must have shape \(frames, n, d\)"),
        ({"positions": torch.full((5, 1, 3), torch.nan).double()}, "positions must be finite"),
        ({"goal": torch.tensor([7])}, r"which must be in 0\.\.1"),
        ({"step": 0.0}, "step must be"),
    ],
)
def test_crossings_that_cannot_be_are_refused(words: dict, message: str, without_shape_checks: None) -> None:
    given = {"positions": torch.zeros(5, 1, 3).double(), "origin": torch.tensor([0]), "goal": torch.tensor([1])}
    given |= {"basins": [dynamics.basin(POINTS), dynamics.basin(POINTS + 50)], "steps": 2, "step": 0.1}
    with pytest.raises(ValueError, match=message):
        dynamics.crossing_adjoints(torch.neg, **{**given, **words})
