"""Flow and latent model against closed forms: linear fields, constant rates, a recurrent cell stepped by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pullback.dynamics import (
    AutoregressiveRNN,
    BackwardsEncoder,
    ContinuousFlow,
    ConvolutionalField,
    GatedField,
    LatentODE,
    LatentRNN,
    NeuralField,
    PlanarFlow,
    ResidualBlock,
)


class Linear(nn.Module):
    """dz/dt = A z."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix.T


class Drift(nn.Module):
    """dz/dt = c."""

    def __init__(self, rate: Tensor) -> None:
        super().__init__()
        self.rate = nn.Parameter(rate)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.rate + 0 * z


MATRIX = torch.tensor([[0.3, -0.8, 0.1], [0.5, -0.2, 0.4], [0.0, 0.7, 0.1]], dtype=torch.float64)


def test_a_linear_flow_is_a_gaussian(generator: torch.Generator) -> None:
    flow = ContinuousFlow(Linear(MATRIX.clone()), 3, rtol=1e-9, atol=1e-11)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)

    def exact(matrix: Tensor) -> Tensor:
        transport = torch.matrix_exp(matrix)
        return MultivariateNormal(torch.zeros(3, dtype=torch.float64), transport @ transport.T).log_prob(x)

    matrix = MATRIX.clone().requires_grad_()
    assert torch.allclose(flow.log_prob(x), exact(MATRIX), atol=1e-7)
    (got,) = torch.autograd.grad(flow.log_prob(x).sum(), flow.field.matrix)
    assert torch.allclose(got, torch.autograd.grad(exact(matrix).sum(), matrix)[0], atol=1e-6)
    assert torch.allclose(flow.inverse(x), x @ torch.matrix_exp(-MATRIX).T, atol=1e-8)
    sample = flow.sample(4, generator=generator)
    assert torch.allclose(flow.log_prob(sample.x), sample.log_prob, atol=1e-7)


def test_hutchinson_is_exact_for_a_diagonal_jacobian(generator: torch.Generator) -> None:
    diagonal = Linear(torch.diag(torch.tensor([0.4, -0.7], dtype=torch.float64)))
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    estimate = ContinuousFlow(diagonal, 2, trace="hutchinson").log_prob(x, generator=generator)
    deviation = torch.tensor([0.4, -0.7], dtype=torch.float64).exp()
    assert torch.allclose(estimate, Normal(0.0, deviation).log_prob(x).sum(1), atol=1e-6)


def test_hutchinson_is_unbiased(generator: torch.Generator) -> None:
    # in the plane e^T J e = J11 + J22 +- (J12 + J21), each sign with probability 1/2: their middle is the exact trace
    field = GatedField(2, 6, generator=generator).double()
    options = {"rtol": 1e-9, "atol": 1e-11}
    x = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    estimates = ContinuousFlow(field, 2, trace="hutchinson", **options).log_prob(x.expand(40, 2), generator=generator)
    low, high = estimates.min(), estimates.max()
    near_low, near_high = (estimates - low).abs() < 1e-6, (estimates - high).abs() < 1e-6
    assert bool((near_low | near_high).all())
    assert high - low > 1e-2
    assert abs(int(near_low.sum()) - 20) <= 12  # four standard deviations of a fair coin
    exact = ContinuousFlow(field, 2, **options).log_prob(x)
    assert torch.allclose((low + high) / 2, exact, atol=1e-6)


def test_hutchinson_gradient_is_that_of_its_estimate(generator: torch.Generator) -> None:
    flow = ContinuousFlow(Linear(MATRIX.clone()), 3, trace="hutchinson", rtol=1e-9, atol=1e-11)
    x = torch.randn(3, 3, generator=generator, dtype=torch.float64)

    def value() -> Tensor:
        return flow.log_prob(x, generator=torch.Generator().manual_seed(3)).sum()

    (grad,) = torch.autograd.grad(value(), flow.field.matrix)
    step, direction = 1e-5, torch.randn(3, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        flow.field.matrix.add_(step * direction)
        up = value()
        flow.field.matrix.sub_(2 * step * direction)
        down = value()
    assert ((up - down) / (2 * step)).item() == pytest.approx((grad * direction).sum().item(), rel=1e-5)


def test_hutchinson_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="generator must be given where trace='hutchinson'"):
        ContinuousFlow(Linear(MATRIX.clone()), 3, trace="hutchinson").log_prob(torch.zeros(1, 3, dtype=torch.float64))


def test_encoder_reads_what_is_seen_from_the_last_to_the_first(generator: torch.Generator) -> None:
    encoder = BackwardsEncoder(2, 3, hidden=7)
    times = torch.rand(4, 6, generator=generator).sort(1).values
    values = torch.randn(4, 6, 2, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]])
    cell = nn.GRUCell(3, 7)
    for name, parameter in cell.named_parameters():
        parameter.data = getattr(encoder.gru, f"{name}_l0").data
    rows = []
    for t, x, seen in zip(times, values, mask, strict=True):
        state, later = torch.zeros(1, 7), None
        for i in reversed(range(6)):
            if seen[i]:
                gap = torch.zeros(1) if later is None else later - t[i : i + 1]
                state, later = cell(torch.cat([x[i], gap])[None], state), t[i : i + 1]
        rows.append(encoder.head(state))
    assert torch.allclose(encoder(times, values, mask), torch.cat(rows), atol=1e-6)


def latent_model(**options: object) -> LatentODE:
    """A drifting latent state that is known: the encoder says N(mu, exp(-10)) whatever it reads."""

    class Known(nn.Module):
        def forward(self, times: Tensor, values: Tensor, mask: Tensor) -> Tensor:
            return torch.tensor([0.5, -0.2, -10.0, -10.0], dtype=torch.float64).expand(len(times), 4)

    decoder = nn.Linear(2, 1).double()
    return LatentODE(Known(), Drift(torch.tensor([0.3, -1.0], dtype=torch.float64)), decoder, latent=2, **options)


def test_bound_of_a_drifting_state(generator: torch.Generator) -> None:
    model = latent_model(noise=0.2, rtol=1e-9, atol=1e-11)
    times = torch.tensor([[0.1, 0.7, 1.5], [0.2, 0.3, 2.0]], dtype=torch.float64)
    values = torch.randn(2, 3, 1, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    values[1, 1] = math.nan  # not observed
    bound = model.elbo(times, values, mask, kl_weight=0.5, generator=generator)
    start = torch.tensor([0.5, -0.2], dtype=torch.float64)
    mean = model.decoder(start + times.unsqueeze(-1) * model.field.rate)
    log_p = torch.where(mask > 0, Normal(mean, 0.2).log_prob(values.nan_to_num()).squeeze(-1), 0.0).sum(1)
    assert torch.allclose(bound.log_likelihood, log_p, atol=1e-2)  # z0 has the deviation exp(-10)
    q = Normal(start, math.exp(-10.0))
    kl = kl_divergence(q, Normal(torch.zeros(2).double(), torch.ones(2).double())).sum()
    assert torch.allclose(bound.kl, kl.expand(2))
    assert torch.allclose(bound.bound, bound.log_likelihood - 0.5 * kl)
    assert bound.event_log_likelihood is None
    bound.bound.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_fixed_steps_are_read_at_the_times_and_do_not_stop_there(generator: torch.Generator) -> None:
    calls = 0

    class Rotation(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return torch.stack([-z[:, 1], z[:, 0]], 1)

    model = LatentODE(BackwardsEncoder(1, 2), Rotation(), nn.Linear(2, 1), latent=2, method="rk4", step=0.1).double()
    z0 = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    counts = []
    for steps in (3, 50):
        times = 2 * torch.rand(4, steps, generator=generator, dtype=torch.float64).sort(1).values
        times[0, -1] = 2.0
        calls = 0
        states = model.trajectory(z0, times)
        counts.append(calls)
        cos, sin = times.T.cos(), times.T.sin()
        exact = torch.stack([z0[:, 0] * cos - z0[:, 1] * sin, z0[:, 0] * sin + z0[:, 1] * cos], -1)
        assert torch.allclose(states, exact, atol=1e-4)
    assert counts[0] == counts[1]


def test_neural_field_has_the_layers_that_were_asked_for() -> None:
    field = NeuralField(3, hidden=(5, 7), activation=nn.Tanh)
    z = torch.randn(4, 3)
    first, second, third = (layer for layer in field.layers if isinstance(layer, nn.Linear))
    assert [layer.out_features for layer in (first, second, third)] == [5, 7, 3]
    assert torch.allclose(field(torch.zeros(1), z), third(second(first(z).tanh()).tanh()))
    with pytest.raises(ValueError, match="at least one layer"):
        NeuralField(3, hidden=())
    with pytest.raises(ValueError, match="hidden must be an integer >= 1, got 0"):
        NeuralField(3, hidden=(5, 0))


def test_intensity_has_the_likelihood_of_a_poisson_process(generator: torch.Generator) -> None:
    intensity = nn.Linear(2, 1).double()
    model = latent_model(intensity=intensity, rtol=1e-9, atol=1e-11)
    times = torch.tensor([[0.1, 0.7, 1.5], [0.2, 0.3, 2.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    bound = model.elbo(times, torch.zeros(2, 3, 1, dtype=torch.float64), mask, generator=generator)

    # log lambda(t) = p + q t along the drift: the integral to T is e^p (e^(q T) - 1) / q
    p = intensity(torch.tensor([0.5, -0.2], dtype=torch.float64))
    q = (intensity.weight @ model.field.rate).squeeze()
    log_rate = torch.where(mask > 0, p + q * times, 0.0).sum(1)
    exact = log_rate - p.exp() * torch.expm1(q * times[:, -1]) / q
    assert torch.allclose(bound.event_log_likelihood, exact, atol=1e-3)  # z0 has the deviation exp(-10)
    assert torch.allclose(bound.bound, bound.log_likelihood - bound.kl + bound.event_log_likelihood)
    wanted = torch.autograd.grad(exact.sum(), [intensity.weight, intensity.bias, model.field.rate])
    got = torch.autograd.grad(bound.event_log_likelihood.sum(), [intensity.weight, intensity.bias, model.field.rate])
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_latent_ode_refuses_times_before_its_start() -> None:
    model = LatentODE(BackwardsEncoder(1, 2), NeuralField(2), nn.Linear(2, 1), latent=2, start=1.0)
    with pytest.raises(ValueError, match=r"must not lie before start=1\.0"):
        model.decode(torch.zeros(1, 2), torch.tensor([[0.5, 2.0]]))


def test_convolutional_field_sees_the_time_as_a_channel(generator: torch.Generator) -> None:
    field = ConvolutionalField(2)
    y = torch.randn(3, 2, 4, 4, generator=generator)
    t = torch.tensor([0.0, 0.5, 2.0]).view(3, 1, 1, 1)

    def normed(x: Tensor) -> Tensor:
        mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    x = y
    for convolution in field.convolutions:
        state, time = convolution.weight.split([2, 1], 1)
        x = nn.functional.conv2d(normed(x).relu(), state, convolution.bias, padding=1)
        x = x + t * nn.functional.conv2d(torch.ones(1, 1, 4, 4), time, padding=1)
    assert torch.allclose(field(t, y), normed(x), atol=1e-5)
    assert torch.allclose(field(t[2:], y)[2], field(t, y)[2], atol=1e-6)  # one time for all


def test_planar_flow_has_the_determinant_of_its_jacobian(generator: torch.Generator) -> None:
    flow = PlanarFlow(3, 5, generator=generator).double()
    with torch.no_grad():
        flow.u.mul_(20.0)  # far from the identity, u . w of either sign
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    z, change = flow(x)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda y: flow(y[None])[0][0], x[i])
        assert torch.allclose(torch.linalg.det(jacobian).log(), change[i], atol=1e-10)
    base = MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    assert torch.allclose(flow.log_prob(x), base.log_prob(z) + change)


def stepped(gru: nn.GRU, inputs: Tensor, state: Tensor) -> Tensor:
    """States of a recurrent network, cell by cell: ``[batch, steps, hidden]``."""
    cell = nn.GRUCell(gru.input_size, gru.hidden_size).to(state.dtype)
    for name, parameter in cell.named_parameters():
        parameter.data = getattr(gru, f"{name}_l0").data
    states = []
    for x in inputs.unbind(1):
        state = cell(x, state)
        states.append(state)
    return torch.stack(states, 1)


def test_autoregressive_network_reads_value_and_gap_and_then_itself(generator: torch.Generator) -> None:
    model = AutoregressiveRNN(2, hidden=5, noise=0.4).double()
    times = torch.rand(3, 6, generator=generator, dtype=torch.float64).sort(1).values
    values = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    gaps = times.diff(dim=1).unsqueeze(-1)
    state = torch.zeros(3, 5, dtype=torch.float64)
    mean = model.head(stepped(model.gru, torch.cat([values[:, :5], gaps], -1), state))
    expected = Normal(mean, 0.4).log_prob(values[:, 1:]).sum((1, 2))
    assert torch.allclose(model.log_likelihood(times, values), expected)
    told = model.extrapolate(times[:, :4], values[:, :4], times[:, 4:])
    states = stepped(model.gru, torch.cat([values[:, :4], gaps[:, :4]], -1), state)
    first = model.head(states[:, -1])
    second = model.head(stepped(model.gru, torch.cat([first, gaps[:, 4]], -1)[:, None], states[:, -1])[:, 0])
    assert torch.allclose(told, torch.stack([first, second], 1))
    with pytest.raises(ValueError, match="at least two steps"):
        model.log_likelihood(times[:, :1], values[:, :1])


def test_latent_rnn_reads_gaps_from_its_start(generator: torch.Generator) -> None:
    model = LatentRNN(2, 3, hidden=4, start=-1.0).double()
    times = torch.rand(3, 6, generator=generator, dtype=torch.float64).sort(1).values
    z0 = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    gaps = torch.cat([times[:, :1] + 1.0, times.diff(dim=1)], 1).unsqueeze(-1)
    states = stepped(model.field, gaps, torch.tanh(model.first(z0)))
    assert torch.allclose(model.trajectory(z0, times), states.transpose(0, 1))
    assert torch.allclose(model.decode(z0, times), model.decoder(states))


def test_residual_block_is_its_layers(generator: torch.Generator) -> None:
    block = ResidualBlock(4)
    y = torch.randn(2, 4, 5, 5, generator=generator)
    inner = block.convolutions[0](torch.relu(block.norms[0](y)))
    assert torch.allclose(block(y), y + block.convolutions[1](torch.relu(block.norms[1](inner))), atol=1e-6)


def _sequence_calls(model: Any, times: Tensor, values: Tensor, queries: Tensor, **more: Any) -> list[Callable[[], Any]]:
    """Every way in which a sequence model reads observations."""
    if isinstance(model, BackwardsEncoder):
        return [lambda: model(times, values, more.get("mask", torch.ones(times.shape)))]
    calls: list[Callable[[], Any]] = [lambda: model.extrapolate(times, values, queries, **more)]
    if isinstance(model, AutoregressiveRNN):
        return [*calls, lambda: model.log_likelihood(times, values)]
    return [*calls, lambda: model.posterior(times, values, **more), lambda: model.elbo(times, values, **more)]


@pytest.mark.parametrize("name", ["BackwardsEncoder", "LatentODE", "LatentRNN", "AutoregressiveRNN"])
def test_sequences_of_other_batches_or_steps_are_refused_by_name(name: str, without_shape_checks: None) -> None:
    encoder = BackwardsEncoder(2, 4)
    models: dict[str, Any] = {
        "BackwardsEncoder": encoder,
        "LatentODE": LatentODE(encoder, NeuralField(4), nn.Linear(4, 2), latent=4),
        "LatentRNN": LatentRNN(2, 4),
        "AutoregressiveRNN": AutoregressiveRNN(2),
    }
    times, values, later = torch.linspace(0, 1, 5).expand(3, 5), torch.zeros(3, 5, 2), torch.full((3, 2), 2.0)

    def refused(times: Tensor, values: Tensor, queries: Tensor, match: str, **more: Any) -> None:
        for call in _sequence_calls(models[name], times, values, queries, **more):
            with pytest.raises(ValueError, match=match):
                call()

    refused(times, values[:2], later, r"values must have shape \(3, 5, .*got \(2, 5, 2\)")
    refused(times, values[:, :4], later, r"values must have shape \(3, 5, .*got \(3, 4, 2\)")
    refused(times[:1], values, later, r"values must have shape \(1, 5, .*got \(3, 5, 2\)")
    refused(times, values[..., 0], later, r"values must have shape \(3, 5, .*got \(3, 5\)")
    refused(times[0], values, later, r"times must have shape \(batch, steps\), got \(5,\)")
    refused(times, values[..., :1], later, r"values must have shape \(3, 5, 2\), got \(3, 5, 1\)")
    if name != "AutoregressiveRNN":
        mask = torch.ones(3, 4)
        refused(times, values, later, r"mask must have the shape of times, \(3, 5\), got \(3, 4\)", mask=mask)
    if name != "BackwardsEncoder":
        with pytest.raises(ValueError, match=r"queries must have shape \(3, steps\), got \(2, 2\)"):
            models[name].extrapolate(times, values, later[:2])
