"""Prompt files: one JSON object per line, with text or token ids."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tokenizers import Tokenizer

from tidesim.errors import FormatError, NotFoundError, SettingError
from tidesim.resources import data_dir
from tidesim.runtime.decode import chat_markup
from tidesim.strict import dotted, short_keys

BUNDLED = "prompts.jsonl"
Split = Literal["train", "heldout"]


class Prompt(BaseModel):
    """One request to decode: `text` or `ids`, never both."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str | None = None
    ids: tuple[int, ...] | None = Field(default=None, strict=False)
    kind: str = ""
    source: str = ""
    split: Split = "train"

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.ids is None):
            raise ValueError("needs either text or ids")
        if not (self.text or self.ids):
            raise ValueError("is empty")
        return self

    def tokens(self, tokenizer: Tokenizer | None, *, chat: bool = False) -> list[int]:
        """Return the prompt's token ids.

        Parameters
        ----------
        tokenizer : Tokenizer or None
            Needed for text.
        chat : bool
            Wrap text in LLaDA2.0's role markup.

        Raises
        ------
        SettingError
            Text without a tokenizer or that is no Unicode, or chat markup around token ids.
        """
        if self.ids is not None:
            if chat:
                raise SettingError("chat markup needs a prompt as text, not as token ids")
            return list(self.ids)
        if tokenizer is None:
            raise SettingError(
                "a text prompt needs the checkpoint's tokenizer.json; give token ids"
            )
        text = self.text or ""
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise SettingError("the prompt is not valid Unicode text; write it in UTF-8")
        return list(tokenizer.encode(chat_markup(text) if chat else text).ids)


def _first_reason(error: ValidationError) -> str:
    first = error.errors()[0]
    where = dotted(short_keys(first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file; give a prompts file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def load_prompts(path: str | Path | None = None) -> list[Prompt]:
    """Read a prompts file, by default the bundled one.

    Parameters
    ----------
    path : str or Path, optional
        JSON lines with ``text`` or ``ids``, and optionally ``kind``, ``source`` and ``split``.

    Raises
    ------
    NotFoundError, FormatError
        No such file; a line is not such an object; the line's number is named.
    """
    file = Path(path) if path else data_dir("traces") / BUNDLED
    prompts = []
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(Prompt(**json.loads(line)))
        except ValidationError as error:
            raise FormatError(f"{file}: line {number}: {_first_reason(error)}; repair it") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"{file}: line {number}: not a JSON object ({error})") from None
    if not prompts:
        raise FormatError(f"{file}: holds no prompt; give one JSON object per line")
    return prompts


def load_prompt_ids(path: str | Path) -> Prompt:
    """Read a file ``{"ids": [...]}``.

    Raises
    ------
    NotFoundError, FormatError
        No such file, or something else in it.
    """
    file = Path(path)
    written = _read(file)
    try:
        content = json.loads(written)
        return Prompt(ids=content["ids"])
    except ValidationError as error:
        raise FormatError(f'{file}: {_first_reason(error)}; write {{"ids": [1, 2, 3]}}') from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise FormatError(f'{file}: not a JSON object with ids; write {{"ids": [1, 2]}}') from None
