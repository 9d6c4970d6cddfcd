"""What ncu prints is added up. (What it measures, only a GPU can show.)"""

from __future__ import annotations

import pytest

from benchmarks.gpu_bytes import METRIC, total

HEADER = f'"ID","Kernel Name","Grid Size","{METRIC}"'


def test_all_kernels_count() -> None:
    output = f"""==PROF== Connected to process 7
==PROF== Profiling "_assign": 0%....100% - 1 pass
{HEADER}
"","","","byte"
"0","_assign","(96, 4, 1)","1,048,576"
"1","void reduce<float, 4>(T1)","(1, 1, 1)","24"
"""
    assert total(output) == 1048600


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("==WARNING== No kernels were profiled.", "saw no kernel; it said:\n==WARNING=="),
        (f'{HEADER}\n"","","","byte"', "saw no kernel"),
        (f'{HEADER}\n"","","","Mbyte"\n"0","_assign","(1, 1, 1)","1.5"', "in bytes, got 'Mbyte'"),
    ],
)
def test_what_can_not_be_added_up(output, message) -> None:
    with pytest.raises(RuntimeError, match=message):
        total(output)
