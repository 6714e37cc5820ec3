"""What is compared: the method and its baselines, each with its weights, loop, series and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pullback.lab.loops import Loops
from pullback.lab.measured import Measured
from pullback.lab.processes import Processes
from pullback.lab.recorder import Recorder
from pullback.lab.streams import Streams

__all__ = ["Arm"]


class Arm:
    """One of the things that a system compares. :meth:`pullback.lab.Lab.arm` makes it.

    Attributes:
        name: in the record, on the progress bar and in the legend of every figure.
        baseline: whether it is what the method is compared with.
        colour: of it in every figure of the run.
    """

    def __init__(
        self,
        name: str,
        *,
        baseline: bool,
        colour: str,
        recorder: Recorder,
        loops: Loops,
        streams: Streams,
        processes: Processes,
    ) -> None:
        self.name = name
        self.baseline = baseline
        self.colour = colour
        self._recorder = recorder
        self._loops = loops
        self._streams = streams
        self._processes = processes

    def __repr__(self) -> str:
        return f"Arm({self.name!r}{', baseline=True' if self.baseline else ''})"

    # Training

    def weights(self, name: str = "") -> AbstractContextManager[None]:
        """Seed torch's generator inside the block, so that modules built there start from equal weights in every arm.

        The seed follows from the run's seed, the replicate and ``name``; after the block torch's generator is where it
        was. Two blocks of one name draw the same numbers.
        """
        return self._streams.weights(name, self._recorder.replicate)

    def steps(self, count: int, /, *state: Any, name: str = "train", **named: Any) -> Iterator[int]:
        """Yield ``0 .. count - 1`` with progress, time budget, checkpoints and resume.

        After a kill, ``--resume`` runs the system again: this loop, if it had ended, is skipped by loading its final
        state, and otherwise begins at the step that was saved last. So whatever the loop changes is given here or
        recorded, code between loops is deterministic, and what comes after a loop reads ``arm.last("loss")`` and the
        objects that were given, not local variables of the loop.

        Args:
            count: number of steps, >= 0.
            *state: all that the loop changes: modules, optimizers, schedulers, learners (anything with ``state_dict``
                and ``load_state_dict``), tensors that are changed in place, generators, dictionaries and lists of these
                and of numbers. An empty dictionary says that the loop changes nothing but what it records; with no
                state at all, a resumed run does the loop again from its start.
            name: of the loop, shown and part of the checkpoint's name.
            **named: more state.

        Returns:
            An iterator over the steps that are left: none when a resumed run had finished the loop.

        Raises:
            ValueError: ``count`` < 0, or a checkpoint that does not fit.
            TypeError: some state cannot be saved.
            RuntimeError: inside another loop of this kind.
        """
        save = {str(place): target for place, target in enumerate(state)} | named
        return self._loops.steps(count, name, self.name, save or None)

    def descend(
        self, loss: Tensor, *optimizers: torch.optim.Optimizer, name: str = "loss", clip: float | None = None
    ) -> None:
        """Take one step down the gradient: ``zero_grad``, ``backward``, ``step``, and record the loss.

        Args:
            loss: one element.
            *optimizers: at least one.
            name: of the series.
            clip: largest norm of the gradient of all parameters together, > 0; larger ones are scaled down to it.

        Raises:
            ValueError: ``loss`` has more elements than one.
            TypeError: no optimizer.
        """
        if not optimizers:
            raise TypeError("descend needs an optimizer")
        if loss.numel() != 1:
            raise ValueError(f"loss must have one element, got shape {tuple(loss.shape)}")
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
        for optimizer in optimizers:
            optimizer.step()
        self.record(name, self._processes.mean(loss.detach()))

    # What is measured

    def record(self, name: str, value: float | Tensor, step: int | None = None) -> None:
        """Add a value to a series: in the result, on the progress bar, in the checkpoint.

        Args:
            name: of the series, such as ``"loss"``.
            value: a number or a tensor with one element; NaN and infinities are kept.
            step: its place; by default the running loop's step, outside of loops the next integer.
        """
        self._recorder.record(name, value, self.name, step)

    def series(self, name: str, replicate: int | None = None) -> list[float]:
        """Return all recorded values in order, of the running replicate or of the one that is named.

        Raises:
            KeyError: nothing of that name was recorded.
        """
        return list(self._recorder.series(name, self.name, replicate).values)

    def last(self, name: str) -> Measured:
        """Return the latest recorded value, also when a resumed run skipped the loop; after replicates, their mean.

        Raises:
            KeyError: nothing of that name was recorded.
        """
        return self._recorder.last(name, self.name)

    def metric(
        self, name: str, value: Any, *, better: str | None = None, unit: str = "", replicated: bool = False
    ) -> Measured:
        """Report a measured number; the same ``name`` again replaces it, in another replicate joins it.

        Args:
            name: what was measured, such as ``"exact match"``.
            value: a number or a tensor with one element.
            better: ``"higher"``, ``"lower"`` or ``None`` where neither is.
            unit: such as ``"ms"``, ``"%"``.
            replicated: ``value`` is a vector with one entry a replicate, such as those of a batch dimension.

        Returns:
            The number; ``arm[name]`` is it again.

        Raises:
            ValueError: ``better`` is none of these.
            TypeError: ``value`` is no number.
        """
        return self._recorder.metric(
            name, value, self.name, better=better, unit=unit, baseline=self.baseline, replicated=replicated
        )

    def __getitem__(self, name: str) -> Measured:
        """Return a metric or a count of this arm: this replicate's, and after all of them their mean.

        Raises:
            KeyError: there is none of that name.
        """
        return self._recorder.measured(name, self.name)

    def count(self, kind: str, added: float = 1) -> Measured:
        """Add up operations, such as ``"evaluations"``, and return the sum so far."""
        return self._recorder.count(kind, added, self.name)

    def cpu_time(self, kind: str = "cpu seconds") -> AbstractContextManager[None]:
        """Add the process's CPU seconds inside the block, loops and their resumes included, to a count."""
        return self._recorder.cpu_time(kind, self.name)
