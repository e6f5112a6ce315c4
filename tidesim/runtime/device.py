"""Where torch computes: device and threads, checked before any work."""

import torch

from tidesim.errors import SettingError
from tidesim.runtime.model import TORCH_DTYPES


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
        An unknown device or dtype, no CUDA GPU, or a negative number of threads.
    """
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise SettingError(f"--dtype is {dtype!r} but must be one of {', '.join(TORCH_DTYPES)}")
    if device not in ("cpu", "cuda"):
        raise SettingError(f"--device is {device!r} but must be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda: torch finds no CUDA GPU here; use --device cpu")
    if threads < 0:
        raise SettingError(f"--threads is {threads} but must be 0 or more")
    if threads:
        torch.set_num_threads(threads)
