"""Shared by all report pages: escaping templates, embedded images and atomic writes."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from fastdrive_node.files import write_atomically
from fastdrive_training.reports.charts import printable
from fastdrive_training.reports.pruner_run.run_folder import ReportError

SHARED = "fastdrive_training.reports"  # the package with the style sheet of all pages


def render_template(package: str, name: str, **context: Any) -> str:
    """A page from a template of ``package``, which may include those beside this module. Text is escaped."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(place, ".") for place in dict.fromkeys((package, SHARED))]),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**context)


def write_text(path: Path, text: str, option: str = "--out") -> Path:
    """Write a page by one rename; returns its path.

    Args:
        option: of the command that names the file, for the error.

    Raises:
        ReportError: it cannot be written.
    """
    try:
        with write_atomically(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error.strerror}); give another file with {option}") from error
    return path


def image_address(image: np.ndarray, kind: str = "webp", **options: Any) -> str:
    """An image, uint8 RGB [H, W, 3] or grey [H, W], as a ``data:`` address; ``options`` are Pillow's for saving."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
