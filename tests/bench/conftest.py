"""What the benchmarks measured, as one JSON object on the last line of `make bench`."""

import json

import pytest

MEASURED = pytest.StashKey[dict[str, object]]()


def pytest_configure(config):
    config.stash[MEASURED] = {}


@pytest.fixture
def measured(request):
    """Where a benchmark puts its numbers, by name."""
    return request.config.stash[MEASURED]


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Print the numbers: after this hook pytest prints nothing."""
    if numbers := config.stash.get(MEASURED, {}):
        config.get_terminal_writer().line(json.dumps(numbers))
