"""Prompt files: what is accepted and how a wrong line is named."""

import pytest

from tidesim.errors import FormatError, NotFoundError, SettingError
from tidesim.runtime.checkpoint import load_tokenizer
from tidesim.runtime.prompts import Prompt, load_prompt_ids, load_prompts


def test_bundled_prompts_have_three_kinds_and_both_splits():
    prompts = load_prompts()

    assert len(prompts) >= 24
    assert len({p.kind for p in prompts}) == 3
    for kind in {p.kind for p in prompts}:
        assert {p.split for p in prompts if p.kind == kind} == {"train", "heldout"}
    assert sum(p.split == "heldout" for p in prompts) >= 16


def test_lines_with_text_or_ids_are_read_and_blank_lines_skipped(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "kind": "k"}\n\n{"ids": [1, 2], "split": "heldout"}\n')

    assert load_prompts(path) == [
        Prompt(text="a", kind="k"),
        Prompt(ids=(1, 2), split="heldout"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("{}", "either text or ids"),
        ('{"text": ""}', "is empty"),
        ('{"ids": []}', "is empty"),
        ('{"text": "a", "ids": [1]}', "either text or ids"),
        ('{"text": 3}', "text"),
        ('{"text": "a", "prompt": "b"}', "prompt"),
        ('{"text": "a", "split": "test"}', "split"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_wrong_line_is_named_with_its_number(tmp_path, line, reason):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")

    with pytest.raises(FormatError, match=f"line 2: .*{reason}"):
        load_prompts(path)


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text("\n")

    with pytest.raises(FormatError, match="holds no prompt"):
        load_prompts(tmp_path / "p.jsonl")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        load_prompts(tmp_path / "none.jsonl")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(FormatError, match="UTF-8"):
        load_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", "{", '{"ids": "a"}', '{"ids": []}', '{"ids": [1.5]}']
)
def test_wrong_ids_file_shows_the_form_wanted(tmp_path, content):
    (tmp_path / "f.json").write_text(content)

    with pytest.raises(FormatError, match=r'write \{"ids"'):
        load_prompt_ids(tmp_path / "f.json")


def test_text_without_a_tokenizer_asks_for_ids():
    with pytest.raises(SettingError, match="tokenizer"):
        Prompt(text="a").tokens(None)


def test_chat_markup_needs_text():
    with pytest.raises(SettingError, match="chat"):
        Prompt(ids=(1,)).tokens(None, chat=True)


def test_line_separators_inside_a_text_do_not_end_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a\u2028b\x85c"}\r\n{"text": "d"}\n', encoding="utf-8", newline="")

    assert [p.text for p in load_prompts(path)] == ["a\u2028b\x85c", "d"]


def test_text_with_a_lone_surrogate_is_refused():
    with pytest.raises(SettingError, match="Unicode"):
        Prompt(text="a\udcffb").tokens(load_tokenizer("tide-tiny"))


@pytest.mark.parametrize("load", [load_prompts, load_prompt_ids])
def test_folder_in_place_of_a_file_is_named_as_such(tmp_path, load):
    with pytest.raises(FormatError, match=r"cannot be read .*directory"):
        load(tmp_path)
