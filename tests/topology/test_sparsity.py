"""Pruned tokens, heads, layers and weights against their definitions."""

from __future__ import annotations

import copy
import io
import math

import networkx
import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from pullback import topology


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weights_have_the_gradient_of_the_softmax() -> None:
    x, scores = _rand(2, 6, 3), _rand(2, 6, seed=1).requires_grad_()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    kept = topology.token_prune(x, scores, 0.5, temperature=0.7, mask=mask)
    cotangent = _rand(2, 3, seed=2)
    (found,) = torch.autograd.grad((kept.weights * cotangent).sum(), scores)
    shares = (scores.masked_fill(~mask, -torch.inf).log_softmax(-1) / 0.7).softmax(-1)
    (soft,) = torch.autograd.grad((shares.gather(-1, kept.index) * cotangent * kept.mask).sum(), scores)
    torch.testing.assert_close(found, soft, rtol=1e-12, atol=1e-14)
    assert kept.mask.sum(-1).tolist() == [3, 2]  # of 6 and of 4 tokens: padding is not counted
    assert torch.equal(kept.tokens[kept.mask], x.gather(1, kept.index[..., None].expand(2, 3, 3))[kept.mask])
    assert (kept.tokens[~kept.mask] == 0).all()


def test_padding_and_protection_decide_before_scores() -> None:
    x, scores = _rand(1, 5, 1), torch.tensor([[9.0, 8.0, 7.0, 6.0, -5.0]], dtype=torch.float64)
    mask = torch.tensor([[False, True, True, True, True]])
    protect = torch.tensor([[False, False, False, False, True]])
    kept = topology.token_prune(x, scores, torch.tensor([2]), mask=mask, protect=protect)
    assert kept.index.tolist() == [[1, 4]]
    with pytest.raises(ValueError, match="keep leaves fewer tokens than one and those protected: 1 of 4"):
        topology.token_prune(x, scores, torch.tensor([1]), mask=mask, protect=mask)


def test_noise_draws_tokens_by_their_share() -> None:
    """One token of three by Gumbel noise is a draw from the softmax."""
    scores = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    kept = topology.token_prune(torch.zeros(20_000, 3, 1), scores, 0.34, generator=generator)
    frequencies = kept.index.flatten().bincount() / 20_000
    torch.testing.assert_close(frequencies, scores[0].softmax(0), rtol=0, atol=0.015)  # standard error .0035


def test_dropped_branches_leave_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    runs = torch.stack(
        [
            topology.stochastic_depth(torch.ones(1), lambda x: 3 * x, rate=0.25, training=True, generator=generator)
            for _ in range(4000)
        ]
    )
    assert set(runs.flatten().tolist()) == {1.0, 5.0}
    assert abs(runs.mean().item() - 4) < 0.1  # standard error .027
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="rate must be"):
            topology.stochastic_depth(torch.ones(1), torch.sin, rate=rate, training=True)


def test_layers_are_chosen_after_training() -> None:
    stack = topology.LayerSelector([nn.Linear(2, 2) for _ in range(3)])
    x = torch.ones(1, 2)
    first, _, third = stack.layers
    assert torch.equal(stack.keep([2, 0])(x), third(first(x)))
    assert torch.equal(stack.keep([])(x), x)
    stack.keep([0, 2])
    without = {gone: stack(x) for gone in stack.leave_one_out()}
    assert stack.kept == (0, 2)
    assert torch.equal(without[0], third(x))
    assert torch.equal(without[2], first(x))
    for wrong in ([3], [-1], [1, 1]):
        with pytest.raises(ValueError, match="must"):
            stack.keep(wrong)
    with pytest.raises(ValueError, match="at least one module"):
        topology.LayerSelector([])


def test_closed_heads_say_nothing_and_are_not_computed() -> None:
    attention = topology.HeadAttention(8, 4, generator=torch.Generator().manual_seed(0)).double()
    x = _rand(2, 5, 8)
    alone = []
    for head in range(4):
        attention.outputs.keep([head])
        alone.append(attention(x) - attention.bias)
    attention.outputs.keep([0, 1, 2, 3])
    torch.testing.assert_close(attention(x), sum(alone) + attention.bias)
    attention.outputs.keep([1, 3])
    shapes = []
    hook = attention.outputs.register_forward_hook(lambda _, __, said: shapes.append(said.shape))
    torch.testing.assert_close(attention(x), alone[1] + alone[3] + attention.bias)
    hook.remove()
    assert shapes == [(2, 2, 5, 2)]
    with pytest.raises(ValueError, match=r"head must be in 0\.\.3, got 4"):
        attention.outputs.keep([4])
    with pytest.raises(ValueError, match="heads must keep at least one"):
        attention.outputs.keep([])
    with pytest.raises(ValueError, match="width must be a multiple of heads"):
        topology.HeadAttention(6, 4)


def test_padding_is_no_key() -> None:
    attention = topology.HeadAttention(4, 2).double()
    x, mask = _rand(2, 5, 4), torch.tensor([[True] * 5, [True, True, True, False, False]])
    found = attention(x, mask)
    torch.testing.assert_close(found[1, :3], attention(x[1:, :3])[0])
    torch.testing.assert_close(found[0], attention(x[:1])[0])


def test_graphs_of_a_batch_do_not_see_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    model = topology.GraphTransformer(3, 8, 2, 2, 2, generator=generator).double().eval()
    batches = [topology.random_graphs("er", 1, n, generator=generator) for n in (4, 9, 6)]
    inputs = [_rand(len(b.index), 3, seed=len(b.index)) for b in batches]
    for options in ({}, {"keep": 0.5}):
        alone = torch.cat([model(x, b, **options) for x, b in zip(inputs, batches, strict=True)])
        torch.testing.assert_close(model(torch.cat(inputs), topology.join_graphs(batches), **options), alone)


def test_relabelled_nodes_give_the_same_output() -> None:
    generator = torch.Generator().manual_seed(0)
    graphs = topology.random_graphs("ba", 1, 12, generator=generator)
    model = topology.GraphTransformer(3, 8, 2, 2, 2, generator=generator).double().eval()
    x, order = _rand(12, 3), torch.randperm(12, generator=generator)
    moved = topology.GraphBatch(order.argsort()[graphs.edges], graphs.index, 1)
    torch.testing.assert_close(model(x[order], moved), model(x, graphs))


def test_nothing_is_cut_where_all_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    graphs = topology.random_graphs("tree", 3, (3, 7), generator=generator)
    model = topology.GraphTransformer(2, 8, 2, 3, 2, encodings="laplacian", places=2, generator=generator)
    x = torch.rand(len(graphs.index), 2)
    places = model.encode(graphs)
    full = model(x, graphs, places=places)
    model.keep_heads(1, [0, 1])
    model.stack.keep([0, 1, 2])
    assert torch.equal(model(x, graphs, places=places, keep=1.0), full)
    model.stack.keep([0, 2])
    assert not torch.allclose(model(x, graphs, places=places), full)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"keep must be a share in \(0, 1\]"):
            model(x, graphs, keep=wrong)
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.2, got 3"):
        model.keep_heads(3, [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be"),
        ({"hidden": 9}, "width must be a multiple of heads"),
        ({"local": "gcn"}, "local must be one of"),
        ({"encodings": "cycles"}, "encodings must be one of"),
        ({"drop": 1.0}, r"drop must be in \[0, 1\)"),
    ],
)
def test_transformers_refuse_what_they_cannot_be(options: dict[str, object], message: str) -> None:
    sizes = {"features": 1, "hidden": 8, "heads": 2, "layers": 1, "out": 1}
    with pytest.raises(ValueError, match=message):
        topology.GraphTransformer(**{**sizes, **options})  # type: ignore[arg-type]


def test_importance_is_zero_for_a_head_that_says_nothing() -> None:
    attention = topology.HeadAttention(8, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention.combine[2] = 0
    importance = topology.head_importance(attention, lambda m, x: m(x).square().sum((1, 2)), [torch.randn(6, 5, 8)])
    assert importance[0, 2] == 0
    assert importance.count_nonzero() == 3
    with pytest.raises(ValueError, match="no HeadAttention inside"):
        topology.head_importance(nn.Linear(2, 2), lambda m, x: m(x), [])
    with pytest.raises(ValueError, match="loss must return one number a graph"):
        topology.head_importance(attention, lambda m, x: m(x).sum(), [torch.randn(6, 5, 8)])
    with pytest.raises(ValueError, match="at least one batch"):
        topology.head_importance(attention, lambda m, x: m(x).sum((1, 2)), [])


def test_eigenvectors_are_those_of_networkx() -> None:
    graphs = topology.random_graphs("ba", 3, (6, 9), generator=torch.Generator().manual_seed(0))
    found = topology.laplacian_encoding(graphs, 3).double()
    signed = topology.laplacian_encoding(graphs, 3, generator=torch.Generator().manual_seed(1))
    for number in range(3):
        own = (graphs.index == number).nonzero().flatten().tolist()
        graph = networkx.Graph()
        graph.add_nodes_from(own)
        graph.add_edges_from(e for e in graphs.edges.T.tolist() if e[0] in own)
        laplacian = networkx.normalized_laplacian_matrix(graph, nodelist=own).toarray()
        values = np.linalg.eigvalsh(laplacian)[1:4]
        vectors = found[own].numpy()
        np.testing.assert_allclose(laplacian @ vectors, vectors * values, atol=1e-6)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-6)
        signs = (signed[own].double() / found[own]).round(decimals=4)
        assert ((signs == signs[:1]) | ~signs.isfinite()).all()
        assert (vectors.max(0) >= -vectors.min(0) - 1e-6).all()
    small = topology.batch_graphs([torch.tensor([[0, 1]]), torch.zeros(0, 2, dtype=torch.int64)], [2, 1])
    encoded = topology.laplacian_encoding(small, 3)
    assert encoded.shape == (3, 3)
    assert torch.isfinite(encoded).all()
    assert (encoded[:, 1:] == 0).all()


def _pruned(steps: int, pruner: topology.GradualMagnitudePruner, weights: list[Tensor], seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
            weight.data -= 0.01 * weight.grad
        pruner.step()


def test_sparsity_follows_the_schedule_and_regrowth_keeps_the_count() -> None:
    weights = [nn.Parameter(_rand(40, 30, seed=s).float()) for s in range(2)]
    pruner = topology.GradualMagnitudePruner(weights, initial=0.1, final=0.9, start=2, end=42, every=10)
    for step in range(60):
        before = [m.clone() for m in pruner.masks]
        _pruned(1, pruner, weights, step)
        if step in (2, 12, 22, 32, 42):
            expected = 0.9 - 0.8 * (1 - (step - 2) / 40) ** 3
            assert abs(pruner.sparsity - expected) < 1e-3
            left = sum(int(m.sum()) for m in pruner.masks)
            assert pruner.regrown == min(int(0.25 * (1 + math.cos(math.pi * (step - 2) / 40)) * left), 2400 - left)
        else:
            assert all(torch.equal(a, b) for a, b in zip(before, pruner.masks, strict=True))
        assert all((w[~m] == 0).all() for w, m in zip(weights, pruner.masks, strict=True))
    assert pruner.regrown == 0


def test_what_is_dropped_is_small_and_what_grows_is_steep() -> None:
    weight = nn.Parameter(torch.arange(1.0, 11))
    weight.grad = torch.tensor([9.0, 0, 0, 8, 0, 0, 0, 0, 0, 0])
    pruner = topology.GradualMagnitudePruner([weight], initial=0.6, final=0.8, start=0, end=9, every=1, regrow=0.5)
    pruner.step()  # 4 of 10 stay: the two largest, and of the others the two with the largest gradients
    assert pruner.masks[0].nonzero().flatten().tolist() == [0, 3, 8, 9]
    assert weight.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 9, 10]


def test_layers_are_pruned_alike_in_their_scope() -> None:
    for scope, expected in (("global", (0.0, 1.0)), ("layer", (0.5, 0.5))):
        weights = [nn.Parameter(torch.ones(10) + torch.arange(10)), nn.Parameter(0.01 * torch.arange(1.0, 11))]
        pruner = topology.GradualMagnitudePruner(
            weights, initial=0.5, final=0.5, start=0, end=1, every=1, regrow=0, scope=scope
        )
        pruner.step()
        assert tuple(1 - m.double().mean().item() for m in pruner.masks) == expected


def test_a_pruner_goes_on_from_its_state() -> None:
    def fresh() -> tuple[list[Tensor], topology.GradualMagnitudePruner]:
        weights: list[Tensor] = [nn.Parameter(_rand(8, 8).float())]
        return weights, topology.GradualMagnitudePruner(weights, initial=0, final=0.7, start=0, end=20, every=4)

    whole, pruner = fresh()
    for step in range(20):
        _pruned(1, pruner, whole, step)
    first, begun = fresh()
    for step in range(9):
        _pruned(1, begun, first, step)
    kept = io.BytesIO()
    torch.save({"weights": first, "pruner": begun.state_dict()}, kept)
    kept.seek(0)
    state = torch.load(kept)
    second, other = fresh()
    second[0].data.copy_(state["weights"][0])
    other.load_state_dict(copy.deepcopy(state["pruner"]))
    for step in range(9, 20):
        _pruned(1, other, second, step)
    assert torch.equal(second[0], whole[0])
    with pytest.raises(ValueError, match="masks are those of other parameters"):
        topology.GradualMagnitudePruner(
            [torch.zeros(3)], initial=0, final=0.5, start=0, end=1, every=1
        ).load_state_dict(state["pruner"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"final": 0.1, "initial": 0.5}, ValueError, "final must be at least initial, got 0.1 < 0.5"),
        ({"final": 1.0}, ValueError, "final must be below 1"),
        ({"regrow": -0.1}, ValueError, r"regrow must be in \[0, 1\]"),
        ({"end": 0}, ValueError, "end must be an integer >= 1"),
        ({"every": 0}, ValueError, "every must be an integer >= 1"),
        ({"scope": "row"}, ValueError, "scope must be one of"),
        ({"parameters": []}, ValueError, "parameters must hold at least one tensor"),
    ],
)
def test_pruners_refuse_what_they_cannot_be(options: dict[str, object], error: type[Exception], message: str) -> None:
    good: dict[str, object] = {"parameters": [torch.zeros(3)], "initial": 0.0, "final": 0.5, "start": 0, "end": 5}
    with pytest.raises(error, match=message):
        topology.GradualMagnitudePruner(**{**good, "every": 1, **options})  # type: ignore[arg-type]


def test_similarity_of_heads_is_that_of_what_they_attend_to() -> None:
    """Against scipy's Jensen-Shannon distance; the values of a head, and padding, play no part."""
    x, mask = _rand(2, 5, 8), torch.tensor([[True] * 5, [True, True, True, False, False]])
    layers = [topology.HeadAttention(8, 2, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1)]
    layers[1].outputs.keep([1])
    model = nn.ModuleList(layers)
    found = topology.head_similarity(model, lambda: [layer(x, mask) for layer in layers])
    maps = torch.cat([layer.shares(x, mask) for layer in layers], 1).detach().numpy()
    assert maps.shape == (2, 3, 5, 5)
    for g in range(3):
        for h in range(3):
            pairs = [(maps[b, g, i], maps[b, h, i]) for b in range(2) for i in range(5) if mask[b, i]]
            expected = 1 - np.mean([jensenshannon(one, other, 2) ** 2 for one, other in pairs])
            assert abs(found[g, h].item() - expected) < 1e-9
    with torch.no_grad():
        layers[0].project[2].normal_()
    again = topology.head_similarity(model, lambda: [layer(x, mask) for layer in layers])
    torch.testing.assert_close(again, found)
    with pytest.raises(ValueError, match="call must run all layers"):
        topology.head_similarity(model, lambda: layers[0](x))
    with pytest.raises(ValueError, match="no HeadAttention inside"):
        topology.head_similarity(nn.Linear(1, 1), lambda: None)


def test_the_best_head_of_each_layer_stays() -> None:
    model = topology.GraphTransformer(3, 8, 4, 2, 2)
    importance = torch.tensor([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 5.5, 0.5]])
    for share, first, second in (
        (0.25, [0], [2]),
        (0.5, [0, 1, 2], [2]),
        (0.6, [0, 1, 2, 3], [2]),
        (1.0, [0, 1, 2, 3], [0, 1, 2, 3]),
    ):
        model.keep_best_heads(importance, share)
        opened = [layer.attention.outputs.open.nonzero().flatten().tolist() for layer in model.stack.layers]  # type: ignore[union-attr, operator]
        assert opened == [first, second]
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        model.keep_best_heads(importance, 0.0)
    with pytest.raises(ValueError, match="importance must have shape"):
        model.keep_best_heads(importance[:1], 0.5)


def test_a_mask_of_queries_and_keys_hides_what_comes_later() -> None:
    attention = topology.HeadAttention(4, 2, generator=torch.Generator().manual_seed(0)).double()
    x = _rand(2, 5, 4)
    found = attention(x, torch.ones(1, 5, 5, dtype=torch.bool).tril())
    for n in range(1, 6):
        torch.testing.assert_close(found[:, n - 1], attention(x[:, :n])[:, -1])
    causal = topology.HeadAttention(4, 2, causal=True, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(causal(x), found)


def test_heads_that_are_cut_have_no_parameters_and_their_weights_are_multiplied_in() -> None:
    attention = topology.HeadAttention(8, 4, generator=torch.Generator().manual_seed(0)).double()
    x, parts = _rand(2, 5, 8), []
    for head in range(4):
        attention.outputs.keep([head])
        parts.append(attention(x) - attention.bias)
    attention.outputs.keep([0, 1, 2, 3])
    attention.cut(torch.tensor([0.0, 1.0, 0.0, 0.5]))
    torch.testing.assert_close(attention(x), parts[1] + parts[3] / 2 + attention.bias)
    assert attention.project.shape == (3, 2, 2, 8)
    with pytest.raises(ValueError, match=r"weights must be 2, got shape \(3,\)"):
        attention.cut(torch.zeros(3))
    attention.cut(torch.zeros(2))
    torch.testing.assert_close(attention(x), attention.bias.expand(2, 5, 8))
