"""WireGuard in Python, driven by ``wg`` and ``wg-quick``: a proof of what aiotuntap can carry, not audited."""
