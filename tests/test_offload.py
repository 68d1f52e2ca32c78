"""Valid combinations of offloads, and the result on kernels that lack some of them. The kernels are simulated."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, Offload, SetupError, TuntapError
from aiotuntap._offload.flags import check, negotiate

NONE, CSUM, TSO4, TSO6, ECN = Offload.NONE, Offload.CSUM, Offload.TSO4, Offload.TSO6, Offload.ECN
USO4, USO6, USO = Offload.USO4, Offload.USO6, Offload.USO4 | Offload.USO6
TUNNEL, TUNNEL_CSUM, ALL = Offload.UDP_TUNNEL, Offload.UDP_TUNNEL_CSUM, Offload.ALL

EVERY_COMBINATION = [
    Offload(value) for value in range(0x200) if not value & 0x10
]  # that bit is legacy UFO, which is no flag here

WRONG = [
    (TSO4, "Offload.CSUM"),
    (TSO6, "Offload.CSUM"),
    (ECN, "Offload.CSUM"),
    (USO, "Offload.CSUM"),
    (TUNNEL, "Offload.CSUM"),
    (TUNNEL_CSUM, "Offload.CSUM"),
    (TSO4 | TSO6 | ECN | USO | TUNNEL | TUNNEL_CSUM, "Offload.CSUM"),
    (CSUM | USO4, "USO4 and USO6 must be given together"),
    (CSUM | USO6, "USO4 and USO6 must be given together"),
    (ALL & ~USO6, "USO4 and USO6 must be given together"),
    (CSUM | ECN, "ECN needs TSO4 or TSO6"),
    (CSUM | USO | ECN, "ECN needs TSO4 or TSO6"),
    (CSUM | TUNNEL, "UDP_TUNNEL needs TSO4, TSO6, or USO4 and USO6"),
    (CSUM | TUNNEL | TUNNEL_CSUM, "UDP_TUNNEL needs TSO4, TSO6, or USO4 and USO6"),
    (CSUM | TUNNEL_CSUM, "UDP_TUNNEL_CSUM needs UDP_TUNNEL"),
    (ALL | TUNNEL_CSUM, "UDP_TUNNEL_CSUM needs UDP_TUNNEL"),
]

RIGHT = [
    NONE,
    CSUM,
    CSUM | TSO4,
    CSUM | TSO6,
    CSUM | USO,
    CSUM | TSO4 | ECN,
    CSUM | TSO6 | ECN,
    CSUM | TSO4 | TUNNEL,
    CSUM | TSO6 | TUNNEL,
    CSUM | USO | TUNNEL,
    CSUM | USO | TUNNEL | TUNNEL_CSUM,
    ALL,
    ALL | TUNNEL | TUNNEL_CSUM,
]


@pytest.mark.parametrize(("offload", "rule"), WRONG, ids=str)
def test_a_combination_that_no_kernel_takes_is_named_with_its_rule(offload: Offload, rule: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: check(offload),
        lambda: AsyncTuntap(mode="tun", offload=offload),
        lambda: AsyncTuntap(mode="tap", offload=offload, vnet_header=True),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rule) as caught:
            call()
        assert str(offload) in str(caught.value)
        assert not isinstance(caught.value, TuntapError)


@pytest.mark.parametrize("offload", RIGHT, ids=str)
def test_combinations_that_a_kernel_may_take(offload: Offload) -> None:
    check(offload)
    assert AsyncTuntap(mode="tap", offload=offload, vnet_header=True).offload == offload


def test_only_flags_are_offloads() -> None:
    for wrong in (1, "CSUM", None, [CSUM]):
        with pytest.raises(TypeError, match="Offload.CSUM"):
            AsyncTuntap(mode="tun", offload=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"offload": CSUM, "packet_info": True}, "packet_info=True with offload needs vnet_header=True"),
        ({"offload": CSUM | TSO4 | TUNNEL}, "Offload.UDP_TUNNEL needs vnet_header=True"),
        ({"offload": ALL | TUNNEL | TUNNEL_CSUM}, "UDP_TUNNEL_CSUM.* needs vnet_header=True"),
    ],
)
def test_what_cannot_be_transparent(options: dict[str, Any], match: str) -> None:
    for mode in ("tun", "tap"):
        with pytest.raises(ValueError, match=match):
            AsyncTuntap(mode=mode, **options)
        AsyncTuntap(mode=mode, vnet_header=True, **options)


# -- negotiating -------------------------------------------------------------------------------------------------------


class MadeUpKernel:
    """Answers TUNSETOFFLOAD as tun.c does: a flag that it lacks, or that lacks its company, is EINVAL."""

    def __init__(self, flags: Offload, before: int = 0) -> None:
        self.flags = flags
        #: What is on; a refused setting leaves it as it was.
        self.now = before
        self.asked: list[int] = []

    def set_offload(self, value: int) -> None:
        self.asked.append(value)
        try:
            check(Offload(value))
        except ValueError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        if value & ~self.flags.value:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.now = value


BEFORE_6_2 = CSUM | TSO4 | TSO6 | ECN
BEFORE_6_17 = ALL


@pytest.mark.parametrize(
    ("has", "asked"),
    [
        (ALL, ALL),
        (BEFORE_6_2, ALL),
        (ALL & ~ECN, ALL),
        (ALL & ~TSO4, ALL),
        (ALL & ~(TSO4 | TSO6 | ECN), ALL),
        (CSUM, ALL),
        (NONE, ALL),
        (BEFORE_6_2 | TUNNEL, ALL | TUNNEL),
        (CSUM | USO | TUNNEL | TUNNEL_CSUM, ALL | TUNNEL | TUNNEL_CSUM),
        (CSUM | TSO4, CSUM | TSO4),
        (NONE, NONE),
    ],
    ids=str,
)
def test_all_is_what_the_kernel_has_of_it(has: Offload, asked: Offload) -> None:
    kernel = MadeUpKernel(has)
    assert negotiate(asked, kernel.set_offload) == has == Offload(kernel.now)


def test_a_kernel_that_has_everything_is_asked_once() -> None:
    kernel = MadeUpKernel(ALL)
    negotiate(ALL, kernel.set_offload)
    assert kernel.asked == [ALL.value]


@pytest.mark.parametrize(
    ("has", "asked", "missing"),
    [
        (BEFORE_6_2, CSUM | USO, USO),
        (BEFORE_6_2, CSUM | TSO4 | USO, USO),
        (NONE, CSUM, CSUM),
        (NONE, ALL & ~ECN, ALL & ~ECN),
        (ALL & ~ECN, CSUM | TSO4 | ECN, ECN),
        (BEFORE_6_17, ALL | TUNNEL, TUNNEL),
        (BEFORE_6_17, ALL | TUNNEL | TUNNEL_CSUM, TUNNEL | TUNNEL_CSUM),
        (BEFORE_6_17 | TUNNEL, ALL | TUNNEL | TUNNEL_CSUM, TUNNEL_CSUM),
        (BEFORE_6_2, ALL | TUNNEL, TUNNEL),
    ],
    ids=str,
)
def test_a_flag_asked_for_by_name_is_an_error_and_all_are_off_again(
    has: Offload, asked: Offload, missing: Offload
) -> None:
    kernel = MadeUpKernel(has)
    with pytest.raises(SetupError) as caught:
        negotiate(asked, kernel.set_offload)
    assert caught.value.errno == errno.EINVAL
    assert f"does not know {missing}:" in str(caught.value)
    assert kernel.now == 0


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_other_errors_pass_through_and_all_are_off_again(at: int) -> None:
    """Whether the first try fails so or a later one, when some are on already."""
    kernel = MadeUpKernel(BEFORE_6_2)
    tries = 0

    def set_offload(value: int) -> None:
        nonlocal tries
        tries += value != 0
        if value and tries >= at:
            raise PermissionError(errno.EPERM, "made to fail")
        kernel.set_offload(value)

    with pytest.raises(PermissionError, match="made to fail"):
        negotiate(ALL, set_offload)
    assert tries == at
    assert kernel.now == 0


def test_every_combination_is_settled_as_this_kernel_would_have_it() -> None:
    """The result is the requested offloads, or the available part of ALL; or an error, and all offloads are off."""
    for has in (NONE, CSUM, BEFORE_6_2, BEFORE_6_17, ALL | TUNNEL, ALL | TUNNEL | TUNNEL_CSUM):
        for asked in EVERY_COMBINATION:
            try:
                check(asked)
            except ValueError:
                continue
            kernel = MadeUpKernel(has)
            by_name = asked & ~ALL if ALL in asked else asked
            if by_name in has:
                assert negotiate(asked, kernel.set_offload) == asked & has == Offload(kernel.now)
            else:
                with pytest.raises(SetupError):
                    negotiate(asked, kernel.set_offload)
                assert kernel.now == 0
