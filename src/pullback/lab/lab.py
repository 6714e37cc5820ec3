"""What a system's function gets: arms to compare, random streams, and the places where results go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.core.checks import check_integer
from pullback.lab.arm import Arm
from pullback.lab.draw import figures, files, style
from pullback.lab.loops import Limits, Loops, RunStopped
from pullback.lab.measure import Race, Slope, operations, peak_memory, race, slope
from pullback.lab.measured import Measured
from pullback.lab.processes import Processes
from pullback.lab.progress import Display
from pullback.lab.recorder import Recorder, number
from pullback.lab.result import Metric, RunResult, Series
from pullback.lab.streams import Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Lab", "Limits", "RunStopped"]

_NO_LIMITS = Limits()


class Lab:
    """The surroundings of one run. ``pullback.lab.run`` makes it; a system only uses it.

    Attributes:
        seed: of the run.
        scale: ``"smoke"``, ``"default"`` or ``"full"``.
        device: where to compute.
        data_path: what the user gave with ``--data``, or ``None``.
        directory: where the run's files lie.
        generator: CPU generator seeded with ``seed``: every random draw comes from it or from :meth:`fork`.
        arms: by name, in the order in which they were made.
        world: number of processes, ``rank``: which of them this is, ``is_main``: whether it writes the results.
    """

    def __init__(
        self,
        result: RunResult,
        directory: Path,
        display: Display,
        *,
        data_path: Path | None = None,
        limits: Limits = _NO_LIMITS,
        resume: bool = False,
    ) -> None:
        self.seed = result.seed
        self.scale = result.scale
        self.data_path = data_path
        self.directory = directory
        self.arms: dict[str, Arm] = {}
        self._colours: dict[str, str] = {}
        self._processes = Processes(result.device)
        self.device = self._processes.device
        self.world, self.rank = self._processes.world, self._processes.rank
        self.is_main = self._processes.is_main
        self._streams = Streams(result.seed, self.device)
        self.generator = self._streams.generator
        self._recorder = Recorder(result, directory, display)
        self._loops = Loops(self._recorder, self._streams, self._processes, limits, resume=resume)

    # What is compared

    def arm(self, name: str, *, baseline: bool = False) -> Arm:
        """Return the arm of that name: the method or a baseline, with its weights, loop, series and metrics.

        Args:
            name: in the record and in every figure.
            baseline: whether it is what the method is compared with.

        Returns:
            A new arm, or the one that was made under this name.

        Raises:
            ValueError: an arm that is no baseline is asked for as one.
        """
        if name not in self.arms:
            self.arms[name] = Arm(
                name,
                baseline=baseline,
                colour=self.colour(name),
                recorder=self._recorder,
                loops=self._loops,
                streams=self._streams,
                processes=self._processes,
            )
        elif baseline and not self.arms[name].baseline:
            raise ValueError(f"arm {name!r} was made without baseline=True before")
        return self.arms[name]

    def replicates(self, count: int) -> Iterator[int]:
        """Yield ``0 .. count - 1``: inside, weights, streams, loops, series and metrics are those of one replicate.

        Metrics of an arm collect: after the loop ``arm[name]`` is their mean, with ``.spread`` and ``.values``.

        Raises:
            ValueError: ``count`` < 1.
            RuntimeError: inside another loop over replicates.
        """
        check_integer("count", count, 1)
        if self._recorder.replicate is not None:
            raise RuntimeError("lab.replicates inside another loop over replicates")
        return self._replicates(count)

    def _replicates(self, count: int) -> Iterator[int]:
        try:
            for replicate in range(count):
                self._recorder.replicate = replicate
                yield replicate
        finally:
            self._recorder.replicate = None

    def fork(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a fresh generator that depends on seed, replicate and ``name`` alone, not on what was drawn before.

        Two calls with one name give the same stream: that is how two arms see the same batches.
        """
        return self._streams.fork(name, device, self._recorder.replicate, kept=self._recorder.step is None)

    # What is found

    def claim(
        self, statement: str, /, *conditions: Any, scale: Any = "default", **numbers: float | Tensor | str
    ) -> bool:
        """State a claim of the paper, with the verdict of this run.

        Args:
            statement: one sentence.
            *conditions: comparisons of measured numbers (whose numbers are shown with the claim), booleans or tensors
                with one; all of them must hold.
            scale: from which scale upwards it is judged; below, it is recorded as "not judged".
            **numbers: more numbers behind the verdict.

        Returns:
            Whether all conditions hold.

        Raises:
            ValueError: unknown scale, or the statement was judged before.
            TypeError: no condition, or one that is neither true nor false.
        """
        return self._recorder.claim(statement, conditions, scale, numbers)

    def metric(self, name: str, value: Any, *, better: str | None = None, unit: str = "") -> Measured:
        """Report a measured number of no arm, as :meth:`Arm.metric` does."""
        return self._recorder.metric(name, value, "", better=better, unit=unit, baseline=False)

    def data(self, name: str, *, origin: str) -> None:
        """Say which data are used; ``origin`` is ``"real"``, ``"simulated"`` or ``"stand-in"``."""
        self._recorder.data(name, origin)

    def note(self, text: str) -> None:
        """Add a remark, such as what could not be shown at this scale."""
        self._recorder.note(text)

    # What it costs

    def race(
        self,
        contenders: Mapping[str, Callable[[], Any]],
        *,
        rounds: int = 15,
        threads: int = 1,
        seconds: float = 0.0,
    ) -> Race:
        """Time callables against each other on the run's device, as :func:`pullback.lab.measure.race` does.

        Medians are ``race[name]``, ratios ``race.ratio(name, other)``; a claim on times is one on ratios.
        """
        return race(contenders, rounds=rounds, threads=threads, seconds=seconds, device=self.device)

    def peak_memory(self, call: Callable[[], Any], *, of: str = "") -> Measured:
        """Return the most bytes that tensors made in ``call`` take at one time (:func:`.measure.peak_memory`)."""
        return peak_memory(call, of=of, device=self.device)

    def operations(self, call: Callable[[], Any], *, of: str = "") -> Measured:
        """Return how many operations of matrix products ``call`` executes (:func:`pullback.lab.measure.operations`)."""
        return operations(call, of=of)

    def slope(self, x: Any, y: Any, *, confidence: float = 0.95, of: str = "") -> Slope:
        """Return the exponent of a power law with its confidence interval (:func:`pullback.lab.measure.slope`)."""
        return slope(x, y, confidence=confidence, of=of)

    # Figures of what was found

    def colour(self, name: str) -> str:
        """Return the colour of an arm, or of anything else that is drawn in several figures of the run."""
        if name not in self._colours:
            self._colours[name] = style.colour(len(self._colours))
            self._recorder.result.arms = list(self._colours)
        return self._colours[name]

    def curves(
        self, *names: str, arms: Sequence[Arm] = (), log: bool | None = None, xlabel: str = "step", caption: str = ""
    ) -> None:
        """Draw recorded series over their steps, one panel a name, every arm in its colour.

        Args:
            *names: of the series.
            arms: to draw; all that have the series when not given.
            log: whether the values are on a logarithmic axis; by default where they are positive and far apart.
            xlabel: what a step is.
            caption: of the figure.

        Raises:
            KeyError: nothing of that name was recorded.
        """
        shown = {name: self._recorder.found("series", name, [arm.name for arm in arms]) for name in names}
        drawn = figures.curves(shown, self._coloured(shown.values()), log=log, xlabel=xlabel)
        self.figure(f"{' and '.join(names)} by {xlabel}", drawn, caption)

    def bars(self, *names: str, arms: Sequence[Arm] = (), caption: str = "") -> None:
        """Draw metrics as bars, one panel a name, every arm in its colour; replicates as mean ± standard deviation.

        Args:
            *names: of the metrics.
            arms: to draw; all that have the metric when not given.
            caption: of the figure.

        Raises:
            KeyError: nothing of that name was measured.
        """
        shown = {name: self._recorder.found("metrics", name, [arm.name for arm in arms]) for name in names}
        self.figure(" and ".join(names), figures.bars(shown, self._coloured(shown.values())), caption)

    def scaling(
        self,
        sizes: Sequence[float],
        values: Mapping[str, Sequence[float]],
        *,
        name: str = "scaling",
        xlabel: str = "size",
        ylabel: str = "seconds",
        fit_from: float = 0.0,
        caption: str = "",
    ) -> dict[str, Slope]:
        """Draw what contenders cost over sizes in logarithms, with the power law fitted to each.

        Args:
            sizes: > 0, at least two.
            values: of each contender at each size, > 0.
            name: of the figure.
            xlabel: what the sizes count.
            ylabel: what the values are, with their unit.
            fit_from: smallest size that the power law is fitted to: below, fixed costs rule.
            caption: of the figure.

        Returns:
            The power laws, by contender.
        """
        fitted = [place for place, size in enumerate(sizes) if size >= fit_from]
        fits = {
            label: slope([sizes[i] for i in fitted], [costs[i] for i in fitted], of=label)
            for label, costs in values.items()
        }
        growth = [figures.Growth(each, self.colour(each), values[each], fits[each]) for each in values]
        self.figure(name, figures.scaling(sizes, growth, xlabel=xlabel, ylabel=ylabel), caption)
        return fits

    def images(
        self,
        rows: Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]],
        *,
        titles: Sequence[str] = (),
        name: str = "images",
        limits: tuple[float, float] = (0.0, 1.0),
        caption: str = "",
    ) -> None:
        """Draw a grid of images, such as inputs beside what each arm makes of them.

        Args:
            rows: of images as :meth:`image` takes them, by name where the rows have names (those of arms in their
                colours).
            titles: of the columns.
            name: of the figure.
            limits: black and white, for floats.
            caption: of the figure.

        Raises:
            ValueError: no image, or one of another shape.
        """
        colours = {arm.name: arm.colour for arm in self.arms.values()}
        self.figure(name, figures.images(rows, titles=titles, limits=limits, colours=colours), caption)

    def texts(
        self,
        lines: Mapping[str, Sequence[str]] | Sequence[tuple[str, Sequence[str]]],
        *,
        marked: Sequence[Sequence[bool]] = (),
        bold: Sequence[Sequence[bool]] = (),
        of: str = "marked",
        name: str = "texts",
        caption: str = "",
    ) -> None:
        """Write texts one below the other, such as sentences in which an arm marks words.

        Args:
            lines: of words, by name or as pairs of a name and words.
            marked: for each word of each line whether it is marked; none by default.
            bold: the same for words in bold.
            of: the arm or thing whose colour marks.
            name: of the figure.
            caption: of the figure.

        Raises:
            ValueError: no text, or another number of flags than words.
        """
        colour = self.colour(of)
        self.figure(name, figures.texts(lines, marked=marked, bold=bold, colour=colour), caption)

    def _coloured(self, groups: Iterable[Sequence[Series | Metric]]) -> dict[str, str]:
        return {each.of: self.colour(each.of) for group in groups for each in group}

    # Things to look at and listen to; one of the same kind and name replaces the former.

    def subplots(self, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
        """Return a figure and its axes as ``plt.subplots`` does, in the style of the gallery."""
        return style.subplots(rows, columns, **options)

    def figure(self, name: str, figure: Figure, caption: str = "") -> None:
        """Keep a matplotlib figure (PNG, and SVG where small)."""
        self._keep("figure", name, caption, lambda stem: files.figure(self.directory, stem, figure))

    def image(self, name: str, pixels: Any, caption: str = "") -> None:
        """Keep an image: ``[H, W]`` or ``[C, H, W]``, floats in [0, 1] (clipped) or bytes."""
        self._keep("image", name, caption, lambda stem: files.image(self.directory, stem, pixels))

    def animation(self, name: str, frames: Sequence[Any], caption: str = "", *, rate: float = 10.0) -> None:
        """Keep images that play at ``rate`` frames a second."""
        self._keep("animation", name, caption, lambda s: files.animation(self.directory, s, frames, rate=rate))

    def audio(self, name: str, waveform: Any, rate: int, caption: str = "") -> None:
        """Keep sound: ``[time]`` or ``[channels, time]`` in [-1, 1], ``rate`` samples a second."""
        self._keep("audio", name, caption, lambda stem: files.audio(self.directory, stem, waveform, rate=rate))

    def mesh(self, name: str, vertices: Any, faces: Any = None, caption: str = "", *, colours: Any = None) -> None:
        """Keep a mesh: ``[V, 3]`` vertices, ``[F, 3]`` faces (none: points), ``[V, 3]`` colours in [0, 1]."""
        self._keep("mesh", name, caption, lambda s: files.mesh(self.directory, s, vertices, faces, colours))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """Keep a table: the names of its columns, and its rows."""
        plain = [[c if isinstance(c, str | int) or c is None else number(name, c) for c in row] for row in rows]
        content = {"columns": list(columns), "rows": plain}
        self._keep("table", name, caption, lambda s: files.table(self.directory, s, columns, plain), content)

    def _keep(self, kind: str, name: str, caption: str, write: Any, content: Any = None) -> None:
        self._recorder.keep(kind, name, caption, write, content)

    # Several devices

    def prepare(self, *objects: Any) -> Any:
        """Put modules (and optimizers, loaders) on the device; with several processes, hand them to ``accelerate``.

        Gradients are then averaged over the processes: with :meth:`shard` a step equals one on the whole batch.

        Returns:
            The objects to use in their place: one, or a tuple in the same order.
        """
        return self._processes.prepare(*objects)

    def shard(self, batch: Tensor) -> Tensor:
        """Return this process's part of ``[batch, ...]``: all of it where there is one process.

        Raises:
            ValueError: the batch cannot be divided evenly.
        """
        return self._processes.shard(batch)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of ``value`` over the processes (itself where there is one)."""
        return self._processes.mean(value)

    # For the runner

    def request_stop(self) -> bool:
        """Ask the running loop to stop after its step; ``False`` when no loop runs that could."""
        return self._loops.request_stop()

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a run that is complete."""
        self._loops.remove_checkpoints()

    def finish(self, status: str, error: str = "") -> RunResult:
        """Write the final record."""
        return self._recorder.finish(status, error)
