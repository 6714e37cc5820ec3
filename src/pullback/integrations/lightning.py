"""``pullback.watch`` as a callback of Lightning's ``Trainer``."""

from __future__ import annotations

from typing import Any

from pullback.integrations.callbacks import Watching, load

__all__ = ["GradientCallback"]

GradientCallback: Any  # made when it is first asked for: its base is the library's, which need not be installed


def __getattr__(name: str) -> Any:
    if name != "GradientCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = _make(load("lightning.pytorch.callbacks", "Callback", "pytorch_lightning.callbacks"))
    return made


def _make(base: type) -> type:
    class GradientCallback(Watching, base):
        """Watch the gradients of a training: ``Trainer(callbacks=[GradientCallback(every=100)])``.

        Findings are warnings (:class:`pullback.GradientWarning`); the numbers of each look go to the module's logger.

        Args:
            every: look at every so many optimizer steps.
            ignore: patterns of names of parameters not to report.

        Attributes:
            watching: the :class:`pullback.watch` of the current or latest training, ``None`` before the first.
        """

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Begin to watch."""
            self.begin(pl_module, trainer.global_step)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *more: Any
        ) -> None:
            """Log the numbers of a look in this batch."""
            numbers = self.numbers()
            if numbers:
                pl_module.log_dict(numbers)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            """End watching."""
            self.end()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            """End watching where the training is broken off."""
            self.end()

    GradientCallback.__module__, GradientCallback.__qualname__ = __name__, "GradientCallback"
    return GradientCallback
