"""Tokens: published ids, the lookup table, complements, labels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridna_core import tokenizer as tk
from hybridna_core.errors import ModelError, UsageError

THREE = tk.Tokenizer((tk.LabelPosition("HepG2", 4), tk.LabelPosition("K562", 4), tk.LabelPosition("SK-N-SH", 4)))


def test_published_ids():
    assert tk.TOKENS == ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
    assert tk.encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    assert tk.FIRST_PROMPT_ID == 12


def test_other_letters():
    assert tk.encode("acgtuU").tolist() == [7, 8, 9, 10, 10, 10]
    assert tk.encode("RYKM-*é\n").tolist() == [11] * 8
    assert tk.encode(b"").tolist() == []


@given(st.text(alphabet="ACGTN", max_size=200))
def test_round_trip_and_reverse_complement(sequence):
    ids = tk.encode(sequence)
    assert tk.decode(ids) == sequence
    reverse = tk.reverse_complement(sequence)
    assert tk.decode(tk.reverse_complement_ids(ids)) == reverse
    assert tk.reverse_complement(reverse) == sequence
    assert sequence.count("A") == reverse.count("T") and sequence.count("C") == reverse.count("G")


def test_reverse_complement_by_hand():
    assert tk.reverse_complement("AACgtN") == "NacGTT"
    assert tk.complement_ids([2, 7, 11, 12]).tolist() == [2, 10, 11, 12]


def test_labels_are_position_major_from_twelve():
    assert THREE.vocab_size == 24
    assert THREE.encode_label("300").tolist() == [12 + 3, 16 + 0, 20 + 0]
    assert THREE.encode_label("003").tolist() == [12, 16, 23]


@pytest.mark.parametrize("label, words", [
    ("30", "does not fit this model; labels are 3 digits (HepG2 0-3, K562 0-3, SK-N-SH 0-3)"),
    ("3000", "does not fit"), ("3a0", "does not fit"), ("", "does not fit"), ("³00", "does not fit"),
    ("040", "digit 4 for K562 is unknown; labels are 3 digits"),
])  # fmt: skip
def test_unknown_labels_list_what_is_known(label, words):
    with pytest.raises(UsageError) as caught:
        THREE.encode_label(label)
    assert words in str(caught.value)


def test_a_model_without_labels_says_so():
    with pytest.raises(UsageError, match="this model knows no labels; give --prompt"):
        tk.Tokenizer().encode_label("300")
    assert tk.Tokenizer().describe_labels() == "none"


def test_files_of_newer_or_other_tokenizers_are_refused():
    with pytest.raises(ModelError, match="newer than 1; upgrade hybridna"):
        tk.Tokenizer(version=2)
    with pytest.raises(ModelError, match="not the published ones"):
        tk.Tokenizer(tokens=(*tk.TOKENS[:7], "C", "A", "G", "T", "N"))
    with pytest.raises(UsageError, match="must be 1 to 10"):
        tk.Tokenizer((tk.LabelPosition("x", 11),))
