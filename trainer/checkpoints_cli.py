"""``segclip-checkpoints``: list, verify, prune and export the checkpoints of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from segclip.console import cli, progress

if TYPE_CHECKING:
    from segclip.trainer.checkpoints.retention import Retention

__all__ = ["EXIT_DAMAGED", "build_parser", "main"]

EXIT_DAMAGED = 1


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="segclip-checkpoints", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    shown = commands.add_parser("list", help="step, date, size, ranks, ZeRO stage, mIoU, and why it is kept")
    shown.set_defaults(command_main=_list)

    verify = commands.add_parser(
        "verify",
        help="compare every byte with its checksums",
        description="Read all files of all checkpoints. The exit code is 1 if one is missing or damaged.",
    )
    for command in (shown, verify):
        command.add_argument(
            "place", metavar="RUN_OR_URL", help="folder of the run, or the URL of checkpoint.upload"
        )
    verify.add_argument("--step", type=int, metavar="N", help="this checkpoint alone")
    verify.set_defaults(command_main=_verify)

    prune = commands.add_parser(
        "prune",
        help="delete old checkpoints, and what was not written to its end",
        description="Delete checkpoints that are kept by none of the rules, and folders that were not written to "
        "their end.",
    )
    prune.add_argument("run_dir", metavar="RUN", help="folder of the run")
    prune.add_argument(
        "--keep-last", type=int, metavar="N", help="keep the newest N (default: as the run does)"
    )
    prune.add_argument(
        "--keep-every",
        type=int,
        metavar="N",
        help="keep steps that are multiples of N (default: as the run does)",
    )
    prune.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    prune.set_defaults(command_main=_prune)

    export = commands.add_parser("export", help="write one checkpoint as a folder that segclip.load opens")
    export.add_argument("run_dir", metavar="RUN", help="folder of the run")
    export.add_argument(
        "--step", default="latest", metavar="N", help="a step, latest or best (default: latest)"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    export.set_defaults(command_main=_export)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    from segclip.trainer.checkpoints.listing import describe, open_checkpoints, set_aside_folders, table

    rows = describe(open_checkpoints(arguments.place))
    print(table(rows))
    for folder in set_aside_folders(arguments.place):
        print(f"{folder} was found damaged and set aside; segclip-checkpoints prune deletes it")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from segclip.trainer.checkpoints.listing import open_checkpoints, size_text
    from segclip.trainer.checkpoints.store import DamagedError, damaged_files, stored

    store = open_checkpoints(arguments.place)
    found = [each for each in stored(store) if arguments.step in (None, each.step)]
    if not found:
        which = "checkpoints" if arguments.step is None else f"checkpoint of step {arguments.step}"
        raise ValueError(f"{arguments.place} holds no {which}; segclip-checkpoints list shows what is there")
    complete = [each for each in found if each.is_complete]
    problems: list[str] = []
    with progress() as bar:
        task = bar.add_task("bytes", total=sum(each.size for each in complete))
        for each in complete:
            try:
                problems += damaged_files(store, each, lambda count: bar.advance(task, count))
            except DamagedError as error:
                problems.append(str(error))
        bar.update(task, completed=sum(each.size for each in complete))
    for line in problems:
        print(f"DAMAGED  {line}")
    for each in found:
        if not each.is_complete:
            print(f"torn     {store.url}/{each.name}: never chosen; prune, or the run itself, removes it")
    files, size = sum(len(each.entries) for each in complete), sum(each.size for each in complete)
    checked = f"{len(complete)} checkpoints, {files} files, {size_text(size)}"
    print(f"{checked}: {len(problems)} damaged" if problems else f"{checked}: all bytes are as written")
    return EXIT_DAMAGED if problems else 0


def _prune(arguments: argparse.Namespace) -> int:
    from segclip.trainer.checkpoints.folder import DAMAGED, checkpoint_folder, remove, step_name
    from segclip.trainer.checkpoints.listing import describe, folder_size, is_url, open_checkpoints, size_text
    from segclip.trainer.checkpoints.retention import superfluous
    from segclip.trainer.run_lock import hold_run_folder

    if is_url(arguments.run_dir):
        raise ValueError(
            f"prune works on the folder of a run, not on {arguments.run_dir}: what lies there is pruned by the run "
            "that uploads it, by checkpoint.keep_last and keep_every"
        )
    root = checkpoint_folder(arguments.run_dir)
    open_checkpoints(arguments.run_dir)
    if not arguments.dry_run:
        hold_run_folder(arguments.run_dir)
    rule = _rule(arguments)
    rows = describe(open_checkpoints(arguments.run_dir))
    complete = [row.step for row in rows if row.torn is None]
    best = next((row.step for row in rows if "best" in row.kept), None)
    old = [(root / step_name(step), "old") for step in superfluous(complete, best, rule)]
    torn = [(root / step_name(row.step), "torn") for row in rows if row.torn is not None]
    unfinished = [
        (path, "set aside as damaged" if path.name.startswith(DAMAGED) else "unfinished")
        for path in sorted(root.glob(".*"))
        if path.is_dir()
    ]
    freed = 0
    for folder, why in (*unfinished, *torn, *old):
        size = folder_size(folder)
        freed += size
        if not arguments.dry_run:
            remove(folder)
        print(f"{'would delete' if arguments.dry_run else 'deleted'} {folder} ({why}, {size_text(size)})")
    print(f"{size_text(freed)} {'would be ' if arguments.dry_run else ''}freed in {root}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from segclip.trainer.checkpoints.folder import checkpoint_folder
    from segclip.trainer.checkpoints.listing import describe, is_url, open_checkpoints
    from segclip.trainer.checkpoints.store import damaged_files, stored

    if is_url(arguments.run_dir):
        raise ValueError(
            f"export works on the folder of a run, not on {arguments.run_dir}: copy it to a disk first"
        )
    store = open_checkpoints(arguments.run_dir)
    rows = [row for row in describe(store) if row.torn is None]
    wanted = [row.step for row in rows if arguments.step in (str(row.step), *row.kept)]
    if not wanted:
        known = ", ".join([*(str(row.step) for row in rows), *(name for row in rows for name in row.kept)])
        raise ValueError(f"--step {arguments.step}: {arguments.run_dir} has no such checkpoint, only {known}")
    (each,) = (each for each in stored(store) if each.step == wanted[-1])
    # Before anything is unpickled.
    problems = damaged_files(store, each, lambda count: None)
    if problems:
        raise ValueError(f"the checkpoint of step {each.step} is damaged: {'; '.join(problems)}")

    from segclip.trainer.config import load_run_config
    from segclip.trainer.export import export_checkpoint

    folder = checkpoint_folder(arguments.run_dir) / each.name
    config = load_run_config(folder / "config.yaml")
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"wrote {export_checkpoint(folder, config, arguments.out)} from step {each.step}")
    return 0


def _rule(arguments: argparse.Namespace) -> Retention:
    """That of the run, but for what is given."""
    import yaml

    from segclip.trainer.checkpoints.retention import Retention

    path = Path(arguments.run_dir) / "config.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    section = tree.get("checkpoint", {})
    rule = {name: section[name] for name in Retention.model_fields if name in section}
    for name in ("keep_last", "keep_every"):
        given = getattr(arguments, name)
        least = 1 if name == "keep_last" else 0
        if given is not None and given < least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, got {given}")
        if given is not None:
            rule[name] = given
    return Retention(**rule)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the command."""
    cli(lambda arguments: int(arguments.command_main(arguments)), build_parser(), argv)


if __name__ == "__main__":
    main()
