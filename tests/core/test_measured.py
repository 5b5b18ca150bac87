"""What INFO says was measured: numbers, texts and conditions, per allele."""

import pytest

from hybridna_core.data.measured import read_condition, read_number, read_text
from hybridna_core.data.vcf import Record
from hybridna_core.errors import DataError, UsageError


def record(info, alt="C"):
    columns = [b"c", b"5", b".", b"A", alt.encode(), b".", b".", info.encode()]
    return Record(7, columns, b"")


def test_values_belong_to_their_alleles():
    two = record("E=1.5,-2;G=x;M=.,3;N=.", "C,G")
    assert [read_number(two, i, "E", "v.vcf") for i in (0, 1)] == [1.5, -2]
    assert [read_text(two, i, "G", "v.vcf") for i in (0, 1)] == ["x", "x"]
    assert [read_number(two, i, "M", "v.vcf") for i in (0, 1)] == [None, 3]
    assert read_number(two, 0, "N", "v.vcf") is None and read_number(two, 0, "absent", "v.vcf") is None
    assert read_text(record("G=a,b"), 0, "G", "v.vcf") == "a,b"
    with pytest.raises(DataError, match=r"v.vcf:7: E has 2 values for 3 alternative alleles"):
        read_number(record("E=1,2", "C,G,T"), 0, "E", "v.vcf")


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "high", "1,2", "1e999"])
def test_what_is_no_finite_number_stops(text):
    with pytest.raises(DataError, match=r"v.vcf:7: E is .* not a finite number"):
        read_number(record(f"E={text}"), 0, "E", "v.vcf")


@pytest.mark.parametrize(
    ("condition", "info", "due"),
    [
        ("F=LOF", "F=LOF", True),
        ("F=LOF", "F=FUNC", False),
        ("F=LOF,INT", "F=INT", True),
        ("F!=LOF,INT", "F=INT", False),
        ("F!=LOF", "F=FUNC", True),
        ("F!=LOF", "F=.", None),
        ("F!=LOF", "X=1", None),
        ("P<1e-5", "P=9e-6", True),
        ("P<1e-5", "P=1e-5", False),
        ("P <= 1e-5", "P=1e-5", True),
        ("P>-2", "P=-2", False),
        ("P>=-2", "P=-2.0", True),
        ("P>=-2", "P=.", None),
    ],
)
def test_conditions(condition, info, due):
    assert read_condition(condition, "--where").holds(record(info), 0, "v.vcf") is due


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("F", "--where: is 'F'; KEY=VALUE"),
        ("=LOF", "is '=LOF'"),
        ("F=", "is 'F='"),
        ("1F=2", "is '1F=2'"),
        ("P<low", "compares with 'low', which is no number"),
        ("P>nan", "compares with 'nan'"),
    ],
)
def test_conditions_that_are_none(text, words):
    with pytest.raises(UsageError) as caught:
        read_condition(text, "--where")
    assert words in str(caught.value)
