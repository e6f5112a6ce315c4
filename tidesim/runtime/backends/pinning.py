"""Pinning: page-lock the memory of tensors where it lies, to the page."""

import mmap
from typing import Any

from torch import Tensor

from tidesim.errors import CapacityError
from tidesim.memory import gigabytes

PAGE = mmap.PAGESIZE


class PinnedBanks:
    """Banks of experts whose memory is page-locked.

    torch's own pinned memory is rounded up to powers of two, which doubles a bank in the worst
    case, and would be a second copy of it.

    Parameters
    ----------
    cudart : module
        The CUDA runtime, as `torch.cuda.cudart` gives it.
    """

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._banks: dict[int, Tensor] = {}  # also keeps their memory from being freed
        self._ranges: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._banks)

    @property
    def pinned_bytes(self) -> int:
        """Bytes that are page-locked."""
        return sum(end - start for start, end in self._ranges.items())

    def pin(self, bank: Tensor) -> None:
        """Page-lock a bank, unless it is already.

        Raises
        ------
        CapacityError
            The host cannot; nothing stays locked.
        """
        if bank.data_ptr() in self._banks:
            return
        start, end = self._pages(bank)
        code = self._cudart.cudaHostRegister(start, end - start, 0) if end > start else 0
        if int(code) != 0:
            reason, already = self._cudart.cudaGetErrorString(code), self.pinned_bytes
            self.release()
            raise CapacityError(
                f"{gigabytes(end - start, up=True)} of experts cannot be pinned in host memory "
                f"beside {gigabytes(already, up=True)} that were ({reason}); free memory, raise the "
                "limit of locked memory (ulimit -l), or run fewer layers or a smaller dtype"
            )
        self._banks[bank.data_ptr()] = bank
        if end > start:
            self._ranges[start] = end

    def _pages(self, bank: Tensor) -> tuple[int, int]:
        """Return the pages of a bank less those that a neighbour has locked: none may be twice."""
        start = bank.data_ptr() // PAGE * PAGE
        end = -(-(bank.data_ptr() + bank.nbytes) // PAGE) * PAGE
        taken = self._ranges.items()
        start = max([start, *(high for low, high in taken if low <= start < high)])
        end = min([end, *(low for low, high in taken if low < end <= high)])
        return start, end

    def release(self) -> None:
        """Unlock everything; no copy may be under way."""
        for start in self._ranges:
            self._cudart.cudaHostUnregister(start)
        self._ranges.clear()
        self._banks.clear()
