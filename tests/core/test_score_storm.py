"""score-variants killed at random moments: it goes on unaided and ends as if nothing had happened.

`make score-storm` does the same 50 times, for every kind of output.
"""

from score_storm import kill_storm


def test_killed_five_times(tmp_path):  # G4, G13
    rows = list(kill_storm(tmp_path, 5, seed=2, records=15, kinds=("z", "v")))
    assert len(rows) == 5 and all(equal for _, equal in rows)
    codes = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}
    # Before the handlers stand, a signal ends a process in the system's way.
    assert all(kill.code in (codes[kill.signal], -15, -2) for kill, _ in rows)
