"""Worlds of blocks: against a plain simulator that moves one block after the other, and pictures read back."""

from __future__ import annotations

import pytest
import torch

from pullback.dynamics import AlignedTransition, BlockState, BlockWorld, GraphTransition

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def scenes(world: BlockWorld, count: int, seed: int = 0) -> tuple[BlockState, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    state = world.sample(count, colours=2, generator=g)
    return state, torch.randint(world.objects, (count,), generator=g), torch.randint(4, (count,), generator=g)


def moved_by_hand(
    world: BlockWorld, cells: list[tuple[int, int]], shapes: list[int], colours: list[int], target: int, move: int
) -> list[tuple[int, int]]:
    """From the front backwards: a block asks the one ahead to go first, and goes if the cell is then free."""
    group = {target}
    if world.rules == "team":
        group = {i for i, c in enumerate(colours) if c == colours[target]}
    if world.rules == "sticky":
        waiting = [target]
        while waiting:
            i = waiting.pop()
            for j in range(len(cells)):
                apart = abs(cells[i][0] - cells[j][0]) + abs(cells[i][1] - cells[j][1])
                if j not in group and colours[j] == colours[i] and apart == 1:
                    group.add(j)
                    waiting.append(j)
    down, right = STEPS[move]
    cells, done = list(cells), set()

    def go(i: int) -> None:
        if i in done:
            return
        done.add(i)
        ahead = (cells[i][0] + down, cells[i][1] + right)
        if not all(0 <= x < world.grid for x in ahead):
            return
        if ahead in cells:
            j = cells.index(ahead)
            if j not in group and shapes[i] > shapes[j]:
                group.add(j)
            if j in group:
                go(j)
        if ahead not in cells:
            cells[i] = ahead

    for i in sorted(group, key=lambda i: -(cells[i][0] * down + cells[i][1] * right)):
        go(i)
    return cells


@pytest.mark.parametrize("rules", ["push", "sticky", "team"])
@pytest.mark.parametrize(("objects", "grid"), [(4, 3), (5, 5), (1, 2), (4, 2)])
def test_steps_equal_those_of_a_plain_simulator(rules: str, objects: int, grid: int) -> None:
    world = BlockWorld(objects, rules=rules, grid=grid)
    state, target, move = scenes(world, 400)
    after = world.step(state, target, move)
    for i in range(400):
        cells = [tuple(c) for c in state.cells[i].tolist()]
        expected = moved_by_hand(
            world, cells, state.shapes[i].tolist(), state.colours[i].tolist(), int(target[i]), int(move[i])
        )
        assert [tuple(c) for c in after.cells[i].tolist()] == expected
        assert len(set(expected)) == objects
    assert torch.equal(after.colours, state.colours)


@pytest.mark.parametrize("rules", ["push", "sticky", "team"])
def test_order_and_batch_of_blocks_do_not_matter(rules: str) -> None:
    world = BlockWorld(5, rules=rules)
    state, target, move = scenes(world, 60)
    after, order = world.step(state, target, move), torch.tensor([4, 2, 0, 1, 3])
    mixed = world.step(BlockState(*(x[:, order] for x in state)), order.argsort()[target], move)
    assert torch.equal(mixed.cells, after.cells[:, order])
    folded = world.step(BlockState(*(x.unflatten(0, (6, 10)) for x in state)), target.view(6, 10), move.view(6, 10))
    assert torch.equal(folded.cells.flatten(0, 1), after.cells)
    assert torch.equal(world.step(BlockState(*(x[0] for x in state)), target[0], move[0]).cells, after.cells[0])


def test_pictures_show_each_block_in_its_cell_and_colour() -> None:
    world = BlockWorld(4)
    state, _, _ = scenes(world, 50)
    images, masks = view = world.render(state)
    assert torch.equal(view.objects()[:, 2], torch.cat([images, masks[:, 2:3]], 1))
    assert images.shape == (50, 3, 32, 32)
    assert bool((images >= 0).all())
    assert bool((masks.sum(1) <= 1).all())
    pixel = torch.arange(32.0) - 1
    for axis, line in ((0, pixel[:, None]), (1, pixel[None])):
        place = (masks * line).sum((-1, -2)) / masks.sum((-1, -2))
        assert torch.equal((place / 6).floor().long(), state.cells[..., axis])
    palette = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]]).float()
    for k in range(4):
        painted = (images * masks[:, k : k + 1]).sum((-1, -2)) / masks[:, k].square().sum((-1, -2))[:, None]
        torch.testing.assert_close(painted, palette[state.colours[:, k]])


def test_shapes_differ_at_every_size() -> None:
    for size in (20, 32, 64):
        world = BlockWorld(1, size=size)
        five = BlockState(torch.zeros(5, 1, 2, dtype=torch.int64), torch.arange(5)[:, None], torch.zeros(5, 1).long())
        masks = world.render(five).masks.flatten(1)
        assert torch.pdist(masks).min() > 0.2 * size / 5
        assert bool((masks.amax(1) >= 0.75).all())


def test_only_the_atoms_that_are_allowed_occur_and_few_colours_a_scene() -> None:
    atoms = torch.zeros(5, 7, dtype=torch.bool)
    atoms[torch.arange(7) % 5, torch.arange(7)] = True
    state = BlockWorld(5).sample(500, atoms=atoms, colours=3, generator=torch.Generator().manual_seed(0))
    assert bool(atoms[state.shapes, state.colours].all())
    assert max(len(set(row)) for row in state.colours.tolist()) == 3
    assert bool((state.colours.flatten().bincount(minlength=7) > 200).all())
    flat = 5 * state.cells[..., 0] + state.cells[..., 1]
    assert all(len(set(row)) == 5 for row in flat.tolist())
    again = BlockWorld(5).sample(500, atoms=atoms, colours=3, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(state, again, strict=True))


def test_actions_say_where_and_what() -> None:
    world = BlockWorld(2)
    state = BlockState(torch.tensor([[0, 4], [2, 2]]), torch.tensor([0, 1]), torch.tensor([3, 4]))
    assert world.actions(state, torch.tensor(1), torch.tensor(2)).tolist() == [[-1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert world.attributes(state).tolist() == [[0, 3, 0, 4], [1, 4, 2, 2]]


def test_wrong_use_is_named(without_shape_checks: None) -> None:
    world, zero = BlockWorld(2), torch.tensor(0)
    state = BlockState(torch.tensor([[0, 4], [2, 2]]), torch.tensor([0, 1]), torch.tensor([3, 4]))
    for match, call in (
        (r"rules must be one of", lambda: BlockWorld(2, rules="pull")),
        (r"objects must be in 1\.\.4", lambda: BlockWorld(5, grid=2)),
        (r"size must be an integer >= 20", lambda: BlockWorld(2, size=19)),
        (r"target must be in 0\.\.1, got 2\.\.2", lambda: world.step(state, torch.tensor(2), zero)),
        (r"move must be in 0\.\.3, got 4\.\.4", lambda: world.step(state, zero, torch.tensor(4))),
        (r"target must have shape \(\)", lambda: world.step(state, torch.tensor([0]), zero)),
        (
            r"state.colours must be in 0\.\.6, got 3\.\.7",
            lambda: world.render(state._replace(colours=torch.tensor([3, 7]))),
        ),
        (r"state.shapes must have shape \(2,\)", lambda: world.render(state._replace(shapes=torch.tensor([3])))),
        (r"state.cells must have shape", lambda: BlockWorld(3).render(state)),
        (r"atoms must be booleans of shape", lambda: world.sample(2, atoms=torch.zeros(5, 7, dtype=torch.bool))),
        (r"colours must be in 1\.\.7", lambda: world.sample(2, colours=8)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="target must hold integers"):
        world.step(state, torch.tensor(0.5), zero)


def test_transitions_move_with_the_order_of_slots() -> None:
    torch.manual_seed(0)
    slots, actions, order = torch.randn(5, 4, 3), torch.randn(5, 4, 2), torch.tensor([2, 0, 3, 1])
    graph, aligned = GraphTransition(3, 2), AlignedTransition(4, 3, 2)
    torch.testing.assert_close(graph(slots[:, order], actions[:, order]), graph(slots, actions)[:, order])
    by_first = aligned(slots, actions, slots[..., 0].argsort(-1))
    mixed = aligned(slots[:, order], actions[:, order], slots[:, order, 0].argsort(-1))
    torch.testing.assert_close(mixed, by_first[:, order])


def test_an_order_that_is_none_is_refused(without_shape_checks: None) -> None:
    model, slots, actions = AlignedTransition(2, 1, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)
    with pytest.raises(ValueError, match=r"order must hold 0\.\.1, each once"):
        model(slots, actions, torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match="must be of 2 slots"):
        model(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.tensor([[0, 1, 2]]))
    with pytest.raises(TypeError, match="order must hold integers"):
        model(slots, actions, torch.zeros(1, 2))
