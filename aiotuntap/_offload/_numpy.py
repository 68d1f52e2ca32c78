"""numpy, which comes with the extra ``offload``, or None. Without it the same is done more slowly."""

__all__ = ["np"]

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]
