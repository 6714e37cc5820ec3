"""Advantages and the clipped loss: against returns added up, and the gradient of an enumerated return."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pullback.dynamics import generalized_advantage, ppo_loss, ppo_update


def test_a_full_trace_gives_returns_and_an_end_cuts_them() -> None:
    rewards, values = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0.5, 0.5, 0.5, 0.5, 3.0])
    ended = torch.tensor([False, True, False, False])
    found = generalized_advantage(rewards, values, discount=0.5, trace=1.0, ended=ended)
    returns = torch.tensor([1 + 1.0, 2.0, 4 + 4 + 0.75, 8 + 1.5])
    torch.testing.assert_close(found.target, returns)
    torch.testing.assert_close(found.advantage, returns - 0.5)


def test_no_step_has_no_advantage() -> None:
    assert generalized_advantage(torch.zeros(2, 0), torch.ones(2, 1)).advantage.shape == (2, 0)


def test_the_first_step_climbs_the_return() -> None:
    """At the policy that acted, the gradient of the surrogate over all actions is that of the expected reward."""
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    log_prob = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((log_prob.exp() * reward).sum(), logits)
    log_prob = logits.log_softmax(-1)
    # Each action as often as the policy takes it: weights in the advantages.
    zero = torch.zeros(3, dtype=torch.float64)
    loss = ppo_loss(log_prob, log_prob.detach(), 3 * reward * log_prob.detach().exp(), zero, zero)
    torch.testing.assert_close(torch.autograd.grad(loss.total, logits)[0], -exact)


def test_the_clip_stops_what_was_favoured_and_lets_mistakes_back() -> None:
    old = torch.tensor([0.2, 0.2, 0.2, 0.2]).log()
    log_prob = torch.tensor([0.4, 0.4, 0.1, 0.1]).log().requires_grad_()
    advantage, zero = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.zeros(4)
    loss = ppo_loss(log_prob, old, advantage, zero, zero, clip=0.2)
    assert loss.clipped == 1
    assert torch.autograd.grad(loss.total, log_prob)[0].tolist() == pytest.approx([0, 0.5, -0.125, 0])


def test_parts_add_up() -> None:
    some, zero = torch.tensor([0.5, 1.5]), torch.zeros(2)
    loss = ppo_loss(zero, zero, some, some, zero, value_weight=2.0, entropy=some, entropy_weight=0.1)
    assert loss.total.item() == pytest.approx(-1.0 + 2 * 1.25 - 0.1)
    assert (loss.policy.item(), loss.value.item(), loss.entropy.item()) == pytest.approx((-1.0, 1.25, 1.0))


class Judged:
    """A Gaussian policy of unit width and a constant critic, who remembers what it was asked."""

    def __init__(self, actions: list[float], mean: float = 0.3, value: float = 0.0) -> None:
        self.actions = torch.tensor(actions, dtype=torch.float64)
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.asked: list[list[int]] = []

    def __call__(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(chosen.tolist())
        return -(self.actions[chosen] - self.mean).square() / 2, self.value.expand(len(chosen))


def test_two_steps_on_one_batch_are_those_worked_out() -> None:
    """The first at ratios of 1, the second where one of two ratios has left the interval."""
    judged = Judged([1.3, -0.7])
    old = judged(torch.arange(2))[0].detach()
    gain, goal = torch.tensor([2.0, 1.0], dtype=torch.float64), torch.tensor([4.0, 2.0], dtype=torch.float64)
    found = ppo_update(
        judged,
        torch.optim.SGD([judged.mean, judged.value], lr=0.5),
        old,
        gain,
        goal,
        epochs=2,
        minibatches=1,
        value_weight=0.25,
        normalize=False,
        max_norm=None,
    )
    # d log p / d mean is action - mean: 1 and -1, so the first slope of the surrogate is (2 - 1) / 2.
    first = 0.3 + 0.5 * 0.5
    change = [-((a - first) ** 2) / 2 + (a - 0.3) ** 2 / 2 for a in (1.3, -0.7)]
    ratio = [math.exp(x) for x in change]
    assert ratio[0] > 1.2  # favoured, and far enough: no gradient
    assert found.policy.tolist() == pytest.approx([-1.5, -(1.2 * 2 + ratio[1]) / 2])
    assert judged.mean.item() == pytest.approx(first + 0.5 * ratio[1] * (-0.7 - first) / 2)
    # The value goes half of 2 w (mean of goals - value) each time.
    assert judged.value.item() == pytest.approx(0.75 + 0.5 * 0.5 * (3 - 0.75))
    assert found.value.tolist() == pytest.approx([10.0, ((4 - 0.75) ** 2 + (2 - 0.75) ** 2) / 2])
    assert found.total.tolist() == pytest.approx((found.policy + 0.25 * found.value).tolist())
    assert found.clipped.tolist() == [0.0, 1.0]
    assert found.divergence.tolist() == pytest.approx(
        [0, sum(r - 1 - x for r, x in zip(ratio, change, strict=True)) / 2]
    )
    assert not found.stopped


def test_every_epoch_deals_each_action_once_and_in_another_order() -> None:
    judged = Judged([0.1 * k for k in range(10)])
    old = judged(torch.arange(10))[0].detach()
    judged.asked.clear()
    some = torch.linspace(-1, 1, 10).double()
    words = {"epochs": 3, "minibatches": 4, "generator": torch.Generator().manual_seed(0)}
    found = ppo_update(judged, torch.optim.SGD([judged.mean], lr=0.1), old, some, some, **words)  # type: ignore[arg-type]
    assert [len(part) for part in judged.asked] == [3, 3, 2, 2] * 3
    epochs = [[index for part in judged.asked[k : k + 4] for index in part] for k in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert found.total.shape == (12,)


def test_advantages_are_brought_to_one_scale_and_the_gradient_is_bounded() -> None:
    moved = []
    for scale, shift in ((1.0, 0.0), (1e4, 5.0)):
        judged = Judged([1.0, -0.4, 0.2])
        old = judged(torch.arange(3))[0].detach()
        gain = scale * torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) + shift
        zero = torch.zeros(3, dtype=torch.float64)
        sgd = torch.optim.SGD([judged.mean], lr=1.0)
        ppo_update(judged, sgd, old, gain, zero, epochs=1, minibatches=1, max_norm=None)
        moved.append(judged.mean.item() - 0.3)
    assert moved[0] == pytest.approx(moved[1])
    judged = Judged([1.0, -0.4, 0.2])
    ppo_update(judged, torch.optim.SGD([judged.mean], lr=1.0), old, gain, zero, epochs=1, minibatches=1, max_norm=0.01)
    assert judged.mean.item() - 0.3 == pytest.approx(math.copysign(0.01, moved[0]), rel=1e-3)


def test_a_policy_that_has_gone_too_far_takes_no_more_steps() -> None:
    judged = Judged([1.3, -0.7])
    old = judged(torch.arange(2))[0].detach()
    some = torch.tensor([1.0, -1.0], dtype=torch.float64)
    words = {"epochs": 9, "minibatches": 1, "max_divergence": 0.05, "max_norm": None}
    found = ppo_update(judged, torch.optim.SGD([judged.mean], lr=0.5), old, some, 0 * some, **words)  # type: ignore[arg-type]
    assert found.stopped
    assert found.divergence[-1] > 0.05 >= found.divergence[:-1].max()
    assert len(found.total) == 2
    assert judged.mean.item() == pytest.approx(0.3 + 0.5)  # the step before, of slope (1 + 1) / 2


def test_entropies_count_and_what_cannot_be_is_refused() -> None:
    judged = Judged([1.0, 2.0])
    old, one = judged(torch.arange(2))[0].detach(), torch.ones(2, dtype=torch.float64)
    sgd = torch.optim.SGD([judged.mean], lr=0.1)
    found = ppo_update(
        lambda chosen: (*judged(chosen), 3 * one[chosen]),
        sgd,
        old,
        one,
        0 * one,
        entropy_weight=0.1,
        epochs=1,
        minibatches=2,
    )
    assert found.entropy.tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match="judge must give entropies"):
        ppo_update(judged, sgd, old, one, one, entropy_weight=0.1, minibatches=1)
    with pytest.raises(ValueError, match=r"minibatches must be in 1\.\.2, got 3"):
        ppo_update(judged, sgd, old, one, one, minibatches=3)
    with pytest.raises(ValueError, match="old_log_prob must have shape"):
        ppo_update(judged, sgd, old[:0], one[:0], one[:0])
    with pytest.raises(ValueError, match="advantage must be finite"):
        ppo_update(judged, sgd, old, one / 0, one)
    with pytest.raises(ValueError, match="max_norm must be > 0"):
        ppo_update(judged, sgd, old, one, one, minibatches=1, max_norm=0.0)
    with pytest.raises(TypeError, match="optimizer"):
        ppo_update(judged, None, old, one, one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the loss must be finite, got nan in step 0"):
        ppo_update(lambda chosen: (judged(chosen)[0], one[chosen] * math.nan), sgd, old, one, one, minibatches=1)
    with pytest.raises(ValueError, match="entropy_weight"):
        ppo_update(judged, sgd, old, one, one, minibatches=1, entropy_weight=-1.0)


@pytest.mark.parametrize("max_norm", [0.5, None])
def test_a_gradient_that_is_not_finite_takes_no_step(max_norm: float | None) -> None:
    """Where the loss is finite and its slope is not, the parameters stay what they were."""
    judged = Judged([1.0, 2.0])
    old, one = judged(torch.arange(2))[0].detach(), torch.ones(2, dtype=torch.float64)

    def steep(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return judged(chosen)[0], (0 * judged.value).sqrt().expand(len(chosen))

    both = torch.optim.SGD([judged.mean, judged.value], lr=0.1)
    with pytest.raises(ValueError, match=r"the gradient must be finite, got a norm of nan in step 0"):
        ppo_update(steep, both, old, torch.tensor([1.0, -1.0]).double(), one, minibatches=1, max_norm=max_norm)
    assert (judged.mean.item(), judged.value.item()) == (0.3, 0.0)
