"""Files of prompts: a prompt a line, or JSON lines; what is wrong in one is named with its line."""

import pytest

from experiments import sample as launcher


def test_a_text_file_has_a_prompt_a_line_and_seeds_count_up(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffdawn\n\n  日落 \r\n", encoding="utf-8")
    assert launcher.read_prompts(tmp_path / "p.txt", 7) == [launcher.Line("dawn", 7), launcher.Line("日落", 8)]


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.jsonl", b"", "holds no prompt"),
        ("p.csv", b"dawn", "expected .txt"),
        ("p.txt", b"\xff\xfe", "is not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        ("p.jsonl", b'"dawn"', 'line 1: expected an object with a "prompt"'),
        ("p.jsonl", b'{"prompt": " "}', 'line 1: expected an object with a "prompt"'),
        ("p.jsonl", b'{"prompt": "a", "seed": "x"}', "seed 'x'"),
        ("p.jsonl", b'{"prompt": "a", "file": "b.mp4"}', "file is written by this command"),
    ],
)
def test_a_prompt_file_that_is_wrong_is_named_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        launcher.read_prompts(tmp_path / name, 0)


def test_a_prompt_file_that_is_absent_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="p.txt' does not exist"):
        launcher.read_prompts(tmp_path / "p.txt", 0)
