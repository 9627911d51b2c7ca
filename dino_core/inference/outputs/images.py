"""Annotated images and annotated videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.files import atomic_file

if TYPE_CHECKING:
    from dino_core.detections import ClassMap
    from dino_core.inference.prediction import Prediction
    from dino_core.inference.video_file import VideoFile


class ImageWriter:
    """`images/NAME.jpg` for still images, `videos/NAME.mp4` for the frames of a video."""

    def __init__(self, out: Path, classes: ClassMap) -> None:
        self._out = out
        self._video: VideoFile | None = None
        self._video_source = ""

    def add(self, prediction: Prediction, stem: str) -> None:
        if prediction.image is None:
            return
        if prediction.frame is None:
            self._add_image(prediction, stem)
        else:
            self._add_frame(prediction, stem)

    def _add_image(self, prediction: Prediction, stem: str) -> None:
        from dino_core.inference.draw import encode_jpeg_or_png

        self.finish()
        suffix, data = encode_jpeg_or_png(prediction.drawn())
        with atomic_file(self._out / "images" / f"{stem}{suffix}") as file:
            file.write(data)

    def _add_frame(self, prediction: Prediction, stem: str) -> None:
        from dino_core.inference.video_file import VideoFile

        picture = prediction.drawn()
        # Sources are read one after the other, so a frame of another source ends the video.
        if self._video is None or self._video_source != prediction.source:
            self.finish()
            path = self._out / "videos" / f"{stem}.mp4"
            source = Path(prediction.source)
            sound_of = source if source.is_file() else None  # a webcam has a number
            self._video = VideoFile(path, prediction.fps, picture.shape[:2], sound_of)
            self._video_source = prediction.source
        self._video.add(picture, prediction.time_s)

    def finish(self) -> None:
        """Complete the video that is being written."""
        video, self._video = self._video, None
        if video is not None:
            video.close()

    def abort(self, *, keep: bool = False) -> None:
        """Remove the video that is being written."""
        video, self._video = self._video, None
        if video is not None:
            video.abort()
