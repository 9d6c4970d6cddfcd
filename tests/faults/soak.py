"""A long run that is killed again and again must end with the model of one that nothing happened to.

    make soak                                   # half an hour
    python -m tests.faults.soak --minutes 5

First the run that nothing happens to, for a quarter of the time; then the same one on two ranks, of which one or both
are killed, stopped or asked to stop every few tens of seconds, wherever they are: starting, in a step, writing a
checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from tests.distributed.conftest import SMALL
from tests.faults.conftest import Run
from tests.ranks import Group

BLOWS = {
    "SIGKILL": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "SIGUSR1": signal.SIGUSR1,
    "SIGSTOP": signal.SIGSTOP,
}
SHORTEST, LONGEST = 3.0, 40.0
"""Seconds between a start and a blow."""
LOST_AFTER = 10.0


def main() -> None:
    """Run both, print what happened, and exit with 1 if the models differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the whole (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the blows")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scene_shards(str(root / "shards"), SceneSet(80, 3, size=48), per_shard=20, processes=1)
        tree = {**SMALL, "run_dir": "", "data": {**SMALL["data"], "shards": str(root / "shards")}}
        (root / "small.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        steps = _steps(Run(root / "trial", root / "small.yaml"), 60 * given.minutes / 4)
        settings = (f"train.steps={steps}", "checkpoint.every=50", f"train.lost_after={LOST_AFTER}")
        unbroken = Run(root / "unbroken", root / "small.yaml")
        begin = time.monotonic()
        codes, text = unbroken(*settings, seconds=3600)
        assert codes == [0, 0], text
        print(f"unbroken: {steps} steps in {time.monotonic() - begin:.0f} s", flush=True)
        broken = Run(root / "broken", root / "small.yaml")
        blows = _beat(broken, settings, random.Random(given.seed))
        print(
            f"broken: {sum(blows.values())} blows ({', '.join(f'{n} {name}' for name, n in blows.items())})"
        )
        broken.must_equal(unbroken)
    print("the same model, from the same samples in the same order")


def _steps(trial: Run, seconds: float) -> int:
    """Steps that take about so long."""
    begin = time.monotonic()
    codes, text = trial("train.steps=200", "checkpoint.every=50")
    assert codes == [0, 0], text
    return max(200, int(200 * seconds / (time.monotonic() - begin)))


def _beat(run: Run, settings: tuple[str, ...], chance: random.Random) -> Counter[str]:
    blows: Counter[str] = Counter()
    while True:
        group = run.begin(*settings, environment={"SEGCLIP_MEETING_SECONDS": "30"})
        try:
            if group.wait(chance.uniform(SHORTEST, LONGEST)):
                assert group.codes() == [0, 0], group.text()
                return blows
            name, ranks = chance.choice(list(BLOWS)), chance.choice([[0], [1], [0, 1]])
            _strike(group, BLOWS[name], ranks)
            blows[name] += 1
        finally:
            group.kill()
        made = max((int(path.name[5:]) for path in (run.folder / "checkpoints").glob("step-*")), default=0)
        print(
            f"  {sum(blows.values())}: {name} to {ranks}; step {made} is saved", file=sys.stderr, flush=True
        )


def _strike(group: Group, blow: signal.Signals, ranks: list[int]) -> None:
    """The ranks that are left have to end by themselves, and none of them as if all were well."""
    for rank in ranks:
        if group.ranks[rank].exitcode is None:
            os.kill(group.ranks[rank].pid or 0, blow)
    stopped = blow == signal.SIGSTOP
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        left = [
            n for n, rank in enumerate(group.ranks) if rank.exitcode is None and not (stopped and n in ranks)
        ]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"ranks {left} did not end after {blow.name} to {ranks}: {group.text()[-3000:]}")


if __name__ == "__main__":
    main()
