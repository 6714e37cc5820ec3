"""What the loaders return: shapes, ranges, splits. Uses what ``make test`` fetches: mnist, sachs, ecoli70, dream4."""

from __future__ import annotations

import gzip
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pullback import causal, data
from pullback.data import formats


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_mnist_is_balanced_in_range_and_made_of_digits() -> None:
    whole = data.mnist()
    assert whole.images.shape == (5000, 28, 28)
    assert whole.images.dtype == torch.float32
    assert whole.images.min() == 0
    assert whole.images.max() == 1
    assert whole.labels.bincount().tolist() == [500] * 10
    train, test = data.mnist("train"), data.mnist("test")
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert torch.equal(torch.cat([train.images, test.images]), whole.images)
    assert train.labels[:20].tolist() == [*range(10), *range(10)]
    # Images and labels belong together: a linear classifier reads the held-out digits.
    fit = LogisticRegression(C=0.02, max_iter=200).fit(train.images[:1000].flatten(1), train.labels[:1000])
    assert fit.score(test.images.flatten(1), test.labels) > 0.8


def test_mnist_results_do_not_share_memory() -> None:
    first = data.mnist("test")
    first.images.zero_()
    assert data.mnist("test").images.max() == 1


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_in_its_own_format(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (6, 28, 28)), "t10k": rng.integers(0, 256, (3, 28, 28))}
    labels = {"train": rng.integers(0, 10, 6), "t10k": rng.integers(0, 10, 3)}
    for prefix in images:
        for kind, array in (("images-idx3", images[prefix]), ("labels-idx1", labels[prefix])):
            content = _idx(array)
            name = f"{prefix}-{kind}-ubyte"
            if compressed:
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (tmp_path / name).write_bytes(content)
    test = data.mnist("test", path=tmp_path)
    assert test.labels.tolist() == labels["t10k"].tolist()
    torch.testing.assert_close(test.images * 255, torch.from_numpy(images["t10k"]).float())
    assert data.mnist(path=tmp_path).labels.tolist() == [*labels["train"], *labels["t10k"]]


def test_mnist_path_errors(tmp_path: Path) -> None:
    with pytest.raises(data.DataMissingError, match="train-images-idx3-ubyte"):
        data.mnist("train", path=tmp_path)
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', got 'valid'"):
        data.mnist("valid")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PNG!", "not an IDX file"),
        (bytes([0, 0, 13, 1]), "0x08"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 9, 1]), "holds 1 bytes"),
    ],
)
def test_idx_refuses_other_files(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formats.idx(content)


def test_missing_data_is_a_file_not_found_with_the_command(empty_cache: Path) -> None:
    for loader in (data.mnist, data.sachs, data.ecoli70):
        with pytest.raises(FileNotFoundError, match=f"pullback data fetch {loader.__name__}$"):
            loader()


def test_digits_split_is_balanced_and_a_partition() -> None:
    whole, train, test = data.digits(), data.digits("train"), data.digits("test")
    assert whole.images.shape == (1797, 8, 8)
    assert whole.images.min() >= 0
    assert whole.images.max() == 1
    assert len(train.labels) + len(test.labels) == 1797
    counts, held = whole.labels.bincount(), test.labels.bincount()
    assert (held == counts // 5).all()
    both = torch.cat([train.images, test.images]).flatten(1)
    assert both.sum() == whole.images.sum()


def test_tables() -> None:
    wine, cancer, diabetes = data.wine(), data.breast_cancer(), data.diabetes(dtype=torch.float64)
    assert wine.features.shape == (178, 13)
    assert wine.target.bincount().tolist() == [59, 71, 48]
    assert len(wine.feature_names) == 13
    assert cancer.features.shape == (569, 30)
    assert cancer.target_names == ("malignant", "benign")
    assert cancer.target.bincount().tolist() == [212, 357]
    assert diabetes.features.shape == (442, 10)
    assert diabetes.features.dtype == torch.float64
    assert diabetes.target.dtype == torch.float64
    torch.testing.assert_close(diabetes.features.square().sum(0), torch.ones(10, dtype=torch.float64))


def test_sachs_is_the_published_graph() -> None:
    sachs = data.sachs()
    assert sachs.observations.shape == (7466, 11)
    assert (sachs.observations > 0).all()
    arcs = {(sachs.names[i], sachs.names[j]) for i, j in sachs.adjacency.nonzero().tolist()}
    assert len(arcs) == 17
    assert {("PKC", "Raf"), ("Raf", "Mek"), ("Mek", "Erk"), ("Erk", "Akt"), ("PKA", "Jnk"), ("PIP3", "PIP2")} <= arcs
    # Columns are named right: the strongest dependences are the known cascades Raf-Mek and Erk-Akt.
    correlation = sachs.observations.log().T.corrcoef()
    position = {name: i for i, name in enumerate(sachs.names)}
    assert correlation[position["Raf"], position["Mek"]] > 0.5
    assert correlation[position["Erk"], position["Akt"]] > 0.5


def test_the_rows_of_sachs_change_where_an_experiment_ends_and_show_what_its_reagent_does() -> None:
    sachs = data.sachs()
    cells, sizes = sachs.observations.log(), sachs.conditions.bincount()
    assert len(sizes) == len(sachs.reagents) == 9
    for end in sizes.cumsum(0)[1:-1].tolist():  # the first two differ by little
        jumps = []
        for cut in range(end - 30, end + 31):
            before, after = cells[cut - 150 : cut], cells[cut : cut + 150]
            jumps.append(((before.mean(0) - after.mean(0)).square() / (before.var(0) + after.var(0))).sum())
        assert int(torch.stack(jumps).argmax()) == 30
    mean = {
        reagent: dict(zip(sachs.names, cells[sachs.conditions == k].mean(0).tolist(), strict=True))
        for k, reagent in enumerate(sachs.reagents)
    }
    assert mean["psitectorigenin"]["PIP2"] < mean["none"]["PIP2"] - 2
    assert mean["U0126"]["Erk"] < mean["none"]["Erk"] - 1  # below the blocked Mek
    assert mean["PMA"]["Jnk"] > mean["none"]["Jnk"] + 0.5  # below the activated PKC
    assert not sachs.targets[sachs.conditions < 2].any()
    assert (sachs.targets[sachs.conditions >= 2].sum(1) == 1).all()
    assert sachs.targets[sachs.conditions == 5].any(0).nonzero().tolist() == [[sachs.names.index("Mek")]]
    found = causal.order_search(cells - cells[sachs.conditions < 2].mean(0), targets=sachs.targets)
    assert found.converged


def test_ecoli70_samples_have_the_model_s_covariance(generator: torch.Generator) -> None:
    network = data.ecoli70()
    assert len(network.names) == 46
    assert int(network.adjacency.sum()) == 70
    assert torch.equal(network.weights != 0, network.adjacency)
    assert (network.scales > 0).all()
    identity = torch.eye(46, dtype=torch.float64)
    inverse = torch.linalg.inv(identity - network.weights)
    covariance = inverse.T @ torch.diag(network.scales**2) @ inverse
    draws = network.sample(40_000, generator=generator)
    torch.testing.assert_close(draws.mean(0), network.intercepts @ inverse, atol=0.1, rtol=0.05)
    scale = covariance.diagonal().sqrt()
    assert ((draws.T.cov() - covariance) / scale / scale[:, None]).abs().max() < 0.05


def test_parts_of_gene_networks_are_connected_and_acyclic(generator: torch.Generator) -> None:
    # The third arc of the first file, and the numbers of arcs that the five files list.
    networks = [data.dream4(k) for k in range(1, 6)]
    assert [int(network.adjacency.sum()) for network in networks] == [176, 249, 195, 211, 193]
    first = networks[0]
    assert first.adjacency[first.names.index("G4"), first.names.index("G18")]
    for network in networks:
        part = nx.DiGraph(network.acyclic_part(10, generator=generator).numpy())
        assert len(part) == 10
        assert nx.is_directed_acyclic_graph(part)
        assert nx.is_weakly_connected(part)
        whole = nx.DiGraph(network.adjacency.numpy())
        assert nx.algorithms.isomorphism.DiGraphMatcher(whole, part).subgraph_is_isomorphic()
    with pytest.raises(ValueError, match=r"nodes must be in 1\.\.50"):
        first.acyclic_part(51, generator=generator)
    with pytest.raises(ValueError, match=r"number must be in 1\.\.5"):
        data.dream4(6)


def test_pictures_have_their_colours() -> None:
    coffee, astronaut = data.picture("coffee"), data.picture("astronaut")
    assert coffee.shape == (400, 600, 3)
    assert astronaut.shape == (512, 512, 3)
    for picture in (coffee, astronaut):
        assert 0 <= picture.min() < 0.1 < 0.9 < picture.max() <= 1
    red, green, blue = coffee.mean((0, 1)).tolist()
    assert red > green > blue  # brown
    brick = data.picture("brick")
    assert brick.shape == (512, 512, 3)
    assert (brick[..., 0] == brick[..., 2]).all()
    with pytest.raises(ValueError, match="name must be one of 'coffee'"):
        data.picture("tea")


def test_motorcycle_disparity_maps_left_to_right() -> None:
    pair = data.motorcycle()
    assert pair.left.shape == pair.right.shape == (500, 741, 3)
    assert pair.disparity.shape == pair.mask.shape == (500, 741)
    assert torch.isfinite(pair.disparity).all()
    columns = torch.arange(741).expand(500, 741)

    def error(shift: torch.Tensor) -> float:
        source = (columns - shift).round().long().clamp(0, 740)
        warped = pair.right.gather(1, source[..., None].expand(-1, -1, 3))
        return float((warped - pair.left).abs()[pair.mask].mean())

    assert error(pair.disparity) < 0.05 < error(torch.zeros_like(pair.disparity)) < error(-pair.disparity) + 0.05
    depth = pair.baseline * pair.focal / (pair.disparity + pair.offset)[pair.mask]
    assert 1500 < depth.min() < depth.max() < 7000  # millimetres: a motorcycle in a room
