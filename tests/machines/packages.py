"""Usage: packages.py FOLDER PLATFORM

Fills a folder with what this virtual environment has installed, for another machine: packages of pure Python as links,
those with compiled code as wheels for PLATFORM, of the same version. Packages without such a wheel are printed and left out.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path


def is_compiled(distribution: Distribution) -> bool:
    return any(file.suffix == ".so" for file in distribution.files or ())


def link(distribution: Distribution, folder: Path) -> None:
    for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        target = folder / top
        if not top.endswith(".pth") and not target.exists():  # several may share the folder of a namespace
            target.symlink_to(Path(str(distribution.locate_file(top))))


def install(distribution: Distribution, folder: Path, platform: str) -> bool:
    """Whether there is a wheel of this version for the platform, and Python 3.11, which Debian 12 has."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.11", "--target", str(folder)]
    for manylinux in ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28"):
        command += ["--platform", f"{manylinux}_{platform}"]
    command.append(f"{distribution.name}=={distribution.version}")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    folder, platform = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True)
    missing = []
    for distribution in distributions():
        if distribution.name in ("aiotuntap", "pip", "setuptools"):
            continue
        if not is_compiled(distribution):
            link(distribution, folder)
        elif not install(distribution, folder, platform):
            missing.append(distribution.name)
    if missing:
        sys.stdout.write(f"== no wheel for {platform}: {', '.join(sorted(missing))}\n")


if __name__ == "__main__":
    main()
