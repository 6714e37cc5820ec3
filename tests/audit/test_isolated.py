"""Derivatives of torch that are wrong at the inputs they get, told from those that are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pullback import audit
from pullback.audit import audit_script

TARGETS = torch.tensor([[1, 2, 2], [3, 1, 4]])


def _ctc(scores: Tensor) -> Tensor:
    return F.ctc_loss(scores, TARGETS, torch.tensor([8, 8]), torch.tensor([3, 3]))


def _unpooled(x: Tensor) -> Tensor:
    return F.max_unpool1d(x, torch.tensor([[0, 0, 2]]), 2)  # two values for one place: the later one stays


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "ctc_loss": (_ctc, (8, 2, 5)),
    "ctc_loss of probabilities": (lambda x: _ctc(x.softmax(-1)), (8, 2, 5)),
    "linalg_eigh": (lambda x: torch.linalg.eigh(x).eigenvalues, (4, 4)),
    "linalg_cholesky": (lambda x: torch.linalg.cholesky(x + 9 * torch.eye(3)), (3, 3)),
    "max_unpool1d": (_unpooled, (1, 3)),
}
SYMMETRIC = (3, 3)
RIGHT: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "ctc_loss": (lambda x: _ctc(x.log_softmax(-1)), (8, 2, 5)),
    "eigh": (lambda x: torch.linalg.eigh(x + x.mT).eigenvectors, SYMMETRIC),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(3)), SYMMETRIC),
    "svd": (lambda x: torch.linalg.svd(x)[1], SYMMETRIC),
    "solve": (lambda x: torch.linalg.solve(x, x.mT), SYMMETRIC),
    "padding": (lambda w: F.embedding(torch.tensor([[0, 2, 1]]), w, padding_idx=2), (4, 3)),
    "projected": (lambda w: F.embedding(torch.tensor([0, 2, 1]), 1 * w, max_norm=0.5), (4, 3)),
    "frequency": (lambda w: F.embedding(torch.tensor([0, 0, 1]), w, scale_grad_by_freq=True), (4, 3)),
    "kinks": (lambda x: (x * torch.tensor([0.0, 1.0, 1.0])).relu() + (0 * x).abs(), (4, 3)),
    "ties": (lambda x: x.round().sort(-1).values + (0 * x).max() + (0 * x).cummax(-1).values, (4, 3)),
    "in place": (lambda x: F.relu(2 * x, inplace=True) + (2 * x).clamp_(max=1), (4, 3)),
    "random": (lambda x: F.dropout(x, 0.5) + F.gumbel_softmax(x) + F.rrelu(x, training=True), (4, 3)),
    "straight": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127), (4, 3)),
    "norms": (lambda x: F.layer_norm(x, (3,)) + F.batch_norm(x, None, None, training=True) + F.normalize(x), (4, 3)),
    "losses": (lambda x: F.nll_loss(x.log_softmax(-1), torch.tensor([0, 1, 2, 0])) + F.huber_loss(x, x**2), (4, 3)),
    "attention": (lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]), (4, 3)),
    "masks": (lambda x: x.masked_fill(x < 0, -1e9).softmax(-1) @ x.mT, (4, 4)),
    "grids": (lambda x: F.grid_sample(x[None, None], torch.rand(1, 2, 2, 2), align_corners=False), (4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_derivative_that_does_not_hold_here_is_an_error_at_its_line(name: str, generator: torch.Generator) -> None:
    function, shape = WRONG[name]
    report = audit(function, torch.randn(shape, generator=generator, requires_grad=True))
    (found,) = [f for f in report.findings if f.severity == "error"]
    assert (found.code, found.operation) == ("biased.operation", name.split()[0])
    assert found.file == __file__
    assert abs(found.evidence["slope by torch"] - found.evidence["slope by differences"]) > 0.05


@pytest.mark.parametrize("name", RIGHT)
def test_derivatives_that_hold_are_no_finding(name: str, generator: torch.Generator) -> None:
    function, shape = RIGHT[name]
    x = torch.randn(shape, generator=generator, requires_grad=True)
    state = torch.get_rng_state()
    function(x.detach().clone())
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    report = audit(function, x)
    assert not [f for f in report.findings if f.code == "biased.operation"], str(report)
    assert torch.equal(torch.get_rng_state(), after)
    assert not [note for note in report.notes if "checked by itself" in note]


def test_slopes_are_those_of_the_closed_form() -> None:
    """Of one frame and one symbol ``ctc_loss`` is minus the symbol's score; torch adds ``exp`` of every score."""
    one = torch.tensor([1])
    scores = torch.tensor([[[0.0, 3.0]]], requires_grad=True)
    (found,) = audit(lambda x: F.ctc_loss(x, torch.tensor([[1]]), one, one), scores).findings
    assert found.code == "biased.operation"
    # along u: -u_1 is right, torch has u_0 + (exp(3) - 1) u_1
    right, wrong = found.evidence["slope by differences"], found.evidence["slope by torch"]
    assert abs(wrong) > 5 * abs(right)


def _symmetry(x: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(x).square().sum()


def test_inputs_are_made_those_that_the_derivative_holds_for(generator: torch.Generator) -> None:
    (found,) = audit(_ctc, torch.randn(8, 2, 5, generator=generator, requires_grad=True)).findings
    assert any("F.ctc_loss(scores.log_softmax(-1), TARGETS" in remedy.diff for remedy in found.remedies)
    (found,) = audit(_symmetry, torch.randn(3, 3, generator=generator, requires_grad=True)).findings
    assert any("eigvalsh((x + x.mT) / 2)" in remedy.diff for remedy in found.remedies)


def test_scripts_are_checked_too(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "import torch.nn.functional as F\n"
        "layer = torch.nn.Linear(3, 5)\n"
        "optimizer = torch.optim.SGD(layer.parameters(), 0.1)\n"
        "for _ in range(2):\n"
        "    scores = layer(torch.randn(8, 2, 3))\n"
        "    lengths = torch.tensor([8, 8]), torch.tensor([2, 2])\n"
        "    loss = F.ctc_loss(scores, torch.tensor([[1, 2], [3, 4]]), *lengths)\n"
        "    optimizer.zero_grad()\n"
        "    loss.backward()\n"
        "    optimizer.step()\n"
    )
    report = audit_script(script, [])
    assert [(f.code, f.line) for f in report.findings] == [("biased.operation", 8)]


def test_an_operation_that_cannot_run_alone_is_noted() -> None:
    def beyond(x: Tensor) -> Tensor:
        return torch.as_strided(x[2:], (2,), (1,), 4).sin()  # of the storage, which a copy of x[2:] does not have

    report = audit(beyond, torch.randn(6, requires_grad=True))
    assert not report.findings
    said = "the derivative of as_strided was not checked by itself, it raised RuntimeError"
    assert any(note.startswith(said) for note in report.notes)
