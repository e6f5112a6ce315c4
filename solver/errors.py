"""Every error this package raises on purpose.

SolverError
├── ProblemError  (ValueError)    a problem or an option is out of its range
└── BackendError  (RuntimeError)  a backend could not run, or contradicted the problem
"""


class SolverError(Exception):
    """Base of every error this package raises on purpose."""


class ProblemError(SolverError, ValueError):
    """A problem or an option is out of its range."""


class BackendError(SolverError, RuntimeError):
    """A backend could not run, or its answer contradicts the problem."""
