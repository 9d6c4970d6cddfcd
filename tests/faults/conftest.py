"""Runs of two ranks that are made to fail, beside one that nothing happened to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# Fixtures: pytest finds them by name.
from tests.distributed.conftest import config_file, shards  # noqa: F401
from tests.ranks import Group, start

SCRIPT = Path(__file__).with_name("noted_run.py")
STEPS, EVERY = 6, 2
"""Of a run, and between its checkpoints."""
LONGEST = 120.0
"""Seconds that ranks may take to end on a busy machine."""


@dataclass(frozen=True)
class Fault:
    """What shall go wrong: see ``segclip.trainer.faults``."""

    where: str
    step: int
    what: str = "kill"
    rank: int = 0


@dataclass(frozen=True)
class Run:
    """A run folder, and the command that starts and continues it."""

    folder: Path
    config: Path

    def begin(
        self,
        *overrides: str,
        faults: Sequence[Fault] = (),
        ranks: int = 2,
        environment: dict[str, str] | None = None,
    ) -> Group:
        """Start the ranks and let them go on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {
            "SEGCLIP_FAULTS": json.dumps([asdict(fault) for fault in faults]),
            "SEGCLIP_FAULTS_FIRED": str(self.folder / "fired"),
        }
        every = {"SEGCLIP_TEST_NOTES": str(self.folder), **(wanted if faults else {}), **(environment or {})}
        settings = (
            "train.log_every=1",
            f"train.steps={STEPS}",
            f"checkpoint.every={EVERY}",
            f"run_dir={self.folder}",
        )
        return start(SCRIPT, "--config", self.config, *settings, *overrides, ranks=ranks, environment=every)

    def __call__(
        self,
        *overrides: str,
        faults: Sequence[Fault] = (),
        ranks: int = 2,
        environment: dict[str, str] | None = None,
        seconds: float = LONGEST,
    ) -> tuple[list[int | None], str]:
        """Exit codes and words of all ranks, which end by themselves."""
        group = self.begin(*overrides, faults=faults, ranks=ranks, environment=environment)
        try:
            group.wait(seconds)
            return group.codes(), group.text()
        finally:
            group.kill()

    def fired(self) -> list[str]:
        """Places where faults have fired, in their order."""
        path = self.folder / "fired"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line)["where"] for line in lines]

    def checkpoints(self) -> list[str]:
        """What lies in the folder of checkpoints, unfinished and damaged ones too."""
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir() if path.is_dir())

    def samples(self) -> dict[tuple[int, int], set[str]]:
        """By rank and step: what was trained on, whenever that step was made."""
        seen: dict[tuple[int, int], set[str]] = {}
        for path in self.folder.glob("samples-*.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                seen.setdefault((int(path.stem[-1]), row["step"]), set()).add(
                    f"{row['positions']} {row['content']}"
                )
        return seen

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "export" / "model.safetensors")

    def must_equal(self, other: Run) -> None:
        """The same final model, bit by bit, from the same samples in the same order."""
        assert (self.folder / "summary.json").is_file()
        assert self.samples() == other.samples()
        own, expected = self.weights(), other.weights()
        assert own.keys() == expected.keys()
        assert [name for name in own if not torch.equal(own[name], expected[name])] == []


NewRun = Callable[[], Run]


@pytest.fixture
def run(tmp_path: Path, config_file: Path) -> Run:  # noqa: F811
    """A run that has not begun."""
    return Run(tmp_path / "run", config_file)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, config_file: Path) -> Run:  # noqa: F811
    """A run that nothing happens to."""
    made = Run(tmp_path_factory.mktemp("unbroken") / "run", config_file)
    codes, text = made()
    assert codes == [0, 0], text
    return made


@pytest.fixture
def finished(unbroken: Run, tmp_path: Path) -> Run:
    """A copy of the unbroken run with all its checkpoints, and nothing that follows the last step."""
    copied = Run(tmp_path / "run", unbroken.config)
    shutil.copytree(unbroken.folder, copied.folder, ignore=shutil.ignore_patterns("export", "summary.json"))
    return copied
