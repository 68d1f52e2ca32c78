"""Writes the keys of all handshakes in Wireshark's format (wg.keylog_file). For debugging: they decrypt all traffic."""

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
    """A source of random bytes for a Device. It writes those that are ephemeral private keys to the file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        #: The device, whose private key and preshared keys are written too.
        self.device: Device | None = None

    @classmethod
    def from_environment(cls) -> KeyLog | None:
        """Appends to the file given by WG_KEYLOGFILE. None if the variable is not set."""
        if not (path := os.environ.get(VARIABLE)):
            return None
        return cls(os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "w"))

    def rng(self, size: int) -> bytes:
        random = os.urandom(size)
        if size == _KEY_SIZE and self.device is not None:
            peers = self.device.peers.values()
            if self.device.private_key is not None:
                self._write("LOCAL_STATIC_PRIVATE_KEY", self.device.private_key)
            # The peer of the handshake is not known here, so the keys for all peers are written.
            for peer in peers:
                self._write("REMOTE_STATIC_PUBLIC_KEY", peer.public_key)
            self._write("LOCAL_EPHEMERAL_PRIVATE_KEY", random)
            # Preshared keys belong to the ephemeral key before them.
            for key in {peer.preshared_key for peer in peers} - {bytes(_KEY_SIZE)}:
                self._write("PRESHARED_KEY", key)
            self._file.flush()
        return random

    def _write(self, name: str, key: bytes) -> None:
        self._file.write(f"{name} = {base64.b64encode(key).decode()}\n")
