"""The output of ``doctor``: checks as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from .checks import Check, missing_for_demo

_MARKS = {True: "ok", False: "no", None: "?"}


def as_text(checks: Sequence[Check]) -> str:
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        fix = f"; fix: {check.fix}" if check.fix else ""
        lines.append(f"{_MARKS[check.ok]:<2}  {check.name:<{width}}  {check.detail}{fix}")
    missing = missing_for_demo(checks)
    lines.append("")
    lines.append(f"The demo cannot run. It needs: {', '.join(missing)}." if missing else "The demo can run.")
    return "\n".join(lines) + "\n"


def as_json(checks: Iterable[Check]) -> str:
    rows = [
        {"check": each.name, "ok": each.ok, "value": each.value, "detail": each.detail, "fix": each.fix}
        for each in checks
    ]
    return json.dumps(rows, indent=2) + "\n"
