"""Random interleavings of everything that can happen to an interface, with what must hold after each step.

``make soak ARGS="--seconds 600"``; see ``ARGS=--help``.
"""
