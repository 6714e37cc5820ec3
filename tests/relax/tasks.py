"""Small programs of practice: metrics, losses, lookups, each with an input of its own shape; nothing knows pullback."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Task(NamedTuple):
    """A program from one tensor of ``shape`` to a number."""

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]


TASKS: dict[str, Task] = {}


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W8 = _draw(8)
W46 = _draw(4, 6, seed=1)
ROWS = _draw(6, 3, seed=2)
CODES = _draw(5, 2, seed=3)
POINTS = _draw(10, 2, seed=4)
GRID = _draw(4, 4, seed=5)
LABELS = torch.tensor([2, 0, 3, 5])
TRUTH = torch.tensor([1.0, 0, 1, 1, 0, 1, 0, 0], dtype=torch.float64)
GAINS = torch.tensor([3.0, 0, 1, 2, 0, 1, 0, 2], dtype=torch.float64)


def task(*shape: int) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]:
    def add(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        TASKS[function.__name__] = Task(function, shape)
        return function

    return add


# Metrics of a classifier and of a ranking.


@task(4, 6)
def accuracy(logits: Tensor) -> Tensor:
    return (logits.argmax(dim=-1) == LABELS).float().mean()


@task(4, 6)
def top_k_accuracy(logits: Tensor) -> Tensor:
    _, predicted = logits.topk(3, dim=1)
    return predicted.eq(LABELS.view(-1, 1)).any(dim=1).double().mean()


@task(4, 6)
def hit_rate_by_rank(scores: Tensor) -> Tensor:
    target = scores.gather(1, LABELS[:, None])
    rank = (scores > target).sum(dim=1)
    return (rank < 2).double().mean()


@task(4, 6)
def reciprocal_rank(scores: Tensor) -> Tensor:
    target = scores.gather(1, LABELS[:, None])
    return (1.0 / (1 + (scores > target).sum(1))).mean()


@task(8)
def ndcg(scores: Tensor) -> Tensor:
    order = scores.argsort(descending=True)
    discount = 1 / torch.log2(torch.arange(8, dtype=scores.dtype) + 2)
    return (GAINS[order] * discount).sum() / (GAINS.sort(descending=True).values * discount).sum()


@task(8)
def ndcg_by_ranks(scores: Tensor) -> Tensor:
    ranks = scores.argsort(descending=True).argsort()
    return (GAINS / torch.log2(ranks + 2.0)).sum()


@task(8)
def spearman(x: Tensor) -> Tensor:
    r = torch.argsort(torch.argsort(x)).double()
    t = W8.argsort().argsort().double()
    return 1 - 6 * ((r - t) ** 2).sum() / (8 * 63)


@task(8)
def kendall(x: Tensor) -> Tensor:
    d = torch.sign(x[:, None] - x[None, :])
    return (d * torch.sign(W8[:, None] - W8[None, :])).sum() / 56


@task(8)
def auc(scores: Tensor) -> Tensor:
    positive, negative = scores[TRUTH == 1], scores[TRUTH == 0]
    return (positive.unsqueeze(1) > negative).double().mean()


@task(8)
def f1(logits: Tensor) -> Tensor:
    p = (torch.sigmoid(logits) > 0.5).double()
    return 2 * (p * TRUTH).sum() / (p.sum() + TRUTH.sum())


@task(8)
def precision(logits: Tensor) -> Tensor:
    p = logits > 0
    return (p & TRUTH.bool()).sum() / (p.sum() + 1e-6)


@task(4, 6)
def intersection_over_union(logits: Tensor) -> Tensor:
    mask, target = logits.sigmoid() >= 0.5, W46 > 0
    inter = (mask & target).sum((0, 1)).double()
    union = (mask | target).sum((0, 1)).double()
    return inter / union


@task(8)
def hamming(x: Tensor) -> Tensor:
    return ((x > 0) != TRUTH.bool()).float().sum()


@task(8)
def zero_one_loss(x: Tensor) -> Tensor:
    return (torch.sign(x) != torch.sign(W8)).double().mean()


@task(8)
def hinge_count(x: Tensor) -> Tensor:
    margin = 1 - x * (2 * TRUTH - 1)
    return (margin > 0).sum() + F.relu(margin).mean()


# Losses on hard values.


@task(8)
def mse_of_mask(x: Tensor) -> Tensor:
    return F.mse_loss((x > 0.1).double(), torch.sigmoid(W8))


@task(8)
def mse_of_round(x: Tensor) -> Tensor:
    return F.mse_loss(torch.round(2 * x), 2 * W8)


@task(8)
def square_of_round(x: Tensor) -> Tensor:
    return ((x.round() - W8) ** 2).sum()


@task(8)
def l1_of_floor(x: Tensor) -> Tensor:
    return (torch.floor(2 * x) - 2 * W8).abs().mean()


@task(8)
def bce_of_mask(x: Tensor) -> Tensor:
    return F.binary_cross_entropy((x > 0).double() * 0.8 + 0.1, TRUTH)


@task(8)
def mask_projection_squared(x: Tensor) -> Tensor:
    return ((x > 0).double() @ W8) ** 2


@task(8)
def count_squared(x: Tensor) -> Tensor:
    return ((x > 0.2).sum() - 3) ** 2 * 1.0


@task(8)
def count_to_target(x: Tensor) -> Tensor:
    return ((x > -0.2).double().mean() - 0.3).abs()


@task(8)
def product_of_reads(x: Tensor) -> Tensor:
    return ROWS[x[:6].argmax(), 0] * ROWS[x[2:].argmin(), 1]


@task(8)
def row_to_target(x: Tensor) -> Tensor:
    return F.mse_loss(ROWS[x[:6].argmax()], torch.tensor([0.5, -1.0, 0.2], dtype=x.dtype))


@task(8)
def binary_code_agreement(x: Tensor) -> Tensor:
    code = torch.where(x > 0, 1.0, -1.0).double()
    return (code[:4] * code[4:]).sum()


@task(4, 6)
def cross_entropy_of_masked_logits(x: Tensor) -> Tensor:
    return F.cross_entropy(x.masked_fill(x < -0.5, -4.0), LABELS)


@task(4, 6)
def cross_entropy_of_quantised_logits(x: Tensor) -> Tensor:
    return F.cross_entropy(torch.round(x * 4) / 4, LABELS)


@task(8)
def exp_of_count(x: Tensor) -> Tensor:
    return torch.exp((x > 0).double().sum() / 4)


@task(8)
def variance_of_mask(x: Tensor) -> Tensor:
    return (x > 0.3).double().var()


# Lookups.


@task(4, 2)
def nearest_neighbour(queries: Tensor) -> Tensor:
    return torch.sin(POINTS[torch.cdist(queries, POINTS).argmin(dim=1)]).sum()


@task(4, 2)
def vector_quantisation_loss(latents: Tensor) -> Tensor:
    codes = CODES[torch.cdist(latents, CODES).argmin(-1)]
    return F.mse_loss(codes, W46[:, :2])


@task(5, 2)
def k_means_inertia(centres: Tensor) -> Tensor:
    return torch.cdist(POINTS, centres).square().min(dim=1).values.mean()


@task(5, 2)
def k_means_counts(centres: Tensor) -> Tensor:
    assignment = torch.cdist(POINTS, centres).argmin(dim=1)
    return (F.one_hot(assignment, 5).sum(0) * W8[:5]).sum()


@task(5, 2)
def k_means_step(centres: Tensor) -> Tensor:
    assigned = F.one_hot(torch.cdist(POINTS, centres).argmin(1), 5).double()
    moved = (assigned.t() @ POINTS) / (assigned.sum(0).unsqueeze(1) + 1.0)
    return (moved * CODES).sum()


@task(4, 6)
def beam_choice(scores: Tensor) -> Tensor:
    best, index = scores.flatten().topk(3)
    return best.sum() + W46.flatten()[index].sum()


@task(4, 6)
def beam_parent(scores: Tensor) -> Tensor:
    index = scores.flatten().topk(2).indices
    parent = torch.div(index, 6, rounding_mode="floor")
    token = index % 6
    return W8[parent].sum() + ROWS[token].sum()


@task(4, 6)
def greedy_decoding(logits: Tensor) -> Tensor:
    return nn.Embedding.from_pretrained(ROWS)(logits.argmax(-1)).mean(0).prod()


@task(6)
def grid_position(x: Tensor) -> Tensor:
    return GRID[x[:3].argmax(), x[3:].argmax()]


@task(2)
def grid_cell(x: Tensor) -> Tensor:
    i = (x + 2).long().clamp(0, 3)
    return GRID[i[0], i[1]]


@task(6)
def one_hot_bilinear(x: Tensor) -> Tensor:
    a = F.one_hot(x[:3].argmax(), 3).double()
    b = F.one_hot(x[3:].argmax(), 3).double()
    return a @ GRID[:3, :3] @ b


@task(4, 6)
def pooled_by_index(x: Tensor) -> Tensor:
    return torch.gather(W46, 1, x.argmin(1, keepdim=True)).squeeze(1).prod()


@task(4, 6)
def index_select_columns(x: Tensor) -> Tensor:
    return torch.index_select(W46, 1, x.sum(0).argsort()[:2]).sum()


@task(4, 6)
def hard_attention(x: Tensor) -> Tensor:
    w = F.one_hot(x.argmax(dim=1), num_classes=6).to(x.dtype)
    return (w @ ROWS).pow(2).sum()


@task(8)
def permuted_sum(x: Tensor) -> Tensor:
    return (W8[torch.argsort(x)] * W8).sum()


@task(8)
def soft_median_lookup(x: Tensor) -> Tensor:
    values, index = torch.median(x, dim=0)
    return values + W8[index]


@task(4, 6)
def nearest_pair(x: Tensor) -> Tensor:
    d = torch.cdist(x[:, :2], x[:, :2]) + 1e3 * torch.eye(4, dtype=x.dtype)
    return W8[:4][d.argmin(dim=1)].sum()


# Quantities made of steps.


@task(8)
def quantised_latent(x: Tensor) -> Tensor:
    q = torch.clamp(torch.round(x * 4), -8, 7) / 4
    return (torch.tanh(q) * W8).sum()


@task(8)
def histogram_by_comparison(x: Tensor) -> Tensor:
    edges = torch.linspace(-2, 2, 6, dtype=x.dtype)
    inside = (x[:, None] >= edges[:-1]) & (x[:, None] < edges[1:])
    return (inside.sum(0) * W8[:5]).sum()


@task(8)
def histogram_match(x: Tensor) -> Tensor:
    edges = torch.linspace(-2, 2, 5, dtype=x.dtype)
    cdf = (x[:, None] <= edges).double().mean(0)
    return F.mse_loss(cdf, torch.tensor([0.1, 0.2, 0.5, 0.9, 1.0], dtype=x.dtype))


@task(8)
def threshold_calibration(x: Tensor) -> Tensor:
    threshold = torch.quantile(x, 0.7)
    return ((x >= threshold) * W8).sum() + threshold


@task(4, 6)
def early_exit(logits: Tensor) -> Tensor:
    confidence = logits.softmax(-1).max(-1).values
    leave = (confidence > 0.5).double().unsqueeze(-1)
    return (leave * W46 + (1 - leave) * W46.flip(0)).sum()


@task(8)
def padding_by_length(x: Tensor) -> Tensor:
    length = (x > 0).sum()
    keep = torch.arange(8) < length
    return (keep * W8).sum()


@task(8)
def masked_average(x: Tensor) -> Tensor:
    keep = x.abs() < 1
    return (x * keep).sum() / keep.sum().clamp(min=1)


@task(8)
def outliers_replaced(x: Tensor) -> Tensor:
    y = x.clone()
    y[y.abs() > 1.0] = 0.0
    return (y * W8).sum()


@task(8)
def clipped_ratio(x: Tensor) -> Tensor:
    ratio = x.exp()
    return torch.min(ratio * W8, ratio.clamp(0.8, 1.2) * W8).mean()


@task(8)
def dead_zone(x: Tensor) -> Tensor:
    return (torch.sign(x) * F.relu(x.abs() - 0.3) * W8).sum()


@task(8)
def ternary_weights(x: Tensor) -> Tensor:
    delta = 0.7 * x.abs().mean()
    t = torch.sign(x) * (x.abs() > delta)
    return (t * W8).sum()


@task(8)
def sign_network(x: Tensor) -> Tensor:
    hidden = torch.sign(x.view(2, 4) @ W46[:, :3])
    return torch.heaviside(hidden @ W8[:3] - 0.2, torch.zeros((), dtype=x.dtype)).sum()


@task(8)
def integer_part(x: Tensor) -> Tensor:
    whole = x.mul(3).trunc()
    return ((3 * x - whole) * W8).sum()


@task(8)
def buckets(x: Tensor) -> Tensor:
    return ROWS[torch.bucketize(x, torch.tensor([-1.0, -0.3, 0.3, 1.0], dtype=x.dtype)), 0].sum()


@task(8)
def logical_chain(x: Tensor) -> Tensor:
    a, b = x[:4] > 0, x[4:] < 0.5
    return (torch.logical_or(a, ~b) & torch.logical_xor(a, b)).double() @ W8[:4]


@task(8)
def any_of_row(x: Tensor) -> Tensor:
    return ((x.view(2, 4) > 0.8).any(dim=1, keepdim=True) * W46[:2]).sum()


@task(8)
def trimmed_loss(x: Tensor) -> Tensor:
    losses = (x - W8) ** 2
    return losses.topk(5, largest=False).values.mean()


@task(8)
def hard_mining(x: Tensor) -> Tensor:
    losses = F.softplus(-x * (2 * TRUTH - 1))
    keep = losses >= losses.sort(descending=True).values[2]
    return (losses * keep).sum() / 3


@task(4, 6)
def winner_takes_all(x: Tensor) -> Tensor:
    return (torch.where(x == x.max(1, keepdim=True).values, x, 0.0) * W46).sum()


@task(4, 6)
def suppressed(x: Tensor) -> Tensor:
    kth = x.topk(2, dim=1).values[:, -1:]
    return (torch.where(x < kth, torch.zeros_like(x), x) * W46).sum()


@task(4, 6)
def module_with_steps(x: Tensor) -> Tensor:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(x) @ ROWS
            gate = h > h.median()
            return (h * gate).round().sum(1).clamp(-3, 3)

    return (Net()(x) * W8[:4]).sum()


@task(8)
def span(x: Tensor) -> Tensor:
    return (x.max() - x.min()) * (x > x.mean()).double().mean()


@task(8)
def crossings(x: Tensor) -> Tensor:
    return ((x[1:] > 0) ^ (x[:-1] > 0)).sum() / 7


@task(8)
def longest_prefix(x: Tensor) -> Tensor:
    return (x > -0.7).int().cumprod(0).sum() * 1.0


@task(8)
def occupancy(x: Tensor) -> Tensor:
    alpha = (x > 0.1).double() * 0.6
    transmittance = torch.cumprod(1 - alpha, 0)
    return (alpha * transmittance * W8).sum()
