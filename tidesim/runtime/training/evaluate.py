"""What the small checkpoint is worth: bits per byte against a bigram model, use of experts."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from tidesim.runtime.model import Transformer
from tidesim.runtime.training.corpus import Corpus, encode_files
from tidesim.runtime.training.objective import heldout_loss

Tokens = npt.NDArray[np.uint16]


def bigram_nats(
    train: Tokens, heldout: Tokens, *, vocab_size: int, discount: float = 0.75
) -> float:
    """Return nats per held-out token of a bigram model with absolute discounting.

    Interpolates with a unigram model of add-one counts (Ney, Essen and Kneser 1994).

    Parameters
    ----------
    train, heldout : [n] uint16
    vocab_size : int
    discount : float
        Taken off every bigram count.
    """
    size = vocab_size
    pairs = np.bincount(
        train[:-1].astype(np.int64) * size + train[1:], minlength=size * size
    ).reshape(size, size)
    unigram = (np.bincount(train, minlength=size) + 1) / (len(train) + size)
    total = pairs.sum(1)
    spared = discount * np.count_nonzero(pairs, axis=1)
    before, after = heldout[:-1].astype(np.int64), heldout[1:].astype(np.int64)
    seen = np.maximum(pairs[before, after] - discount, 0) + spared[before] * unigram[after]
    probability = np.where(total[before] > 0, seen / np.maximum(total[before], 1), unigram[after])
    return float(-np.log(probability).mean())


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Held-out figures of a checkpoint; lower bits per byte are better.

    Attributes
    ----------
    masked_bits_per_byte : float
        Block-diffusion bound: cross-entropy of masked positions, noise uniform in 1/32..1.
    bigram_bits_per_byte : float
        A bigram model of the same tokens, from the same training files.
    masked_nats_per_token, bigram_nats_per_token, bytes_per_token : float
    """

    masked_bits_per_byte: float
    bigram_bits_per_byte: float
    masked_nats_per_token: float
    bigram_nats_per_token: float
    bytes_per_token: float


def evaluate(
    model: Transformer, tokenizer: Tokenizer, corpus: Corpus, *, sequences: int = 64
) -> Quality:
    """Measure a checkpoint on the held-out files of a corpus.

    Parameters
    ----------
    model : Transformer
    tokenizer : Tokenizer
    corpus : Corpus
    sequences : int
        Held-out sequences of 256 tokens to score.
    """
    train, heldout = (encode_files(tokenizer, files) for files in (corpus.train, corpus.heldout))
    size = sum(len(text.encode()) for _, text in corpus.heldout) / len(heldout)
    masked = heldout_loss(model, torch.from_numpy(heldout.astype(np.int64)), sequences=sequences)
    bigram = bigram_nats(train, heldout, vocab_size=model.spec.vocab_size)
    return Quality(
        masked_bits_per_byte=masked / size / log(2),
        bigram_bits_per_byte=bigram / size / log(2),
        masked_nats_per_token=masked,
        bigram_nats_per_token=bigram,
        bytes_per_token=size,
    )


def largest_token_share(outputs: Iterable[list[int]]) -> float:
    """Return the share of the most frequent token in everything written."""
    counted = Counter(token for tokens in outputs for token in tokens)
    return max(counted.values()) / counted.total()
