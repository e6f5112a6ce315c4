"""Backends by name: where a run's slots, copies and CPU workers are real."""

import torch

from tidesim.errors import SettingError
from tidesim.runtime.backends.base import Backend, Misses
from tidesim.runtime.backends.cpu import CpuBackend

__all__ = ["Backend", "CpuBackend", "Misses", "make_backend"]

BACKENDS = ("cpu", "cuda")


def make_backend(
    name: str,
    *,
    cpu_workers: int | None = None,
    link_bytes_per_s: float | None = None,
) -> Backend:
    """Make a backend.

    Parameters
    ----------
    name : str
        ``cpu`` or ``cuda``.
    cpu_workers : int or None
        Threads that compute missed experts; None leaves it to the backend.
    link_bytes_per_s : float or None
        Pace the link of the ``cpu`` backend to this rate.

    Raises
    ------
    SettingError
        An unknown name, no CUDA GPU, or an option that the backend does not have.

    Examples
    --------
    >>> with make_backend("cpu", cpu_workers=2) as backend:
    ...     print(backend.device.type)
    cpu
    """
    if name not in BACKENDS:
        raise SettingError(f"backend {name!r} is not known; use one of: {', '.join(BACKENDS)}")
    if cpu_workers is not None and not 1 <= cpu_workers <= 1024:
        raise SettingError(f"cpu workers are {cpu_workers} but must be between 1 and 1024")
    if name == "cpu":
        return CpuBackend(cpu_workers=cpu_workers or 1, link_bytes_per_s=link_bytes_per_s)
    if link_bytes_per_s is not None:
        raise SettingError("only the link of backend cpu can be paced; leave the rate out")
    if not torch.cuda.is_available():
        raise SettingError("backend cuda: torch finds no CUDA GPU here; use backend cpu")
    from tidesim.runtime.backends.cuda import CudaBackend  # noqa: PLC0415

    return CudaBackend(cpu_workers=cpu_workers)
