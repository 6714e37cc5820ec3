"""A learned acquisition at work: whole searches by its policy, and the same decisions again with a gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_integer
from pullback.core.shapes import Bool, Float, Tensor
from pullback.uncertainty.black_box import Search
from pullback.uncertainty.neural_process import Decision, NeuralAcquisition

__all__ = ["Played", "decide", "play", "replay"]


class Played(NamedTuple):
    """What happened in searches, all without gradient.

    Attributes:
        state: ``[*batch, steps, 2]`` the best value and the share of the steps that were spent, before each step.
        log_prob: ``[*batch, steps]`` of what was chosen.
        value: ``[*batch, steps]`` what the policy expected to gain.
        reward: ``[*batch, steps]`` by how much the best value grew.
        regret: ``[*batch, steps]`` what was missing after each step, see :attr:`Search.regret`: the other reward is
            minus its logarithm, to which late and small gains count as much as the first large one.
        allowed: ``[*batch, steps, n]`` the points among which the choice was drawn.
    """

    state: Float[Tensor, "*batch steps 2"]
    log_prob: Float[Tensor, "*batch steps"]
    value: Float[Tensor, "*batch steps"]
    reward: Float[Tensor, "*batch steps"]
    regret: Float[Tensor, "*batch steps"]
    allowed: Bool[Tensor, "*batch steps n"]


def decide(policy: NeuralAcquisition, search: Search, spent: float) -> Decision:
    """Judge what a search may look at next.

    Args:
        policy: whose state is the best value so far and ``spent``.
        search: that has looked at a point.
        spent: share of the steps that are over, in [0, 1].

    Returns:
        The policy's decision about all points; those looked at have logit -inf.

    Raises:
        ValueError: the search has not begun, or one of :class:`NeuralAcquisition`.

    Example:
        >>> from pullback.uncertainty import BlackBoxTasks, TransformerNeuralProcess
        >>> policy = NeuralAcquisition(TransformerNeuralProcess(1, width=4, layers=1, heads=1, buckets=3), hidden=4)
        >>> search = BlackBoxTasks(torch.rand(5, 1), torch.rand(1, 5)).reset(torch.tensor([0, 0]))
        >>> gain = search.step(torch.tensor([2, 4]))
        >>> decide(policy, search, 0.0).logits.isinf().nonzero().tolist()
        [[0, 2], [1, 4]]
    """
    if not search.chosen.shape[-1]:
        raise ValueError("search must have looked at a point, to have a best value")
    state = torch.stack([search.best, torch.full_like(search.best, spent)], -1)
    return policy(search.seen_x, search.seen_y, search.x, state, available=search.available)


@torch.no_grad()
def play(
    policy: NeuralAcquisition,
    search: Search,
    steps: int,
    *,
    top: int | None = None,
    generator: torch.Generator | None = None,
) -> Played:
    """Let a policy search: draw from it step by step.

    Args:
        policy: whose state is the best value so far and the share of the steps that are over.
        search: that has looked at a point; it is moved on in place.
        steps: >= 1.
        top: draw among that many candidates with the largest logits, so that one of the many others is never
            tried by accident; all by default.
        generator: source of the draws.

    Returns:
        States, log probabilities, values, rewards and regrets, for :func:`pullback.dynamics.ppo_loss`.

    Raises:
        TypeError, ValueError: ``steps`` or ``top`` is no integer >= 1, or as :func:`decide`.

    Example:
        >>> from pullback.uncertainty import BlackBoxTasks, TransformerNeuralProcess
        >>> policy = NeuralAcquisition(TransformerNeuralProcess(1, width=4, layers=1, heads=1, buckets=3), hidden=4)
        >>> search = BlackBoxTasks(torch.rand(5, 1), torch.rand(1, 5)).reset(torch.tensor([0, 0]))
        >>> gain = search.step(torch.tensor([2, 4]))
        >>> played = play(policy, search, 3)
        >>> played.reward.shape, torch.equal(gain + played.reward.sum(-1), search.best)
        (torch.Size([2, 3]), True)
        >>> torch.equal(played.regret[:, -1], search.regret)
        True
    """
    check_integer("steps", steps, 1)
    n = search.y.shape[-1]
    most = n if top is None else min(n, check_integer("top", top, 1))
    found = []
    for step in range(steps):
        decision = decide(policy, search, step / steps)
        allowed = search.available & (decision.logits >= decision.logits.topk(most).values[..., -1:])
        decision = decision._replace(logits=decision.logits.masked_fill(~allowed, -torch.inf))
        choice = policy.choose(decision, generator=generator)
        state = torch.stack([search.best, torch.full_like(search.best, step / steps)], -1)
        reward = search.step(choice.chosen)
        found.append(Played(state, choice.log_prob, decision.value, reward, search.regret, allowed))
    states, log_probs, values, rewards, regrets, allowances = zip(*found, strict=True)
    log_prob, value, reward, regret = (torch.stack(part, -1) for part in (log_probs, values, rewards, regrets))
    return Played(torch.stack(states, -2), log_prob, value, reward, regret, torch.stack(allowances, -2))


def replay(policy: NeuralAcquisition, search: Search, played: Played) -> Decision:
    """Decide again at every step of searches that were played, all in one pass, with a gradient.

    Args:
        policy: as it is now.
        search: after :func:`play`.
        played: its result.

    Returns:
        Decisions with ``steps`` behind the dimensions of the batch; the choices were ``search.chosen[..., -steps:]``.

    Example:
        >>> from pullback.uncertainty import BlackBoxTasks, TransformerNeuralProcess
        >>> policy = NeuralAcquisition(TransformerNeuralProcess(1, width=4, layers=1, heads=1, buckets=3), hidden=4)
        >>> search = BlackBoxTasks(torch.rand(5, 1), torch.rand(1, 5)).reset(torch.tensor([0, 0]))
        >>> gain = search.step(torch.tensor([2, 4]))
        >>> played = play(policy, search, 3)
        >>> again = replay(policy, search, played).logits.log_softmax(-1)
        >>> again = again.gather(-1, search.chosen[:, 1:, None])[..., 0]
        >>> torch.allclose(again, played.log_prob, atol=1e-5)
        True
    """
    steps, length = played.reward.shape[-1], search.chosen.shape[-1]
    batch = played.reward.shape[:-1]
    order = torch.arange(length, device=search.y.device)
    seen = order < order[length - steps :, None]  # [steps, length]: what each step had looked at

    def spread(part: Tensor) -> Tensor:
        k = len(batch)
        return part.unsqueeze(k).expand(*batch, steps, *part.shape[k:])

    mask = seen.expand(*batch, steps, length)
    places = (spread(part) for part in (search.seen_x, search.seen_y, search.x))
    return policy(*places, played.state, mask=mask, available=played.allowed)
