"""Online-to-nonconvex conversion: its guarantee, its epochs, problems apart from each other, resumes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pullback.optim import OnlineToNonconvex, goldstein_norm, horizon_plan


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _kinked(w: Tensor) -> Tensor:
    """A loss that is neither convex nor smooth."""
    return (w.abs() - 1).abs().sum(-1) + 0.3 * torch.sin(3 * w).sum(-1)


def _fill(w: nn.Parameter) -> Tensor:
    w.grad = torch.autograd.grad(_kinked(w).sum(), w)[0]
    return w.grad


@pytest.mark.parametrize("random_scaling", [True, False])
def test_products_of_gradients_and_moves_add_up_to_the_change_of_the_loss(random_scaling: bool) -> None:
    """On average over the random points, and only with them."""
    w = nn.Parameter(torch.randn(1, 3, generator=_stream(1)).double().expand(2000, 3).clone())
    first = _kinked(w.detach())
    options = {"radius": 4.0, "horizon": 10, "lipschitz": 2.0, "batch_ndim": 1, "random_scaling": random_scaling}
    optimizer = OnlineToNonconvex([w], **options, generator=_stream())
    total = torch.zeros(2000).double()
    for _ in range(20):
        gradient = _fill(w)
        if optimizer.state[w]:
            total += (gradient * optimizer.state[w]["move"]).sum(-1)
        optimizer.step()
    gap = total - (_kinked(optimizer.state[w]["origin"]) - first)
    deviation = gap.mean().abs() / (gap.std() / 2000**0.5 + 1e-3)
    assert (deviation < 4) == random_scaling


def test_points_of_an_epoch_are_within_the_radius_and_outputs_are_their_means() -> None:
    w = nn.Parameter(torch.tensor([2.0, -3.0]).double())
    optimizer = OnlineToNonconvex([w], radius=0.5, horizon=8, learner="optimistic", generator=_stream())
    means, points = [], []
    for step in range(80):
        points.append(w.detach().clone())
        _fill(w)
        optimizer.step()
        if step % 8 == 7:
            inside = torch.stack(points)
            means.append(inside.mean(0))
            assert (inside - means[-1]).norm(dim=-1).max() <= 0.5
            torch.testing.assert_close(optimizer.output("last")[0], means[-1])
            points = []
    assert any(torch.allclose(optimizer.output()[0], mean) for mean in means)


def test_the_random_epoch_is_uniform() -> None:
    w = nn.Parameter(torch.zeros(1))
    stream, counts = _stream(), torch.zeros(4)
    for _ in range(400):
        optimizer = OnlineToNonconvex([w], radius=2.0, horizon=2, lipschitz=1.0, generator=stream)
        ends = []
        for _ in range(4):
            for _ in range(2):
                w.grad = -torch.ones(1)
                optimizer.step()
            ends.append(optimizer.output("last")[0])
        counts[[torch.equal(end, optimizer.output()[0]) for end in ends].index(True)] += 1
    assert (counts / 400 - 0.25).abs().max() < 0.09  # four standard deviations


def test_problems_in_one_tensor_are_as_if_alone() -> None:
    start = torch.randn(3, 2, generator=_stream()).double()
    radii = torch.tensor([0.5, 1.0, 2.0]).double()
    together, bias = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(3).double())
    options = {"horizon": 4, "random_scaling": False}
    optimizer = OnlineToNonconvex([together, bias], radius=radii, batch_ndim=1, **options)
    alone = [(nn.Parameter(row.clone()), nn.Parameter(torch.zeros(()).double())) for row in start]
    others = [OnlineToNonconvex(pair, radius=float(r), **options) for pair, r in zip(alone, radii, strict=True)]
    for _ in range(10):
        for w, b in [(together, bias), *alone]:
            w.grad, b.grad = torch.autograd.grad((_kinked(w) + (b - w.sum(-1)).abs()).sum(), (w, b))
        for one in (optimizer, *others):
            one.step()
    torch.testing.assert_close(together, torch.stack([w for w, _ in alone]))
    torch.testing.assert_close(bias, torch.stack([b for _, b in alone]))


@pytest.mark.parametrize("learner", ["ogd", "optimistic"])
def test_a_saved_state_goes_on_to_the_bit(learner: str) -> None:
    streams = _stream(), _stream()
    w = nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = OnlineToNonconvex([w], radius=0.5, horizon=4, learner=learner, generator=streams[0])  # type: ignore[arg-type]
    for _ in range(6):
        _fill(w)
        optimizer.step()
    twin = nn.Parameter(w.detach().clone())
    other = OnlineToNonconvex([twin], radius=0.5, horizon=4, generator=streams[1])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    streams[1].set_state(streams[0].get_state())
    for one, p in ((optimizer, w), (other, twin)):
        for _ in range(7):

            def closure(one: torch.optim.Optimizer = one, p: nn.Parameter = p) -> Tensor:
                one.zero_grad()
                loss = _kinked(p)
                loss.backward()
                return loss

            assert one.step(closure).ndim == 0
    assert torch.equal(w, twin)
    assert torch.equal(optimizer.output()[0], other.output()[0])


def test_schedulers_shorten_moves_and_huge_gradients_make_moves_of_full_length() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = OnlineToNonconvex([w], radius=4.0, horizon=4, lipschitz=1.0, random_scaling=False)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)
    w.grad = torch.full((2,), 1e30)
    optimizer.step()
    torch.testing.assert_close(w.detach().norm(), torch.tensor(0.5))


def test_what_cannot_be_is_refused() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = OnlineToNonconvex([w], radius=1.0, horizon=4)
    with pytest.raises(RuntimeError, match=r"output\(\) needs an epoch of 4 steps, group 0 took 0"):
        optimizer.output()
    w.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match="takes no sparse gradients, got parameter 0 of group 0"):
        optimizer.step()
    with pytest.raises(ValueError, match="the first 1 sizes of all parameters must agree"):
        OnlineToNonconvex(
            [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))], radius=1.0, horizon=2, batch_ndim=1
        )


def test_at_a_kink_the_norm_vanishes_and_beside_it_it_does_not() -> None:
    points = torch.tensor([[0.05], [0.9], [2.0]])
    found = goldstein_norm(torch.sign, points, 1.0, generator=_stream())
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0]), atol=1e-4, rtol=0)
    mean = goldstein_norm(torch.sign, points, 1.0, samples=4000, method="mean", generator=_stream())
    torch.testing.assert_close(mean, points.clamp(max=1)[:, 0], atol=0.05, rtol=0)  # the share of the ball beyond 0


def test_the_plan_spends_its_calls_as_no_other_horizon_would() -> None:
    calls, radius, lipschitz, gap = 10_000, 0.1, 1.3, 0.7
    plan = horizon_plan(calls, radius, lipschitz, gap)
    bounds = [gap / radius / (calls // t) + 2 * lipschitz / t**0.5 for t in range(2, calls // 2)]
    assert plan.bound <= 1.02 * min(bounds)
    assert plan.horizon * plan.epochs <= calls
    assert horizon_plan(4, 1.0, 100.0, 0.1).horizon == 2
