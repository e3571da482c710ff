"""Codebooks: as good as Lloyd's algorithm makes them, exact where that is possible, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from transforms.test_transforms import weights

from modelfs.transforms import Chain, Cluster, Prune, of_array, transform_array
from modelfs.transforms import blocks as blocks_module
from modelfs.transforms import kmeans as kmeans_module
from modelfs.transforms.dtypes import decode_array, encode
from modelfs.transforms.kmeans import STARTS, TOLERANCE, Points, lloyd, points_of, points_of_rows, sorted_points

numbers = npst.arrays(np.float64, st.integers(1, 300), elements=st.floats(-1, 1) | st.sampled_from([-0.5, 0.0, 0.25]))
starts = st.sampled_from(sorted(STARTS))


def error(values: np.ndarray, centroids: np.ndarray) -> float:
    return float((np.abs(values[:, None] - centroids[None, :]).min(axis=1) ** 2).sum())


@settings(max_examples=150, deadline=None)
@given(values=numbers, clusters=st.integers(1, 20), start=starts, seed=st.integers(0, 5))
def test_the_error_never_grows_and_is_that_of_the_nearest_centroids(values: np.ndarray, clusters: int, start: str,
                                                                    seed: int) -> None:
    found = lloyd(sorted_points(values, 0), clusters, start, seed)
    errors, centroids, noise = found.errors[:, 0], found.centroids[0], 1e-12 * len(values)
    assert (np.diff(errors) <= noise).all()
    assert (np.diff(centroids) >= 0).all() and len(centroids) == clusters
    assert error(values, centroids) <= errors[-1] + noise
    if found.converged[0] and len(np.unique(values)) > clusters:
        assert error(values, centroids) >= errors[-1] * (1 - len(values) * TOLERANCE) - noise


@settings(max_examples=50, deadline=None)
@given(values=numbers, counts=st.integers(1, 5), clusters=st.integers(1, 6), start=starts)
def test_points_with_counts_are_so_many_equal_points(values: np.ndarray, counts: int, clusters: int,
                                                     start: str) -> None:
    ordered = np.sort(values)
    weighted = lloyd(Points.of_counts(ordered, np.full(len(values), float(counts))), clusters, start, 0)
    repeated = lloyd(sorted_points(values.repeat(counts), 0), clusters, start, 0)
    assert error(values, weighted.centroids[0]) * counts <= weighted.errors[-1, 0] + 1e-9
    assert error(values.repeat(counts), repeated.centroids[0]) <= repeated.errors[-1, 0] + 1e-9


@settings(max_examples=60, deadline=None)
@given(rows=npst.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 60)),
                        elements=st.floats(-8, 8) | st.sampled_from([0.0, 1.0])), clusters=st.integers(1, 9),
       start=starts, zeros=st.booleans())
def test_rows_are_clustered_as_if_each_were_alone(rows: np.ndarray, clusters: int, start: str, zeros: bool) -> None:
    exponents = np.arange(len(rows), dtype=np.int32)
    found = lloyd(points_of_rows(rows, exponents, zeros=zeros), clusters, start, 1)
    for number, row in enumerate(rows):
        taken = row if zeros else row[row != 0]
        if taken.size:
            alone = lloyd(sorted_points(taken, number), clusters, start, 1)
            assert np.array_equal(found.centroids[number], alone.centroids[0])
            assert found.errors[-1, number] == alone.errors[-1, 0] and found.converged[number] == alone.converged[0]


@pytest.mark.parametrize("start", sorted(STARTS))
def test_no_cluster_stays_empty_while_points_differ(start: str) -> None:
    """Most points are equal, so most quantiles are, too."""
    values = np.concatenate([np.zeros(10_000), np.linspace(0.5, 1, 40)])
    found = lloyd(sorted_points(values, 0), 16, start, 0)
    nearest = np.abs(values[:, None] - found.centroids[0][None, :]).argmin(axis=1)
    assert len(np.unique(nearest)) == 16 and found.errors[-1, 0] < 0.02


@pytest.mark.parametrize(("bits", "best"), [(2, 0.11748), (4, 0.009501), (8, 4.2e-5)])
@pytest.mark.parametrize("start", sorted(STARTS))
def test_gaussian_weights_come_within_a_few_per_cent_of_the_known_optimum(bits: int, best: float, start: str) -> None:
    """Lloyd and Max's quantiser of N(0, 1): 0.1175 with 4 levels, 0.009501 with 16 (Max 1960)."""
    array = weights(1000, 300)
    result = transform_array(Cluster(bits, start=start), array).values
    assert len(np.unique(result)) == 1 << bits
    assert np.mean((result - array) ** 2) < 1.08 * best * np.var(array)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("group", [0, 256])
def test_no_more_distinct_values_than_clusters_come_out_as_they_were(dtype: str, group: int,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    few = weights(16, dtype=dtype, seed=3)
    array = few[np.random.default_rng(4).integers(0, 16, (64, 1024))]
    assert np.array_equal(transform_array(Cluster(4, group), array, dtype=dtype).values, array)
    monkeypatch.setattr(kmeans_module, "BLOCK_ELEMENTS", 1000)  # as a tensor of many blocks
    assert np.array_equal(transform_array(Cluster(4, group), array, dtype=dtype).values, array)


@pytest.mark.parametrize("block", [1 << 20, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbouring_numbers_keep_apart(dtype: type, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_module, "BLOCK_ELEMENTS", block)
    one = np.array(1, dtype)
    array = np.array([one, np.nextafter(one, dtype(2)), np.nextafter(one, dtype(0)), 1e-38, 0]).repeat(100)
    assert np.array_equal(transform_array(Cluster(3), array.astype(dtype)).values, array.astype(dtype))


@pytest.mark.parametrize("zeros", [False, True])
def test_clustering_again_changes_nothing(zeros: bool) -> None:
    method = Chain(Prune(0.9), Cluster(5)) if zeros else Cluster(4)
    once = transform_array(method, weights(64, 1024)).values
    assert np.array_equal(transform_array(method, once).values, once)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_histogram_of_a_large_tensor_is_as_good_as_its_points(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = weights(300, 1000, dtype=dtype)
    tensor = of_array(array, dtype)
    exact = points_of(tensor, 3, zeros=True)
    monkeypatch.setattr(kmeans_module, "BLOCK_ELEMENTS", 1000)
    monkeypatch.setattr(blocks_module, "BLOCK_ELEMENTS", 30_000)
    binned = points_of(tensor, 3, zeros=True)
    assert binned.sizes[0] < exact.sizes[0] and (np.diff(binned.values[0]) > 0).all()
    assert binned.counts[0, -1] == exact.counts[0, -1] and binned.sums[0, -1] == pytest.approx(exact.sums[0, -1])
    values = decode_array(array, dtype).reshape(-1).astype(np.float64) / 8
    errors = [error(values, lloyd(points, 16, "quantile", 0).centroids[0]) for points in (exact, binned)]
    assert errors[1] == pytest.approx(errors[0], rel=0.001)
    if dtype != "F32":
        assert np.array_equal(binned.values[0], np.unique(values)), "exact where values are no closer than bins"


def test_the_seed_decides_the_start_and_nothing_else_does() -> None:
    points = sorted_points(weights(5000), 2)
    found = [lloyd(points, 64, "k-means++", seed).centroids for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_each_weight_takes_the_nearest_value_of_its_codebook() -> None:
    array = weights(40, 700)
    for method in (Cluster(3), Cluster(3, 256), Chain(Prune(0.5), Cluster(3)), Chain(Prune(0.5), Cluster(3, 256))):
        result = transform_array(method, array, native=True)
        codes, book = result.native[""], result.native["_codebook"]
        of_group = book[np.arange(40)[:, None], np.arange(700) // 256] if book.ndim == 3 else book[None, None]
        assert np.array_equal(result.values, np.take_along_axis(
            np.broadcast_to(of_group, (40, 700, 8)), codes[:, :, None].astype(int), 2)[:, :, 0])
        kept = result.values != 0
        nearest = np.abs(of_group - array[:, :, None]).min(axis=2)
        assert np.allclose(np.abs(result.values - array)[kept], np.broadcast_to(nearest, (40, 700))[kept])


def test_zeros_have_a_code_of_their_own_after_pruning_and_belong_to_no_cluster() -> None:
    array = weights(64, 512) + np.float32(0.2)
    result = transform_array(Chain(Prune(0.5), Cluster(2)), array, native=True)
    assert result.native["_codebook"][0] == 0 and np.array_equal(result.native[""] == 0, result.values == 0)
    assert np.count_nonzero(result.values == 0) == array.size // 2
    negative, positive = array[(result.values < 0)], array[result.values > 0]
    assert len(np.unique(result.values)) == 4 and len(negative) and len(positive)
    for value in np.unique(result.values[result.values != 0]):
        assert value == pytest.approx(array[result.values == value].mean(), rel=0.01)


def test_groups_have_codebooks_of_their_own_and_bits_count_them() -> None:
    array = np.concatenate([weights(4, 512), weights(4, 512) * 100], axis=1)
    one, many = (transform_array(Cluster(4, group), array) for group in (0, 512))
    small = array[:, :512]
    assert np.abs(many.values[:, :512] - small).mean() < 0.2 * np.abs(one.values[:, :512] - small).mean()
    assert many.bits == 4 + 16 * 32 / 512 and one.bits == 4 + 16 * 32 / array.size


def test_codebooks_are_exact_in_a_small_dtype() -> None:
    array = weights(64, 1024, dtype="BF16")
    result = transform_array(Cluster(8), array, dtype="BF16", native=True)
    book = decode_array(result.native["_codebook"], "BF16")
    assert np.array_equal(encode(book[result.native[""]], "BF16"), result.values)
