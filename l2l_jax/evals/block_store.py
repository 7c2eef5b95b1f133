"""Arrays of blocks of images on the disk: each is there whole, or not at all."""

import json
import os
import pathlib
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHARED_WITHIN = 30.0
"""Seconds in which a file that one host has written must be seen by the others."""

FINGERPRINT = "fingerprint"


class BlockStore:
    """Blocks in a folder, which may be on storage that several hosts share.

    A block is written under another name and then renamed, so that a killed process leaves it complete or
    missing. It is found again only by the fingerprint that it was saved with.

    Args:
      folder: of the blocks.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def claim(self, key: Mapping[str, Any]) -> None:
        """Delete all blocks unless they were made with the same `key`, JSON-able. Called by one process."""
        path = self._folder / "key.json"
        wanted = json.dumps(key, indent=2, sort_keys=True) + "\n"
        if path.exists() and path.read_text() == wanted:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        path.write_text(wanted)

    def has(self, name: str, fingerprint: str) -> bool:
        """Whether the block is there, readable, and of this fingerprint."""
        try:
            with np.load(self._path(name)) as arrays:
                return str(arrays[FINGERPRINT]) == fingerprint
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False

    def save(self, name: str, fingerprint: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a block."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(name)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        with unfinished.open("wb") as file:
            np.savez(file, **{FINGERPRINT: np.array(fingerprint)}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def load(self, name: str, *members: str) -> dict[str, np.ndarray]:
        """Arrays of a block, all or those named that are there; waits a while for another host's file."""
        path = self._path(name)
        deadline = time.monotonic() + SHARED_WITHIN
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        with np.load(path) as arrays:
            there = [member for member in arrays.files if member != FINGERPRINT]
            return {member: arrays[member] for member in members or there if member in there}

    def join(self, names: Sequence[str], member: str) -> np.ndarray | None:
        """One array of several blocks, one after the other; None if they do not have it."""
        parts = [self.load(name, member).get(member) for name in names]
        found = [part for part in parts if part is not None]
        return np.concatenate(found) if found else None

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.npz"
