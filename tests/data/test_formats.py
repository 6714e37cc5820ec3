"""The file formats, on files made here; and what each fetched set holds (`make data` brings them all)."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import re
import shutil
import sqlite3
import struct
import subprocess
import wave
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from PIL import Image

from pullback import data
from pullback.data import builders, chemical_formats, formats, geometry_formats, gguf, text_formats


def _gguf(tensors: list[tuple[str, tuple[int, ...], int, bytes]]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2)
    head += text("size") + struct.pack("<II", 4, 7)
    head += text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    body = b""
    for name, shape, kind, content in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape[::-1])
        head += struct.pack("<IQ", kind, len(body))
        body += content + b"\0" * (-len(content) % 32)
    return head + b"\0" * (-len(head) % 32) + body


def test_gguf_blocks_decode_to_what_was_encoded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(3, 2)).astype("<f4")
    nibbles, scale, low = rng.integers(0, 16, 32), np.float16(0.5), np.float16(-3)
    packed = scale.tobytes() + low.tobytes() + bytes(int(a) | int(b) << 4 for a, b in zip(nibbles[:16], nibbles[16:]))
    signed = rng.integers(-128, 128, 64).astype(np.int8)
    eights = b"".join(np.float16(s).tobytes() + part.tobytes() for s, part in zip((0.25, 2.0), signed.reshape(2, 32)))
    path = tmp_path / "model.gguf"
    path.write_bytes(
        _gguf([("plain", (3, 2), 0, plain.tobytes()), ("four", (1, 32), 3, packed), ("eight", (2, 32), 8, eights)])
    )
    opened = gguf.read_gguf(path)
    assert opened.metadata == {"size": 7, "words": ["a", "bc"]}
    np.testing.assert_array_equal(opened.tensors["plain"](), plain)
    np.testing.assert_array_equal(opened.tensors["four"](), 0.5 * nibbles[None] - 3)
    np.testing.assert_array_equal(opened.tensors["eight"](), signed.reshape(2, 32) * np.array([[0.25], [2.0]]))


def test_gguf_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" * 10)
    with pytest.raises(ValueError, match="not a GGUF file"):
        gguf.read_gguf(path)
    path.write_bytes(_gguf([("strange", (32,), 12, b"\0" * 32)]))
    with pytest.raises(ValueError, match="strange has format 12"):
        gguf.read_gguf(path)


def test_obj_keeps_the_asked_groups() -> None:
    text = b"# a mesh\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\ng body\nf 1/1 2/2 3/3 4/4\ng joint\nf 4/1 3/1 2/1 1/1\n"
    vertices, faces = geometry_formats.obj(text, ("body",))
    assert vertices.shape == (4, 3)
    assert faces.tolist() == [[0, 1, 2, 3]]


def test_off_and_ply_refuse_what_they_cannot_read() -> None:
    with pytest.raises(ValueError, match="not an OFF file"):
        geometry_formats.off(b"ply\n")
    with pytest.raises(ValueError, match="must be a triangle"):
        geometry_formats.off(b"OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"[:-2] + b"\n")
    with pytest.raises(ValueError, match="not an ASCII PLY"):
        geometry_formats.ply(b"ply\nformat binary_little_endian 1.0\nend_header\n")


def _surface(vertices: np.ndarray, faces: np.ndarray, encoding: str = "GZipBase64Binary") -> bytes:
    kinds = {"float32": "NIFTI_TYPE_FLOAT32", "int32": "NIFTI_TYPE_INT32"}
    parts = [
        f'<DataArray DataType="{kinds[str(x.dtype)]}" ArrayIndexingOrder="RowMajorOrder" Dimensionality="2" '
        f'Dim0="{x.shape[0]}" Dim1="{x.shape[1]}" Encoding="{encoding}" Endian="LittleEndian">'
        f"<Data>{base64.b64encode(zlib.compress(x.tobytes())).decode()}</Data></DataArray>"
        for x in (vertices, faces)
    ]
    return f"<GIFTI>{''.join(parts)}</GIFTI>".encode()


def test_surfaces_of_a_hemisphere_share_their_triangles() -> None:
    vertices, faces = np.eye(3, dtype=np.float32), np.array([[0, 1, 2]], dtype=np.int32)
    read = geometry_formats.gifti(_surface(vertices, faces))
    np.testing.assert_array_equal(read[0], vertices)
    np.testing.assert_array_equal(read[1], faces)
    built = builders.cortex({"pial_left": _surface(vertices, faces), "white_left": _surface(2 * vertices, faces)})
    assert sorted(built) == ["faces_left", "pial_left", "white_left"]
    with pytest.raises(ValueError, match="white_left: its triangles must be those of the other"):
        builders.cortex({"pial_left": _surface(vertices, faces), "white_left": _surface(vertices, faces[:, ::-1])})
    with pytest.raises(ValueError, match="GIFTI: an array is stored as NIFTI_TYPE_FLOAT32, ASCII"):
        geometry_formats.gifti(_surface(vertices, faces, "ASCII"))
    with pytest.raises(ValueError, match="not a GIFTI file: its root is 'svg'"):
        geometry_formats.gifti(b"<svg/>")


def test_a_sheet_of_digits_is_cut_into_tiles() -> None:
    sheet = np.arange(50, dtype=np.uint8).repeat(20)[:, None] + np.arange(100, dtype=np.uint8).repeat(20)[None]
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "png")
    cut = builders.opencv_digits({"sheet": file.getvalue()})
    assert cut["images"].shape == (5000, 20, 20)
    assert (cut["images"][7 * 100 + 31] == 38).all()
    assert cut["labels"][[0, 499, 500, 4999]].tolist() == [0, 0, 1, 9]


def test_letters_are_a_capital_and_measurements() -> None:
    table = builders.letters({"table": b"T,2,15\nA,0,1\n"})
    assert table["labels"].tolist() == [19, 0]
    assert table["features"].tolist() == [[2, 15], [0, 1]]


def test_reviews_are_those_of_critics_and_words_have_their_mean_rating() -> None:
    table = 'category,text,movie_name\nplot,A man.,a\nfresh,"Fine, ""very"".\nYes",a\nrotten,No é,b\n'
    built = builders.reviews({"table": bz2.compress(table.encode())})
    assert built["favourable"].tolist() == [True, False]
    assert text_formats.split_strings(built, "text") == ['Fine, "very".\nYes', "No é"]
    assert text_formats.split_strings(built, "movie_name") == ["a", "b"]
    rated = builders.sentiment({"ratings": b"good\t1.9\t0.9\t[2]\n:(\t-1.5\t1\t[-1]\n"})
    assert text_formats.split_strings(rated, "word") == ["good", ":("]
    assert rated["rating"].tolist() == [1.9, -1.5]


def test_characters_are_places_in_an_alphabet() -> None:
    codes = data.characters("A wise-ox:\n B", "-abo")
    assert "".join("-abo"[k] for k in codes.tolist()) == "a-o-b"
    assert data.characters("xyz", "-").tolist() == [0]
    with pytest.raises(ValueError, match="alphabet must have different characters, got 'aa'"):
        data.characters("", "aa")


def test_a_road_is_kept_once() -> None:
    file = io.BytesIO()
    adjacency = scipy.sparse.csc_array(np.array([[0, 0, 1], [0, 0, 2], [1, 2, 0]], dtype=float))
    scipy.io.savemat(file, {"A": adjacency, "xy": np.arange(6.0).reshape(3, 2)})
    roads = builders.roads({"roads": file.getvalue()})
    assert roads["edges"].tolist() == [[0, 2], [1, 2]]
    assert roads["positions"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_weather_is_an_hour_a_line_below_the_station() -> None:
    names = [*builders._WEATHER.values(), "Wspd source"]
    header = ",".join(["Date (MM/DD/YYYY)", "Time (HH:MM)", *names])
    rows = "02/28/1996,24:00,1.5,0.5,90,1010,270,4.1,0,A\n03/01/2003,01:00,2,1,80,1000,90,5,0,B\n"
    year = builders.weather({"here": f'1,"HERE",AK\n{header}\n{rows}'.encode()})
    assert year["here/columns"].tolist()[7:] == ["wind direction", "wind speed", "irradiance", "wind measured"]
    assert year["here/values"][:, [0, 1, 2, 8, 10]].tolist() == [[2, 28, 24, 4.1, 1], [3, 1, 1, 5, 0]]


def test_a_track_is_a_point_a_line() -> None:
    track = builders.ride({"track": b"lon,lat,alt\n16.5,51.5,118.0\n16.6,51.6,120.0\n"})["track"]
    assert track.tolist() == [[16.5, 51.5, 118.0], [16.6, 51.6, 120.0]]
    with pytest.raises(ValueError, match="columns lon, lat, alt, got a, b"):
        builders.ride({"track": b"a,b\n1,2\n"})


def test_a_glucose_trace_is_a_reading_a_line() -> None:
    trace = b"isig,datetime,glucose\n22.5,2010-03-24 09:51:30,258\n22.5,2010-03-25 00:01:00,260\n"
    arrays = builders.glucose({"trace": trace, "patients": b"Name,BW\nb,60\na,70\n"})
    assert arrays["minutes"].tolist() == [591.5, 1441.0]
    assert arrays["glucose"].tolist() == [258.0, 260.0]
    assert arrays["patients/values"].tolist() == [[1.0, 60.0], [0.0, 70.0]]
    with pytest.raises(ValueError, match="columns isig, datetime, glucose, got a, b"):
        builders.glucose({"trace": b"a,b\n1,2\n", "patients": b"Name\na\n"})


def test_a_trace_is_cut_at_its_gaps() -> None:
    times = torch.tensor([0.0, 5, 10, 14, 40, 45, 45, 50, 55, 60])
    windows = data.even_windows(times, torch.arange(10.0), step=5.0, length=3)
    assert windows.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert data.even_windows(times, times, step=1.0, length=3).shape == (0, 3)
    with pytest.raises(ValueError, match=r"one shape \[n\]"):
        data.even_windows(times, times[1:], step=5.0, length=3)


def test_speech_keeps_the_recordings_that_have_a_text() -> None:
    def sound(samples: list[int]) -> bytes:
        file = io.BytesIO()
        with wave.open(file, "wb") as opened:
            opened.setnchannels(1)
            opened.setsampwidth(2)
            opened.setframerate(8000)
            opened.writeframes(np.array(samples, dtype="<i2").tobytes())
        return file.getvalue()

    root = "usr/share/asterisk/sounds/en_US_f_Allison"
    stored = builders.speech(
        {
            f"{root}/digits/1.wav": sound([1, 2, 3]),
            f"{root}/hello.wav": sound([-5]),
            f"{root}/silent.wav": sound([0]),
            "texts": b"; texts\nhello: Hello.\ndigits/1: one\n",
        }
    )
    assert text_formats.split_strings(stored, "names") == ["digits/1", "hello"]
    assert text_formats.split_strings(stored, "texts") == ["one", "Hello."]
    assert [part.tolist() for part in text_formats.split_arrays(stored, "samples")] == [[1, 2, 3], [-5]]
    assert stored["rate"] == 8000


def test_words_and_gaps_in_tables() -> None:
    table = formats.mixed_csv("\ufeffx,kind\n1.5,b\nNA,a\n2,b\n".encode())
    np.testing.assert_array_equal(table["values"], [[1.5, 1], [np.nan, 0], [2, 1]])
    assert table["columns"].tolist() == ["x", "kind"]
    assert table["words kind"].tolist() == ["a", "b"]


def test_columns_without_names() -> None:
    cars = b"8,307.0,130,3504,12.0,70,1,chevrolet chevelle malibu,18.0\n4,97,46,1835,20.5,70,2,vw sedan,26.0\n"
    tables = builders.quantities({"autompg": gzip.compress(cars), "other": b"1e2,-3\n"})
    np.testing.assert_array_equal(
        tables["autompg"], [[8, 307, 130, 3504, 12, 70, 1, 18], [4, 97, 46, 1835, 20.5, 70, 2, 26]]
    )
    assert tables["other"].tolist() == [[100, -3]]


def _compress(content: bytes) -> bytes:
    """Compress as Unix ``compress -b 16`` does, without the header (an encoder written for this test)."""
    table = {bytes([i]): i for i in range(256)}
    following, width, codes, word = 257, 9, [], b""
    for byte in content:
        longer = word + bytes([byte])
        if longer in table:
            word = longer
            continue
        codes.append((table[word], following))
        table[longer] = following
        following += 1
        word = bytes([byte])
    codes.append((table[word], following))
    bits: list[int] = []
    group = 0
    for code, known in codes:
        if known - 1 >= 1 << width:  # the decoder's dictionary is one entry behind
            bits += [0] * ((-group % 8) * width)
            width, group = width + 1, 0
        bits += [code >> i & 1 for i in range(width)]
        group += 1
    bits += [0] * (-len(bits) % 8)
    return bytes(sum(bit << i for i, bit in enumerate(bits[j : j + 8])) for j in range(0, len(bits), 8))


def test_lzw_undoes_compress_and_agrees_with_gzip() -> None:
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, rng.integers(2, 8)).astype(np.uint8)) for _ in range(300)]
    text = b" ".join(words[i] for i in rng.integers(0, 300, 3000)) + b"aaaaaaaaaaaaaaaa"
    packed = _compress(text)
    assert len(packed) < 0.8 * len(text)
    assert text_formats.lzw(packed) == text
    if shutil.which("gzip"):
        judged = subprocess.run(["gzip", "-dc"], input=b"\x1f\x9d\x90" + packed, capture_output=True, check=False)
        assert judged.stdout == text
    with pytest.raises(ValueError, match="not in the dictionary"):
        text_formats.lzw(bytes([65, 255, 255]))


def _verses() -> None:
    verses = data.bible()
    assert len(verses) == 31_102
    assert verses[0] == data.Verse("Ge", 1, 1, "In the beginning God created the heaven and the earth.")
    assert verses[-1].book == "Rev"
    assert len({verse.book for verse in verses}) == 66


def _reviews() -> None:
    reviews = data.film_reviews()
    assert len(reviews) == 12_808
    assert sum(review.favourable for review in reviews) == 7_403
    assert reviews[0].text == "A three-hour cinema master class."
    # What critics say of a film agrees with the ratings of the words that they use.
    words = data.sentiment_words()
    tone = [sum(words.get(word, 0) for word in review.text.lower().split()) for review in reviews]
    means = [np.mean([t for t, r in zip(tone, reviews, strict=True) if r.favourable == good]) for good in (0, 1)]
    assert means[1] > means[0] + 0.3


def _sentiment() -> None:
    words = data.sentiment_words()
    assert all(-4 <= rating <= 4 for rating in words.values())
    assert words["superb"] > 2 > words["okay"] > 0 > words["dull"]


def _adult() -> None:
    adult = data.fairness("adult")
    assert adult.values.shape == (48_842, 106)
    assert 17 <= adult.column("age").min() < adult.column("age").max() <= 90
    with pytest.raises(ValueError, match="did you mean 'age'"):
        adult.column("aeg")


def _bodies() -> None:
    body = data.body()
    assert body.vertices.shape == (19_158, 3)
    skin = body.skin[body.faces.unique()].sum(-1)
    torch.testing.assert_close(skin, torch.ones_like(skin), atol=1e-3, rtol=0)
    assert int((body.parents < 0).sum()) == 1
    height = body.heads[:, 2].max() - body.heads[:, 2].min()
    assert 1.0 < height < 2.5  # metres


def _outlines() -> None:
    outlines = data.buildings()
    assert len(outlines) == 144
    for outline in outlines:
        assert len(outline) >= 4
        assert not torch.equal(outline[0], outline[-1])
        x, y = outline.unbind(-1)
        area = float((x * y.roll(-1) - y * x.roll(-1)).sum().abs()) / 2
        assert 10 < area < 10_000  # square metres


def _meshes() -> None:
    for name in ("bunny00", "armadillo", "cow"):
        mesh = data.mesh(name)
        assert mesh.faces.max() == len(mesh.vertices) - 1
        edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
        assert len(edges.sort(-1).values.unique(dim=0)) <= 1.55 * len(mesh.faces)  # a surface, not a soup


def _cortices() -> None:
    for level in (5, 3):
        sphere, pial, white = (data.cortex(name, "right", level=level) for name in ("sphere", "pial", "white"))
        assert torch.equal(sphere.faces, pial.faces)
        edges = torch.cat([pial.faces[:, [0, 1]], pial.faces[:, [1, 2]], pial.faces[:, [2, 0]]])
        undirected = edges.sort(-1).values.unique(dim=0)
        assert len(edges.unique(dim=0)) == 2 * len(undirected)  # every edge once in each direction: closed, one way
        assert len(pial.vertices) - len(undirected) + len(pial.faces) == 2
        volumes = [torch.linalg.det(mesh.vertices[mesh.faces].double()).sum() / 6 for mesh in (sphere, pial, white)]
        assert abs(float(volumes[0]) / (4e6 / 3 * torch.pi) - 1) < 0.02  # outwards, of radius 100
        assert 2e5 < volumes[2] < volumes[1] < 6e5  # grey matter lies around white, in cubic millimetres
    with pytest.raises(ValueError, match="surface must be one of 'pial'"):
        data.cortex("mid")
    with pytest.raises(ValueError, match=r"level must be in 0..5"):
        data.cortex(level=6)


def _fashion() -> None:
    assert data.fashion_mnist("train").labels.bincount().tolist() == [6000] * 10
    test = data.fashion_mnist("test")
    assert test.images.shape == (10_000, 28, 28)
    assert 0 <= test.images.min() < test.images.max() == 1


def _networks() -> None:
    network = data.bayesian_network("asia")
    assert network.parents["dysp"] == ["bronc", "either"] or set(network.parents["dysp"]) == {"bronc", "either"}
    for name, table in network.tables.items():
        assert table.shape == tuple(len(network.states[p]) for p in (*network.parents[name], name))
        np.testing.assert_allclose(table.sum(-1), 1)


def _prompts() -> None:
    prompts = {prompt.name: prompt for prompt in data.prompts()}
    assert len(prompts) == 568
    assert prompts["digits/7"].rate == 8000
    assert prompts["digits/7"].text.lower().startswith("seven")
    assert 0.05 < prompts["digits/7"].samples.abs().max() <= 1


def _calibrations() -> None:
    views = data.calibration()
    assert views.left.shape == views.right.shape == (13, 480, 640)
    assert views.matrix[0, 0] == pytest.approx(535.9157, abs=1e-3)
    assert views.distortion.shape == (5,)


def _scan() -> None:
    scan = data.scan("rs1")
    assert scan.points.shape == (114_373, 3)
    torch.testing.assert_close(scan.normals.norm(dim=-1), torch.ones(114_373), atol=1e-3, rtol=0)


def _photo() -> None:
    assert data.photo("starry_night").shape == (600, 752, 3)


def _opencv_digit() -> None:
    assert data.opencv_digits().labels.bincount().tolist() == [500] * 10


def _letters() -> None:
    table = data.letters()
    assert table.features.shape == (20_000, 16)
    assert (table.features.min(), table.features.max()) == (0, 15)
    assert table.target.bincount()[[0, 25]].tolist() == [789, 734]  # as UCI says
    # An I is narrower than an M.
    width = table.features[:, table.feature_names.index("width")]
    assert width[table.target == 8].mean() < width[table.target == 12].mean() / 2


_ACETATE = b"""acetate, deuterium label
  by hand

  4  3  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.1000   -0.5000 C   0  0  0  0  0  0
    1.5000    0.0000    0.0000 C   0  0
    2.2500    1.3000    0.0000 O   0  5  0
    2.2500   -1.3000    0.0000 O   0  0
  1  2  1  0
  2  3  1  0
  2  4  2  0
%sM  END
>  <SOL>  (1)
-0.5

> <Name>
acetate

$$$$
"""


@pytest.mark.parametrize(("line", "charges"), [(b"", [0, 0, -1, 0]), (b"M  CHG  2   1   1   4  -2\n", [1, 0, 0, -2])])
def test_molecules_of_an_sdf_file(line: bytes, charges: list[int]) -> None:
    for content in (_ACETATE % line, (_ACETATE % line).replace(b"\n", b"\r\n")):
        first, second = chemical_formats.sdf(content + content)
        np.testing.assert_array_equal(first.elements, [6, 6, 8, 8])
        np.testing.assert_array_equal(first.charges, charges)
        np.testing.assert_array_equal(first.positions[0], [0, 0.1, -0.5])
        np.testing.assert_array_equal(first.bonds, [[0, 1], [1, 2], [1, 3]])
        np.testing.assert_array_equal(first.orders, [1, 1, 2])
        assert first.items == second.items == {"sol": "-0.5", "name": "acetate"}
    with pytest.raises(ValueError, match="not a V2000 table: 'acetate"):
        chemical_formats.sdf((_ACETATE % line).replace(b"V2000", b"V3000"))
    with pytest.raises(ValueError, match="unknown elements: Xx"):
        chemical_formats.sdf((_ACETATE % line).replace(b" O ", b" Xx", 1))


def _survivals() -> None:
    table = data.survival("gbsg2")
    assert table.values.shape == (686, 10)
    assert table.words["horTh"] == ("no", "yes")


def _quantities() -> None:
    cars, homes = data.autompg(), data.boston(dtype=torch.float64)
    assert (cars.features.shape, homes.features.shape) == ((392, 7), (506, 13))
    weight, rooms = cars.features[:, cars.feature_names.index("weight")], homes.features[:, 5]
    assert torch.stack([weight, cars.target]).corrcoef()[0, 1] < -0.8
    assert torch.stack([rooms, homes.target]).corrcoef()[0, 1] > 0.65
    assert homes.target.max() == 50
    tables = data.regression_tables()
    assert {name: len(table.target) for name, table in tables.items()} == {
        **{"diabetes": 442, "cars": 392, "homes": 506, "crime": 1993},
        **{"wind": 8751, "temperature": 8730, "CD4 cells": 2139, "Akt": 7466},
    }
    for table in tables.values():
        assert table.features.isfinite().all()
        assert len(table.feature_names) == table.features.shape[1]
        assert table.target_names[0] not in table.feature_names
    wind = tables["wind"]
    now, ago = (wind.features[:, wind.feature_names.index(f"wind speed{when}")] for when in ("", " six hours ago"))
    assert torch.equal(now[:-6], ago[6:])
    assert torch.equal(wind.target[:-3], now[3:])


def _weather() -> None:
    year = data.weather()
    assert year.values.shape == (8760, 11)
    assert year.column("month").unique(return_counts=True)[1][1] == 28 * 24
    wind, warm = year.column("wind speed"), year.column("temperature")
    assert 0 <= wind.min() < wind.max() < 40
    assert warm[year.column("month") == 7].mean() > warm[year.column("month") == 1].mean()
    assert data.weather("greensboro").column("wind measured").mean() > 0.99


def _livers() -> None:
    visits = data.liver()
    assert visits.values.shape == (1945, 21)
    _, first = np.unique(visits.column("id").numpy(), return_index=True)
    assert len(first) == 312
    ends = [visits.words["status"][int(s)] for s in visits.column("status")[first]]
    assert [ends.count(end) for end in ("alive", "dead", "transplanted")] == [143, 140, 29]
    assert bool((visits.column("year") <= visits.column("years") + 1e-6).all())


def _road_network() -> None:
    roads = data.roads()
    assert roads.positions.shape == (2642, 2)
    assert len(roads.edges) == 3303
    ends = roads.positions[roads.edges]
    assert (ends[:, 0] - ends[:, 1]).norm(dim=-1).max() < 1.0  # degrees: roads join neighbours


def _ride() -> None:
    track = data.ride()
    assert track.shape == (978, 3)
    steps = track[:, :2].diff(dim=0).norm(dim=1)
    assert 32_000 < steps.sum() < 33_000
    assert steps.max() < 150
    assert track[-1].abs().max() < 300  # a lap


def _glucose() -> None:
    minutes, glucose = data.glucose_trace()
    assert minutes.shape == glucose.shape == (52_281,)
    steps = minutes.diff()
    assert steps.min() >= 0
    assert int(((steps - 5).abs() < 1.5).sum()) > 51_000
    assert (glucose.min(), glucose.max()) == (40, 400)
    patients = data.virtual_patients()
    assert sorted({name.partition("#")[0] for name in patients.words["Name"]}) == ["adolescent", "adult", "child"]
    assert len(patients.values) == 30
    torch.testing.assert_close(patients.column("Ipb") / patients.column("Vi"), patients.column("Ib"))


def _efficientnet() -> None:
    assert sum(v.numel() for v in data.efficientnet_lite0().values()) == 4_694_073


def _speaker() -> None:
    state = data.resemblyzer()
    lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
    lstm.load_state_dict({k.removeprefix("lstm."): v for k, v in state.items() if k.startswith("lstm.")})


def _language() -> None:
    model = data.smollm2(layers=1)
    assert model.weights["blk.0.ffn_up.weight"].shape == (1536, 576)
    assert "blk.1.ffn_up.weight" not in model.weights
    assert len(model.metadata["tokenizer.ggml.tokens"]) == 49_152


def _molecules() -> None:
    train, test = data.solubility("train"), data.solubility("test")
    assert (len(train.molecules), len(test.molecules)) == (1025, 257)
    assert train.labels.bincount().tolist() == [417, 402, 206]
    for part in (train, test):
        # Aqueous solubility: molecules that dissolve better are classed higher, and every bond joins two atoms.
        means = [float(part.log_solubility[part.labels == c].mean()) for c in range(3)]
        assert means == sorted(means)
        for molecule, smiles in zip(part.molecules, part.smiles, strict=True):
            assert len(molecule.bonds) == 0 or int(molecule.bonds.max()) < len(molecule.elements)
            heavy = re.findall(r"Cl|Br|Sn|[A-GI-Z]|[cnops]", smiles)
            assert len(heavy) == int((molecule.elements > 1).sum()), smiles


def _hydrations() -> None:
    found = data.hydration()
    assert len(found.smiles) == len(found.names) == len(found.measured) == 642
    benzene = found.smiles.index("c1ccccc1")
    assert (found.names[benzene], round(float(found.measured[benzene]), 2)) == ("benzene", -0.90)
    # The published simulations are right to about 1.5 kcal / mol.
    assert 1.0 < (found.measured - found.computed).square().mean().sqrt() < 2.0


def _alanine() -> None:
    found = data.alanine_dipeptide()
    assert found.positions.shape == (11, 22, 3)
    assert found.topology.read_text().startswith("%VERSION")
    # All bonds are as long as such bonds are: the carbonyl double bond, and those of methyl.
    lengths = (found.positions[:, [4, 1, 1]] - found.positions[:, [5, 0, 4]]).norm(dim=-1)
    torch.testing.assert_close(lengths.mean(0), torch.tensor([1.23, 1.09, 1.52]).double(), atol=0.05, rtol=0)


FETCHED: dict[str, Callable[[], None]] = {
    "film_reviews": _reviews,
    "sentiment_words": _sentiment,
    "bible": _verses,
    "fairness": _adult,
    "body": _bodies,
    "meshes": _meshes,
    "cortex": _cortices,
    "buildings": _outlines,
    "fashion_mnist": _fashion,
    "bayesian_networks": _networks,
    "prompts": _prompts,
    "calibration": _calibrations,
    "scans": _scan,
    "photos": _photo,
    "opencv_digits": _opencv_digit,
    "letters": _letters,
    "regression": _quantities,
    "survival": _survivals,
    "liver": _livers,
    "roads": _road_network,
    "ride": _ride,
    "glucose": _glucose,
    "weather": _weather,
    "alanine_dipeptide": _alanine,
    "hydration": _hydrations,
    "solubility": _molecules,
    "efficientnet_lite0": _efficientnet,
    "resemblyzer": _speaker,
    "smollm2": _language,
}

IN_TEST_LOADERS = {
    "breast_cancer",
    "diabetes",
    "digits",
    "dream4",
    "ecoli70",
    "mnist",
    "motorcycle",
    "pictures",
    "sachs",
    "wine",
}


def test_polygons_of_a_geopackage() -> None:
    ring = np.array([[0.0, 0.0], [8.0, 0.0], [8.0, 4.0], [0.0, 0.0]])
    hole = np.array([[5.0, 1.0], [6.0, 1.0], [6.0, 2.0], [5.0, 1.0]])
    parts = [struct.pack("<BII", 1, 3, 2), *(struct.pack("<I", 4) + r.tobytes() for r in (ring, hole))]
    header = b"GP" + struct.pack("<BBi4d", 0, 0b11, 3857, 0, 8, 0, 4)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE buildings (fid INTEGER PRIMARY KEY, geom BLOB)")
    database.execute("INSERT INTO buildings (geom) VALUES (?)", (header + b"".join(parts),))
    database.commit()
    (rings,) = geometry_formats.geopackage(database.serialize(), "buildings")
    np.testing.assert_array_equal(rings[0], ring)
    np.testing.assert_array_equal(rings[1], hole)
    built = builders.buildings({"map": database.serialize()})
    corners = built["outlines"]  # at the equator a unit of the map is a metre
    np.testing.assert_allclose(corners - corners[0], ring[:3], rtol=1e-6)


def test_cells_and_the_arcs_between_their_proteins_are_joined_by_name() -> None:
    network = b"""network unknown { }
    variable Raf { type discrete [ 2 ] { LOW, HIGH }; }
    variable Mek { type discrete [ 2 ] { LOW, HIGH }; }
    probability ( Raf ) { table 0.25, 0.75; }
    probability ( Mek | Raf ) { ( LOW ) 0.5, 0.5; ( HIGH ) 0.125, 0.875; }
    """
    built = builders.sachs({"observations": b"pmek,praf\n1.5,2\n3,4\n", "network": gzip.compress(network)})
    assert built["names"].tolist() == ["Mek", "Raf"]
    assert built["observations"].tolist() == [[1.5, 2.0], [3.0, 4.0]]
    assert built["adjacency"].tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("name", FETCHED)
def test_a_set_is_what_it_says(name: str) -> None:
    FETCHED[name]()


def test_every_set_has_a_test_of_its_content() -> None:
    assert set(FETCHED) | IN_TEST_LOADERS == {entry.name for entry in data.catalogue()}
