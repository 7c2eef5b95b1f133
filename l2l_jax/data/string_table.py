"""Many strings in little memory."""

import array
from collections.abc import Iterable, Iterator


class StringTable:
    """A growing sequence of strings in one block of bytes.

    A Python list takes some 80 bytes a string beside the text, this takes 8.
    """

    def __init__(self, strings: Iterable[str] = ()):
        self._block, self._ends = bytearray(), array.array("q", [0])
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        """Add a string at the end."""
        self._block += string.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index], self._ends[index + 1]
        return self._block[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))
