"""The command line: ``python -m aiotuntap``."""
