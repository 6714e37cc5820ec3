"""Learning from a stream in which classes come one group after the other: the stream, and what is kept of it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Tensor

__all__ = ["ClassStream", "ContinualMetrics", "class_incremental_stream", "continual_metrics"]


class ClassStream(NamedTuple):
    """A stream of samples, each seen once.

    Attributes:
        classes: the classes of each task, in order.
        batches: each task's batches, as indices of the samples.
    """

    classes: tuple[tuple[int, ...], ...]
    batches: tuple[tuple[Tensor, ...], ...]


def class_incremental_stream(
    labels: Int[Tensor, "n"], classes_per_task: int, *, batch: int, generator: torch.Generator | None = None
) -> ClassStream:
    """Deal the classes to tasks at random, and the samples of each task to batches at random.

    Args:
        labels: ``[n]`` integers; the classes are those that occur.
        classes_per_task: >= 1; the last task has what is left.
        batch: samples a batch, >= 1; the last of a task may be smaller.
        generator: draws both orders.

    Returns:
        :class:`ClassStream`: ``classes``, ``batches``.

    Raises:
        TypeError: ``labels`` are no integers, or a number is not.
        ValueError: there is no sample, or a number is out of range.

    Example:
        >>> stream = class_incremental_stream(torch.tensor([5, 7, 5, 9]), 2, batch=2)
        >>> [len(classes) for classes in stream.classes], sum(len(b) for task in stream.batches for b in task)
        ([2, 1], 4)
    """
    check_tensor("labels", labels)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels must have at least one sample, got shape {tuple(labels.shape)}")
    check_integer("classes_per_task", classes_per_task, 1)
    check_integer("batch", batch, 1)
    device = drawing_device(generator, labels)
    present = labels.unique()
    order = present[torch.randperm(len(present), generator=generator, device=device).to(labels.device)]
    classes, batches = [], []
    for task in order.split(classes_per_task):
        found = torch.isin(labels, task).nonzero().flatten()
        mixed = found[torch.randperm(len(found), generator=generator, device=device).to(labels.device)]
        classes.append(tuple(task.tolist()))
        batches.append(mixed.split(batch))
    return ClassStream(tuple(classes), tuple(batches))


class ContinualMetrics(NamedTuple):
    """What is left at the end of a stream of T tasks.

    Attributes:
        average_accuracy: ``[*batch]`` mean accuracy over all tasks at the end.
        forgetting: ``[*batch]`` mean fall of a task from its best to the end; the last task has none.
        backward_transfer: ``[*batch]`` mean change of a task from when it was learned to the end.
    """

    average_accuracy: Tensor
    forgetting: Tensor
    backward_transfer: Tensor


def continual_metrics(accuracy: Float[Tensor, "*batch tasks tasks"]) -> ContinualMetrics:
    r"""Return average accuracy, forgetting and backward transfer of a matrix of accuracies.

    With ``R_ij`` the accuracy on task j after learning task i, of T tasks: ``mean_j R_Tj``; the mean over ``j < T`` of
    ``max_{i < T} R_ij - R_Tj``; and of ``R_Tj - R_jj``.

    Args:
        accuracy: ``[*batch, T, T]``.

    Returns:
        :class:`ContinualMetrics`; for a single task forgetting and transfer are 0.

    Raises:
        TypeError: ``accuracy`` is not a floating tensor.
        ValueError: it is not square, or empty.

    Example:
        >>> continual_metrics(torch.tensor([[0.75, 0.0], [0.5, 1.0]]))
        ContinualMetrics(average_accuracy=tensor(0.7500), forgetting=tensor(0.2500), backward_transfer=tensor(-0.2500))

    References:
        Lopez-Paz, Ranzato (2017), Gradient episodic memory, section 2. Chaudhry et al. (2018), Riemannian walk,
        section 3.
    """
    check_floating("accuracy", accuracy)
    if accuracy.ndim < 2 or accuracy.shape[-1] != accuracy.shape[-2] or not accuracy.shape[-1]:
        raise ValueError(f"accuracy must be a square matrix of tasks, got shape {tuple(accuracy.shape)}")
    last = accuracy[..., -1, :]
    if accuracy.shape[-1] == 1:
        return ContinualMetrics(last.mean(-1), torch.zeros_like(last[..., 0]), torch.zeros_like(last[..., 0]))
    before = accuracy[..., :-1, :-1]
    forgetting = (before.amax(-2) - last[..., :-1]).mean(-1)
    transfer = (last[..., :-1] - before.diagonal(dim1=-2, dim2=-1)).mean(-1)
    return ContinualMetrics(last.mean(-1), forgetting, transfer)
