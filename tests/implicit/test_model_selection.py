"""Perturbed optimisers against closed forms; ensembles that choose members, and learn to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pullback.implicit import SelectiveEnsemble, average_vote, knapsack_layer, majority_vote, perturbed_argmax


def _one_hot(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def _first_wins(scores: Tensor, temperature: Tensor, noise: str) -> Tensor:
    """Of two: normal noise has the difference's normal distribution, Gumbel noise gives a softmax."""
    z = (scores[0] - scores[1]) / temperature
    return torch.special.ndtr(z / math.sqrt(2)) if noise == "normal" else torch.sigmoid(z)


@pytest.mark.parametrize("noise", ["normal", "gumbel"])
def test_mean_and_derivatives_of_two_orders_are_those_of_the_closed_form(noise: str) -> None:
    scores = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    g = torch.Generator().manual_seed(0)
    mean = perturbed_argmax(_one_hot, scores, temperature=t, samples=200_000, noise=noise, generator=g)[0]
    exact = _first_wins(scores, t, noise)
    torch.testing.assert_close(mean, exact, atol=6e-3, rtol=0)
    got, wanted = (torch.autograd.grad(v, (scores, t), create_graph=True) for v in (mean, exact))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1.5e-2, rtol=0)
    again, right = (torch.autograd.grad(v[0][0], (scores, t)) for v in (got, wanted))
    for a, b in zip(again, right, strict=True):
        torch.testing.assert_close(a, b, atol=7e-2, rtol=0)


def test_others_as_baseline_leave_the_gradient_unbiased_and_less_noisy() -> None:
    """A constant solution has gradient 0, which without the baseline is 0 on average only."""
    scores = torch.zeros(3, requires_grad=True)
    mean = perturbed_argmax(lambda c: torch.full_like(c, 5.0), scores, temperature=1.0, samples=4)
    assert torch.autograd.grad(mean.sum(), scores)[0].abs().max() < 1e-5
    g = torch.Generator().manual_seed(0)
    wide = torch.zeros(4000, 2, requires_grad=True)
    mean = perturbed_argmax(_one_hot, wide, temperature=1.0, samples=2, generator=g)
    slopes = torch.autograd.grad(mean[:, 0].sum(), wide)[0][:, 0]
    exact = 1 / math.sqrt(4 * math.pi)
    assert abs(float(slopes.mean()) - exact) < 4 * float(slopes.std()) / math.sqrt(len(slopes))


def test_the_knapsack_takes_k_and_its_mean_sums_to_k() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 7, generator=g)
    hard = knapsack_layer(scores, 3)
    assert (hard.sum(-1) == 3).all()
    assert (
        torch.where(hard > 0, scores, torch.inf).amin(-1) >= torch.where(hard > 0, -torch.inf, scores).amax(-1)
    ).all()
    torch.testing.assert_close(knapsack_layer(scores, 3, temperature=1.0, generator=g).sum(-1), torch.full((5,), 3.0))


def test_a_solver_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="solver must return"):
        perturbed_argmax(lambda c: c.sum(-1), torch.zeros(3), temperature=1.0)


class _Knows(nn.Module):
    """A member that knows the classes of one half of the line."""

    def __init__(self, side: float) -> None:
        super().__init__()
        self.side = nn.Parameter(torch.tensor(side))

    def forward(self, x: Tensor) -> Tensor:
        here = (x[..., 0] * self.side > 0).float()
        right = (x[..., 0].abs() > 1).float() * 2 - 1
        answer = 3 * here * right
        return torch.stack([-answer, answer], -1)


def test_the_selector_learns_which_member_knows() -> None:
    g = torch.Generator().manual_seed(0)
    selector = nn.Linear(1, 2)
    nn.init.zeros_(selector.weight)
    nn.init.zeros_(selector.bias)
    ensemble = SelectiveEnsemble([_Knows(1.0), _Knows(-1.0)], selector, 1, samples=8, generator=g)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=0.05)
    for _ in range(40):
        x = 4 * torch.rand(64, 1, generator=g) - 2
        loss = nn.functional.cross_entropy(ensemble(x).logits, (x[:, 0].abs() > 1).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(member.side.grad is None for member in ensemble.members)
    ensemble.eval()
    chosen = ensemble(torch.tensor([[1.5], [-0.4], [0.3]])).chosen
    assert chosen.tolist() == [[1, 0], [0, 1], [1, 0]]
    x = torch.tensor([[-1.5], [0.5]])
    torch.testing.assert_close(ensemble(x, ensemble.answers(x)).logits, ensemble(x).logits)


def test_an_ensemble_refuses_by_name() -> None:
    members = [nn.Linear(2, 3), nn.Linear(2, 4)]
    with pytest.raises(ValueError, match=r"k must be in 1\.\.2, got 3"):
        SelectiveEnsemble(members, nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        SelectiveEnsemble(members, nn.Linear(2, 2), 1, temperature=0.0)
    with pytest.raises(TypeError, match=r"members\[1\] must be a module"):
        SelectiveEnsemble([members[0], len], nn.Linear(2, 2), 1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"members must return logits of one shape, got \(5, 3\), \(5, 4\)"):
        SelectiveEnsemble(members, nn.Linear(2, 2), 1)(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="selector must return one score for each of 1 members"):
        SelectiveEnsemble(members[:1], nn.Linear(2, 2), 1)(torch.zeros(5, 2))


def test_votes_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0]]).log_softmax(-1)
    assert majority_vote(logits).tolist() == [0.5, 0.5, 0]
    assert majority_vote(logits, torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist() == [1, 0, 0]
    torch.testing.assert_close(average_vote(logits), logits.exp().mean(0))
