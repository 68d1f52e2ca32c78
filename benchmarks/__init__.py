"""The figures in the README: ``python -m benchmarks`` prints them as Markdown tables, as root, on an idle machine.

Each is a ratio to a C loop that does the same work in the same round. Nothing else compares between machines.
"""
