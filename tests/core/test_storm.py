"""Runs killed and stopped at random moments: all go on unaided and end as if nothing had happened.

`make kill-storm` and `make stop-storm` do the same 200 and 20 times.
"""

from storm import STOP_LIMIT, kill_storm, stop_storm


def test_killed_ten_times(tmp_path):
    harms = list(kill_storm(tmp_path, 10, inside=3, seed=1))
    assert len(harms) >= 10 and {h.code for h in harms} == {-9}
    assert sum(h.moment == "saving" for h in harms) >= 3
    assert [h for h in harms if h.resumed != 0 or not h.equal] == []


def test_stopped_twice(tmp_path):
    harms = list(stop_storm(tmp_path, 2, seed=1))
    assert [h.code for h in harms] == [143] * 2
    assert all(h.seconds < STOP_LIMIT and h.step > 0 and h.equal for h in harms)
