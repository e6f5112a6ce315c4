"""The bundled prompts: three kinds of beginnings out of the held-out files.

Run it as ``python -m tidesim.runtime.training.prompts traces/prompts.jsonl``.
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tidesim.resources import write_text
from tidesim.runtime.prompts import Prompt, Split
from tidesim.runtime.training.corpus import Corpus, read_corpus

PER_KIND, HELDOUT_PER_KIND, PER_FILE, SEED = 14, 6, 3, 0
_FUNCTION = re.compile(r"^ *def \w+\(.*\):$")
_DOCSTRING = re.compile(r'^ *"""[A-Z][^"]{24,}$')


def _functions(lines: list[str]) -> Iterator[str]:
    """Yield a few lines and the head of a function."""
    for end, line in enumerate(lines):
        if _FUNCTION.match(line) and end >= 4:
            yield "\n".join(lines[end - 4 : end + 1]) + "\n"


def _docstrings(lines: list[str]) -> Iterator[str]:
    """Yield the head of a function or class and the first line of its docstring."""
    for end, line in enumerate(lines):
        if _DOCSTRING.match(line) and end >= 1:
            yield "\n".join(lines[end - 1 : end + 1]) + "\n"


def _statements(lines: list[str]) -> Iterator[str]:
    """Yield twelve lines out of the middle of a body."""
    for end in range(12, len(lines), 12):
        part = lines[end - 12 : end]
        if all(line.startswith("    ") for line in part):
            yield "\n".join(part) + "\n"


KINDS = {"function": _functions, "docstring": _docstrings, "statement": _statements}


def make_prompts(corpus: Corpus) -> list[Prompt]:
    """Choose prompts from held-out files, a few of a kind per file, the same every time."""
    chosen = []
    for kind, find in KINDS.items():
        rng = random.Random(f"{SEED}-{kind}")
        found = []
        for path, text in corpus.heldout:
            candidates = [part for part in find(text.splitlines()) if 60 <= len(part) <= 700]
            if not path.startswith(("test/", "encodings/")):
                drawn = rng.sample(candidates, min(PER_FILE, len(candidates)))
                found += [(path, part) for part in drawn]
        for number, (path, text) in enumerate(rng.sample(found, PER_KIND)):
            split: Split = "heldout" if number < HELDOUT_PER_KIND else "train"
            chosen.append(Prompt(text=text, kind=kind, source=f"Lib/{path}", split=split))
    return chosen


def main(path: Path) -> None:
    """Write the bundled prompts file."""
    prompts = make_prompts(read_corpus())
    lines = [json.dumps(p.model_dump(exclude_none=True)) for p in prompts]
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
