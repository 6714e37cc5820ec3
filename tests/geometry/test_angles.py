"""Angles where the arc cosine fails: very small and flat ones."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.geometry import angular_distance


def test_small_and_flat_angles_have_digits_and_a_finite_gradient() -> None:
    for angle in (1e-6, 1e-3, math.pi - 1e-4):
        v = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float32)
        assert angular_distance(torch.tensor([1.0, 0.0]), v) == pytest.approx(angle, rel=1e-3)
    for v in (torch.tensor([2.0, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0])):
        u = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
        (gradient,) = torch.autograd.grad(angular_distance(u, v), u)
        assert gradient.isfinite().all()
