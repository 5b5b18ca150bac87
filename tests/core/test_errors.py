"""Errors: one line of text each, and the documented exit codes."""

import pytest

from hybridna_core import errors
from hybridna_core.errors import HybriDNAError, Stopped, UsageError, nearest


def test_text_is_where_what_hint_in_one_line():
    error = UsageError("unknown\nkey 'lenght'", where="run.toml:3", hint="did you mean 'length'?")
    assert str(error) == "run.toml:3: unknown key 'lenght'; did you mean 'length'?"
    assert str(UsageError("wrong")) == "wrong"


def test_exit_codes_are_those_of_the_documentation():
    kinds = {
        "UsageError": 2, "DataError": 3, "ModelError": 4, "SystemFault": 5, "GuardError": 6, "OutOfMemory": 137,
    }  # fmt: skip
    assert {name: getattr(errors, name)("x").exit_code for name in kinds} == kinds
    assert Stopped("x", signal_number=2).exit_code == 130
    assert {Stopped("x", signal_number=n).exit_code for n in (1, 10, 15)} == {143}
    assert all(issubclass(getattr(errors, name), HybriDNAError) for name in kinds)


@pytest.mark.parametrize("word, known, found", [
    ("lenght", ["length", "label"], "length"),
    ("zzz", ["length", "label"], None),
    (3, [1, 3], "3"),
])  # fmt: skip
def test_nearest(word, known, found):
    assert nearest(word, known) == found
