"""Embedded data sets: loaders with typed results; :func:`fetch` brings what is not there, a loader never downloads."""

from __future__ import annotations

from pullback.data.archives import DataFetchError
from pullback.data.bodies import BODY_COLOURS, BodyClips, body_clips
from pullback.data.byte_pairs import BytePairs
from pullback.data.cache import DataMissingError, cache_root, is_present, load, missing, origin
from pullback.data.clips import ObjectClips, object_clips
from pullback.data.clusters import PlantedClusters, planted_clusters
from pullback.data.fetching import Entry, catalogue, fetch
from pullback.data.fragments import Fragments, image_fragments, patches
from pullback.data.images import LabelledImages, digits, fashion_mnist, mnist, opencv_digits
from pullback.data.maps import BuildingTiles, Roads, building_tiles, buildings, roads
from pullback.data.misspelling import character_noise
from pullback.data.models import LanguageModel, efficientnet_lite0, resemblyzer, smollm2
from pullback.data.molecules import (
    Conformations,
    Hydration,
    Molecule,
    Molecules,
    alanine_dipeptide,
    hydration,
    solubility,
)
from pullback.data.nested_spheres import NestedSpheres, nested_spheres
from pullback.data.networks import GaussianNetwork, GeneNetwork, Sachs, bayesian_network, dream4, ecoli70, sachs
from pullback.data.numbers import Numbers, digit_numbers
from pullback.data.photographs import Calibration, calibration, photo, picture
from pullback.data.planar import circles, moons
from pullback.data.reference_fields import ReferenceEnergies, ReferenceForceField
from pullback.data.regression import regression_tables
from pullback.data.rings import Rings, rings
from pullback.data.scenes import OccupiedCells, Scenes, digit_scenes, occupied_cells
from pullback.data.shapes3d import Body, Mesh, Scan, body, cortex, mesh, scan
from pullback.data.sources import SOURCES, Member, Package, Source
from pullback.data.speech import Prompt, prompts
from pullback.data.spirals import Spirals, spirals
from pullback.data.stereo import StereoPair, motorcycle
from pullback.data.table_parts import TablePart, table_parts
from pullback.data.tables import (
    Columns,
    Table,
    autompg,
    boston,
    breast_cancer,
    diabetes,
    fairness,
    letters,
    liver,
    survival,
    virtual_patients,
    weather,
    wine,
)
from pullback.data.text import Review, Verse, Vocabulary, bible, characters, film_reviews, sentiment_words, words
from pullback.data.tints import Tinted, tinted
from pullback.data.tracks import even_windows, glucose_trace, ride
from pullback.data.views import image_views
from pullback.data.voices import MovingVoices, moving_voices
from pullback.data.walks import WALK_WORDS, Walks, instructed_walks

__all__ = [
    "BODY_COLOURS",
    "SOURCES",
    "WALK_WORDS",
    "Body",
    "BodyClips",
    "BuildingTiles",
    "BytePairs",
    "Calibration",
    "Columns",
    "Conformations",
    "DataFetchError",
    "DataMissingError",
    "Entry",
    "Fragments",
    "GaussianNetwork",
    "GeneNetwork",
    "Hydration",
    "LabelledImages",
    "LanguageModel",
    "Member",
    "Mesh",
    "Molecule",
    "Molecules",
    "MovingVoices",
    "NestedSpheres",
    "Numbers",
    "ObjectClips",
    "OccupiedCells",
    "Package",
    "PlantedClusters",
    "Prompt",
    "ReferenceEnergies",
    "ReferenceForceField",
    "Review",
    "Rings",
    "Roads",
    "Sachs",
    "Scan",
    "Scenes",
    "Source",
    "Spirals",
    "StereoPair",
    "Table",
    "TablePart",
    "Tinted",
    "Verse",
    "Vocabulary",
    "Walks",
    "alanine_dipeptide",
    "autompg",
    "bayesian_network",
    "bible",
    "body",
    "body_clips",
    "boston",
    "breast_cancer",
    "building_tiles",
    "buildings",
    "cache_root",
    "calibration",
    "catalogue",
    "character_noise",
    "characters",
    "circles",
    "cortex",
    "diabetes",
    "digit_numbers",
    "digit_scenes",
    "digits",
    "dream4",
    "ecoli70",
    "efficientnet_lite0",
    "even_windows",
    "fairness",
    "fashion_mnist",
    "fetch",
    "film_reviews",
    "glucose_trace",
    "hydration",
    "image_fragments",
    "image_views",
    "instructed_walks",
    "is_present",
    "letters",
    "liver",
    "load",
    "mesh",
    "missing",
    "mnist",
    "moons",
    "motorcycle",
    "moving_voices",
    "nested_spheres",
    "object_clips",
    "occupied_cells",
    "opencv_digits",
    "origin",
    "patches",
    "photo",
    "picture",
    "planted_clusters",
    "prompts",
    "regression_tables",
    "resemblyzer",
    "ride",
    "rings",
    "roads",
    "sachs",
    "scan",
    "sentiment_words",
    "smollm2",
    "solubility",
    "spirals",
    "survival",
    "table_parts",
    "tinted",
    "virtual_patients",
    "weather",
    "wine",
    "words",
]
