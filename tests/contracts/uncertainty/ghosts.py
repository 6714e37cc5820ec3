"""Contracts of filters on grids and readers of instructions: transition matrices, sums written out, torch's layers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from pullback import uncertainty
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module

_TURNS = torch.tensor([[1, 0, 1], [0, -1, 1], [1, 1, 0]])
_FLAT = torch.full((1, 3, 3), 1 / 9).log()
_CELLS = torch.full((1, 2, 2), 0.25).log()


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _kernel(logits: Tensor) -> Tensor:
    return logits.flatten(-2).log_softmax(-1).view_as(logits)


def _moved(belief: Tensor, logits: Tensor, local: Tensor | None = None, **options: Any) -> Tensor:
    return uncertainty.shift_belief(belief, _kernel(logits), local=local, **options)


def _placed(options: dict[str, Any], like: Any) -> dict[str, Any]:
    return {
        k: v.to(like.device) if isinstance(v, Tensor) and isinstance(like, Tensor) else v for k, v in options.items()
    }


def _by_cells(
    belief: Tensor,
    logits: Tensor,
    local: Tensor | None = None,
    *,
    turns: Tensor | None = None,
    boundary: str = "absorb",
    obstacles: Tensor | None = None,
) -> Tensor:
    """Every heading, cell and displacement in turn."""
    headings, h, w = belief.shape
    k = logits.shape[-1]
    found = torch.zeros_like(belief)
    for a, i, j in itertools.product(range(headings), range(h), range(w)):
        weights, goals = [], []
        for p, q in itertools.product(range(k), range(k)):
            row, column = i + p - k // 2, j + q - k // 2
            weight = (_kernel(logits)[a, p, q] + (0 if local is None else local[i, j, p, q])).exp()
            outside = not (0 <= row < h and 0 <= column < w)
            taken = not outside and obstacles is not None and bool(obstacles[row, column]) and (row, column) != (i, j)
            if boundary == "block" and (outside or taken):
                continue
            if outside and boundary == "reflect":
                row, column = (-1 - x if x < 0 else 2 * n - 1 - x if x >= n else x for x, n in ((row, h), (column, w)))
                outside = False
            turn = -1 if turns is None else int(turns[p, q])
            weights.append(weight)
            goals.append(None if outside else (a if turn < 0 else turn, row, column))
        for weight, goal in zip(weights, goals, strict=True):
            if goal is not None:
                found[goal] = found[goal] + belief[a, i, j].exp() * weight / torch.stack(weights).sum()
    return found.log()


def _filtered(prior: Tensor, logits: Tensor, likelihoods: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    flat = prior.flatten(-3).log_softmax(-1).view_as(prior)
    found = uncertainty.histogram_filter(flat, _kernel(logits), likelihoods, **options)
    return found.log_belief, found.log_evidence


def _forward(prior: Tensor, logits: Tensor, likelihoods: Tensor) -> tuple[Tensor, Tensor]:
    """The forward algorithm with a dense transition matrix."""
    belief = prior.flatten().softmax(0)
    beliefs, evidences = [], []
    for kernel, likelihood in zip(logits, likelihoods, strict=True):
        eye = torch.eye(belief.numel(), dtype=prior.dtype).view(-1, *prior.shape)
        matrix = torch.stack([_by_cells(start.log(), kernel).exp().flatten() for start in eye])
        joint = (belief @ matrix) * likelihood.flatten().exp()
        beliefs.append((joint / joint.sum()).log().view(prior.shape))
        evidences.append(joint.sum().log())
        belief = joint / joint.sum()
    return torch.stack(beliefs), torch.stack(evidences)


def _directions(size: int) -> Tensor:
    """By the angle of each displacement."""
    found = torch.full((size, size), -1)
    for i, j in itertools.product(range(size), range(size)):
        south, east = i - size // 2, j - size // 2
        if south or east:
            found[i, j] = math.floor(math.degrees(math.atan2(east, -south)) / 90 + 0.5 + 1e-9) % 4
    return found


def _normed(logits: Tensor) -> Tensor:
    return logits.flatten(-3).log_softmax(-1).view_as(logits) if logits.ndim > 2 else logits


def _smooth() -> Tensor:
    """Poses (1, 0, 2) and (0, 1, 1) of 2 x 2 x 3 cells, a tenth of the mass spread."""
    return 0.9 * nn.functional.one_hot(torch.tensor([8, 4]), 12).double() + 0.1 / 12


def _unet(generator: torch.Generator) -> uncertainty.LingUNet:
    return uncertainty.LingUNet(2, 2, 4, outputs=1, levels=2, generator=generator)


def _by_hand(map_: Tensor, words: Tensor) -> Tensor:
    net = _unet(torch.Generator().manual_seed(0)).double()
    first = net.down[0](map_).relu()
    second = net.down[1](nn.functional.avg_pool2d(first, 2)).relu()
    filtered = []
    for level, part, write in zip((first, second), words.split(2, -1), net.write, strict=True):
        filters = write(part / part.norm(dim=-1, keepdim=True)).view(-1, 2, 2)
        filtered.append(torch.einsum("boc,bchw->bohw", filters, level))
    low = nn.functional.interpolate(net.up[1](filtered[1]).relu(), scale_factor=2)
    return net.readout(net.up[0](torch.cat([filtered[0], low], 1)).relu())


_MOVES: list[tuple[str, dict[str, Any], bool]] = [
    ("", {}, True),
    ("reflect", {"boundary": "reflect"}, False),
    ("block", {"boundary": "block", "obstacles": torch.tensor([[False, True, False], [False, False, False]])}, False),
    ("turns", {"turns": _TURNS}, False),
]

CONTRACTS = [
    Contract(
        "uncertainty.motion_kernel",
        lambda *logits: uncertainty.motion_kernel(*logits),
        lambda g: [Call((_normal(g, 3, 3), _normal(g, 2, 3, 3))), Call((_normal(g, 2, 1, 1),))],
        reference=lambda *logits: (lambda product: (product / product.sum((-2, -1), keepdim=True)).log())(
            math.prod(part.exp() for part in logits)
        ),
        batched=False,
        why="the law of batches enlarges the first of two alone",
        bad=[
            Bad((), {}, ValueError, "logits must hold at least one kernel"),
            Bad((torch.zeros(2, 2),), {}, ValueError, "logits must have square odd kernels"),
            Bad((torch.zeros(3, 3).long(),), {}, TypeError, "logits must be a floating tensor"),
        ],
    ),
    *(
        Contract(
            f"uncertainty.shift_belief[{name}]" if name else "uncertainty.shift_belief",
            lambda *args, fixed=options, **options: _moved(*args, **_placed(fixed | options, args[0])),
            lambda g: [
                Call((_normal(g, 2, 2, 3), _normal(g, 2, 3, 3), _normal(g, 2, 3, 3, 3))),
                Call((_normal(g, 2, 2, 3), _normal(g, 2, 3, 3))),
            ],
            reference=lambda *args, fixed=options: _by_cells(*args, **fixed),
            batched=False,
            compile=compiled,
            large=(),
            why="the law of batches enlarges one of three; the largest logarithms are no beliefs; compiled once",
            bad=[]
            if name
            else [
                Bad((_CELLS, torch.zeros(1, 2, 2)), {}, ValueError, "log_kernel must have square odd kernels"),
                Bad((_CELLS, torch.zeros(2, 3, 3)), {}, ValueError, r"log_belief must be \[\*batch, headings, h, w\]"),
                Bad((_CELLS, _FLAT), {"boundary": "wrap"}, ValueError, "boundary must be"),
                Bad(
                    (_CELLS, _FLAT), {"turns": torch.zeros(2, 2).long()}, ValueError, r"turns must have shape \(3, 3\)"
                ),
                Bad((_CELLS, _FLAT), {"obstacles": torch.zeros(2, 2).bool()}, ValueError, "need boundary='block'"),
                Bad((_CELLS, _FLAT.double()), {}, TypeError, "same dtype"),
            ],
        )
        for name, options, compiled in _MOVES
    ),
    Contract(
        "uncertainty.egocentric_kernels",
        uncertainty.egocentric_kernels,
        lambda g: [Call((_normal(g, 2, 3, 3),))],
        reference=lambda x: torch.stack([x, x.mT.flip(-1), x.flip((-2, -1)), x.mT.flip(-2)], -3),
        bad=[
            Bad((torch.zeros(2, 2),), {}, ValueError, "logits must have square odd kernels"),
            Bad((torch.zeros(3, 3).long(),), {}, TypeError, "logits must be a floating tensor"),
        ],
    ),
    Measurement(
        "uncertainty.compass_turns",
        uncertainty.compass_turns,
        lambda g: [Call((5,)), Call((1,))],
        reference=_directions,
        bad=[
            Bad((2,), {}, ValueError, "size must be odd, got 2"),
            Bad((1.0,), {}, TypeError, "size must be an integer"),
        ],
    ),
    Contract(
        "uncertainty.histogram_filter",
        _filtered,
        lambda g: [Call((_normal(g, 2, 1, 2), _normal(g, 2, 2, 3, 3), _normal(g, 2, 2, 1, 2)))],
        reference=_forward,
        outputs=tuple,
        batched=False,
        compile=False,
        large=(),
        why="the law of batches enlarges one of three; the largest logarithms are no beliefs; steps are compiled",
        bad=[
            Bad((_CELLS, _FLAT[None], torch.zeros(2, 1, 2, 2)), {}, ValueError, "must have as many steps"),
            Bad((_CELLS, _FLAT[None], torch.zeros(1, 1, 2, 3)), {}, ValueError, "log_likelihoods must have cells"),
            Bad(
                (_CELLS, _FLAT[None], torch.full((1, 1, 2, 2), -torch.inf)),
                {},
                ValueError,
                "those of step 0 leave none",
            ),
            Bad((_CELLS, _FLAT[None], torch.zeros(1, 1, 2, 2)), {"truncate": 0}, ValueError, "truncate must be"),
        ],
    ),
    Contract(
        "uncertainty.belief_loss",
        lambda logits: uncertainty.belief_loss(
            logits.flatten(-3).log_softmax(-1).view_as(logits),
            torch.tensor([[1, 0, 2], [0, 1, 1]], device=logits.device),
            smoothing=0.1,
        ),
        lambda g: [Call((_normal(g, 2, 2, 2, 3),))],
        reference=lambda logits: torch.nn.functional.kl_div(
            logits.flatten(1).log_softmax(-1), _smooth(), reduction="batchmean"
        ),
        batched=False,
        large_limit=1e3,
        why="one number for a batch; cross entropies of the largest logits overflow in half precision",
    ),
    Contract(
        "uncertainty.expected_distance",
        lambda logits, goal, **options: uncertainty.expected_distance(_normed(logits), goal, **options),
        lambda g: [
            Call((_normal(g, 2, 2, 3), _normal(g, 2))),
            Call((_normal(g, 4, 1, 2, 3), _normal(g, 4, 2)), {"size": 2.0}),
        ],
        reference=lambda logits, goal, size=1.0: sum(
            size * _normed(logits)[..., a, i, j].exp() * (goal - torch.tensor([i, j]).double()).norm(dim=-1)
            for a, i, j in itertools.product(*(range(n) for n in logits.shape[-3:]))
        ),
        batched=False,
        large=(),
        why="goal and belief have one batch; logarithms of the largest size are no beliefs",
        bad=[
            Bad((_CELLS, torch.zeros(3)), {}, ValueError, r"goal must have shape \(2,\)"),
        ],
    ),
    Contract(
        "uncertainty.attend",
        uncertainty.attend,
        lambda g: [Call((_normal(g, 2), _normal(g, 3, 2), _normal(g, 3, 4)))],
        reference=lambda q, k, v: (
            nn.functional.scaled_dot_product_attention(q[None], k, v)[0],
            torch.softmax(k @ q / math.sqrt(2), 0),
        ),
        outputs=tuple,
        batched=False,
        large=(2,),
        why="query, keys and values have one batch",
        bad=[
            Bad(
                (torch.zeros(2), torch.zeros(3, 1), torch.zeros(3, 2)),
                {},
                ValueError,
                r"keys must be \[\*batch, n, d\]",
            ),
            Bad((torch.zeros(2), torch.zeros(0, 2), torch.zeros(0, 2)), {}, ValueError, "at least one key"),
            Bad(
                (torch.zeros(2), torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1).bool()),
                {},
                ValueError,
                "leave at",
            ),
        ],
    ),
    Exempt("uncertainty.InstructionDecoder", "its input are words", tested="uncertainty/test_ghosts.py"),
    Module(
        "uncertainty.LingUNet",
        lambda module, map_, words: module(map_, words),
        lambda g: [Call((_normal(g, 2, 2, 4, 4), _normal(g, 2, 4)))],
        build=_unet,
        reference=_by_hand,
        batched=False,
        large=(),
        why="map and words have one batch; products of the largest numbers overflow",
        bad=[
            Bad((torch.zeros(1, 2, 3, 4), torch.zeros(1, 4)), {}, ValueError, "sides that are multiples of 2"),
            Bad(
                (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4)),
                {},
                ValueError,
                r"map_ must have shape \(..., 2, any, any\)",
            ),
            Bad((torch.zeros(1, 2, 4, 4), torch.zeros(1, 3)), {}, ValueError, r"words must have shape \(..., 4\)"),
        ],
    ),
]
