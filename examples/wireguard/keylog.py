"""The keys of all handshakes, in the format that Wireshark reads (wg.keylog_file). For debugging: they open everything."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from .device import Device

#: The environment variable that names the file.
VARIABLE = "WG_KEYLOGFILE"
_KEY_SIZE = 32


class KeyLog:
    """Source of a Device's random bytes that writes down those which are ephemeral private keys."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        #: Whose own key and preshared keys belong to the handshakes.
        self.device: Device | None = None

    @classmethod
    def from_environment(cls) -> KeyLog | None:
        """Appends to the file that WG_KEYLOGFILE names; None where it names none."""
        if not (path := os.environ.get(VARIABLE)):
            return None
        return cls(os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "w"))

    def rng(self, size: int) -> bytes:
        random = os.urandom(size)
        if size == _KEY_SIZE and self.device is not None:
            peers = self.device.peers.values()
            if self.device.private_key is not None:
                self._write("LOCAL_STATIC_PRIVATE_KEY", self.device.private_key)
            # Which peer the handshake is with is not known here: it is one of them.
            for peer in peers:
                self._write("REMOTE_STATIC_PUBLIC_KEY", peer.public_key)
            self._write("LOCAL_EPHEMERAL_PRIVATE_KEY", random)
            # These belong to the ephemeral key before them.
            for key in {peer.preshared_key for peer in peers} - {bytes(_KEY_SIZE)}:
                self._write("PRESHARED_KEY", key)
            self._file.flush()
        return random

    def _write(self, name: str, key: bytes) -> None:
        self._file.write(f"{name} = {base64.b64encode(key).decode()}\n")
