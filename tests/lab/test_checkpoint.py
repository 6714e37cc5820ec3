"""States survive a file to the bit, and nothing else is accepted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pullback.lab import checkpoint

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(_TREES)
def test_json_trees_come_back_equal(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.mktemp("state") / "x.safetensors"
    checkpoint.write(path, tree)
    assert repr(checkpoint.read(path)) == repr(tree)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex128])
def test_tensors_come_back_equal(dtype: torch.dtype, tmp_path: Path) -> None:
    base = torch.arange(12).reshape(3, 4).to(dtype)
    state = {"a": base, "view of it": base[:, 1], "transposed": base.T, "scalar": base[0, 0], "empty": base[:0]}
    checkpoint.write(tmp_path / "x.safetensors", state)
    for name, tensor in checkpoint.read(tmp_path / "x.safetensors").items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, state[name])


def test_keys_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.ones(1) * 2, "1": torch.ones(1) * 3}
    checkpoint.write(tmp_path / "x.safetensors", state)
    back = checkpoint.read(tmp_path / "x.safetensors")
    assert [back["a/b"].item(), back["a"]["b"].item(), back[1].item(), back["1"].item()] == [0, 1, 2, 3]


def test_restoring_changes_tensors_in_place() -> None:
    weight = torch.zeros(2, requires_grad=True)
    history: list[float] = [1.0]
    target = {"weight": weight, "history": history, "step": 0, "gone": 1}
    checkpoint.restore(target, {"weight": torch.ones(2), "history": [1.0, 2.0], "step": 7})
    assert target == {"weight": weight, "history": history, "step": 7}
    assert weight.tolist() == [1.0, 1.0]
    assert history == [1.0, 2.0]


def test_what_cannot_be_saved_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save\['model'\]\['f'\] must have state_dict"):
        checkpoint.check_savable("save['model']", {"f": print})
    with pytest.raises(TypeError, match="/a/0 is a object"):
        checkpoint.write(tmp_path / "x.safetensors", {"a": [object()]})
    (tmp_path / "broken").write_bytes(b"no checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match="broken is no checkpoint"):
        checkpoint.read(tmp_path / "broken")


def _written(path: Path) -> bytes:
    checkpoint.write(path, {"weight": torch.arange(6.0), "done": 3})
    return path.read_bytes()


@given(st.data())
def test_a_damaged_file_is_refused_never_misread(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("state") / "x.safetensors"
    content = bytearray(_written(path))
    if data.draw(st.booleans(), "truncate"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        state = checkpoint.read(path)
    except checkpoint.CheckpointError:
        return
    # A flipped bit in the names and spaces of the header that nothing reads.
    assert torch.equal(state["weight"], torch.arange(6.0))
    assert state["done"] == 3


def test_the_one_before_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "001-train.safetensors"
    assert checkpoint.read_latest(path) is None
    for done in (1, 2, 3):
        checkpoint.write(path, {"done": done})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["001-train.former.safetensors", path.name]
    assert checkpoint.read_latest(path) == {"done": 3}
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoint.read_latest(path) == {"done": 2}
    path.unlink()  # a kill between the two renames of a write
    assert checkpoint.read_latest(path) == {"done": 2}
    path.write_bytes(b"")
    checkpoint.former(path).write_bytes(b"")
    both = f"delete {path} and {checkpoint.former(path)} to do that loop again"
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(both)):
        checkpoint.read_latest(path)


def _linear(inputs: int = 2, dtype: torch.dtype = torch.float32) -> nn.Linear:
    return nn.Linear(inputs, 3, dtype=dtype)


@pytest.mark.parametrize(
    ("saved", "target", "place"),
    [
        (torch.zeros(3), torch.zeros(1, 3), "save is float32 [1, 3], and float32 [3] in the checkpoint"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64), "save is float64 [3], and float32 [3]"),
        ({"a": [torch.zeros(3)]}, {"a": [torch.zeros(4)]}, "save['a'][0] is float32 [4], and float32 [3]"),
        (_linear(), _linear(4), "save['weight'] is float32 [3, 4], and float32 [3, 2]"),
        (_linear(), _linear(2, torch.float64), "save['weight'] is float64 [3, 2], and float32 [3, 2]"),
        (_linear(), nn.Sequential(_linear()), "save does not take the state in the checkpoint"),
        (
            torch.optim.Adam(_linear().parameters()),
            torch.optim.Adam(_linear(4).parameters()),
            "save has other parameters than in the checkpoint",
        ),
        ({"a": 1}, {"a": 1, "model": _linear()}, "save['model'] is not in the checkpoint"),
        ({"a": 1.0}, {"a": torch.zeros(())}, "save['a'] is a tensor, and float in the checkpoint"),
        ([1.0], {"a": 1}, "save is a dict, and list in the checkpoint"),
    ],
)
def test_a_state_of_something_else_is_refused_by_place(saved: Any, target: Any, place: str, tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "x.safetensors", checkpoint.capture(saved))
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.restore(target, checkpoint.read(tmp_path / "x.safetensors"))
    assert place in str(caught.value)


def test_an_optimizer_comes_back(tmp_path: Path) -> None:
    def trained(steps: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = _linear()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.full((1, 2), step + 1.0)).square().sum().backward()
            optimizer.step()
        return model, optimizer

    model, optimizer = trained(3)
    checkpoint.write(tmp_path / "x.safetensors", checkpoint.capture({"model": model, "optimizer": optimizer}))
    fresh, stepper = trained(0)
    checkpoint.restore({"model": fresh, "optimizer": stepper}, checkpoint.read(tmp_path / "x.safetensors"))
    for one, step in ((model, optimizer), (fresh, stepper)):
        step.zero_grad()
        one(torch.full((1, 2), 4.0)).square().sum().backward()
        step.step()
    assert torch.equal(fresh.weight, model.weight)
