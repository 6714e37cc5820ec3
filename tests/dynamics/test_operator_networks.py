"""Operator networks: one round by hand, what no numbering changes, what holds for every weight."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.dynamics import (
    DeepOperatorNetwork,
    FourierOperator,
    FunctionSpace,
    Mesh,
    MeshProcessor,
    MultigridProcessor,
    StructurePreservingOperator,
    assemble,
    evaluate,
    finite_element_loss,
    grid_mesh,
    load_vector,
    project,
    prolongation,
)


def moved(shape: tuple[int, int] = (3, 3)) -> Mesh:
    """A grid whose inner vertices are displaced."""
    grid = grid_mesh(shape)
    shift = 0.1 * torch.rand(len(grid.vertices), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Mesh(torch.where(grid.boundary[:, None], grid.vertices, grid.vertices + shift), grid.cells)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", [("lagrange", 1), ("lagrange", 2), ("crouzeix_raviart", 1)], ids=str)
def test_one_round_by_hand(kind: tuple[str, int]) -> None:
    """With integrals cell by cell: the slope of at most quadratic functions has its mean at the centre."""
    space = FunctionSpace(moved(), *kind)
    processor = MeshProcessor(space, coefficients=1, sources=1, channels=3, layers=1, generator=generator()).double()
    x = torch.randn(2, space.size, generator=generator(), dtype=torch.float64)
    centres, areas = space.mesh.vertices[space.mesh.cells].mean(1), space.mesh.areas
    stiffness = assemble("stiffness", space).dense()

    def around(c: Tensor) -> Tensor:
        """Mean, slopes and stencil of one function at each coefficient ``[n, 4]``."""
        slopes = torch.autograd.functional.jacobian(lambda p: evaluate(c, space, p).sum(), centres, create_graph=False)
        local = c[space.dofs][:, 3:] if kind == ("lagrange", 2) else c[space.dofs]  # corners integrate to 0
        each = torch.cat([local.mean(1, keepdim=True), slopes], 1)
        rows = []
        for i in range(space.size):
            cells = (space.dofs == i).any(1)
            length = (areas[cells].sum() / stiffness[i, i]).sqrt()
            mean = (areas[cells, None] * each[cells]).sum(0) / areas[cells].sum()
            rows.append(torch.cat([mean[:1], length * mean[1:], -(stiffness[i] @ c / stiffness[i, i])[None]]))
        return torch.stack(rows)

    area = torch.stack([areas[(space.dofs == i).any(1)].sum() / stiffness[i, i] for i in range(space.size)])
    flags = torch.zeros(space.size, 1, dtype=torch.float64)
    flags[space.dirichlet_dofs] = 1
    layer, data = processor.rounds[0], (x[1] * area / area.mean())[:, None]
    seen = F.gelu(processor.look[0](torch.cat([x[:1].mT, around(x[0]), flags], 1)))
    h = processor.lift(data)
    stencils = torch.stack([around(column) for column in h.detach().mT], 2)  # [n, 4, channels]
    messages = torch.einsum("nkc,kco->no", stencils, layer.messages)
    inner, outer = (1 + layer.gates(seen).tanh()).chunk(2, 1)
    h = h + outer * layer.out(inner * (messages + layer.own(torch.cat([h, data], 1))))
    torch.testing.assert_close(processor(x), processor.head(h)[:, 0])


def test_a_v_cycle_by_hand() -> None:
    """With smoothers that double features: twice twice on the fine level around P (4 R h - R h)."""
    mesh = moved((2, 2))
    coarse, fine = FunctionSpace(mesh), FunctionSpace(mesh.refine())
    processor = MultigridProcessor([coarse, fine], boundary=True, channels=1, generator=generator()).double()

    class Double(nn.Module):
        def forward(self, h: Tensor, *others: object) -> Tensor:
            return 2 * h

    processor.rounds = nn.ModuleList(Double() for _ in processor.rounds)
    g = torch.randn(fine.size, generator=generator(), dtype=torch.float64)
    g[fine.free_dofs] = 0
    p = prolongation(coarse, fine).dense()
    lift = torch.where(g == 0, p @ g[: coarse.size], g)  # what the coarse level has, carried inside
    h = 2 * processor.lift(lift[:, None])
    r = p.mT / p.sum(0)[:, None]
    torch.testing.assert_close(r.sum(1), torch.ones(coarse.size).double())
    inner = processor.head(2 * (h + p @ (3 * (r @ h))))[:, 0]
    torch.testing.assert_close(processor(g[None]), torch.where(g == 0, lift + inner, g))


def test_numbering_and_place_do_not_matter_and_sources_count_by_area() -> None:
    mesh = moved()
    order = torch.randperm(len(mesh.vertices), generator=generator())
    where = order.argsort()
    other = Mesh(
        5 * mesh.vertices[order] - 3, where[mesh.cells][torch.randperm(len(mesh.cells), generator=generator())]
    )
    processor = MeshProcessor(
        FunctionSpace(mesh), coefficients=1, sources=1, channels=5, layers=3, generator=generator()
    ).double()
    x = torch.randn(4, 2, len(order), generator=generator(), dtype=torch.float64)
    again = processor.on(FunctionSpace(other))
    smaller = x * torch.tensor([1, 1 / 25], dtype=torch.float64)[:, None]
    torch.testing.assert_close(again(smaller[..., order]), processor(x)[..., order])
    assert again.head.weight is processor.head.weight


def test_what_arrives_of_a_linear_function_does_not_depend_on_the_cells() -> None:
    """Inside, the stencil of the stiffness matrix is zero and slopes are exact, on any mesh."""
    space = FunctionSpace(moved((4, 4)))
    level = MeshProcessor(space, sources=1, channels=1, layers=1).level
    h = (space.dof_points @ torch.tensor([2.0, -3.0], dtype=torch.float64) + 1)[:, None, None]
    mean, along, up, stencil = (level.stencil @ h).view(4, -1)[:, space.free_dofs]
    lengths = level.area.sqrt()[space.free_dofs]
    torch.testing.assert_close(stencil, torch.zeros_like(stencil), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.stack([along, up]), torch.stack([2 * lengths, -3 * lengths]))
    centres, areas = h[space.dofs, 0, 0].mean(1), space.mesh.areas  # the mean over cells is the value at their centre
    patches = [(space.dofs == i).any(1) for i in space.free_dofs]
    torch.testing.assert_close(mean, torch.stack([(areas[p] @ centres[p]) / areas[p].sum() for p in patches]))


def test_it_is_linear_in_sources_and_boundary_alone() -> None:
    mesh = moved((2, 2))
    spaces = [FunctionSpace(mesh), FunctionSpace(mesh.refine())]
    n = spaces[1].size
    kinds = {"coefficients": 1, "sources": 2, "boundary": True, "channels": 4, "generator": generator()}
    for processor in (MeshProcessor(spaces[1], **kinds), MultigridProcessor(spaces, **kinds)):
        processor.double()
        q, x, y = torch.randn(3, 4, n, generator=generator(), dtype=torch.float64)
        x[0] = y[0] = q[0]
        both = torch.cat([q[:1], (2 * x - 3 * y)[1:]])
        torch.testing.assert_close(processor(both), 2 * processor(x) - 3 * processor(y))
        more = torch.cat([2 * q[:1], x[1:]])
        assert bool((processor(more) - 2 * processor(x)).abs().max() > 1e-3)
    general = MultigridProcessor(spaces, coefficients=1, channels=4, generator=generator()).double()
    assert bool(general(torch.zeros(1, n, dtype=torch.float64)).abs().max() > 1e-3)
    large = general(1e6 * q[:1])  # gates are bounded
    assert bool(large.abs().max() < 1e6)


def test_a_level_sees_the_same_from_any_finer_mesh() -> None:
    """Projections of projections: against dense solutions on the coarse meshes, also where they are iterated."""
    meshes = [moved((2, 2))]
    for _ in range(2):
        meshes.append(meshes[-1].refine())
    for degree in (1, 2):
        spaces = [FunctionSpace(mesh, degree=degree) for mesh in meshes]
        processor = MultigridProcessor(spaces, sources=1, channels=2, generator=generator())
        x = torch.randn(spaces[2].size, 3, 1, generator=generator(), dtype=torch.float64)
        told = processor._inputs(x)
        for transfer in processor.transfers:
            transfer.whole = None
        again = processor._inputs(x)
        for k in (0, 1):
            p, mass = prolongation(spaces[k], spaces[2]).dense(), assemble("mass", spaces[2]).dense()
            wanted = torch.linalg.solve(assemble("mass", spaces[k]).dense(), p.mT @ mass @ x[..., 0])
            torch.testing.assert_close(told[k][..., 0], wanted, atol=1e-3, rtol=0)
            torch.testing.assert_close(again[k], told[k])


@pytest.mark.parametrize("degree", [1, 2])
def test_values_at_common_points_are_found_in_single_precision(degree: int) -> None:
    """Far from the origin, where basis functions are not 1 to the last digits at their own points."""
    mesh = grid_mesh((5, 7), low=(100.0, 100.0), high=(101.3, 100.9), dtype=torch.float32)
    spaces = [FunctionSpace(mesh, degree=degree), FunctionSpace(mesh.refine(), degree=degree)]
    processor = MultigridProcessor(spaces, boundary=True, channels=2, generator=generator())
    coarse, fine = (space.dof_points for space in spaces)
    torch.testing.assert_close(fine[processor.transfers[0].places], coarse, rtol=0, atol=1e-4)


def test_products_with_large_stencils_pass_through_transforms() -> None:
    space = FunctionSpace(grid_mesh((10, 10)))
    stencil = MeshProcessor(space, sources=1, channels=1, layers=1).level.stencil
    dense = stencil.matrix.dense()
    assert dense.numel() > 2**15
    h, w = torch.randn(2, space.size, 2, generator=generator(), dtype=torch.float64)

    def energy(h: Tensor, by: Callable[[Tensor], Tensor]) -> Tensor:
        return by(h).square().sum() + by(h).sum()

    ours, theirs = (lambda h: stencil @ h), (lambda h: dense @ h)
    torch.testing.assert_close(torch.func.grad(energy)(h, ours), torch.func.grad(energy)(h, theirs))
    torch.testing.assert_close(torch.func.jvp(ours, (h,), (h,))[1], dense @ h)
    many = torch.stack([w, 2 * w, -w], 1)
    torch.testing.assert_close(torch.func.vmap(ours, in_dims=1)(many), torch.func.vmap(theirs, in_dims=1)(many))
    twice = torch.func.grad(lambda h: torch.func.grad(energy)(h, ours).square().sum())(h)
    torch.testing.assert_close(twice, torch.func.grad(lambda h: torch.func.grad(energy)(h, theirs).square().sum())(h))


def test_a_round_goes_one_cell_far_and_a_cycle_everywhere() -> None:
    meshes = [grid_mesh((2, 2))]
    for _ in range(3):
        meshes.append(meshes[-1].refine())
    spaces = [FunctionSpace(mesh) for mesh in meshes]
    fine = spaces[-1]
    x = torch.randn(1, fine.size, generator=generator())
    for processor, everywhere in (
        (MeshProcessor(fine, sources=1, channels=8, layers=2, generator=generator()), False),
        (MultigridProcessor(spaces, sources=1, channels=8, generator=generator()), True),
    ):
        slope = torch.autograd.functional.jacobian(processor, x)[0, 0]  # of the value at the first corner
        reached = slope != 0
        far = (fine.dof_points - fine.dof_points[0]).norm(dim=1)
        assert bool(reached[far > 1.0].any()) == everywhere
        assert bool(reached[far < 0.1].all())


def test_on_a_deeper_hierarchy_it_is_the_same_operator() -> None:
    """Told on a finer mesh: the same function, embedded, but for the boundary data that only the finer mesh has."""
    meshes = [moved((2, 2))]
    for _ in range(2):
        meshes.append(meshes[-1].refine())
    spaces = [FunctionSpace(mesh) for mesh in meshes]
    processor = MultigridProcessor(
        spaces[:2], coefficients=1, boundary=True, channels=4, generator=generator()
    ).double()
    x = torch.randn(2, spaces[1].size, generator=generator(), dtype=torch.float64)
    x[1, spaces[1].free_dofs] = 0
    embed, deeper = prolongation(spaces[1], spaces[2]), processor.on(spaces)
    fine = embed @ x
    fine[1, spaces[2].free_dofs] = 0
    torch.testing.assert_close(deeper(fine), embed @ processor(x), atol=1e-3, rtol=1e-3)
    fixed = spaces[2].dirichlet_dofs
    fine[1, fixed] += torch.randn(len(fixed), generator=generator(), dtype=torch.float64)
    assert torch.equal(deeper(fine)[fixed], fine[1, fixed])
    deeper(fine).sum().backward()
    assert all(p.grad is not None for p in processor.parameters())
    with pytest.raises(ValueError, match="spaces must be at least the 2 of the processor, got 1"):
        processor.on(spaces[:1])


@pytest.mark.parametrize("kind", [("lagrange", 1), ("lagrange", 2), ("crouzeix_raviart", 1)], ids=str)
def test_boundary_and_constraints_hold_for_every_weight(kind: tuple[str, int]) -> None:
    space = FunctionSpace(moved(), *kind)
    ones = torch.ones(len(space.mesh.cells), dtype=torch.float64)
    functionals = torch.stack([load_vector(ones, space), load_vector(lambda x: x[..., 0], space)])
    values = torch.tensor([0.3, -0.2], dtype=torch.float64)
    data = torch.randn(3, len(space.dirichlet_dofs), generator=generator(), dtype=torch.float64)
    inputs = torch.randn(3, 1, space.size, generator=generator(), dtype=torch.float64)
    for dirichlet in (True, False):
        processor = MeshProcessor(
            space, sources=1, boundary=dirichlet, channels=4, layers=1, generator=generator()
        ).double()
        operator = StructurePreservingOperator(
            space, space, processor, dirichlet=dirichlet, constraint=(functionals, values)
        )
        for _ in range(2):
            u = operator(inputs, data if dirichlet else None)
            torch.testing.assert_close(u @ functionals.mT, values.expand(3, 2))
            assert not dirichlet or torch.equal(u[:, space.dirichlet_dofs], data)
            with torch.no_grad():
                for p in processor.parameters():
                    p.mul_(3)


def test_the_projection_on_a_constraint_is_the_nearest_in_the_weights() -> None:
    """Against the minimiser of sum_i M_ii (y_i - z_i)^2 by its KKT system."""
    space = FunctionSpace(moved())
    b = torch.randn(2, space.size, generator=generator(), dtype=torch.float64)
    c = torch.tensor([1.0, -1.0], dtype=torch.float64)
    operator = StructurePreservingOperator(space, space, _First(), constraint=(b, c))
    z = torch.randn(1, space.size, generator=generator(), dtype=torch.float64)
    d = assemble("mass", space).diagonal()
    kkt = torch.zeros(space.size + 2, space.size + 2, dtype=torch.float64)
    kkt[: space.size, : space.size] = torch.diag(d)
    kkt[: space.size, space.size :], kkt[space.size :, : space.size] = b.mT, b
    wanted = torch.linalg.solve(kkt, torch.cat([d * z[0], c]))[: space.size]
    torch.testing.assert_close(operator(z), wanted)


class _First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., 0, :]


def test_encoding_is_the_projection_on_the_target_space() -> None:
    """From means of cells, exactly what `project` makes of them; from a contained space, the same function."""
    mesh = moved()
    target = FunctionSpace(mesh, degree=2)
    means = torch.randn(2, 1, len(mesh.cells), generator=generator(), dtype=torch.float64)
    piecewise = StructurePreservingOperator(FunctionSpace(mesh, "discontinuous", 0), target, _First())
    torch.testing.assert_close(piecewise(means), project(means[:, 0], target))
    source = FunctionSpace(mesh)
    nested = StructurePreservingOperator(source, target, _First())
    c = torch.randn(1, source.size, generator=generator(), dtype=torch.float64)
    points = torch.rand(50, 2, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(evaluate(nested(c), target, points), evaluate(c[0], source, points))
    assert nested(c.float()).dtype == torch.float32


def test_it_learns_to_solve_and_is_saved() -> None:
    """Harmonic extensions of linear data: the error falls to a fifth."""
    mesh = grid_mesh((2, 2))
    spaces = [FunctionSpace(mesh, "lagrange", 1), FunctionSpace(mesh.refine())]
    space = spaces[1]
    planes = torch.randn(32, 3, generator=generator())
    u = planes @ torch.cat([space.dof_points, torch.ones(space.size, 1)], 1).mT.float()
    processor = MultigridProcessor(spaces, sources=1, boundary=True, channels=16, generator=generator())
    operator = StructurePreservingOperator(space, space, processor, dirichlet=True)
    optimizer = torch.optim.Adam(operator.parameters(), lr=5e-3)
    nothing, data = torch.zeros(32, 1, space.size), u[:, space.dirichlet_dofs]
    losses = []
    for _ in range(80):
        loss = finite_element_loss((operator(nothing, data) - u).double(), space).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 25
    twin = copy.deepcopy(operator)
    for p in twin.parameters():
        nn.init.zeros_(p)
    twin.load_state_dict(operator.state_dict())
    assert torch.equal(twin(nothing, data), operator(nothing, data))
    assert math.isfinite(losses[-1])


def test_wrong_use_is_refused(without_shape_checks: None) -> None:
    mesh = grid_mesh((2, 2))
    space, cells = FunctionSpace(mesh), FunctionSpace(mesh, "discontinuous", 0)
    for one in (cells, FunctionSpace(mesh, "discontinuous", 1)):
        with pytest.raises(ValueError, match="space must join its cells by coefficients at different points, got disc"):
            MeshProcessor(one, sources=1)
    with pytest.raises(ValueError, match="layers must be an integer >= 1, got 0"):
        MeshProcessor(space, sources=1, layers=0)
    with pytest.raises(ValueError, match="coefficients, sources and boundary must be at least 1 field together"):
        MeshProcessor(space)
    with pytest.raises(ValueError, match="sources must be an integer >= 0, got -1"):
        MeshProcessor(space, coefficients=2, sources=-1)
    with pytest.raises(ValueError, match="spaces must be at least 2, got 1"):
        MultigridProcessor([space], sources=1)
    with pytest.raises(ValueError, match="meshes must be nested"):
        MultigridProcessor([space, FunctionSpace(grid_mesh((4, 4)))], sources=1)
    with pytest.raises(ValueError, match="on one mesh"):
        StructurePreservingOperator(space, FunctionSpace(grid_mesh((2, 2))), _First())
    with pytest.raises(ValueError, match="target must have coefficients on the boundary, got discontinuous"):
        StructurePreservingOperator(space, cells, _First(), dirichlet=True)
    with pytest.raises(ValueError, match=r"constraint must have functionals \[k, 9\]"):
        StructurePreservingOperator(space, space, _First(), constraint=(torch.ones(1, 8), torch.ones(1)))
    with pytest.raises(ValueError, match="constraint must have a value for each functional"):
        StructurePreservingOperator(space, space, _First(), constraint=(torch.ones(1, 9), torch.ones(2)))
    with pytest.raises(ValueError, match="boundary must be None for an operator without Dirichlet data"):
        StructurePreservingOperator(space, space, _First())(torch.ones(1, 9), torch.ones(8))


def test_a_fourier_layer_is_a_periodic_convolution() -> None:
    """Against sums over the grid with the kernel that the weights of its frequencies make."""
    operator = FourierOperator(fields=1, channels=2, modes=2, layers=1, padding=0, generator=generator()).double()
    x = torch.randn(1, 6, 5, generator=generator(), dtype=torch.float64)
    h = operator.lift(x.permute(1, 2, 0))
    weights = torch.complex(*operator.spectral[0])
    far = torch.zeros(6, 5, 2, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    for k, a in enumerate((0, 1, -2, -1)):
        for b in (0, 1):
            wave = torch.exp(2j * math.pi * (a * rows / 6 + b * columns / 5)).to(torch.complex128)
            seen = torch.einsum("ij,ijc->c", wave.conj(), h.to(torch.complex128)) / 30
            told = torch.einsum("i,io->o", seen, weights[k, b])
            # each frequency but those along the first side stands for its conjugate too
            far += (1 if b == 0 else 2) * (wave[..., None] * told).real
    wanted = operator.head(h + F.gelu(far + operator.local[0](h)))[..., 0]
    torch.testing.assert_close(operator(x), wanted)
    shifted = operator(x.roll((2, -1), (1, 2)))
    torch.testing.assert_close(shifted, operator(x).roll((2, -1), (0, 1)))


def test_a_deep_operator_network_is_a_sum_over_its_basis() -> None:
    operator = DeepOperatorNetwork(3, dim=1, width=4, generator=generator()).double()
    values, points = torch.randn(3, generator=generator()).double(), torch.rand(6, 1, generator=generator()).double()
    wanted = [sum(operator.branch(values) * operator.trunk(x)) / 2 for x in points]
    torch.testing.assert_close(operator(values, points), torch.stack(wanted))
