"""What one image file is like, found out in a pool of processes: whole, turned, its fingerprints.

Every file is decoded to its end. A JPEG is decoded at an eighth of its size, which is many times
faster and still reads all of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_core.data.check.similar import HASHED_SIDE, perceptual_hash, thumbnail
from dino_core.errors import DataError
from dino_core.processing.image_files import (
    DAMAGED,
    UPRIGHT,
    ImageFileError,
    exif_orientation,
    open_image,
    read_image_file,
)
from dino_core.processing.preprocess import to_rgb_array
from dino_core.processing.whole_images import JPEG_END, require_all_rows, with_end_marker

# Large enough that sending a task costs little, small enough that progress is seen.
_FILES_A_TASK = 16
_ZEROS = 64  # that many at the end of a JPEG without its end mark: a copy that stopped


@dataclass(frozen=True)
class ImageFacts:
    """One image file.

    Attributes:
        path: The file.
        problem: "unreadable-image", "truncated-image" or "" for neither.
        reason: What the decoder says about the problem.
        remark: "no-end-marker" for a JPEG that lacks only that, else "".
        orientation: EXIF orientation, 1 for upright.
        digest: Fingerprint of the bytes; empty where they cannot be read.
        phash: Perceptual hash; None for blank or unreadable images.
        small: The upright picture as `thumbnail` makes it; None where it cannot be decoded.
    """

    path: Path
    problem: str = ""
    reason: str = ""
    remark: str = ""
    orientation: int = UPRIGHT
    digest: bytes = b""
    phash: int | None = None
    small: NDArray[np.uint8] | None = None


def examine(path: Path) -> ImageFacts:
    """Read and decode one image file."""
    try:
        data = read_image_file(path)
    except DataError as error:
        return ImageFacts(path, "unreadable-image", _reason_of(error))
    # 16 bytes are enough that two different files practically never share one.
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        picture, orientation, is_jpeg = _decoded(data)
        remark = ""
    except DataError as error:
        repaired = with_end_marker(data, "")
        if repaired is None:
            problem = error.problem if isinstance(error, ImageFileError) else "unreadable-image"
            return ImageFacts(path, problem, _reason_of(error), digest=digest)
        picture, orientation, is_jpeg = _decoded(repaired)
        remark = "no-end-marker"
    # libjpeg fills up what is missing with gray and reports nothing, so an interrupted copy that
    # left zeros can only be seen in the bytes.
    if is_jpeg and data.endswith(bytes(_ZEROS)) and not _has_end(data):
        reason = "the end of the file is zeros"
        return ImageFacts(path, "truncated-image", reason, digest=digest)
    side = (HASHED_SIDE, HASHED_SIDE)
    hashed = np.asarray(picture.resize(side, Image.Resampling.BILINEAR, reducing_gap=3.0))
    return ImageFacts(
        path,
        remark=remark,
        orientation=orientation,
        digest=digest,
        phash=perceptual_hash(hashed),
        small=thumbnail(hashed),
    )


def _decoded(data: bytes) -> tuple[Image.Image, int, bool]:
    """The picture, its EXIF orientation, and whether the file is a JPEG."""
    with open_image(data) as image:
        # MPO is the format of phones that store several JPEGs in one file.
        is_jpeg = image.format in ("JPEG", "MPO")
        orientation = UPRIGHT
        with contextlib.suppress(*DAMAGED):
            orientation = exif_orientation(image)
        # Twice the side, so that the final resize still averages over several pixels.
        picture = reduced(image, 2 * HASHED_SIDE)
        require_all_rows(image, data, "")
        return picture, orientation, is_jpeg


def _reason_of(error: DataError) -> str:
    return error.reason if isinstance(error, ImageFileError) else error.message


def reduced(image: Image.Image, side: int) -> Image.Image:
    """An opened file upright and as RGB, decoded to its end; a JPEG only as large as needed.

    Args:
        image: Opened and not yet decoded.
        side: Both sides keep at least that many pixels, where the file has them.
    """
    # Has an effect on JPEG only.
    image.draft("RGB", (side, side))
    image.load()
    return Image.fromarray(to_rgb_array(image))


def _has_end(data: bytes) -> bool:
    """Whether a JPEG that ends in zeros has its end mark just before them."""
    return data.rstrip(b"\0").endswith(JPEG_END)


def examine_all(paths: Sequence[Path], workers: int = 0) -> Iterator[ImageFacts]:
    """The facts of every file, in order, each as soon as it is known.

    Args:
        paths: Image files.
        workers: Number of processes that decode; 0 or 1 decode in this one. Processes are spawned,
            so a script that asks for them needs `if __name__ == "__main__":`.

    Raises:
        DataError: a worker process died.
    """
    if workers <= 1:
        yield from map(examine, paths)
        return
    pool = ProcessPoolExecutor(
        # Forked workers would inherit torch's threads. Ctrl-C reaches the whole process group; only
        # the parent answers, and cancels the workers.
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_leave_interrupts_to_parent,
    )
    try:
        yield from pool.map(examine, paths, chunksize=_FILES_A_TASK)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images died",
            "the memory is full, or an image crashes its decoder; remove the largest images",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
