"""What README and docs say can be done: every command block is run by a test or says what it needs, every command is
one that the programs take, every quoted figure, file and message is there. (Links and anchors: ``make docs``.)"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.promised import PROMISES, committed_figures, found, with_figures
from docs.make.command_lines import parsers, subparsers
from docs.make.tiling import DRAWINGS
from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_voc
from segclip.eval.datasets.folder_sets import load_folder_set
from segclip.eval.protocol import load_protocol
from segclip.eval.vocabulary import load_vocabulary
from segclip.models.export_folder import export
from segclip.trainer.config import RunConfig, load_run_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "kernels" / "README.md"])
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}

# What a command begins with, and the file of tests that runs it with these words in it.
EXECUTED = {
    "make quickstart": ("tests/trainer/test_quickstart.py", "segclip.trainer.quickstart"),
    "make setup": (".ci/run", "make lint"),
    "make lint": (".ci/run", "make lint"),
    "make docs": (".ci/run", "make docs"),
    "make test": (".ci/run", "make test"),
    "segclip-shards build": ("tests/data_pipelines/building/test_cli.py", '"build"'),
    "segclip-shards superpixels": ("tests/data_pipelines/building/test_cli.py", '"superpixels"'),
    "segclip-shards stats": ("tests/data_pipelines/building/test_cli.py", '"stats"'),
    "segclip-doctor --config": ("tests/trainer/test_doctor.py", '"--config"'),
    "segclip-doctor memory": ("tests/trainer/test_doctor.py", '"memory"'),
    "segclip-doctor dataset": ("tests/trainer/test_doctor.py", '"dataset"'),
    "segclip-convert": ("tests/eval/datasets/test_relabel.py", "convert_cli"),
    "segclip-eval compare": ("tests/eval/test_compare.py", "compare"),
    "segclip-eval": ("tests/eval/test_command_lines.py", "segclip-eval"),
    "segclip-segment": ("tests/eval/test_command_lines.py", "segclip-segment"),
    "segclip-demo": ("tests/eval/test_demo.py", "segclip-demo"),
    "segclip-export": ("tests/trainer/test_export_cli.py", "torch-export"),
    "segclip-checkpoints list": ("tests/trainer/test_checkpoints_cli.py", '"list"'),
    "segclip-checkpoints verify": ("tests/trainer/test_checkpoints_cli.py", '"verify"'),
    "segclip-checkpoints prune": ("tests/trainer/test_checkpoints_cli.py", '"prune"'),
    "torchrun": ("tests/eval/test_ranks.py", "ranks"),
    "deepspeed": ("tests/trainer/test_quickstart.py", "quickstart"),
    "python trainer/run.py": ("tests/trainer/test_run.py", '"--dry-run"'),
    "mlflow ui": ("tests/faults/test_tracking.py", "mlflow"),
    "cp configs/": ("tests/trainer/test_config.py", "configs"),
}
# What a block may need that no machine of the tests has.
NEEDS = {"cluster", "GPU", "download", "hours"}
# Scripts that launchers start, and the programs whose options they take.
SCRIPTS = {"trainer/run.py": "trainer/run.py", "eval/run.py": "segclip-eval"}
LAUNCHERS = {"deepspeed", "torchrun"}
# Programs of others.
OTHERS = {
    "cp",
    "export",
    "img2dataset",
    "kubectl",
    "mkdir",
    "mlflow",
    "pip",
    "sbatch",
    "sed",
    "tar",
    "unzip",
    "wget",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    needs: str

    @property
    def commands(self) -> list[list[str]]:
        """Its commands, in words. Of a transcript (``$ command``, output), the lines with a prompt."""
        if self.language not in ("", "sh", "bash"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        words = [shlex.split(line, comments=True) for line in lines]
        return [[each[0].removeprefix(".venv/bin/"), *each[1:]] for each in words if each]


def blocks() -> list[Block]:
    pattern = re.compile(r"(?:<!-- needs: (\w+) -->\n+)?^(```|~~~)(\w*)\n(.*?)^\2$", re.DOTALL | re.MULTILINE)
    return [
        Block(page, text[: match.start(3)].count("\n") + 1, match[3], match[4], match[1] or "")
        for page, text in TEXTS.items()
        for match in pattern.finditer(text)
    ]


BLOCKS = blocks()
COMMANDS = [
    pytest.param(block, words, id=f"{block.page}:{block.line} {words[0]}")
    for block in BLOCKS
    for words in block.commands
]


@cache
def known() -> dict[str, argparse.ArgumentParser]:
    return parsers()


@pytest.mark.parametrize(("block", "words"), COMMANDS)
def test_a_command_is_run_by_a_test_or_says_what_it_needs(block: Block, words: list[str]) -> None:
    if block.needs:
        assert block.needs in NEEDS
        return
    command = " ".join(words)
    tests = [where for start, where in EXECUTED.items() if command.startswith(start)]
    assert tests, (
        f"{block.page}: no test runs {command!r}: name one in EXECUTED, or mark it <!-- needs: … -->"
    )
    for file, content in tests:
        assert content in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(("block", "words"), COMMANDS)
def test_a_command_is_one_that_its_program_takes(block: Block, words: list[str]) -> None:
    if " ".join(words[:2]) in known():
        words = [" ".join(words[:2]), *words[2:]]
    program, *rest = words
    if program in known():
        # Alone, or with options alone, segclip-doctor checks the environment.
        parse(program, ["environment", *rest] if words[:2] == ["segclip-doctor", "--config"] else rest)
    elif program == "make":
        check_make(rest)
    elif program in ("deepspeed", "python", "torchrun"):
        check_launch(program, rest)
    else:
        assert program in OTHERS, (
            f"{block.page}: {program!r} is no program of this project: is it spelt right?"
        )


def parse(program: str, words: list[str]) -> argparse.Namespace:
    try:
        return known()[program].parse_args(words)
    except SystemExit:
        pytest.fail(f"{program} does not take {shlex.join(words)}")


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name = word.partition("=")[0]
        known_name = rf"^{re.escape(name)}\s*\??=" if "=" in word else rf"^{re.escape(name)}:"
        assert name.startswith("-") or re.search(known_name, makefile, re.MULTILINE), (
            f"no {word} in the Makefile"
        )


def check_launch(program: str, words: list[str]) -> None:
    """Of a training run its options and settings, of a benchmark its options."""
    if words[:1] == ["-c"]:
        ast.parse(words[1])
        return
    if words[:1] == ["-m"]:
        script = ROOT / (words[1].replace(".", "/") + ".py")
        said = script.read_text(encoding="utf-8") + (ROOT / "benchmarks" / "report.py").read_text(
            encoding="utf-8"
        )
        assert all(f'"{word}"' in said for word in words[2:] if word.startswith("--")), (
            f"{script} has no {words[2:]}"
        )
        return
    start = next(number for number, word in enumerate(words) if word in SCRIPTS)
    if program in LAUNCHERS:
        check_launcher(program, words[:start])
    given = parse(SCRIPTS[words[start]], words[start + 1 :])
    if words[start] != "trainer/run.py":
        return
    mine = Path(given.config).name == "my.yaml"
    config = ROOT / "configs" / "segclip_vit_b16.yaml" if mine else ROOT / given.config
    assert isinstance(load_run_config(config, given.overrides), RunConfig)


def check_launcher(program: str, words: list[str]) -> None:
    from deepspeed.launcher.runner import parse_args as deepspeed
    from torch.distributed.run import parse_args as torchrun

    try:
        given = {"deepspeed": deepspeed, "torchrun": torchrun}[program]([*words, "script.py"])
    except SystemExit:
        pytest.fail(f"{program} does not take {words}")
    assert "script.py" in (getattr(given, "user_script", ""), getattr(given, "training_script", ""))


def test_flags_in_sentences_exist() -> None:
    """``--flag`` in the text, outside of blocks, is one of ours or of a launcher that the pages speak of."""
    theirs = {
        "--launcher",
        "--local-loss",
        "--master_addr",
        "--master_port",
        "--no_ssh",
        "--nproc_per_node",
        "--wait",
    }
    theirs |= {"--num_accelerators", "--help", "--debug"}
    ours = {option for parser in known().values() for option in options(parser)}
    for script in (ROOT / "benchmarks").glob("*.py"):
        ours |= set(re.findall(r'"(--[\w-]+)"', script.read_text(encoding="utf-8")))
    for page, text in TEXTS.items():
        spans = re.findall(
            r"`([^`\n]+)`", re.sub(r"^(```|~~~).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
        )
        said = {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
        assert said <= ours | theirs, (
            f"{page} names options that do not exist: {sorted(said - ours - theirs)}"
        )


def options(parser: argparse.ArgumentParser) -> set[str]:
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(options(inner) for inner in subparsers(parser).values()))


@pytest.mark.parametrize(
    "block", [each for each in BLOCKS if each.language == "yaml"], ids=lambda each: each.page
)
def test_yaml_blocks_are_read(block: Block, tmp_path: Path) -> None:
    """By what reads such a file when a user writes one."""
    path = tmp_path / "block.yaml"
    path.write_text(block.text, encoding="utf-8")
    tree: dict[str, Any] = yaml.safe_load(block.text)
    if "classes" in tree:
        assert len(load_folder_set(path).classes) == len(tree["classes"])
    elif "synonyms" in tree:
        assert load_vocabulary(path).distractors == tuple(tree["distractors"])
    elif "templates" in tree:
        assert load_protocol(path).name == tree["name"]
    else:
        whole = yaml.safe_load((ROOT / "configs" / "segclip_vit_b16.yaml").read_text(encoding="utf-8"))
        for section, values in tree.items():
            whole[section] = whole[section] | values
        RunConfig.model_validate(whole)


@pytest.fixture(scope="module")
def quickstart_was_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the blocks in Python need of a quickstart: an export (untrained) and a scene."""
    from segclip.models.segclip import SegCLIP

    folder = tmp_path_factory.mktemp("quickstart")
    config = load_run_config(ROOT / "configs" / "quickstart.yaml")
    export(SegCLIP(config.model), folder / "runs" / "quickstart" / "train" / "export", {"protocol": "scenes"})
    write_scene_voc(folder / "runs" / "quickstart" / "data" / "eval", SceneSet(1, 3))
    return folder


@pytest.mark.parametrize(
    "block", [each for each in BLOCKS if each.language == "python"], ids=lambda each: each.page
)
def test_python_blocks_run(
    block: Block,
    quickstart_was_here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(quickstart_was_here)
    exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {})
    assert "yellow star" in capsys.readouterr().out


def test_the_readme_quotes_the_committed_figures() -> None:
    readme = TEXTS["README.md"]
    assert readme == with_figures(readme), "run python -m benchmarks.promised README.md"


def test_every_promise_has_a_figure_or_says_what_it_needs() -> None:
    figures = committed_figures()
    without = [
        promise.figure for promise in PROMISES if found(promise, figures) is None and not promise.needs
    ]
    assert not without
    for promise in PROMISES:
        script = promise.figure.partition(":")[0]
        assert script == "quickstart" or (ROOT / "benchmarks" / f"{script}.py").is_file()


def test_the_map_names_files_that_exist() -> None:
    (tree,) = [
        block.text for block in BLOCKS if block.page == "README.md" and block.text.startswith("configs/")
    ]
    folder = ROOT
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].rstrip("/")
        if not line.startswith(" "):
            folder = ROOT / names
            assert folder.is_dir(), line
            continue
        for name in names.split(", "):
            assert any(folder.glob(f"{name}*")), (
                f"the README's map names {name}, which is not in {folder.name}"
            )


@cache
def messages() -> list[str]:
    """All texts of the programs, with ``…`` where they put something in."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "install.sh")]
    for folder in ("data_pipelines", "kernels", "models", "eval", "trainer", "src"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    said = [
                        str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
                    ]
                    texts.append("".join(said))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_quoted_messages_are_messages_of_the_programs() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \|", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    assert len(quoted) > 30
    for message in quoted:
        for part in message.split("…"):
            words = part.strip(" ,;:()")
            assert len(words) < 8 or any(words in text for text in messages()), (
                f"nothing says {words!r} ({message})"
            )


def test_the_drawings_of_the_kernels_are_of_these_kernels() -> None:
    for name, draw in DRAWINGS.items():
        drawn = (ROOT / "docs" / "assets" / name).read_text(encoding="utf-8")
        assert drawn == draw(), "run python -m docs.make.tiling docs/assets"
