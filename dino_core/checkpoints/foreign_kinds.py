"""Files that are no model of this package, named with the way out; found without torch.

A file is recognized by its first bytes, by what is in its archive, or by its suffix; the
checkpoints of other projects by the classes that they mention or by the names of their tensors.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from dino_core.errors import CheckpointError

_OURS = "dino runs its own model files and those of other DINO code: .safetensors, .onnx, .pth"
_OTHER_FORMAT = f"{_OURS}; get the model in one of these"
_TRAIN = (
    "dino reads the checkpoints of DINO's official code, detrex and mmdet; to detect the same "
    "classes, train on the same data, whose labels `dino train DATA` reads"
)
_UNPACK = "unpack it and give the model file in it"
_TENSORRT = "a TensorRT engine"
_TENSORFLOW = "a TensorFlow model"
_KERAS = "a Keras model"
_NCNN = "an ncnn model"
_IMAGE = "an image, not a model"
_ARCHIVE = "an archive, not a model file"
_SETTINGS = "a text file with settings, which holds no weights"

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, which stands for the actual file",
     "run `git lfs pull` where it was cloned, or download the file from its web page"),
    (0, b"<!doctype html", "a web page, not a model file",
     "download the file itself, not the page that shows it"),
    (0, b"<html", "a web page, not a model file",
     "download the file itself, not the page that shows it"),
    (0, b"\x89hdf\r\n\x1a\n", "a Keras or other HDF5 file", _OTHER_FORMAT),
    (4, b"tfl3", "a TensorFlow Lite model", _OTHER_FORMAT),
    (0, b"ftrt", _TENSORRT, _OTHER_FORMAT),
    (0, b"gguf", "a GGUF model", _OTHER_FORMAT),
    (0, b"\x1f\x8b", _ARCHIVE, _UNPACK),
    (0, b"7z\xbc\xaf", _ARCHIVE, _UNPACK),
    (0, b"rar!\x1a\x07", _ARCHIVE, _UNPACK),
    (0, b"\xfd7zxz\x00", _ARCHIVE, _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", _ARCHIVE, _UNPACK),
    (0, b"\x89png\r\n", _IMAGE, "images come first: dino predict IMAGE --model FILE"),
    (0, b"\xff\xd8\xff", _IMAGE, "images come first: dino predict IMAGE --model FILE"),
)  # fmt: skip
"""Place and bytes (in lower case) at the start of a file, what it is, and the way out."""

_SUFFIXES: dict[str, str] = {
    ".engine": _TENSORRT, ".plan": _TENSORRT, ".trt": _TENSORRT,
    ".tflite": "a TensorFlow Lite model", ".pb": _TENSORFLOW, ".savedmodel": _TENSORFLOW,
    ".h5": _KERAS, ".hdf5": _KERAS, ".keras": _KERAS,
    ".mlmodel": "a Core ML model", ".mlpackage": "a Core ML model",
    ".param": _NCNN, ".ncnn": _NCNN, ".mnn": "an MNN model",
    ".pdmodel": "a PaddlePaddle model", ".pdparams": "a PaddlePaddle model",
    ".caffemodel": "a Caffe model", ".prototxt": "a Caffe model", ".weights": "a Darknet model",
    ".torchscript": "a TorchScript program", ".ptl": "a TorchScript program",
    ".pte": "an ExecuTorch program", ".msgpack": "a Flax model", ".npz": "a NumPy archive",
    ".rknn": "a Rockchip model", ".hef": "a Hailo model", ".gguf": "a GGUF model",
    ".yaml": _SETTINGS, ".yml": _SETTINGS, ".json": _SETTINGS, ".toml": _SETTINGS,
    ".py": _SETTINGS, ".cfg": _SETTINGS, ".txt": _SETTINGS,
}  # fmt: skip
"""Suffixes of models of other tools."""

_CLASSES: tuple[tuple[str, str], ...] = (
    ("ultralytics.", "Ultralytics (YOLO)"),
    ("models.yolo.", "YOLOv5, YOLOv7 or YOLOv9"),
    ("models.common.", "YOLOv5, YOLOv7 or YOLOv9"),
    ("yolox.", "YOLOX"),
    ("yolov6.", "YOLOv6"),
    ("super_gradients.", "SuperGradients"),
    ("rfdetr.", "RF-DETR"),
    ("transformers.", "Hugging Face Transformers"),
    ("torchvision.", "torchvision"),
    ("timm.", "timm"),
    ("effdet.", "EfficientDet"),
    ("keras.", "Keras"),
)
"""How the names of a project's classes begin, which a file of whole objects mentions."""

_TENSORS: tuple[tuple[str, str], ...] = (
    (r"(model\.){1,2}\d+\.(conv|cv\d|m|bn)\b", "Ultralytics or YOLOv5 (YOLO)"),
    (r"backbone\.(backbone\.)?dark\d\.", "YOLOX"),
    (r"(module\.)?(bert|language_backbone|text_encoder|feat_map)\.", "Grounding DINO"),
    (r"(backbone\.|module\.|student\.|teacher\.)*blocks\.\d+\.attn\.qkv\.",
     "a vision transformer such as DINO and DINOv2, a training method of the same name"),
    (r"decoder\.dec_score_head\.|encoder\.lateral_convs\.", "RT-DETR"),
    (r"(rpn|roi_heads)\.", "Faster R-CNN or Mask R-CNN"),
    (r"(detr\.|model\.)*(model\.)?backbone\.(conv_encoder|model)\.",
     "Hugging Face Transformers"),
    (r"transformer\.decoder\.layers\.\d+\.multihead_attn\.", "DETR"),
    (r"transformer\.reference_points\.", "Deformable DETR"),
    (r"(bbox_head|mask_head|rpn_head)\.", "mmdet, of another detector than DINO"),
    (r"(module\.)?layer1\.0\.conv1\.", "a ResNet that classifies images"),
)  # fmt: skip
"""Patterns at the start of a tensor's name, and the projects that have such names."""


def check_kind(path: Path) -> None:
    """Check that a file is not one of the well-known ones that hold no model for this package.

    Raises:
        CheckpointError: It is; the message says what it is, and the hint what to do.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(64)
    lower = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for place, mark, what, hint in _SIGNATURES:
        if lower[place : place + len(mark)] == mark or start[place:].lower().startswith(mark):
            raise CheckpointError(f"{path}: {what}", hint)
    if start.startswith(b"PK\x03\x04"):
        _check_zip(path)
    elif (what_else := _SUFFIXES.get(path.suffix.lower())) is not None:
        raise CheckpointError(f"{path}: {what_else}, which dino cannot run", _OTHER_FORMAT)
    elif path.suffix.lower() == ".bin" and not start.startswith(b"\x80"):
        raise CheckpointError(
            f"{path}: the raw weights of another runtime (ncnn, OpenVINO), which dino cannot run",
            _OTHER_FORMAT,
        )


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return  # a damaged one, which its reader reports
    ends = {name.rpartition("/")[2] for name in names}
    if "model.weights.h5" in ends:
        raise CheckpointError(f"{path}: {_KERAS}, which dino cannot run", _OTHER_FORMAT)
    if "data.pkl" in ends and "constants.pkl" in ends:
        raise CheckpointError(
            f"{path}: a TorchScript program, which is not executed",
            "use the checkpoint that it was made from, a file of torch.save",
        )
    if "data.pkl" not in ends and not any(name.startswith("archive/") for name in names):
        inside = [name for name in names if Path(name).suffix in (".safetensors", ".pth", ".onnx")]
        found = f"; it has {', '.join(inside[:3])}" if inside else ""
        raise CheckpointError(f"{path}: a zip archive, not a model file", f"{_UNPACK}{found}")


def project_of_class(kind: str) -> str | None:
    """The project that a class belongs to, e.g. "ultralytics.nn.tasks.DetectionModel"."""
    return next((name for start, name in _CLASSES if kind.startswith(start)), None)


def project_of_tensors(names: Iterable[str]) -> str | None:
    """The project whose tensors have such names; None for those that are not known."""
    given = list(names)
    for pattern, project in _TENSORS:
        found = re.compile(pattern)
        if any(found.match(name) for name in given):
            return project
    return None


def of_another_project(path: Path, project: str) -> CheckpointError:
    """The error for a checkpoint of a project that is not DINO."""
    return CheckpointError(f"{path}: a checkpoint of {project}, which dino cannot run", f"{_TRAIN}")


def looks_pickled(path: Path) -> bool:
    """Whether a file begins as those of torch.save do."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def looks_like_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON header and that header."""
    with path.open("rb") as file:
        start = file.read(10)
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
