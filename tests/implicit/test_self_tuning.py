"""Best-response layers against exact responses, distributions of hyperparameters, training that tunes itself."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback.implicit import (
    BestResponseConv2d,
    BestResponseLinear,
    BilevelDescent,
    Hyperparameter,
    Hyperparameters,
    dropout_by_example,
    hypergradient,
    replace_with_best_response,
    self_tuning_training,
)


def test_gated_layer_has_the_response_and_the_hypergradient_of_ridge_regression() -> None:
    """The paper's theorem: in principal components the response to a log decay is a gate; here its tangent."""
    stream = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(20, n, generator=stream, dtype=torch.float64) for n in (4, 1))
    gram, moment = inputs.T @ inputs / 20, (inputs.T @ targets / 20)[:, 0]
    spread, axes = torch.linalg.eigh(gram)  # w*(u) = axes diag(1 / (spread + e^u)) axes^T moment
    layer = BestResponseLinear(4, 4, 1, bias=False).double()
    last = axes.T @ moment / spread  # the second layer, unregularised
    with torch.no_grad():
        layer.weight[:] = axes.T
        layer.weight[0] *= (spread / (spread + 1))[:, None]
        layer.gate[:] = (-spread / (spread + 1) ** 2)[None, :, None]

    def lower(u: Tensor, w: Tensor) -> Tensor:
        return w @ gram @ w / 2 - moment @ w + torch.exp(u).sum() * (w @ w) / 2

    def upper(u: Tensor, w: Tensor) -> Tensor:
        return ((w - 1) ** 2).sum()

    def response(u: Tensor) -> Tensor:
        return last @ layer.at(u).weight

    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    exact = torch.linalg.solve(gram + torch.eye(4, dtype=torch.float64), moment)
    torch.testing.assert_close(response(u).detach(), exact)
    (through,) = torch.autograd.grad(upper(u, response(u)), u)
    torch.testing.assert_close(through, hypergradient(upper, lower, u.detach(), exact, method="exact").gradient)
    x = torch.randn(3, 4, generator=stream, dtype=torch.float64)
    torch.testing.assert_close(layer(x, u) @ last, x @ exact)


@pytest.mark.parametrize(
    "build", [partial(BestResponseLinear, 3, 2, 2), partial(BestResponseConv2d, 3, 2, 3, 2)], ids=["linear", "conv"]
)
def test_weights_begin_as_torch_layers_do_and_follow_the_generator(build: Any) -> None:
    layers = [build(generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([p.flatten() for p in layer.parameters()]) for layer in layers)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    bound = 1 / math.sqrt(layers[0].weight[0, 0].numel())
    assert layers[0].weight.abs().max() <= bound
    assert layers[0].gate.std() < 0.02


@pytest.mark.parametrize("wrong", [{"hyperparameters": 0}, {"in_features": 0}, {"out_features": 0}])
def test_layers_refuse_empty_sizes(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BestResponseLinear(**{"in_features": 2, "out_features": 2, "hyperparameters": 2, **wrong})
    with pytest.raises(ValueError, match="padding"):
        BestResponseConv2d(1, 1, 1, 1, padding=-1)


def _some() -> Hyperparameters:
    return Hyperparameters(
        {
            "rate": Hyperparameter(0.3, 0.0, 0.9, scale=0.7),
            "decay": Hyperparameter(1e-4, 1e-6, 1e-1, log=True),
            "noise": Hyperparameter(2.0, 1.0, math.inf),
            "count": Hyperparameter(3, 0, 3, integer=True, scale=5.0),
        }
    )


def test_values_begin_at_the_start_and_stay_in_their_ranges() -> None:
    some = _some()
    assert len(some) == 4
    values = {name: round(value.item(), 6) for name, value in some.values().items()}
    assert values == {"rate": 0.3, "decay": 1e-4, "noise": 2.0, "count": 3.0}
    around = some.values(some.perturb(500, generator=torch.Generator().manual_seed(0)))
    for name, item in some.spec.items():
        assert around[name].min() >= item.low
        assert around[name].max() <= item.high
    assert set(around["count"].tolist()) == {0.0, 1.0, 2.0, 3.0}
    extreme = some.values(torch.tensor([1e4, -1e4]).repeat(4, 1).T)
    assert [value.tolist() for value in extreme.values()][3] == [3.0, 0.0]


def test_perturbations_have_the_scale_and_the_entropy_of_a_normal_distribution() -> None:
    some = _some()
    draws = some.perturb(20_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.std(0), some.scale, rtol=0.03, atol=0)
    torch.testing.assert_close(draws.mean(0), some.center, atol=0.15, rtol=0)
    torch.testing.assert_close(some.scale, torch.tensor([0.7, 0.5, 0.5, 5.0]))
    exact = torch.distributions.Normal(some.center, some.scale).entropy().sum()
    torch.testing.assert_close(some.entropy(), exact)
    draws.sum().backward()
    torch.testing.assert_close(some.center.grad, torch.full((4,), 20_000.0))
    assert some.raw_scale.grad is not None


def test_no_gradient_of_integers_and_wrong_arguments_are_refused() -> None:
    some = _some()
    with pytest.raises(ValueError, match=r"differentiable must be False .* integers, got \['count'\]"):
        some.values(differentiable=True)
    assert not some.values()["rate"].requires_grad
    one = Hyperparameters({"rate": Hyperparameter(0.25)}, tune_scale=False)
    (slope,) = torch.autograd.grad(one.values(differentiable=True)["rate"], one.center)
    assert slope.item() == pytest.approx(0.25 * 0.75)
    assert not one.raw_scale.requires_grad
    with pytest.raises(ValueError, match="h must"):
        some.values(torch.zeros(3))
    with pytest.raises(ValueError, match="batch must be an integer >= 1"):
        some.perturb(0)
    with pytest.raises(ValueError, match="at least one"):
        Hyperparameters({})
    with pytest.raises(TypeError, match=r"spec\['a'\] must be a Hyperparameter"):
        Hyperparameters({"a": 0.1})  # type: ignore[dict-item]


def test_dropout_keeps_the_mean_and_has_the_rate_of_each_example() -> None:
    rates = torch.tensor([0.0, 0.2, 0.9])
    found = dropout_by_example(torch.ones(3, 50_000), rates, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((found == 0).float().mean(1), rates, atol=0.01, rtol=0)
    torch.testing.assert_close(found.mean(1), torch.ones(3), atol=0.05, rtol=0)


class _Ridge:
    """Two coefficients with a decay; validation wants the first to be 0.8 times what it is without."""

    def __init__(self) -> None:
        self.stream = torch.Generator().manual_seed(0)
        self.decay = Hyperparameters({"decay": Hyperparameter(1.0, 0, math.inf, log=True, scale=0.2)})
        self.net = BestResponseLinear(2, 1, 1, bias=False, generator=self.stream)
        self.rows = torch.eye(2).repeat(32, 1)

    def train(self, decay: Hyperparameters, net: nn.Module) -> Tensor:
        h = decay.perturb(64, generator=self.stream)
        w = net(self.rows, h)[:, 0]
        return ((w - 1) ** 2 + decay.values(h)["decay"] * w**2).mean()

    def validation(self, decay: Hyperparameters, net: nn.Module) -> Tensor:
        return ((net(self.rows[::2], decay.perturb(32, generator=self.stream)) - 0.8) ** 2).mean()

    def training(self, **options: Any) -> BilevelDescent:
        return self_tuning_training(
            self.decay,
            self.net,
            self.train,
            self.validation,
            network_optimizer=torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.5),
            hyper_optimizer=torch.optim.Adam(self.decay.parameters(), lr=0.03),
            **options,
        )


def test_it_finds_the_best_decay() -> None:
    problem = _Ridge()
    training = problem.training()
    for _ in range(250):
        training.step()
    assert problem.decay.values()["decay"].item() == pytest.approx(0.25, abs=0.04)  # 1 / (1 + 0.25) = 0.8
    assert problem.net(torch.eye(2), problem.decay.center).squeeze(1).tolist() == pytest.approx([0.8, 0.8], abs=0.03)


def test_entropy_widens_the_perturbations() -> None:
    widths = []
    for weight in (0.0, 0.1):
        problem = _Ridge()
        training = problem.training(entropy_weight=weight)
        for _ in range(60):
            training.step()
        widths.append(problem.decay.scale.item())
    assert widths[0] < 0.2 < widths[1]


def test_a_saved_state_goes_on_to_the_bit() -> None:
    first, second = _Ridge(), _Ridge()
    one, other = first.training(), second.training()
    for _ in range(3):
        one.step()
    other.load_state_dict(deepcopy(one.state_dict()))
    second.stream.set_state(first.stream.get_state())
    for problem, training in ((first, one), (second, other)):
        training.step()
        problem.stream.set_state(torch.Generator().manual_seed(1).get_state())
        training.step()
    assert torch.equal(first.net.weight, second.net.weight)
    assert torch.equal(first.decay.center, second.decay.center)


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"hyperparameters": nn.Identity()}, TypeError, "hyperparameters must be Hyperparameters"),
        ({"network": torch.ones(1)}, TypeError, "network must be a torch.nn.Module"),
        ({"train": 1}, TypeError, "train must be a function"),
        ({"validation": None}, TypeError, "validation must be a function"),
        ({"entropy_weight": -1.0}, ValueError, "entropy_weight must be >= 0"),
        ({"train_steps": -1}, ValueError, "train_steps must be an integer >= 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], error: type[Exception], match: str) -> None:
    p = _Ridge()
    given = {"hyperparameters": p.decay, "network": p.net, "train": p.train, "validation": p.validation}
    optimizers = {
        "network_optimizer": torch.optim.SGD(p.net.parameters(), lr=0.1),
        "hyper_optimizer": torch.optim.Adam(p.decay.parameters()),
    }
    with pytest.raises(error, match=match):
        self_tuning_training(**{**given, **optimizers, **wrong})


def test_a_replaced_network_is_the_network_where_it_does_not_answer(generator: torch.Generator) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Sequential(nn.Linear(64, 5))
    )
    before = deepcopy(network.state_dict())
    answering = replace_with_best_response(network, 2, generator=generator)
    assert answering.replaced == ["0", "3.0"]
    x = torch.randn(6, 3, 4, 4, generator=generator)
    network.eval(), answering.eval()
    torch.testing.assert_close(answering(x, h=torch.zeros(2)), network(x))
    h = torch.randn(2, generator=generator, requires_grad=True)
    plain = torch.func.functional_call(network, answering.at(h), x)
    torch.testing.assert_close(answering(x, h=h.expand(6, 2)), plain)
    assert float(torch.autograd.grad(plain.square().sum(), h)[0].norm()) > 0
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_linear_layers_of_sequences_answer_by_example(generator: torch.Generator) -> None:
    answering = replace_with_best_response(nn.Linear(3, 2), 4, generator=generator)
    x, h = torch.randn(5, 7, 3, generator=generator), torch.randn(5, 4, generator=generator)
    expected = torch.stack([answering(x[i], h=h[i]) for i in range(5)])
    torch.testing.assert_close(answering(x, h=h), expected)


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (nn.Sequential(nn.ReLU()), ValueError, "model must have a Linear or Conv2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), ValueError, "layer '0' must have equal sides"),
        (nn.Sequential(nn.Conv2d(4, 4, (3, 1))), ValueError, "layer '0' must have equal sides"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")), ValueError, "layer '0' must have equal sides"),
        (torch.zeros(3), TypeError, "model must be a torch.nn.Module, got Tensor"),
    ],
)
def test_what_cannot_answer_is_named(network: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace_with_best_response(network, 2)


def test_a_best_response_layer_answers_inside_its_model_alone() -> None:
    answering = replace_with_best_response(nn.Sequential(nn.Linear(3, 2)), 1)
    with pytest.raises(RuntimeError, match="call that"):
        answering.model(torch.zeros(1, 3))
