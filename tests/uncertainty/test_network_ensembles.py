"""Members of an ensemble are networks of their own."""

from __future__ import annotations

import pytest
import torch

from pullback.uncertainty import BestMembers, MLPEnsemble


@pytest.mark.parametrize("layer", [torch.nn.ReLU, torch.nn.SiLU])
def test_one_optimizer_trains_each_member_as_if_it_were_alone(layer: type[torch.nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    words = {"activation": torch.nn.functional.silu} if layer is torch.nn.SiLU else {}
    ensemble = MLPEnsemble(3, (2, 8, 1), **words, generator=generator)
    x, y = torch.randn(3, 20, 2, generator=generator), torch.randn(3, 20, 1, generator=generator)
    layers = [torch.nn.Linear(2, 8), torch.nn.Linear(8, 1)]
    alone = torch.nn.Sequential(layers[0], layer(), layers[1])
    with torch.no_grad():
        for k, linear in enumerate(layers):
            linear.weight.copy_(ensemble.weight[k][1].T)
            linear.bias.copy_(ensemble.bias[k][1, 0])
    for model, inputs, targets in ((ensemble, x, y), (alone, x[1], y[1])):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean((-1, -2)).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ensemble(x)[1], alone(x[1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ensemble.member(1, x[1]), ensemble(x)[1])


def test_best_members_survive_a_saved_state() -> None:
    ensemble = MLPEnsemble(2, (1, 1), generator=torch.Generator().manual_seed(0))
    best = BestMembers(ensemble)
    best.update(torch.tensor([0.5, float("nan")]))  # NaN is no improvement
    saved = {name: value.clone() for name, value in best.state_dict().items()}
    assert saved["least"].tolist() == [0.5, float("inf")]
    other = BestMembers(MLPEnsemble(2, (1, 1)))
    other.load_state_dict(saved)
    other.restore()
    assert torch.equal(other.ensemble.weight[0][0], ensemble.weight[0][0])
    with pytest.raises(ValueError, match=r"loss must have shape \(2,\)"):
        best.update(torch.zeros(3))
    with pytest.raises(TypeError, match="ensemble must be an MLPEnsemble"):
        BestMembers(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sizes must be those of an input and an output"):
        MLPEnsemble(2, (1,))
    with pytest.raises(ValueError, match=r"index must be in 0\.\.1"):
        ensemble.member(2, torch.zeros(1, 1))


def test_an_activation_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="activation"):
        MLPEnsemble(2, (1, 2, 1), activation="silu")  # type: ignore[arg-type]
