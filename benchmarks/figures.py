"""``python -m benchmarks.figures``: writes the tables of README and pages, and the charts, from ``results.json``."""

from __future__ import annotations

from . import charts, pages, results


def main() -> None:
    found = results.load(results.PATH)
    try:
        texts = pages.texts(found) | charts.texts(found)
    except LookupError as error:
        raise SystemExit(f"nothing is written: {results.PATH.name} has {error}") from None
    written = []
    charts.FOLDER.mkdir(exist_ok=True)
    for path, text in texts.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            written.append(path.name)
    print(f"\nwritten from {results.PATH.name}: {', '.join(written) or 'nothing, since nothing differs'}")


if __name__ == "__main__":
    main()
