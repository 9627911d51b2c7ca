from __future__ import annotations

from dino_core.evaluation.class_table import class_lines


def row(ap: float | None, boxes: int = 3) -> dict[str, float | int | None]:
    return {"ap": ap, "ap50": None if ap is None else ap + 0.1, "images": 2, "boxes": boxes}


def test_all_classes_best_first_and_those_without_boxes_by_name() -> None:
    lines = class_lines({"cat": row(0.25), "dog": row(0.5, 12), "eel": row(None, 0)})
    assert [line.split() for line in lines] == [
        ["class", "AP", "AP50", "boxes"],
        ["dog", "0.500", "0.600", "12"],
        ["cat", "0.250", "0.350", "3"],
        ["no", "validation", "boxes:", "eel"],
    ]
    assert len({len(line) for line in lines[:3]}) == 1  # aligned


def test_of_many_classes_the_ends() -> None:
    lines = class_lines({f"c{n:02d}": row(n / 100) for n in range(40)})
    names = [line.split()[0] for line in lines]
    best, worst = ["c39", "c38", "c37", "c36", "c35"], ["c04", "c03", "c02", "c01", "c00"]
    assert names == ["class", *best, "...", *worst]
    assert "30 more" in lines[6]


def test_nothing_to_tell() -> None:
    assert class_lines({}) == []
    assert class_lines({"eel": row(None, 0)})[1:] == ["no validation boxes: eel"]
