"""A self-contained HTML page of samples: each image beside its mask, with what was found and how sure it is."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_training.annotate.compose import SURE, Instance, compose
from fastdrive_training.annotate.settings import IGNORE
from fastdrive_training.annotate.store import ImageKey, MaskStore, write_file
from fastdrive_training.data.adapters import ImageSource
from fastdrive_training.data.masks import read_labels

PAGE = "samples.html"
WIDTH = 640  # px of each picture
COLOURS = ((66, 133, 244), (251, 140, 0), (255, 214, 0), (0, 200, 150), (233, 30, 99), (156, 39, 176), (121, 85, 72))
DOUBT = (150, 150, 150)
_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;background:#0d1117;color:#e6edf3;margin:2em auto;max-width:1340px;padding:0 1em}
h2{font-size:14px;margin:2em 0 .4em;font-weight:600} img{width:49.5%;vertical-align:top}
table{border-collapse:collapse} td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid #2c343e}
td:first-child,th:first-child{text-align:left} .key{display:inline-block;width:1em;height:1em;vertical-align:-.15em}
p{color:#8b949e;margin:.3em 0} .doubt{opacity:.6}
"""


def write_page(source: ImageSource, store: MaskStore, keys: Sequence[ImageKey], figures: dict) -> None:
    """Write ``samples.html`` with these images, which are finished. An image that cannot be read any more is named."""
    parts = [_head(store, figures)]
    for key in keys:
        title = f"<h2>{html.escape(key.camera)} / {html.escape(key.name)}</h2>"
        try:
            parts.append(title + _sample(source, store, key))
        except InputError as error:
            parts.append(f"{title}<p>{html.escape(str(error))}</p>")
    write_file(store.root / PAGE, ("\n".join(parts) + "\n").encode())


def _head(store: MaskStore, figures: dict) -> str:
    names = "".join(f"<th>{word}</th>" for word in ("class", "instances", "in doubt", "images", "pixels", "mean score"))
    rows = "".join(
        f"<tr><td>{_key(colour)} {html.escape(name)}</td><td>{count['instances']}</td><td>{count['in_doubt']}</td>"
        f"<td>{count['images']}</td><td>{count['pixel_share']:.2%}</td><td>{_number(count['mean_score'])}</td></tr>"
        for (name, count), colour in zip(figures["classes"].items(), _colours(len(figures["classes"])), strict=True)
    )
    models = "; ".join(
        f"{html.escape(str(one['name']))}, weights {one['weights_sha256'][:12]}" for one in store.models.values()
    )
    prompts = "; ".join(f"{group.name}: {', '.join(group.prompts)}" for group in store.settings.groups)
    return (
        f'<!doctype html><meta charset="utf-8"><title>Foreground masks</title><style>{_STYLE}</style>'
        f"<h1>Foreground masks, split {html.escape(figures['split'] or 'none')}</h1>"
        f"<p>{figures['finished']} of {figures['images']} images finished. {models}.</p><p>{html.escape(prompts)}</p>"
        f"<table><tr>{names}</tr>{rows}</table>"
        f"<p>{_key(DOUBT)} in doubt, ignored: {figures['ignored_share']:.2%} of the pixels. Background: "
        f"{figures['background_share']:.2%}. Images without any foreground: {figures['images_without_foreground']}.</p>"
    )


def _sample(source: ImageSource, store: MaskStore, key: ImageKey) -> str:
    image = source[key.index].load_image(key.camera)
    labels = read_labels(store.mask_path(key), image.shape[:2])
    instances, size = store.read_instances(key)
    verdicts = compose(instances, size, store.settings).verdicts
    found = "; ".join(_words(one, verdict) for one, verdict in zip(instances, verdicts, strict=True)) or "nothing found"
    return f"{_picture(image)} {_picture(overlay(image, labels))}<p>{found}</p>"


def _words(instance: Instance, verdict: str) -> str:
    text = f"{instance.prompt} {instance.score:.2f}"
    return text if verdict == SURE else f'<span class="doubt">{text} ({verdict})</span>'


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3]: the image dimmed, each group in its colour, doubtful pixels in grey stripes."""
    table = np.zeros((256, 3), np.float32)
    table[1:IGNORE] = np.resize(np.array(COLOURS, np.float32), (IGNORE - 1, 3))
    rows, cols = np.indices(labels.shape)
    stripes = (labels == IGNORE) & ((rows + cols) // max(2, labels.shape[1] // 160) % 2 == 0)
    mixed = np.where((labels == 0)[..., None], 0.45 * image, 0.45 * image + 0.55 * table[labels])
    mixed[labels == IGNORE] = 0.6 * image[labels == IGNORE]
    mixed[stripes] = DOUBT
    return mixed.astype(np.uint8)


def _colours(count: int) -> list[tuple[int, int, int]]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _key(colour: tuple[int, int, int]) -> str:
    return f'<span class="key" style="background:rgb{colour}"></span>'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _picture(image: np.ndarray) -> str:
    height = round(image.shape[0] * WIDTH / image.shape[1])
    small = cv2.resize(image, (WIDTH, max(1, height)), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}">'
