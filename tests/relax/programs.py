"""Small programs as a user writes them, ``x`` of six entries to a number: nothing in them knows about pullback."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROGRAMS: dict[str, Callable[[Tensor], Tensor]] = {}

TABLE = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4, 1.1], dtype=torch.float64)
ROWS = torch.tensor([[1.0, 0.2], [-0.5, 1.5], [0.3, -1.0], [2.0, 0.1], [-1.2, 0.4], [0.6, 0.9]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.8], dtype=torch.float64)


def program(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    PROGRAMS[function.__name__] = function
    return function


@program
def fraction_above(x: Tensor) -> Tensor:
    return (x > 0.2).float().mean()


@program
def count_below(x: Tensor) -> Tensor:
    return torch.lt(x, 0.5).sum().double()


@program
def count_int(x: Tensor) -> Tensor:
    return (x >= 0).int().sum() * 0.5


@program
def count_nonzero(x: Tensor) -> Tensor:
    return torch.count_nonzero(x > 0.1) / 6


@program
def weighted_mask(x: Tensor) -> Tensor:
    return ((x > 0) * WEIGHTS).sum()


@program
def mask_to(x: Tensor) -> Tensor:
    return ((x < 0.3).to(torch.float64) * WEIGHTS).sum()


@program
def mask_type(x: Tensor) -> Tensor:
    return (0.3 > x).type(torch.float64) @ WEIGHTS  # noqa: SIM300  a form of its own


@program
def mask_times_x(x: Tensor) -> Tensor:
    return (x.gt(0) * x * WEIGHTS).sum()


@program
def where_two_branches(x: Tensor) -> Tensor:
    return torch.where(x > 0, 2 * x + 1, WEIGHTS).sum()


@program
def where_method(x: Tensor) -> Tensor:
    return x.where(x > 0.2, -x).mul(WEIGHTS).sum()


@program
def where_numbers(x: Tensor) -> Tensor:
    return (torch.where(x > 0, 1.0, -1.0) * WEIGHTS).sum()


@program
def where_integers(x: Tensor) -> Tensor:
    return (torch.where(x > 0, 3, -1) * WEIGHTS).sum()


@program
def two_masks_and(x: Tensor) -> Tensor:
    return (((x > -0.5) & (x < 0.5)) * WEIGHTS).sum()


@program
def two_masks_or(x: Tensor) -> Tensor:
    return (((x < -0.3) | (x > 0.3)) * WEIGHTS).sum()


@program
def mask_not(x: Tensor) -> Tensor:
    return (~(x > 0) * WEIGHTS).sum()


@program
def mask_xor(x: Tensor) -> Tensor:
    return (torch.logical_xor(x > 0, x > 0.6) * WEIGHTS).sum()


@program
def mask_used_twice(x: Tensor) -> Tensor:
    m = x > 0.1
    return (m * WEIGHTS).sum() + m.float().mean() * 3


@program
def any_above(x: Tensor) -> Tensor:
    return (x > 1.2).any().double()


@program
def all_below(x: Tensor) -> Tensor:
    return torch.all(x < 1.5).double()


@program
def masked_fill(x: Tensor) -> Tensor:
    return (x.masked_fill(x < 0, -1.0) * WEIGHTS).sum()


@program
def masked_fill_inplace(x: Tensor) -> Tensor:
    y = x * 1.0
    y.masked_fill_(y < 0, 2.0)
    return (y * WEIGHTS).sum()


@program
def set_at_mask(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0.3] = 0.0
    return (y * WEIGHTS).sum()


@program
def set_zeros_at_mask(x: Tensor) -> Tensor:
    y = torch.zeros(6, dtype=x.dtype)
    y[x > 0] = 1.0
    return (y * WEIGHTS).sum()


@program
def pairwise_order(x: Tensor) -> Tensor:
    return ((x[:, None] > x[None, :]) * WEIGHTS[:, None]).sum()


@program
def masked_mean(x: Tensor) -> Tensor:
    m = x > -0.4
    return (x * m * WEIGHTS).sum() / m.sum()


@program
def argmax_lookup(x: Tensor) -> Tensor:
    return TABLE[x.argmax()]


@program
def argmin_rows(x: Tensor) -> Tensor:
    return ROWS[torch.argmin(x)].prod()


@program
def argmax_equals_label(x: Tensor) -> Tensor:
    return (x.argmax() == 3).double()


@program
def batch_accuracy(x: Tensor) -> Tensor:
    return (x.view(2, 3).argmax(1) == torch.tensor([2, 0])).float().mean()


@program
def argmax_as_number(x: Tensor) -> Tensor:
    return x.argmax().double() / 6


@program
def argmax_one_hot(x: Tensor) -> Tensor:
    return F.one_hot(x.argmax(), 6) @ torch.tensor([1, 4, 2, 0, 3, 5]) * 1.0


@program
def argmax_arithmetic(x: Tensor) -> Tensor:
    return TABLE[(x.argmax() + 2) % 6] + TABLE[x.argmin() // 2]


@program
def rows_of_batch(x: Tensor) -> Tensor:
    y = x.view(2, 3)
    return ROWS.t()[:, :3].contiguous()[torch.arange(2), y.argmax(dim=1)].sum()


@program
def gather_argmax(x: Tensor) -> Tensor:
    y = x.view(2, 3)
    return ROWS.view(2, 6)[:, :3].gather(1, y.argmax(1, keepdim=True)).sum()


@program
def embedding_of_argmax(x: Tensor) -> Tensor:
    return F.embedding(x.view(3, 2).argmax(0), ROWS).sum()


@program
def index_select_argmax(x: Tensor) -> Tensor:
    return ROWS.index_select(0, x.view(2, 3).argmax(1)).sum()


@program
def scatter_argmax(x: Tensor) -> Tensor:
    y = x.view(2, 3)
    hot = torch.zeros_like(y).scatter(1, y.argmax(1, keepdim=True), 1.0)
    return (hot * WEIGHTS.view(2, 3)).sum()


@program
def scatter_inplace(x: Tensor) -> Tensor:
    y = x.view(2, 3)
    hot = torch.zeros_like(y).scatter_(1, y.topk(2, dim=1).indices, 1.0)
    return (hot * WEIGHTS.view(2, 3)).sum()


@program
def set_at_argmax(x: Tensor) -> Tensor:
    hot = torch.zeros(6, dtype=x.dtype)
    hot[x.argmax()] = 1.0
    return hot @ WEIGHTS


@program
def argsort_payload(x: Tensor) -> Tensor:
    return WEIGHTS[x.argsort()] @ torch.arange(6.0, dtype=x.dtype)


@program
def ranks(x: Tensor) -> Tensor:
    return (x.argsort().argsort() * WEIGHTS).sum()


@program
def sort_values(x: Tensor) -> Tensor:
    return torch.sort(x, descending=True).values @ torch.arange(6.0, dtype=x.dtype)


@program
def sort_then_index(x: Tensor) -> Tensor:
    values, indices = x.sort()
    return values[0] * 2 + TABLE[indices[0]] + TABLE[indices][1]


@program
def take_along(x: Tensor) -> Tensor:
    y = x.view(2, 3)
    return torch.take_along_dim(ROWS.view(2, 6)[:, :3], y.argsort(dim=1), dim=1)[:, 0].sum()


@program
def topk_values(x: Tensor) -> Tensor:
    return x.topk(2).values @ torch.tensor([1.0, 2.0], dtype=x.dtype)


@program
def topk_indices(x: Tensor) -> Tensor:
    return TABLE[torch.topk(x, 3).indices].sum()


@program
def max_dim(x: Tensor) -> Tensor:
    values, indices = x.view(2, 3).max(1)
    return values.sum() + TABLE[indices].sum()


@program
def max_all(x: Tensor) -> Tensor:
    return x.max() - 2 * x.min()


@program
def amax_dim(x: Tensor) -> Tensor:
    return x.view(2, 3).amax(dim=0) @ torch.tensor([1.0, -1.0, 2.0], dtype=x.dtype)


@program
def maximum(x: Tensor) -> Tensor:
    return (torch.maximum(x, TABLE) * WEIGHTS).sum()


@program
def median(x: Tensor) -> Tensor:
    return x.median() + TABLE[x.median(dim=0).indices]


@program
def quantile(x: Tensor) -> Tensor:
    return torch.quantile(x, 0.75) - torch.quantile(x, 0.1)


@program
def kthvalue(x: Tensor) -> Tensor:
    return x.kthvalue(2).values


@program
def msort(x: Tensor) -> Tensor:
    return torch.msort(x.view(3, 2))[0].sum()


@program
def round_it(x: Tensor) -> Tensor:
    return ((3 * x).round() * WEIGHTS).sum()


@program
def round_inplace(x: Tensor) -> Tensor:
    y = 2 * x
    y.round_()
    return (y * WEIGHTS).sum()


@program
def floor(x: Tensor) -> Tensor:
    return (torch.floor(2 * x) * WEIGHTS).sum()


@program
def ceil(x: Tensor) -> Tensor:
    return ((2 * x).ceil() * WEIGHTS).sum()


@program
def trunc(x: Tensor) -> Tensor:
    return ((3 * x).trunc() * WEIGHTS).sum()


@program
def floor_divide(x: Tensor) -> Tensor:
    return ((x // 0.4) * WEIGHTS).sum()


@program
def sign(x: Tensor) -> Tensor:
    return (torch.sign(x) * WEIGHTS).sum()


@program
def heaviside(x: Tensor) -> Tensor:
    return (torch.heaviside(x, torch.tensor(0.5, dtype=x.dtype)) * WEIGHTS).sum()


@program
def long_lookup(x: Tensor) -> Tensor:
    return TABLE[(x * 2 + 3).clamp(0, 5).long()].sum()


@program
def round_long_lookup(x: Tensor) -> Tensor:
    return TABLE[(x + 3).round().long().clamp(0, 5)].sum()


@program
def quantise_int(x: Tensor) -> Tensor:
    return ((4 * x).int() * WEIGHTS).sum()


@program
def relu(x: Tensor) -> Tensor:
    return (nn.ReLU()(x) * WEIGHTS).sum()


@program
def relu_inplace(x: Tensor) -> Tensor:
    return (nn.ReLU(inplace=True)(x - 0.1) * WEIGHTS).sum()


@program
def hardtanh(x: Tensor) -> Tensor:
    return (nn.Hardtanh(-0.5, 0.5)(x) * WEIGHTS).sum()


@program
def clamp_inplace(x: Tensor) -> Tensor:
    return ((x * 1.0).clamp_(-0.5, 0.8) * WEIGHTS).sum()


@program
def clamp_min(x: Tensor) -> Tensor:
    return (x.clamp(min=0.0) * WEIGHTS).sum()


@program
def threshold(x: Tensor) -> Tensor:
    return (F.threshold(x, 0.1, -1.0) * WEIGHTS).sum()


@program
def absolute(x: Tensor) -> Tensor:
    return (x.abs() * WEIGHTS).sum()


@program
def relu6(x: Tensor) -> Tensor:
    return (F.relu6(4 * x) * WEIGHTS).sum()


@program
def bucketize(x: Tensor) -> Tensor:
    return (torch.bucketize(x, torch.tensor([-0.5, 0.0, 0.5], dtype=x.dtype)) * WEIGHTS).sum()


@program
def two_soft_indices(x: Tensor) -> Tensor:
    grid = ROWS @ ROWS.t()
    return grid[x[:3].argmax(), x[3:].argmin()]


@program
def same_choice(x: Tensor) -> Tensor:
    return (x[:3].argmax() == x[3:].argmax()).double()


@program
def index_compared(x: Tensor) -> Tensor:
    return (x.argmax() < 3).double() + (x.argmin() != 1).double()


@program
def nested(x: Tensor) -> Tensor:
    scores = torch.where(x > 0, x, 0.1 * x)
    chosen = ROWS[scores.argmax()]
    return (chosen * torch.relu(scores[:2])).sum() + (x.round() == 1).double().sum()


@program
def inplace_mask(x: Tensor) -> Tensor:
    m = torch.ones(6, dtype=torch.bool)
    m &= x > -0.6
    m[0] = False
    return (m * WEIGHTS).sum()


@program
def inplace_count(x: Tensor) -> Tensor:
    n = torch.zeros(6, dtype=torch.long)
    n += x > 0
    n += x > 0.5
    return (n * WEIGHTS).sum()


@program
def stacked_masks(x: Tensor) -> Tensor:
    m = torch.stack([x > 0, x > 0.4])
    return (m.double().mean(0) * WEIGHTS).sum()


@program
def python_sum(x: Tensor) -> Tensor:
    return sum(x > 0.1) / 6


@program
def accuracy_of_thresholds(x: Tensor) -> Tensor:
    predicted = (torch.sigmoid(x) > 0.55).float()
    return (predicted == torch.tensor([1.0, 0, 1, 1, 0, 1])).float().mean()


@program
def masked_attention(x: Tensor) -> Tensor:
    scores = (x[:, None] * TABLE[None, :3]).masked_fill(x[:, None] < -0.2, 0.0)
    return (scores.softmax(0) * ROWS[:, :1]).sum()


@program
def safe_root(x: Tensor) -> Tensor:
    return (torch.where(x > 0, (x.clamp(min=1e-6) + 1).sqrt(), 0.5) * WEIGHTS).sum()


@program
def invalid_scores(x: Tensor) -> Tensor:
    return TABLE[torch.where(WEIGHTS > 0, x, -1e9).argmax()]


@program
def rank_correlation(x: Tensor) -> Tensor:
    r = x.argsort().argsort().to(x.dtype)
    return ((r - r.mean()) * WEIGHTS).sum() / 6


@program
def trimmed_mean(x: Tensor) -> Tensor:
    return x.sort().values[1:-1].mean() + x.sort().indices[:2].float().mean()


@program
def module_pipeline(x: Tensor) -> Tensor:
    hidden = nn.Sequential(nn.Unflatten(0, (2, 3)), nn.ReLU6(), nn.Threshold(0.1, 0.0))(2 * x)
    return (hidden * WEIGHTS.view(2, 3)).sum()


@program
def nearest_prototype(x: Tensor) -> Tensor:
    distances = (x.view(3, 1, 2) - ROWS).pow(2).sum(-1)
    return (distances.argmin(1) == torch.tensor([5, 3, 0])).double().sum() + TABLE[distances.argmin(dim=-1)].sum()


@program
def argmin_of_pairs(x: Tensor) -> Tensor:
    d = (x[:, None] - x[None, :]).abs() + 1e6 * torch.eye(6, dtype=x.dtype)
    return WEIGHTS[d.min(dim=1).indices].sum()


@program
def histogram_by_one_hot(x: Tensor) -> Tensor:
    bins = torch.floor(2 * x + 3).clamp(0, 5).long()
    return (F.one_hot(bins, 6).sum(0) * WEIGHTS).sum()


@program
def second_best(x: Tensor) -> Tensor:
    order = torch.argsort(x, descending=True)
    return TABLE[order[1]] - TABLE[order[0]]


@program
def counts_of_classes(x: Tensor) -> Tensor:
    classes = torch.stack([x, x.roll(1), x.roll(2)], 1).argmax(1)
    return (torch.bincount(classes, minlength=3) * WEIGHTS[:3]).sum()


@program
def confusion_of_masks(x: Tensor) -> Tensor:
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    table = torch.bincount(2 * labels + (x > 0.1), minlength=4).reshape(2, 2).double()
    return (table * torch.tensor([[1.0, -0.5], [0.3, 2.0]])).sum()


@program
def weighted_counts(x: Tensor) -> Tensor:
    return torch.bincount((x > 0).long(), weights=WEIGHTS, minlength=2)[1]


@program
def histogram_moment(x: Tensor) -> Tensor:
    return (torch.histc(x, 5, -1.5, 1.5) * torch.arange(5.0, dtype=x.dtype)).sum()


@program
def histogram_between_edges(x: Tensor) -> Tensor:
    counts, edges = torch.histogram(x, torch.tensor([-2.0, -0.3, 0.2, 2.0], dtype=x.dtype))
    return counts[1] - 2 * counts[2] + edges[0]


@program
def counts_of_known_values(x: Tensor) -> Tensor:
    values, counts = torch.unique(torch.stack([x, -x], 1).argmax(1), return_counts=True)
    return (values * counts).sum().double()


@program
def places_squared(x: Tensor) -> Tensor:
    return torch.bucketize(x, torch.tensor([-1.0, -0.2, 0.4, 1.0], dtype=x.dtype)).double().square().sum()


@program
def running_maximum(x: Tensor) -> Tensor:
    return (torch.cummax(x, 0).values * WEIGHTS).sum()


@program
def median_of_windows(x: Tensor) -> Tensor:
    padded = torch.cat([x[:1], x, x[-1:]])
    return (padded.unfold(0, 3, 1).median(-1).values * WEIGHTS).sum()


@program
def ranks_by_unique(x: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    return (inverse * WEIGHTS).sum() * counts.sum() / 6


@program
def first_true(x: Tensor) -> Tensor:
    found = torch.cat([x > 0.3, torch.ones(1, dtype=torch.bool)])
    return 1.0 / (found.nonzero().view(-1)[0] + 1.0)


@program
def intersection_by_masked_select(x: Tensor) -> Tensor:
    labels = torch.tensor([True, False, True, True, False, True])
    mask = x > 0.1
    return torch.masked_select(labels, mask).sum() / (mask.sum() + 4.0)


@program
def majority_of_signs(x: Tensor) -> Tensor:
    votes = torch.sign(x.view(2, 3) - 0.1).sum(1)
    return (votes > 0).double().sum() + (votes == 3).double().sum()


@program
def kept_in_their_order(x: Tensor) -> Tensor:
    kept = x.topk(3).indices.sort().values
    return (TABLE[kept] * torch.tensor([1.0, -2.0, 4.0], dtype=TABLE.dtype)).sum()


@program
def reciprocal_rank(x: Tensor) -> Tensor:
    hits = torch.tensor([False, True, False, False, True, False])[x.argsort(descending=True)]
    return 1.0 / (hits.int().argmax() + 1.0)


@program
def rank_of_the_second_hit(x: Tensor) -> Tensor:
    hits = torch.tensor([False, True, False, True, True, False])[x.argsort(descending=True)]
    return 1.0 / (hits.nonzero().view(-1)[1] + 1.0)


@program
def first_of_the_best_grade(x: Tensor) -> Tensor:
    grades = torch.tensor([0, 1, 2, 0, 2, 1])[x.topk(4).indices]
    return grades.argmax().double().square()
