"""``python -m benchmarks.figures``: writes the tables of README and pages, and the charts, from ``results.json``."""

from __future__ import annotations

from . import charts, pages, results


def main() -> None:
    found = results.load()
    written = [*pages.write(found), *charts.write(found)]
    print(f"\nwritten from {results.PATH.name}: {', '.join(written) or 'nothing that differs'}")


if __name__ == "__main__":
    main()
