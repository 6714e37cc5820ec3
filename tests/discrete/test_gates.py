"""Gates: their derivatives, what they cost, what is cut out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pullback import discrete, topology
from pullback.discrete import NetworkCost, attach_gates, prune_closed


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("slope", [50.0, 1e5])
def test_the_soft_gate_is_a_step_within_one_tooth_and_its_slope_the_shape(slope: float) -> None:
    w = (4 * torch.rand(10_000, generator=_stream(), dtype=torch.float64) - 2).requires_grad_(True)
    gates = discrete.trainable_gate(w, slope=slope, shaping="sigmoid", hard=False)
    (found,) = torch.autograd.grad(gates.sum(), w)
    bump = 1 / torch.cosh(w / 2) ** 2
    teeth = torch.remainder(w, 1 / slope)
    torch.testing.assert_close(found, bump - teeth * bump * torch.tanh(w / 2), rtol=0, atol=1e-9)
    assert float((gates - (w > 0).double()).detach().abs().max()) <= 1 / slope


def test_the_hard_gate_has_the_shape_as_its_derivative_and_the_slope_of_the_shape_as_its_second() -> None:
    w = torch.tensor([-1.5, -0.1, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    gates = discrete.trainable_gate(w, shaping=torch.sin)
    assert gates.tolist() == [0, 0, 1, 1]
    (first,) = torch.autograd.grad(gates.sum(), w, create_graph=True)
    torch.testing.assert_close(first, torch.sin(w))
    (second,) = torch.autograd.grad(first.sum(), w)
    torch.testing.assert_close(second, torch.cos(w))


def test_the_hard_gate_is_the_limit_of_the_soft_one_in_single_precision_too() -> None:
    w = torch.tensor([-0.7, 0.3, 1e9, -3e38], requires_grad=True)
    gates = discrete.trainable_gate(w, slope=1e7, hard=False)
    (slope,) = torch.autograd.grad(gates.sum(), w)
    assert gates.round().tolist() == [0, 1, 1, 0]
    assert slope.tolist() == [1, 1, 1, 1]


def test_noisy_gates_open_as_often_as_their_logits_say_and_follow_a_given_outcome() -> None:
    logits = torch.tensor([-2.0, 0.0, 1.0]).expand(20_000, 3)
    opened = discrete.gate(logits, generator=_stream())
    assert set(opened.unique().tolist()) == {0.0, 1.0}
    share = torch.sigmoid(logits[0])
    assert float(((opened.mean(0) - share) / (share * (1 - share) / 20_000).sqrt()).abs().max()) < 4
    outcome = torch.rand(20_000, 3, generator=_stream(1)) < share
    given = discrete.gate(logits, temperature=0.5, hard=False, generator=_stream(2), outcome=outcome)
    assert torch.equal(given > 0.5, outcome)
    drawn = discrete.gate(logits, temperature=0.5, hard=False, generator=_stream(3))
    torch.testing.assert_close(given.sort(0).values[::500], drawn.sort(0).values[::500], rtol=0, atol=0.03)


def test_a_hard_concrete_gate_is_0_as_often_as_its_expectation_says() -> None:
    gates = discrete.TrainableGate(3, method="hard_concrete")
    with torch.no_grad():
        gates.weight.copy_(torch.tensor([-1.0, 0.0, 1.5]))
    drawn = torch.stack([gates(generator=generator) for generator in [_stream()] for _ in range(5000)])
    share = (drawn > 0).float().mean(0)
    assert float((share - gates.expected()).detach().abs().max()) < 4 * math.sqrt(0.25 / 5000)
    gates.harden()
    assert torch.equal(gates() > 0, gates.open)
    assert not gates().requires_grad
    copy = discrete.TrainableGate(3, method="hard_concrete")
    copy.load_state_dict(gates.state_dict())
    assert torch.equal(copy(), gates())


class _Residual(nn.Module):
    """A branch, a sum, a normalisation, a depthwise convolution, tokens at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.each = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.hidden, self.last = nn.Linear(8 * 4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        h = h + self.outer(nn.functional.gelu(self.inner(h)))
        h = self.each(nn.functional.max_pool2d(h, 2))
        h = nn.functional.adaptive_avg_pool2d(h, 2).flatten(1)
        return self.last(torch.relu(self.hidden(h)))


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.attention = topology.HeadAttention(16, 4)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.branch = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16))
        self.read = nn.Linear(16, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        n = h.shape[1]
        h = h + self.attention(self.norm(h), torch.ones(1, n, n, dtype=torch.bool).tril())
        h = h + self.down(nn.functional.gelu(self.up(h)))
        return self.read(h + self.branch(h))


def _counted(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 2


def _built(kind: str) -> tuple[nn.Module, Tensor, list[str | tuple[str, ...]]]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "tokens":
            return _Tokens().eval(), torch.randint(20, (3, 7)), ["attention", "up", "branch", "branch.0"]
        model = _Residual()
        model.norm(torch.randn(32, 8, 2, 2) * 3 + 1)
        return model.eval(), torch.randn(5, 1, 8, 8), [("norm", "outer"), "inner", "hidden"]


@pytest.mark.parametrize("kind", ["residual", "tokens"])
@pytest.mark.parametrize("block_open", [True, False])
def test_what_is_cut_out_changes_no_result_and_the_cost_is_what_a_counter_counts(kind: str, block_open: bool) -> None:
    model, x, layers = _built(kind)
    whole = model(x)
    gated = attach_gates(model, layers)
    torch.testing.assert_close(gated(x), whole, rtol=0, atol=0)
    for number, gate in enumerate(gated.gates.values()):
        gate.weight.data.copy_(torch.randn(gate.weight.shape, generator=_stream(number)))
    if "branch" in gated.gates:
        gated.gates["branch"].weight.data.fill_(1.0 if block_open else -1.0)
    if "attention" in gated.gates and not block_open:  # all heads
        gated.gates["attention"].weight.data.fill_(-1.0)
    small = prune_closed(gated, x)
    assert float((gated(x) - whole).abs().max()) > 0.01
    torch.testing.assert_close(small(x), gated(x), rtol=1e-5, atol=1e-5)
    macs, parameters = NetworkCost(gated, x[:1]), NetworkCost(gated, x[:1], measure="parameters")
    assert macs.full == _counted(model, x[:1])
    assert float(macs()) == _counted(small, x[:1])
    assert parameters.full == sum(p.numel() for p in model.parameters())
    assert float(parameters()) == sum(p.numel() for p in small.parameters())
    assert model(x).equal(whole)


def test_fractional_gates_are_multiplied_into_the_weights() -> None:
    model, x, layers = _built("residual")
    gated = attach_gates(model, layers, method="hard_concrete").eval()
    for number, gate in enumerate(gated.gates.values()):
        gate.weight.data.copy_(3 * torch.randn(gate.weight.shape, generator=_stream(number)))
    values = torch.cat([gate() for gate in gated.gates.values()])
    assert ((values > 0) & (values < 1)).any()
    assert (values == 0).any()
    torch.testing.assert_close(prune_closed(gated, x)(x), gated(x), rtol=1e-5, atol=1e-5)


def test_the_slope_of_the_cost_is_what_one_more_unit_costs() -> None:
    gated = attach_gates(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), ["0", "2"]
    )
    gates = {"0": torch.tensor([1.0, 0, 1, 0]), "2": torch.tensor([1.0, 1, 1, 0, 0])}
    cost = NetworkCost(gated, torch.ones(1, 3))
    before = float(cost(gates))
    assert before == 3 * 2 + 2 * 3 + 3 * 2
    gates["0"].requires_grad_(True)
    (slope,) = torch.autograd.grad(cost(gates), gates["0"])
    more = gates["0"].detach().clone()
    more[1] = 1
    torch.testing.assert_close(slope, torch.full((4,), float(cost({**gates, "0": more})) - before))


def test_what_cannot_be_cut_is_refused_by_name() -> None:
    model, x, _ = _built("residual")

    def closed(layers: list[str | tuple[str, ...]], model: nn.Module = model, x: Tensor = x) -> nn.Module:
        gated = attach_gates(model, layers)
        next(iter(gated.gates.values())).weight.data[0] = -1
        return prune_closed(gated, x)

    with pytest.raises(ValueError, match="units of layer 'outer' meet others in a sum"):
        closed(["outer"])
    with pytest.raises(ValueError, match="units of layer 'last' are a result of the network"):
        closed(["last"])
    with pytest.raises(ValueError, match=r"layers must name layers of the model, got 'iner'; did you mean 'inner'"):
        closed(["iner"])
    with pytest.raises(ValueError, match="got 'inner' twice"):
        closed(["inner", "inner"])
    with pytest.raises(ValueError, match="as many units each"):
        closed([("inner", "hidden")])
    with pytest.raises(TypeError, match="layer 'norm' must be attention"):
        attach_gates(model, ["norm"], unit="head")
    shifted = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="closed units of layer '0' are not 0 where layer '2' reads them"):
        closed(["0"], shifted, torch.ones(1, 2))
    mixing = nn.Sequential(nn.Linear(2, 3), nn.Softmax(-1), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="units of layer '0' flow into 'softmax'"):
        closed(["0"], mixing, torch.ones(1, 2))
    shared = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="used on several inputs that differ"):
        closed(["0"], nn.Sequential(nn.Linear(2, 2), shared, nn.ReLU(), shared), torch.ones(1, 2))
    silent = attach_gates(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), ["0"], initial=-1.0)
    with pytest.raises(ValueError, match="layer '0' has no open unit"):
        prune_closed(silent, torch.ones(1, 2))
    with pytest.raises(TypeError, match="gated must be a GatedModel"):
        prune_closed(model, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gates must hold 6 for layer 'inner'"):
        NetworkCost(attach_gates(model, ["inner"]), x)({"inner": torch.ones(5)})
    with pytest.raises(ValueError, match="measure must be"):
        NetworkCost(model, x, measure="bytes")


def test_gates_learn_what_matters_under_a_budget_and_go_on_where_they_were() -> None:
    """Of eight hidden units four are read."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).requires_grad_(False)
    model[0].weight.copy_(torch.randn(8, 3, generator=_stream()))
    model[2].weight.copy_(torch.tensor([[1.0, 0, -1, 0, 0, 1, 0, -1]]))
    gated = attach_gates(model, ["0"])
    pressure = discrete.BudgetPressure(NetworkCost(gated, torch.ones(1, 3)), 0.5, 100, price=1.0)
    optimizer = torch.optim.Adam(gated.gate_list.parameters(), lr=0.01)
    terms = []
    for step in range(100):
        if pressure.met:
            break
        x = torch.randn(64, 3, generator=_stream(step))
        terms.append(pressure())
        optimizer.zero_grad()
        ((gated(x) - model(x)).square().mean() + terms[-1]).backward()
        optimizer.step()
    assert gated.gates["0"].open.tolist() == [True, False, True, False, False, True, False, True]
    assert pressure.share == 0.5
    assert 60 < pressure.taken == len(terms) < 100
    assert [terms[n].item() for n in (0, 5)] == pytest.approx([(0.5 / 60) ** 2, (0.5 / 10) ** 2])
    other = discrete.BudgetPressure(pressure.cost, 0.5, 100, price=1.0)
    other.load_state_dict(pressure.state_dict())
    assert other.met
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got 2"):
        discrete.BudgetPressure(pressure.cost, 2, 100)


def test_scores_are_those_of_the_weights_and_the_slopes_that_closing_has() -> None:
    model, x, _ = _built("residual")
    gated = attach_gates(model, ["norm", "hidden"])
    filters = discrete.unit_importance(gated)
    assert torch.equal(filters["norm"].argsort(), model.first.weight.detach().abs().sum((1, 2, 3)).argsort())
    assert torch.equal(filters["hidden"].argsort(), model.hidden.weight.detach().abs().sum(1).argsort())
    model.norm.weight.data.copy_(torch.randn(8, generator=_stream()))
    scales = discrete.unit_importance(attach_gates(model, ["norm"]), "scales")["norm"]
    assert torch.equal(scales.argsort(), model.norm.weight.detach().abs().argsort())
    losses = [gated(x[n : n + 1]).square().sum() for n in range(5)]
    slopes = discrete.unit_importance(gated, "slopes", ranks=False, losses=losses)["hidden"]
    expected = torch.zeros(10)
    for n in range(5):
        for unit in range(10):
            sizes = []
            for factor in (1 + 1e-3, 1 - 1e-3):
                hook = model.hidden.register_forward_hook(
                    lambda _, __, y, f=factor, u=unit: y * torch.ones(10).index_fill(0, torch.tensor(u), f)
                )
                sizes.append(float(model(x[n : n + 1]).square().sum()))
                hook.remove()
            expected[unit] += ((sizes[0] - sizes[1]) / 2e-3) ** 2
    torch.testing.assert_close(slopes, expected, rtol=0.02, atol=1e-4)
    assert discrete.unit_importance(gated, "random", generator=_stream())["hidden"].unique().numel() == 10
    with pytest.raises(ValueError, match="layer 'hidden' has no scales to score, it is a Linear"):
        discrete.unit_importance(gated, "scales")
    with pytest.raises(ValueError, match="losses must hold at least one"):
        discrete.unit_importance(gated, "slopes")


def test_the_smallest_are_closed_down_to_the_budget() -> None:
    """Against all levels, one after the other."""
    gated = attach_gates(
        nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 2)), ["0", "2"]
    )
    cost = NetworkCost(gated, torch.ones(1, 3))
    scores = {"0": torch.rand(7, generator=_stream(1)), "2": torch.rand(9, generator=_stream(2))}
    for budget in (0.05, 0.3, 0.62, 1.0):
        found = discrete.close_smallest(gated, scores, cost, budget)
        shares = []
        for level in (-1.0, *scores["0"].tolist(), *scores["2"].tolist()):
            a, b = (max(1, int((scores[name] > level).sum())) for name in ("0", "2"))
            shares.append((3 * a + a * b + 2 * b) / cost.full)
        assert abs(found - budget) == pytest.approx(min(abs(share - budget) for share in shares))
        opened, closed = (scores["0"][gated.gates["0"].open == state] for state in (True, False))
        assert not len(closed) or opened.min() > closed.max()
        assert float(cost()) / cost.full == found
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got 0"):
        discrete.close_smallest(gated, scores, cost, 0)
    with pytest.raises(ValueError, match="scores must hold 9 numbers for layer '2'"):
        discrete.close_smallest(gated, {**scores, "2": torch.ones(8)}, cost, 0.5)


def test_closed_gates_open_again_where_they_are_needed() -> None:
    """Six inputs behind closed gates, three of which the target is made of."""
    stream = _stream()
    gates = discrete.TrainableGate(6, initial=-0.2)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.01)
    for _ in range(150):
        x = torch.randn(32, 6, generator=stream)
        opened = gates()
        loss = ((x * opened).sum(1) - x[:, :3].sum(1)).square().mean() + 0.1 * opened.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gates.open.tolist() == [True] * 3 + [False] * 3
