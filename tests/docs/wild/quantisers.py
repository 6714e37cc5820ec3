"""Codebooks and assignments that are never trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.docs.wild.defect import Lost


def _latents(generator: torch.Generator) -> tuple[Tensor, ...]:
    encoded = torch.randn(40, 3, generator=generator)
    codebook = (0.3 * torch.randn(6, 3, generator=generator)).requires_grad_()
    return encoded, (0.5 * torch.eye(3)).requires_grad_(), codebook


def _look_up(codebook: Tensor, x: Tensor) -> Tensor:
    return codebook[torch.cdist(x, codebook).argmin(-1)]


def _decoded_error(encoded: Tensor, encoder: Tensor, codebook: Tensor) -> Tensor:
    return F.mse_loss(_look_up(codebook, encoded @ encoder), encoded)


# The codes should move to what they stand for.


def codebook(encoded: Tensor, encoder: Tensor, codebook: Tensor) -> Tensor:
    x = encoded @ encoder
    code = _look_up(codebook, x)
    passed_on = x + (code - x).detach()  # <- cut
    return F.mse_loss(passed_on, encoded) + F.mse_loss(passed_on, x.detach()) + F.mse_loss(passed_on.detach(), x)


def codebook_mended(encoded: Tensor, encoder: Tensor, codebook: Tensor) -> Tensor:
    x = encoded @ encoder
    code = _look_up(codebook, x)
    passed_on = x + (code - x).detach()
    return F.mse_loss(passed_on, encoded) + F.mse_loss(code, x.detach()) + F.mse_loss(passed_on.detach(), x)


# The same in a residual quantiser of two levels.


def _two_books(generator: torch.Generator) -> tuple[Tensor, ...]:
    return *_latents(generator), (0.2 * torch.randn(6, 3, generator=generator)).requires_grad_()


def _decoded_residual(encoded: Tensor, encoder: Tensor, first: Tensor, second: Tensor) -> Tensor:
    code = _look_up(first, encoded @ encoder)
    return F.mse_loss(code + _look_up(second, encoded @ encoder - code), encoded)


def residual_codes(encoded: Tensor, encoder: Tensor, first: Tensor, second: Tensor) -> Tensor:
    x = rest = encoded @ encoder
    loss, total = torch.zeros(()), torch.zeros(())
    for book in (first, second):
        code = _look_up(book, rest)
        code = rest + (code - rest).detach()  # <- cut
        loss = loss + F.mse_loss(code, rest.detach()) + 0.25 * F.mse_loss(rest, code.detach())
        total, rest = total + code.detach(), rest - code.detach()
    return loss + F.mse_loss(x + (total - x).detach(), encoded)


def residual_codes_mended(encoded: Tensor, encoder: Tensor, first: Tensor, second: Tensor) -> Tensor:
    x = rest = encoded @ encoder
    loss, total = torch.zeros(()), torch.zeros(())
    for book in (first, second):
        code = _look_up(book, rest)
        loss = loss + F.mse_loss(code, rest.detach()) + 0.25 * F.mse_loss(rest, code.detach())
        total, rest = total + code.detach(), rest - code.detach()
    return loss + F.mse_loss(x + (total - x).detach(), encoded)


# The encoder should keep what each level leaves small, the second too.


def _second_commitment(encoded: Tensor, encoder: Tensor, first: Tensor, second: Tensor) -> Tensor:
    x = encoded @ encoder
    rest = x - _look_up(first, x)
    return F.mse_loss(_look_up(second, rest), rest)


def commitment(encoded: Tensor, encoder: Tensor, first: Tensor, second: Tensor) -> Tensor:
    x = encoded @ encoder
    code = x + (_look_up(first, x) - x).detach()
    rest = x - code  # <- zero
    return F.mse_loss(x, encoded) + 4 * F.mse_loss(rest, _look_up(second, rest).detach())


def commitment_mended(encoded: Tensor, encoder: Tensor, first: Tensor, second: Tensor) -> Tensor:
    x = encoded @ encoder
    code = x + (_look_up(first, x) - x).detach()
    rest = x - code.detach()
    return F.mse_loss(x, encoded) + 4 * F.mse_loss(rest, _look_up(second, rest).detach())


def _fixed_books(generator: torch.Generator) -> tuple[Tensor, ...]:
    encoded, encoder, first, second = _two_books(generator)
    return encoded, encoder, first.detach(), second.detach()


# All codes should be used equally often.


def _points(generator: torch.Generator) -> tuple[Tensor, ...]:
    data = torch.randn(60, 2, generator=generator) + torch.tensor([1.5, 0.0])
    return data, torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), data.clone().requires_grad_()


def _unequal(data: Tensor, codes: Tensor, x: Tensor) -> Tensor:
    counts = torch.bincount(torch.cdist(x, codes).argmin(-1), minlength=len(codes))
    return (len(codes) * counts / len(x) - 1).square().mean()


def usage(data: Tensor, codes: Tensor, x: Tensor) -> Tensor:
    chosen = torch.cdist(x, codes).argmin(-1)  # <- cut
    counts = torch.bincount(chosen, minlength=len(codes))
    even = len(x) / len(codes)
    return 0.1 * F.mse_loss(x, data) + ((counts - even) ** 2).mean() / even**2


def usage_mended(data: Tensor, codes: Tensor, x: Tensor) -> Tensor:
    shares = (-4 * torch.cdist(x, codes)).softmax(-1).mean(0)
    return 0.1 * F.mse_loss(x, data) + (len(codes) * shares - 1).square().mean()


DEFECTS = (
    Lost("olaf-world", codebook, codebook_mended, _latents, _decoded_error),
    Lost("rq-vae-recommender", residual_codes, residual_codes_mended, _two_books, _decoded_residual),
    Lost("encodec", commitment, commitment_mended, _fixed_books, _second_commitment),
    Lost("gnpr-sid", usage, usage_mended, _points, _unequal),
)
