"""Output names: the source's own, and never one for two sources."""

from __future__ import annotations

from dino_core.inference.names import NameBook, frame_stem, safe_name


def test_names_follow_the_source() -> None:
    book = NameBook()
    assert book.stem("p/sub/a b.jpg", "sub/a b.jpg") == "sub/a b"
    assert book.stem("p/ünï.tar.png", "ünï.tar.png") == "ünï.tar"


def test_two_sources_never_share_a_name() -> None:
    book = NameBook()
    stems = [
        book.stem("x/a.jpg", "a.jpg"),
        book.stem("x/a.png", "a.png"),
        book.stem("y/A.jpg", "A.jpg"),
        book.stem("y/a.png", "a.png"),
        book.stem("z/a.png", "a.png"),
    ]
    assert stems == ["a", "a.png", "A.jpg", "a-2", "a-3"]
    assert len({s.casefold() for s in stems}) == 5
    assert book.stem("x/a.png", "a.png") == "a.png"  # asked again


def test_arrays_have_no_source_and_get_a_name_each() -> None:
    book = NameBook()
    assert [book.stem("", "image") for _ in range(3)] == ["image", "image-2", "image-3"]


def test_names_cannot_leave_the_folder() -> None:
    assert NameBook().stem("s", "../../etc/passwd") == "etc/passwd"
    assert NameBook().stem("s", "/etc/passwd") == "etc/passwd"
    assert NameBook().stem("s", "..") == "image"
    assert safe_name('a<b>:"c|?*\n') == "a_b___c____"
    assert safe_name(" ") == "_"


def test_frames() -> None:
    assert frame_stem("a", None) == "a"
    assert frame_stem("a", 12) == "a_000012"
