"""Programs whose gradient is zero, vanishes, explodes, is NaN, sits on a kink, is wrong, or chaotic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.audit.zoo.faults_cut import X, Y, _net


def rounded():
    encoder, head = _net(4, 3), _net(3, 1)

    def program(x):
        h = torch.round(encoder(x) * 4) / 4  # <- zero.round
        return head(h).square().mean()

    return program, X


def floored():
    encoder = _net(4, 3)

    def program(x):
        return (encoder(x) * 10).floor().pow(2).mean()  # <- zero.floor

    return program, X


def signed():
    encoder, head = _net(4, 3), _net(3, 1)

    def program(x):
        return head(torch.sign(encoder(x))).square().mean()  # <- zero.sign

    return program, X


def truncated():
    def program(x):
        return x.mul(3).trunc().sum()  # <- zero.trunc

    return program, torch.tensor([0.4, 1.7], requires_grad=True)


def heaviside_step():
    encoder, head = _net(4, 3), _net(3, 1)

    def program(x):
        spikes = torch.heaviside(encoder(x), torch.tensor(0.5))  # <- zero.heaviside
        return head(spikes).square().mean()

    return program, X


def floor_division():
    model = _net(4, 2)

    def program(x):
        return torch.div(model(x), 0.1, rounding_mode="floor").pow(2).mean()  # <- zero.div

    return program, X


def rounded_term():
    model = _net(4, 2)

    def program(x):
        out = model(x)
        return out.pow(2).mean() + out.round().abs().mean()  # <- zero.round

    return program, X


def saturated_clamp():
    model, head = _net(4, 3), _net(3, 1)

    def program(x):
        h = (model(x) + 20).clamp(0, 1)  # <- zero.clamp
        return head(h).square().mean()

    return program, X


def dead_relu():
    first, second = _net(4, 3), nn.Linear(3, 1)

    def program(x):
        h = F.relu(first(x) - 50)  # <- zero.relu
        return second(h).square().mean()

    return program, X


def softmax_over_one():
    scorer, body = _net(4, 1), _net(4, 3)

    def program(x):
        weights = scorer(x).softmax(dim=-1)  # <- zero.softmax
        return (weights * body(x)).square().mean()

    return program, X


def saturated_sigmoid():
    gate, body = _net(4, 3), _net(4, 3)

    def program(x):
        opened = torch.sigmoid(gate(x) * 5 + 400)  # <- zero.sigmoid
        return (opened * body(x)).square().mean()

    return program, X


def sharp_softmax():
    scorer, body = _net(4, 6), _net(4, 6)

    def program(x):
        weights = torch.softmax(scorer(x) * 1e4, dim=1)  # <- zero.softmax
        return (weights * body(x)).sum(1).square().mean()

    return program, X


class _Mute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


def mute_function():
    model = _net(4, 3)

    def program(x):
        return _Mute.apply(model(x)).square().mean()  # <- zero.custom

    return program, X


def vanishing_deep_sigmoid():
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(25)])
    first, last = nn.Linear(4, 6), nn.Linear(6, 1)

    def program(x):
        h = first(x)
        for layer in layers:
            h = torch.sigmoid(layer(h))  # <- vanishing.loop
        return last(h).square().mean()

    return program, X


def vanishing_recurrence():
    cell, last = nn.Parameter(0.2 * torch.eye(4)), nn.Linear(4, 1)

    def program(x):
        h = x[:1] * 1.0
        for _ in range(40):
            h = torch.tanh(h @ cell)  # <- vanishing.loop
        return last(h).sum()

    return program, X


def vanishing_scale():
    first, last = _net(4, 3), _net(3, 1)

    def program(x):
        h = torch.tanh(first(x))
        h = h * 1e-9  # <- vanishing.line
        return last(h).square().mean()

    return program, X


def exploding_recurrence():
    cell, last = nn.Parameter(3 * torch.eye(4)), nn.Linear(4, 1)

    def program(x):
        h = x[:1] * 1.0
        for _ in range(30):
            h = h @ cell  # <- exploding.loop
        return last(h).sum()

    return program, X


def exploding_scale():
    first, last = _net(4, 3), _net(3, 1)

    def program(x):
        h = first(x) * 1e9  # <- exploding.line
        return last(h).mean()

    return program, X


def chaotic_map():
    rate = nn.Parameter(torch.tensor(3.97))

    def program(x):
        for _ in range(60):
            x = rate * x * (1 - x)  # <- chaotic.loop
        return x.mean()

    return program, torch.tensor([0.3, 0.41])


def sqrt_at_zero():
    model = _net(4, 3)

    def program(x):
        d = model(x) - model(x)
        return d.square().sum(1).sqrt().mean() + model(x).mean()  # <- nan.backward

    return program, X


def where_guards_the_value_only():
    model = _net(4, 3)

    def program(x):
        h = model(x)
        root = torch.sqrt(h)  # <- nan.where
        return torch.where(h > 0, root, torch.zeros_like(h)).sum()

    return program, X


def log_under_a_mask():
    model = _net(4, 3)

    def program(x):
        p = F.relu(model(x))
        logs = torch.log(p)
        return torch.where(p > 0, p * logs, 0.0).sum()  # <- nan.where

    return program, X


def division_under_a_mask():
    model = _net(4, 3)

    def program(x):
        h = F.relu(model(x))
        inverse = 1 / h  # <- nan.where
        return torch.where(h > 0, inverse, torch.zeros(())).clamp(max=5).sum()

    return program, X


def acos_at_one():
    weight = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

    def program(x):
        unit = weight / weight.norm()
        return torch.acos(unit[0]) + weight.sum()  # <- nan.backward

    return program, X


def log_of_negative():
    model = _net(4, 3)

    def program(x):
        p = model(x)
        return -(torch.log(p)).mean()  # <- nan.forward

    return program, X


def softmax_of_a_masked_row():
    model = _net(4, 3)

    def program(x):
        scores = model(x)
        mask = torch.zeros(12, 3, dtype=torch.bool)
        mask[4] = True
        weights = scores.masked_fill(mask, float("-inf")).softmax(1)  # <- nan.forward
        return weights[:, 0].sum()

    return program, X


def zero_divided_by_zero():
    model = _net(4, 3)

    def program(x):
        h = F.relu(model(x) - 50)
        shares = h / h.sum(1, keepdim=True)  # <- nan.forward
        return shares.square().sum() + model(x).sum()

    return program, X


def exp_overflow():
    model = _net(4, 3)

    def program(x):
        e = torch.exp(model(x) * 1e4 + 200)  # <- nan.forward
        return (e / e.sum(1, keepdim=True))[:, 0].mean()

    return program, X


def abs_at_zero():
    def program(w):
        return w.abs().sum() + w.sum()  # <- kink.abs

    return program, torch.zeros(3, requires_grad=True)


def norm_at_zero():
    def program(w):
        return torch.norm(w) + w.sum()  # <- kink.norm

    return program, torch.zeros(3, requires_grad=True)


def relu_at_zero():
    def program(w):
        return torch.relu(w).sum() + 0.1 * w.sum()  # <- kink.relu

    return program, torch.zeros(3, requires_grad=True)


def all_tied():
    def program(w):
        return w.max() - 0.1 * w.sum()  # <- kink.max

    return program, torch.ones(3, requires_grad=True)


class _Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.pow(3)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.square()


def wrong_backward():
    model = _net(4, 3)

    def program(x):
        return _Wrong.apply(model(x)).mean()  # <- biased.custom

    return program, X


def branch_on_a_value():
    model, left, right = _net(4, 1), _net(4, 2), _net(4, 2)

    def program(x):
        if model(x).mean() > 0:  # <- control-flow.branch
            return left(x).square().mean()
        return right(x).square().mean() + 1

    return program, X


def branch_on_an_item():
    model = _net(4, 2)

    def program(x):
        out = model(x)
        if out.mean().item() > -5:  # <- control-flow.branch
            out = out * 3
        return out.square().mean()

    return program, X


def count_of_steps():
    length, model = nn.Parameter(torch.tensor(3.4)), _net(4, 4)

    def program(x):
        for _ in range(int(length)):  # <- control-flow.number
            x = model(x)
        return x.square().mean()

    return program, X


def while_on_a_value():
    rate, start = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(1.0))

    def program(x):
        value = start * 1.0
        while value < 9:  # <- control-flow.branch
            value = value * rate
        return value.square() + x.sum()

    return program, X


def cross_entropy_of_probabilities_rounded():
    model = _net(4, 3)

    def program(x):
        p = model(x).softmax(1).round()  # <- zero.round
        return F.nll_loss(torch.log(p + 1e-3), Y)

    return program, X


def division_by_almost_nothing():
    model = _net(4, 3)

    def program(x):
        return (model(x) / 1e-9).mean()  # <- exploding.line

    return program, X


def overflowing_recurrence():
    cell = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        cell.weight.copy_(3 * torch.eye(4))

    def program(x):
        h = x
        for _ in range(200):
            h = cell(h)  # <- exploding.loop
        return (h - 1).square().mean()

    return program, X


def loop_that_makes_what_is_squared_small():
    """The square behind it has as small a derivative as the loop, because of the loop."""
    torch.manual_seed(7)
    first, last = torch.randn(5, 4, requires_grad=True), torch.randn(4, 2, requires_grad=True)

    def program(x):
        h = x @ first
        for _ in range(70):
            h = 0.35 * torch.tanh(h)  # <- vanishing.loop
        return (h @ last).square().sum()

    return program, torch.randn(7, 5)


def bonus_behind_a_threshold():
    torch.manual_seed(8)
    weight = torch.randn(6, requires_grad=True)

    def program(x):
        total = (x * weight).sum()
        paid = 2 * total + 1 if total > 0.1 else total - 4  # <- control-flow.branch
        return (paid - 0.3).square()

    return program, torch.randn(6)


def norm_over_one_entry():
    torch.manual_seed(9)
    head, norm = nn.Linear(4, 1), nn.LayerNorm(1)

    def program(x):
        return F.smooth_l1_loss(norm(head(x)).squeeze(1), x.sum(1))  # <- zero.layer_norm

    return program, torch.randn(6, 4)


def mask_the_wrong_way_round():
    torch.manual_seed(10)
    weight = torch.randn(4, 3, requires_grad=True)
    padding = torch.arange(5)[None] >= torch.tensor([5, 5])[:, None]

    def program(x):
        pooled = ((x @ weight) * padding.unsqueeze(-1)).sum(1)  # <- zero.mul
        return F.cross_entropy(pooled, torch.tensor([0, 2]))

    return program, torch.randn(2, 5, 4)


def residual_of_constants():
    """A differential equation: the derivative of the network enters the loss without its graph."""
    torch.manual_seed(11)
    net = _net(1, 1)

    def program(x):
        slope = torch.autograd.functional.jacobian(lambda p: net(p).sum(0), x).squeeze(0)  # <- cut.create_graph
        return (slope + net(x)).square().mean()

    return program, torch.linspace(0, 1, 5).unsqueeze(1)


def returns_built_anew():
    """Targets of the value, which may be constants, and a term of the loss, which may not."""
    torch.manual_seed(12)
    policy, value = torch.randn(2, requires_grad=True), torch.randn(2, requires_grad=True)

    def program(state):
        rewards, values = [], []
        for _ in range(3):
            values.append(state @ value)
            state = state + 0.1 * torch.tanh(state @ policy)
            rewards.append(-state.square().sum())
        returns = torch.as_tensor(rewards).flip(0).cumsum(0).flip(0)  # <- cut.rebuild
        return (torch.stack(values) - returns).square().mean() - returns.mean()

    return program, torch.randn(2)
