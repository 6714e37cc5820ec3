"""Spheres: kernel and reference alike, degenerate scenes, limits, options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.geometry import Camera, look_at
from pullback.render import Rendered, render_spheres, zbuffer_spheres

RANGE = (0.5, 6.0)


def _scene(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    centers = torch.cat([2 * rand(n, 2) - 1, 1.5 + 3 * rand(n, 1)], -1)
    pose = look_at(torch.tensor([0.3, -0.2, -0.1]), torch.tensor([0.0, 0.0, 3.0]), up=(0.0, -1.0, 0.0))
    intrinsics = torch.tensor([[40.0, 0.7, 24.0], [0.0, 42.0, 20.0], [0.0, 0.0, 1.0]], dtype=dtype)
    return [centers, 0.04 + 0.08 * rand(n), rand(n, 3), 0.3 + 0.7 * rand(n), rand(3), intrinsics, pose.to(dtype)]


def _render(scene: list[Tensor], size: tuple[int, int] = (37, 50), **options: Any) -> Rendered:
    centers, radii, features, opacity, background, intrinsics, pose = scene
    options = {"gamma": 0.05, "depth_range": RANGE, **options}
    camera = Camera(intrinsics, pose, size)
    return render_spheres(centers, radii, features, camera, opacity=opacity, background=background, **options)


def _gradients(out: Rendered, scene: list[Tensor]) -> tuple[Tensor, ...]:
    stream = torch.Generator().manual_seed(5)
    loss = sum((x * torch.randn(x.shape, generator=stream, dtype=x.dtype)).sum() for x in out[:3])
    return torch.autograd.grad(loss, scene)


def _both(scene: list[Tensor], **options: Any) -> list[tuple[Rendered, tuple[Tensor, ...]]]:
    result = []
    for method in ("reference", "kernel"):
        leaves = [t.clone().requires_grad_() for t in scene]
        out = _render(leaves, method=method, **options)
        result.append((out, _gradients(out, leaves)))
    return result


def _assert_equal(scene: list[Tensor], **options: Any) -> None:
    (a, a_gradients), (b, b_gradients) = _both(scene, **options)
    for x, y in zip(a[:3], b[:3], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
    for x, y in zip(a_gradients, b_gradients, strict=True):
        assert torch.isfinite(x).all()
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-7 * float(x.abs().max()))
    assert torch.equal(a.extras["hits"], b.extras["hits"])
    assert torch.equal(a.extras["strongest"], b.extras["strongest"])


@pytest.mark.parametrize("n", [1, 511, 512, 513])
def test_kernel_equals_reference_for_every_number_of_spheres(n: int, generator: torch.Generator) -> None:
    _assert_equal(_scene(n, generator))


def test_kernel_equals_reference_at_a_hundred_thousand_spheres(generator: torch.Generator) -> None:
    scene = _scene(100_000, generator)
    a, b = (_render(scene, (5, 7), method=method) for method in ("reference", "kernel"))
    for x, y in zip(a[:3], b[:3], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
    assert torch.equal(a.extras["hits"], b.extras["hits"])


@pytest.mark.slow
def test_kernel_equals_reference_at_five_thousand_spheres_and_two_threads(generator: torch.Generator) -> None:
    scene = _scene(5000, generator)
    scene[5] = torch.tensor([[128.0, 0.0, 64.0], [0.0, 128.0, 64.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _assert_equal(scene, size=(128, 128), gamma=0.01)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("gamma", [1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("track", [None, 1, 5])
def test_kernel_equals_reference_for_every_softness(
    gamma: float, track: int | None, generator: torch.Generator
) -> None:
    (a, a_gradients), (b, b_gradients) = _both(_scene(80, generator), gamma=gamma, track=track)
    for x, y in zip((*a[:3], *a_gradients), (*b[:3], *b_gradients), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7 * max(1.0, float(x.detach().abs().max())))


def test_one_pixel_and_one_row_images(generator: torch.Generator) -> None:
    scene = _scene(300, generator)
    scene[5][0, 2], scene[5][1, 2] = 0.5, 0.5  # look along the axis
    for size in ((1, 1), (1, 40), (33, 1)):
        _assert_equal(scene, size=size)


def test_track_keeps_the_image_and_drops_gradients(generator: torch.Generator) -> None:
    scene = [t.requires_grad_() for t in _scene(200, generator)]
    full, few = _render(scene, gamma=1.0), _render(scene, gamma=1.0, track=2)
    torch.testing.assert_close(full.image, few.image)
    exact, cut = _gradients(full, scene), _gradients(few, scene)
    assert 0 < (cut[2].abs().sum(-1) > 0).sum() < (exact[2].abs().sum(-1) > 0).sum()
    for x, y in zip(_gradients(_render(scene, gamma=1.0, track=200), scene), exact, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("allowed", [0.01, 0.1])
def test_allowed_difference_is_kept(allowed: float, generator: torch.Generator) -> None:
    scene = _scene(3000, generator)
    exact, short = _render(scene, gamma=0.01), _render(scene, gamma=0.01, allowed_difference=allowed)
    difference = (exact.image - short.image).abs().max()
    assert 0 < difference <= allowed
    assert short.extras["hits"].sum() < exact.extras["hits"].sum()


def test_same_input_gives_the_same_gradient_bit_by_bit(generator: torch.Generator) -> None:
    threads = torch.get_num_threads()
    scene = [t.requires_grad_() for t in _scene(700, generator, torch.float32)]
    try:
        runs = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            runs.append(_gradients(_render(scene, method="kernel"), scene))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("method", ["reference", "kernel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_spheres_have_finite_gradients(method: str, dtype: torch.dtype) -> None:
    centers = [
        [0.0, 0.0, 2.0],  # on the axis: its distance to the middle ray is 0
        [0.0, 0.0, 2.0],  # the same again
        [0.1, 0.0, 2.0],  # of equal depth
        [0.0, 0.0, -2.0],  # behind the camera
        [0.0, 0.0, 0.0],  # around the camera
        [0.0, 0.0, 0.6],  # through the near plane
        [0.0, 0.0, 6.0],  # through the far plane
        [50.0, 0.0, 2.0],  # off screen
        [0.0, 0.0, 3.0],  # a point
        [1e8, 1e8, 1e8],
    ]
    radii = [0.3, 0.3, 0.3, 0.3, 0.4, 0.3, 0.3, 0.3, 1e-20, 1.0]
    scene = [
        torch.tensor(centers, dtype=dtype),
        torch.tensor(radii, dtype=dtype),
        torch.rand(10, 2, dtype=dtype, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0], dtype=dtype),
        torch.zeros(2, dtype=dtype),
        torch.tensor([[8.0, 0.0, 4.5], [0.0, 8.0, 4.5], [0.0, 0.0, 1.0]], dtype=dtype),
        torch.eye(4, dtype=dtype),
    ]
    scene = [t.requires_grad_() for t in scene]
    for gamma in (1e-5, 1e-2, 1.0):
        out = _render(scene, (9, 9), gamma=gamma, method=method)
        assert all(torch.isfinite(x).all() for x in out[:3])
        assert all(torch.isfinite(g).all() for g in _gradients(out, scene))
        hits = out.extras["hits"]
        assert hits[[3, 4, 7, 9]].tolist() == [0, 0, 0, 0]
        assert (hits[:3] > 0).all()


@pytest.mark.parametrize("method", ["reference", "kernel"])
def test_no_spheres_show_the_background(method: str, generator: torch.Generator) -> None:
    scene = [t.requires_grad_() for t in _scene(0, generator)]
    out = _render(scene, (3, 4), method=method)
    assert torch.equal(out.image, scene[4].detach()[:, None, None].expand(3, 3, 4))
    assert out.alpha.abs().max() == 0
    (gradient,) = torch.autograd.grad(out.image.sum(), scene[4])
    assert gradient.tolist() == [12.0, 12.0, 12.0]


@pytest.mark.parametrize("method", ["reference", "kernel"])
def test_batch_equals_loop(method: str, generator: torch.Generator) -> None:
    scenes = [_scene(40, generator) for _ in range(6)]
    stacked = [torch.stack(parts).unflatten(0, (2, 3)).requires_grad_() for parts in zip(*scenes, strict=True)]
    out = _render(stacked, method=method)
    assert out.image.shape == (2, 3, 3, 37, 50)
    assert out.alpha.shape == (2, 3, 1, 37, 50)
    weights = torch.randn(out.image.shape, generator=generator, dtype=torch.float64)
    together = torch.autograd.grad((out.image * weights).sum(), stacked)
    for k, scene in enumerate(scenes):
        leaves = [t.requires_grad_() for t in scene]
        one = _render(leaves, method=method)
        torch.testing.assert_close(out.image[k // 3, k % 3], one.image, rtol=1e-6, atol=1e-9)
        assert torch.equal(out.extras["hits"][k // 3, k % 3], one.extras["hits"])
        alone = torch.autograd.grad((one.image * weights[k // 3, k % 3]).sum(), leaves)
        for x, y in zip(together, alone, strict=True):
            torch.testing.assert_close(x[k // 3, k % 3], y, rtol=1e-6, atol=1e-9)


def test_several_views_of_one_scene_broadcast(generator: torch.Generator) -> None:
    scene = _scene(40, generator)
    poses = torch.stack([scene[6], torch.eye(4).double()])
    out = _render([*scene[:6], poses])
    assert out.image.shape == (2, 3, 37, 50)
    torch.testing.assert_close(out.image[1], _render([*scene[:6], poses[1]]).image)
    empty = _render([*scene[:6], poses[:0]])
    assert empty.image.shape == (0, 3, 37, 50)
    assert empty.extras["hits"].shape == (0, 40)


def test_small_gamma_is_the_z_buffer(generator: torch.Generator) -> None:
    scene = _scene(400, generator)
    scene[3] = torch.ones_like(scene[3])
    out = _render(scene, gamma=1e-5)
    camera = Camera(scene[5], scene[6], (37, 50))
    seen = zbuffer_spheres(scene[0], scene[1], camera, depth_range=RANGE)
    colours = torch.cat([scene[2], scene[4][None]])[seen.nearest]  # -1 is the background, the last row
    same = ((out.image.movedim(0, -1) - colours).abs() <= 1 / 255).all(-1)
    assert same.double().mean() >= 0.995
    assert (out.extras["strongest"] == seen.nearest).double().mean() >= 0.995
    torch.testing.assert_close(out.depth[0], seen.depth, rtol=0, atol=1e-3)


def test_z_buffer_of_one_sphere_is_its_disc() -> None:
    camera = Camera.pinhole(100.0, (41, 41))
    seen = zbuffer_spheres(torch.tensor([[0.0, 0.0, 10.0]]), torch.tensor([1.0]), camera, depth_range=(1.0, 20.0))
    disc = (seen.nearest == 0).sum().item()
    tangent = 100 / math.sqrt(10**2 - 1)
    assert disc == pytest.approx(math.pi * tangent**2, rel=0.03)
    assert seen.depth[20, 20].item() == pytest.approx(9.0)
    assert seen.depth[0, 0].item() == 20.0


def test_gradient_brings_a_sphere_to_where_it_is_seen() -> None:
    camera = Camera.pinhole(30.0, (24, 24))
    goal = torch.tensor([[0.1, -0.1, 2.0]])
    with torch.no_grad():
        target = render_spheres(goal, torch.tensor([0.3]), torch.ones(1, 1), camera, gamma=1.0, depth_range=RANGE)
    center = torch.tensor([[-0.1, 0.1, 2.3]], requires_grad=True)
    optimizer = torch.optim.Adam([center], lr=0.02)
    for _ in range(150):
        out = render_spheres(center, torch.tensor([0.3]), torch.ones(1, 1), camera, gamma=1.0, depth_range=RANGE)
        loss = (out.image - target.image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(center.detach(), goal, rtol=0, atol=0.02)


def test_reference_in_chunks_has_second_derivatives(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    from pullback.render import blending

    def second() -> tuple[Tensor, ...]:
        scene = [t.requires_grad_() for t in _scene(20, torch.Generator().manual_seed(1))]
        out = _render(scene, (6, 7), method="reference")
        first = torch.autograd.grad(out.image.square().sum(), scene, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), scene)

    whole = second()
    monkeypatch.setattr(blending, "CHUNK", 100)
    for x, y in zip(whole, second(), strict=True):
        torch.testing.assert_close(x, y)


def test_kernel_and_tiles_refuse_transforms(generator: torch.Generator) -> None:
    scene = _scene(5, generator)
    for method in ("kernel", "tiles"):
        with pytest.raises(ValueError, match=f"method '{method}' cannot be used here.*use method='reference'"):
            torch.func.grad(lambda c, method=method: _render([c, *scene[1:]], method=method).image.sum())(scene[0])


@pytest.mark.parametrize("track", [None, 2])
def test_second_derivatives_are_those_of_the_reference(track: int | None) -> None:
    results = []
    for method in ("reference", "tiles", "kernel"):
        scene = [t.requires_grad_() for t in _scene(20, torch.Generator().manual_seed(1))]
        gamma = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        out = _render(scene, (6, 7), method=method, gamma=gamma, track=track)
        first = torch.autograd.grad((out.image.square().sum() + out.depth.sum()), [*scene, gamma], create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), [*scene, gamma]))
    for others in results[1:]:
        for x, y in zip(results[0], others, strict=True):
            torch.testing.assert_close(x, y)


def test_transforms_take_the_reference_by_themselves(generator: torch.Generator) -> None:
    scene = _scene(5, generator)
    got = torch.func.grad(lambda c: _render([c, *scene[1:]]).image.sum())(scene[0])
    leaf = scene[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(_render([leaf, *scene[1:]]).image.sum(), leaf)
    torch.testing.assert_close(got, expected)


def test_many_channels(generator: torch.Generator) -> None:
    scene = _scene(30, generator)
    scene[2], scene[4] = torch.rand(30, 17, generator=generator).double(), torch.zeros(17).double()
    _assert_equal(scene, size=(10, 12))
