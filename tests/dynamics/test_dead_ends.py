"""Dead-ends: exact values of LifeGate by simulation, values learned from records, avoidance, histories."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.law import seeded

from pullback import dynamics
from pullback.dynamics import DeadEndValues, HistoryEncoder, Transitions


def test_life_gate_moves_as_its_rules_say() -> None:
    gate = dynamics.life_gate()
    place = {tuple(cell): i for i, cell in enumerate(gate.cells.tolist())}
    assert (len(place), int(gate.dead_end.sum()), int(gate.died.sum()), int(gate.recovered.sum())) == (91, 20, 11, 3)
    p = gate.death.transition

    def law(cell: tuple[int, int], action: int) -> dict[tuple[int, int], float]:
        row = p[place[cell], action]
        return {tuple(gate.cells[i].tolist()): round(float(row[i]), 6) for i in row.nonzero()[:, 0]}

    assert law((2, 3), 1) == {(2, 2): 0.6, (3, 3): 0.4}  # up, or dragged
    assert law((2, 3), 4) == {(3, 3): 1.0}
    assert law((0, 5), 0) == {(0, 5): 1.0}  # a wall holds who is dragged
    assert law((2, 6), 1) == {(2, 6): 0.6, (3, 6): 0.4}  # a wall above
    assert law((6, 7), 3) == {(6, 7): 0.3, (7, 7): 0.7}  # no wish is granted
    assert law((9, 3), 3) == {(9, 3): 1.0}
    assert gate.death.reward[place[8, 3], 4] == -1.0
    assert gate.recovery.reward[place[6, 1], 1].item() == pytest.approx(0.6)


def test_the_exact_risk_is_that_of_simulated_episodes() -> None:
    gate = dynamics.life_gate()
    policy = gate.recovery.optimal().policy
    start = (gate.cells == torch.tensor([3, 2])).all(-1).double()
    seen = gate.death.sample(policy, 4000, steps=400, start=start, generator=seeded())
    died = gate.died[seen.next_state[seen.done]].double().mean()
    risk = -(start * gate.death.evaluate(policy)).sum()
    assert seen.done.sum() == 4000
    assert abs(float(died - risk)) < 0.03
    model = dynamics.empirical_process(seen, 91, 5)
    visited = model.transition[seen.state, seen.action]
    assert (visited - gate.death.transition[seen.state, seen.action]).abs().amax() < 0.3
    assert torch.equal(model.transition[0, 1], torch.eye(91).double()[0])  # never tried


def test_an_empirical_process_refuses_what_is_no_state() -> None:
    one = torch.tensor([0])
    seen = Transitions(one, one, torch.ones(1), torch.tensor([2]), torch.tensor([True]))
    with pytest.raises(ValueError, match=r"next_state must be in 0\.\.1, got 2\.\.2"):
        dynamics.empirical_process(seen, 2, 1)
    with pytest.raises(TypeError, match="state must hold numbers of states"):
        dynamics.empirical_process(seen._replace(state=torch.zeros(1)), 2, 1)


def test_linear_values_of_one_hot_states_learn_the_exact_risk() -> None:
    """States 0 (safe or risky treatment), 1 (dead-end), 2 (dead), 3 (well)."""
    state = torch.tensor([0, 0, 0, 1, 1])
    action = torch.tensor([0, 1, 1, 0, 1])
    following = torch.tensor([3, 3, 1, 2, 2])
    reward = torch.stack([-(following == 2).float(), (following == 3).float()], -1)
    one_hot = torch.eye(4)
    seen = Transitions(one_hot[state], action, reward, one_hot[following], following >= 2)
    values = DeadEndValues(4, 2, hidden=0, generator=seeded())
    optimizer = torch.optim.Adam(values.networks.parameters(), lr=0.05)
    for step in range(600):
        optimizer.zero_grad()
        values.loss(seen).backward()
        optimizer.step()
        if step % 20 == 19:
            values.update_copies()
    with torch.no_grad():
        q, r = values.q_death(one_hot[:2]), values.q_recovery(one_hot[:2])
    torch.testing.assert_close(q, torch.tensor([[0.0, -0.5], [-1.0, -1.0]]), atol=0.02, rtol=0)
    torch.testing.assert_close(r, torch.tensor([[1.0, 0.5], [0.0, 0.0]]), atol=0.02, rtol=0)
    assert values.flags(one_hot[:2], death=-0.9, recovery=0.1).tolist() == [False, True]
    assert values.flags(one_hot[:2], death=-0.2, recovery=0.8).tolist() == [True, True]  # the mean of two treatments


def test_bad_records_are_refused() -> None:
    values = DeadEndValues(2, 2, hidden=3)
    seen = Transitions(torch.ones(1, 2), torch.tensor([0]), torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([True]))
    with pytest.raises(ValueError, match="reward must be -1 or 0 for the bad end and 1 or 0 for the good one"):
        values.loss(seen._replace(reward=torch.tensor([[1.0, 0.0]])))
    with pytest.raises(ValueError, match="reward must be 0 where done is False"):
        values.loss(seen._replace(reward=torch.tensor([[-1.0, 0.0]]), done=torch.tensor([False])))
    with pytest.raises(ValueError, match=r"reward must have shape \(1, 2\)"):
        values.loss(seen._replace(reward=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"action must be in 0\.\.1, got 2\.\.2"):
        values.loss(seen._replace(action=torch.tensor([2])))


def test_avoidance_where_a_policy_has_nothing_allowed_is_even() -> None:
    policy, risk = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([-1.0, -0.1, -0.1])
    assert dynamics.avoid_dead_ends(policy, risk).tolist() == [0.0, 0.5, 0.5]
    found = dynamics.security_gap(policy, torch.tensor([-1.0, -0.5, -0.75]))
    assert (found.gap.item(), found.infeasible.item()) == (1.0, True)


def test_a_history_is_more_than_its_last_observation() -> None:
    """What comes next is what came first: only a memory can tell."""
    g = seeded()
    first = torch.randn(256, 1, 1, generator=g)
    observations = torch.cat([first, torch.zeros(256, 2, 1), first], 1)
    actions = torch.zeros(256, 4, dtype=torch.int64)
    known = torch.zeros(256, 4, 1, dtype=torch.bool)
    known[:, 3] = True
    encoder = HistoryEncoder(1, 1, 16, generator=g)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = encoder.loss(observations, actions, known)
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # of a normal number without memory: 1.42


def test_actions_enter_the_state_after_they_were_taken() -> None:
    encoder = HistoryEncoder(2, 2, 4, generator=seeded())
    observations, actions = torch.randn(3, 2), torch.tensor([0, 1, 0])
    one, other = encoder(observations, actions), encoder(observations, torch.tensor([0, 0, 0]))
    assert torch.equal(one[:2], other[:2])
    assert not torch.equal(one[2], other[2])
    with pytest.raises(ValueError, match=r"actions must be in 0\.\.1, got 0\.\.2"):
        encoder(observations, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="known must have a target after the first time"):
        encoder.loss(observations, actions, torch.zeros(3, 2, dtype=torch.bool))
    nats = encoder.loss(observations, actions)
    told = torch.cat([one, torch.nn.functional.one_hot(actions, 2).float()], -1)[:-1]
    mean, spread = encoder.head(told).chunk(2, -1)
    law = torch.distributions.Normal(mean, torch.exp(5 * torch.tanh(spread / 5)))
    torch.testing.assert_close(nats, -law.log_prob(observations[1:]).mean())
