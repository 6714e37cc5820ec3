"""Mirror descent, step sizes and averages: what their entries in the contracts do not say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pullback.implicit import prox_lasso
from pullback.optim import (
    IterateAverage,
    LinearDecay,
    MirrorDescent,
    NormalizedMomentumSGD,
    ScheduleFreeSGD,
    mirror_step,
    step_sizes,
    worst_case_subgradient,
)


def _last(schedule: str, steps: int) -> float:
    x = torch.zeros(steps + 1, dtype=torch.float64)
    for size in step_sizes(schedule, steps):
        x = x - size * worst_case_subgradient(x)[1]
        x = x / x.norm().clamp(min=1)
    return float(worst_case_subgradient(x)[0]) * steps**0.5


def test_the_ramp_takes_the_logarithm_out_of_the_last_iterate() -> None:
    growth = {kind: _last(kind, 512) / _last(kind, 64) for kind in ("linear", "sqrt", "constant")}
    assert growth["linear"] <= 1.05
    assert growth["sqrt"] >= 1.3
    assert growth["constant"] >= 1.3


def test_the_worst_case_is_least_at_the_origin(generator: torch.Generator) -> None:
    for _ in range(50):
        x = torch.randn(9, generator=generator, dtype=torch.float64)
        value, slope = worst_case_subgradient(x)
        assert value >= -1e-12
        assert float(slope @ x) == pytest.approx(float(value))


def test_multiplicative_weights_keep_the_sum_and_no_entry_dies() -> None:
    w = nn.Parameter(torch.tensor([[0.2, 0.3], [2.0, 1.0]]))
    optimizer = MirrorDescent([w], lr=50.0, geometry="simplex")
    for _ in range(5):
        w.grad = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        optimizer.step()
    torch.testing.assert_close(w.data.sum(-1), torch.tensor([0.5, 3.0]))
    assert torch.isfinite(w).all()


def test_a_proximal_term_makes_weights_exactly_zero(generator: torch.Generator) -> None:
    a, w = torch.randn(80, 6, generator=generator), nn.Parameter(torch.zeros(6))
    y = a[:, 0] * 2
    optimizer = MirrorDescent([w], lr=0.1, prox=lambda x, lr: prox_lasso(x, 0.3 * lr))
    for _ in range(300):
        optimizer.zero_grad()
        ((a @ w - y).square().mean() / 2).backward()
        optimizer.step()
    assert (w[1:] == 0).all()
    assert w[0] > 1


def test_a_step_of_degree_three_counts_a_wild_gradient_as_its_root() -> None:
    x, wild = torch.tensor([1.0, 1.0]), torch.tensor([1e6, 1.0])
    moved = x - mirror_step(x, wild, 0.1, geometry="power", exponent=3.0)
    assert 300 < moved[0] < 330  # of 1e5 in Euclid's geometry
    assert 0 < moved[1] < 0.1


def test_a_ramp_goes_on_after_a_resume_and_has_no_more_steps_than_told() -> None:
    sizes, w = [], nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([w], lr=1.0)
    ramp = LinearDecay(optimizer, 4, smoothness=0.8)
    for step in range(4):
        if step == 2:
            saved, state = ramp.state_dict(), optimizer.state_dict()
            optimizer = torch.optim.SGD([w], lr=1.0)
            ramp = LinearDecay(optimizer, 4, smoothness=0.8)
            optimizer.load_state_dict(state)
            ramp.load_state_dict(saved)
        sizes.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        ramp.step()
    assert sizes == [0.625, 0.625, 0.5, 0.25]
    with pytest.raises(ValueError, match="made for 4 steps, step 5 is beyond"):
        ramp.step()


def test_schedule_free_with_no_momentum_is_the_average_of_descent() -> None:
    free, plain = nn.Parameter(torch.tensor([3.0]).double()), nn.Parameter(torch.tensor([3.0]).double())
    optimizer, descent = ScheduleFreeSGD([free], lr=0.1, momentum=0.0), torch.optim.SGD([plain], lr=0.1)
    average = IterateAverage([plain])
    for _ in range(7):
        for p in (free, plain):
            p.grad = p.detach().clone()
        optimizer.step()
        descent.step()
        average.update()
    assert free.item() == pytest.approx(plain.item())
    optimizer.eval()
    assert free.item() == pytest.approx(average.average[0].item())
    with pytest.raises(RuntimeError, match="call train"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="call train"):
        optimizer.state_dict()
    optimizer.train()
    assert free.item() == pytest.approx(plain.item())


def test_an_average_is_swapped_in_and_out_and_says_when_it_is_in_place() -> None:
    w = nn.Parameter(torch.tensor([1.0]))
    average = IterateAverage([w])
    average.update()
    w.data.fill_(3.0)
    average.update()
    with average.swap():
        assert w.item() == 2.0
        with pytest.raises(RuntimeError, match="inside of swap"):
            average.update()
        with pytest.raises(RuntimeError, match="inside of swap"):
            average.state_dict()
    assert w.item() == 3.0
    again = IterateAverage([w])
    again.load_state_dict(average.state_dict())
    w.data.fill_(5.0)
    again.update()
    assert again.average[0].item() == 3.0
    with pytest.raises(ValueError, match="at least one parameter"):
        IterateAverage([])


def test_running_means_have_the_precision_of_their_parameters() -> None:
    """A weight of 1/3 rounded to single precision would show in the eighth digit."""
    points: Tensor = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    w = nn.Parameter(points[:1].clone())
    average = IterateAverage([w])
    for point in points:
        w.data.fill_(float(point))
        average.update()
    assert average.average[0].item() == pytest.approx(1 / 3, rel=1e-15)
    optimizer = NormalizedMomentumSGD([w], lr=1.0, momentum=0.9)
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert optimizer.state[w]["mean"].item() == pytest.approx(0.1, rel=1e-15)
