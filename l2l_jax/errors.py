"""Exceptions that are reported to the user as a message instead of a traceback."""


class UserError(Exception):
    """An error the user can fix.

    The message says what was given, what was expected and what to do. Programs print it alone and exit with
    a code other than 0.

    Attributes:
      known_to_all: Whether every process of the run raises the error; then only one process prints it.
    """

    known_to_all = False

    def __init__(self, message: str, *, known_to_all: bool = False):
        super().__init__(message)
        self.known_to_all = self.known_to_all or known_to_all


class Diverged(UserError):
    """A loss that is no longer finite."""

    known_to_all = True  # all processes read the same metrics


class Interrupted(Exception):
    """A request to stop by the signal `signal_number`; training has saved its state after `step`."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped after step {step}")
        self.step, self.signal_number = step, signal_number
