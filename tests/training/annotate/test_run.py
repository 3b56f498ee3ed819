"""Whole annotations: resumed, sharded, composed anew, and refused where they do not belong together."""

from __future__ import annotations

import gzip
import json
import re
import shutil

import cv2
import numpy as np
import pytest

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_training.annotate.run import Annotation, raise_failures
from fastdrive_training.annotate.settings import Group
from fastdrive_training.annotate.store import MaskStore
from fastdrive_training.commands import annotate as command
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.sampling import Shard
from tests.training.annotate.annotate_fixtures import GROUPS, BrightModels, settings, write_models
from tests.training.tiny_nuscenes import write_dataset

SIZE = (60, 120)
IMAGES = 2 * 2 * len(CAMERAS)  # of the train split


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three scenes of two keyframes; the last is the val split. The right third of each image is bright."""
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=3, keyframes=2, size=SIZE, masks=False)


@pytest.fixture()
def source(written):
    return open_source(written, "train")


def annotate(source, out, models=None, shard=None, finish=True, **options):
    """One run; returns what it did and the figures."""
    used = options.pop("settings", settings())
    annotation = Annotation(source, out, used, shard or Shard(), lambda: models or BrightModels(), **options)
    outcome = annotation.run()
    return outcome, annotation.finish(outcome, samples=0) if finish else None


def refuse_to_load():
    raise AssertionError("the models were loaded")


def annotate_without_models(source, out, **options):
    annotation = Annotation(source, out, options.pop("settings", settings()), Shard(), refuse_to_load, **options)
    outcome = annotation.run()
    return outcome, annotation.finish(outcome, samples=0)


def masks(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "masks").rglob("*.png"))}


def test_masks_manifest_and_counts_of_a_whole_run(source, tmp_path):
    _, figures = annotate(source, tmp_path / "m")
    assert (figures["images"], figures["finished"], figures["complete"]) == (IMAGES, IMAGES, True)
    road = figures["classes"]["road"]
    assert (road["instances"], road["in_doubt"], road["images"]) == (IMAGES, 0, IMAGES)
    assert road["mean_score"] == pytest.approx(0.9)
    assert figures["classes"]["human"] == {
        "instances": 0,
        "in_doubt": 0,
        "images": 0,
        "pixels": 0,
        "pixel_share": 0.0,
        "mean_score": None,
    }
    labels = cv2.imread(str(tmp_path / "m" / "masks" / "CAM_BACK" / "s0k1.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == SIZE and labels[:, 90:].min() == labels[:, 90:].max() == 1 and not labels[:, :70].any()
    assert road["pixels"] == pytest.approx(IMAGES * (labels == 1).sum(), rel=0.02)  # JPEG blurs the border
    assert figures["ignored_share"] + figures["background_share"] + road["pixel_share"] == pytest.approx(1)
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert manifest["source"]["split"] == "train" and manifest["source"]["items"] == 4
    assert manifest["detection"]["prompts"]["traffic_sign"] == ["traffic sign", "traffic light"]
    assert manifest["models"]["detector"]["weights_sha256"] == "a" * 64
    assert manifest["composition"]["accept"] == 0.35


def test_index_lists_every_image_in_order_with_its_checksum(source, tmp_path):
    annotate(source, tmp_path / "m")
    lines = [json.loads(line) for line in (tmp_path / "m" / "images.jsonl").read_text().splitlines()]
    assert [(line["name"], line["camera"]) for line in lines] == [
        (name, camera) for name in ("s0k0", "s0k1", "s1k0", "s1k1") for camera in CAMERAS
    ]
    assert all(re.fullmatch(r"[0-9a-f]{64}", line["mask_sha256"]) for line in lines)


def test_confidence_of_each_instance_is_kept(source, tmp_path):
    annotate(source, tmp_path / "m")
    content = gzip.decompress((tmp_path / "m" / "instances" / "CAM_FRONT" / "s0k0.json.gz").read_bytes())
    stored = json.loads(content)
    assert stored["size"] == list(SIZE)
    (row,) = stored["instances"]
    assert (row["group"], row["prompt"], row["score"], row["quality"]) == ("road", "road", 0.9, 0.95)


def test_finished_images_are_skipped_without_loading_models(source, tmp_path):
    annotate(source, tmp_path / "m")
    before = masks(tmp_path / "m")
    outcome, figures = annotate_without_models(source, tmp_path / "m")
    assert outcome.skipped == IMAGES and figures["complete"]
    assert masks(tmp_path / "m") == before


def test_run_that_was_cut_off_goes_on(source, tmp_path):
    class Breaking(BrightModels):
        def find(self, image):
            if self.images == 7:
                raise KeyboardInterrupt
            return super().find(image)

    with pytest.raises(KeyboardInterrupt):
        annotate(source, tmp_path / "m", Breaking())
    assert not (tmp_path / "m" / "images.jsonl").exists()
    models = BrightModels()
    outcome, figures = annotate(source, tmp_path / "m", models)
    assert (outcome.skipped, models.images, figures["complete"]) == (7, IMAGES - 7, True)
    annotate(source, tmp_path / "whole")
    assert masks(tmp_path / "m") == masks(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "removed", "other"])
def test_damaged_mask_is_made_again_without_the_models(source, tmp_path, damage):
    annotate(source, tmp_path / "m")
    before = masks(tmp_path / "m")
    path = tmp_path / "m" / "masks" / "CAM_BACK" / "s1k0.png"
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else (path.parent / "s1k1.png").read_bytes() + b"x")
    outcome, figures = annotate_without_models(source, tmp_path / "m")
    assert (outcome.composed, outcome.skipped, figures["complete"]) == (1, IMAGES - 1, True)
    assert masks(tmp_path / "m") == before


def test_damaged_instances_go_through_the_models_again(source, tmp_path):
    annotate(source, tmp_path / "m")
    (tmp_path / "m" / "instances" / "CAM_BACK" / "s1k0.json.gz").write_bytes(b"broken")
    models = BrightModels()
    outcome, _ = annotate(source, tmp_path / "m", models)
    assert (models.images, outcome.skipped) == (1, IMAGES - 1)


def test_journal_line_that_was_cut_off_costs_one_image(source, tmp_path):
    annotate(source, tmp_path / "m")
    journal = tmp_path / "m" / "journal" / "0-of-1.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    models = BrightModels()
    outcome, figures = annotate(source, tmp_path / "m", models)
    assert (models.images, outcome.skipped, figures["complete"]) == (1, IMAGES - 1, True)
    assert annotate_without_models(source, tmp_path / "m")[0].skipped == IMAGES


def test_shards_make_together_what_one_run_makes(source, tmp_path):
    annotate(source, tmp_path / "whole")
    models = [BrightModels() for _ in range(3)]
    figures = [annotate(source, tmp_path / "m", models[k], Shard(k, 3))[1] for k in (2, 0, 1)]
    assert [one.images for one in models] == [IMAGES // 3] * 3
    assert [one["complete"] for one in figures] == [False, False, True]
    assert masks(tmp_path / "m") == masks(tmp_path / "whole")
    for name in ("manifest.json", "images.jsonl"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_shards_of_several_folders_can_be_put_together(source, tmp_path):
    for shard in (Shard(0, 2), Shard(1, 2)):
        annotate(source, tmp_path / f"m{shard.index}", shard=shard)
    shutil.copytree(tmp_path / "m1", tmp_path / "m0", dirs_exist_ok=True)
    outcome, figures = annotate_without_models(source, tmp_path / "m0")
    assert outcome.skipped == IMAGES and figures["complete"]


def test_more_shards_may_finish_what_fewer_began(source, tmp_path):
    annotate(source, tmp_path / "m", shard=Shard(0, 2))
    models = BrightModels()
    for k in range(4):
        _, figures = annotate(source, tmp_path / "m", models, Shard(k, 4))
    assert models.images == IMAGES // 2 and figures["complete"]


def test_limit_takes_items_spread_over_the_source_and_leaves_the_rest(source, tmp_path):
    outcome, figures = annotate(source, tmp_path / "m", limit=2)
    assert outcome.found == 2 * len(CAMERAS) and not figures["complete"]
    assert {path.stem for path in (tmp_path / "m" / "masks").rglob("*.png")} == {"s0k0", "s1k0"}
    assert annotate(source, tmp_path / "m")[1]["complete"]


def test_another_split_is_refused(source, written, tmp_path):
    annotate(source, tmp_path / "m", limit=1)
    with pytest.raises(InputError, match="holds masks of split train, not of val: splits do not mix"):
        annotate(open_source(written, "val"), tmp_path / "m")


def test_files_of_another_split_do_not_count_as_done(source, written, tmp_path):
    annotate(source, tmp_path / "train")
    annotate(open_source(written, "val"), tmp_path / "val")
    for part in ("masks", "instances", "journal"):
        shutil.copytree(tmp_path / "val" / part, tmp_path / "m" / part, dirs_exist_ok=True)
    shutil.copy(tmp_path / "train" / "manifest.json", tmp_path / "m")
    journal = tmp_path / "m" / "journal" / "0-of-1.jsonl"  # lines that claim to be of images of train
    journal.write_text(journal.read_text().replace("s2k", "s0k"))
    for path in [*(tmp_path / "m").rglob("s2k*")]:
        path.rename(path.with_name(path.name.replace("s2k", "s0k")))
    models = BrightModels()
    outcome, _ = annotate(source, tmp_path / "m", models)
    assert (models.images, outcome.skipped) == (IMAGES, 0)


def test_other_prompts_weights_images_or_cameras_are_refused(source, written, tmp_path):
    annotate(source, tmp_path / "m", limit=1)
    other = settings(groups=(*GROUPS[:3], Group("human", ("rider",), max_area=1.0)))
    with pytest.raises(InputError, match=r"another detection \(prompts: human: \['person'\] before, \['rider'\] now\)"):
        annotate(source, tmp_path / "m", settings=other)
    with pytest.raises(InputError, match="another labels"):
        annotate(source, tmp_path / "m", settings=settings(groups=GROUPS[::-1]))
    with pytest.raises(InputError, match="begun with other weights of the detector"):
        annotate(source, tmp_path / "m", BrightModels("b"))
    with pytest.raises(InputError, match=r"another source \(cameras"):
        annotate(open_source(written, "train", cameras=("CAM_FRONT",)), tmp_path / "m")


def test_new_thresholds_need_recompose_and_no_models(source, tmp_path):
    annotate(source, tmp_path / "m")
    stricter = settings(accept=0.95)
    with pytest.raises(InputError, match=r"another composition \(accept: 0.35 before, 0.95 now\); --recompose"):
        annotate(source, tmp_path / "m", settings=stricter)
    outcome, figures = annotate_without_models(source, tmp_path / "m", settings=stricter, recompose=True)
    assert outcome.composed == IMAGES and figures["complete"]
    assert figures["classes"]["road"]["instances"] == 0 and figures["classes"]["road"]["in_doubt"] == IMAGES
    labels = cv2.imread(str(tmp_path / "m" / "masks" / "CAM_BACK" / "s0k1.png"), cv2.IMREAD_UNCHANGED)
    assert (labels[:, 90:] == 255).all()
    annotate(source, tmp_path / "direct", settings=stricter)
    assert masks(tmp_path / "m") == masks(tmp_path / "direct")


def test_index_does_not_outlive_new_thresholds(source, tmp_path):
    annotate(source, tmp_path / "m")
    half = Annotation(source, tmp_path / "m", settings(accept=0.95), Shard(0, 2), refuse_to_load, recompose=True)
    figures = half.finish(half.run(), samples=0)
    assert (figures["finished"], figures["complete"]) == (IMAGES // 2, False)
    assert not (tmp_path / "m" / "images.jsonl").exists()


def test_unreadable_image_is_named_and_the_others_are_done(tmp_path):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=2, size=SIZE, masks=False)
    broken = root / "samples" / "CAM_BACK" / "s0k0.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    outcome, figures = annotate(open_source(root, "train"), tmp_path / "m")
    assert (figures["finished"], figures["failed"], figures["complete"]) == (11, 1, False)
    with pytest.raises(InputError, match=r"1 images could not be read.*CAM_BACK/s0k0\.jpg"):
        raise_failures(outcome)
    broken.write_bytes(whole)
    assert annotate(open_source(root, "train"), tmp_path / "m")[1]["complete"]


def test_folder_of_something_else_and_folder_in_the_source_are_refused(source, written, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty and holds no manifest\.json"):
        annotate(source, tmp_path)
    with pytest.raises(InputError, match="lies in the dataset"):
        annotate(source, written / "masks")
    for text in ("{", "[]", '{"source": {"split": "train"}}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"manifest\.json"):
            annotate(source, tmp_path)


def test_command_annotates_with_real_model_classes_and_writes_counts_by_class(written, tmp_path, capsys):
    models = write_models(tmp_path / "models")
    config = tmp_path / "groups.yaml"
    config.write_text(
        "groups:\n- {name: road, prompts: [road], max_area: 1.0}\n- {name: vehicle, prompts: [car], max_area: 1.0}\n"
        "composition: {min_quality: 0.0}\n"
    )
    arguments = ["annotate", str(written), str(tmp_path / "m"), "--split", "val", "--config", str(config)]
    arguments += ["--detector", str(models / "dino"), "--segmenter", str(models / "sam"), "--device", "cpu"]
    assert main([*arguments, "--samples", "3", "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["complete"] and figures["annotated"] == 12
    assert set(figures["classes"]) == {"road", "vehicle"}
    assert sum(count["instances"] for count in figures["classes"].values()) > 0
    page = (tmp_path / "m" / "samples.html").read_text()
    assert page.count("<img") == 6 and "http" not in page and "CAM_" in page
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert "annotating" in capsys.readouterr().err


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(written, tmp_path, monkeypatch, capsys):
    arguments = ["annotate", str(written), str(tmp_path / "m"), "--split", "val", "--samples", "0", "--device", "cpu"]
    monkeypatch.setattr(command, "load_models", lambda *_: BrightModels())
    write, done = MaskStore.write, []

    def interrupted(store, image):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(image)
        write(store, image)

    with monkeypatch.context() as patch:
        patch.setattr(MaskStore, "write", interrupted)
        assert main(arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "fastdrive annotate: interrupted: finished images are kept; give the same command again, and it goes on"
    )
    assert main([*arguments, "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["skipped"], figures["annotated"], figures["complete"]) == (5, 7, True)


def test_command_needs_a_split_where_there_are_several(written, tmp_path, capsys):
    assert main(["annotate", str(written), str(tmp_path / "m")]) == 1
    assert "holds the splits train, val (splits.json); name one of them" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "0/0"])
def test_wrong_shard_is_wrong_usage(written, tmp_path, shard):
    with pytest.raises(SystemExit) as exit_:
        main(["annotate", str(written), str(tmp_path / "m"), "--shard", shard])
    assert exit_.value.code == 2


def test_images_are_annotated_through_every_pixel_size(tmp_path):
    for number, size in enumerate(((40, 80), (30, 30))):
        image = np.full((*size, 3), 240, np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), image)
    _, figures = annotate(open_source(tmp_path / "photos"), tmp_path / "m")
    assert figures["split"] is None and figures["complete"]
    assert figures["classes"]["road"]["pixels"] == 40 * 80 + 30 * 30


def test_batches_give_the_files_of_single_images(source, tmp_path):
    annotate(source, tmp_path / "single")
    sizes, models = [], BrightModels()
    find_all = models.find_all
    models.find_all = lambda images: sizes.append(len(images)) or find_all(images)
    outcome, figures = annotate(source, tmp_path / "batched", models, batch=5)
    assert sizes == [5, 5, 5, 5, 4] and (outcome.found, figures["complete"]) == (24, True)
    assert masks(tmp_path / "batched") == masks(tmp_path / "single")
    assert (tmp_path / "batched" / "images.jsonl").read_bytes() == (tmp_path / "single" / "images.jsonl").read_bytes()
