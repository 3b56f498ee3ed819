"""An annotation from a source to a folder of masks: which images, in which order, and the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastdrive_node.cluster import Cluster, map_items
from fastdrive_node.errors import InputError
from fastdrive_training.annotate.image_files import ImageKey
from fastdrive_training.annotate.models import GroundedSam
from fastdrive_training.annotate.page import write_page
from fastdrive_training.annotate.settings import AnnotateSettings
from fastdrive_training.annotate.store import COMPOSE, DONE, MaskStore
from fastdrive_training.annotate.worker import AnnotationWorker, ImageTask, LoadedModels, UnreadableImage
from fastdrive_training.data.adapters import ImageSource
from fastdrive_training.data.sampling import Shard, evenly_spaced

BATCHES_AT_ONCE = 8  # that a worker of a cluster gets


@dataclass
class AnnotationCounts:
    """What one run did."""

    found: int = 0  # images that went through the models
    composed: int = 0  # masks made again from stored instances
    skipped: int = 0  # finished before
    failed: list[str] = field(default_factory=list)  # the reason of each image that could not be read
    seconds: float = 0.0  # from the first models that were loaded


class Annotation:
    """One run over one shard: every count-th image, so that the parts are alike.

    Args:
        limit: so many items only, evenly spread; the rest stays for a later run.
        batch: images that go through the models at a time.
        load_models: called once in each worker, and only where an image needs the models.
        cluster: whose workers annotate; None: this process.

    Raises:
        InputError: ``out`` lies in the source; as :class:`MaskStore`.
    """

    def __init__(
        self,
        source: ImageSource,
        out: Path,
        settings: AnnotateSettings,
        shard: Shard,
        load_models: Callable[[], GroundedSam],
        recompose: bool = False,
        limit: int | None = None,
        batch: int = 1,
        cluster: Cluster | None = None,
    ):
        if out.resolve().is_relative_to(source.root.resolve()):
            raise InputError(f"{out}: lies in the dataset {source.root}; choose a folder outside of it for the masks")
        self.source, self.settings = source, settings
        self.store = MaskStore(out, source, settings, str(shard), recompose)
        self.keys = [
            ImageKey(index, name, camera) for index, name in enumerate(source.names) for camera in source.cameras
        ]
        chosen = set(evenly_spaced(len(source), limit).tolist())
        keys = [key for key in self.keys if key.index in chosen]
        self._mine = keys[shard.index :: shard.count]
        self._load_models, self._batch, self._cluster = load_models, batch, cluster

    def run(self) -> AnnotationCounts:
        """Do what is not done. Images that cannot be read are counted and passed over.

        Raises ModelError where the models cannot be loaded or fail, InputError where they are not the manifest's.
        """
        outcome, started, loaded = AnnotationCounts(), time.perf_counter(), False
        make = partial(AnnotationWorker, self.source, self.settings, self._load_models, self._batch)
        with tqdm(total=len(self._mine), desc="annotating", unit="image") as bar:
            tasks = self._tasks(outcome, bar)
            for result in map_items(make, tasks, self._cluster, BATCHES_AT_ONCE * self._batch):
                if isinstance(result, LoadedModels):
                    self.store.set_models(result.identity)
                    started = started if loaded else time.perf_counter()
                    loaded = True
                    continue
                if isinstance(result, UnreadableImage):
                    outcome.failed.append(result.reason)
                else:
                    self.store.write(result)
                    outcome.found += result.instances is not None
                    outcome.composed += result.instances is None
                bar.update()
                bar.set_postfix(skipped=outcome.skipped, failed=len(outcome.failed))
        outcome.seconds = time.perf_counter() - started
        return outcome

    def finish(self, outcome: AnnotationCounts, samples: int) -> dict:
        """Write the index (where every image is finished) and the page; returns the figures over all shards."""
        lines = self.store.finish(self.keys)
        figures = {
            "split": self.source.split,
            "images": len(self.keys),
            "finished": len(lines),
            "complete": len(lines) == len(self.keys),
            "annotated": outcome.found,
            "recomposed": outcome.composed,
            "skipped": outcome.skipped,
            "failed": len(outcome.failed),
            "images_per_s": outcome.found / outcome.seconds if outcome.seconds else 0.0,
            **class_counts(lines, self.settings),
        }
        if samples and lines:
            finished = {(line["camera"], line["name"]) for line in lines}
            keys = [key for key in self.keys if (key.camera, key.name) in finished]
            places = np.random.default_rng(0).permutation(len(keys))[:samples]  # all cameras alike
            write_page(self.source, self.store, [keys[place] for place in sorted(places)], figures)
        return figures

    def _tasks(self, outcome: AnnotationCounts, bar: tqdm) -> Iterator[ImageTask]:
        for key in self._mine:
            state = self.store.state(key)
            if state == DONE:
                outcome.skipped += 1
                bar.update()
            else:
                yield ImageTask(key, self.store.stored_instances(key) if state == COMPOSE else None)


def class_counts(lines: list[dict], settings: AnnotateSettings) -> dict:
    """Instances and pixels by class over the lines of finished images; fractions are of all their pixels."""
    total = sum(sum(line["pixels"].values()) for line in lines) or 1
    classes = {}
    for group in settings.groups:
        counts = [line["instances"][group.name] for line in lines]
        sure = sum(count["sure"] for count in counts)
        pixels = sum(line["pixels"][group.name] for line in lines)
        classes[group.name] = {
            "instances": sure,
            "in_doubt": sum(count["doubt"] for count in counts),
            "images": sum(count["sure"] > 0 for count in counts),
            "pixels": pixels,
            "pixel_share": pixels / total,
            "mean_score": sum(count["score"] for count in counts) / sure if sure else None,
        }
    return {
        "classes": classes,
        "ignored_share": sum(line["pixels"]["ignore"] for line in lines) / total,
        "background_share": sum(line["pixels"]["background"] for line in lines) / total,
        "images_without_foreground": sum(
            not any(line["pixels"][group.name] for group in settings.groups) for line in lines
        ),
    }


def raise_failures(outcome: AnnotationCounts) -> None:
    """Raises InputError where images could not be read, with the first reason."""
    if outcome.failed:
        raise InputError(
            f"{len(outcome.failed)} images could not be read, the others are done; fix them and run again. "
            f"The first: {outcome.failed[0]}"
        )
