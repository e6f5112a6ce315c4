"""Where torch computes: device and threads, checked before any work."""

import torch

from tidesim.errors import SettingError
from tidesim.runtime.model import TORCH_DTYPES

MAX_THREADS = 1024


def set_up_torch(*, device: str, threads: int, dtype: str | None) -> None:
    """Check what torch would only complain about late, and set its CPU threads.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    threads : int
        0 leaves torch's choice.
    dtype : str or None

    Raises
    ------
    SettingError
        An unknown device or dtype, no CUDA GPU, or an impossible number of threads.
    """
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise SettingError(f"--dtype is {dtype!r} but must be one of {', '.join(TORCH_DTYPES)}")
    if device not in ("cpu", "cuda"):
        raise SettingError(f"--device is {device!r} but must be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda: torch finds no CUDA GPU here; use --device cpu")
    if not 0 <= threads <= MAX_THREADS:
        raise SettingError(f"--threads is {threads} but must be between 0 and {MAX_THREADS}")
    if threads:
        torch.set_num_threads(threads)
