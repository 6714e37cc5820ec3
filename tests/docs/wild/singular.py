"""Gradients that are infinite or NaN at points that occur: equal images, flat images, coinciding points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.docs.wild.defect import Inputs, Singular


def _pair(*shape: int, equal: bool) -> Inputs:
    """Return a maker of a tensor that is trained and of its target."""

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        target = torch.rand(*shape, generator=generator)
        x = target.clone() if equal else torch.rand(*shape, generator=generator)
        return x.requires_grad_(), target

    return make


def _alone(*shape: int, flat: float | None = None) -> Inputs:
    """Return a maker of a tensor that is trained, constant if ``flat`` is given."""

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.rand(*shape, generator=generator) if flat is None else torch.full(shape, flat)
        return (x.requires_grad_(),)

    return make


# Peak signal-to-noise ratio of equal images.


def psnr(x: Tensor, target: Tensor) -> Tensor:
    return -10 * torch.log10(1 / F.mse_loss(x, target))  # <- nan


def psnr_mended(x: Tensor, target: Tensor) -> Tensor:
    return 10 * torch.log10(F.mse_loss(x, target) + 1e-5)


# Gamma correction of a picture with black pixels.


def _half_black(generator: torch.Generator) -> tuple[Tensor, ...]:
    x = torch.rand(1, 6, 6, generator=generator)
    x[:, :3] = 0
    return (x.requires_grad_(),)


def gamma(x: Tensor) -> Tensor:
    return x.pow(0.5).mean()  # <- nan


def gamma_mended(x: Tensor) -> Tensor:
    return x.clamp(min=1e-8).pow(0.5).mean()


# Standard deviation of a map of gradient similarity, of equal images.


def _slopes(x: Tensor) -> Tensor:
    return F.pad(x.diff(dim=-1), (0, 1)).square() + F.pad(x.diff(dim=-2), (0, 0, 0, 1)).square() + 1e-6


def similarity_deviation(x: Tensor, target: Tensor) -> Tensor:
    a, b = _slopes(x), _slopes(target)
    similarity = (2 * (a * b).sqrt() + 1e-3) / (a + b + 1e-3)
    return (similarity - similarity.mean()).square().mean().sqrt()  # <- nan


def similarity_deviation_mended(x: Tensor, target: Tensor) -> Tensor:
    a, b = _slopes(x), _slopes(target)
    similarity = (2 * (a * b).sqrt() + 1e-3) / (a + b + 1e-3)
    return ((similarity - similarity.mean()).square().mean() + 1e-12).sqrt()


# A power of the mean deviation of complex similarities, of equal images.


def _deviations(x: Tensor, target: Tensor) -> Tensor:
    similarity = torch.complex(torch.cos(x - target), torch.sin(x - target))
    return (similarity - similarity.mean()).abs()


def complex_deviation(x: Tensor, target: Tensor) -> Tensor:
    return _deviations(x, target).mean() ** 0.25  # <- nan


def complex_deviation_mended(x: Tensor, target: Tensor) -> Tensor:
    return (_deviations(x, target).mean() + 1e-4) ** 0.25


# Total variation of a flat image, as the root of the sum of squares.


def variation(x: Tensor) -> Tensor:
    return torch.sqrt(x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum())  # <- nan


def variation_mended(x: Tensor) -> Tensor:
    return torch.sqrt(x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum() + 1e-12)


# Magnitude of the image gradient where a patch is flat.

_PREWITT = torch.tensor([[1.0, 0.0, -1.0]] * 3) / 3


def _flat_patch(generator: torch.Generator) -> tuple[Tensor, ...]:
    x = torch.rand(1, 1, 9, 9, generator=generator)
    x[..., 2:7, 2:7] = 0
    return (x.requires_grad_(),)


def magnitude(x: Tensor) -> Tensor:
    kernels = torch.stack([_PREWITT, _PREWITT.T])[:, None]
    return F.conv2d(x, kernels).square().sum(1).sqrt().mean()  # <- nan


def magnitude_mended(x: Tensor) -> Tensor:
    kernels = torch.stack([_PREWITT, _PREWITT.T])[:, None]
    return torch.linalg.vector_norm(F.conv2d(x, kernels), dim=1).mean()


# Root of the mean squared error of an exact prediction.


def rmse(x: Tensor, target: Tensor) -> Tensor:
    return torch.sqrt((x - target).square().mean())  # <- nan


def rmse_mended(x: Tensor, target: Tensor) -> Tensor:
    return torch.sqrt((x - target).square().mean() + 1e-12)


# The same in sliding windows, where one window is exact.


def _half_equal(generator: torch.Generator) -> tuple[Tensor, ...]:
    target = torch.rand(1, 1, 8, 8, generator=generator)
    x = target.clone()
    x[..., 5:] += 0.1
    return x.requires_grad_(), target


def windows(x: Tensor, target: Tensor) -> Tensor:
    return torch.sqrt(F.avg_pool2d((x - target).square(), 3, 1)).mean()  # <- nan


def windows_mended(x: Tensor, target: Tensor) -> Tensor:
    return torch.sqrt(F.avg_pool2d((x - target).square(), 3, 1) + 1e-12).mean()


# Relative error of the bands of an image, one band exact.


def _one_band_equal(generator: torch.Generator) -> tuple[Tensor, ...]:
    target = torch.rand(3, 16, generator=generator)
    x = target + torch.tensor([[0.0], [0.1], [0.2]])
    return x.requires_grad_(), target


def bands(x: Tensor, target: Tensor) -> Tensor:
    errors = torch.sqrt((x - target).square().mean(1))  # <- nan
    return torch.sqrt((errors / target.mean(1)).square().mean())


def bands_mended(x: Tensor, target: Tensor) -> Tensor:
    relative = (x - target).square().mean(1) / target.mean(1).square()
    return torch.sqrt(relative.mean() + 1e-12)


# Euclidean distances from the expanded square, two points in the same place.


def _shared_point(generator: torch.Generator) -> tuple[Tensor, ...]:
    x = torch.randint(0, 5, (5, 3), generator=generator).float()
    others = torch.cat([x[:1], x[1:] + 7])
    return x.requires_grad_(), others


def distances(x: Tensor, others: Tensor) -> Tensor:
    squared = x.square().sum(1, keepdim=True) + others.square().sum(1) - 2 * x @ others.T
    return squared.sqrt().mean()  # <- nan


def distances_mended(x: Tensor, others: Tensor) -> Tensor:
    return torch.cdist(x, others).mean()


# Angle between two rotations that are equal.


def _rotations(*, equal: bool) -> Inputs:
    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        target = torch.stack([torch.eye(3), torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])])
        x = target.clone() if equal else target.flip(0).clone()
        return x.requires_grad_(), target

    return make


def angle(x: Tensor, target: Tensor) -> Tensor:
    cosine = ((x @ target.mT).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.acos(cosine.clamp(-1, 1)).mean()  # <- nan


def angle_mended(x: Tensor, target: Tensor) -> Tensor:
    turn = x @ target.mT
    axis = torch.stack([turn[:, i, j] - turn[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], -1)
    cosine = (turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.atan2((axis.square().sum(-1) + 1e-12).sqrt() / 2, cosine).mean()


# Distance between two clouds of points, by nearest neighbours, one point in common.


def _clouds(*, shared: bool) -> Inputs:
    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        target = torch.rand(6, 3, generator=generator)
        x = torch.rand(5, 3, generator=generator)
        if shared:
            x[0] = target[0]
        return x.requires_grad_(), target

    return make


def chamfer(x: Tensor, target: Tensor) -> Tensor:
    squared = (x[:, None] - target).square().sum(-1)
    nearest = torch.cat([squared.amin(0), squared.amin(1)])
    return torch.sqrt(nearest).mean()  # <- nan


def chamfer_mended(x: Tensor, target: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x[:, None] - target, dim=-1)
    return torch.cat([length.amin(0), length.amin(1)]).mean()


# Pairs of different classes should be a margin apart; two inputs are the same.


def _embeddings(*, same: bool) -> Inputs:
    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        others = torch.rand(4, 3, generator=generator)
        x = torch.rand(4, 3, generator=generator)
        if same:
            x[0] = others[0]
        return x.requires_grad_(), others

    return make


def margin(x: Tensor, others: Tensor) -> Tensor:
    squared = (x - others).square().sum(1)
    return torch.relu(2 - squared.sqrt()).square().mean()  # <- nan


def margin_mended(x: Tensor, others: Tensor) -> Tensor:
    squared = (x - others).square().sum(1)
    return torch.relu(2 - (squared + 1e-9).sqrt()).square().mean()


# A sigmoid written out, of a large argument.


def _gaps(*, far: bool) -> Inputs:
    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        gap = torch.rand(4, generator=generator)
        if far:
            gap[0] = 12
        return (gap.requires_grad_(),)

    return make


def closeness(gap: Tensor) -> Tensor:
    return (1 / (1 + ((gap - 0.5) / 0.1).exp())).mean()  # <- nan


def closeness_mended(gap: Tensor) -> Tensor:
    return (-(gap - 0.5) / 0.1).sigmoid().mean()


# Amplitudes of the spectrum of a flat image.


def spectrum(x: Tensor) -> Tensor:
    transform = torch.fft.fft2(x)
    return torch.sqrt(transform.real**2 + transform.imag**2).mean()  # <- nan


def spectrum_mended(x: Tensor) -> Tensor:
    return torch.fft.fft2(x).abs().mean()


_IMAGES = (1, 1, 8, 8)

DEFECTS = (
    Singular("kornia-psnr", psnr, psnr_mended, _pair(*_IMAGES, equal=True), _pair(*_IMAGES, equal=False)),
    Singular("kornia-gamma", gamma, gamma_mended, _half_black, _alone(1, 6, 6)),
    Singular(
        "piq-gmsd",
        similarity_deviation,
        similarity_deviation_mended,
        _pair(*_IMAGES, equal=True),
        _pair(*_IMAGES, equal=False),
    ),
    Singular(
        "piq-mdsi", complex_deviation, complex_deviation_mended, _pair(8, 8, equal=True), _pair(8, 8, equal=False)
    ),
    Singular("piq-variation", variation, variation_mended, _alone(*_IMAGES, flat=0.5), _alone(*_IMAGES)),
    Singular("piq-gradient-map", magnitude, magnitude_mended, _flat_patch, _alone(1, 1, 9, 9)),
    Singular("torchmetrics-rmse", rmse, rmse_mended, _pair(12, equal=True), _pair(12, equal=False)),
    Singular("torchmetrics-windows", windows, windows_mended, _half_equal, _pair(*_IMAGES, equal=False)),
    Singular("torchmetrics-ergas", bands, bands_mended, _one_band_equal, _pair(3, 16, equal=False)),
    Singular("torchmetrics-distance", distances, distances_mended, _shared_point, _pair(5, 3, equal=False)),
    Singular("rotation-continuity", angle, angle_mended, _rotations(equal=True), _rotations(equal=False)),
    Singular("pointr", chamfer, chamfer_mended, _clouds(shared=True), _clouds(shared=False)),
    Singular("siamese-triplet", margin, margin_mended, _embeddings(same=True), _embeddings(same=False)),
    Singular("gpgraph", closeness, closeness_mended, _gaps(far=True), _gaps(far=False)),
    Singular("monai-spectrum", spectrum, spectrum_mended, _alone(*_IMAGES, flat=0.5), _alone(*_IMAGES)),
)
