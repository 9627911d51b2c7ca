"""Annotated pictures, annotated videos, and crops of what was found."""

from __future__ import annotations

import math
from pathlib import Path

from dino_core.files import atomic_file
from dino_core.inference.draw import MAX_JPEG_SIDE, encode_image
from dino_core.inference.names import frame_stem, safe_name
from dino_core.inference.prediction import Prediction
from dino_core.inference.video import VideoFile


class PictureWriter:
    """`images/NAME.jpg` for still pictures, `videos/NAME.mp4` for the frames of a video."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._video: VideoFile | None = None
        self._video_source = ""

    def add(self, prediction: Prediction, stem: str) -> None:
        """Write the annotated picture. Raises DinoError where that fails."""
        if prediction.frame is None:
            self.finish()
            picture = prediction.drawn()
            suffix = ".jpg" if max(picture.shape[:2]) <= MAX_JPEG_SIDE else ".png"
            data = encode_image(picture, suffix)
            with atomic_file(self._out / "images" / f"{stem}{suffix}") as file:
                file.write(data)
            return
        picture = prediction.drawn()
        if self._video is None or self._video_source != prediction.source:
            self.finish()
            self._video = VideoFile(
                self._out / "videos" / f"{stem}.mp4", prediction.fps, picture.shape[:2]
            )
            self._video_source = prediction.source
        self._video.add(picture, prediction.time_s)

    def finish(self) -> None:
        """Complete the video under way."""
        video, self._video = self._video, None
        if video is not None:
            video.close()

    def abort(self) -> None:
        """Remove the video under way."""
        video, self._video = self._video, None
        if video is not None:
            video.abort()


class CropWriter:
    """`crops/CLASS/NAME_N.jpg`: each detection cut out of the original picture."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, prediction: Prediction, stem: str) -> None:
        """Write the crops of one picture. Raises DinoError where that fails."""
        image = prediction.image
        if image is None:
            return
        height, width = image.shape[:2]
        base = frame_stem(stem, prediction.frame).replace("/", "_")
        rows = zip(prediction.labels, prediction.boxes_xyxy_px, strict=True)
        for number, (label, box) in enumerate(rows):
            left = min(math.floor(box[0]), width - 1)
            top = min(math.floor(box[1]), height - 1)
            right, bottom = max(math.ceil(box[2]), left + 1), max(math.ceil(box[3]), top + 1)
            crop = image[top:bottom, left:right]
            suffix = ".jpg" if max(crop.shape[:2]) <= MAX_JPEG_SIDE else ".png"
            name = f"{base}_{number}{suffix}"
            with atomic_file(self._folder / safe_name(label.replace("/", "_")) / name) as file:
                file.write(encode_image(crop, suffix))
