"""Estimators of gradients and their measured errors against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback.gradients import (
    ForwardGradientDescent,
    GradientSignal,
    activity_forward_gradient,
    estimator_error,
    forward_gradient,
    gradient_signal,
    missing_forward_rules,
    saved_bytes,
    signal_propagation,
)


def test_error_of_estimates_is_the_moments_of_their_distribution(generator: torch.Generator) -> None:
    exact = {"w": torch.tensor([[3.0], [0.0]], dtype=torch.float64), "b": torch.tensor(-4.0, dtype=torch.float64)}
    noise = torch.randn(40_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    estimates = {"w": exact["w"] + noise[:, :2, None], "b": exact["b"] + 0.1 + noise[:, 2]}
    error = estimator_error(estimates, exact)
    assert isinstance(error.bias, dict)
    assert isinstance(error.z, dict)
    assert error.bias["w"].shape == (2, 1)
    assert float(error.bias["b"]) == pytest.approx(0.1, abs=4 * 0.5 / 200)
    assert abs(float(error.z["b"]) - 0.1 / (0.5 / 200)) < 5  # 40 standard errors, and one more or less of chance
    assert error.z["w"].abs().max() < 4
    assert error.variance == pytest.approx(1 + 4 + 0.25, rel=0.03)
    assert error.relative_variance == pytest.approx(5.25 / 25, rel=0.03)
    assert error.relative_bias == pytest.approx(0.01 / 25, rel=0.5)
    assert error.mean_cosine > 0.999
    assert error.draws == 40_000


def test_equal_estimates_have_no_error_or_an_infinite_one() -> None:
    exact = torch.tensor([0.1, -0.2])
    right = estimator_error(exact.expand(5, 2) * (1 + 1e-7), exact)
    assert (right.largest_z, right.mean_squared_z, right.cosine) == (0.0, 0.0, pytest.approx(1.0))
    wrong = estimator_error((exact + 0.01).expand(5, 2), exact)
    assert wrong.largest_z == math.inf
    zero = estimator_error(torch.zeros(2, 3), torch.zeros(3))
    assert (zero.largest_z, zero.relative_variance, zero.cosine) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("size", [1e-160, 1e160])
def test_error_is_right_where_squares_leave_the_range(size: float, generator: torch.Generator) -> None:
    g = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    d = torch.randn(3, generator=generator, dtype=torch.float64)
    plain, scaled = estimator_error(g, d), estimator_error(size * g, size * d)
    for name in ("largest_z", "relative_variance", "relative_bias", "cosine", "mean_cosine"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9)


def _network() -> tuple[nn.Sequential, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        return network, torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))


@pytest.mark.parametrize(("distribution", "excess"), [("normal", 1), ("rademacher", -1)])
def test_forward_gradients_are_unbiased_with_the_variance_of_the_formula(
    distribution: Any, excess: int, generator: torch.Generator
) -> None:
    network, x, y = _network()
    params = dict(network.named_parameters())

    def loss(p: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(network, p, x), y)

    exact = dict(zip(params, torch.autograd.grad(loss(params), list(params.values())), strict=True))
    found = forward_gradient(
        loss, params, directions=20_000, distribution=distribution, chunk=5000, generator=generator
    )
    error = estimator_error(found.estimates, exact)
    count = sum(p.numel() for p in params.values())
    assert error.largest_z < 4.5
    assert error.relative_variance == pytest.approx(count + excess, rel=0.05)
    torch.testing.assert_close(found.value, loss(params).detach())
    for name, g in found.gradient.items():
        torch.testing.assert_close(g, found.estimates[name].mean(0))


def test_a_subspace_gives_the_projection_of_the_gradient(generator: torch.Generator) -> None:
    x = torch.randn(6, generator=generator, dtype=torch.float64)
    vectors = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    found = forward_gradient(
        lambda p: p["x"].square().sum() / 2,
        {"x": x},
        directions=20_000,
        subspace={"x": vectors},
        generator=generator,
    )
    projection = vectors.T @ torch.linalg.solve(vectors @ vectors.T, vectors @ x)
    error = estimator_error(found.slopes[:, None] * found.directions["x"], projection)
    assert error.largest_z < 4
    assert error.relative_variance == pytest.approx(3, rel=0.06)
    along = forward_gradient(
        lambda p: p["x"].square().sum() / 2, {"x": x}, subspace={"x": x[None]}, distribution="rademacher"
    )
    torch.testing.assert_close(along.gradient["x"], x)  # one sign along the gradient itself is exact


def test_dual_numbers_take_steps_that_depend_on_values_and_store_nothing(generator: torch.Generator) -> None:
    weight = nn.Parameter(torch.tensor([2.0, 0.5], dtype=torch.float64))

    def loss(p: dict[str, Tensor]) -> Tensor:
        return (p["w"] ** 2).sum() if float(p["w"][0]) > 1 else p["w"].sum()

    measured = saved_bytes(lambda: forward_gradient(loss, {"w": weight}, directions=3, chunk=1, generator=generator))
    assert measured.total == 0
    found = measured.output
    assert not found.value.requires_grad
    expected = (found.directions["w"] @ (2 * weight.detach()))[:, None] * found.directions["w"]
    torch.testing.assert_close(found.gradient["w"], expected.mean(0))
    with pytest.raises(ValueError, match=r"loss must return a real scalar, got shape \(2,\)"):
        forward_gradient(lambda p: p["w"], {"w": weight})
    with pytest.raises(ValueError, match="at least one tensor"):
        forward_gradient(loss, {})


class _NoRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return 2 * cotangent


def test_operations_without_forward_rule_are_all_named_with_their_lines() -> None:
    recurrent, x = nn.LSTM(2, 3), torch.randn(4, 2)

    def loss(p: dict[str, Tensor]) -> Tensor:
        far = torch.cdist(p["w"], p["w"])  # first
        hidden, _ = recurrent(p["w"])
        return _NoRule.apply(far.sum() + hidden.sum()) + torch.cdist(p["w"], p["w"]).sum()

    found = missing_forward_rules(loss, {"w": x})
    assert [rule.operation for rule in found] == ["torch.functional.cdist", "torch.lstm", "_NoRule.apply"]
    assert found[0].source == 'far = torch.cdist(p["w"], p["w"])  # first'
    assert found[0].file == __file__
    assert [rule.line - found[0].line for rule in found[::2]] == [0, 2]
    with pytest.raises(
        NotImplementedError, match=r"torch.functional.cdist at .*test_estimators.py:\d+: far = .*_NoRule"
    ):
        forward_gradient(loss, {"w": x})

    def unfinished(p: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError("later")

    with pytest.raises(NotImplementedError, match=r"^later$"):
        missing_forward_rules(unfinished, {"w": x})


def test_descent_follows_its_rate_and_can_be_saved(generator: torch.Generator) -> None:
    def loss(p: dict[str, Tensor]) -> Tensor:
        return (p["a"] - 3).square().sum() + (p["b"] + 1).square()

    params = {"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.tensor(0.0))}
    optimizer = ForwardGradientDescent(params.items(), lr=0.1, decay=0.5, directions=2, generator=generator)
    state = generator.get_state()
    expected = {name: p.detach().clone() for name, p in params.items()}
    values = []
    for t in range(3):
        found = forward_gradient(loss, expected, directions=2, generator=generator)
        values.append(found.value.item())
        expected = {n: p - 0.1 * math.exp(-0.5 * t) * found.gradient[n] for n, p in expected.items()}
    generator.set_state(state)
    assert optimizer.step(loss).item() == pytest.approx(values[0])
    again = ForwardGradientDescent(params.items(), lr=1.0, directions=2, generator=generator)
    again.load_state_dict(optimizer.state_dict())
    assert [again.step(loss).item() for _ in range(2)] == pytest.approx(values[1:])
    for name, p in params.items():
        torch.testing.assert_close(p.detach(), expected[name])
    with pytest.raises(ValueError, match="lr must be > 0"):
        ForwardGradientDescent(params.items(), lr=0.0)
    with pytest.raises(TypeError, match="pairs of a name and a parameter, got Parameter"):
        ForwardGradientDescent(params.values(), lr=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one parameter"):
        ForwardGradientDescent([], lr=0.1)
    with pytest.raises(ValueError, match="one group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def test_perturbed_units_give_the_gradient_of_every_layer(generator: torch.Generator) -> None:
    network, x, y = _network()
    exact = dict(
        zip(
            dict(network.named_parameters()),
            torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters())),
            strict=True,
        )
    )
    draws = [
        activity_forward_gradient(
            network, lambda out: F.cross_entropy(out, y, reduction="none"), x, generator=generator
        ).gradient
        for _ in range(1000)
    ]
    error = estimator_error({name: torch.stack([d[name] for d in draws]) for name in exact}, exact)
    assert error.largest_z < 4.5
    assert error.relative_variance < 0.5 * (sum(p.numel() for p in network.parameters()) + 1)


def test_variance_of_one_layer_is_that_of_its_units(generator: torch.Generator) -> None:
    layer, x = nn.Linear(3, 4).double(), torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = [
        activity_forward_gradient(layer, lambda out: out.square().sum(-1), x, generator=generator).gradient
        for _ in range(2500)
    ]
    delta = 2 * layer(x).detach()
    exact = {"weight": delta.T @ x / 5, "bias": delta.mean(0)}
    error = estimator_error({name: torch.stack([f[name] for f in found]) for name in exact}, exact)
    expected = 5 * (delta.square().sum(1) * (x.square().sum(1) + 1)).sum() / 25
    assert error.variance == pytest.approx(float(expected), rel=0.1)
    assert error.largest_z < 4


class _Tied(nn.Module):
    """A convolution, an embedding, a layer used twice, weights shared by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.symbols.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.symbols(tokens)
        for _ in range(2):
            x = x + self.norm(self.conv(x.mT).mT).tanh()
        return self.out(x)


def test_any_layer_can_be_perturbed_also_twice_and_with_shared_weights(generator: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Tied().double()
    tokens = torch.randint(5, (8, 3), generator=generator)

    def losses(out: Tensor) -> Tensor:
        return F.cross_entropy(out.mT, tokens.roll(1, 1), reduction="none").sum(1)

    params = dict(model.named_parameters())
    exact = dict(zip(params, torch.autograd.grad(losses(model(tokens)).mean(), list(params.values())), strict=True))
    draws = [activity_forward_gradient(model, losses, tokens, generator=generator).gradient for _ in range(250)]
    error = estimator_error({name: torch.stack([d[name] for d in draws]) for name in exact}, exact)
    assert error.largest_z < 4.5
    assert error.mean_cosine > 0.8
    some = activity_forward_gradient(model, losses, tokens, layers=["conv"], generator=generator).gradient
    assert set(some) == {"conv.weight", "conv.bias"}


def test_layers_that_cannot_be_perturbed_are_named() -> None:
    x = torch.randn(4, 3)

    def losses(out: Tensor) -> Tensor:
        return out.square().flatten(1).sum(1)

    with pytest.raises(ValueError, match=r"'1' \(BatchNorm1d\) normalises over the batch"):
        activity_forward_gradient(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), losses, x)
    with pytest.raises(ValueError, match=r"'1' \(Tanh\) has none of its own"):
        activity_forward_gradient(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), losses, x, layers=["1"])
    with pytest.raises(ValueError, match=r"'the model' \(GRU\) returns tuple"):
        activity_forward_gradient(nn.GRU(3, 2), lambda out: losses(out[0]), x)
    with pytest.raises(ValueError, match="must have a layer with parameters, got none"):
        activity_forward_gradient(nn.Tanh(), losses, x)
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(ValueError, match=r"'out_proj' .* was not called"):
        activity_forward_gradient(attention, lambda out: losses(out[0]), (torch.randn(3, 4),) * 3, layers=["out_proj"])


def test_signals_through_orthogonal_layers_keep_their_size_and_rectifiers_halve_them(
    generator: torch.Generator,
) -> None:
    layers = []
    for _ in range(3):
        linear = nn.Linear(400, 400, bias=False)
        nn.init.orthogonal_(linear.weight, generator=generator)
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers).double()
    x = torch.randn(50, 400, generator=generator, dtype=torch.float64)
    found = signal_propagation(model, x, generator=generator)
    assert [layer.name for layer in found] == ["0", "1", "2", "3", "4", "5"]
    assert [layer.kind for layer in found[:2]] == ["Linear", "ReLU"]
    # of a symmetric distribution a rectifier passes half of the mean square, and half of that of the gradient
    assert [layer.size for layer in found] == pytest.approx([2 ** (-i / 2) for i in (0, 1, 1, 2, 2, 3)], rel=0.1)
    assert [layer.cotangent for layer in found] == pytest.approx([2 ** (-i / 2) for i in (3, 2, 2, 1, 1, 0)], rel=0.1)
    assert found[0].correlation == pytest.approx(0, abs=0.01)
    # of independent samples: the arc-cosine kernel at a right angle, 1 / pi
    assert found[1].correlation == pytest.approx(1 / math.pi, abs=0.02)
    assert found[-1].correlation > found[3].correlation > found[1].correlation


def test_a_layer_is_measured_before_what_follows_changes_it_in_place() -> None:
    """A linear layer before an activation in place, and a sum in place, as in residual networks."""

    class Block(torch.nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.bend = torch.nn.ReLU(inplace=inplace)
            self.inplace = inplace

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.last(self.bend(self.first(x)))
            if self.inplace:
                out += x
                return out
            return out + x

    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    plain, changed = Block(False), Block(True)
    changed.load_state_dict(plain.state_dict())
    found = [signal_propagation(model, x, loss=lambda out: out.square().sum()) for model in (plain, changed)]
    assert found[0] == found[1]
    assert found[0][0].size > found[0][1].size  # the negative numbers were seen
    assert found[0][0].cotangent < found[0][1].cotangent


def test_layers_that_get_no_gradient_or_lose_their_samples_are_seen() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.flat, self.last = nn.Linear(3, 4), nn.Hardtanh(5.0, 6.0), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.flat(self.first(x).detach()))

    model = Cut()
    first, flat, last = signal_propagation(model, torch.randn(6, 3), loss=lambda out: out.square().sum())
    assert (first.cotangent, flat.cotangent) == (0.0, 0.0)
    assert last.cotangent > 0
    assert (flat.idle, flat.correlation) == (1.0, pytest.approx(1.0))
    assert math.isnan(signal_propagation(model, torch.randn(1, 3))[0].correlation)
    assert not any(m._forward_hooks for m in model.modules())


def test_signal_and_noise_of_gradients_are_the_moments_of_batches(generator: torch.Generator) -> None:
    x = torch.randn(4000, 8, 2, generator=generator, dtype=torch.float64) + torch.tensor([3.0, 0.0])

    def loss(p: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (batch @ p["w"]).mean() + 0 * p["idle"].sum()

    w = {"w": torch.ones(2, dtype=torch.float64), "idle": torch.ones(1, dtype=torch.float64)}
    found = gradient_signal(loss, w, x)
    assert found.signal["w"] == pytest.approx(9, rel=0.02)
    assert found.noise["w"] == pytest.approx(2 / 8, rel=0.1)
    assert (found.signal["idle"], found.noise["idle"], found.ratio["idle"]) == (0, 0, 0)
    assert found.overall == pytest.approx(36, rel=0.1)
    with pytest.raises(ValueError, match="must return a scalar that depends on the parameters, got"):
        gradient_signal(lambda p, batch: batch.sum(), w, x)
    with pytest.raises(ValueError, match="at least one tensor"):
        gradient_signal(loss, {}, x)
    with pytest.raises(ValueError, match="gradients must have the same names"):
        GradientSignal.of([{"w": torch.ones(1)}, {"v": torch.ones(1)}])
    assert GradientSignal.of([{"w": None}, {"w": torch.tensor([2.0])}]).noise == {"w": 2.0}
