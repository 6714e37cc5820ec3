"""``pullback.watch`` as a callback of Hugging Face's ``Trainer``."""

from __future__ import annotations

from typing import Any

from pullback.integrations.callbacks import Watching, load

__all__ = ["GradientCallback"]

GradientCallback: Any  # made when it is first asked for: its base is the library's, which need not be installed


def __getattr__(name: str) -> Any:
    if name != "GradientCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = _make(load("transformers", "TrainerCallback"))
    return made


def _make(base: type) -> type:
    class GradientCallback(Watching, base):
        """Watch the gradients of a training: ``Trainer(..., callbacks=[GradientCallback(every=100)])``.

        Findings are warnings (:class:`pullback.GradientWarning`); the numbers of each look go into the Trainer's log
        with what it logs next, and so to every tracker that it reports to.

        Args:
            every: look at every so many optimizer steps.
            ignore: patterns of names of parameters not to report.

        Attributes:
            watching: the :class:`pullback.watch` of the current or latest training, ``None`` before the first.
        """

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            """Begin to watch."""
            self.begin(model, state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            """Add the numbers of the latest look."""
            if logs is not None:
                logs.update(self.numbers())

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """End watching."""
            self.end()

    GradientCallback.__module__, GradientCallback.__qualname__ = __name__, "GradientCallback"
    return GradientCallback
