from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pullback import discrete


def _network(recycle: bool = True, start: float = 0.0) -> discrete.HaltingTransformer:
    g = torch.Generator().manual_seed(3)
    bias = discrete.RelativePositionBias(2, 2, generator=g)
    network = discrete.HaltingTransformer(8, 2, 4, recycle=recycle, bias=bias, start=start, generator=g).double()
    with torch.no_grad():
        for score in network.score:
            score[-1].weight.mul_(4)  # so that some tokens live and some do not
    return network


def _batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 9, generator=generator) < 0.8
    mask[0, 0] = False  # a row without any token
    return x, torch.randint(6, (2, 3, 9, 2), generator=generator), mask


def test_a_mask_of_zero_silences_a_key_and_has_the_derivative_of_what_it_would_have_said(
    generator: torch.Generator,
) -> None:
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 2), (4, 2), (4, 5)))
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    got = discrete.masked_attention(q, k, v, mask)
    torch.testing.assert_close(got, torch.softmax(q @ k[::2].T / math.sqrt(2), -1) @ v[::2])
    torch.testing.assert_close(got, discrete.masked_attention(q, k, v, mask > 0))
    weights = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((got * weights).sum(), mask)
    step = torch.tensor([0, 1e-6, 0, 0], dtype=torch.float64)
    moved = discrete.masked_attention(q, k, v, mask.detach() + step)
    torch.testing.assert_close(gradient[1], ((moved - got) * weights).sum().detach() / 1e-6, rtol=1e-4, atol=0)


def test_a_query_without_a_key_gets_zero() -> None:
    q = torch.ones(2, 3, requires_grad=True)
    got = discrete.masked_attention(q, torch.ones(4, 3), torch.ones(4, 1), torch.zeros(4))
    assert (got == 0).all()
    assert (discrete.masked_attention(q, torch.ones(0, 3), torch.ones(0, 2), torch.ones(0)) == 0).all()
    (gradient,) = torch.autograd.grad(got.sum(), q)
    assert torch.isfinite(gradient).all()


def test_a_silenced_key_far_above_the_others_leaves_values_and_gradients_finite() -> None:
    q, k = torch.ones(1, 1), torch.tensor([[0.0], [500.0]])
    mask = torch.tensor([1.0, 0.0], requires_grad=True)
    got = discrete.masked_attention(q, k, torch.tensor([[2.0], [7.0]]), mask)
    assert got.item() == 2
    (gradient,) = torch.autograd.grad(got.sum(), mask)
    assert torch.isfinite(gradient).all()
    assert gradient[1] > 1e18


def test_positions_that_differ_alike_have_one_bias(generator: torch.Generator) -> None:
    bias = discrete.RelativePositionBias(3, 2, generator=generator)
    cells = torch.tensor([[0, 0], [1, 2], [5, 9], [6, 11], [2, 4]])
    found = bias(cells)
    torch.testing.assert_close(found[:, 0, 1], found[:, 2, 3])
    torch.testing.assert_close(found[:, 0, 3], found[:, 0, 4])  # both beyond the reach
    assert (found[:, 0, 1] != found[:, 1, 0]).all()


def test_positions_are_integers(without_shape_checks: None) -> None:
    bias = discrete.RelativePositionBias(3, 2)
    with pytest.raises(TypeError, match="positions must be an integer tensor"):
        bias(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"positions must have shape \(..., n, 2\)"):
        bias(torch.zeros(5, 3, dtype=torch.long))


def test_halting_is_for_good_and_the_best_is_kept() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.7, 0.4], [0.1, 0.3, 0.2, 0.0]], requires_grad=True)
    first = discrete.halting_gate(scores)
    assert first.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
    second = discrete.halting_gate(scores.flip(-1), first)
    assert second.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]  # of 0.4 and 0.2 the better one, of the one left that one
    (gradient,) = torch.autograd.grad((second * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum(), scores)
    # d/ds of s1_i s2_i, other factors at their hard values: as the second score of its mirror, and as the first
    assert gradient.tolist() == [[1.0, 100.0, 0.0, 1.0], [0.0, 10.0, 10.0, 0.0]]
    with pytest.raises(ValueError, match="threshold must be in"):
        discrete.halting_gate(scores, threshold=1.0)


@pytest.mark.parametrize("recycle", [True, False])
def test_gathered_tokens_give_what_masked_ones_give(recycle: bool, generator: torch.Generator) -> None:
    network, (x, positions, mask) = _network(recycle), _batch(generator)
    learning = network(x, positions, mask)
    saving = network(x, positions, mask, gather=True)
    for a, b in zip(learning, saving, strict=True):
        torch.testing.assert_close(a, b)
    shares = [(lived.sum() / mask.sum()).item() for lived in learning.alive.unbind(-2)]
    assert shares[0] == 1
    assert 0.05 < shares[-1] < shares[1] < 0.95
    assert (learning.alive.diff(dim=-2) <= 0).all()
    left = mask & (learning.alive[..., -1, :] == 0)
    assert ((learning.features[left] != 0).any(-1) == recycle).all()
    assert not learning.features[~mask].any() or recycle
    assert bool(learning.rescued.any()) == bool(((learning.scores <= 0.5).all(-1) & mask.any(-1)[..., None]).any())


def test_halted_tokens_change_nothing_but_teach_their_scores(generator: torch.Generator) -> None:
    network, (x, positions, mask) = _network(recycle=False), _batch(generator)
    output = network(x, positions, mask)
    weights = [parameter for score in network.score for parameter in score.parameters()]
    found = torch.autograd.grad(output.features.square().sum(), weights, allow_unused=True)
    assert all(g is not None and bool((g != 0).any()) for g in found)
    imposed = network(x, positions, mask, alive=output.alive > 0)
    torch.testing.assert_close(imposed.features, output.features)
    assert all(g is None for g in torch.autograd.grad(imposed.features.sum(), weights, allow_unused=True))


def test_no_tokens_give_no_tokens() -> None:
    network = _network()
    for gather in (False, True):
        output = network(torch.zeros(2, 0, 8).double(), torch.zeros(2, 0, 2, dtype=torch.long), gather=gather)
        assert output.features.shape == (2, 0, 8)
        assert output.alive.shape == (2, 4, 0)
        assert not output.rescued.any()


def test_multiply_adds_are_those_that_run() -> None:
    network = discrete.HaltingTransformer(8, 2, 1)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 11, 8))
    assert counter.get_total_flops() == 2 * discrete.transformer_macs(torch.tensor([11.0]), 8)


def test_padding_is_left_out_of_sparsity() -> None:
    alive, mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), torch.tensor([True, True, False])
    assert discrete.sparsity_loss(alive, torch.tensor([0.5, 1.0, 9.0]), mask=mask).item() == pytest.approx(0.5)
    assert discrete.sparsity_loss(alive[:, :0]).item() == 0


def test_peaks_are_the_best_within_their_radius(generator: torch.Generator) -> None:
    logits = torch.randn(4, 30, 3, generator=generator)
    positions, mask = 20 * torch.rand(4, 30, 2, generator=generator), torch.rand(4, 30, generator=generator) < 0.8
    found = discrete.find_centers(logits, positions, radius=4.0, threshold=0.4, mask=mask)
    for row in range(4):
        best = torch.where(mask[row], torch.sigmoid(logits[row]).amax(-1), -1)
        near = torch.cdist(positions[row], positions[row]) <= 4
        peaks = [i for i in range(30) if best[i] >= 0.4 and best[i] == best[near[i]].max()]
        peaks.sort(key=lambda i: -float(best[i]))
        count = int((found.labels[row] >= 0).sum())
        assert count == len(peaks)
        torch.testing.assert_close(found.positions[row, :count], positions[row, peaks])
        torch.testing.assert_close(found.scores[row, :count], best[peaks])
        assert found.labels[row, :count].tolist() == logits[row, peaks].argmax(-1).tolist()
        assert not found.scores[row, count:].any()
    empty = discrete.find_centers(logits[:, :0], positions[:, :0], radius=1.0)
    assert empty.scores.shape == (4, 0)


def test_right_detections_are_those_of_the_best_matching_where_objects_are_far_apart(
    generator: torch.Generator,
) -> None:
    centers = torch.tensor([[5.0, 5.0], [5.0, 25.0], [25.0, 5.0], [0.0, 0.0]]).expand(6, 4, 2)
    labels = torch.tensor([0, 1, 1, -1]).expand(6, 4)
    spots = centers[:, :3].repeat(1, 3, 1) + 3 * torch.randn(6, 9, 2, generator=generator)
    scores = torch.rand(6, 9, generator=generator).sort(-1, descending=True).values
    found = discrete.Detections(spots, torch.randint(2, (6, 9), generator=generator), scores)
    right = 0
    for row in range(6):
        fits = (torch.cdist(spots[row], centers[row]) <= 4) & (found.labels[row][:, None] == labels[row])
        fits &= found.scores[row][:, None] >= 0.3
        pairs = linear_sum_assignment(-fits.double().numpy())
        right += int(fits[pairs].sum())
    result = discrete.detection_scores(found, centers, labels, radius=4.0, threshold=0.3)
    assert result.recall == pytest.approx(right / 18)
    assert result.precision == pytest.approx(right / int((scores >= 0.3).sum()))
    assert result.f1 == pytest.approx(2 / (1 / result.recall + 1 / result.precision))
    nothing = discrete.Detections(spots[:, :0], found.labels[:, :0], scores[:, :0])
    assert discrete.detection_scores(nothing, centers, labels, radius=4.0) == (1.0, 0.0, 0.0)
