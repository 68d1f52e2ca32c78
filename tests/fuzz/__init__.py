"""Input that nobody meant: for the C sources, for every parser in Python, and with the kernel as the judge.

``make fuzz ARGS=SECONDS`` runs all three; see ``run.sh``.
"""
