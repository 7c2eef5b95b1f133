"""Many strings in little memory."""

from collections.abc import Iterable, Iterator

import numpy as np


class StringTable:
    """An immutable sequence of strings in one block of bytes.

    A Python list takes some 80 bytes a string beside the text, this takes 8, and worker processes
    that are forked share it.
    """

    def __init__(self, strings: Iterable[str]):
        block, ends = bytearray(), []
        for string in strings:
            block += string.encode("utf-8", "surrogateescape")
            ends.append(len(block))
        self._block = bytes(block)
        self._ends = np.array([0, *ends], np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index], self._ends[index + 1]
        return self._block[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))
