"""Layers that keep less: values, gradients and random numbers are torch's; what is kept is what theory says."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pullback.gradients import needed_for_backward, restore, saved_bytes, selective, selective_ops

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), padding="same", dilation=2), (2, 3, 6, 7)),
    "conv2d, valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid", bias=False), (2, 3, 6, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=(0, 1, 1)), (2, 2, 3, 4, 3)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), (2, 3, 5)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, groups=2), (2, 4, 5, 3)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 2, 2), (1, 2, 2, 3, 2)),
    "batch norm": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 6)),
    "layer norm": (lambda: nn.LayerNorm((5, 6)), (4, 3, 5, 6)),
    "layer norm, no bias": (lambda: nn.LayerNorm(6, bias=False), (4, 6)),
    "layer norm, plain": (lambda: nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5, 6)),
    "relu": (nn.ReLU, (5, 13)),
    "dropout": (lambda: nn.Dropout(0.2), (5, 13)),
    "max-pool 1d": (lambda: nn.MaxPool1d(3, 1), (2, 3, 9)),
    "max-pool 2d": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 3, 8, 7)),
    "max-pool 3d": (lambda: nn.MaxPool3d(2, dilation=(1, 2, 1)), (1, 2, 4, 5, 4)),
}


def _layer(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().double()
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    for p in layer.parameters():
        nn.init.normal_(p)
    if isinstance(layer, nn.BatchNorm2d):
        layer.eval()
    return layer, torch.randn(shape, dtype=torch.float64)


def _gradients(layer: nn.Module, x: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    y = layer(x)
    first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
    total = torch.stack([g.square().sum() for g in first]).sum()
    return y, *first, *torch.autograd.grad(total, wanted, materialize_grads=True)


def _patterns(layer: nn.Module) -> list[tuple[str, ...]]:
    names = ["input", *(name for name, _ in layer.named_parameters())]
    return [names_ for size in range(1, len(names) + 1) for names_ in itertools.combinations(names, size)]


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_derivatives_are_torchs_and_memory_is_what_theory_says(name: str) -> None:
    layer, x = _layer(name)
    for active in _patterns(layer):
        x = x.detach().requires_grad_("input" in active)
        for parameter, p in layer.named_parameters():
            p.requires_grad_(parameter in active)
        wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
        expected = _gradients(layer, x, wanted)
        assert selective(layer).converted == {"": type(layer).__name__.removeprefix("Selective")}
        found = _gradients(layer, x, wanted)
        kept = saved_bytes(layer, x).total
        restore(layer)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert kept == sum(needed_for_backward(layer, x, active).values()), active
        assert kept <= saved_bytes(layer, x).total


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64, 3),
    )


def test_a_model_changes_its_classes_and_nothing_else() -> None:
    model = _model().eval()
    before = model.state_dict()
    kinds = [type(layer) for layer in model]
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    found = selective(model)
    assert found.module is model
    assert list(found.converted) == ["0", "1", "2", "3", "4", "5", "6", "8"]
    assert found.left == {"9": "Linear: torch keeps no more than is needed"}
    assert all(isinstance(layer, kind) for layer, kind in zip(model, kinds, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert list(before) == list(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    for twin in (pickle.loads(pickle.dumps(copy.deepcopy(selective(_model().eval()).module))), model):
        torch.testing.assert_close(twin(x), _model().eval()(x))
    assert calls
    assert selective(model).converted == {}  # is converted already
    restore(model)
    assert [type(layer) for layer in model] == kinds


def test_a_copy_shares_its_parameters_and_leaves_the_model() -> None:
    model = _model().eval()
    twin = selective(model, copy=True).module
    assert type(model[0]) is nn.Conv2d
    assert type(twin[0]) is not nn.Conv2d  # type: ignore[index]
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    x = torch.randn(2, 1, 8, 8)
    twin(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    shared = nn.Sequential(*[nn.Conv1d(2, 2, 1)] * 2)
    copied = selective(shared, copy=True).module
    assert copied[0] is copied[1]  # type: ignore[index]


def test_what_stays_is_listed_with_its_reason() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    model = nn.Sequential(
        nn.BatchNorm1d(3), nn.LSTM(3, 3), Scaled(), nn.Conv1d(1, 1, 3, padding_mode="circular"), nn.GELU()
    )
    left = selective(model).left
    assert left["0"] == "BatchNorm1d: in training mode, where the statistics of the batch need the input"
    assert left["1"] == "LSTM: unknown layer"
    assert left["2"] == "Scaled: unknown layer"
    assert left["3"] == "Conv1d: padding_mode='circular'"
    assert set(left) == {"0", "1", "2", "3"}


def test_a_converted_batch_norm_that_trains_again_is_torchs() -> None:
    ours, theirs = nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3)
    selective(ours)
    x = torch.randn(6, 3)
    torch.testing.assert_close(ours.train()(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_memory_of_a_frozen_model_and_of_one_that_trains() -> None:
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    frozen = _model().requires_grad_(False).eval()
    theirs = saved_bytes(frozen, x).total
    assert saved_bytes(selective(frozen).module, x).total <= 0.1 * theirs
    training = _model().eval()
    theirs = saved_bytes(training, x).total
    assert saved_bytes(selective(training).module, x).total <= theirs


def test_a_relu_before_a_weight_that_learns_keeps_what_that_layer_keeps() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    model = nn.Sequential(nn.ReLU(), nn.Linear(32, 8))
    selective(model)
    assert saved_bytes(model, x).total == x.nbytes
    model.requires_grad_(False)
    assert saved_bytes(model, x).total == x.numel() // 8


def test_dropout_draws_the_numbers_of_torch_and_keeps_its_mask() -> None:
    x = torch.randn(1003, requires_grad=True)
    results = []
    for function in (F.dropout, selective_ops.dropout):
        torch.manual_seed(3)
        y = function(x, 0.2)
        results.append((y, torch.autograd.grad(y.sum(), x)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[1][1] != 0, results[1][0] != 0)  # backward drops what forward dropped


def test_checkpoints_autocast_and_odd_layouts() -> None:
    model = _model().eval()
    twin = selective(model, copy=True).module
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    for run in (
        lambda m: m(x),
        lambda m: checkpoint(m, x, use_reentrant=False),
        lambda m: m(x.to(memory_format=torch.channels_last)),
    ):
        results = [torch.autograd.grad(run(m).square().sum(), [x, *m.parameters()]) for m in (model, twin)]
        for ours, theirs in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(ours, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = model(x), twin(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.float().sum(), model[0].weight)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(theirs.float().sum(), model[0].weight)[0], rtol=0.05, atol=0.05
    )


def test_nan_passes_a_relu_as_in_torch() -> None:
    x = torch.tensor([float("nan"), -1.0, 0.0, 2.0], requires_grad=True)
    results = [
        torch.autograd.grad(f(x), x, torch.tensor([1.0, torch.inf, 1.0, 1.0]))[0] for f in (F.relu, selective_ops.relu)
    ]
    torch.testing.assert_close(results[0], results[1], equal_nan=True)


def test_saved_bytes_are_told_by_layer_and_line() -> None:
    model = _model().eval()
    x = torch.randn(2, 1, 8, 8, requires_grad=True)

    def loss() -> Tensor:
        y = model(x)
        return y.exp().sum()

    found = saved_bytes(loss, exclude=tuple(model.parameters()) + tuple(model.buffers()))
    first = loss.__code__.co_firstlineno
    assert found.by_line == {
        f"{__file__}:{first + 1}": found.total - 24,
        f"{__file__}:{first + 2}": 24,  # the result of exp, 2 x 3 floats
    }
    layers = saved_bytes(model, x).by_layer
    assert layers["0"] == x.nbytes
    assert layers["3"] == 2 * 4 * 16 * 8  # places, eight bytes each; its input is the result of the ReLU before
    assert sum(layers.values()) == found.total - 24
    assert saved_bytes(loss).by_layer["Conv2d"] == layers["0"] + layers.get("4", 0) + layers.get("6", 0)
