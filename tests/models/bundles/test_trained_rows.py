"""Keyed hashes of training rows: a row is known again whatever its dtype and order, and a new one is not."""

import numpy as np
import pytest

from abstain.models.bundles.manifest import read_manifest
from abstain.models.bundles.trained_rows import FILE, find_trained, hash_training_rows, read_trained, write_trained
from abstain.models.errors import BundleError
from abstain.models.prediction.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
PLAIN = Preprocessing()
PIXELS = RNG.integers(0, 256, (500, 8, 8)).astype(np.uint8)
NUMBERS = RNG.normal(size=(500, 5))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_training_rows_are_known_in_any_dtype_and_order(dtype):
    """All of a subset, shuffled; of rows that only resemble them, none."""
    trained = hash_training_rows(PLAIN, PIXELS[:300], PIXELS[300:])
    some = RNG.permutation(500)
    assert np.array_equal(find_trained(trained, PLAIN, PIXELS[some].astype(dtype)), some < 300)
    assert trained.repeats == 0
    assert np.array_equal(find_trained(trained, PLAIN, np.asfortranarray(PIXELS[some], dtype)), some < 300)
    assert hash_training_rows(PLAIN, np.asfortranarray(PIXELS[:300], dtype), PIXELS[:100]).repeats == 1
    changed = PIXELS[:300].copy()
    changed[:, 3, 4] ^= 1
    assert not find_trained(trained, PLAIN, changed.astype(dtype)).any()


def test_float32_and_float64_files_of_the_same_rows_are_the_same():
    """So are 0 and −0, and gaps of any bit pattern."""
    odd = np.array([[0.0, np.nan, 1, 2, 3]])
    trained = hash_training_rows(PLAIN, np.concatenate([NUMBERS, odd]), NUMBERS[:1])
    assert find_trained(trained, PLAIN, NUMBERS.astype(np.float32)).all()
    assert find_trained(trained, PLAIN, np.array([[-0.0, -np.nan, 1, 2, 3]])).all()


def test_rows_with_an_offset_are_distinguished():
    """Seconds since 1970 that float32 merges are hashed as the program sees them, with the offset taken off."""
    x = 1.7e9 + np.arange(200.0)[:, None]
    terms = Preprocessing(origin=(1.7e9,), unit=(50.0,))
    trained = hash_training_rows(terms, x[::2], x[1::2])
    assert (trained.repeats, find_trained(trained, terms, x).sum()) == (0, 100)


def test_repeats_are_the_share_of_calibration_rows_among_training_rows():
    """In a table of eight distinct rows every new row repeats an old one."""
    bits = RNG.integers(0, 2, (400, 3))
    assert hash_training_rows(PLAIN, bits[:300], bits[300:]).repeats == 1
    assert hash_training_rows(PLAIN, bits[:300], np.concatenate([bits[300:], bits[300:] + 5])).repeats == 0.5


def test_each_bundle_has_a_key_of_its_own():
    """The same rows have other hashes in another bundle, so that two bundles cannot be compared without the rows."""
    one, other = hash_training_rows(PLAIN, NUMBERS, NUMBERS), hash_training_rows(PLAIN, NUMBERS, NUMBERS)
    assert not np.intersect1d(one.hashes, other.hashes).size
    assert one.hashes.nbytes == 4 * len(NUMBERS)


def test_hashes_are_read_from_their_file(tmp_path):
    """And a file of other arrays is refused by name."""
    trained = hash_training_rows(PLAIN, NUMBERS, NUMBERS[:3])
    write_trained(tmp_path, trained)
    found = read_trained(tmp_path, {FILE: "a hash"})
    assert all(np.array_equal(one, other) for one, other in zip(trained, found, strict=True))
    assert read_trained(tmp_path, {}) is None
    for share in (-0.5, 2.0, np.nan, np.inf):
        np.savez(tmp_path / FILE, key=trained.key, hashes=trained.hashes, repeats=share)
        with pytest.raises(BundleError, match="repeats: expected a share from 0 to 1"):
            read_trained(tmp_path, {FILE: ""})
    np.savez(tmp_path / FILE, key=trained.key[:3], hashes=trained.hashes, repeats=0.0)
    with pytest.raises(BundleError, match=r"trained.npz: trained rows: expected uint8 \[16\]"):
        read_trained(tmp_path, {FILE: "a hash"})


def test_a_fit_publishes_the_hashes_of_its_training_rows(store):
    """As many as it has distinct training rows, listed in the manifest like every file."""
    folder = store / "digits" / "1"
    manifest = read_manifest(folder)
    trained = read_trained(folder, manifest.files)
    assert 0.9 * manifest.data.train_rows < len(trained.hashes) <= manifest.data.train_rows
