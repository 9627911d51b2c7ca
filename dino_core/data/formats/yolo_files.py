"""Where a YOLO data set keeps its images and class names: by data.yaml, or by its folders alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dino_core.data.formats.images import list_images
from dino_core.data.formats.layout import in_splits, split_lists
from dino_core.data.formats.values import read_text
from dino_core.data.formats.yolo_labels import has_labels, image_folders_in, labels_lie_beside
from dino_core.data.formats.yolo_yaml import DataYaml, SplitEntry, find_data_yaml
from dino_core.errors import DataError
from dino_core.processing.image_files import IMAGE_SUFFIXES

YOLO_LAYOUT = (
    "data.yaml, or images/{train,val}/ with labels/{train,val}/, or images and labels in one "
    "folder, or in one for each split"
)
_CLASS_FILES = (
    "classes.txt", "obj.names", "_darknet.labels", "labels/classes.txt", "train/classes.txt",
    "train/_darknet.labels",
)  # fmt: skip


@dataclass(frozen=True)
class YoloFiles:
    """What there is to read.

    Attributes:
        root: The data set's folder.
        source: data.yaml, or the folder.
        names: Class names; None where no file names them.
        images: Split name to its image files, at least one.
        missing: Splits that are named but have no images here, and why.
        keypoints: How many numbers follow each box, in a data set of poses.
    """

    root: Path
    source: Path
    names: tuple[str, ...] | None
    images: Mapping[str, list[Path]]
    missing: Mapping[str, DataError] = field(default_factory=dict)
    keypoints: int = 0

    @property
    def named(self) -> frozenset[str]:
        """The splits that are named, the missing ones included."""
        return frozenset({*self.images, *self.missing})


def find_yolo(path: Path) -> YoloFiles | None:
    """The files of a YOLO data set, a folder or a data.yaml file; None where there is none.

    Raises:
        DataError: data.yaml or the file of class names is malformed.
    """
    described = find_data_yaml(path)
    if described is not None:
        return _described_files(described)
    return None if path.is_file() else _bare_files(path)


def _described_files(described: DataYaml) -> YoloFiles:
    """The files of a data set with a data.yaml."""
    images: dict[str, list[Path]] = {}
    missing = dict(described.malformed)
    for split, entry in described.splits.items():
        try:
            images[split] = _images_of(entry, described)
        except DataError as error:
            missing[split] = error
    names = described.names or _names_beside(described.root)
    return YoloFiles(described.root, described.file, names, images, missing, described.keypoints)


def _images_of(entry: SplitEntry, described: DataYaml) -> list[Path]:
    """The images of one split of a data.yaml; DataError where there are none."""
    # Paths are relative to `path` by the documentation, and to the file itself in many exports.
    folders = (described.root, described.file.parent)
    images = [image for place in entry.places for image in _images_at(place, entry.where, folders)]
    if not images:
        raise DataError(f"{entry.where} is {', '.join(entry.places)}, which has no images")
    return images


def _images_at(place: str, where: str, folders: tuple[Path, Path]) -> list[Path]:
    """The images of one place that data.yaml names: a folder or a .txt list."""
    candidates = list(_resolved(place, folders))
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise DataError(
            f"{where} is {place}, which is not there",
            f"looked for {', '.join(map(str, candidates[:4]))}",
        )
    if found.is_dir():
        if found.resolve() == Path(found.resolve().anchor):
            raise DataError(f"{where} is {place}, which is the whole file system")
        return _images_in(found)
    # darknet's train.txt is a list of images; any other file is a mistake.
    if found.suffix.lower() != ".txt":
        raise DataError(f"{where} is {place}, expected a folder or a .txt list of images")
    return _images_listed(found, folders[0], {})


def _images_in(folder: Path) -> list[Path]:
    """The images of a split's folder: those in its images/ unless others lie in it directly."""
    inner = folder / "images"
    return list_images(folder if not inner.is_dir() or _has_images(folder) else inner)


def _has_images(folder: Path) -> bool:
    """Whether images lie in a folder itself, whatever its subfolders hold."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in paths)


def _images_listed(file: Path, root: Path, by_stem: Mapping[str, Path]) -> list[Path]:
    """The images of a .txt list, one path per line, relative to the list or the data set.

    Pascal VOC's lists have names without suffix, which `by_stem` maps to files.
    """
    folders = (root, file.parent)
    images = []
    for line in _lines_of(file):
        places = _resolved(line, folders, is_list=True)
        found = next((path for path in places if path.is_file()), None)
        # A file that is nowhere stays in the list under its most likely path, so that it is
        # reported as missing instead of silently shrinking the split.
        images.append(found or by_stem.get(line) or next(_resolved(line, folders)))
    return images


def _lines_of(file: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    return list(filter(None, map(str.strip, read_text(file).splitlines())))


def _resolved(place: str, folders: Sequence[Path], is_list: bool = False) -> Iterator[Path]:
    """Where a path may lead: as it is, else without its first parts.

    Roboflow writes ../train/images for train/images, absolute paths are those of another machine,
    and lists of images (`is_list`) were often made one or two folders higher.
    """
    place = place.strip().replace("\\", "/")
    parts = PurePosixPath(place).parts
    # Windows drives too, which `PurePosixPath` does not know.
    is_absolute = place.startswith("/") or place[1:2] == ":"
    # Roboflow's data.yaml lies in the folder that ../train should begin in, so the dots lead out of
    # the data set. They are dropped where the literal path does not exist.
    skipped = next((i for i, part in enumerate(parts) if part != ".."), 0)
    tails = [PurePosixPath(*parts[i:]) for i in range(1, len(parts))]
    tails = tails if is_absolute or is_list else []
    places = (PurePosixPath(place), PurePosixPath(*parts[skipped:]), *tails)
    # Fewer parts mean less certainty, so longer paths come first. Duplicates are tried once.
    yield from dict.fromkeys(folder / p for p in places for folder in folders)


def _names_beside(root: Path) -> tuple[str, ...] | None:
    """The class names in a file such as classes.txt; None where there are none."""
    file = next(filter(Path.is_file, (root / name for name in _CLASS_FILES)), None)
    return (tuple(_lines_of(file)) or None) if file else None


def _bare_files(root: Path) -> YoloFiles | None:
    """The files of a data set without data.yaml; None where the folders are not laid out as one."""
    folders = _bare_folders(root)
    if not folders:
        return None
    images = {split: list_images(folder) for split, folder in folders.items()}
    # One folder of images may still be divided by lists.
    if folders.keys() == {"train"}:
        images = _bare_lists(root, images["train"]) or images
    missing = {
        split: DataError(f"{folders[split]}: the {split} split has no images")
        for split, paths in images.items()
        if not paths
    }
    images = {split: paths for split, paths in images.items() if paths}
    return YoloFiles(root, root, _names_beside(root), images, missing)


def _bare_folders(root: Path) -> dict[str, Path]:
    """Split name to image folder of a data set without data.yaml; empty if it is laid out as none.

    Folders of labels come first; only without them may labels lie beside their images, as Darknet
    and labelImg write them.
    """
    splits = in_splits(root)
    together = image_folders_in(root)
    inside = [each for images in together for each in in_splits(images)]
    inside += [(split, images) for split, folder in splits for images in image_folders_in(folder)]
    return (
        _first_of_each_split([*inside, *splits], has_labels)
        or _first_of_each_split([("train", images) for images in together], has_labels)
        or _first_of_each_split(splits, labels_lie_beside)
        or _first_of_each_split([("train", root)], labels_lie_beside)
    )


def _first_of_each_split(
    places: Iterable[tuple[str, Path]], is_labeled: Callable[[Path], bool]
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, folder in places:
        if split not in found and is_labeled(folder):
            found[split] = folder
    return found


def _bare_lists(root: Path, images: Sequence[Path]) -> dict[str, list[Path]]:
    """Split name to the images that train.txt, val.txt and the like list; empty without train."""
    by_stem = {image.stem: image for image in images}
    listed = {
        split: _images_listed(file, root, by_stem) for split, file in split_lists(root).items()
    }
    found = {split: paths for split, paths in listed.items() if any(map(_is_image, paths))}
    return found if "train" in found else {}


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
