from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import traces

from tidesim.errors import SettingError
from tidesim.policies import POLICIES
from tidesim.report import style
from tidesim.report.trace_figures import (
    distinct_by_layer_figure,
    hit_ratio_figure,
    popularity_figure,
    stability_figure,
)
from tidesim.trace.passes import Window
from tidesim.trace.stats import trace_stats


def points(figure):
    """Return {curve name: {x: y}} of every trace of a figure."""
    return {t.name: dict(zip(t.x, t.y, strict=True)) for t in figure.data}


@given(traces())
@settings(max_examples=10, deadline=None)
def test_figures_show_the_statistics_and_where_they_come_from(trace):
    """Curves hold the numbers, titles the provenance, axes their units; None draws nothing."""
    block, full = (trace_stats(trace, window=window) for window in Window)
    known = {lag: x for lag, x in block.cosine.items() if x is not None}
    stability = points(stability_figure(block, full))
    hits = points(hit_ratio_figure(full))
    layers = distinct_by_layer_figure(block).data[0]
    popularity = points(popularity_figure(block))["this trace"]

    assert stability["cosine of counts, window block"] == known
    assert "Jaccard of active experts, window full" in stability
    assert hits["this step"] == {b: curve[0] for b, curve in full.hit_ratio.items()}
    assert list(layers.y) == [layer.distinct_experts.mean for layer in block.by_layer]
    assert popularity == block.popularity
    for figure in (
        stability_figure(block),
        distinct_by_layer_figure(block),
        hit_ratio_figure(full),
        popularity_figure(block),
    ):
        assert trace.meta.provenance in figure.layout.title.text
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text
        assert "NaN" not in figure.to_json()


@given(traces(max_requests=1))
@settings(max_examples=3, deadline=None)
def test_windows_may_not_be_mixed_up(trace):
    """Each argument takes the statistics of its own window, of one trace."""
    block, full = (trace_stats(trace, window=window) for window in Window)

    with pytest.raises(SettingError, match="first statistics are of window full"):
        stability_figure(full)
    with pytest.raises(SettingError, match="second statistics are of window block"):
        stability_figure(block, block)


def linear(color):
    """Return the linear RGB of a hexadecimal colour."""
    srgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "usual": np.eye(3),
    "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_XYZ = [[0.4339, 0.3762, 0.1899], [0.2127, 0.7152, 0.0722], [0.0178, 0.1095, 0.8729]]


def lab(color, vision):
    """Return CIE L*a*b* under D65, as seen with a colour vision."""
    xyz = np.cbrt(TO_XYZ @ np.clip(VISION[vision] @ linear(color), 0, 1))
    return np.array([116 * xyz[1] - 16, 500 * (xyz[0] - xyz[1]), 200 * (xyz[1] - xyz[2])])


@pytest.mark.parametrize("color", dict.fromkeys((*style.PALETTE.values(), *style.SERIES)))
def test_colours_read_on_light_and_dark_pages(color):
    """Contrast is at least 3:1 against white and against black."""
    luminance = float(linear(color) @ [0.2126, 0.7152, 0.0722])

    assert 1.05 / (luminance + 0.05) >= 3
    assert (luminance + 0.05) / 0.05 >= 3


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colors", [style.RESOURCES, style.POLICIES])
def test_colours_stay_apart_for_colour_blind_readers(vision, colors):
    """Any two of one kind differ by a CIE76 distance of 16 or more."""
    apart = {
        (a, b): np.linalg.norm(lab(colors[a], vision) - lab(colors[b], vision))
        for a, b in combinations(colors, 2)
    }

    assert min(apart.values()) >= 16, min(apart, key=apart.get)


def test_a_name_keeps_its_colour():
    """Known names have theirs; any other gets one that does not change between runs."""
    assert style.color_of("gpu") == style.RESOURCES["gpu"]
    assert style.color_of("my-policy") == style.color_of("my-policy")
    assert style.color_of("my-policy") in style.SERIES
    assert set(POLICIES) <= set(style.PALETTE)
