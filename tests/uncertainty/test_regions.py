"""Regions: their scores against distances, their areas against formulas, and the coverage that growth promises."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial import cKDTree
from scipy.stats import chi2

from pullback.uncertainty import (
    BoxRegion,
    ConditionalVAE,
    ConformalRegion,
    EllipsoidRegion,
    HalfspaceRegion,
    PointCloudRegion,
    Region,
    conformalize_region,
    region_area,
    unit_directions,
)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _disc(count: int = 64, centre: tuple[float, float] = (0.0, 0.0), radius: float = 1.0) -> HalfspaceRegion:
    directions = unit_directions(count, 2, dtype=torch.float64)
    return HalfspaceRegion(directions, directions @ torch.tensor(centre).double() - radius)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_directions_are_unit_vectors_that_surround_the_origin(dim: int) -> None:
    for generator in (None, _seeded()):
        directions = unit_directions(512, dim, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(directions.norm(dim=-1), torch.ones(512).double())
        second = directions.T @ directions / 512
        assert (second - torch.eye(dim) / dim).abs().max() < (0.02 if generator is None else 0.08)
        assert directions.mean(0).norm() < (0.02 if generator is None else 0.15)


def test_score_of_half_spaces_is_minus_the_distance_to_the_complement() -> None:
    square = HalfspaceRegion(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), -torch.ones(4))
    inside = 1.8 * torch.rand(50, 2, generator=_seeded()) - 0.9
    torch.testing.assert_close(-square.score(inside), 1 - inside.abs().amax(-1))
    assert not square.contains(torch.tensor([[1.01, 0.0]])).any()
    assert square.grown(0.02).contains(torch.tensor([[1.01, 0.0]])).all()


def test_deepest_point_extent_and_samples_of_a_disc() -> None:
    batch = HalfspaceRegion(
        _disc().directions, torch.stack([_disc(centre=(2.0, -1.0)).offsets, _disc(radius=3.0).offsets])
    )
    point, depth = batch.interior()
    torch.testing.assert_close(point, torch.tensor([[2.0, -1.0], [0.0, 0.0]]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(depth, torch.tensor([1.0, 3.0]).double(), atol=1e-6, rtol=0)
    reach = batch.extent(batch.directions, start=point)
    torch.testing.assert_close(reach, depth[:, None].expand_as(reach), atol=1e-5, rtol=0)
    drawn = batch.sample(4000, steps=20, generator=_seeded())
    assert batch.grown(1e-9).contains(drawn).all()
    distances = (drawn - point[:, None]).norm(dim=-1) / depth[:, None]
    for power in (1, 2):  # the mean of r^p over a disc is 2 / (p + 2)
        assert ((distances**power).mean(-1) - 2 / (power + 2)).abs().max() < 0.02


@pytest.mark.parametrize(("dim", "tau"), [(2, 0.016), (3, 0.0062)])
def test_directional_quantiles_of_a_gaussian_bound_its_ellipsoid(dim: int, tau: float) -> None:
    """u.mu + z |L'u| for every u: the ellipsoid of radius -z, which holds chi2_d.cdf(z^2), about 0.9."""
    generator = _seeded(2)
    factor = torch.randn(dim, dim, generator=generator).double().tril() + 2 * torch.eye(dim)
    mean, z = torch.randn(dim, generator=generator).double(), torch.special.ndtri(torch.tensor(tau).double())
    directions = unit_directions(2048, dim, dtype=torch.float64)
    region = HalfspaceRegion(directions, directions @ mean + z * (directions @ factor).norm(dim=-1))
    drawn = mean + torch.randn(20_000, dim, generator=generator).double() @ factor.T
    inside, ellipsoid = region.contains(drawn), EllipsoidRegion(mean, factor, float(-z)).contains(drawn)
    assert (inside != ellipsoid).double().mean() < 0.01
    assert abs(inside.double().mean() - chi2(dim).cdf(float(z) ** 2)) < 0.015
    assert abs(chi2(dim).cdf(float(z) ** 2) - 0.9) < 0.005


def test_empty_and_open_regions_are_told() -> None:
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    empty = HalfspaceRegion(directions, torch.tensor([1.0, 1.0, -1.0, -1.0]))  # y0 >= 1 and y0 <= -1
    assert empty.interior().depth < -0.9
    assert empty.sample(3, generator=_seeded()).isfinite().all()
    with pytest.raises(ValueError, match="not bounded"):
        HalfspaceRegion(directions[:1], -torch.ones(1)).sample(5, generator=_seeded())


def test_off_centre_polygon_has_its_deepest_point() -> None:
    """The triangle with corners (0, 0), (4, 0), (0, 3): the centre of its incircle is (1, 1)."""
    normals = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.6, -0.8]]).double()
    point, depth = HalfspaceRegion(normals, torch.tensor([0.0, 0.0, -2.4]).double()).interior(steps=3000)
    assert (point - 1).abs().max() < 0.05
    assert abs(depth - 1) < 0.02


def test_cloud_is_what_is_near_its_points() -> None:
    points, y = torch.randn(3, 40, 2, generator=_seeded()), torch.randn(3, 25, 2, generator=_seeded(1))
    score = PointCloudRegion(points, 0.3).score(y)
    for k in range(3):
        distance = cKDTree(points[k].numpy()).query(y[k].numpy())[0]
        torch.testing.assert_close(score[k].double(), torch.from_numpy(distance) - 0.3, atol=1e-5, rtol=0)
        nearest = torch.from_numpy(cKDTree(points[k].numpy()).query(points[k].numpy(), k=2)[0][:, 1])
        assert abs(float(PointCloudRegion(points).spacing(0.9)[k]) - float(nearest.quantile(0.9))) < 1e-4


@pytest.mark.parametrize("kind", ["box", "ellipse", "half-spaces", "cloud"])
def test_areas(kind: str) -> None:
    low, high = -2 * torch.ones(2).double(), 2 * torch.ones(2).double()
    factor = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double()
    region, area = {
        "box": (BoxRegion(-torch.ones(1, 2).double(), torch.ones(1, 2).double()), 4.0),
        "ellipse": (EllipsoidRegion(torch.zeros(1, 2).double(), factor, 1.0), math.pi / 2),
        "half-spaces": (HalfspaceRegion(_disc().directions, _disc().offsets[None]), math.pi),
        "cloud": (PointCloudRegion(torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]]).double(), 0.5), math.pi / 2),
    }[kind]
    assert isinstance(region, Region)
    assert float(region_area(region, low, high, grid=150)) == pytest.approx(area, rel=0.03)


@pytest.mark.parametrize("kind", ["box", "ellipse", "half-spaces", "cloud"])
def test_grown_regions_cover_what_wrong_ones_miss(kind: str) -> None:
    """Heavy tails, a region of the wrong size at every x: the coverage is right on average all the same."""
    generator = _seeded(3)
    x = torch.rand(6000, 1, generator=generator).double()
    tails = torch.rand(6000, 1, generator=generator).double().rsqrt()
    y = torch.randn(6000, 2, generator=generator).double() * tails + torch.cat([x, -x], -1)
    size = 3.0 if kind == "box" else 0.3

    def predict(x: torch.Tensor) -> Region:
        centre = torch.cat([x, -x], -1)
        if kind == "box":
            return BoxRegion(centre - size, centre + size)
        if kind == "ellipse":
            return EllipsoidRegion(centre, torch.eye(2).double(), size)
        if kind == "half-spaces":
            return HalfspaceRegion(_disc().directions, centre @ _disc().directions.T - size)
        return PointCloudRegion(centre[:, None] + 0.1 * _disc().directions, size)

    calibrated = conformalize_region(predict, x[:2000], y[:2000], level=0.8)
    assert isinstance(calibrated, ConformalRegion)
    assert calibrated.bounded
    assert (calibrated.growth < 0) == (calibrated.raw_coverage > 0.8)
    covered = calibrated.region(x[2000:]).score(y[2000:, None]).le(0).double().mean()
    assert abs(covered - 0.8) < 0.03


def test_too_few_rows_make_everything_the_region_and_wrong_models_are_refused() -> None:
    x, y = torch.zeros(5, 1), torch.ones(5, 1)  # one coordinate is fine
    calibrated = conformalize_region(lambda x: BoxRegion(x - 1, x + 1), x, y, level=0.9)
    assert not calibrated.bounded
    assert (calibrated.region(x).score(1e6 * y[:, None]) <= 0).all()
    with pytest.raises(TypeError, match="predict must return a region with score and grown, got Tensor"):
        conformalize_region(lambda x: x, x, y)
    with pytest.raises(ValueError, match="predict must return 5 regions"):
        conformalize_region(lambda x: BoxRegion(x[:3] - 1, x[:3] + 1), x, y[:3].repeat(2, 1)[:5])
    with pytest.raises(ValueError, match=r"y must have shape \[\.\.\., n, 2\]"):
        _disc().contains(torch.zeros(3, 3).double())
    with pytest.raises(ValueError, match="points must have shape"):
        PointCloudRegion(torch.zeros(0, 2))


def test_autoencoder_unfolds_a_ring() -> None:
    """Outcomes on a ring: their codes are about Gaussian, and decode near the ring."""
    generator = _seeded(0)
    angle = 2 * math.pi * torch.rand(500, generator=generator)
    y, x = torch.stack([angle.cos(), angle.sin()], -1), torch.zeros(500, 1)
    vae = ConditionalVAE(1, 2, latent=2, hidden=32, generator=generator)
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        vae.loss(y, x, beta=0.001, generator=generator).backward()
        optimizer.step()
    with torch.no_grad():
        law = vae.encode(y, x)
        radius = vae.decode(law.mean, x).norm(dim=-1)
        draws = law.rsample(generator=_seeded(1))
    assert (radius - 1).abs().mean() < 0.15
    assert law.mean.std(0).max() < 2
    deviation = (draws - law.mean) / law.scale
    assert deviation.mean().abs() < 0.15
    assert abs(deviation.std() - 1) < 0.1
