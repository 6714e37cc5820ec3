"""Slots, symbols and rules: exact choices, symmetry, what symbols may do, retrieval by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pullback import discrete

WORDS = discrete.SymbolicAttributes(["shape", "colour"], [["round", "square"], ["red", "green", "blue"]], lambda x: x)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rules(**words: int) -> discrete.RuleTransition:
    torch.manual_seed(0)
    return discrete.RuleTransition(4, 3, 2, **{"rules": 3, "steps": 3, "width": 8, "hidden": 8, **words}).double()


def test_hard_choices_are_exactly_one_hot_and_no_slot_is_primary_twice() -> None:
    model, args = rules(), (drawn(64, 5, 4), drawn(64, 5, 3), drawn(64, 5, 2))
    generator = torch.Generator().manual_seed(1)
    for options in ({}, {"sample": True, "generator": generator}, {"temperature": 0.1}):
        found = model(*args, **options)
        for choice in (found.primary, found.rule, found.context):
            assert bool(((choice == 0) | (choice == 1)).all())
            assert torch.equal(choice.sum(-1), found.primary.sum(-1))
        assert bool((found.primary.sum(-2) <= 1).all())
        assert not bool((found.primary * found.context).any())
        still = found.primary.sum(-2) == 0
        assert torch.equal(found.slots[still], args[0][still])
        assert bool((found.slots != args[0])[~still].any(-1).all())


def test_a_hard_update_is_that_of_the_chosen_rule_and_context() -> None:
    model, (s, words, a) = rules(), (drawn(32, 4, 4), drawn(32, 4, 3), drawn(32, 4, 2))
    found = model(s, words, a)
    for b in range(32):
        expected = s[b].clone()
        for step in range(3):
            if not found.primary[b, step].any():
                continue
            p, r, c = (int(x[b, step].argmax()) for x in (found.primary, found.rule, found.context))
            given = torch.cat([s[b, p], a[b, p], s[b, c], a[b, c]])
            expected[p] += torch.relu(given @ model.first[r] + model.first_bias[r, 0]) @ model.second[r]
        torch.testing.assert_close(found.slots[b], expected)


def test_the_soft_update_tends_to_the_hard_one() -> None:
    model, args = rules(), (drawn(16, 4, 4), drawn(16, 4, 3), drawn(16, 4, 2))
    torch.testing.assert_close(model(*args, hard=False, temperature=1e-5).slots, model(*args).slots)


def test_permuted_slots_give_permuted_predictions() -> None:
    model, args, order = rules(), (drawn(8, 5, 4), drawn(8, 5, 3), drawn(8, 5, 2)), torch.tensor([3, 0, 4, 2, 1])
    found, other = model(*args), model(*(x[:, order] for x in args))
    torch.testing.assert_close(other.slots, found.slots[:, order])
    torch.testing.assert_close(other.primary, found.primary[..., order])


def test_symbols_select_and_do_nothing_else() -> None:
    """With one rule, one slot beside it and every slot updated, nothing is left to select."""
    model = rules(rules=1, steps=2)
    with torch.no_grad():
        model.nothing.fill_(-1e6)
    s, a = drawn(8, 2, 4), drawn(8, 2, 2)
    torch.testing.assert_close(model(s, drawn(8, 2, 3, seed=1), a).slots, model(s, drawn(8, 2, 3, seed=2), a).slots)


def test_every_choice_gets_the_gradient_of_its_own_change() -> None:
    """Straight-through: a slot that was not chosen learns what choosing it would have done to it."""
    model, (s, words, a) = rules(steps=1), (drawn(1, 3, 4), drawn(1, 3, 3), drawn(1, 3, 2))
    with torch.no_grad():
        model.nothing.fill_(1e3)  # nothing is chosen
    assert torch.equal(model(s, words, a).slots, s)
    model.nothing.data.fill_(0.0)
    words.requires_grad_()
    model(s, words, a).slots[0, 0].sum().backward()
    assert words.grad is not None
    assert bool(words.grad.any())


def test_a_transition_learns_who_moves_with_whom() -> None:
    """Slots of the kind of the one that is pushed move: only symbols tell the kind."""
    torch.manual_seed(0)
    model = discrete.RuleTransition(2, 3, 1, rules=2, steps=4, width=16, hidden=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    g = torch.Generator().manual_seed(0)

    def scenes(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        slots, kinds = torch.randn(count, 4, 2, generator=g), torch.randint(3, (count, 4), generator=g)
        pushed = nn.functional.one_hot(torch.randint(4, (count,), generator=g), 4)
        moved = (kinds == (kinds * pushed).sum(-1, keepdim=True))[..., None]
        return slots, nn.functional.one_hot(kinds, 3).float(), pushed[..., None].float(), slots + moved

    for _ in range(250):
        slots, words, actions, after = scenes(64)
        loss = (model(slots, words, actions).slots - after).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    slots, words, actions, after = scenes(500)
    with torch.no_grad():
        error = (model(slots, words, actions).slots - after).square().mean() / (slots - after).square().mean()
    assert error < 0.1


def test_symbols_of_known_attributes_and_their_words() -> None:
    truth = torch.tensor([[1, 2], [0, 0]])
    assert WORDS.encode(truth).tolist() == [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]]
    assert WORDS.words(truth[0]) == ["square", "blue"]
    assert torch.equal(WORDS.decide(WORDS.encode(truth).float()), truth)
    logits = drawn(2, 5, seed=3)
    expected = nn.functional.cross_entropy(logits[:, :2], truth[:, 0])
    expected = expected + nn.functional.cross_entropy(logits[:, 2:], truth[:, 1])
    torch.testing.assert_close(WORDS.loss(logits, truth), expected)
    unknown = torch.tensor([[1, -1], [0, 0]])
    expected = nn.functional.cross_entropy(logits[:, :2], truth[:, 0]) + nn.functional.cross_entropy(
        logits[1:, 2:], truth[1:, 1]
    )
    torch.testing.assert_close(WORDS.loss(logits, unknown), expected)


def test_wrong_use_of_symbols_is_named() -> None:
    with pytest.raises(ValueError, match=r"truth must hold a colour in 0\.\.2, got 3"):
        WORDS.encode(torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match=r"truth must hold a shape in -1\.\.1, got 2"):
        WORDS.loss(torch.zeros(1, 5), torch.tensor([[2, 0]]))
    with pytest.raises(ValueError, match="scorer must return 5 values"):
        WORDS(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="temperature must be > 0"):
        WORDS(torch.zeros(1, 5), temperature=0.0)
    with pytest.raises(ValueError, match="names must be different"):
        discrete.SymbolicAttributes(["a", "a"], [["x"], ["y"]], lambda x: x)
    with pytest.raises(ValueError, match="values of a must be different"):
        discrete.SymbolicAttributes(["a"], [["x", "x"]], lambda x: x)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        discrete.RuleTransition(1, 1, 1, temperature=0.0)
    with pytest.raises(ValueError, match="rules must be an integer >= 1"):
        discrete.RuleTransition(1, 1, 1, rules=0)


def test_actions_find_their_slot_in_any_order() -> None:
    keys, order = 30 * torch.eye(4), torch.tensor([2, 0, 3, 1])
    actions = drawn(4, 2).float()
    found = discrete.match_actions(keys, keys[order], actions[order], hard=True)
    assert torch.equal(found.actions, actions)
    assert found.weights.argmax(-1).tolist() == order.tolist()


def test_assignment_of_sets_of_any_size_of_numbers() -> None:
    slots, order = (
        drawn(5, 6, 3),
        torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(5)]),
    )
    for scale in (1e-150, 1.0, 1e200):
        mixed = (scale * slots).gather(1, order[..., None].expand_as(slots))
        found = discrete.assign_slots(scale * slots, mixed)
        assert torch.equal(found.slots, scale * slots)
        assert torch.equal(found.order, order.argsort(-1))
        assert not bool(found.distance.any())


def test_ranks_by_hand(without_shape_checks: None) -> None:
    scenes = torch.tensor([0.0, 1.0, 2.0, 10.0])[:, None, None].expand(4, 2, 3)
    predicted = torch.tensor([0.1, 0.2, 5.0, 10.0])[:, None, None].expand(4, 2, 3)
    found = discrete.retrieval_metrics(predicted, scenes)
    assert found.ranks.tolist() == [1, 2, 1, 1]
    assert (found.hits, found.reciprocal_rank) == (0.75, 0.875)
    assert discrete.retrieval_metrics(predicted, scenes, k=2).hits == 1.0
    assert (
        discrete.retrieval_metrics(predicted, torch.zeros_like(scenes)).ranks.tolist() == [4] * 4
    )  # ties count against
    with pytest.raises(ValueError, match=r"k must be in 1\.\.4"):
        discrete.retrieval_metrics(predicted, scenes, k=5)
    with pytest.raises(ValueError, match="one shape"):
        discrete.retrieval_metrics(predicted, scenes[:3])


@pytest.mark.parametrize("masked", [True, False])
def test_the_autoencoder_learns_two_squares(masked: bool) -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    model = discrete.SlotAutoencoder(1, 2, 8, size=16, width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=400)

    def scenes(count: int) -> tuple[Tensor, Tensor]:
        masks = torch.zeros(count, 2, 16, 16)
        for i, (a, b) in enumerate(torch.randint(4, (count, 2), generator=g).tolist()):
            masks[i, 0, 4 * a : 4 * a + 4, :4] = masks[i, 1, 4 * b : 4 * b + 4, 12:] = 1.0
        return masks.sum(1, keepdim=True), masks

    for _ in range(400):
        image, masks = scenes(32)
        slots = model.encode(image, masks if masked else None)
        loss = (model.decode(slots).image - image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        image, masks = scenes(64)
        found = model.decode(model.encode(image, masks if masked else None))
        assert (found.image - image).square().mean() < (0.1 if masked else 0.6) * image.square().mean()
        assert bool((found.alphas.sum(1) <= 1 + 1e-6).all())
        if masked:  # each slot draws its own
            assert bool((model.encode(image, masks[:, [1, 0]]) == model.encode(image, masks)[:, [1, 0]]).all())


def test_crops_of_absent_objects_and_at_borders() -> None:
    image = torch.arange(16.0).view(1, 4, 4)
    masks = torch.zeros(3, 4, 4)
    masks[1, 0, 0] = masks[2, 3, 2:] = 1.0
    found = discrete.object_crops(image, masks, 2)
    assert found[:, 0].tolist() == [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[10, 11], [14, 15]]]
