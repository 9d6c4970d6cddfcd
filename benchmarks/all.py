"""Run every benchmark and print one table.

python -m benchmarks.all --quick
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import ROOT, Figure, arguments, print_figures

HELPERS = {"__init__", "all", "kernel_cases", "report"}
NEED_GPU = {"gpu_kernels", "gpu_sanitize"}


def scripts() -> list[str]:
    """Names of all benchmarks that can run here."""
    import torch

    left_out = HELPERS if torch.cuda.is_available() else HELPERS | NEED_GPU
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in left_out)


def main() -> None:
    """Run the benchmarks one after the other; exit code 1 if one failed to run."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=scripts(), metavar="NAME", help="run these alone")
    given = parser.parse_args()
    reports: dict[str, dict[str, object]] = {}
    figures: dict[str, Figure] = {}
    failed: list[str] = []
    for name in given.only or scripts():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.json"
            command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path)]
            print("$", " ".join(command[1:]), flush=True)
            code = subprocess.run(
                [*command, *(["--quick"] if given.quick else [])], cwd=ROOT, check=False
            ).returncode
            if code or not path.is_file():
                failed.append(f"{name} (exit code {code})")
                continue
            reports[name] = json.loads(path.read_text(encoding="utf-8"))
        found = reports[name]["figures"]
        assert isinstance(found, dict)
        figures |= {f"{name}: {figure}": Figure(**values) for figure, values in found.items()}
    print_figures("All benchmarks" + (" (quick: not for comparison)" if given.quick else ""), figures)
    if given.json:
        path = Path(given.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    if failed:
        print(f"error: these benchmarks did not run: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
