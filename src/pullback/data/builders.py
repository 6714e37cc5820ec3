"""How the members of a source become the arrays that are stored: one function a kind of source."""

from __future__ import annotations

import bz2
import csv
import io
import json
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pullback.causal import BayesianNetwork
from pullback.data import chemical_formats, formats, geometry_formats, text_formats

__all__ = [
    "bible",
    "body",
    "buildings",
    "calibration",
    "cortex",
    "fashion",
    "gene_networks",
    "hydration",
    "letters",
    "meshes",
    "molecules",
    "networks",
    "opencv_digits",
    "photos",
    "quantities",
    "reviews",
    "ride",
    "roads",
    "sachs",
    "scans",
    "sentiment",
    "solute",
    "speech",
    "state_dict",
    "tables",
    "weather",
]

Arrays = dict[str, NDArray[np.generic]]
Members = Mapping[str, bytes]


def sachs(members: Members) -> Arrays:
    """Join the cells of one package with the graph of another, which names the eleven proteins differently."""
    names, observations = formats.csv(members["observations"])
    network = BayesianNetwork.from_bif(formats.gunzip(members["network"]).decode("utf-8"))
    published = {"praf": "Raf", "pmek": "Mek", "plcg": "Plcg", "p44/42": "Erk", "pakts473": "Akt", "pjnk": "Jnk"}
    order = [published.get(name, name) for name in names]
    adjacency = np.zeros((len(order), len(order)), dtype=bool)
    for child, parents in network.parents.items():
        for parent in parents:
            adjacency[order.index(parent), order.index(child)] = True
    return {"observations": observations, "adjacency": adjacency, "names": np.array(order)}


def gene_networks(members: Members) -> Arrays:
    """Read lists of arcs between the genes G1 to G100: one adjacency ``[parent, child]`` a network."""
    graphs = {name: np.zeros((100, 100), dtype=bool) for name in members}
    for name, content in members.items():
        for source, target in re.findall(r"^G(\d+),G(\d+)\s*$", content.decode("ascii"), flags=re.MULTILINE):
            graphs[name][int(source) - 1, int(target) - 1] = True
    return dict(graphs)


def fashion(members: Members) -> Arrays:
    """Read the four IDX files."""
    return {name: formats.idx(content) for name, content in members.items()}


def networks(members: Members) -> Arrays:
    """Keep the text of each Bayesian network; it is parsed by the loader."""
    names = sorted(members)
    texts = [formats.gunzip(members[name]).decode("utf-8") for name in names]
    return {"names": np.array(names), **text_formats.join_strings("bif", texts)}


def tables(members: Members) -> Arrays:
    """Read CSV files of numbers; a column of words becomes the index of the sorted word, its words are kept."""
    arrays: Arrays = {}
    for name, content in members.items():
        arrays |= {f"{name}/{key}": value for key, value in formats.mixed_csv(content).items()}
    return arrays


def quantities(members: Members) -> Arrays:
    """Read CSV files without a header line, the target last; a column of words (the names of cars) is left out."""
    return {name: formats.bare_csv(content) for name, content in members.items()}


_WEATHER = {
    "temperature": "Dry-bulb (C)",
    "dew point": "Dew-point (C)",
    "humidity": "RHum (%)",
    "pressure": "Pressure (mbar)",
    "wind direction": "Wdir (degrees)",
    "wind speed": "Wspd (m/s)",
    "irradiance": "GHI (W/m^2)",
}


def weather(members: Members) -> Arrays:
    """Read TMY3 files: a line about the station, a header, then an hour a line."""
    arrays: Arrays = {}
    for name, content in members.items():
        rows = list(csv.DictReader(content.decode("ascii").splitlines()[1:]))
        dates = [[int(n) for n in row["Date (MM/DD/YYYY)"].split("/")[:2]] for row in rows]
        hours = [int(row["Time (HH:MM)"].partition(":")[0]) for row in rows]
        measured = [row["Wspd source"] == "A" for row in rows]  # otherwise between two measurements
        columns = [[float(row[column]) for row in rows] for column in _WEATHER.values()]
        values = np.array([*zip(*dates, strict=True), hours, *columns, measured], dtype=np.float64).T
        names = ["month", "day", "hour", *_WEATHER, "wind measured"]
        arrays |= {f"{name}/values": values, f"{name}/columns": np.array(names)}
    return arrays


def roads(members: Members) -> Arrays:
    """Read a MATLAB file with an adjacency ``A`` and places ``xy``: each road once, from the lower number."""
    from scipy.io import loadmat

    stored = loadmat(io.BytesIO(members["roads"]), variable_names=("A", "xy"))
    rows, columns = stored["A"].nonzero()
    once = rows < columns
    edges = np.stack([rows[once], columns[once]], 1).astype(np.int64)
    return {"positions": np.asarray(stored["xy"], dtype=np.float64), "edges": edges[np.lexsort(edges.T[::-1])]}


def ride(members: Members) -> Arrays:
    """Read longitude, latitude (degrees) and altitude (m), a point a line."""
    names, values = formats.csv(members["track"])
    if names != ["lon", "lat", "alt"]:
        raise ValueError(f"a track must have the columns lon, lat, alt, got {', '.join(names)}")
    return {"track": values}


def glucose(members: Members) -> Arrays:
    """Read a monitor's CSV (current, time of day, mg/dl) as minutes since its first midnight, and a patient a line."""
    rows = formats.mixed_csv(members["trace"])
    names = rows["columns"].tolist()
    if names != ["isig", "datetime", "glucose"]:
        raise ValueError(f"a glucose trace must have the columns isig, datetime, glucose, got {', '.join(names)}")
    stamps = rows["words datetime"][rows["values"][:, 1].astype(np.int64)].astype("datetime64[s]")
    minutes = (stamps - stamps[0].astype("datetime64[D]")) / np.timedelta64(60, "s")
    patients = formats.mixed_csv(members["patients"])
    named = {f"patients/{key}": value for key, value in patients.items()}
    return {"minutes": minutes, "glucose": rows["values"][:, 2], **named}


def opencv_digits(members: Members) -> Arrays:
    """Cut the sheet of 50 x 100 tiles: 20 x 20 pixels, five rows of tiles a digit."""
    sheet = geometry_formats.image(members["sheet"])
    tiles = sheet.reshape(50, 20, 100, 20).swapaxes(1, 2).reshape(-1, 20, 20)
    return {"images": tiles, "labels": np.repeat(np.arange(10, dtype=np.uint8), 500)}


def letters(members: Members) -> Arrays:
    """Read lines of a capital letter and 16 numbers from 0 to 15."""
    rows = [line.split(",") for line in members["table"].decode("ascii").split()]
    labels = np.array([ord(row[0]) - ord("A") for row in rows], dtype=np.uint8)
    return {"features": np.array([row[1:] for row in rows], dtype=np.uint8), "labels": labels}


def photos(members: Members) -> Arrays:
    """Decode each image."""
    return {name: geometry_formats.image(content) for name, content in members.items()}


def calibration(members: Members) -> Arrays:
    """Stack the left and right views of a chessboard, and read the reference intrinsics."""
    arrays: Arrays = {}
    for side in ("left", "right"):
        views = sorted(name for name in members if name.startswith(side) and name != "intrinsics")
        arrays[side] = np.stack([geometry_formats.image(members[name]) for name in views])
    text = members["intrinsics"].decode("utf-8")
    for key, name in (("camera_matrix", "matrix"), ("distortion_coefficients", "distortion")):
        found = re.search(key + r":.*?data:\s*\[([^\]]*)\]", text, flags=re.DOTALL)
        if found is None:
            raise ValueError(f"the intrinsics file has no {key}")
        arrays[name] = np.array([float(v) for v in found.group(1).split(",")])
    arrays["matrix"] = arrays["matrix"].reshape(3, 3)
    return arrays


def scans(members: Members) -> Arrays:
    """Read points and normals of each scan."""
    arrays: Arrays = {}
    for name, content in members.items():
        columns = geometry_formats.ply(content)
        arrays[f"{name}/points"] = np.stack([columns[c] for c in "xyz"], -1)
        arrays[f"{name}/normals"] = np.stack([columns[c] for c in ("nx", "ny", "nz")], -1)
    return arrays


def meshes(members: Members) -> Arrays:
    """Read vertices and triangles of each mesh."""
    arrays: Arrays = {}
    for name, content in members.items():
        arrays[f"{name}/vertices"], arrays[f"{name}/faces"] = geometry_formats.off(content)
    return arrays


def cortex(members: Members) -> Arrays:
    """Read the vertices of each surface and the triangles that all of them share."""
    surfaces = {name: geometry_formats.gifti(formats.gunzip(content)) for name, content in members.items()}
    arrays: Arrays = {}
    for name, (vertices, faces) in surfaces.items():
        side = name.rpartition("_")[2]
        if not np.array_equal(arrays.setdefault(f"faces_{side}", faces), faces):
            raise ValueError(f"{name}: its triangles must be those of the other surfaces of its hemisphere")
        arrays[name] = vertices
    return arrays


def buildings(members: Members) -> Arrays:
    """Read the outer rings of buildings from a map in the projection of Mercator, in metres around their middle."""
    rings = [polygon[0][:-1] for polygon in geometry_formats.geopackage(members["map"], "buildings")]
    middle = np.concatenate(rings).mean(0)
    latitude = np.arctan(np.sinh(middle[1] / 6378137))  # the sphere of Web Mercator
    return text_formats.join_arrays(
        "outlines", [((ring - middle) * np.cos(latitude)).astype(np.float32) for ring in rings]
    )


def body(members: Members) -> Arrays:
    """Read the body's mesh, its bones and the weights of its skin."""
    vertices, faces = geometry_formats.obj(members["mesh"], ("body",))
    rig = json.loads(members["rig"])
    weights = json.loads(members["weights"])["weights"]
    names = list(rig)
    skin = np.zeros((len(vertices), len(names)), dtype=np.float32)
    for name, pairs in weights.items():
        for vertex, weight in pairs:
            skin[int(vertex), names.index(name)] = weight
    # Bones are given with z up, the mesh with y up, in decimetres.
    heads, tails = (
        np.array([rig[name][end]["default_position"] for name in names], dtype=np.float32) for end in ("head", "tail")
    )
    parents = [names.index(rig[name]["parent"]) if rig[name]["parent"] else -1 for name in names]
    return {
        "vertices": vertices,
        "faces": faces,
        "bones": np.array(names),
        "heads": heads,
        "tails": tails,
        "parents": np.array(parents, dtype=np.int64),
        "skin": skin,
    }


def speech(members: Members) -> Arrays:
    """Join the prompts that have a spoken text: samples, rate, names, sentences."""
    texts = text_formats.prompts(members["texts"])
    found = {}
    for key, content in members.items():
        name = key.partition("en_US_f_Allison/")[2].removesuffix(".wav")
        if name in texts:
            found[name] = text_formats.wav(content)
    names = sorted(found)
    rates = {found[name][1] for name in names}
    if len(rates) != 1:
        raise ValueError(f"the prompts have several sampling rates: {sorted(rates)}")
    return {
        **text_formats.join_arrays("samples", [found[name][0] for name in names]),
        **text_formats.join_strings("names", names),
        **text_formats.join_strings("texts", [texts[name] for name in names]),
        "rate": np.array(rates.pop()),
    }


def bible(members: Members) -> Arrays:
    """Read the verses, a line each (``Ge1:1 In the beginning ...``); the first line is a title."""
    lines = text_formats.windowed_lzw(members["text"]).decode("ascii").splitlines()[1:]
    return text_formats.join_strings("verses", lines)


def reviews(members: Members) -> Arrays:
    """Read a compressed table of snippets: those of critics, without the plots of films, in the order of the table."""
    rows = csv.DictReader(io.StringIO(bz2.decompress(members["table"]).decode("utf-8"), newline=""))
    kept = [row for row in rows if row["category"] != "plot"]
    favourable = np.array([row["category"] == "fresh" for row in kept])
    strings = [text_formats.join_strings(key, [row[key] for row in kept]) for key in ("text", "movie_name")]
    return {"favourable": favourable, **strings[0], **strings[1]}


def sentiment(members: Members) -> Arrays:
    """Read lines of a word, the mean of its ratings, their deviation and the ratings, parted by tabs."""
    rows = [line.split("\t") for line in members["ratings"].decode("utf-8").splitlines() if line.strip()]
    means = np.array([float(row[1]) for row in rows], dtype=np.float64)
    return {"rating": means, **text_formats.join_strings("word", [row[0] for row in rows])}


def state_dict(members: Members) -> Arrays:
    """Read the tensors of a PyTorch checkpoint (weights only)."""
    import torch

    stored = torch.load(io.BytesIO(members["weights"]), map_location="cpu", weights_only=True)
    stored = stored.get("model_state", stored)
    return {name: value.numpy() for name, value in stored.items()}


def hydration(members: Members) -> Arrays:
    """Read a table of names, SMILES strings, measured and computed free energies; one field may hold commas."""
    rows = list(csv.DictReader(io.StringIO(members["table"].decode("utf-8"), newline="")))
    numbers = {
        key: np.array([float(row[column]) for row in rows], dtype=np.float32)
        for key, column in (("measured", "expt"), ("computed", "calc"))
    }
    strings = [
        text_formats.join_strings(key, [row[column] for row in rows])
        for key, column in (("names", "iupac"), ("smiles", "smiles"))
    ]
    return {**numbers, **strings[0], **strings[1]}


def solute(members: Members) -> Arrays:
    """Read the frames of a trajectory of Amber (text, packed), of the atoms of its first molecule only."""
    topology = members["topology"].decode("utf-8")
    atoms, size = (
        int(topology.split(f"%FLAG {name} ", 1)[1].split("%FORMAT", 1)[1].split("\n", 2)[1].split()[0])
        for name in ("POINTERS", "ATOMS_PER_MOLECULE")
    )
    lines = bz2.decompress(members["frames"]).decode("utf-8").splitlines()[1:]
    rows, frames = -(-3 * atoms // 10), []  # ten numbers a line, of eight characters; a line with the box follows
    for start in range(0, len(lines) - rows + 1, rows + 1):
        text = "".join(line.ljust(80) for line in lines[start : start + rows])
        frames.append([float(text[8 * i : 8 * i + 8]) for i in range(3 * size)])
    return {"positions": np.array(frames, dtype=np.float64).reshape(-1, size, 3)}


def molecules(members: Members) -> Arrays:
    """Read SDF files whose data items hold a solubility and its class; the third coordinate of a drawing is dropped."""
    arrays: Arrays = {}
    for part, content in members.items():
        records = chemical_formats.sdf(content)
        for field in ("elements", "charges", "bonds", "orders"):
            arrays |= text_formats.join_arrays(f"{part}/{field}", [getattr(record, field) for record in records])
        drawn = [record.positions[:, :2].astype(np.float32) for record in records]
        arrays |= text_formats.join_arrays(f"{part}/positions", drawn)
        arrays[f"{part}/solubility"] = np.array([record.items["sol"] for record in records], dtype=np.float32)
        classes = [record.items["sol_classification"] for record in records]
        arrays[f"{part}/labels"] = np.array([("(A) low", "(B) medium", "(C) high").index(name) for name in classes])
        for field, item in (("names", "name"), ("smiles", "smiles")):
            arrays |= text_formats.join_strings(f"{part}/{field}", [record.items[item] for record in records])
    return arrays
