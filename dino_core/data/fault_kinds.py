"""The kinds of fault of a labeled data set: how bad each is, its words, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        severity: An error loses data or makes scores meaningless, a warning is most likely a
            mistake, a note is worth knowing and may be intended.
        one: What one fault is, e.g. "image ends early".
        many: The same for several, e.g. "images end early".
        hint: What to do about it, short enough for one line of a terminal; may be empty.
    """

    severity: Severity
    one: str
    many: str
    hint: str


KINDS: Mapping[str, Kind] = {
    "unreadable-image": Kind(
        "error",
        "file is not a readable image",
        "files are not readable images",
        "replace the file, or remove it and its labels",
    ),
    "truncated-image": Kind(
        "error", "image ends early", "images end early", "copy or download the file again"
    ),
    "missing-image": Kind(
        "error",
        "labeled image file is missing and is left out",
        "labeled image files are missing and are left out",
        "add the file or remove its labels",
    ),
    "ambiguous-image": Kind(
        "error",
        "image file may be any of several listed ones; their labels are left out",
        "image files may be any of several listed ones; their labels are left out",
        "put the images into the folders that the labels name",
    ),
    "missing-split": Kind(
        "error",
        "split is named, but none of its images can be used",
        "splits are named, but none of their images can be used",
        "correct its place, or what the other errors name",
    ),
    "malformed-file": Kind(
        "error",
        "label file cannot be read and is left out",
        "label files cannot be read and are left out",
        "repair the file, or write or download it again",
    ),
    "malformed-label": Kind(
        "error",
        "label cannot be read and is left out",
        "labels cannot be read and are left out",
        "correct or remove it: until then its object counts as background",
    ),
    "labels-lost": Kind(
        "error",
        "image is left out because none of its labels can be used",
        "images are left out because none of their labels can be used",
        "correct the labels: without them, it would teach that it is empty",
    ),
    "malformed-size": Kind(
        "error",
        "stated image size cannot be used and is ignored",
        "stated image sizes cannot be used and are ignored",
        "correct the size: boxes are taken in pixels of the file",
    ),
    "malformed-image-entry": Kind(
        "error",
        "entry of an image cannot be read and is left out",
        "entries of images cannot be read and are left out",
        "correct the entry: its labels are left out with it",
    ),
    "malformed-class": Kind(
        "error",
        "class cannot be read and is left out",
        "classes cannot be read and are left out",
        "give every class an id and a name of its own",
    ),
    "unknown-class": Kind(
        "error",
        "label has a class that the data do not name and is left out",
        "labels have a class that the data do not name and are left out",
        "name the class, or correct the label",
    ),
    "wrong-shape": Kind(
        "error",
        "image does not have the shape its labels state and is left out",
        "images do not have the shape their labels state and are left out",
        "label it again: it was cropped, turned or replaced since",
    ),
    "duplicate-across-splits": Kind(
        "error",
        "image is in more than one split",
        "images are in more than one split",
        "keep it in one split: a score on training images says nothing",
    ),
    "image-listed-twice": Kind(
        "error",
        "image file is listed more than once",
        "image files are listed more than once",
        "keep one entry with all its boxes",
    ),
    "duplicate-id": Kind(
        "error",
        "image id is used more than once in its split",
        "image ids are used more than once in their split",
        "give every image its own id",
    ),
    "no-boxes": Kind(
        "error",
        "split has no boxes",
        "splits have no boxes",
        "label its images: there is nothing to learn from or measure by",
    ),
    "near-duplicate-across-splits": Kind(
        "warning",
        "image nearly equals one of another split",
        "images nearly equal one of another split",
        "keep such images in one split: scores come out too good otherwise",
    ),
    "duplicate-image": Kind(
        "warning",
        "image is there more than once in its split",
        "images are there more than once in their split",
        "keep one copy, with all its boxes",
    ),
    "no-end-marker": Kind(
        "warning",
        "image lacks the end marker of its file and is used, since all of its rows are there",
        "images lack their files' end markers and are used, since all of their rows are there",
        "copy or download the file again, if other tools refuse it",
    ),
    "exif-rotated": Kind(
        "warning",
        "image is turned by its EXIF tag",
        "images are turned by their EXIF tags",
        "see whether its boxes fit the upright image, else label it again",
    ),
    "missing-label": Kind(
        "warning",
        "image has no label file",
        "images have no label file",
        "label it, or write an empty label file to say that nothing is on it",
    ),
    "label-without-image": Kind(
        "warning",
        "label belongs to no image and is left out",
        "labels belong to no image and are left out",
        "add the image or remove the label",
    ),
    "duplicate-annotation-id": Kind(
        "warning",
        "annotation has an id that another one has",
        "annotations have ids that others have",
        "number them anew: tools that go by the id keep only one",
    ),
    "boxes-as-corners": Kind(
        "warning",
        "file has boxes that look like corners x1, y1, x2, y2, and are taken so",
        "files have boxes that look like corners x1, y1, x2, y2, and are taken so",
        "write COCO boxes as x, y, width, height",
    ),
    "box-outside": Kind(
        "warning",
        "box reaches outside its image and is clipped",
        "boxes reach outside their images and are clipped",
        "draw it again; far outside, it is of another size of the image",
    ),
    "box-degenerate": Kind(
        "warning",
        "box has no area inside its image and is left out",
        "boxes have no area inside their images and are left out",
        "remove it or draw it again",
    ),
    "box-duplicate": Kind(
        "warning",
        "box is there twice",
        "boxes are there twice",
        "remove one: a model learns to report each object once",
    ),
    "box-two-classes": Kind(
        "warning",
        "box has two classes",
        "boxes have two classes",
        "keep the class that is right",
    ),
    "box-whole-image": Kind(
        "warning",
        "box covers its whole image",
        "boxes cover their whole image",
        "draw it around the object, if that is smaller",
    ),
    "class-without-boxes": Kind(
        "warning",
        "class has no boxes to learn from",
        "classes have no boxes to learn from",
        "label some, or remove the class",
    ),
    "similar-classes": Kind(
        "warning",
        "pair of class names differs little and may be one class",
        "pairs of class names differ little and may be one class each",
        "give them one name, if they mean the same",
    ),
    "near-duplicate-image": Kind(
        "note",
        "image nearly equals another of its split",
        "images nearly equal another of their split",
        "frames of a video add little: keep all of one scene in one split",
    ),
    "image-without-boxes": Kind(
        "note",
        "image has no boxes",
        "images have no boxes",
        "keep it if nothing to find is on it, else label it",
    ),
    "image-not-listed": Kind(
        "note",
        "image lies among the others but is in no split",
        "images lie among the others but are in no split",
        "list it with its boxes, or remove it, if it was forgotten",
    ),
    "box-tiny": Kind(
        "note",
        "box is tiny at the model's input size",
        "boxes are tiny at the model's input size",
        "if they matter, give a larger --image-size than `dino train` chooses",
    ),
    "class-imbalance": Kind(
        "note",
        "class is rare",
        "classes are rare",
        "label more of it: rare classes score low",
    ),
    "other-size": Kind(
        "note",
        "image has another size than stated; its boxes are scaled",
        "images have another size than stated; their boxes are scaled",
        "nothing to do if the files were resized after they were labeled",
    ),
    "boxes-turned": Kind(
        "note",
        "image is turned by its EXIF tag, but its labels are not; its boxes are turned too",
        "images are turned by EXIF tags, but their labels are not; their boxes are turned too",
        "nothing to do if the boxes fit in the report",
    ),
    "image-outside": Kind(
        "note",
        "image lies outside the folder of the data and is used",
        "images lie outside the folder of the data and are used",
        "make sure that this is meant: `dino convert` copies them",
    ),
    "outline-label": Kind(
        "note", "outline became its box", "outlines became their boxes", "nothing to do"
    ),
    "pose-label": Kind("note", "pose became its box", "poses became their boxes", "nothing to do"),
    "class-without-box": Kind(
        "note",
        "row has a class and no box; its image is taken as one without that object",
        "rows have a class and no box; their images are taken as ones without that object",
        "nothing to do if the class means that nothing is there",
    ),
    "boxes-in-fractions": Kind(
        "note",
        "file has boxes in fractions of the image's width and height, which are scaled",
        "files have boxes in fractions of the image's width and height, which are scaled",
        "nothing to do",
    ),
    "box-from-zero": Kind(
        "note",
        "box starts at 0, but VOC counts pixels from 1; it is taken to start at the edge",
        "boxes start at 0, but VOC counts pixels from 1; they are taken to start at the edge",
        "nothing to do",
    ),
    "corners-from-zero": Kind(
        "note",
        "file has corners with decimals, taken to count from 0, as CVAT and labelme write them",
        "files have corners with decimals, taken to count from 0, as CVAT and labelme write them",
        "nothing to do, unless they count from 1: boxes are 1 px off then",
    ),
    "classes-unnamed": Kind(
        "note",
        "data set names no classes",
        "data sets name no classes",
        "name them, so that results are readable",
    ),
    "class-unnamed": Kind(
        "note",
        "class has an empty name and is called by its id",
        "classes have empty names and are called by their ids",
        "name it, so that results are readable",
    ),
    "ids-are-words": Kind(
        "note",
        "file has words as ids of its images, which are numbered instead",
        "files have words as ids of their images, which are numbered instead",
        "nothing to do",
    ),
    "category-for-grouping": Kind(
        "note",
        "category without boxes only groups others and is left out",
        "categories without boxes only group others and are left out",
        "nothing to do",
    ),
    "several-formats": Kind(
        "note",
        "folder holds labels in more than one format",
        "folders hold labels in more than one format",
        "--format chooses another",
    ),
    "split-made": Kind(
        "note",
        "validation split is made of training images, since the data have none",
        "validation splits are made of training images, since the data have none",
        "--val-split and --seed choose another",
    ),
}
"""Every kind, errors first; reports list kinds in this order within a severity."""
