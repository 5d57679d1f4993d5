"""Which lines of a host's log count against the pack."""
from pathlib import Path

import pytest

from lodestar.tests.conftest import complaints

PLACES = {Path("/x/pack"): "<pack>", Path("/x/host"): "<host>"}
OURS = 'Traceback (most recent call last):\n  File "/x/pack/nodes/a.py", line 1, in f\n    g()\nValueError: no'
THEIRS = 'Traceback (most recent call last):\n  File "/x/host/server.py", line 1, in f\n    g()\nMissing: /x/packhome/.cache is not there. Warning'


@pytest.mark.parametrize("line, counts", [(OURS, True), (THEIRS, False), ("WARNING: lodestar is slow", True), ("Import times: /x/host 0.1 s", False),
                                          ("error in /x/pack.", True), ("warning: /x/packed is not ours", False)])
def test_complaints(line, counts):
    assert bool(complaints(line, PLACES)) == counts
