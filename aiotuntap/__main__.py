"""``python -m aiotuntap``."""

from ._cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
