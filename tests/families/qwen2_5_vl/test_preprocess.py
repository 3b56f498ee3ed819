import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from fastdrive_node.errors import InputError
from fastdrive_node.families.images import resize
from fastdrive_node.families.qwen2_5_vl.preprocess import normalise, patchify


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(112, 224), (252, 392), (28, 56)])
def test_patches_equal_those_of_qwens_image_processor(size):
    images = [random_image(*size, seed=seed) for seed in range(3)]
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 10**8})
    expected = processor(images=images, return_tensors="pt")
    ours = patchify(normalise(resize(images, size)))
    assert expected["image_grid_thw"].tolist() == [[1, size[0] // 14, size[1] // 14]] * 3
    torch.testing.assert_close(ours.flatten(0, 1), expected["pixel_values"], atol=1e-5, rtol=0)


def test_an_image_of_the_wanted_size_is_not_resampled():
    image = random_image(112, 224)
    assert np.array_equal(resize([image], (112, 224))[0].permute(1, 2, 0).numpy(), image)


def test_images_of_different_sizes_become_one_batch():
    batch = resize([random_image(900, 1600), random_image(168, 280), random_image(112, 224)], (112, 224))
    assert batch.shape == (3, 3, 112, 224) and batch.dtype == torch.uint8


def test_downscaling_averages_fine_patterns_away():
    stripes = np.zeros((448, 896, 3), np.uint8)
    stripes[:, ::2] = 200
    inner = resize([stripes], (112, 224))[0, :, 4:-4, 4:-4].float()
    assert (inner - 100).abs().max() <= 2


def test_resizing_is_antialiased_bicubic_as_in_pillow():
    image = random_image(900, 1600)
    expected = np.asarray(Image.fromarray(image).resize((224, 112), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(resize([image], (112, 224))[0].permute(1, 2, 0).numpy() - expected).max() <= 1


def test_a_view_with_negative_strides_is_read_in_its_own_order():
    image = random_image(112, 224)
    flipped = image[::-1, :, ::-1]
    assert np.array_equal(resize([flipped], (112, 224))[0].permute(1, 2, 0).numpy(), flipped)


@pytest.mark.parametrize(
    "image",
    [np.zeros((10, 10), np.uint8), np.zeros((10, 10, 4), np.uint8), np.zeros((10, 10, 3), np.float32),
     np.zeros((0, 10, 3), np.uint8)],
)  # fmt: skip
def test_what_is_no_rgb_image_is_refused(image):
    with pytest.raises(InputError, match="image 1: expected uint8 RGB"):
        resize([random_image(112, 224), image], (112, 224))
