"""Grounding DINO and SAM, transformers' own classes, as one function from an image to instances.

Grounding DINO: arXiv 2303.05499. SAM: arXiv 2304.02643. Together they are Grounded SAM, arXiv 2401.14159.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from transformers.image_transforms import center_to_corners_format
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForZeroShotObjectDetection
from transformers.models.auto.processing_auto import AutoProcessor
from transformers.models.sam.modeling_sam import SamModel
from transformers.models.sam.processing_sam import SamProcessor

from fastdrive_node.errors import ModelError
from fastdrive_node.families.fingerprint import tensors_fingerprint
from fastdrive_training.annotate.compose import Instance
from fastdrive_training.annotate.settings import AnnotateSettings

DETECTORS = ("grounding-dino", "mm-grounding-dino")
SEGMENTERS = ("sam",)
BOXES_AT_ONCE = 32  # of the segmenter: their masks are held at the image's size


@dataclass(frozen=True)
class Detection:
    """A box with the prompt that found it."""

    group: str
    prompt: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in px
    score: float


@dataclass(frozen=True)
class Caption:
    """One text for the detector, and the positions of each prompt's tokens in it."""

    text: str
    groups: tuple[str, ...]  # of each prompt
    prompts: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]


class GroundedSam:
    """A detector and a segmenter, in inference mode.

    Raises:
        ModelError: a model that cannot be loaded, is of another kind, lacks weights, or cannot read the prompts.
    """

    def __init__(self, settings: AnnotateSettings, device: torch.device):
        models = settings.models
        self._settings, self._device = settings.detection, device
        self.detector, self._processor = _load(
            AutoModelForZeroShotObjectDetection,
            AutoProcessor,
            models.detector,
            models.detector_revision,
            DETECTORS,
            device,
        )
        self.segmenter, self._cutter = _load(
            SamModel, SamProcessor, models.segmenter, models.segmenter_revision, SEGMENTERS, device
        )
        self.captions = self._captions(settings)
        self.identity = {
            "detector": _identity(self.detector, models.detector),
            "segmenter": _identity(self.segmenter, models.segmenter),
        }

    @torch.inference_mode()
    def find(self, image: np.ndarray) -> list[Instance]:
        """The instances in an image, uint8 RGB [H, W, 3]; the best score first. Raises ModelError: NaN in an output."""
        return self.find_all([image])[0]

    @torch.inference_mode()
    def find_all(self, images: Sequence[np.ndarray]) -> list[list[Instance]]:
        """As :meth:`find`, of several images; those of one size go through the models as one batch, without padding."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(place)
        results: dict[int, list[Instance]] = {}
        for places in by_size.values():
            results |= zip(places, self._find_alike([images[place] for place in places]), strict=True)
        return [results[place] for place in range(len(images))]

    def _find_alike(self, images: list[np.ndarray]) -> list[list[Instance]]:
        """Of images of one size."""
        found = self.detect_all(images)
        searched = [place for place, boxes in enumerate(found) if boxes]
        results: list[list[Instance]] = [[] for _ in images]
        if not searched:
            return results
        embeddings = self._embed([images[place] for place in searched])
        for number, place in enumerate(searched):
            boxes = [one.box for one in found[place]]
            masks, qualities = self.segment(images[place], boxes, embeddings[number : number + 1])
            results[place] = [
                Instance(one.group, one.prompt, one.box, one.score, quality, mask)
                for one, mask, quality in zip(found[place], masks, qualities, strict=True)
            ]
        return results

    def _embed(self, images: list[np.ndarray]) -> torch.Tensor:
        """The segmenter's embeddings [B, C, h, w] of images of one size."""
        pixels = self._cutter(images=images, return_tensors="pt")["pixel_values"]
        return self.segmenter.get_image_embeddings(pixels.to(self._device))

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> list[Detection]:
        """As :meth:`detect_all`, of one image."""
        return self.detect_all([image])[0]

    @torch.inference_mode()
    def detect_all(self, images: list[np.ndarray]) -> list[list[Detection]]:
        """Of each image, all of one size, the boxes whose score is high enough, without double ones, the best first.

        A box belongs to the prompt with the highest probability of a token (as in the detector's own decoding); that
        is its score.
        """
        by_caption = [self._detect(images, caption) for caption in self.captions]
        return [self._best([one for found in each for one in found]) for each in zip(*by_caption, strict=True)]

    def _best(self, found: list[Detection]) -> list[Detection]:
        found.sort(key=lambda one: (-one.score, one.box))
        groups = dict.fromkeys(one.group for one in found)
        kept = [one for group in groups for one in self._distinct([one for one in found if one.group == group])]
        kept.sort(key=lambda one: (-one.score, one.box))
        return kept[: self._settings.max_detections]

    @torch.inference_mode()
    def segment(
        self, image: np.ndarray, boxes: list[tuple], embedding: torch.Tensor | None = None
    ) -> tuple[list[np.ndarray], list[float]]:
        """A mask (bool [H, W]) and its estimated IoU for each box (x0, y0, x1, y1 in px).

        ``embedding`` [1, C, h, w] is the segmenter's of the image, where it is there.
        """
        inputs = self._cutter(images=image, input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        if embedding is None:
            embedding = self.segmenter.get_image_embeddings(inputs["pixel_values"].to(self._device))
        prompts = inputs["input_boxes"].to(self._device, torch.float32)
        masks, qualities = [], []
        for start in range(0, len(boxes), BOXES_AT_ONCE):
            part = prompts[:, start : start + BOXES_AT_ONCE]
            output = self.segmenter(image_embeddings=embedding, input_boxes=part, multimask_output=False)
            _require_numbers(output.pred_masks, "the segmenter's masks")
            whole = self._cutter.post_process_masks([output.pred_masks[0].float()], *sizes)[0]
            masks += list(whole[:, 0].cpu().numpy())
            qualities += [round(value, 4) for value in output.iou_scores[0, :, 0].float().clamp(0, 1).tolist()]
        return masks, qualities

    def _detect(self, images: list[np.ndarray], caption: Caption) -> list[list[Detection]]:
        """What one caption finds in each image."""
        texts = [caption.text] * len(images)
        inputs = self._processor(images=images, text=texts, return_tensors="pt").to(self._device)
        output = self.detector(**inputs)
        _require_numbers(output.logits, "the detector's scores")
        height, width = images[0].shape[:2]
        return [
            self._decode(logits.float(), boxes.float(), caption, (height, width))
            for logits, boxes in zip(output.logits, output.pred_boxes, strict=True)
        ]

    def _decode(self, logits: torch.Tensor, boxes_of: Any, caption: Caption, size: tuple[int, int]) -> list[Detection]:
        """Detections of one image from logits [queries, positions] and boxes [queries, 4] (center and size, 0..1)."""
        tokens = logits.sigmoid()
        by_prompt = torch.stack([tokens[:, list(places)].amax(1) for places in caption.positions])
        scores, best = (values.cpu().double().numpy() for values in by_prompt.max(0))
        scores, best = scores.round(4), best.astype(int)
        height, width = size
        corners = cast(torch.Tensor, center_to_corners_format(boxes_of))
        corners = corners.clamp(0, 1).cpu().double().numpy()
        boxes = np.round(corners * [width, height, width, height], 1)
        large = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
        return [
            Detection(caption.groups[best[q]], caption.prompts[best[q]], tuple(boxes[q].tolist()), float(scores[q]))
            for q in np.flatnonzero(large & (scores >= self._settings.keep)).tolist()
        ]

    def _distinct(self, found: list[Detection]) -> list[Detection]:
        """Non-maximum suppression in one group."""
        boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in (one.box for one in found)]
        scores = [one.score for one in found]
        kept = cv2.dnn.NMSBoxes(boxes, scores, score_threshold=0.0, nms_threshold=self._settings.nms_iou)
        return [found[index] for index in sorted(np.asarray(kept).ravel().tolist())]

    def _captions(self, settings: AnnotateSettings) -> list[Caption]:
        """The prompts as texts, each prompt ended by a full stop, as the detector was trained."""
        pairs = [(group.name, prompt) for group in settings.groups for prompt in group.prompts]
        if settings.detection.one_caption:
            return [self._caption(pairs)]
        return [self._caption([pair for pair in pairs if pair[0] == group.name]) for group in settings.groups]

    def _caption(self, pairs: list[tuple[str, str]]) -> Caption:
        text, spans = "", []
        for _, prompt in pairs:
            spans.append((len(text), len(text) + len(prompt)))
            text += f"{prompt}. "
        text = text.rstrip()
        encoded = self._processor.tokenizer(text, return_offsets_mapping=True)
        limit = self.detector.config.max_text_len
        if len(encoded["input_ids"]) > limit:
            raise ModelError(
                f"prompts: {len(encoded['input_ids'])} tokens, the detector reads {limit}: "
                "use fewer prompts, or detection.one_caption=false"
            )
        unknown = self._processor.tokenizer.unk_token_id
        positions = []
        for (start, stop), (_, prompt) in zip(spans, pairs, strict=True):
            places = [k for k, (a, b) in enumerate(encoded["offset_mapping"]) if a < b and start <= a and b <= stop]
            if not places or any(encoded["input_ids"][k] == unknown for k in places):
                raise ModelError(f"prompts: the detector's tokenizer does not know {prompt!r}; use other words")
            positions.append(tuple(places))
        groups, prompts = zip(*pairs, strict=True)
        return Caption(text, groups, prompts, tuple(positions))


def _load(model_class, processor_class, name: str, revision: str | None, kinds: tuple[str, ...], device: torch.device):
    """A model in evaluation mode and its processor, from safetensors and without code of the repository."""
    source = {"revision": revision, "trust_remote_code": False} if revision else {"trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(name, **source).model_type
        if kind not in kinds:
            raise ModelError(f"{name}: is a {kind}, not a {' or '.join(kinds)}; name another model")
        processor = processor_class.from_pretrained(name, **source)
        model, report = model_class.from_pretrained(name, use_safetensors=True, output_loading_info=True, **source)
    except (OSError, ValueError, RuntimeError) as error:
        local = Path(name).is_absolute() or Path(name).exists()
        fix = "the folder needs config, safetensors and processor" if local else f"fetch it with `hf download {name}`"
        raise ModelError(f"{name}: cannot be loaded ({error}); {fix}") from None
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise ModelError(f"{name}: the file lacks {lacking[0]} ({len(lacking)} weights in all); fetch it again")
    return model.eval().requires_grad_(False).to(device), processor


def _identity(model, name: str) -> dict:
    return {
        "name": name,
        "class": type(model).__name__,
        "commit": getattr(model.config, "_commit_hash", None),
        "weights_sha256": tensors_fingerprint(model.state_dict().items()),
    }


def _require_numbers(values: torch.Tensor, what: str) -> None:
    if bool(torch.isnan(values).any()):
        raise ModelError(f"{what} hold NaN: the weights are broken, fetch the model again")
