"""Fuzzing: corrupt input for the C sources and for every parser in Python, and comparison with the kernel.

``make fuzz ARGS=SECONDS`` runs all three; see ``run.sh``.
"""
