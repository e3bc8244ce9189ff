"""The second half of one fault of each kind."""

import pytest

from tests.faults.playing import one_of_each_kind

pytestmark = pytest.mark.faults


@pytest.mark.timeout(600)
def test_the_second_half_of_the_kinds_of_fault_loses_doubles_and_damages_nothing(tmp_path):
    one_of_each_kind(tmp_path, "1/2")
