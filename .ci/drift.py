"""Print the versions that pip would install today and that constraints.txt does not pin: `python .ci/drift.py`.

The newest versions of the core, the documentation and the optional extras are installed and used in .ci/run. This
script covers the rest without a second environment: pip resolves `.[dev]` and downloads nothing but metadata.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNPINNED = {"miniclip", "pip", "setuptools", "wheel"}  # pip freeze leaves them out


def canonical(name: str) -> str:
    """Return a project's name in lower case with dashes."""
    return name.lower().replace("_", "-").replace(".", "-")


def pinned() -> dict[str, str]:
    """Return the versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonical(name): version for name, version in pins}


def newest() -> dict[str, str]:
    """Return the versions that pip resolves for all extras without constraints."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", report, f"{ROOT}[dev]"], check=True, env=environment)
        packages = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {
        canonical(package["name"]): package["version"]
        for package in packages
        if canonical(package["name"]) not in UNPINNED
    }


def main() -> None:
    """Print one line for every version that has moved."""
    old, new = pinned(), newest()
    moved = {name: version for name, version in new.items() if old.get(name) != version}
    for name, version in sorted(moved.items()):
        print(f"{name}: {old.get(name, 'not pinned')} -> {version}")
    print(f"{len(moved)} of {len(new)} packages have moved since constraints.txt was written")


if __name__ == "__main__":
    main()
