"""Made duplications: what is copied, where to, and how much copies differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.data import duplication
from hybridna_core.data.corpus import Corpus, load_species
from hybridna_core.data.duplication import duplicate
from hybridna_core.run_config import SpeciesConfig
from hybridna_core.tokenizer import N, decode, reverse_complement_ids


def draw_ids(length, seed):
    return np.random.default_rng(seed).integers(7, 11, length).astype(np.uint8)


def find_copies(before, after, length=24):
    """Count the places of the new window whose bases are those of an earlier place, on either strand."""
    seen, found = {}, 0
    for at in range(len(after) - length + 1):
        part = after[at : at + length]
        for strand in (part, reverse_complement_ids(part)):
            found += seen.get(strand.tobytes(), at) <= at - length
        seen.setdefault(part.tobytes(), at)
    return found


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 700), seed=st.integers(0, 2**32 - 1))
def test_a_window_of_the_same_length_with_its_beginning_kept(length, seed):
    ids = draw_ids(length, seed)
    ids[length // 3 : length // 3 + 2] = N
    kept = ids.copy()
    out, weights = duplicate(ids, None, np.random.default_rng(seed))
    assert np.array_equal(ids, kept) and weights is None
    assert out.dtype == np.uint8 and len(out) == length
    # The first copy comes after at least one source of the shortest length.
    assert np.array_equal(out[: duplication.SHORTEST], ids[: duplication.SHORTEST])
    assert np.isin(out, [7, 8, 9, 10, N]).all()
    if length < 2 * duplication.SHORTEST:
        assert np.array_equal(out, ids)


def test_copies_are_there_on_both_strands(monkeypatch):
    monkeypatch.setattr(duplication, "FARTHEST", 0.0)
    changed, strands = 0, []
    for seed in range(60):
        ids = draw_ids(400, seed)
        out, _ = duplicate(ids, None, np.random.default_rng(seed))
        assert find_copies(ids, ids) == 0
        changed += find_copies(ids, out) > 0
        for at in range(400 - 24):
            part = out[at : at + 24]
            if not np.array_equal(part, ids[at : at + 24]):
                strands += ["+"] * (part.tobytes() in ids.tobytes()) + ["-"] * (
                    reverse_complement_ids(part).tobytes() in ids.tobytes()
                )
    assert changed == 60
    assert 0.1 < strands.count("-") / len(strands) < 0.45


def test_divergence_stays_below_its_limit(monkeypatch):
    monkeypatch.setattr(duplication, "REVERSED", 0.0)
    monkeypatch.setattr(duplication, "MOST_COPIES", 1)
    shares = []
    for seed in range(80):
        ids = np.zeros(4000, dtype=np.uint8) + np.uint8(7)
        ids[2000:] = 8
        out, _ = duplicate(ids, None, np.random.default_rng(seed))
        shares.append(float(np.isin(out, [9, 10]).mean()))
    # A changed base is drawn from all four; here half of them are told from the sources.
    assert 0 < max(shares) <= 0.3 * 0.5 * 0.5 * 1.2


def test_weights_go_with_their_bases():
    ids = draw_ids(300, 1)
    weights = np.linspace(0, 1, 300, dtype=np.float32)
    for seed in range(20):
        out, moved = duplicate(ids, weights, np.random.default_rng(seed))
        assert len(moved) == 300 and np.isin(moved, weights).all()
        assert not (np.diff(moved) > 0).all() and np.array_equal(weights, np.linspace(0, 1, 300, dtype=np.float32))
        same = moved == weights
        assert np.array_equal(out[same], ids[same])


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
