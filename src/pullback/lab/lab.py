"""What a system's function gets: random streams, loops that can be resumed, and the places where results go."""

from __future__ import annotations

import hashlib
import math
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pullback.core.checks import check_choice
from pullback.lab import artifacts, checkpoint
from pullback.lab.progress import Display
from pullback.lab.registry import SCALES
from pullback.lab.result import Artifact, Claim, Data, Metric, RunResult, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Lab", "RunStopped"]


class RunStopped(BaseException):
    """Ends a run between two steps, with everything saved; ``status`` says why. No system should catch it."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """When a run stops and how often it is saved, in seconds."""

    budget: float | None = None
    checkpoint_every: float = 30.0
    write_every: float = 2.0


class Lab:
    """The surroundings of one run. ``pullback.lab.run`` makes it; a system only uses it.

    Attributes:
        generator: CPU generator seeded with ``seed``: every random draw comes from it or from :meth:`fork`.
        seed: of the run.
        scale: ``"smoke"``, ``"default"`` or ``"full"``.
        device: where to compute.
        data_path: what the user gave with ``--data``, or ``None``.
        directory: where the run's files lie.
        is_main: whether this is the process that writes results (there is one, also on several devices).
    """

    def __init__(
        self,
        result: RunResult,
        directory: Path,
        display: Display,
        *,
        data_path: Path | None = None,
        limits: Limits = Limits(),
        resume: bool = False,
    ) -> None:
        self.seed = result.seed
        self.scale = result.scale
        self.data_path = data_path
        self.directory = directory
        self.generator = torch.Generator().manual_seed(result.seed)
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.is_main = self.rank == 0
        self._accelerator = _accelerator(result.device) if self.world > 1 else None
        self.device = torch.device(result.device) if self._accelerator is None else self._accelerator.device
        self._result = result
        self._display = display
        self._limits = limits
        self._resume = resume
        self._series: dict[tuple[str, str], Series] = {}
        self._latest: dict[str, float] = {}
        self._forks: list[weakref.ref[torch.Generator]] = []
        self._loops = 0
        self._step: int | None = None
        self._unsaved: tuple[Path, Any] | None = None
        self._stop: str | None = None
        self._began = time.monotonic()
        self._written = self._saved = time.monotonic()
        self._write_cost = self._save_cost = 0.0

    # Random streams

    def fork(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a fresh generator that depends on the seed and ``name`` alone, not on what was drawn before.

        Two calls with one name give the same stream: that is how two arms see the same batches.
        """
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        stream = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        if self._step is None:
            self._forks.append(weakref.ref(stream))
        return stream

    # Loops

    def steps(self, count: int, name: str = "steps", *, save: dict[str, Any] | None = None) -> Iterator[int]:
        """Yield ``0 .. count - 1`` with progress, time budget, checkpoints and resume.

        Args:
            count: number of steps, >= 0.
            name: shown, and the name of the checkpoint.
            save: all that the loop changes, by name: modules, optimizers, schedulers (anything with ``state_dict`` and
                ``load_state_dict``), tensors (changed in place), generators, dictionaries and lists of these and of
                numbers. Recorded series and the random state are saved along with it. ``None``: no checkpoint, a
                resumed run does the loop again from its start; ``{}``: the loop changes nothing but what it records.

        Returns:
            An iterator over the steps that are left: none when a resumed run had finished the loop.

        Raises:
            ValueError: ``count`` < 0, or a checkpoint of another length.
            TypeError: something in ``save`` cannot be saved.
            RuntimeError: inside another loop of this kind.
        """
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"count must be an integer, got {type(count).__name__}")
        if count < 0:
            raise ValueError(f"count must be >= 0, got {count}")
        if self._step is not None:
            raise RuntimeError(f"lab.steps({name!r}) inside another lab.steps: use range for the inner loop")
        for key, target in (save or {}).items():
            checkpoint.check_savable(f"save[{key!r}]", target)
        self._finish_loop()
        self._loops += 1
        path = self.directory / "checkpoints" / f"{self._loops:03d}-{artifacts.file_name(name)[:60]}.safetensors"
        return self._loop(count, name, save, path)

    def _loop(self, count: int, name: str, save: dict[str, Any] | None, path: Path) -> Iterator[int]:
        done = 0
        if save is not None and self._resume and path.exists():
            done, finished = self._load(path, count, save)
            if finished:
                return
        self._display.start(name, count, done)
        self._step = done
        self._saved = time.monotonic()
        try:
            while done < count:
                self._step = done
                reason = self._reason_to_stop()
                if reason:
                    self._save(path, done, count, save, finished=False)
                    raise RunStopped(reason)
                yield done
                done += 1
                self._after_step(path, done, count, name, save)
            self._save(path, done, count, save, finished=True)
        except GeneratorExit:
            # `break`, or an error that unwinds the caller. Only a run that goes on calls the lab again: it is then that
            # the state of this moment is known to be the loop's final one and is written.
            if save is not None:
                self._unsaved = (path, self._state(done + 1, count, save, finished=True))
            raise
        finally:
            self._step = None
            self._display.stop()

    def _after_step(self, path: Path, done: int, count: int, name: str, save: dict[str, Any] | None) -> None:
        self._result.progress = {"loop": name, "step": done, "steps": count}
        self._display.advance(done, self._latest)
        now, every = time.monotonic(), self._limits.checkpoint_every
        if now - self._saved >= (max(every, 10 * self._save_cost) if every else 0.0) and done < count:
            self._save(path, done, count, save, finished=False)
        if now - self._written >= max(self._limits.write_every, 20 * self._write_cost):
            self._write()

    def _reason_to_stop(self) -> str | None:
        reason = self._stop
        if reason is None and self._limits.budget is not None:
            reason = "out of time" if time.monotonic() - self._began >= self._limits.budget else None
        if self.world == 1:
            return reason
        reasons = (None, "out of time", "interrupted")  # all processes stop at the same step, or none
        code = torch.tensor(reasons.index(reason), device=self.device)
        torch.distributed.all_reduce(code, torch.distributed.ReduceOp.MAX)
        return reasons[int(code)]

    def request_stop(self) -> bool:
        """Ask the running loop to stop after its step; ``False`` when no loop runs that could."""
        self._stop = "interrupted"
        return self._step is not None

    def _state(self, done: int, count: int, save: dict[str, Any], *, finished: bool) -> Any:
        """Everything that the rest of the run depends on."""
        record = replace(self._result, series=[]).to_json()
        return {
            "done": done,
            "steps": count,
            "finished": finished,
            "save": checkpoint.detached(checkpoint.capture(save)),
            "record": record,
            "series": [
                {
                    "name": s.name,
                    "of": s.of,
                    "steps": torch.tensor(s.steps, dtype=torch.int64),
                    "values": torch.tensor(s.values, dtype=torch.float64),
                }
                for s in self._result.series
            ],
            "generator": self.generator.get_state(),
            "forks": [None if (stream := ref()) is None else stream.get_state() for ref in self._forks],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    def _save(self, path: Path, done: int, count: int, save: dict[str, Any] | None, *, finished: bool) -> None:
        if save is None or not self.is_main:
            return
        start = time.monotonic()
        checkpoint.write(path, self._state(done, count, save, finished=finished))
        self._saved = time.monotonic()
        self._save_cost = self._saved - start

    def _load(self, path: Path, count: int, save: dict[str, Any]) -> tuple[int, bool]:
        state = checkpoint.read(path)
        if state["steps"] != count:
            raise ValueError(
                f"{path} is of a loop of {state['steps']} steps, not {count}: the system has changed since"
            )
        checkpoint.restore(save, state["save"])
        kept = RunResult.from_json({**state["record"], "series": []})
        for name in ("metrics", "claims", "data", "artifacts", "notes", "counts"):
            setattr(self._result, name, getattr(kept, name))
        self._result.series = [
            Series(s["name"], s["of"], s["steps"].tolist(), s["values"].tolist()) for s in state["series"]
        ]
        self._series = {(s.name, s.of): s for s in self._result.series}
        self.generator.set_state(state["generator"])
        for ref, stream_state in zip(self._forks, state["forks"], strict=False):
            stream = ref()
            if stream is not None and stream_state is not None:
                stream.set_state(stream_state)
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        return state["done"], state["finished"]

    def _finish_loop(self) -> None:
        """Write the final state of a loop that was left by ``break``."""
        if self._unsaved is not None and self.is_main:
            checkpoint.write(*self._unsaved)
        self._unsaved = None

    # Results

    def record(self, name: str, value: float | Tensor, of: str = "", step: int | None = None) -> None:
        """Add a value to a series: in the result, on the progress bar, in the checkpoint.

        Args:
            name: of the series, such as ``"loss"``.
            value: a number or a tensor with one element; NaN and infinities are kept.
            of: the arm.
            step: its place; by default the running loop's step, outside of loops the next integer.
        """
        key = (name, of)
        if key not in self._series:
            self._finish_loop()
            self._series[key] = Series(name, of)
            self._result.series.append(self._series[key])
        series = self._series[key]
        if step is None:
            step = self._step if self._step is not None else len(series.values)
        series.steps.append(step)
        series.values.append(_number(name, value))
        self._latest.pop(label := f"{name} ({of})" if of else name, None)
        self._latest[label] = series.values[-1]
        if len(self._latest) > 3:
            del self._latest[next(iter(self._latest))]

    def last(self, name: str, of: str = "") -> float:
        """Return the latest recorded value: also there when a resumed run skipped the loop that recorded it.

        Raises:
            KeyError: nothing of that name was recorded.
        """
        return self.series(name, of)[-1]

    def series(self, name: str, of: str = "") -> list[float]:
        """Return all recorded values, in order.

        Raises:
            KeyError: nothing of that name was recorded.
        """
        if (name, of) not in self._series:
            recorded = ", ".join(f"{n!r} of {o!r}" for n, o in self._series) or "nothing"
            raise KeyError(f"no series {name!r} of {of!r}; recorded: {recorded}")
        return list(self._series[name, of].values)

    def metric(
        self,
        name: str,
        value: float | Tensor,
        of: str = "",
        *,
        better: str | None = None,
        unit: str = "",
        baseline: bool = False,
    ) -> None:
        """Report a measured number; the same ``name`` and ``of`` again replaces it.

        Args:
            name: what was measured, such as ``"exact match"``.
            value: a number or a tensor with one element.
            of: the arm that it belongs to.
            better: ``"higher"``, ``"lower"`` or ``None`` where neither is.
            unit: such as ``"ms"``, ``"%"``.
            baseline: whether the arm is the baseline.

        Raises:
            ValueError: ``better`` is none of these.
            TypeError: ``value`` is no number.
        """
        if better is not None:
            check_choice("better", better, ("higher", "lower"))
        metric = Metric(name, _number(name, value), of, better, unit, baseline)
        kept = [m for m in self._result.metrics if (m.name, m.of) != (name, of)]
        self._result.metrics = [*kept, metric]
        self._changed()

    def claim(
        self, statement: str, holds: bool | Tensor, /, scale: str = "default", **numbers: float | Tensor | str
    ) -> bool:
        """State a claim of the paper, with the verdict of this run.

        Args:
            statement: one sentence.
            holds: whether it does.
            scale: from which scale upwards it is judged; below, it is recorded as "not judged".
            **numbers: the measured numbers behind the verdict.

        Returns:
            ``holds``.

        Raises:
            ValueError: unknown scale, or the statement was judged before.
        """
        check_choice("scale", scale, SCALES)
        if any(claim.statement == statement for claim in self._result.claims):
            raise ValueError(f"claim {statement!r} was stated before in this run")
        verdict = "held" if bool(holds) else "failed"
        if SCALES.index(self.scale) < SCALES.index(scale):
            verdict = "not judged"
        shown = {name: value if isinstance(value, str) else _number(name, value) for name, value in numbers.items()}
        self._result.claims.append(Claim(statement, verdict, scale, shown))
        self._display.say(f"claim {verdict}: {statement}")
        self._changed()
        return bool(holds)

    def data(self, name: str, *, origin: str) -> None:
        """Say which data are used; ``origin`` is ``"real"``, ``"simulated"`` or ``"stand-in"``."""
        check_choice("origin", origin, ("real", "simulated", "stand-in"))
        self._result.data.append(Data(name, origin))
        self._changed()

    def note(self, text: str) -> None:
        """Add a remark, such as what could not be shown at this scale."""
        self._result.notes.append(text)
        self._changed()

    def count(self, kind: str, number: float = 1, of: str = "") -> float:
        """Add up operations of an arm, such as ``"evaluations"``; return the sum so far."""
        arms = self._result.counts.setdefault(kind, {})
        arms[of] = arms.get(of, 0) + number
        return arms[of]

    @contextmanager
    def cpu_time(self, of: str) -> Iterator[None]:
        """Add the process's CPU seconds inside the block to the count ``"cpu seconds"`` of an arm."""
        start = time.process_time()
        try:
            yield
        finally:
            self.count("cpu seconds", time.process_time() - start, of)

    # Things to look at and listen to; one of the same kind and name replaces the former.

    def subplots(self, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
        """Return a figure and its axes as ``plt.subplots`` does, in the style of the gallery."""
        return artifacts.subplots(rows, columns, **options)

    def figure(self, name: str, figure: Figure, caption: str = "") -> None:
        """Keep a matplotlib figure (PNG, and SVG where small)."""
        self._keep("figure", name, caption, lambda stem: artifacts.figure(self.directory, stem, figure))

    def image(self, name: str, pixels: Any, caption: str = "") -> None:
        """Keep an image: ``[H, W]`` or ``[C, H, W]``, floats in [0, 1] (clipped) or bytes."""
        self._keep("image", name, caption, lambda stem: artifacts.image(self.directory, stem, pixels))

    def animation(self, name: str, frames: Sequence[Any], caption: str = "", *, rate: float = 10.0) -> None:
        """Keep images that play at ``rate`` frames a second."""
        self._keep("animation", name, caption, lambda s: artifacts.animation(self.directory, s, frames, rate=rate))

    def audio(self, name: str, waveform: Any, rate: int, caption: str = "") -> None:
        """Keep sound: ``[time]`` or ``[channels, time]`` in [-1, 1], ``rate`` samples a second."""
        self._keep("audio", name, caption, lambda stem: artifacts.audio(self.directory, stem, waveform, rate=rate))

    def mesh(self, name: str, vertices: Any, faces: Any = None, caption: str = "", *, colours: Any = None) -> None:
        """Keep a mesh: ``[V, 3]`` vertices, ``[F, 3]`` faces (none: points), ``[V, 3]`` colours in [0, 1]."""
        self._keep("mesh", name, caption, lambda s: artifacts.mesh(self.directory, s, vertices, faces, colours))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """Keep a table: the names of its columns, and its rows."""
        plain = [[c if isinstance(c, str | int) or c is None else _number(name, c) for c in row] for row in rows]
        content = {"columns": list(columns), "rows": plain}
        self._keep("table", name, caption, lambda s: artifacts.table(self.directory, s, columns, plain), content)

    def _keep(self, kind: str, name: str, caption: str, write: Any, content: Any = None) -> None:
        files = write(f"{kind}-{artifacts.file_name(name)}")
        artifact = Artifact(kind, name, files, caption, content)
        kept = [a for a in self._result.artifacts if (a.kind, a.name) != (kind, name)]
        self._result.artifacts = [*kept, artifact]
        self._changed()

    def _changed(self) -> None:
        self._finish_loop()
        self._write()

    def _write(self) -> None:
        start = time.monotonic()
        self._result.seconds = start - self._began
        self._result.write()
        self._written = time.monotonic()
        self._write_cost = self._written - start

    def finish(self, status: str, error: str = "") -> RunResult:
        """Write the final record; the runner calls it."""
        if status == "complete":
            self._finish_loop()
        self._result = replace(self._result, status=status, error=error)
        self._write()
        return self._result

    # Several devices

    def prepare(self, *objects: Any) -> Any:
        """Put modules (and optimizers, loaders) on the device; with several processes, hand them to ``accelerate``.

        Gradients are then averaged over the processes: with :meth:`shard` a step equals one on the whole batch.

        Returns:
            The objects to use in their place: one, or a tuple in the same order.
        """
        if self._accelerator is not None:
            return self._accelerator.prepare(*objects)
        moved = tuple(o.to(self.device) if isinstance(o, nn.Module | Tensor) else o for o in objects)
        return moved[0] if len(moved) == 1 else moved

    def shard(self, batch: Tensor) -> Tensor:
        """Return this process's part of ``[batch, ...]``: all of it where there is one process.

        Raises:
            ValueError: the batch cannot be divided evenly.
        """
        if len(batch) % self.world:
            raise ValueError(f"batch must be a multiple of the {self.world} processes, got {len(batch)} rows")
        return batch.chunk(self.world)[self.rank]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of ``value`` over the processes (itself where there is one)."""
        return value if self._accelerator is None else self._accelerator.reduce(value, "mean")


def _accelerator(device: str) -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu")


def _number(name: str, value: Any) -> float:
    """A Python number from a number, or from a tensor or array with one element."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1:
            raise TypeError(f"{name} must be one number, got shape {tuple(value.shape)}")
        value = value.item()
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return value
