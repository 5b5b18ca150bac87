"""Compressors: sizes that can be unpacked again, and adaptive bits against counting by hand."""

import math
import stat

import numpy as np
import pytest

from hybridna_core.data import compress
from hybridna_core.tokenizer import encode, reverse_complement, reverse_complement_ids


def random_text(seed, n):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n))


def test_random_bases_take_two_bits_and_repeats_next_to_none():
    text = random_text(1, 20_000)
    bits, form = compress.xz_bits(encode(text))
    assert form == "xz of packed" and 2.0 <= bits < 2.02
    assert 1.99 < compress.adaptive_bits(encode(text)).mean() < 2.06
    twice = encode(text + text)
    assert compress.xz_bits(twice)[0] < 1.2 and compress.adaptive_bits(twice).mean() < 1.1
    # A reverse complement is no repeat to xz, and one to the adaptive mixture.
    turned = np.concatenate([encode(text), reverse_complement_ids(encode(text))])
    assert compress.xz_bits(turned)[0] > 1.95 and compress.adaptive_bits(turned).mean() < 1.1


def test_unknown_bases_count_for_nothing():
    text = random_text(2, 999)
    spaced = encode("NN".join(text[i : i + 10] for i in range(0, 999, 10)))
    assert compress.xz_bits(spaced) == compress.xz_bits(encode(text))
    np.testing.assert_array_equal(compress.adaptive_bits(spaced), compress.adaptive_bits(encode(text)))
    assert len(compress.adaptive_bits(encode("NNN"))) == 0


@pytest.mark.parametrize("order", [1, 2, 4])
def test_one_order_by_counting_words(order):
    text = random_text(order, 300)[:150] * 2
    found = compress._order_log_probs((encode(text) - 7).astype(np.uint8), order, 0.5)
    for at in range(len(text)):
        before = text[:at]
        counts = dict.fromkeys("ACGT", 0.5)
        for strand in (before, reverse_complement(before)):
            for i in range(order, len(strand)):
                if strand[i - order : i] == text[at - order : at] and at >= order:
                    counts[strand[i]] += 1
        assert found[at] == pytest.approx(math.log(counts[text[at]] / sum(counts.values())), abs=1e-12)


def test_mixture_by_hand():
    log_probs = np.log(np.array([[0.5, 0.1], [0.9, 0.2], [0.3, 0.3], [0.2, 0.8]]))
    state, due = np.ones(2), []
    for row in np.exp(log_probs):
        due.append(-math.log2((state * row).sum() / state.sum()))
        state = state**0.9 * row
    np.testing.assert_allclose(compress._mix(log_probs, 0.9), due, rtol=1e-12)


def test_no_base_is_known_before_it_is_read():
    """Whatever follows, the bits of what stands before stay the same; and one base's four chances sum to one."""
    text = random_text(3, 400)
    kept = compress.adaptive_bits(encode(text), decays=(0.95,))
    np.testing.assert_allclose(compress.adaptive_bits(encode(text + "ACGTACGT"), decays=(0.95,))[:400], kept, rtol=1e-9)
    ends = [compress.adaptive_bits(encode(text + base), decays=(0.95,))[-1] for base in "ACGT"]
    assert sum(2.0**-bits for bits in ends) == pytest.approx(1.0, abs=1e-9)


def test_outside_compressor_is_used_when_there_is_one(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    ids = encode("ACGT" * 100)
    assert compress.outside_bits(ids) is None
    program = tmp_path / "GeCo3"
    program.write_text('#!/bin/sh\nhead -c 50 "$3" > "$3.co"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert compress.outside_bits(ids) == (1.0, "GeCo3")
    program.write_text("#!/bin/sh\nexit 1\n")
    assert compress.outside_bits(ids) is None and "GeCo3 is on the PATH but" in caplog.text
