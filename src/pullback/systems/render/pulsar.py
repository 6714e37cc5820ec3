"""Reconstruction of a scene from images by spheres whose rendering has a gradient to where they are.

Every sphere on a ray has a weight that grows with its nearness, softly at first and like a z-buffer at the end; so
the image says of each sphere not only which colour it should have but where it should be and how large (Lassner,
Zollhoefer, CVPR 2021). A hard z-buffer passes the gradient to colours alone, and noisy positions stay noisy.

Smaller than in the paper: 3 000 spheres and 96 x 64 pixels (there up to a million and 1024 x 1024). The scene is real:
Middlebury's motorcycle with measured depth. Of the 14 views two are the photographs; twelve are made from the left
photograph and its depth, as its 343 000 coloured points would be seen from an ellipse around the pair, 0.75 m to either
side and 0.4 m up and down: 15 degrees at the scene's median distance of 2.75 m. That is chosen so that depth can be
seen at all: a sphere 0.1 m too near is displaced between the views by up to two pixels (measured and reported).

Positions start with isotropic noise of 5 % of their depth. Both arms start from the same spheres and take the better,
on the training views, of the same grid of step sizes and radii. A sphere that no view sees has no gradient, so its
centre cannot be mended: the distances are claimed twice, for all spheres and for those that the training views see at
the end, each against its own start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pullback import data
from pullback.geometry import Camera, look_at
from pullback.lab import Lab, system
from pullback.render import render_spheres, zbuffer_spheres

DEPTH_RANGE = (1.0, 6.0)  # metres; the scene is between 2.1 and 5.0
_BETAS = (0.8, 0.95)  # the gradient grows hundredfold while gamma falls: a long memory would overshoot
HELD_OUT = (1, 4, 8, 12)  # the right photograph and three virtual views


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    spheres: int = 3000
    """Spheres of the reconstruction."""
    width: int = 96
    """Width of the images, pixels."""
    height: int = 64
    """Height of the images, pixels."""
    noise: float = 0.05
    """Standard deviation of the initial positions around the surface on each axis, as a fraction of their depth."""
    steps: int = 150
    """Adam steps of each arm."""
    views: int = 10
    """Training views a step, at most ten."""
    rates: tuple[float, ...] = (1.0, 2.0)
    """Factors of the step sizes that each arm tries with each cover; the best on its training views is kept."""
    covers: tuple[float, ...] = (4.0, 12.0)
    """Initial radii that each arm tries: how many times the discs of all spheres together would cover an image."""
    gamma: tuple[float, float] = (0.1, 1e-3)
    """Softness at the first and at the last step."""
    surface: int = 100_000
    """Points of the true surface to which distances are measured."""
    timed_spheres: int = 5000
    """Spheres of the timing."""
    timed_size: int = 128
    """Height and width of the timed image."""
    frames: int = 24
    """Pictures of the turntable."""


class _Fit(NamedTuple):
    """The best of an arm's grid."""

    error: float
    centers: Tensor = torch.empty(0, 3)
    radii: Tensor = torch.empty(0)
    colours: Tensor = torch.empty(0, 3)
    cover: float = 0.0
    rate: float = 0.0


class Views(NamedTuple):
    """Cameras with what they see: images ``[v, 3, h, w]``, and where it is known, ``[v, 1, h, w]``."""

    cameras: Camera
    images: Tensor
    known: Tensor

    def pick(self, chosen: Sequence[int] | Tensor) -> Views:
        """The views of these numbers."""
        k, pose, size = self.cameras.intrinsics, self.cameras.camera_from_world, self.cameras.size
        chosen = torch.as_tensor(chosen, device=k.device)
        return Views(Camera(k[chosen], pose[chosen], size), self.images[chosen], self.known[chosen])


@system(
    "pulsar",
    family="render",
    title="Pulsar: Efficient Sphere-based Neural Rendering",
    paper="Lassner, Zollhoefer, CVPR 2021, arXiv 2004.07484",
    config=Config,
    smoke={
        "spheres": 200,
        "width": 24,
        "height": 16,
        "steps": 3,
        "views": 3,
        "rates": (1.0,),
        "covers": (8.0,),
        "surface": 2000,
        "timed_spheres": 200,
        "timed_size": 24,
        "frames": 3,
    },
    full={"spheres": 1_000_000, "width": 741, "height": 500, "steps": 3000},
    blocks=("geometry.Camera", "geometry.look_at", "render.render_spheres", "render.zbuffer_spheres"),
)
def run(lab: Lab, config: Config) -> None:
    """Fit spheres and z-buffered points to the same views, from the same start."""
    lab.data("Middlebury 2014 motorcycle: both photographs and the measured depth", origin="real")
    points, colours, views = _scene(lab, config)
    train = views.pick([v for v in range(len(views.images)) if v not in HELD_OUT])
    test = views.pick(HELD_OUT)
    stream = lab.fork("start")
    chosen = torch.randint(len(points), (config.spheres,), generator=stream)
    depths = points[chosen, 2:]
    start = points[chosen] + config.noise * depths * torch.randn(config.spheres, 3, generator=stream).to(points)
    start_colours = colours[chosen]
    background = (train.images * train.known).sum((0, 2, 3)) / train.known.sum()
    surface = points[torch.randperm(len(points), generator=stream)[: config.surface].to(points.device)]
    lab.metric("displacement between the training views by 0.1 m of depth", _parallax(surface, train), unit="pixels")
    grid = [(cover, rate) for cover in config.covers for rate in config.rates]

    # The baseline: the spheres where they are, the first on the ray seen whole, and only colours that can change.
    hard = _Fit(math.inf)
    for cover, rate in grid:
        radii = _radii(start, cover, train)
        seen = zbuffer_spheres(start, radii, train.cameras, depth_range=DEPTH_RANGE).nearest
        logits = _logit(start_colours).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.05 * rate, betas=_BETAS)
        batches = lab.fork("batches")
        state = {"logits": logits, "optimizer": optimizer, "batches": batches}
        name = f"z-buffer points, cover {cover:g}, rates x {rate:g}"
        for step in lab.steps(config.steps, name, save=state):
            optimizer.param_groups[0]["lr"] = 0.05 * rate * (1 - step / config.steps)
            batch = _batch(len(train.images), config.views, batches)
            loss = _error(_paint(seen[batch], logits.sigmoid(), background), train.pick(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lab.record("loss", loss, of=name)
        with torch.no_grad():
            error = _error(_paint(seen, logits.sigmoid(), background), train).item()
            if error < hard.error:
                hard = _Fit(error, start, radii, logits.sigmoid(), cover, rate)

    soft = _Fit(math.inf)
    for cover, rate in grid:
        radii = _radii(start, cover, train)
        shift, log_radii = torch.zeros_like(start).requires_grad_(), radii.log().requires_grad_()
        logits = _logit(start_colours).requires_grad_()
        # Shifts are in units of depth: what a step moves in the image is the same near and far.
        sizes = [(shift, 0.005 * rate), (log_radii, 0.01 * rate), (logits, 0.05 * rate)]
        optimizer = torch.optim.Adam([{"params": [p], "lr": size} for p, size in sizes], betas=_BETAS)
        batches = lab.fork("batches")
        state = {"shift": shift, "radii": log_radii, "logits": logits, "optimizer": optimizer, "batches": batches}
        name = f"spheres, cover {cover:g}, rates x {rate:g}"
        for step in lab.steps(config.steps, name, save=state):
            for group, (_, size) in zip(optimizer.param_groups, sizes, strict=True):
                group["lr"] = size * (1 - step / config.steps)
            gamma = _annealed(config, step)
            part = train.pick(_batch(len(train.images), config.views, batches))
            centers = start + depths * shift
            loss = _error(_render(centers, log_radii.exp(), logits.sigmoid(), part.cameras, background, gamma), part)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lab.record("loss", loss, of=name)
        with torch.no_grad():
            scene = (start + depths * shift, log_radii.exp(), logits.sigmoid())
            error = _error(_render(*scene, train.cameras, background, config.gamma[1]), train).item()
            if error < soft.error:
                soft = _Fit(error, *scene, cover, rate)

    fitted = (soft.centers, soft.radii, soft.colours)
    with torch.no_grad():
        nearest = zbuffer_spheres(hard.centers, hard.radii, test.cameras, depth_range=DEPTH_RANGE).nearest
        pictures = {
            "z-buffer points": _paint(nearest, hard.colours, background),
            "spheres": _render(*fitted, test.cameras, background, config.gamma[1]),
        }
    psnr = {arm: -10 * math.log10(_error(image, test).item()) for arm, image in pictures.items()}
    for arm, fit in (("z-buffer points", hard), ("spheres", soft)):
        points_ = arm != "spheres"
        lab.metric("held-out PSNR", psnr[arm], of=arm, better="higher", unit="dB", baseline=points_)
        lab.metric("training PSNR", -10 * math.log10(fit.error), of=arm, better="higher", unit="dB", baseline=points_)
        lab.metric("chosen factor of the step sizes", fit.rate, of=arm, baseline=points_)
        lab.metric("chosen cover", fit.cover, of=arm, baseline=points_)
    lab.claim(
        "held-out PSNR is at least that of z-buffered points + 2 dB at equal steps",
        psnr["spheres"] >= psnr["z-buffer points"] + 2,
        psnr=psnr["spheres"],
        psnr_points=psnr["z-buffer points"],
    )
    _distances(lab, config, start, soft, train, surface)
    start_radii = _radii(start, config.covers[0], train)
    _limits(lab, {"start": (start, start_radii, start_colours), "fitted spheres": fitted}, test, background)
    _speed(lab, config)
    _draw(lab, config, fitted, pictures, test, background)


def _distances(lab: Lab, config: Config, start: Tensor, soft: _Fit, train: Views, surface: Tensor) -> None:
    """How far the centres are from the true surface before and after."""
    with torch.no_grad():
        rendered = render_spheres(
            soft.centers, soft.radii, soft.colours, train.cameras, gamma=config.gamma[1], depth_range=DEPTH_RANGE
        )
    strongest = rendered.extras["strongest"]
    seen = torch.bincount(strongest[strongest >= 0], minlength=len(start)) > 0
    before, after = _distance(start, surface), _distance(soft.centers, surface)
    for name, chosen in (("all spheres", seen | True), ("the spheres seen", seen)):
        for arm, values in (("z-buffer points", before), ("spheres", after)):
            lab.metric(
                f"distance to the true surface, {name}",
                1e3 * values[chosen].mean(),
                of=arm,
                better="lower",
                unit="mm",
                baseline=arm != "spheres",
            )
    lab.metric("spheres that the training views see", 100 * seen.double().mean(), of="spheres", unit="%")
    lab.metric("fall of the distance, all spheres", 100 * (1 - after.mean() / before.mean()), better="higher", unit="%")
    lab.claim(
        "the mean distance to the true surface of the centres that the training views see falls by at least 30 %",
        after[seen].mean() <= 0.7 * before[seen].mean(),
        distance_mm=1e3 * after[seen].mean(),
        distance_before_mm=1e3 * before[seen].mean(),
    )
    lab.claim(
        "the mean distance to the true surface of all centres, hidden ones included, falls by at least 30 %",
        after.mean() <= 0.7 * before.mean(),
        distance_mm=1e3 * after.mean(),
        distance_before_mm=1e3 * before.mean(),
    )


def _scene(lab: Lab, config: Config) -> tuple[Tensor, Tensor, Views]:
    """The true points, their colours, and the left photograph, the right one and twelve virtual views."""
    pair = data.motorcycle()
    height, width = pair.disparity.shape
    metres = pair.baseline / 1000
    depth = metres * pair.focal / (pair.disparity + pair.offset)
    left = Camera.pinhole(pair.focal, (height, width), centre=pair.centre)
    rows, columns = pair.mask.nonzero().unbind(-1)
    points = left.unproject(torch.stack([columns + 0.5, rows + 0.5], -1), depth[pair.mask])
    colours = pair.left[pair.mask]

    # In the world of the left camera. The right one stands a baseline to the right; its principal point is shifted.
    right = Camera.pinhole(pair.focal, (height, width), centre=(pair.centre[0] + pair.offset, pair.centre[1]))
    beside = torch.eye(4)
    beside[0, 3] = -metres
    target = points.median(0).values
    angles = 2 * math.pi * (torch.arange(12) + 0.5) / 12
    around = torch.stack([0.75 * angles.cos() + metres / 2, 0.4 * angles.sin(), 0.1 * torch.cos(3 * angles)], -1)
    poses = torch.cat([torch.stack([torch.eye(4), beside]), look_at(around, target, up=(0.0, -1.0, 0.0))])
    intrinsics = torch.stack([left.intrinsics, right.intrinsics, *[left.intrinsics] * 12])
    cameras = Camera(intrinsics, poses, (height, width)).resized((config.height, config.width))

    virtual = [
        _splat(points, colours, Camera(k, p, cameras.size)) for k, p in zip(cameras.intrinsics, poses, strict=True)
    ]
    images, known = (torch.stack(parts) for parts in zip(*virtual, strict=True))
    for place, photograph in enumerate((pair.left, pair.right)):
        images[place] = torch.nn.functional.interpolate(
            photograph.movedim(-1, 0)[None], size=cameras.size, mode="area"
        )[0]
    device = lab.device
    cameras = Camera(cameras.intrinsics.to(device), cameras.camera_from_world.to(device), cameras.size)
    return points.to(device), colours.to(device), Views(cameras, images.to(device), known.to(device))


def _splat(points: Tensor, colours: Tensor, camera: Camera, fine: int = 2) -> tuple[Tensor, Tensor]:
    """What the dense points look like: the nearest of each of 2 x 2 parts of a pixel, known where all four have one."""
    height, width = (fine * s for s in camera.size)
    pixels, depth, _ = camera.resized((height, width)).project(points)
    column, row = pixels.nan_to_num(-1.0).floor().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (depth > 0)
    # From far to near: the last to be written is the nearest.
    order = torch.argsort(depth[inside], descending=True)
    nearest = torch.full((height * width,), -1)
    nearest = nearest.scatter_reduce(0, (row * width + column)[inside][order], torch.arange(len(order)), "amax")
    seen = (nearest >= 0).view(1, 1, height, width).float()
    picture = colours[inside][order][nearest.clamp(min=0)].T.reshape(1, 3, height, width) * seen
    known = torch.nn.functional.avg_pool2d(seen, fine)[0]
    return torch.nn.functional.avg_pool2d(picture, fine)[0] / known.clamp(min=1e-6), (known == 1).float()


def _logit(colours: Tensor) -> Tensor:
    return colours.clamp(0.02, 0.98).logit()


def _batch(views: int, count: int, stream: torch.Generator) -> Tensor:
    return torch.randperm(views, generator=stream)[:count]


def _annealed(config: Config, step: int) -> float:
    """Gamma falls geometrically."""
    first, last = config.gamma
    return first * (last / first) ** (step / max(1, config.steps - 1))


def _render(
    centers: Tensor, radii: Tensor, colours: Tensor, cameras: Camera, background: Tensor, gamma: float
) -> Tensor:
    return render_spheres(
        centers, radii, colours, cameras, gamma=gamma, background=background, depth_range=DEPTH_RANGE
    ).image


def _paint(nearest: Tensor, colours: Tensor, background: Tensor) -> Tensor:
    """The colour of the sphere in front; the index -1 is the background, the last row."""
    return torch.cat([colours, background[None]])[nearest].movedim(-1, -3)


def _error(image: Tensor, views: Views) -> Tensor:
    """Mean squared error where the view is known."""
    return ((image - views.images).square() * views.known).sum() / (3 * views.known.sum())


def _distance(centers: Tensor, surface: Tensor) -> Tensor:
    return torch.cat([_apart(part, surface).amin(-1) for part in centers.split(100)])


def _apart(x: Tensor, y: Tensor) -> Tensor:
    # Not by |x|^2 + |y|^2 - 2 x.y, which in single precision is off by a millimetre.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(centers: Tensor, cover: float, views: Views) -> Tensor:
    """Radii of discs of equal size in the image, ``n pi r^2 = cover h w`` pixels, whatever their depth."""
    height, width = views.cameras.size
    in_pixels = math.sqrt(cover * height * width / (math.pi * len(centers)))
    return in_pixels * centers[:, 2].clamp(min=DEPTH_RANGE[0]) / views.cameras.intrinsics[0, 0, 0]


def _parallax(points: Tensor, views: Views) -> Tensor:
    """Median over points of the largest disagreement of two views, pixels, about one moved 0.1 m away from the left."""
    moved = points * (1 + 0.1 / points[:, 2:])
    shifts = (views.cameras.project(moved).pixels - views.cameras.project(points).pixels).transpose(0, 1)
    return torch.cdist(shifts, shifts).amax((1, 2)).nanmedian()


def _limits(lab: Lab, scenes: dict[str, tuple[Tensor, Tensor, Tensor]], test: Views, background: Tensor) -> None:
    """At the smallest gamma the image is the z-buffer's; at 0.1 derivatives are those of finite differences.

    Two surfaces within 1.4 mm of each other still mix at gamma 1e-5. After the fit many spheres lie in one surface, so
    there that happens more often; the claim is about the scattered spheres of the start.
    """
    same = {}
    for name, (centers, radii, colours) in scenes.items():
        with torch.no_grad():
            sharp = _render(centers, radii, colours, test.cameras, background, 1e-5)
            nearest = zbuffer_spheres(centers, radii, test.cameras, depth_range=DEPTH_RANGE).nearest
            close = (sharp - _paint(nearest, colours, background)).abs() <= 1 / 255
        same[name] = close.all(-3).double().mean()
        lab.metric("pixels equal to the z-buffer at gamma 1e-5", 100 * same[name], of=name, better="higher", unit="%")

    centers, radii, colours = scenes["fitted spheres"]
    camera = Camera(test.cameras.intrinsics[0], test.cameras.camera_from_world[0], test.cameras.size).resized((3, 4))
    k, pose = (t.cpu().double().requires_grad_() for t in (camera.intrinsics, camera.camera_from_world))
    few = [t[:5].cpu().double().requires_grad_() for t in (centers, 4 * radii, colours)]
    opacity = torch.linspace(0.3, 0.9, 5, dtype=torch.float64, requires_grad=True)

    def rendered(c: Tensor, r: Tensor, f: Tensor, o: Tensor, k: Tensor, pose: Tensor) -> Tensor:
        seen_by = Camera(k, pose, camera.size)
        return render_spheres(c, r, f, seen_by, gamma=0.1, opacity=o, depth_range=DEPTH_RANGE).image

    passes = torch.autograd.gradcheck(rendered, (*few, opacity, k, pose), raise_exception=False)
    lab.claim(
        "gamma 1e-5 equals the hard z-buffer within 1/255 at 99.5 % of the pixels of the held-out views of the start, "
        "and gradients pass gradcheck in float64 at gamma 0.1",
        same["start"] >= 0.995 and passes,
        equal_pixels=same["start"],
        equal_pixels_fitted=same["fitted spheres"],
        gradcheck=float(passes),
    )


def _speed(lab: Lab, config: Config) -> None:
    """The kernel against the reference, forward and backward, on random spheres; CPU time of the process."""
    stream = lab.fork("timed spheres")
    n, size = config.timed_spheres, config.timed_size
    low, extent = torch.tensor([-1.5, -1.5, 2.0]), torch.tensor([3.0, 3.0, 3.0])
    centers = low + extent * torch.rand(n, 3, generator=stream)
    scene = [
        centers,
        0.03 + 0.03 * torch.rand(n, generator=stream),
        torch.rand(n, 3, generator=stream),
        0.3 + 0.7 * torch.rand(n, generator=stream),
    ]
    cotangent = torch.randn(3, size, size, generator=stream)
    camera = Camera.pinhole(float(size), (size, size))
    leaves = [*scene, camera.intrinsics, camera.camera_from_world]

    def work(method: str, dtype: torch.dtype, few: int = n, rows: int = size) -> tuple[float, list[Tensor]]:
        inputs = [(t[:few] if t.shape[0] == n else t).to(dtype).requires_grad_() for t in leaves]
        begin = time.process_time()
        c, r, f, o, k, pose = inputs
        image = render_spheres(
            c, r, f, Camera(k, pose, (rows, size)), opacity=o, depth_range=DEPTH_RANGE, method=method
        ).image
        gradients = torch.autograd.grad((image * cotangent[:, :rows].to(dtype)).sum(), inputs)
        return time.process_time() - begin, [image.detach(), *gradients]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = work("kernel", torch.float64, n // 5)[1]
        expected = work("reference", torch.float64, n // 5)[1]
        work("kernel", torch.float32)  # compiles
        fast = sorted(work("kernel", torch.float32)[0] for _ in range(5))[2]
        # Brute force costs the same at every pixel: an eighth of the rows is enough to time it.
        slow = 8 * work("reference", torch.float32, rows=size // 8)[0]
    finally:
        torch.set_num_threads(threads)
    image_error = (found[0] - expected[0]).abs().max()
    errors = [(a - b).norm() / b.norm() for a, b in zip(found[1:], expected[1:], strict=True)]
    lab.metric("forward and backward, CPU time", 1e3 * fast, of="kernel", better="lower", unit="ms")
    lab.metric("forward and backward, CPU time", 1e3 * slow, of="reference", better="lower", unit="ms", baseline=True)
    lab.claim(
        "the kernel equals the reference to 1e-5 (image) and 1e-4 relative (every gradient: centres, radii, features, "
        "opacity, intrinsics, pose) in float64",
        image_error <= 1e-5 and max(errors) <= 1e-4,
        scale="smoke",
        image=image_error,
        gradients=max(errors),
    )
    lab.claim(
        f"the kernel takes at most 1/10 of the CPU time of the reference at {n} spheres, {size} x {size} (the "
        "reference timed on an eighth of the rows)",
        fast * 10 <= slow,
        ratio=slow / fast,
    )


def _draw(
    lab: Lab,
    config: Config,
    fitted: tuple[Tensor, Tensor, Tensor],
    pictures: dict[str, Tensor],
    test: Views,
    background: Tensor,
) -> None:
    rows: dict[str, Callable[[int], Tensor]] = {
        "view": lambda v: test.images[v] * test.known[v],
        **{arm: (lambda v, image=image: image[v]) for arm, image in pictures.items()},  # type: ignore[misc]
    }
    figure, axes = lab.subplots(len(rows), len(HELD_OUT), figsize=(2.6 * len(HELD_OUT), 1.9 * len(rows)))
    for row, (name, picture) in zip(axes, rows.items(), strict=True):
        for v, axis in enumerate(row):
            axis.imshow(picture(v).cpu().movedim(0, -1).clamp(0, 1).numpy())
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
        row[0].set_ylabel(name)
    axes[0, 0].set_title("right photograph")
    for axis in axes[0, 1:]:
        axis.set_title("virtual view")
    lab.figure("held-out views", figure, caption="Views not trained on; black where the depth is not known.")

    figure, curve = lab.subplots(1, 1)
    for arm, colour in (("z-buffer points", "#2f7fd1"), ("spheres", "#e07b39")):
        for cover in config.covers:
            for rate in config.rates:
                name = f"{arm}, cover {cover:g}, rates x {rate:g}"
                values = torch.tensor(lab.series("loss", of=name))
                smooth = torch.nn.functional.avg_pool1d(values[None], min(9, len(values)), 1)
                style = ("-", "--", ":", "-.")[config.rates.index(rate) % 4]
                width = 1.0 + config.covers.index(cover)
                curve.plot(-10 * smooth[0].log10().numpy(), color=colour, linestyle=style, linewidth=width, label=name)
    curve.set(xlabel="step", ylabel="PSNR of the batch (dB)", title="training; the softness falls from left to right")
    curve.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    lab.figure("training", figure, caption="Each arm with its grid of radii and step sizes.")

    middle = fitted[0].median(0).values.cpu()
    angles = 2 * math.pi * torch.arange(config.frames) / config.frames
    around = torch.stack([0.1 + 0.9 * angles.cos(), 0.35 * angles.sin(), 0.2 + 0.0 * angles], -1)
    poses = look_at(around, middle, up=(0.0, -1.0, 0.0)).to(lab.device)
    size = (2 * config.height, 2 * config.width)
    cameras = Camera(test.cameras.intrinsics[1], poses, test.cameras.size).resized(size)
    with torch.no_grad():
        frames = _render(*fitted, cameras, background, config.gamma[1])
    lab.animation("turntable", list(frames.clamp(0, 1).cpu()), caption="The fitted spheres, seen from around.", rate=12)
