"""Memory of score-variants does not grow with the records; tests/vcf_soak.py does the same with a million."""

import pytest
import vcf_soak


@pytest.mark.parametrize("kind", ["z", "p"])
def test_memory_is_flat(kind):
    few, many = vcf_soak.measure(1_000, kind), vcf_soak.measure(6_000, kind)
    # A row group of Parquet is held whole, here all of them.
    assert many <= few * (1.05 if kind == "z" else 1.1)
