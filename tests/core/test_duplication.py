"""Made tandem arrays: where they begin, what is copied, and how much copies differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.data import duplication
from hybridna_core.data.corpus import Corpus, load_species
from hybridna_core.data.duplication import SHORTEST, duplicate
from hybridna_core.run_config import SpeciesConfig
from hybridna_core.tokenizer import N, decode


def draw_ids(length, seed):
    return np.random.default_rng(seed).integers(7, 11, length).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 700), seed=st.integers(0, 2**32 - 1))
def test_a_window_of_the_same_length_with_its_beginning_kept(length, seed):
    ids = draw_ids(length, seed)
    ids[length // 3 : length // 3 + 2] = N
    kept = ids.copy()
    out, weights = duplicate(ids, None, np.random.default_rng(seed))
    assert np.array_equal(ids, kept) and weights is None
    assert out.dtype == np.uint8 and len(out) == length
    # The first copy comes after a source of the shortest length at least.
    assert np.array_equal(out[:SHORTEST], ids[:SHORTEST])
    assert np.isin(out, [7, 8, 9, 10, N]).all()
    if length < 3 * SHORTEST:
        assert np.array_equal(out, ids)


def test_arrays_run_to_the_end(monkeypatch):
    monkeypatch.setattr(duplication, "EXACT", 1.0)
    found = set()
    for seed in range(60):
        ids = draw_ids(600, seed)
        out, _ = duplicate(ids, None, np.random.default_rng(seed))
        # From where the new window leaves the old one, each base is that of a unit before; a third is the longest unit.
        first = np.flatnonzero(out != ids)[0]
        units = [p for p in range(SHORTEST, 201) if np.array_equal(out[first:], out[first - p : -p])]
        assert units and first >= units[0]
        found.add(units[0])
    assert min(found) < 40 and max(found) > 120 and len(found) > 30


def test_a_quarter_of_the_arrays_are_changed_a_little(monkeypatch):
    shares = []
    for seed in range(200):
        ids = np.full(4000, 7, dtype=np.uint8)
        out, _ = duplicate(ids, None, np.random.default_rng(seed))
        shares.append(float((out != 7).mean()))
    changed = [share for share in shares if share]
    # A changed base is drawn from all four, so a quarter of them stay as they were.
    assert 30 < len(changed) < 70 and max(changed) <= 0.3 * 0.75 * 1.1
    monkeypatch.setattr(duplication, "EXACT", 1.0)
    assert all(np.array_equal(duplicate(ids, None, np.random.default_rng(s))[0], ids) for s in range(50))


def test_weights_go_with_their_bases(monkeypatch):
    monkeypatch.setattr(duplication, "EXACT", 1.0)
    ids = draw_ids(300, 1)
    weights = np.arange(300, dtype=np.float32)
    for seed in range(20):
        out, moved = duplicate(ids, weights, np.random.default_rng(seed))
        assert np.array_equal(out, ids[moved.astype(int)]) and not np.array_equal(moved, weights)
        assert np.array_equal(weights, np.arange(300, dtype=np.float32))


def test_unknown_bases_stay_unknown(monkeypatch):
    monkeypatch.setattr(duplication, "EXACT", 0.0)
    ids = np.full(300, N, dtype=np.uint8)
    for seed in range(20):
        assert np.array_equal(duplicate(ids, None, np.random.default_rng(seed))[0], ids)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_windows(share, tmp_path):
    (tmp_path / "one.fa").write_text(f">c\n{decode(draw_ids(3000, 5))}\n")
    species = [load_species(SpeciesConfig("one", str(tmp_path / "one.fa")))]
    plain, made = (Corpus(species, bases=200, tokens=100, duplication=d) for d in (0.0, share))
    differing = 0
    for i in range(60):
        a, b = plain.window(i), made.window(i)
        assert a[:5] == b[:5] and np.array_equal(b.ids, made.window(i).ids)
        differing += not np.array_equal(a.ids, b.ids)
    assert abs(differing / 60 - share) < 0.25 and (differing == 0) == (share == 0)
