import os

import pytest
from hypothesis import settings

# The models here are small: one thread computes them as fast as many, and where other work runs
# on the machine, many wait for each other. Set before anything imports torch; commands that the
# tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines that run these tests are shared: a slow example is no failure.
settings.register_profile("tidesim", deadline=None)
settings.load_profile("tidesim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an NVIDIA GPU on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch  # noqa: PLC0415 (heavy, and seldom needed here)

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
