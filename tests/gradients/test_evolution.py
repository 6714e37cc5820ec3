"""Evolution strategies against the gradient of a smoothed quadratic in closed form, and their ranks against scipy's."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from pullback.gradients import EvolutionGradient, evolution_gradient

_POINT = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
_CURVE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]], dtype=torch.float64)


def quadratic(p: dict[str, Tensor]) -> Tensor:
    return p["x"] @ _CURVE @ p["x"] / 2 + p["x"].sum()


def estimate(loss: object = quadratic, pairs: int = 6, chunk: int | None = None, **words: object) -> EvolutionGradient:
    draws = torch.Generator().manual_seed(3)
    options = {"smoothing": 0.3, "pairs": pairs, "chunk": chunk, "generator": draws, **words}
    return evolution_gradient(loss, {"x": _POINT}, **options)  # type: ignore[arg-type]


def test_a_quadratic_has_its_own_gradient_and_a_value_raised_by_half_the_trace() -> None:
    found = estimate(pairs=4000, chunk=1000)
    exact = _CURVE @ _POINT + 1
    assert bool(((found.gradient["x"] - exact).abs() < 4 * found.standard_error["x"]).all())
    assert float(found.standard_error["x"].max()) < 0.2  # of 7
    smoothed = float(quadratic({"x": _POINT}) + 0.3**2 * _CURVE.trace() / 2)
    assert found.value == pytest.approx(smoothed, abs=0.2)
    assert found.evaluations == 8000


def test_ranks_are_those_of_scipy_with_ties_in_the_mean() -> None:
    directions = torch.cat(
        [
            torch.randn(1, 3, generator=g, dtype=torch.float64)
            for g in [torch.Generator().manual_seed(3)]
            for _ in range(6)
        ]
    )

    def rough(p: dict[str, Tensor]) -> Tensor:
        return quadratic(p).round()

    losses = torch.stack([torch.stack([rough({"x": _POINT + s * 0.3 * e}) for e in directions]) for s in (1, -1)])
    assert losses.unique().numel() < losses.numel()
    ranks = torch.from_numpy((rankdata(losses.flatten().numpy()) - 1) / 11 - 0.5).view(2, 6)
    expected = ((ranks[0] - ranks[1])[:, None] * directions).mean(0) / 0.6
    for chunk in (None, 4):
        found = estimate(rough, chunk=chunk, shaping="ranks")
        torch.testing.assert_close(found.gradient["x"], expected)
        assert found.value == pytest.approx(float(losses.mean()))


def test_ranks_do_not_see_an_increasing_function_and_point_downhill() -> None:
    plain = estimate(shaping="ranks", pairs=200)
    for change in (lambda y: y.exp(), lambda y: 1e200 * y, lambda y: 1e-200 * y.atan()):
        other = estimate(lambda p, change=change: change(quadratic(p)), shaping="ranks", pairs=200)
        assert torch.equal(other.gradient["x"], plain.gradient["x"])
    exact = _CURVE @ _POINT + 1
    assert float(torch.cosine_similarity(plain.gradient["x"], exact, dim=0)) > 0.95
    flat = estimate(lambda p: 0 * p["x"].sum() + 3.0, shaping="ranks")
    assert bool((flat.gradient["x"] == 0).all())
    assert flat.value == 3.0


def test_ranks_shrug_off_an_outlier() -> None:
    def spiked(p: dict[str, Tensor]) -> Tensor:
        return quadratic(p) + 1e9 * (p["x"][0] > 1.2)

    exact = _CURVE @ _POINT + 1
    straight, ranked = (estimate(spiked, pairs=400, shaping=kind).gradient["x"] for kind in ("none", "ranks"))
    assert float(torch.cosine_similarity(straight, exact, dim=0)) < 0.9
    assert float(torch.cosine_similarity(ranked, exact, dim=0)) > 0.95


def test_a_generator_goes_on_where_it_stands_and_bad_words_are_refused() -> None:
    ends = []
    for shaping in ("none", "ranks"):
        draws = torch.Generator().manual_seed(0)
        evolution_gradient(quadratic, {"x": _POINT}, smoothing=1.0, pairs=3, generator=draws, shaping=shaping)
        ends.append(torch.rand(1, generator=draws))
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="shaping must be"):
        estimate(shaping="rank")
    with pytest.raises(ValueError, match="loss must be finite"):
        estimate(lambda p: p["x"].sum() * math.nan, shaping="ranks")


def test_ranks_belong_to_their_directions_where_the_loss_draws_from_the_generator_too() -> None:
    draws = torch.Generator().manual_seed(0)
    asked: list[Tensor] = []

    def noisy(p: dict[str, Tensor]) -> Tensor:
        asked.append(p["x"] - _POINT)
        return quadratic(p) + 1e-3 * torch.randn((), generator=draws, dtype=torch.float64)

    found = evolution_gradient(noisy, {"x": _POINT}, smoothing=0.3, pairs=5, generator=draws, shaping="ranks")
    losses = torch.stack([quadratic({"x": _POINT + step}) for step in asked])
    ranks = torch.from_numpy((rankdata(losses.numpy()) - 1) / 9 - 0.5)  # noise too small to change them
    expected = torch.stack([rank * step / 0.3**2 / 10 for rank, step in zip(ranks, asked, strict=True)]).sum(0)
    torch.testing.assert_close(found.gradient["x"], expected)
