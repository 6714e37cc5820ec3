"""Filters on grids and readers of instructions: Kalman's recursion, the forward-backward algorithm, torch's cells."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pullback.uncertainty import (
    InstructionDecoder,
    LingUNet,
    attend,
    belief_loss,
    compass_turns,
    egocentric_kernels,
    histogram_filter,
    motion_kernel,
    shift_belief,
)


def _g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=_g(seed), dtype=torch.float64)


def _belief(*shape: int) -> Tensor:
    return _normal(*shape).flatten(-3).log_softmax(-1).view(shape)


@pytest.mark.parametrize("boundary", ["absorb", "reflect", "block"])
def test_mass_is_kept_but_where_it_leaves(boundary: str) -> None:
    moved = shift_belief(_belief(4, 3, 3), motion_kernel(_normal(4, 3, 3)), turns=compass_turns(3), boundary=boundary)
    total = moved.exp().sum().item()
    assert total < 0.9 if boundary == "absorb" else total == pytest.approx(1)


def test_a_walker_who_turns_goes_on_in_the_new_direction() -> None:
    """Two steps ahead, right, ahead: seen from north."""
    ahead, right = torch.full((2, 3, 3), -1e3)
    ahead[0, 1] = right[1, 2] = 1e3
    belief = torch.full((4, 5, 5), -torch.inf)
    belief[0, 4, 0] = 0.0
    for move in (ahead, ahead, right, ahead):
        belief = shift_belief(belief, motion_kernel(egocentric_kernels(move)), turns=compass_turns(3))
    assert belief.flatten().argmax().item() == (1 * 5 + 2) * 5 + 2


def test_walls_take_what_the_words_leave() -> None:
    words, walls = _normal(1, 3, 3), _normal(4, 4, 3, 3)
    start = torch.full((1, 4, 4), -torch.inf, dtype=torch.float64)
    start[0, 1, 2] = 0.0
    moved = shift_belief(start, motion_kernel(words), local=walls)
    together = motion_kernel(words[0], walls[1, 2]).exp()
    torch.testing.assert_close(moved[0, :3, 1:4].exp(), together)


def test_the_smoother_is_the_forward_backward_algorithm() -> None:
    prior, kernels, likelihoods = _belief(1, 2, 3), motion_kernel(_normal(3, 1, 3, 3)), _normal(3, 1, 2, 3)
    found = histogram_filter(prior, kernels, likelihoods, boundary="block", smoother=True)
    eye = torch.eye(6, dtype=torch.float64).log().view(6, 1, 2, 3)
    matrices = [shift_belief(eye, kernel, boundary="block").exp().flatten(1) for kernel in kernels]
    exact = torch.zeros(3, 6, dtype=torch.float64)
    for path in itertools.product(range(6), repeat=4):
        weight = prior.flatten()[path[0]].exp()
        for t in range(3):
            weight = weight * matrices[t][path[t], path[t + 1]] * likelihoods[t].flatten()[path[t + 1]].exp()
        for t in range(3):
            exact[t, path[t + 1]] += weight
    torch.testing.assert_close(found.log_belief.exp().flatten(1), exact / exact.sum(1, keepdim=True))
    assert found.log_evidence.sum().exp().item() == pytest.approx(exact[0].sum().item())


def test_the_gradient_through_the_belief_can_be_cut() -> None:
    prior = _belief(1, 3, 3).requires_grad_()
    args = motion_kernel(_normal(4, 1, 3, 3)), _normal(4, 1, 3, 3)
    for truncate, reached in ((2, (True, True, False, False)), (None, (True, True, True, True))):
        found = histogram_filter(prior, *args, boundary="reflect", truncate=truncate)
        for t in range(4):
            (slope,) = torch.autograd.grad(found.log_belief[t, 0, 0, 0], prior, retain_graph=True)
            assert bool((slope != 0).any()) is reached[t]


def test_poses_count_from_where_they_are() -> None:
    belief = _belief(2, 4, 3, 5)
    pose = torch.tensor([[0, 2, 4], [3, 0, 1]])
    expected = -(belief[0, 0, 2, 4] + belief[1, 3, 0, 1]) / 2
    torch.testing.assert_close(belief_loss(belief, pose), expected)
    with pytest.raises(ValueError, match="pose must lie in 4 headings, 3 rows and 5 columns"):
        belief_loss(belief, pose.flip(-1))


def test_a_decoder_reads_short_instructions_as_if_alone() -> None:
    decoder = InstructionDecoder(7, 3, generator=_g()).double()
    whole = decoder(torch.tensor([[3, 5, 0, 0], [1, 2, 4, 6]]), 4)
    alone = decoder(torch.tensor([3, 5]), 4)
    torch.testing.assert_close(whole.action[0], alone.action)
    torch.testing.assert_close(whole.observation_weights[0, :, :2], alone.observation_weights)
    assert whole.action_weights[0, :, 2:].abs().max() == 0
    with pytest.raises(ValueError, match=r"words must be in 0..6, got 1 to 7"):
        decoder(torch.tensor([1, 7]), 2)
    with pytest.raises(ValueError, match="at least one word"):
        decoder(torch.tensor([[1, 2], [0, 0]]), 2)


def test_a_decoder_is_torchs_lstms_and_attention() -> None:
    decoder = InstructionDecoder(5, 2, generator=_g()).double()
    words = torch.tensor([1, 4, 2])
    keys, (last, _) = decoder.encoder(decoder.embedding(words)[None])
    hidden = last.flatten()[None]
    state = decoder.cell(torch.cat([hidden, hidden], -1), (hidden, torch.zeros_like(hidden)))
    action = attend(decoder.ask_action(state[0]), keys, keys)
    seen = attend(decoder.ask_observation(torch.cat([state[0], action.context], -1)), keys, keys)
    found = decoder(words, 1)
    torch.testing.assert_close(found.action, action.context)
    torch.testing.assert_close(found.observation, seen.context)
    torch.testing.assert_close(found.state, state[0])


def test_every_weight_of_the_decoder_learns() -> None:
    decoder = InstructionDecoder(5, 3, generator=_g())
    found = decoder(torch.tensor([[1, 4, 2]]), 2)
    (found.action.sin().sum() + found.observation.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in decoder.parameters())


def test_words_write_the_filters() -> None:
    network = LingUNet(2, 3, 4, generator=_g())
    place = torch.rand(1, 2, 4, 4, generator=_g())
    one, other = (network(place, torch.tensor([words])) for words in ([1.0, 0, 1, 0], [0, 1.0, 0, 1]))
    assert not torch.allclose(one, other)
    torch.testing.assert_close(network(place, torch.tensor([[5.0, 0, 2, 0]])), one)  # their direction counts
    with pytest.raises(ValueError, match="words must be a multiple of levels, got 3 and 2"):
        LingUNet(2, 3, 3)


def test_one_map_is_read_for_many_words() -> None:
    for normalize in (False, True):
        network = LingUNet(2, 3, 4, outputs=2, normalize=normalize, generator=_g()).double()
        place, words = _normal(2, 1, 2, 4, 4), _normal(2, 3, 4)
        found = network(place, words)
        torch.testing.assert_close(found, network(place.expand(-1, 3, -1, -1, -1), words))
        torch.testing.assert_close(found[1, 2], network(place[1, 0], words[1, 2]))


def test_normalised_maps_hide_their_contrast() -> None:
    network = LingUNet(1, 3, 2, levels=1, normalize=True, generator=_g()).double()
    torch.nn.init.zeros_(network.down[0].bias)
    place, words = _normal(1, 8, 8), _normal(2)
    torch.testing.assert_close(network(100 * place, words), network(10 * place, words), rtol=1e-3, atol=1e-3)
