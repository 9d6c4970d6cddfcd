from __future__ import annotations

import subprocess
import sys

# As in training steps: the same tensors again and again. The second number is the pages they take.
STEPS = """
import resource, sys
import torch
from segclip.heap import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
found = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(mebi << 18) for mebi in (32, 36, 40, 44)]
    del tensors
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# A busy kernel takes pages back from time to time.
print(min(found), (32 + 36 + 40 + 44) << 8)
"""


def faults_and_pages(how: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True, timeout=120
    )
    faults, pages = map(int, done.stdout.split())
    return faults, pages


def test_memory_that_was_freed_is_used_again_without_the_kernel() -> None:
    faults, pages = faults_and_pages("keep")
    assert faults < pages / 10
    faults, pages = faults_and_pages("leave")
    assert faults > pages / 2
