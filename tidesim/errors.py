"""Every error tidesim raises on purpose.

::

    TidesimError
    ├── FormatError      (ValueError)         a file does not hold what its format says
    ├── SettingError     (ValueError)         an argument or option is out of its range
    ├── CapacityError    (ValueError)         something does not fit a machine's memory
    ├── NotFoundError    (FileNotFoundError)  no file or bundled resource of that name
    ├── OutputError      (OSError)            a result cannot be written
    └── RunError         (RuntimeError)       a run on real hardware broke off

The command line turns each into one sentence on stderr and exit status 2.
"""


class TidesimError(Exception):
    """Base of every error raised on purpose; catch it to catch them all.

    Its text is one printable line, whatever a file or a library put into it.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.isprintable():
            return text
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class FormatError(TidesimError, ValueError):
    """A file does not hold what its format says."""


class SettingError(TidesimError, ValueError):
    """An argument or option is out of its range."""


class CapacityError(TidesimError, ValueError):
    """Something does not fit a machine's memory."""


class NotFoundError(TidesimError, FileNotFoundError):
    """No file or bundled resource of that name."""


class OutputError(TidesimError, OSError):
    """A result cannot be written."""


class RunError(TidesimError, RuntimeError):
    """A run on real hardware broke off: a thread died, an operation failed."""
