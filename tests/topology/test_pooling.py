"""Generalised norms over twelve decades, their bound to the maximum, and the exchange of pooling inside of a model."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from pullback import topology


def _ragged(generator: torch.Generator, rows: int = 60, sets: int = 9) -> tuple[Tensor, Tensor]:
    """Rows over twelve decades with zeros among them; some sets are empty, some are all zero."""
    size = 10 ** (12 * torch.rand(rows, 4, generator=generator) - 6)
    size = size * (torch.rand(rows, 4, generator=generator) > 0.2)
    index = torch.randint(1, sets, (rows,), generator=generator)
    return size * (index != 2)[:, None], index


def test_no_input_of_twelve_decades_makes_a_nan() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):  # 36 000 entries
        x, index = _ragged(generator)
        low, high = math.log(0.1), math.log(50)
        p = (low + (high - low) * torch.rand(4, generator=generator)).exp()
        p = p * (2 * torch.randint(2, (4,), generator=generator) - 1)
        q = 4 * torch.rand(4, generator=generator) - 2
        inputs = [t.requires_grad_() for t in (x, p, q)]
        pooled = topology.norm_pool(x, index, 9, p=p, q=q)
        assert torch.isfinite(pooled).all()
        assert (pooled[[0, 2]] == 0).all()
        for gradient in torch.autograd.grad(pooled.log1p().sum(), inputs):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("p", [-50.0, -0.5, 0.3, 1.0, 50.0])
def test_the_norm_scales_with_its_items(scale: float, p: float) -> None:
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) + 0.01
    one, many = (topology.norm_pool(t, p=p, q=0.3) for t in (x.double(), scale * x))
    torch.testing.assert_close(many.double(), scale * one, rtol=1e-5, atol=0)


def test_a_large_exponent_is_near_the_maximum() -> None:
    for n in (2, 10, 1000):
        x = torch.rand(n, 50, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        excess = topology.norm_pool(x, p=50.0, q=0.0) / x.amax(0) - 1
        assert excess.min() >= -1e-12
        assert excess.max() <= n ** (1 / 50) - 1 + 1e-12
    same = torch.ones(10, 1, dtype=torch.float64)  # the bound is reached where all are equal
    torch.testing.assert_close(topology.norm_pool(same, p=50.0, q=0.0).item(), 10 ** (1 / 50))


def test_sizes_that_leave_the_range_are_its_largest_number() -> None:
    x = torch.ones(10_000, 1, requires_grad=True)
    pooled = topology.norm_pool(x, p=0.1, q=0.0)  # 1e40
    assert 3.3e38 < pooled.item() <= torch.finfo(torch.float32).max
    assert torch.equal(torch.autograd.grad(pooled.sum(), x)[0], torch.zeros_like(x))


def test_negative_numbers_are_counted_in_a_warning() -> None:
    x = torch.tensor([[1.0], [-2.0], [2.0]])
    with pytest.warns(UserWarning, match="1 of 3 entries of x are negative"):
        assert topology.norm_pool(x, p=2.0, q=0.0).item() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topology.norm_pool(x.abs(), p=2.0, q=0.0)


def test_masks_and_dimensions_are_those_of_the_sets() -> None:
    x = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    pooled = topology.norm_pool(x, p=1.0, q=1.0, mask=mask)
    torch.testing.assert_close(pooled[0], x[0, mask[0]].mean(0))
    assert (pooled[1] == 0).all()
    torch.testing.assert_close(topology.norm_pool(x.mT, p=1.0, q=1.0, dim=-1, mask=mask[:, None]), pooled)
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 5\)"):
        topology.norm_pool(x, p=1.0, q=1.0, mask=mask[:, :4])
    with pytest.raises(TypeError, match="mask"):
        topology.norm_pool(x, p=1.0, q=1.0, mask=mask.long())
    with pytest.raises(ValueError, match="mask must be left out"):
        topology.norm_pool(x[0], torch.zeros(5, dtype=torch.int64), 1, p=1.0, q=0.0, mask=mask[0])
    with pytest.raises(ValueError, match="count must be the number of sets"):
        topology.norm_pool(x[0], torch.zeros(5, dtype=torch.int64), p=1.0, q=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 3}, "features must be even with split=True, got 3"),
        ({"p_init": 0.0}, r"\|p_init\| must be between 0.1 and p_max = 50"),
        ({"p_init": -60.0}, r"\|p_init\| must be between 0.1 and p_max = 50"),
        ({"p_max": 0.05}, "p_max must be a finite number > 0.1"),
        ({"q_init": math.nan}, "q_init must be finite"),
    ],
)
def test_modules_refuse_what_they_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topology.GeneralizedNormPool(**{"features": 4, **options})  # type: ignore[arg-type]


def test_a_norm_learns_the_exponents_that_made_its_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x, index = torch.rand(300, 1, generator=generator), (32 * torch.rand(300, generator=generator) ** 3).long()
    truth = topology.norm_pool(x, index, 32, p=-3.0, q=0.5)
    pool = topology.GeneralizedNormPool(1, split=False, p_init=-1.0)
    optimizer = torch.optim.LBFGS(pool.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = (pool(x, index, 32) - truth).square().mean()
        error.backward()
        return error

    optimizer.step(loss)
    p, q = (value.item() for value in pool.exponents)
    assert abs(p + 3) < 0.05
    assert abs(q - 0.5) < 0.01


class _Aggregation(nn.Module):
    """As PyTorch Geometric calls it."""

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        return topology.segment_reduce(x.movedim(dim, 0), index, dim_size).movedim(0, dim)  # type: ignore[arg-type]


class _Convolution(nn.Module):
    """A layer of message passing as there."""

    def __init__(self) -> None:
        super().__init__()
        self.aggr_module = _Aggregation()
        self.map = nn.Linear(2, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.map(self.aggr_module(x[edges[0]], edges[1], dim_size=len(x), dim=-2))


def test_every_pooling_of_a_model_is_exchanged_for_its_own_copy() -> None:
    model = nn.Sequential(_Convolution(), _Convolution(), topology.SegmentPool("sum"))
    names = topology.replace_pooling(model, topology.GeneralizedNormPool(2, split=False, p_init=2.0))
    assert names == ["0.aggr_module", "1.aggr_module", "2"]
    x, edges = torch.rand(3, 2), torch.tensor([[0, 1, 2], [1, 1, 2]])
    found = model[0].aggr_module(x[edges[0]], edges[1], dim_size=3)
    torch.testing.assert_close(found, topology.norm_pool(x[edges[0]], edges[1], 3, p=2.0, q=0.0))
    torch.testing.assert_close(
        model[0].aggr_module(x, ptr=torch.tensor([0, 2, 2, 3])), model[2](x, torch.tensor([0, 0, 2]), 3)
    )
    model[0](x, edges).sum().backward()
    exponents = [p for name, p in model.named_parameters() if "raw_p" in name]
    assert len(exponents) == 3
    assert exponents[0].grad is not None
    assert exponents[1].grad is None
    again = topology.replace_pooling(model, topology.SegmentPool("max"))
    assert len(again) == 3
    with pytest.raises(ValueError, match="model has no pooling inside: Linear"):
        topology.replace_pooling(nn.Linear(2, 2), topology.SegmentPool())
    with pytest.raises(TypeError, match=r"pool must be a torch\.nn\.Module, got str"):
        topology.replace_pooling(model, "max")  # type: ignore[arg-type]


def test_pooling_may_be_exchanged_before_a_network_is_trained() -> None:
    graphs = topology.random_graphs("er", 4, 6, generator=torch.Generator().manual_seed(0))
    network = topology.GraphNetwork(1, 4, 1, layers=2)
    assert topology.replace_pooling(network, topology.GeneralizedNormPool(4)) == [
        *("aggregates.0", "aggregates.1", "readout")
    ]
    assert network(torch.ones(24, 1), graphs).shape == (4, 1)
    with pytest.raises(TypeError, match="aggregate must be the name of a reduction or a module, got int"):
        topology.GraphNetwork(1, 4, 1, aggregate=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers must be an integer >= 1"):
        topology.GraphNetwork(1, 4, 1, layers=0)
