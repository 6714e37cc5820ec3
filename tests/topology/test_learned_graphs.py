"""What only learned graphs and their neighbourhoods promise."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy.spatial import cKDTree

from pullback import topology


def test_towards_no_width_exactly_the_first_neighbours_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(100, 100, 100, generator=generator, dtype=torch.float64)
    k = 0.01 + 99 * torch.rand(100, 100, generator=generator, dtype=torch.float64)
    kept = topology.adaptive_neighborhood(scores, k, width=1e-9).weights > 0.5 * scores
    bound = scores.sort(-1, descending=True).values.gather(-1, (k.ceil().long() - 1).unsqueeze(-1))
    assert torch.equal(kept, scores >= bound)
    hard = topology.adaptive_neighborhood(scores, k, hard=True).weights
    assert torch.equal(hard, torch.where(kept, scores, 0))


@pytest.mark.parametrize("method", ["tanh", "linear"])
def test_the_number_of_neighbours_grows_by_one_with_the_degree(method: str) -> None:
    n = 20
    k = torch.linspace(2, n - 3, 500, dtype=torch.float64, requires_grad=True)
    total = topology.smooth_first_k(k, n, method=method).sum()
    (slope,) = torch.autograd.grad(total, k)
    assert 0.9 <= slope.min() <= slope.max() <= 1.1


def test_the_hard_neighbourhood_has_the_gradient_of_the_soft_one() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, k = torch.rand(4, 4, generator=generator), 1 + 2 * torch.rand(4, generator=generator)
    gradients = []
    for hard in (False, True):
        inputs = (scores.clone().requires_grad_(), k.clone().requires_grad_())
        weights = topology.adaptive_neighborhood(*inputs, hard=hard).weights
        gradients.append(torch.autograd.grad((weights * scores.T).sum(), inputs))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert gradients[0][1].abs().min() > 0


def _lists() -> topology.LearnedGraph:
    """Two graphs of four nodes with lists of two."""
    weights = torch.tensor(
        [[[0.2, 0.9], [0.0, 0.4], [0.6, 0.0], [0.3, 0.8]], [[0.0, 0.0], [1.0, 0.5], [0.7, 0.1], [0.0, 0.3]]]
    )
    index = torch.tensor([[[1, 2], [0, 3], [0, 1], [2, 1]], [[1, 2], [0, 3], [3, 1], [0, 1]]])
    return topology.LearnedGraph(weights.requires_grad_(), index, (weights > 0).sum(-1).float(), weights.sum(-1))


def test_a_list_a_matrix_and_edges_are_one_graph() -> None:
    graph = _lists()
    dense = graph.to_dense()
    for b in range(2):
        for i in range(4):
            for place in range(2):
                assert dense[b, i, graph.index[b, i, place]] == graph.weights[b, i, place]
    assert math.isclose(dense.sum().item(), graph.weights.sum().item(), rel_tol=1e-6)
    edges = graph.to_edges()
    assert len(edges.weights) == int((dense > 0).sum())
    block = torch.block_diag(*dense)
    assert torch.equal(block[edges.index[0], edges.index[1]], edges.weights)
    assert torch.equal(edges.batch, edges.index[0] // 4)
    pairs = graph.to_undirected()
    mean = (block + block.T) / 2
    assert torch.equal(pairs.index, mean.triu(1).nonzero().T)
    assert torch.allclose(pairs.weights, mean[pairs.index[0], pairs.index[1]])
    (gradient,) = torch.autograd.grad(pairs.weights.sum(), graph.weights)
    assert torch.equal(gradient, torch.where(graph.weights > 0, 0.5, 0.0))


def test_a_hard_graph_keeps_what_is_above_the_threshold_and_its_gradient() -> None:
    graph = _lists()
    hard = graph.hard(0.5)
    assert torch.equal(hard.weights, (graph.weights > 0.5).float())
    assert torch.equal(hard.degree, hard.weights.sum(-1))
    factor = torch.randn(2, 4, 2)
    (gradient,) = torch.autograd.grad((hard.weights * factor).sum(), graph.weights)
    assert torch.equal(gradient, factor)


def test_candidates_are_those_of_a_tree_search_whatever_the_blocks() -> None:
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances, index = cKDTree(x.numpy()).query(x.numpy(), k=8)
    for block in (7, 1024):
        found = topology.neighbor_candidates(x, 7, block=block)
        assert torch.equal(found.index, torch.from_numpy(index[:, 1:]))
        assert torch.allclose(found.distances, torch.from_numpy(distances[:, 1:]))
    twice = x[:4].repeat(2, 1).requires_grad_()
    found = topology.neighbor_candidates(twice, 1)
    assert torch.equal(found.distances, torch.zeros(8, 1).double())
    assert not torch.autograd.grad(found.distances.sum(), twice)[0].any()


def test_near_points_far_from_the_origin_keep_their_distance() -> None:
    x = torch.tensor([[1e4, 1e4], [1e4 + 1e-2, 1e4]])
    assert topology.pairwise_distances(x)[0, 1] == (x[0] - x[1]).norm()


def test_slopes_of_distances_do_not_depend_on_the_scale() -> None:
    """Also where a distance times its cotangent, or a distance itself, is beyond the largest number."""
    unit = torch.tensor([[1.0, 0.0], [-0.9, 0.7], [-0.9, 0.6], [0.0, 0.0]], dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad((unit[:, None] - unit).square().sum(-1).add(1e-300).sqrt().sum(), unit)
    for scale in (1e-38, 1e-20, 1.0, 1e20, 3e38):
        x = (unit.detach() * scale).float().requires_grad_()
        (got,) = torch.autograd.grad(topology.pairwise_distances(x).sum(), x)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
        tangent = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
        _, along = torch.func.jvp(topology.pairwise_distances, (x.detach(),), (tangent,))
        torch.testing.assert_close(along.sum(), (got * tangent).sum(), rtol=1e-5, atol=1e-5)


def test_lists_and_matrices_convolve_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 3, generator=generator).double(), torch.randn(3, 2, generator=generator).double()
    index = topology.neighbor_candidates(x, 5).index
    weights = torch.rand(40, 5, generator=generator).double()
    graph = topology.LearnedGraph(weights, index, weights.sum(-1), weights.sum(-1))
    for normalize in ("row", "symmetric", None):
        lists = topology.graph_convolution(x, graph, weight, torch.ones(2).double(), normalize=normalize)
        matrix = topology.graph_convolution(x, graph.to_dense(), weight, torch.ones(2).double(), normalize=normalize)
        assert torch.allclose(lists, matrix)


def test_noise_is_drawn_in_training_alone_and_from_the_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    module = topology.DifferentiableGraphGenerator(3, 4, degree="gaussian", generator=generator)
    x = torch.randn(9, 3, generator=generator)
    state = torch.get_rng_state()
    first, second = (module(x, generator=torch.Generator().manual_seed(seed)).weights for seed in (1, 1))
    other = module(x, generator=torch.Generator().manual_seed(2)).weights
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(module.eval()(x).weights, module(x).weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_degrees_at_the_limit_of_the_candidates_are_told() -> None:
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="ask for all 2 candidates"):
        topology.DifferentiableGraphGenerator(3, 4, candidates=2, centre=6.0)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topology.DifferentiableGraphGenerator(3, 4, candidates=8, centre=6.0)(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centre": 1.0}, "centre must be > 1"),
        ({"noise": -1.0}, "noise must be >= 0"),
        ({"width": 0.0}, "width must be > 0"),
        ({"score": "dot"}, "score must be one of"),
        ({"degree": "fixed"}, "degree must be one of"),
        ({"candidates": 0}, "candidates must be an integer >= 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topology.DifferentiableGraphGenerator(3, 4, **options)


def test_more_candidates_than_other_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"candidates must be in 1\.\.4"):
        topology.DifferentiableGraphGenerator(3, 4, candidates=5)(torch.ones(5, 3))


def test_the_larger_the_scale_the_more_zeros() -> None:
    z = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
    zeros = [int((topology.latent_graph_entmax(z, scale=s).weights == 0).sum()) for s in (0.5, 2.0, 8.0, 32.0)]
    assert zeros == sorted(zeros)
    assert len(set(zeros)) == 4
    rows = topology.latent_graph_entmax(z, scale=4.0, symmetric=False).weights
    assert torch.allclose(rows.sum(-1), torch.ones(60).double())
    near = topology.latent_graph_entmax(z, scale=32.0, symmetric=False, candidates=59)
    assert torch.allclose(near.to_dense(), topology.latent_graph_entmax(z, scale=32.0, symmetric=False).weights)
