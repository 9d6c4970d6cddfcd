"""Run every benchmark and print one table.

python -m benchmarks.all --quick       # every script, under a minute each
python -m benchmarks.all --committed   # runs nothing: the figures of benchmarks/results
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.promised import committed_figures, print_promises
from benchmarks.report import LEFT_OUT, ROOT, Figure, arguments, print_figures, write_json


def scripts() -> list[str]:
    """Names of all benchmarks: files beside this one that have a ``main``; the others serve them."""
    files = (path for path in Path(__file__).parent.glob("*.py") if path != Path(__file__))
    return sorted(path.stem for path in files if "\ndef main(" in path.read_text(encoding="utf-8"))


def main() -> None:
    """Run the benchmarks one after the other; exit code 1 if one failed to run.

    What cannot run here (no GPU, no data) is left out, named with the reason at the end. The last table has what was
    promised: as measured now, and where it was not, as it is in ``benchmarks/results``.
    """
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=scripts(), metavar="NAME", help="run these alone")
    parser.add_argument("--committed", action="store_true", help="run nothing: what benchmarks/results holds")
    given = parser.parse_args()
    committed = committed_figures()
    if given.committed:
        print_promises("What was promised, as measured in benchmarks/results", committed)
        return
    reports: dict[str, dict[str, object]] = {}
    figures: dict[str, Figure] = {}
    failed: list[str] = []
    left_out: dict[str, str] = {}
    for name in given.only or scripts():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.json"
            command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path)]
            print("$", " ".join(command[1:]), flush=True)
            code = subprocess.run(
                [*command, *(["--quick"] if given.quick else [])], cwd=ROOT, check=False
            ).returncode
            if code == LEFT_OUT and path.is_file():
                left_out[name] = json.loads(path.read_text(encoding="utf-8"))["left_out"]
                continue
            if code or not path.is_file():
                failed.append(f"{name} (exit code {code})")
                continue
            reports[name] = json.loads(path.read_text(encoding="utf-8"))
        found = reports[name]["figures"]
        assert isinstance(found, dict)
        figures |= {f"{name}: {figure}": Figure(**values) for figure, values in found.items()}
    print_figures("All benchmarks" + (" (quick: not for comparison)" if given.quick else ""), figures)
    if not given.quick:
        older = {
            name: replace(figure, beside=f"earlier, in benchmarks/results; {figure.beside}")
            for name, figure in committed.items()
            if name.partition(":")[0] not in reports
        }
        print_promises("What was promised", {**older, **figures})
    if given.json:
        write_json(given.json, reports)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", flush=True)
    if failed:
        print(f"error: these benchmarks did not run: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
