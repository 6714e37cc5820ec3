"""Terms of a loss that no gradient leaves."""

# Each program is a few lines of our own around the one construct that the page describes.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from tests.docs.wild.defect import Lost


def _normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator)


def _trained(generator: torch.Generator, *shape: int) -> Tensor:
    return _normal(generator, *shape, scale=0.5).requires_grad_()


# Two graphs are learned from two halves of the data; a term should make them agree.


def _halves(generator: torch.Generator) -> tuple[Tensor, ...]:
    return _normal(generator, 40, 4), _normal(generator, 40, 4), _trained(generator, 4, 4), _trained(generator, 4, 4)


def _disagreement(first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(a, b)


def graphs(first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    fit = F.mse_loss(first[:, :1] @ a[:1], first) + F.mse_loss(second[:, 1:] @ b[1:], second)
    return fit + 2.0 * F.mse_loss(a, b).item()  # <- cut


def graphs_mended(first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    fit = F.mse_loss(first[:, :1] @ a[:1], first) + F.mse_loss(second[:, 1:] @ b[1:], second)
    return fit + 2.0 * F.mse_loss(a, b)


# A student's attention map should follow that of its teacher.


def _networks(generator: torch.Generator) -> tuple[Tensor, ...]:
    images, labels = _normal(generator, 12, 6), torch.arange(12) % 3
    return images, labels, _normal(generator, 6, 8), _trained(generator, 6, 8), _trained(generator, 8, 3)


def _attention_gap(images: Tensor, labels: Tensor, teacher: Tensor, student: Tensor, head: Tensor) -> Tensor:
    return F.mse_loss(F.normalize((images @ student).square()), F.normalize((images @ teacher).square()))


def attention(images: Tensor, labels: Tensor, teacher: Tensor, student: Tensor, head: Tensor) -> Tensor:
    gap = _attention_gap(images, labels, teacher, student, head).detach()  # <- cut
    return F.cross_entropy(torch.relu(images @ student) @ head, labels) + 100 * gap


def attention_mended(images: Tensor, labels: Tensor, teacher: Tensor, student: Tensor, head: Tensor) -> Tensor:
    gap = _attention_gap(images, labels, teacher.detach(), student, head)
    return F.cross_entropy(torch.relu(images @ student) @ head, labels) + 100 * gap


# Features of two hospitals should not be told apart by a discriminator.


def _sites(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (
        _normal(generator, 20, 3),
        _normal(generator, 20, 3) + 1,
        _normal(generator, 4, 1),
        _trained(generator, 3, 4),
        _trained(generator, 4, 3),
    )


def _told_apart(source: Tensor, target: Tensor, critic: Tensor, encoder: Tensor, decoder: Tensor) -> Tensor:
    return ((source @ encoder @ critic).mean() - (target @ encoder @ critic).mean()).square()


def adversary(source: Tensor, target: Tensor, critic: Tensor, encoder: Tensor, decoder: Tensor) -> Tensor:
    fooled = _told_apart(source, target, critic, encoder, decoder)
    fooled = fooled.detach().item()  # <- cut
    return F.l1_loss(source @ encoder @ decoder, source) + fooled


def adversary_mended(source: Tensor, target: Tensor, critic: Tensor, encoder: Tensor, decoder: Tensor) -> Tensor:
    fooled = _told_apart(source, target, critic, encoder, decoder)
    return F.l1_loss(source @ encoder @ decoder, source) + fooled


# Two layers route tokens to experts; a term should spread the tokens.


def _routers(generator: torch.Generator) -> tuple[Tensor, ...]:
    tokens = _normal(generator, 64, 5) + 1
    return tokens, _trained(generator, 5, 4), _trained(generator, 5, 4), _trained(generator, 4, 5)


def _crowding(probabilities: Tensor) -> Tensor:
    return probabilities.shape[-1] * probabilities.mean(0).square().sum() - 1


def _mean_crowding(tokens: Tensor, first: Tensor, second: Tensor, out: Tensor) -> Tensor:
    return (_crowding((tokens @ first).softmax(-1)) + _crowding((tokens @ second).softmax(-1))) / 2


def experts(tokens: Tensor, first: Tensor, second: Tensor, out: Tensor) -> Tensor:
    routes = [(tokens @ gate).softmax(-1) for gate in (first, second)]
    balance = torch.tensor([_crowding(route) for route in routes]).mean()  # <- cut
    return F.mse_loss(routes[0] @ out + routes[1] @ out, tokens) + balance


def experts_mended(tokens: Tensor, first: Tensor, second: Tensor, out: Tensor) -> Tensor:
    routes = [(tokens @ gate).softmax(-1) for gate in (first, second)]
    balance = torch.stack([_crowding(route) for route in routes]).mean()
    return F.mse_loss(routes[0] @ out + routes[1] @ out, tokens) + balance


# A fine class should be a child of the coarse class predicted beside it: four fine classes, two a parent.

_PARENT = torch.tensor([0, 0, 1, 1])


def _levels(generator: torch.Generator) -> tuple[Tensor, ...]:
    images = _normal(generator, 30, 5)
    return images, torch.arange(30) % 2, _trained(generator, 5, 2), _trained(generator, 5, 4)


def _inconsistent(images: Tensor, coarse: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    children = F.one_hot(_PARENT, 2).float()
    agreement = (images @ lower).softmax(-1) @ children * (images @ upper).softmax(-1)
    return 1 - agreement.sum(-1).mean()


def hierarchy(images: Tensor, coarse: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    stray = _PARENT[(images @ lower).argmax(1)] != (images @ upper).argmax(1)  # <- cut
    return F.cross_entropy(images @ upper, coarse) + stray.float().mean()


def hierarchy_mended(images: Tensor, coarse: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    return F.cross_entropy(images @ upper, coarse) + _inconsistent(images, coarse, upper, lower)


# The edges of a segmentation should lie where the image has edges.


def _segmentation(generator: torch.Generator) -> tuple[Tensor, ...]:
    image = torch.zeros(1, 1, 10, 10)
    image[..., 5:] = 1
    logits = _normal(generator, 1, 2, 10, 10).requires_grad_()
    return image, (image[:, 0] > 0.5).long(), logits


def _edges(mask: Tensor) -> Tensor:
    across = F.pad(mask.diff(dim=-1), (0, 1))
    return across.abs() + F.pad(mask.diff(dim=-2), (0, 0, 0, 1)).abs()


def _stray_edges(image: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    return (_edges(logits.softmax(1)[:, 1:]) * (1 - _edges(image))).mean()


def edges(image: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    mask = logits.argmax(1, keepdim=True).float()  # <- cut
    stray = (_edges(mask) * (1 - _edges(image))).mean()
    return F.mse_loss(logits, logits.detach()) + 3 * stray


def edges_mended(image: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    mask = logits.softmax(1)[:, 1:]
    stray = (_edges(mask) * (1 - _edges(image))).mean()
    return F.mse_loss(logits, logits.detach()) + 3 * stray


# The features of a reconstruction, as a fixed network sees them, should be those of the original.


def _frames(generator: torch.Generator) -> tuple[Tensor, ...]:
    return _normal(generator, 6, 4), _normal(generator, 4, 5), _trained(generator, 6, 4)


def _feature_gap(frames: Tensor, features: Tensor, reconstruction: Tensor) -> Tensor:
    return F.mse_loss(torch.relu(reconstruction @ features), torch.relu(frames @ features))


class _Probe:
    """Keeps what a layer puts out."""

    def __init__(self, *, keep_gradient: bool) -> None:
        self.keep_gradient, self.seen = keep_gradient, torch.empty(0)

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if self.keep_gradient:
            self.seen = out
        else:
            self.seen = out.clone().detach()  # <- cut


def _perceptual(frames: Tensor, features: Tensor, reconstruction: Tensor, probe: _Probe) -> Tensor:
    layer = nn.ReLU()
    layer.register_forward_hook(probe)
    layer(reconstruction @ features)
    fake = probe.seen
    layer(frames @ features)
    return 0.1 * reconstruction.square().mean() + F.mse_loss(fake, probe.seen)


def hook(frames: Tensor, features: Tensor, reconstruction: Tensor) -> Tensor:
    return _perceptual(frames, features, reconstruction, _Probe(keep_gradient=False))


def hook_mended(frames: Tensor, features: Tensor, reconstruction: Tensor) -> Tensor:
    return _perceptual(frames, features, reconstruction, _Probe(keep_gradient=True))


# Embeddings of photographs should come close to the remembered centre of their class.


def _memory(generator: torch.Generator) -> tuple[Tensor, ...]:
    photos, labels = _normal(generator, 24, 5), torch.arange(24) % 2
    return photos, labels, _normal(generator, 2, 6), _trained(generator, 5, 6), _trained(generator, 6, 2)


def _distance_to_centre(photos: Tensor, labels: Tensor, centres: Tensor, encoder: Tensor, head: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(photos @ encoder, centres[labels]).mean()


def memory(photos: Tensor, labels: Tensor, centres: Tensor, encoder: Tensor, head: Tensor) -> Tensor:
    features = photos @ encoder
    away = 1 - F.cosine_similarity(features.detach(), centres[labels]).mean()  # <- cut
    return F.cross_entropy(features @ head, labels) + away


def memory_mended(photos: Tensor, labels: Tensor, centres: Tensor, encoder: Tensor, head: Tensor) -> Tensor:
    features = photos @ encoder
    away = 1 - F.cosine_similarity(features, centres[labels]).mean()
    return F.cross_entropy(features @ head, labels) + away


# A portfolio is averaged over draws of the returns that a network expects.


def _market(generator: torch.Generator) -> tuple[Tensor, ...]:
    return torch.tensor([0.1, 0.3, -0.2, 0.0]), _trained(generator, 4)


def _shortfall(returns: Tensor, expected: Tensor) -> Tensor:
    return returns.max() - (expected.softmax(-1) * returns).sum()


def portfolio(returns: Tensor, expected: Tensor) -> Tensor:
    draws = MultivariateNormal(expected, 0.1 * torch.eye(4)).sample((32,))  # <- cut
    return -(draws.softmax(-1).mean(0) * returns).sum() + 0.001 * expected.square().sum()


def portfolio_mended(returns: Tensor, expected: Tensor) -> Tensor:
    draws = MultivariateNormal(expected, 0.1 * torch.eye(4)).rsample((32,))
    return -(draws.softmax(-1).mean(0) * returns).sum() + 0.001 * expected.square().sum()


# A reconstruction should have the structure of the image; the similarity is a metric class.


def _photo(generator: torch.Generator) -> tuple[Tensor, ...]:
    return torch.rand(1, 1, 8, 8, generator=generator), torch.rand(1, 1, 8, 8, generator=generator).requires_grad_()


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    covariance = (F.avg_pool2d(x * y, 3, 1) - F.avg_pool2d(x, 3, 1) * F.avg_pool2d(y, 3, 1)).mean()
    spread = F.avg_pool2d(x * x + y * y, 3, 1) - F.avg_pool2d(x, 3, 1).square() - F.avg_pool2d(y, 3, 1).square()
    return 2 * covariance / (spread.mean() + 1e-3)


def _dissimilarity(image: Tensor, shown: Tensor) -> Tensor:
    return 1 - _similarity(shown, image)


class _Metric:
    """Measures; as metrics do, on detached tensors."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return _similarity(x.detach(), y.detach())  # <- cut


def structure(image: Tensor, shown: Tensor) -> Tensor:
    return (shown.mean() - image.mean()).square() + 1 - _Metric()(shown, image)


def structure_mended(image: Tensor, shown: Tensor) -> Tensor:
    return (shown.mean() - image.mean()).square() + _dissimilarity(image, shown)


DEFECTS = (
    Lost("d-struct", graphs, graphs_mended, _halves, _disagreement),
    Lost("nad", attention, attention_mended, _networks, _attention_gap),
    Lost("fl-mrcm", adversary, adversary_mended, _sites, _told_apart),
    Lost("fastmoe", experts, experts_mended, _routers, _mean_crowding),
    Lost("hierarchical-classification", hierarchy, hierarchy_mended, _levels, _inconsistent),
    Lost("hair-segmentation", edges, edges_mended, _segmentation, _stray_edges),
    Lost("open-genie", hook, hook_mended, _frames, _feature_gap),
    Lost("domain-smoothing", memory, memory_mended, _memory, _distance_to_centre),
    Lost("deepdow", portfolio, portfolio_mended, _market, _shortfall),
    Lost("monai-ssim", structure, structure_mended, _photo, _dissimilarity),
)
