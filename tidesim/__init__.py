"""tidesim: how fast a diffusion mixture-of-experts model runs on a machine, and which schedule is best."""

__version__ = "0.1.0"
