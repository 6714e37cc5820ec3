"""Files of a run are what their endings say, read back by other libraries."""

from __future__ import annotations

import csv
import math
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from pullback.lab.draw import files, style


def test_images_keep_their_pixels(tmp_path: Path) -> None:
    grey = torch.tensor([[0.0, 0.5], [1.0, 2.0]])
    files.image(tmp_path, "grey", grey)
    assert np.asarray(Image.open(tmp_path / "grey.png")).tolist() == [[0, 128], [255, 255]]
    colour = torch.zeros(3, 5, 7)
    colour[0] = 1
    files.image(tmp_path, "colour", colour)
    pixels = np.asarray(Image.open(tmp_path / "colour.png"))
    assert pixels.shape == (5, 7, 3)
    assert pixels[2, 3].tolist() == [255, 0, 0]
    files.image(tmp_path, "bytes", np.full((4, 6, 3), 9, np.uint8))
    assert np.asarray(Image.open(tmp_path / "bytes.png")).shape == (4, 6, 3)


def test_animations_keep_their_frames_and_pace(tmp_path: Path) -> None:
    files.animation(tmp_path, "film", [torch.full((4, 4), x) for x in (0.0, 0.5, 1.0)], rate=20)
    film = Image.open(tmp_path / "film.png")
    assert film.n_frames == 3
    assert film.info["duration"] == pytest.approx(50)
    film.seek(2)
    assert film.getpixel((0, 0)) == 255


def test_sound_is_a_wav_of_the_same_tone(tmp_path: Path) -> None:
    tone = torch.stack([torch.sin(2 * math.pi * 440 * torch.arange(8000) / 8000), torch.zeros(8000)])
    files.audio(tmp_path, "tone", tone, rate=8000)
    with wave.open(str(tmp_path / "tone.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 2, 8000)
        samples = np.frombuffer(file.readframes(8000), "<i2").reshape(-1, 2) / 32767
    np.testing.assert_allclose(samples, tone.T.numpy(), atol=1e-4)


def test_sound_that_is_too_loud_is_scaled_not_clipped(tmp_path: Path) -> None:
    files.audio(tmp_path, "loud", [0.0, 2.0, -4.0], rate=10)
    with wave.open(str(tmp_path / "loud.wav")) as file:
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [0, 16384, -32767]


def test_a_mesh_is_a_ply_with_its_numbers(tmp_path: Path) -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    files.mesh(tmp_path, "mesh", vertices, faces, vertices)
    header, _, body = (tmp_path / "mesh.ply").read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "element vertex 4" in lines
    assert "element face 2" in lines
    point = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
    points = np.frombuffer(body, point, 4)
    corners = np.frombuffer(body[4 * point.itemsize :], np.dtype([("n", "u1"), ("i", "<i4", 3)]), 2)
    assert points["xyz"].tolist() == vertices.tolist()
    assert points["rgb"][1].tolist() == [255, 0, 0]
    assert corners["i"].tolist() == faces.tolist()
    assert len(body) == 4 * 15 + 2 * 13


def test_a_table_is_csv(tmp_path: Path) -> None:
    files.table(tmp_path, "table", ["a", "b"], [["x, y", 1.5], ["z", 2]])
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["x, y", "1.5"], ["z", "2"]]


def test_figures_read_on_light_and_dark(tmp_path: Path) -> None:
    figure, axes = style.subplots(1, 2, sharey=True)
    axes[0].plot([1, 2], label="curve")
    axes[0].legend()
    axes[1].set_title("title")
    axes[1].text(0.5, 0.5, "note")
    assert files.figure(tmp_path, "f", figure) == ("f.png", "f.svg")
    assert {text.get_color() for text in figure.findobj(Text) if text.get_text()} == {style.INK}
    pixels = np.asarray(Image.open(tmp_path / "f.png"))
    assert not ((pixels[..., :3] > 240).all(-1) & (pixels[..., 3] > 0)).any(), "nothing is white, not even a legend"
    assert pixels[0, 0, 3] == 0, "the ground is transparent"
    assert (pixels[..., 3] > 0).any()
    assert "<svg" in (tmp_path / "f.svg").read_text()


def test_a_large_figure_is_no_svg(tmp_path: Path) -> None:
    figure, axes = style.subplots()
    axes.scatter(*np.random.default_rng(0).random((2, 5000)))
    assert files.figure(tmp_path, "f", figure) == ("f.png",)


def test_the_ink_has_contrast_on_white_and_on_black() -> None:
    channel = int(style.INK[1:3], 16) / 255
    luminance = ((channel + 0.055) / 1.055) ** 2.4
    assert (1 + 0.05) / (luminance + 0.05) >= 4.5
    assert (luminance + 0.05) / 0.05 >= 4.5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda d: files.image(d, "x", torch.zeros(2, 5, 5)), r"image must have shape .* got \(2, 5, 5\)"),
        (lambda d: files.image(d, "x", torch.full((2, 2), math.nan)), "image must be finite"),
        (lambda d: files.image(d, "x", torch.zeros(2, 2, dtype=torch.int64)), "floats in .* got int64"),
        (lambda d: files.animation(d, "x", [], rate=1), "at least one image"),
        (lambda d: files.animation(d, "x", [torch.zeros(2, 2), torch.zeros(3, 3)], rate=1), "all of one shape"),
        (lambda d: files.audio(d, "x", torch.zeros(9, 5), rate=8), "waveform must have shape"),
        (lambda d: files.audio(d, "x", torch.zeros(5), rate=0), "rate must be >= 1"),
        (lambda d: files.mesh(d, "x", torch.zeros(3, 2)), "vertices must have shape"),
        (lambda d: files.mesh(d, "x", torch.zeros(3, 3), torch.tensor([[0, 1, 3]])), r"faces must be in \[0, 2\]"),
        (lambda d: files.table(d, "x", ["a"], [[1, 2]]), "row 0 must have 1 values"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(call: object, match: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        call(tmp_path)  # type: ignore[operator]
    assert not list(tmp_path.iterdir())
