"""The one exception that reaches the user as a sentence instead of a traceback."""


class UserError(Exception):
    """A mistake that the person at the keyboard can mend.

    The message says what was given, what was expected and what to do; `main` prints it alone and
    exits with a code other than 0.
    """
