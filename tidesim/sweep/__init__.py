"""Sweep: a grid of traces, machines, policies and schedules, as rows of a Parquet file.

==================  ==============================================================
``sweep``           run every point of a grid, here or on a Dask cluster
``load_grid``       a grid from its TOML file
``Grid``            the axes and the points they span
``Point``           one of them
``Swept``           a sweep that has ended
``Progress``        how far one is
==================  ==============================================================
"""

from tidesim.sweep.grid import Grid, Point, load_grid
from tidesim.sweep.run import Progress, Swept, sweep

__all__ = ["Grid", "Point", "Progress", "Swept", "load_grid", "sweep"]
