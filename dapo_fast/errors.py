"""The one error a user can cause."""


class InputError(ValueError):
    """Bad input: the message names the file, line or argument. The command line exits with code 2 on it."""
