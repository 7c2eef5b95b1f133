"""User-extensible registries of classes by name: methods, model families and attacks."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from l2l_jax.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """A registry of classes by name; each class is a frozen dataclass whose fields are its options.

    Args:
      kind: Noun for error messages, such as "method".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that adds the class under `name`.

        Raises:
          ValueError: Another class has that name.
        """

        def add(cls: type[T]) -> type[T]:
            existing = self._classes.get(name)
            if existing is not None and existing.__qualname__ != cls.__qualname__:
                raise ValueError(f"the {self.kind} {name!r} is already registered by {existing.__qualname__}")
            self._classes[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[T]:
        """Return the class with this name, or raise a UserError that suggests the closest name."""
        if name in self._classes:
            return self._classes[name]
        near = difflib.get_close_matches(name, self._classes, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(self._classes)}."
        raise UserError(f"There is no {self.kind} {name!r}. {hint}")

    def __contains__(self, name: str) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def name_of(self, cls: type) -> str:
        """Return the name under which a class was registered."""
        return next(name for name, registered in self._classes.items() if registered is cls)
