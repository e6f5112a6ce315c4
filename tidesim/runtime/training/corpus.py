"""Text that every Python installation has: the sources of its standard library."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS, MASK = "<|endoftext|>", "<|mask|>"
SPECIAL = (EOS, MASK, "<role>", "</role>", "<|role_end|>")
HELDOUT_ONE_IN = 40
LARGEST_FILE_BYTES = 400_000


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Files of the standard library as (relative path, text), split by a hash of the path."""

    train: tuple[tuple[str, str], ...]
    heldout: tuple[tuple[str, str], ...]


def is_heldout(relative_path: str) -> bool:
    """Tell whether a file is kept out of training; the same in every Python version."""
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELDOUT_ONE_IN == 0


def read_corpus(root: Path | None = None) -> Corpus:
    """Read every ``.py`` file of the standard library that is UTF-8 and not huge.

    Parameters
    ----------
    root : Path, optional
        Another folder of Python sources.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    train: list[tuple[str, str]] = []
    heldout: list[tuple[str, str]] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if "site-packages" in relative or path.stat().st_size > LARGEST_FILE_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        (heldout if is_heldout(relative) else train).append((relative, text))
    return Corpus(train=tuple(train), heldout=tuple(heldout))


def train_tokenizer(corpus: Corpus, *, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the training files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in corpus.train), trainer)
    return tokenizer


def encode_files(
    tokenizer: Tokenizer, files: tuple[tuple[str, str], ...]
) -> npt.NDArray[np.uint16]:
    """Return the tokens of all files in one array, each file ended by the end-of-text token."""
    eos = tokenizer.token_to_id(EOS)
    encoded = tokenizer.encode_batch_fast([text for _, text in files])
    return np.concatenate([np.array([*item.ids, eos], dtype=np.uint16) for item in encoded])
