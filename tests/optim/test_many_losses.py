"""Many losses: whose parameters are whose, paths that must agree, what couples examples, random aggregators."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pullback.kernels.complementarity import complementarity, complementarity_plain
from pullback.optim import (
    aggregate,
    aggregation_weights,
    instance_losses,
    jacobian_backward,
    loss_gramian,
    properties_of,
    upgrad_weights,
)


def _network(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers).double()


def _classified(model: nn.Module, x: Tensor) -> Tensor:
    return instance_losses(nn.CrossEntropyLoss(label_smoothing=0.1), model(x), torch.arange(len(x)) % 3)


def test_shared_and_own_parameters_are_told_apart() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 3), [nn.Linear(3, 1) for _ in range(3)]
    features = trunk(torch.randn(5, 4)).tanh()
    losses = [head(features).square().mean() for head in heads]
    wanted = [torch.autograd.grad(loss, head.weight, retain_graph=True)[0] for loss, head in zip(losses, heads)]
    found = jacobian_backward(losses, nn.ModuleList([trunk, *heads]))
    assert (found.shared, found.own) == (2, 6)
    for head, gradient in zip(heads, wanted, strict=True):
        torch.testing.assert_close(head.weight.grad, gradient)
    assert trunk.weight.grad is not None


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_rows_and_gramian_fill_the_same_gradients(chunk: int | None, generator: torch.Generator) -> None:
    layers = (nn.Conv2d(2, 4, 3, groups=2, padding=1), nn.ReLU(inplace=True), nn.GroupNorm(2, 4), nn.Flatten())
    x = torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    rows = _network(*layers, nn.Linear(64, 3))
    layered = copy.deepcopy(rows)
    first = jacobian_backward(_classified(rows, x), rows, chunk=chunk)
    second = jacobian_backward(lambda: _classified(layered, x), layered, method="gramian")
    torch.testing.assert_close(first.gramian, second.gramian)
    for p, q in zip(rows.parameters(), layered.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9)


def test_parameters_used_outside_of_their_layer_go_by_rows(generator: torch.Generator) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out, self.scale = (
                nn.Embedding(7, 4),
                nn.Linear(4, 7, bias=False),
                nn.Parameter(torch.ones(4)),
            )
            self.out.weight = self.table.weight

        def forward(self, index: Tensor) -> Tensor:
            return self.out(self.table(index).mean(1) * self.scale)

    model, index = Tied().double(), torch.randint(7, (6, 3), generator=generator)
    found = loss_gramian(lambda: model(index).square().sum(1), model)
    rows = jacobian_backward(model(index).square().sum(1), model, aggregator="mean")
    assert set(found.ways.values()) == {"rows"}
    torch.testing.assert_close(found.gramian, rows.gramian)


def test_a_layer_that_is_called_twice_counts_its_calls_together(generator: torch.Generator) -> None:
    layer = _network(nn.Linear(3, 3))
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    found = loss_gramian(lambda: layer(layer(x).tanh()).square().sum(1), layer)
    assert set(found.ways.values()) == {"layer"}
    rows = jacobian_backward(layer(layer(x).tanh()).square().sum(1), layer, aggregator="mean")
    torch.testing.assert_close(found.gramian, rows.gramian)


class _Tasks(nn.Module):
    """Words, pictures and features that several heads share; one task looks at features of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 6, padding_idx=0)
        self.picture = nn.Conv2d(2, 4, 3, stride=2, groups=2)
        self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm(6)
        self.trunk, self.alone = nn.Linear(10, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

    def forward(self, index: Tensor, image: Tensor, y: Tensor) -> list[Tensor]:
        seen = self.group(self.picture(image)).tanh().flatten(2).mean(-1)
        x = self.layer(self.trunk(torch.cat([self.words(index).mean(1), seen], 1)).tanh()) * self.scale
        x = self.trunk(torch.cat([x, seen], 1))  # once more
        features = [x, x, self.alone(x).tanh()]
        return [(head(f) - y).square().mean() for head, f in zip(self.heads, features, strict=True)]


@pytest.mark.parametrize("rows", [2, 30])
def test_tasks_that_share_their_input_need_no_jacobian(rows: int, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    one = _Tasks().double()
    other = copy.deepcopy(one)
    index = torch.randint(5, (rows, 3), generator=generator)
    image = torch.randn(rows, 2, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    first = jacobian_backward(one(index, image, y), one)
    second = jacobian_backward(lambda: other(index, image, y), other, method="gramian", instances=False)
    assert (first.shared, first.own) == (second.shared, second.own) == (10, 8)
    torch.testing.assert_close(first.gramian, second.gramian)
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9, msg=name)
    found = loss_gramian(lambda: other(index, image, y), other, instances=False)
    assert [name for name, way in found.ways.items() if way == "rows"] == ["scale"]
    every = jacobian_backward(other(index, image, y), other, shared=other.parameters())
    torch.testing.assert_close(found.gramian, every.gramian)


def test_tasks_that_call_a_layer_with_inputs_of_their_own_go_by_rows(generator: torch.Generator) -> None:
    layer = _network(nn.Linear(3, 3))
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    losses = lambda: [layer(x[0]).square().mean(), layer(x[1]).exp().mean(), torch.ones((), dtype=torch.float64)]  # noqa: E731
    found = loss_gramian(losses, layer, instances=False)
    assert set(found.ways.values()) == {"rows"}
    rows = jacobian_backward(losses(), layer, aggregator="mean")
    torch.testing.assert_close(found.gramian, rows.gramian)
    assert rows.gramian[2].count_nonzero() == 0


def test_the_gramian_is_of_the_shared_parameters_that_are_named(generator: torch.Generator) -> None:
    one = _network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    other, x = copy.deepcopy(one), torch.randn(5, 3, generator=generator, dtype=torch.float64)
    first = jacobian_backward(one(x).square().sum(1), one, shared=one[0].parameters())
    second = jacobian_backward(lambda: other(x).square().sum(1), other, method="gramian", shared=other[0].parameters())
    assert (second.shared, second.own) == (2, 2)
    torch.testing.assert_close(first.gramian, second.gramian)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9)


def test_what_couples_examples_is_refused_by_the_name_of_the_layer() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    normed = _network(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"batch normalisation '1' couples them: use eval\(\)"):
        loss_gramian(lambda: _classified(normed, x), normed)
    assert loss_gramian(lambda: _classified(normed, x), normed.eval()).ways["1.weight"] == "rows"
    coupled = _network(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="the first loss depends on other rows of layer '0'"):
        loss_gramian(lambda: coupled(x).sum(1) * coupled(x).sum(), coupled)
    whole = loss_gramian(lambda: coupled(x).sum(1) * coupled(x).sum(), coupled, instances=False)
    rows = jacobian_backward(coupled(x).sum(1) * coupled(x).sum(), coupled, aggregator="mean")
    torch.testing.assert_close(whole.gramian, rows.gramian)


def test_gradients_are_added_up_and_an_unused_function_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    for _ in range(2):
        jacobian_backward(w.square(), [w], aggregator="mean")
    torch.testing.assert_close(w.grad, 2 * torch.ones(2))
    with pytest.raises(TypeError, match="losses must be a function without arguments"):
        jacobian_backward(w.square(), nn.Linear(2, 1), method="gramian")
    with pytest.raises(ValueError, match="must return weights of shape"):
        jacobian_backward(w.square(), [w], aggregator=lambda g: g)
    with pytest.raises(ValueError, match="losses must depend on params"):
        jacobian_backward(torch.ones(2), [w])


def test_graddrop_keeps_one_sign_by_its_share(generator: torch.Generator) -> None:
    jacobian = torch.tensor([[3.0, 1.0], [-1.0, 1.0]])
    draws = torch.stack([aggregate(jacobian, method="graddrop", generator=generator).direction for _ in range(400)])
    assert set(draws[:, 0].tolist()) == {3.0, -1.0}
    assert 0.68 < (draws[:, 0] == 3).double().mean() < 0.82  # (1 + (3 - 1) / 4) / 2
    assert (draws[:, 1] == 2).all()


def test_pcgrad_of_three_depends_on_the_order_and_not_on_the_batch(generator: torch.Generator) -> None:
    jacobian = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    jacobian[1] -= jacobian[0]
    jacobian[2] -= jacobian[0] + jacobian[1]
    stack = jacobian.expand(50, 3, 4)
    weights = aggregation_weights(stack @ stack.mT, method="pcgrad", generator=generator)
    assert len(torch.unique(weights.round(decimals=9), dim=0)) > 1


def test_scaling_a_gradient_scales_its_share(generator: torch.Generator) -> None:
    def directions(jacobian: Tensor) -> Tensor:
        return aggregate(jacobian, regularization=0.0, normalize="gradients").direction

    found = properties_of(directions, objectives=5, decades=4.0, count=200, generator=generator)
    assert found.conflict < 1e-9
    assert found.linearity < 1e-6
    assert found.span < 1e-6


def test_gradients_that_vanish_keep_their_preference() -> None:
    gramian = torch.zeros(3, 3)
    gramian[0, 0], gramian[1, 1] = 1.0, 1e-42  # the second has lost its digits
    gramian[0, 1] = gramian[1, 0] = -1e-20
    torch.testing.assert_close(upgrad_weights(gramian, normalize="gradients"), torch.full((3,), 1 / 3))


@pytest.mark.parametrize("rank", [3, 12, 40])
def test_compiled_and_plain_complementarity_agree(rank: int, generator: torch.Generator) -> None:
    jacobian = torch.randn(5, 12, rank, generator=generator, dtype=torch.float64)
    matrix = jacobian @ jacobian.mT / rank + 1e-6 * torch.eye(12, dtype=torch.float64)
    vector = torch.randn(5, 4, 12, generator=generator, dtype=torch.float64)
    (z, _), (plain, _) = complementarity(matrix, vector), complementarity_plain(matrix, vector)
    torch.testing.assert_close(z, plain, rtol=1e-6, atol=1e-6)
    slack = z @ matrix + vector
    assert slack.min() > -1e-9
    assert (z * slack).abs().max() < 1e-7 * z.max().clamp(min=1)
