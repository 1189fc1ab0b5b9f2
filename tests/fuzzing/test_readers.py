"""Spoilt files are read, or refused in one message: never a traceback, never without end.

The same for minutes on end, with limits on time and memory: `python -m tests.fuzzing --minutes 10`.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing.readers import READERS
from tests.fuzzing.spoil import spoil
from tests.fuzzing.trial import attempt


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_are_to_be_spoilt_are_valid(name, tmp_path):
    for path in READERS[name].make(tmp_path):
        READERS[name].read(path)


@pytest.mark.parametrize("name", READERS)
def test_a_spoilt_file_is_read_or_refused(name, tmp_path):
    reader = READERS[name]
    whole = {path: path.read_bytes() for path in reader.make(tmp_path)}

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(list(whole)), st.randoms(use_true_random=False))
    def spoilt(path, random):
        path.write_bytes(spoil(random, whole[path]))
        outcome = attempt(reader, path)
        path.write_bytes(whole[path])
        assert not outcome.escape, outcome.escape

    spoilt()
