"""The C extension, the version, and the readme as an index shows it. Everything else is in pyproject.toml.

AIOTUNTAP_EXTENSION=1 makes an installation fail where the extension cannot be compiled, 0 leaves it out. Otherwise it is
compiled where that is possible.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

wanted = os.environ.get("AIOTUNTAP_EXTENSION", "")
if wanted not in ("", "0", "1"):
    sys.exit(f"AIOTUNTAP_EXTENSION must be 0, 1 or empty, not {wanted!r}")

sources = sorted(str(path) for path in Path("native").glob("*.c"))
everything = sorted([*sources, *(str(path) for path in Path("native").glob("*.h"))])
# The tests compare it with the files, so that they never run against an extension of before a change.
digest = hashlib.sha256(b"".join(Path(path).read_bytes() for path in everything)).hexdigest()

version = re.findall(r'^__version__ = "(.+)"$', Path("aiotuntap/__init__.py").read_text(), re.MULTILINE)[0]
source = tomllib.loads(Path("pyproject.toml").read_text())["project"]["urls"]["Source"]


def absolute(link: re.Match[str]) -> str:
    """A link is relative in the repository. On an index it leads to the file of this version."""
    kind = "raw" if link[2].endswith((".png", ".svg")) else "blob"
    return f"{link[1]}{source}/{kind}/v{version}/{link[2]}"


readme = re.sub(r'(\]\(|(?:href|src|srcset)=")(?![a-z]+:|#)([^)"]+)', absolute, Path("README.md").read_text())

# A free-threaded Python does not have the stable ABI of 3.11: there, the extension is for one version of Python.
stable = not sysconfig.get_config_var("Py_GIL_DISABLED")
limited = [("Py_LIMITED_API", "0x030B0000")] if stable else []
native = Extension(
    "aiotuntap._native",
    sources,
    depends=everything,
    define_macros=[*limited, ("SOURCES", f'"{digest}"')],
    extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
    py_limited_api=stable,
    optional=wanted != "1",
)


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception:
            if ext.optional:
                print(  # noqa: T201
                    "aiotuntap: the C extension cannot be compiled (see above). The engine in Python, which is slower, "
                    "is installed. To compile it: a C compiler and the headers of Python, on Debian 'apt-get install "
                    "build-essential python3-dev', and install again.",
                    file=sys.stderr,
                )
            raise  # setuptools goes on where the extension is optional


with_extension = {
    "ext_modules": [native],
    "cmdclass": {"build_ext": BuildExtension},
    "options": {"bdist_wheel": {"py_limited_api": "cp311"}} if stable else {},
}
setup(
    version=version,
    long_description=readme,
    long_description_content_type="text/markdown",
    **({} if wanted == "0" else with_extension),
)
