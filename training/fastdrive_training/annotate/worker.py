"""From images to the content of files: instances, mask and counts. What a worker of an annotation does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_training.annotate.compose import compose
from fastdrive_training.annotate.image_files import AnnotatedImage, ImageKey, pack_instances, unpack_instances
from fastdrive_training.annotate.models import GroundedSam
from fastdrive_training.annotate.settings import AnnotateSettings
from fastdrive_training.data.adapters import ImageSource
from fastdrive_training.data.adapters.base import Item
from fastdrive_training.data.masks import size_of
from fastdrive_training.data.sampling import read_ahead


@dataclass(frozen=True)
class ImageTask:
    """An image, and its stored instances where only the mask must be made; None where the models are needed."""

    key: ImageKey
    instances: bytes | None = None

    def __str__(self) -> str:
        return f"{self.key.name} {self.key.camera}"


@dataclass(frozen=True)
class UnreadableImage:
    """An image that was passed over, and why."""

    key: ImageKey
    reason: str


@dataclass(frozen=True)
class LoadedModels:
    """The models of a worker, told before its first image that needs them."""

    identity: dict


class AnnotationWorker:
    """Annotates images, ``batch`` of them at a time.

    Args:
        load_models: called once, and only where an image needs the models.
    """

    def __init__(
        self, source: ImageSource, settings: AnnotateSettings, load_models: Callable[[], GroundedSam], batch: int
    ):
        self._source, self._settings, self._load_models, self._batch = source, settings, load_models, batch
        self._models: GroundedSam | None = None
        self._item: tuple[int, Item] | None = None  # the last one, with its position

    def __call__(self, tasks: Iterable[ImageTask]) -> Iterator[AnnotatedImage | UnreadableImage | LoadedModels]:
        """Raises ModelError where the models cannot be loaded or fail."""
        waiting: list[tuple[ImageTask, np.ndarray]] = []  # for the models
        for task, image in read_ahead((task, self._read(task)) for task in tasks):
            if isinstance(image, UnreadableImage):
                yield image
            elif image is None:
                yield self._compose(task)
            else:
                waiting.append((task, image))
            if len(waiting) == self._batch:
                yield from self._find(waiting)
                waiting = []
        if waiting:
            yield from self._find(waiting)

    def _read(self, task: ImageTask) -> np.ndarray | UnreadableImage | None:
        if task.instances is not None:
            return None
        index = task.key.index
        try:
            if self._item is None or self._item[0] != index:
                self._item = index, self._source[index]
            return self._item[1].load_image(task.key.camera)
        except InputError as error:
            return UnreadableImage(task.key, str(error))

    def _compose(self, task: ImageTask) -> AnnotatedImage:
        assert task.instances is not None
        instances, size = unpack_instances(task.instances)
        made = compose(instances, size, self._settings)
        return AnnotatedImage.of(task.key, None, instances, made, self._settings)

    def _find(self, batch: list[tuple[ImageTask, np.ndarray]]) -> Iterator[AnnotatedImage | LoadedModels]:
        if self._models is None:
            self._models = self._load_models()
            yield LoadedModels(self._models.identity)
        found = self._models.find_all([image for _, image in batch])
        for (task, image), instances in zip(batch, found, strict=True):
            size = size_of(image)
            made = compose(instances, size, self._settings)
            yield AnnotatedImage.of(task.key, pack_instances(instances, size), instances, made, self._settings)
