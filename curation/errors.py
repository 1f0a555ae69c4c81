"""The base class of errors that a user can fix."""


class UserError(Exception):
    """A mistake in the settings, the input or the machine, in words that name the fix.

    A command prints the message without a traceback and exits with code 1.
    """
