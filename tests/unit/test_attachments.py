"""The text that is read from the attached files of a question."""

from __future__ import annotations

from rtfm.answering.attachments import MAX_FILE_CHARACTERS, find_error_lines, select_text_files
from rtfm.events import Attachment


def file(text: str | None, name: str = "boot.log") -> Attachment:
    return Attachment(filename=name, url="", size_bytes=len(text or ""), text=text)


def test_files_without_text_are_left_out() -> None:
    """Files without text, such as pictures and files that the bot did not read, are left out."""
    assert select_text_files([file(None, "shot.png"), file("", "empty.txt"), file(" \n")]) == []


def test_the_end_of_a_long_log_is_kept() -> None:
    """The end of a long log is kept, because the error is usually there."""
    (found,) = select_text_files([file("start\n" + "x" * 70_000 + "\nend")])
    assert len(found.text) == MAX_FILE_CHARACTERS
    assert found.text.endswith("\nend")


def test_at_most_four_files_are_read() -> None:
    """Four files of a question are read, and further files are ignored."""
    assert len(select_text_files([file(f"text {i}") for i in range(9)])) == 4


def test_secrets_in_files_are_removed() -> None:
    """Files are scrubbed: an e-mail address in a file is removed."""
    (found,) = select_text_files([file("login as zoe@mail.example.org")])
    assert "zoe" not in found.text


def test_the_error_lines_of_a_file_are_part_of_the_search() -> None:
    """The last three different error lines of a file are part of the search, and each is shortened.

    If the whole log were part of the search, the question's own words would have almost no weight.
    """
    log = "\n".join(
        [
            "booting",
            "E: Unable to locate package foo",
            "Error: SK-2104 locked",
            "all is well",
            "fatal: not a git repository",
            "Error: SK-2104 locked",
            "Permission denied " + "x" * 900,
        ]
    )
    lines = find_error_lines(select_text_files([file(log)]))
    assert [line[:20] for line in lines] == ["Error: SK-2104 locke", "fatal: not a git rep", "Permission denied xx"]
    assert max(map(len, lines)) == 200
    assert find_error_lines(select_text_files([file("all is well")])) == []
