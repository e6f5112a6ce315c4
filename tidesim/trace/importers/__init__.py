"""Traces from what other projects record; docs/importers.md says what exactly is read."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import tidesim
from tidesim.errors import SettingError
from tidesim.trace.importers import (
    flame_moe,
    histograms,
    llama_cpp,
    moe_infinity,
    sglang,
    vllm,
)
from tidesim.trace.importers.recording import (
    ImportOptions,
    Missing,
    Note,
    Recording,
    number_passes,
)
from tidesim.trace.io import TraceWriter
from tidesim.trace.passes import Kind, Pass, RequestInfo, TraceMeta

__all__ = ["FORMATS", "Format", "ImportOptions", "Imported", "Missing", "import_trace"]


class Format(NamedTuple):
    """How one kind of file is read, and which of `ImportOptions` it needs besides the model."""

    read: Callable[[Path, ImportOptions], Recording]
    options: tuple[str, ...]


_STREAM = ("tokens_per_pass", "steps_per_block", "prompt_tokens", "context", "first_tokens")
FORMATS = {
    "llama.cpp": Format(llama_cpp.read, ("steps_per_block", "prompt_tokens", "context", "missing")),
    "moe-infinity": Format(moe_infinity.read, ("missing",)),
    "flame-moe": Format(flame_moe.read, _STREAM),
    "vllm": Format(vllm.read, _STREAM),
    "sglang": Format(sglang.read, ("steps_per_block", "context", "missing")),
    "histograms": Format(histograms.read, ("context", "missing")),
}


class Imported(NamedTuple):
    """What an import wrote."""

    meta: TraceMeta
    passes: int


def get_format(name: str, given: Iterable[str] = ()) -> Format:
    """Return a format by name and refuse options that it has no use for.

    Raises
    ------
    SettingError
        No such format, or an option that says what its files say themselves.

    Examples
    --------
    >>> get_format("sglang").options
    ('steps_per_block', 'context', 'missing')
    """
    if name not in FORMATS:
        raise SettingError(f"--from {name}: not known; use one of: {', '.join(FORMATS)}")
    for option in given:
        if option not in FORMATS[name].options:
            raise SettingError(
                f"--{option.replace('_', '-')} is not for --from {name}, whose files leave no "
                "choice there; leave it out"
            )
    return FORMATS[name]


def import_trace(
    path: str | Path,
    out: str | Path,
    *,
    form: str,
    options: ImportOptions,
    source: str = "",
    prompt_kind: str = "",
) -> Imported:
    r"""Turn a recording of another project into a trace file, with provenance ``imported``.

    Parameters
    ----------
    path : str or Path
        File, or folder for ``flame-moe``.
    out : str or Path
        The trace; it appears whole at the end.
    form : str
        A name of `FORMATS`.
    options : ImportOptions
        What the file does not say.
    source : str
        Where the file comes from; by default what it says itself.
    prompt_kind : str
        Kind of the prompts, such as ``humaneval``.

    Raises
    ------
    SettingError
        An option is out of range.
    NotFoundError, FormatError
        No such file, or it does not hold what the format says.
    OutputError
        `out` cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tidesim.model_spec import load_model_spec
    >>> rows = (f"{layer},{expert}" for layer in range(1, 5) for expert in range(4))
    >>> _ = Path("moe.csv").write_text("\n".join(rows))
    >>> options = ImportOptions(model=load_model_spec("tide-tiny"), tokens_per_pass=1)
    >>> import_trace("moe.csv", "moe.parquet", form="llama.cpp", options=options).passes
    1
    """
    _check_options(options)
    path = Path(path)
    recording = get_format(form).read(path, options)
    infos: dict[int, RequestInfo] = {}
    written = 0
    with TraceWriter(out, model=recording.model) as writer:
        for pass_ in _tallied(recording, options, infos, source=str(path), prompt_kind=prompt_kind):
            writer.append(pass_)
            written += 1
        meta = TraceMeta(
            model=recording.model,
            provenance="imported",
            requests=tuple(infos.values()),
            source=source or recording.source or path.name,
            settings=_settings(form, path, options, recording),
            tool_version=tidesim.__version__,
        )
        writer.close(meta)
    return Imported(meta=meta, passes=written)


def _check_options(options: ImportOptions) -> None:
    least = {"tokens_per_pass": 1, "steps_per_block": 1, "prompt_tokens": 0, "context": 0}
    least |= {} if options.first_tokens is None else {"first_tokens": 1}
    for name, low in least.items():
        if getattr(options, name) < low:
            raise SettingError(
                f"--{name.replace('_', '-')} is {getattr(options, name)} but must be at least {low}"
            )


def _tallied(
    recording: Recording,
    options: ImportOptions,
    infos: dict[int, RequestInfo],
    *,
    source: str,
    prompt_kind: str,
) -> Iterator[Pass]:
    """Yield the passes of the trace; `infos` fills with their requests on the way."""
    block: tuple[int, int] | None = None
    for pass_ in number_passes(recording, options, source):
        yield pass_
        info = infos.setdefault(
            pass_.request,
            RequestInfo(
                request=pass_.request, prompt_kind=prompt_kind,
                prompt_tokens=options.prompt_tokens,
                generated_tokens=recording.generated_tokens or 0,
            ),
        )  # fmt: skip
        new = pass_.kind is Kind.DENOISE and (pass_.request, pass_.block) != block
        if new and recording.generated_tokens is None:
            generated = info.generated_tokens + pass_.tokens
            infos[pass_.request] = info.model_copy(update={"generated_tokens": generated})
        block = (pass_.request, pass_.block)


def _settings(
    form: str, path: Path, options: ImportOptions, recording: Recording
) -> dict[str, Note]:
    asked: dict[str, Note] = {}
    for name in FORMATS[form].options:
        value = getattr(options, name)
        if name != "missing" and value is not None:
            asked[name] = value
    return {"format": form, "file": path.name} | asked | recording.notes
