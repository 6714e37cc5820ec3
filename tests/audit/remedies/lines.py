"""Lines as users write them, each with a gradient that dies on it, and what has to stand in the line that is offered.

``LINES`` holds the function, its inputs (those that require grad are trained) and texts of the rewritten file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

LINES: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]], tuple[str, ...]]] = {}
_generator = torch.Generator().manual_seed(0)


def data(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_generator)


def trained(*shape: int) -> torch.Tensor:
    return data(*shape).requires_grad_()


def unit(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=_generator).requires_grad_()


def given(*values: float) -> torch.Tensor:
    return torch.tensor(values).requires_grad_()


def line(make: Callable[[], tuple[Any, ...]], *texts: str) -> Callable[[Any], Any]:
    def keep(fn: Any) -> Any:
        LINES[fn.__name__] = (fn, make, texts)
        return fn

    return keep


# Positions.


@line(
    lambda: (trained(6, 4), data(4, 3)), "argmax(logits, dim=1, temperature=0.1, hard=True)", "lookup(winner, prices)"
)
def table_by_method(logits, prices):
    winner = logits.argmax(dim=1)  # the chosen shop
    return prices[winner].sum()


@line(lambda: (trained(5), data(5)), "lookup(pullback_discrete.argmin(costs.flatten()", "routes)")
def one_choice_inline(costs, routes):
    return (routes[torch.argmin(costs)] - 1.0) ** 2


@line(lambda: (trained(7, 3), torch.arange(7) % 3), ".gather(-1, labels.unsqueeze(-1)).squeeze(-1)")
def accuracy_of_classes(logits, labels):
    predicted = torch.argmax(logits, -1)
    return 1 - (predicted == labels).float().mean()


@line(lambda: (trained(4, 9),), "lookup(", "torch.arange(")
def peak_position(heat):
    where = heat.argmax(dim=1).float()
    return (where / 9 - 0.5).square().sum()


@line(lambda: (trained(5, 6), data(5, 6)), 'torch.einsum("bn,bn...->b...", pick, rewards)')
def rowwise_choice(q, rewards):
    pick = q.argmax(axis=1)
    return rewards[torch.arange(5), pick].sum()


@line(lambda: (trained(5, 6), data(5, 6)), "(action * rewards).sum(-1, keepdim=True)")
def gathered_choice(q, rewards):
    action = q.argmax(1)
    return rewards.gather(1, action.unsqueeze(1)).squeeze(1).mean()


@line(
    lambda: (trained(3, 8), data(8, 2)), "discrete.argmax(h @ torch.eye(8), dim=-1, temperature=0.1, hard=True).float()"
)
def code_of_one_hot(h, codes):
    onehot = F.one_hot(torch.argmax(h @ torch.eye(8), dim=-1), 8).float()
    return (onehot @ codes).square().sum()


@line(
    lambda: (trained(6), data(6)),
    "argsort(scores, descending=True, temperature=0.1, hard=True)[:3]",
    "lookup(order, gains)",
)
def first_of_order(scores, gains):
    order = torch.argsort(scores, descending=True)[:3]
    return (gains[order] / torch.log2(torch.arange(3.0) + 2)).sum()


@line(lambda: (trained(4, 6), data(4, 6)), 'einsum("...kn,...n->...k", order, relevance)')
def gathered_order(scores, relevance):
    order = scores.argsort(dim=-1, descending=True)
    return -(relevance.gather(-1, order) * torch.linspace(1, 0, 6)).sum()


@line(lambda: (trained(8), data(8)), "rank(x, dim=0, temperature=0.1, hard=True)")
def ranks_by_two_sorts(x, y):
    ranks = x.argsort(dim=0).argsort().float()
    return (ranks * y).sum()


@line(lambda: (trained(7), data(7, 2)), "torch.sort(keys)[0], ", "lookup(places, payload)")
def sorted_pair(keys, payload):
    ordered, places = torch.sort(keys)
    return (payload[places] * torch.arange(7.0)[:, None]).sum() + 0.0 * ordered.sum()


@line(lambda: (trained(3, 7), data(3, 7)), "topk(s, 2, dim=1, temperature=0.1, hard=True).permutation")
def gathered_best(s, values):
    top = s.topk(2, dim=1).indices
    return values.gather(1, top).sum()


@line(lambda: (trained(3, 7), data(3, 7)), "mask = chosen.sum(-2)")
def mask_of_best(s, values):
    chosen = s.topk(3, dim=-1)[1]
    mask = torch.zeros_like(s).scatter(-1, chosen, 1.0)
    return (mask * values).sum()


@line(lambda: (trained(6, 4),), ".sum(0)")
def histogram_of_classes(logits):
    counts = torch.bincount(logits.argmax(1), minlength=4)
    return (counts.float() - 1.5).square().sum()


@line(lambda: (trained(5, 4), data(4)), "scores.max(dim=1)[0], ", "argmax(scores, dim=1")
def maximum_with_place(scores, bonus):
    best, place = scores.max(dim=1)
    return (bonus[place] * best.detach()).sum()


# Truth values.


@line(lambda: (unit(9), data(9)), "greater(p, 0.5, temperature=0.1, hard=True)")
def threshold(p, w):
    return ((p > 0.5).float() * w).sum()


@line(lambda: (unit(9), data(9)), "less_equal(p, 0.25 + 0.5, ")
def threshold_by_call(p, w):
    keep = torch.le(p, 0.25 + 0.5).to(w.dtype)
    return (keep * w).square().sum()


@line(lambda: (unit(9), data(9)), "greater(self_p, 0.5,")
def threshold_on_the_left(self_p, w):
    return (0.5 < self_p).float().dot(w)  # noqa: SIM300 (the form that is to be read)


@line(lambda: (trained(8), trained(8)), "greater_equal(a, b, temperature=0.1, hard=True)")
def fraction_of_pairs(a, b):
    wins = a.ge(b)
    return (wins.float().mean() - 0.9).square()


@line(lambda: (trained(8), data(8)), "masked_mean(y, ")
def mean_of_selected(x, y):
    inside = x < 0.3
    return y[inside].mean()


@line(
    lambda: (trained(8), data(8), data(8)), "discrete.where(discrete.greater(gate, 0.1, temperature=0.1, hard=True), a"
)
def where_with_condition(gate, a, b):
    return torch.where(
        gate > 0.1,  # open
        a,
        b,
    ).sum()


@line(
    lambda: (trained(8), data(8)),
    "(discrete.greater(x, -0.5, temperature=0.1, hard=True) * discrete.less(x, 0.5, temperature=0.1, hard=True))",
)
def band(x, y):
    band = (x > -0.5) & (x < 0.5)
    return (band.float() * y).sum()


@line(lambda: (trained(8), data(8)), "masked_fill(y, ")
def filled(x, y):
    return y.masked_fill(x > 0, 0.5).square().sum()


@line(lambda: (given(0.3), given(2.0), given(-1.0)), "where(", "greater(s, 0.25")
def branch(s, up, down):
    if s > 0.25:
        rate = up
    else:
        rate = down
    return (rate * 3.0).sum()


@line(lambda: (trained(6),), "logical_not(pullback_discrete.greater(v, 1.5, ", "torch.stack(keep).float()")
def flags_in_a_list(s):
    keep = []
    for v in s:
        keep.append(bool(v > 0) and not bool(v > 1.5))
    return (torch.tensor(keep).float() * torch.arange(6.0)).sum()


# Steps.


@line(lambda: (trained(9), torch.tensor(0.25)), "round(w / step, temperature=0.25, hard=True) * step")
def quantised(w, step):
    q = torch.round(w / step) * step
    return (q - 0.4).square().sum()


@line(lambda: (unit(9),), "discrete.round(x * 10 ** (1), temperature=0.25, hard=True) / 10 ** (1)")
def rounded_decimals(x):
    return (x.round(decimals=1) - 0.35).square().sum()


@line(lambda: (trained(9),), "floor(4 * z,", "ceil(z,")
def floor_and_ceiling(z):
    low = torch.floor(4 * z) / 4
    high = z.ceil()
    return ((low - 0.2) * (high - 0.3)).sum()


@line(lambda: (trained(9),), "floor(x / 0.3, temperature=0.25, hard=True)")
def floor_division(x):
    return (x // 0.3 - 1.0).square().sum()


@line(lambda: (trained(6, 4), data(4)), "sign(h, temperature=0.1, hard=True)")
def binary_code(h, w):
    return (h.sign() @ w).square().sum()


@line(lambda: (unit(6), data(5, 2)), "trunc(position * 4,", "embedding(")
def table_by_cast(position, table):
    index = (position * 4).long()
    return table[index].square().sum()


@line(lambda: (given(2.0, 3.0, -4.0),), "straight_through(torch.clamp(v, min=0.0, max=1.0), v)")
def out_of_bounds(v):
    return (torch.clamp(v, min=0.0, max=1.0) - 0.5).sum().square()


@line(lambda: (given(-2.0, -3.0, -0.4),), "leaky_relu(u, 0.01)")
def dead_units(u):
    return (F.relu(u) + 1.0).prod()


@line(lambda: (unit(40), torch.full((8,), 5.0)), "discrete.histc(pixels, 8, 0.0, 1.0, temperature=0.0625, hard=True)")
def histogram(pixels, wanted):
    shades = torch.histc(pixels, bins=8, min=0.0, max=1.0)
    return (shades - wanted).square().mean()


@line(
    lambda: (unit(12), torch.linspace(0.1, 0.9, 5), data(6)),
    "discrete.bucketize(x, edges, temperature=0.1, hard=True)",
    "embedding(level, payoff, hard=True)",
)
def binned(x, edges, payoff):
    level = torch.bucketize(x, edges)
    return payoff[level].sum()


@line(
    lambda: (unit(12), torch.linspace(0.1, 0.9, 5), data(6)),
    "discrete.searchsorted(edges, x, right=True, temperature=0.1, hard=True)",
)
def placed(x, edges, payoff):
    return payoff[torch.searchsorted(edges, x, right=True)].sum()


@line(lambda: (data(1, 1, 5, 5), trained(1, 4, 4, 2)), 'mode="bilinear"')
def nearest_pixels(image, grid):
    return F.grid_sample(image, grid.tanh(), mode="nearest", align_corners=False).square().sum()


# Singular points.


@line(lambda: (given(0.0, 1.0, 4.0),), "(a * 1.0).clamp_min(1e-12)")
def root_of_zero(a):
    return (a * 1.0).sqrt().sum()


@line(lambda: (given(0.0, 1.0, 4.0),), "torch.where(r > 0, r, 1.0)")
def root_hidden(r):
    return torch.where(r > 0, torch.sqrt(r), torch.zeros_like(r)).sum()


@line(lambda: (given(0.0, 0.5, 2.0),), "torch.log(torch.where(ok, x, 1.0))")
def logarithm_hidden_later(x):
    ok = x > 0
    safe = torch.log(x)
    return torch.where(ok, safe, 0.0).sum()


@line(lambda: (given(100.0, -1.0, 2.0),), "torch.exp(torch.where(x <= 0, x, 0.0))")
def exponential_hidden(x):
    return torch.where(x <= 0, torch.exp(x), 1 + x).sum()


@line(lambda: (given(0.0, 0.3, 0.7),), ".clamp_min(1e-12)")
def entropy(p):
    return -(p * p.log()).sum()


@line(lambda: (given(0.0, 0.3, 0.7),), "p.clamp_min(1e-12)**0.5")
def power(p):
    return (p**0.5).sum()


@line(lambda: (given(1.0, -0.2, 0.5),), "torch.acos(c.clamp(-1 + 1e-6, 1 - 1e-6))")
def angle(c):
    return torch.acos(c).sum()


@line(
    lambda: (torch.zeros(3, 2).requires_grad_(), data(3)),
    "torch.atan2(v[:, 1], torch.where((v[:, 1] == 0) & (v[:, 0] == 0)",
)
def bearing_at_the_origin(v, weight):
    bearing = torch.atan2(v[:, 1], v[:, 0])
    return (bearing * weight).sum()


@line(lambda: (given(0.0, 1.0), given(0.0, 2.0)), "torch.where(total == 0, 1.0, total)")
def share(part, total):
    return (part / total).nan_to_num(0.0).sum()


@line(lambda: (trained(3, 4), torch.tensor([[False] * 4, [True] * 4, [True, False, False, False]])), "clamp_min(")
def masked_attention(scores, hidden):
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return weights[[0, 2]].square().sum()


@line(lambda: (trained(5, 3),), "torch.sqrt(h.var(0).clamp_min(1e-12))")
def spread_of_equal(x):
    h = torch.relu(x - 100.0)
    return torch.sqrt(h.var(0)).sum() + x.sum()


@line(lambda: (given(150.0, -200.0, 3.0), torch.tensor([0.0, 1.0, 1.0])), "F.log_softmax(x, dim=0)")
def log_of_softmax(x, y):
    return -(torch.log(torch.softmax(x, dim=0)) * y).sum()


@line(lambda: (given(0.2, 300.0),), "F.softplus(x)")
def hand_made_softplus(x):
    return torch.log(1 + torch.exp(x)).sum()


@line(lambda: (torch.eye(3).requires_grad_(), data(3)), "linspace(0, 1e-4")
def equal_eigenvalues(m, v):
    values, vectors = torch.linalg.eigh(m)
    return (vectors @ v).abs().sum() + values.sum()


# Departures.


@line(lambda: (trained(1), data(8)), "(alpha * (score + 1.0).detach()).mean()")
def temperature_as_a_number(log_alpha, score):
    alpha = log_alpha.exp()
    return -(alpha.item() * (score + 1.0).detach()).mean()


@line(lambda: (trained(4), trained(4)), " + 0.1 * penalty\n")
def number_in_a_sum(a, b):
    penalty = b.abs().sum()
    loss = a.square().mean() + 0.1 * penalty.item()
    return loss


@line(lambda: (trained(4), trained(4)), "b.square().sum() * a.sum()")
def number_by_float(a, b):
    return float(b.square().sum()) * a.sum()


@line(lambda: (trained(2), trained(2)), "torch.stack(losses).mean()")
def list_of_losses(a, b):
    losses = []
    for x in (a, b):
        losses.append(x.square().sum().item())
    return torch.tensor(losses).mean()


@line(lambda: (given(0.4), data(2, 5)), "torch.stack([")
def matrix_of_entries(theta, points):
    c, s = theta.cos()[0], theta.sin()[0]
    rotation = torch.tensor([[c, -s], [s, c]])
    return (rotation @ points).relu().sum()


@line(lambda: (given(0.4), given(0.2), data(5)), "torch.stack([a, b])")
def pair_of_coefficients(a, b, x):
    c = torch.as_tensor((a, b))
    c.requires_grad = True
    return (c[0] * x + c[1] * x.square()).square().mean()


@line(lambda: (unit(5),), "torch.log(x + 1)")
def through_numpy(x):
    y = np.log(x.detach().cpu().numpy() + 1)
    return torch.from_numpy(y).sum()


@line(lambda: (trained(4, 3), trained(3, 2), data(5, 4)), "h = torch.tanh(x @ enc)\n")
def detached(enc, head, x):
    h = torch.tanh(x @ enc).detach()
    return (h @ head).square().mean()


@line(lambda: (trained(4, 3), data(5, 4)), "(x @ w).square()")
def by_data(w, x):
    return (x @ w.data).square().sum()


@line(lambda: (trained(4, 3), trained(3), data(5, 4)), "    h = x @ enc\n    h = h.relu()\n")
def without_gradients(enc, head, x):
    with torch.no_grad():
        h = x @ enc
        h = h.relu()
    return (h @ head).sum()


@torch.no_grad()
def encode(x, w):
    return torch.tanh(x @ w)


@line(lambda: (trained(4, 3), trained(3), data(5, 4)), "\n\ndef encode(x, w):")
def decorated_encoder(enc, head, x):
    return (encode(x, enc) @ head).sum()


@line(lambda: (trained(3), data(3)), "w = (base * 2.0)\n")
def new_parameter(base, x):
    w = nn.Parameter(base * 2.0)
    return (w * x).sum()


@line(lambda: (trained(3), data(3)), "create_graph=True")
def gradient_penalty(w, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((w * x.square()).sum(), x)
    return (slope.norm() - 1).square() + 0.1 * w.sum()


@line(lambda: (given(5.3), data(16), data(4)), "torch.gradient(signal, dim=0)[0][int(start) : int(start) + 4]")
def cut_out(start, signal, pattern):
    window = signal[int(start) : int(start) + 4]
    return (window * pattern).sum()


@line(lambda: (given(5.3), data(16), data(16)), "torch.gradient(sound, dim=0)[0].roll(int(delay), 0)")
def delayed(delay, sound, wanted):
    late = sound.roll(int(delay), 0)
    return (late * wanted).sum()


@line(lambda: (given(-1.0, 2.0), data(2, 2)), "torch.linalg.slogdet(torch.diag(scale))[1]")
def negative_determinant(scale, x):
    return (x * scale).square().sum() - torch.logdet(torch.diag(scale))


@line(lambda: (trained(2, 5, 1), data(2, 5, 3)), "torch.softmax(energy, dim=-2)")
def softmax_of_one(energy, h):
    weights = torch.softmax(energy, dim=-1)
    return (weights * h).sum(1).square().sum()


# Draws.


@line(lambda: (trained(4), trained(4)), "Normal(mean, scale.exp()).rsample()")
def draw_without_gradient(mean, scale):
    z = Normal(mean, scale.exp()).sample()
    return z.square().sum()


@line(lambda: (trained(4), unit(4)), "mean + std * torch.randn_like(mean)")
def draw_by_normal(mean, std):
    return (torch.normal(mean, std) - 1).square().sum()


@line(lambda: (trained(6, 4), data(4)), "gumbel_softmax(logits, temperature=0.5, hard=True)", "lookup(")
def drawn_class(logits, reward):
    choice = Categorical(logits=logits)
    picked = choice.sample()
    return reward[picked].sum()


@line(lambda: (trained(9), data(9)), "discrete.bernoulli(torch.sigmoid(logits), temperature=0.5, hard=True)")
def drawn_gate(logits, x):
    gate = torch.bernoulli(torch.sigmoid(logits))
    return (gate * x).sum()


@line(lambda: (trained(9), data(9)), "bernoulli(p.sigmoid(), temperature=0.5, hard=True)")
def drawn_gate_of_distribution(p, x):
    return (Bernoulli(probs=p.sigmoid()).sample() * x).sum()


@line(lambda: (trained(7), data(7)), "multinomial(s.softmax(-1), 2,", "lookup(")
def drawn_subset(s, x):
    chosen = torch.multinomial(s.softmax(-1), 2)
    return x[chosen].square().sum()


# Other forms of the same: a method of a module, a line over several, a helper, text that is not ASCII.


class Selector(nn.Module):
    def __init__(self):
        super().__init__()
        self.scorer = nn.Linear(4, 1)

    def forward(self, x):
        scores = self.scorer(x).squeeze(-1)
        best = torch.topk(
            scores,
            k=2,  # a pair
        ).indices
        return x[best].sum(0)


def _selector() -> tuple[Any, ...]:
    torch.manual_seed(3)
    return Selector(), data(6, 4)


@line(_selector, "discrete.topk(scores, 2, temperature=0.1, hard=True).permutation", "lookup(best, x)")
def method_of_a_module(selector, x):
    return selector(x).square().sum()


def _gate(v):
    return (v > 0).to(torch.float32)


@line(lambda: (trained(8), data(8)), "return pullback_discrete.greater(v, 0, temperature=0.1, hard=True)")
def helper(v, x):
    return (_gate(v) * x).sum()


@line(lambda: (trained(8), data(8)), '(discrete.round(v, temperature=0.25, hard=True) * größe["über"])')
def not_ascii(v, x):
    größe = {"über": x}
    return (v.round() * größe["über"]).sum()


@line(lambda: (trained(5), data(5)), "discrete.sign(a - 0.1, temperature=0.1, hard=True) / math.sqrt(5)")
def other_calls_on_the_line(a, b):
    return (torch.abs(b) * torch.sign(a - 0.1) / math.sqrt(5)).sum()
