"""A self-contained HTML page of samples: each image beside its mask, with what was found and how sure it is."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from fastdrive_node.errors import InputError
from fastdrive_training.annotate.compose import SURE, compose
from fastdrive_training.annotate.image_files import ImageKey
from fastdrive_training.annotate.settings import IGNORE
from fastdrive_training.annotate.store import MaskStore, write_file
from fastdrive_training.data.adapters import ImageSource
from fastdrive_training.data.masks import read_labels, size_of

PAGE = "samples.html"
WIDTH = 640  # px of each image
COLORS = ((66, 133, 244), (251, 140, 0), (255, 214, 0), (0, 200, 150), (233, 30, 99), (156, 39, 176), (121, 85, 72))
DOUBT = (150, 150, 150)
TEMPLATE = "page.html.j2"


def write_page(source: ImageSource, store: MaskStore, keys: Sequence[ImageKey], figures: dict) -> None:
    """Write ``samples.html`` with these images, which are finished. An image that cannot be read any more is named."""
    environment = Environment(
        loader=PackageLoader("fastdrive_training.annotate", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template(TEMPLATE).render(
        figures=figures,
        classes=list(zip(figures["classes"].items(), _colors(len(figures["classes"])), strict=True)),
        groups=store.settings.groups,
        models=list(store.models.values()),
        doubt=DOUBT,
        sure=SURE,
        samples=[_sample(source, store, key) for key in keys],
    )
    write_file(store.root / PAGE, (page + "\n").encode())


def _sample(source: ImageSource, store: MaskStore, key: ImageKey) -> dict:
    """What the template shows of one image: its title, images as ``data:`` addresses and instances, or the problem."""
    title = f"{key.camera} / {key.name}"
    try:
        image = source[key.index].load_image(key.camera)
        labels = read_labels(store.mask_path(key), size_of(image))
        instances, size = store.read_instances(key)
    except InputError as error:
        return {"title": title, "problem": str(error)}
    verdicts = compose(instances, size, store.settings).verdicts
    images = [_address(image), _address(overlay(image, labels))]
    return {"title": title, "problem": "", "images": images, "found": list(zip(instances, verdicts, strict=True))}


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3]: the image dimmed, each group in its color, doubtful pixels in grey stripes."""
    table = np.zeros((256, 3), np.float32)
    table[1:IGNORE] = np.resize(np.array(COLORS, np.float32), (IGNORE - 1, 3))
    rows, cols = np.indices(labels.shape)
    stripes = (labels == IGNORE) & ((rows + cols) // max(2, labels.shape[1] // 160) % 2 == 0)
    mixed = np.where((labels == 0)[..., None], 0.45 * image, 0.45 * image + 0.55 * table[labels])
    mixed[labels == IGNORE] = 0.6 * image[labels == IGNORE]
    mixed[stripes] = DOUBT
    return mixed.astype(np.uint8)


def _colors(count: int) -> list[tuple[int, int, int]]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _address(image: np.ndarray) -> str:
    """A small JPEG of the image as a ``data:`` address."""
    height = round(image.shape[0] * WIDTH / image.shape[1])
    small = cv2.resize(image, (WIDTH, max(1, height)), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
