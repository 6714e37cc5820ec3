"""Samples of a discrete distribution: their law, exactly one-hot, finite at the ends of the uniform's range."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pullback import discrete
from pullback.discrete import sampling

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def _all_between_0_and_1(dtype: torch.dtype) -> Tensor:
    """Every value of a 16-bit type in [0, 1]."""
    bits = torch.arange(2**16).to(torch.int32).to(torch.uint16).view(torch.int16)
    values = bits.view(dtype)
    return values[(values >= 0) & (values <= 1)]


def _ends(dtype: torch.dtype) -> Tensor:
    """Zero, the first and last numbers after 0 and before 1 (subnormal ones too), 1."""
    if dtype in (torch.float16, torch.bfloat16):
        return _all_between_0_and_1(dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    one = torch.ones((), dtype=dtype).view(integer)
    tiny = torch.tensor(torch.finfo(dtype).tiny, dtype=dtype).view(integer)
    steps = torch.arange(20_000, dtype=integer)
    bits = torch.cat([steps, tiny - 10_000 + steps, one - steps])
    return bits.view(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_finite_for_every_extreme_uniform(dtype: torch.dtype) -> None:
    uniform = _ends(dtype)
    assert uniform.min() == 0
    assert uniform.max() == 1
    wide = uniform if dtype in (torch.float32, torch.float64) else uniform.float()
    for exponential in (-torch.log(wide), -torch.log1p(-wide), wide):
        noise = sampling._negative_log(exponential.clone())
        assert torch.isfinite(noise).all()
        assert torch.isfinite(noise.to(dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 0.5, 100.0])
def test_gumbel_softmax_is_finite_when_the_draws_are_extreme(
    dtype: torch.dtype, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = torch.tensor([0.0, 1e-45, 1e-38, 1.0, 88.0, 104.0, math.inf])
    draws = torch.cartesian_prod(ends, ends, ends)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, **_: self.copy_(draws))
    logits = torch.tensor([0.0, -math.inf, 4.0], dtype=dtype).expand(len(draws), 3).clone().requires_grad_()
    for hard in (False, True):
        sample = discrete.gumbel_softmax(logits, temperature=temperature, hard=hard)
        assert sample.dtype == dtype
        assert torch.isfinite(sample).all()
        torch.testing.assert_close(sample.float().sum(-1), torch.ones(len(draws)), rtol=0, atol=1e-2)
        assert (sample[:, 1] == 0).all()
        (gradient,) = torch.autograd.grad((sample * torch.tensor([1.0, 2.0, -1.0])).float().sum(), logits)
        assert torch.isfinite(gradient).all()
        assert (gradient[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_hard_samples_are_exact_one_hot_vectors(dtype: torch.dtype, dim: int) -> None:
    logits = torch.randn(50, 6, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    samples = [
        discrete.gumbel_softmax(logits, hard=True, dim=dim, generator=torch.Generator().manual_seed(1)),
        discrete.gumbel_softmax(logits, temperature=0.0, dim=dim, generator=torch.Generator().manual_seed(1)),
        discrete.reinmax(logits, dim=dim, generator=torch.Generator().manual_seed(1)).onehot,
        *[discrete.categorical(logits, method=m, dim=dim) for m in discrete.CATEGORICAL_METHODS],
    ]
    soft = discrete.gumbel_softmax(logits, dim=dim, generator=torch.Generator().manual_seed(1))
    assert torch.equal(samples[0], samples[1])
    if dtype in (torch.float32, torch.float64):  # rounded to 16 bits the relaxation has ties
        assert torch.equal(samples[0].argmax(dim), soft.argmax(dim))
    for sample in samples:
        index = sample.argmax(dim)
        expected = torch.nn.functional.one_hot(index, logits.shape[dim]).movedim(-1, dim).to(dtype)
        assert sample.dtype == dtype
        assert torch.equal(sample, expected)


def test_temperature_zero_has_gradient_zero_and_no_nan() -> None:
    logits = torch.tensor([[0.0, -math.inf, 3.0], [1e30, -1e30, 0.0]], requires_grad=True)
    sample = discrete.gumbel_softmax(logits, temperature=0.0)
    (gradient,) = torch.autograd.grad((sample * torch.arange(3.0)).sum(), logits)
    assert torch.equal(gradient, torch.zeros(2, 3))


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, g: discrete.gumbel_softmax(x, hard=True, generator=g),
        lambda x, g: discrete.reinmax(x, generator=g).onehot,
        lambda x, g: discrete.categorical(x, method="straight_through", temperature=2.0, generator=g),
        lambda x, g: discrete.multinomial(x.softmax(-1), 1, hard=True, generator=g)[:, 0],
    ],
    ids=["gumbel", "reinmax", "straight_through", "multinomial"],
)
def test_frequencies_are_the_probabilities(draw: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05], dtype=torch.float64)
    n = 200_000
    counts = draw(p.log().expand(n, 5), torch.Generator().manual_seed(0)).sum(0)
    kept = p > 0
    chi_square = ((counts - n * p)[kept].square() / (n * p)[kept]).sum()
    assert counts[1] == 0
    assert chi_square < 16.3  # 0.999 quantile, 3 degrees of freedom


def test_reinmax_warns_below_temperature_one_and_ignores_impossible_classes() -> None:
    logits = torch.tensor([0.0, -math.inf, 1.0], requires_grad=True)
    with pytest.warns(UserWarning, match=r"temperature >= 1, got 0.5"):
        sample = discrete.reinmax(logits, temperature=0.5)
    (gradient,) = torch.autograd.grad((sample.onehot * torch.tensor([1.0, 5.0, 2.0])).sum(), logits)
    assert torch.isfinite(gradient).all()
    assert gradient[1] == 0
    single = torch.zeros(1, requires_grad=True)
    assert torch.autograd.grad(3 * discrete.reinmax(single).onehot.sum(), single)[0].item() == 0


def test_samples_under_vmap_and_grad() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    for block in (
        lambda x: discrete.gumbel_softmax(x, hard=True),
        lambda x: discrete.reinmax(x).onehot,
        lambda x: discrete.multinomial(x.softmax(-1), 2, hard=True)[0],
    ):
        per_sample = torch.func.vmap(
            torch.func.grad(lambda x, block=block: (block(x) * torch.arange(5.0)).sum()), randomness="different"
        )(logits)
        assert per_sample.shape == (8, 5)
        assert torch.isfinite(per_sample).all()
        assert per_sample.abs().max() > 0


def test_the_generator_alone_decides_the_draw() -> None:
    logits = torch.randn(100, 4)
    state = torch.get_rng_state()
    for block in (
        discrete.gumbel_softmax,
        lambda x, generator: discrete.reinmax(x, generator=generator).onehot,
        lambda x, generator: discrete.bernoulli(x.sigmoid(), generator=generator),
        lambda x, generator: discrete.multinomial(x.exp(), 2, generator=generator),
    ):
        first, again, other = (block(logits, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_multinomial_without_replacement_is_plackett_luce() -> None:
    p = torch.tensor([0.6, 0.3, 0.1])
    n = 60_000
    rows = discrete.multinomial(p.expand(n, 3), 2, hard=True, generator=torch.Generator().manual_seed(0))
    first, second = rows.argmax(-1).unbind(-1)
    for i in range(3):
        for j in range(3):
            expected = 0.0 if i == j else (p[i] * p[j] / (1 - p[i])).item()
            found = ((first == i) & (second == j)).double().mean().item()
            assert found == pytest.approx(expected, abs=4 * math.sqrt(max(expected, 1e-12) / n))


def test_bernoulli_at_every_extreme_uniform() -> None:
    uniform = torch.tensor([0.0, 1e-45, 1e-38, 0.5, 1 - 2**-24])
    p = torch.tensor([0.0, 1e-45, 1e-38, 1e-7, 0.5, 1 - 2**-24, 1.0])
    u, q = (t.clone() for t in torch.meshgrid(uniform, p, indexing="ij"))
    q.requires_grad_()
    for temperature in (1e-3, 0.5, 1.0):
        soft = sampling._bernoulli(q, u, "concrete", temperature, False, False)
        hard = sampling._bernoulli(q, u, "concrete", temperature, True, False)
        assert torch.equal(hard, (u < q).float())
        assert ((soft >= 0) & (soft <= 1)).all()
        assert torch.isfinite(torch.autograd.grad(soft.sum(), q)[0]).all()


def test_bernoulli_methods() -> None:
    p = torch.full((100_000,), 0.3, dtype=torch.float64, requires_grad=True)
    hard = discrete.bernoulli(p, hard=True, generator=torch.Generator().manual_seed(0))
    soft = discrete.bernoulli(p, generator=torch.Generator().manual_seed(0))
    through = discrete.bernoulli(p, method="straight_through", generator=torch.Generator().manual_seed(0))
    assert torch.equal(hard, through)
    assert torch.equal(hard, (soft > 0.5).double())
    assert hard.mean().item() == pytest.approx(0.3, abs=0.006)
    assert torch.equal(torch.autograd.grad(through.sum(), p)[0], torch.ones_like(p))
    # Reparameterised: the mean slope of E[relaxed sample] agrees with finite differences over the same uniforms.
    (slope,) = torch.autograd.grad(soft.sum(), p)
    shifted = [
        discrete.bernoulli(p.detach() + h, generator=torch.Generator().manual_seed(0)).mean() for h in (1e-5, -1e-5)
    ]
    assert slope.mean().item() == pytest.approx(((shifted[0] - shifted[1]) / 2e-5).item(), rel=1e-4)


def test_straight_through_takes_booleans() -> None:
    x = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    y = discrete.straight_through(x > 0.5, x * 3)
    assert y.tolist() == [0.0, 1.0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [3.0, 3.0]


def test_gumbel_noise_moments() -> None:
    for dtype in DTYPES:
        noise = discrete.gumbel_noise([200_000], dtype=dtype, generator=torch.Generator().manual_seed(0))
        assert noise.dtype == dtype
        assert noise.double().mean().item() == pytest.approx(0.57722, abs=0.02)
        assert noise.double().var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)
    with pytest.raises(TypeError, match=r"dtype must be floating, got torch\.int64"):
        discrete.gumbel_noise([2], dtype=torch.int64)
