"""The catalog of published DINO weights: their URLs, their AP, and their names here.

The name of a variant alone stands for one of its files: the one with the best AP among those whose
file name contains a checksum (mmdet's) and that were trained with the published settings, or else
the one of detrex with the best AP. The data are from the READMEs of IDEA-Research/DINO,
IDEA-Research/detrex (projects/dino) and open-mmlab/mmdetection (configs/dino).
"""

from __future__ import annotations

from dataclasses import dataclass

from dino_core.errors import CheckpointError
from dino_core.suggestions import nearest

_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download/"
_MMDET = "https://download.openmmlab.com/mmdetection/v3.0/dino/"
_OFFICIAL = "https://drive.google.com/drive/folders/1qD5m1NmK0kjE5hh-G17XUX751WsEG-h_"
LICENSE = "Apache-2.0"
"""License of the code of all three projects. None of them states a license for its weights."""


@dataclass(frozen=True)
class Published:
    """One published file of weights.

    Attributes:
        name: Its name here, unique in the catalog.
        variant: Its network; files of a network that `VARIANTS` lacks cannot be used yet.
        project: "official", "detrex" or "mmdet".
        file: Name of the file as published.
        url: Where it can be downloaded; None where that takes a person with a browser.
        page: The page that lists it.
        ap: Published AP on COCO val2017, as a fraction.
        epochs: Epochs of training on COCO train2017.
        sha256: The known digits of its checksum: all 64, the first ones, or none ("").
        size: Size in bytes; None where it is not published.
        note: What distinguishes it from other files of the variant.
    """

    name: str
    variant: str
    project: str
    file: str
    url: str | None
    page: str
    ap: float
    epochs: int
    sha256: str = ""
    size: int | None = None
    note: str = ""


def _official() -> list[Published]:
    rows = [
        ("r50-4scale", 12, 0.490), ("r50-5scale", 12, 0.494), ("swinl-4scale", 12, 0.568),
        ("swinl-5scale", 12, 0.573), ("r50-4scale", 24, 0.504), ("r50-5scale", 24, 0.513),
        ("r50-4scale", 36, 0.509), ("r50-5scale", 36, 0.512), ("swinl-4scale", 36, 0.580),
        ("swinl-5scale", 36, 0.585),
    ]  # fmt: skip
    return [
        Published(
            f"dino-{kind}-{epochs}ep-official", f"dino-{kind}", "official",
            f"checkpoint{epochs - 1:04d}_{kind[-6:]}.pth", None, _OFFICIAL, ap, epochs,
            note="on Google Drive, without a direct link",
        )
        for kind, epochs, ap in rows
    ]  # fmt: skip


_MMDET_ROWS: tuple[tuple[str, int, float, str, str], ...] = (
    # Variant and suffix of the name, epochs, AP, folder, file.
    ("r50-4scale", 12, 0.490, "dino-4scale_r50_8xb2-12e_coco/",
     "dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth"),
    ("r50-4scale improved", 12, 0.501, "dino-4scale_r50_improved_8xb2-12e_coco/",
     "dino-4scale_r50_improved_8xb2-12e_coco_20230818_162607-6f47a913.pth"),
    ("swinl-5scale", 12, 0.572, "dino-5scale_swin-l_8xb2-12e_coco/",
     "dino-5scale_swin-l_8xb2-12e_coco_20230228_072924-a654145f.pth"),
    ("swinl-5scale", 36, 0.584,
     "https://github.com/RistoranteRist/mmlab-weights/releases/download/dino-swinl/",
     "dino-5scale_swin-l_8xb2-36e_coco-5486e051.pth"),
)  # fmt: skip


def _mmdet() -> list[Published]:
    models = []
    for kind, epochs, ap, folder, file in _MMDET_ROWS:
        variant, _, extra = kind.partition(" ")
        base = "" if folder.startswith("https:") else _MMDET
        models.append(
            Published(
                "-".join(filter(None, [f"dino-{variant}-{epochs}ep", extra, "mmdet"])),
                f"dino-{variant}", "mmdet", file, f"{base}{folder}{file}",
                "https://github.com/open-mmlab/mmdetection/tree/main/configs/dino", ap, epochs,
                # publish_model.py of mmdet ends file names with the first digits of the SHA-256.
                sha256=file.removesuffix(".pth")[-8:],
                note="300 denoising queries and better settings" if extra else "",
            )
        )  # fmt: skip
    return models


_IN22K = "backbone from ImageNet-22k"
_DETREX_ROWS: tuple[tuple[str, int, float, str, str], ...] = (
    # Variant and suffix of the name, epochs, AP, release and file, note.
    ("r50-4scale", 12, 0.492, "v0.2.0/dino_r50_4scale_12ep_49_2AP", ""),
    ("r50-4scale ema", 12, 0.494, "v0.3.0/dino_r50_4scale_12ep_with_ema", "averaged weights"),
    ("r50-4scale 300dn", 12, 0.495, "v0.2.0/dino_r50_4scale_12ep_300dn", "300 denoising queries"),
    ("r50-4scale hacked", 12, 0.494, "v0.4.0/dino_r50_4scale_12ep_hacked_trainer",
     "the project's 'hacked trainer'"),
    ("r50-4scale better", 12, 0.498,
     "v0.4.0/dino_r50_4scale_12ep_backbone_2e-5_class_weight_2.0", "better settings"),
    ("r50-4scale better-300dn", 12, 0.500,
     "v0.4.0/dino_r50_4scale_12ep_backbone_2e-5_class_weight_2.0_300dn",
     "better settings, 300 denoising queries"),
    ("r50-4scale", 24, 0.506, "v0.1.1/dino_r50_4scale_24ep", ""),
    ("r50-5scale", 12, 0.496, "v0.2.1/dino_r50_5scale_12ep", ""),
    ("r101-4scale", 12, 0.500, "v0.1.1/dino_r101_4scale_12ep", ""),
    ("swint-4scale", 12, 0.513, "v0.1.1/dino_swin_tiny_224_4scale_12ep", ""),
    ("swint-4scale in22k", 12, 0.525, "v0.1.1/dino_swin_tiny_224_22kto1k_finetune_4scale_12ep",
     _IN22K),
    ("swins-4scale", 12, 0.530, "v0.1.1/dino_swin_small_224_4scale_12ep", ""),
    ("swins-4scale in22k", 12, 0.545, "v0.4.0/dino_swin_small_22k_4scale_12ep", _IN22K),
    ("swinb-4scale", 12, 0.558, "v0.1.1/dino_swin_base_384_4scale_12ep", _IN22K),
    ("swinl224-4scale", 12, 0.569, "v0.1.1/dino_swin_large_224_4scale_12ep",
     "windows of 7, " + _IN22K),
    ("swinl-4scale", 12, 0.569, "v0.1.1/dino_swin_large_4scale_12ep", _IN22K),
    ("swinl-5scale", 12, 0.575, "v0.2.1/dino_swin_large_384_5scale_12ep", _IN22K),
    ("swinl-4scale", 36, 0.581, "v0.2.0/dino_swin_large_384_4scale_36ep", _IN22K),
    ("swinl-5scale", 36, 0.585, "v0.2.1/dino_swin_large_384_5scale_36ep", _IN22K),
    ("focall-4scale", 12, 0.575, "v0.2.1/dino_focal_large_lrf_384_4scale_12ep", "3 levels"),
    ("focall-4scale", 36, 0.583, "v0.4.0/dino_focal_large_3level_4scale_36ep", "3 levels"),
    ("focall-fl4-4scale", 12, 0.580, "v0.2.1/dino_focal_large_lrf_384_fl4_4scale_12ep", "4 levels"),
    ("focall-fl4-5scale", 12, 0.585, "v0.2.1/dino_focalnet_large_lrf_384_fl4_5scale_12ep",
     "4 levels"),
    ("vitdetb-4scale", 12, 0.502, "v0.2.1/dino_vitdet_4scale_12ep", ""),
    ("vitdetb-4scale", 50, 0.550, "v0.2.1/dino_vitdet_base_4scale_50ep", ""),
    ("vitdetl-4scale", 12, 0.529, "v0.2.1/dino_vitdet_large_4scale_12ep", ""),
    ("vitdetl-4scale", 50, 0.575, "v0.2.1/dino_vitdet_large_4scale_50ep", ""),
    ("convnextt-4scale", 12, 0.514, "v0.4.0/dino_convnext_tiny_1k_4scale_12ep", ""),
    ("convnextt-4scale in22k", 12, 0.524, "v0.4.0/dino_convnext_tiny_384_4scale_12ep", _IN22K),
    ("convnexts-4scale", 12, 0.520, "v0.4.0/dino_convnext_small_1k_4scale_12ep", ""),
    ("convnexts-4scale in22k", 12, 0.542, "v0.4.0/dino_convnext_small_384_4scale_12ep", _IN22K),
    ("convnextb-4scale", 12, 0.526, "v0.4.0/dino_convnext_base_1k_4scale_12ep", ""),
    ("convnextb-4scale in22k", 12, 0.551, "v0.4.0/dino_convnext_base_384_4scale_12ep", _IN22K),
    ("convnextl-4scale", 12, 0.534, "v0.4.0/dino_convnext_large_1k_4scale_12ep", ""),
    ("convnextl-4scale in22k", 12, 0.555, "v0.4.0/dino_convnext_large_384_4scale_12ep", _IN22K),
    ("internimaget-4scale", 12, 0.523, "v0.4.0/dino_internimage_tiny_4scale_12ep", ""),
    ("internimages-4scale", 12, 0.536, "v0.4.0/dino_internimage_small_4scale_12ep", ""),
    ("internimageb-4scale", 12, 0.547, "v0.4.0/dino_internimage_base_4scale_12ep", ""),
    ("internimagel-4scale", 12, 0.570, "v0.4.0/dino_internimage_large_4scale_12ep", _IN22K),
    ("eva01-4scale", 12, 0.591,
     "https://huggingface.co/IDEA-CVR/DINO-EVA/resolve/main/"
     "dino_eva_01_o365_finetune_detr_like_augmentation_4scale_12ep", "Objects365 first"),
)  # fmt: skip


def _detrex() -> list[Published]:
    models = []
    for kind, epochs, ap, path, note in _DETREX_ROWS:
        variant, _, extra = kind.partition(" ")
        models.append(
            Published(
                "-".join(filter(None, [f"dino-{variant}-{epochs}ep", extra, "detrex"])),
                f"dino-{variant}", "detrex", f"{path.rpartition('/')[2]}.pth",
                f"{'' if path.startswith('https:') else _DETREX}{path}.pth",
                "https://github.com/IDEA-Research/detrex/tree/main/projects/dino", ap, epochs,
                note=note,
            )
        )  # fmt: skip
    return models


DEFAULTS = {
    "dino-r50-4scale": "dino-r50-4scale-12ep-mmdet",
    "dino-r50-5scale": "dino-r50-5scale-12ep-detrex",
    "dino-r101-4scale": "dino-r101-4scale-12ep-detrex",
    "dino-swint-4scale": "dino-swint-4scale-12ep-in22k-detrex",
    "dino-swinl-4scale": "dino-swinl-4scale-36ep-detrex",
    "dino-swinl-5scale": "dino-swinl-5scale-36ep-mmdet",
    "dino-convnextl-4scale": "dino-convnextl-4scale-12ep-in22k-detrex",
}
"""Variant to the name of the file that the variant's name stands for."""

CATALOGUE: dict[str, Published] = {
    model.name: model for model in (*_mmdet(), *_detrex(), *_official())
}
"""Name of each published file to what is known of it."""


def find_published(name: str) -> Published | None:
    """The published file that its own name or a variant's name stands for; None for others."""
    return CATALOGUE.get(DEFAULTS.get(name, name))


def published_model(name: str) -> Published:
    """As `find_published`. Raises CheckpointError where there is none, with the nearest name."""
    published = find_published(name)
    if published is None:
        hint = nearest(name, {**DEFAULTS, **CATALOGUE}) or "`dino models list --all` has the names"
        raise CheckpointError(f"no published model is called '{name}'", hint)
    return published
