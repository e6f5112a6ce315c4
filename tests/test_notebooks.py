"""The notebooks, executed as a reader would: each opens with a question and ends with its answer."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets import default

import tidesim

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = (
    "01_from_trace_to_schedule",
    "02_what_if",
    "03_capacity_planning",
    "04_validation",
    "05_write_your_own_policy",
)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FIGURE, TEXT = "application/vnd.plotly.v1+json", "text/markdown"

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


class OwnKernel(AsyncKernelManager):
    """Start this interpreter, whatever kernels the user has installed."""

    @default("kernel_spec_manager")
    def _without_folders(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])  # what is left is ipykernel's own


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells in a folder, with this very tidesim and no start-up file; raise their errors."""
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        kernel_manager_class=OwnKernel,
        timeout=600,
        resources={"metadata": {"path": str(folder)}},
    )
    own = {"PYTHONPATH": str(Path(tidesim.__file__).parents[1]), "IPYTHONDIR": str(folder / "own")}
    return client.execute(env=os.environ | own)


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def executed(request, tmp_path_factory):
    """A notebook after its run in an empty folder, and what it left there."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = execute(nbformat.read(request.param, as_version=4), folder)
    return notebook, sorted(path.name for path in folder.iterdir() if path.name != "own")


def test_every_notebook_is_there():
    assert tuple(path.stem for path in PATHS) == NAMES


@every_notebook
def test_a_notebook_is_stored_without_outputs_and_without_a_trace_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert not any(cell.metadata for cell in notebook.cells)
    assert not any(cell.outputs or cell.execution_count for cell in code)


@every_notebook
def test_a_notebook_is_short_and_opens_with_the_question_it_answers(path):
    cells = nbformat.read(path, as_version=4).cells

    assert len(cells) < 30
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert re.search(r"\?\**$", cells[0].source, flags=re.MULTILINE)


def test_the_kernel_is_this_interpreter_with_this_tidesim(tmp_path):
    source = "import sys, tidesim\n[sys.executable, tidesim.__file__]"
    cell = nbformat.v4.new_code_cell(source)

    (ran,) = execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path).cells

    assert ran.outputs[0].data["text/plain"] == repr([sys.executable, tidesim.__file__])


@pytest.mark.slow
def test_a_notebook_runs_without_warnings_and_ends_with_its_answer(executed):
    notebook, left = executed
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    answer = notebook.cells[-1]

    assert [out.text for out in outputs if out.output_type == "stream"] == []
    assert left == []
    assert answer.cell_type == "code"
    assert re.search(r"\d", answer.outputs[-1].data[TEXT])


@pytest.mark.slow
def test_every_figure_of_a_notebook_shows_something(executed):
    notebook, _ = executed
    datas = [out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", ())]
    figures = [data[FIGURE] for data in datas if FIGURE in data]

    assert figures
    for figure in figures:
        assert any(one.get("x") or one.get("z") for one in figure["data"])
        assert figure["layout"]["title"]["text"]
