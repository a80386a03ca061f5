"""Scattering features: against a slow transform in the image's own domain, fixed, each image by itself."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.models.scatter import (
    FEATURES,
    LOCAL_FEATURES,
    MOST_CELLS,
    ORIENTATIONS,
    PixelScatter,
    Scatter,
    scattering,
)

torch.set_num_threads(1)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def wavelet(scale: int, orientation: int, reach: int) -> NDArray[np.complex128]:
    """The Morlet wavelet of Bruna and Mallat at whole pixels: a bump of width s along the wave and 2 s across, times a
    wave of frequency 3 pi / 4 / 2^scale, less what makes its sum 0.
    """
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(float)
    angle, width, frequency = math.pi * orientation / 8, 0.8 * 2**scale, 0.75 * math.pi / 2**scale
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    bump = np.exp(-(along**2 + across**2 / 4) / (2 * width**2)) / (2 * math.pi * 2 * width**2)
    wave = bump * np.exp(1j * frequency * along)
    return wave - bump * (wave.sum() / bump.sum())


def circular(image: NDArray[np.float64], kernel: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Modulus of the convolution on a torus, pixel by pixel."""
    reach = kernel.shape[0] // 2
    total = np.zeros(image.shape, complex)
    for (row, column), value in np.ndenumerate(kernel):
        total += value * np.roll(image, (row - reach, column - reach), axis=(0, 1))
    return np.abs(total)


def test_features_are_local_means_of_wavelet_moduli() -> None:
    """An image of 28 pixels is continued to 40 by its mirror image; the coarse scale is taken at every second pixel."""
    image = noise(28, 28, dtype=torch.float64).numpy()
    whole = np.pad(image, 6, mode="symmetric")
    found = scattering(torch.from_numpy(image)[None, None], (7, 7))[0].numpy()
    place = np.arange(40) - 6
    weights = np.exp(-(((place - (4 * np.arange(7)[:, None] + 1.5)) / 3.2) ** 2) / 2)

    def mean(maps: NDArray[np.float64], step: int) -> NDArray[np.float64]:
        own = weights[:, ::step] / weights[:, ::step].sum(axis=1, keepdims=True)
        return np.asarray(own @ maps[::step, ::step] @ own.T)

    assert np.allclose(found[0], mean(whole, 1), atol=1e-9)
    for one in (0, 3, 6):
        fine = circular(whole, wavelet(0, one, 19))
        assert np.allclose(found[1 + one], mean(fine, 1), atol=1e-6)
        assert np.allclose(found[9 + 9 * one], mean(circular(whole, wavelet(1, one, 19)), 2), atol=1e-6)
        assert np.allclose(found[9 + 9 * one + 1 + 5], mean(circular(fine, wavelet(1, 5, 19)), 2), atol=1e-6)


def test_there_are_81_features_of_each_channel_and_17_without_the_second_order() -> None:
    images = noise(2, 3, 20, 33)
    assert (FEATURES, LOCAL_FEATURES) == (81, 17)
    both = scattering(images, (5, 8))
    assert both.shape == (2, 243, 5, 8)
    first = scattering(images, (5, 8), second=False)
    local = [*range(9), *range(9, 81, 9)]
    torch.testing.assert_close(first.reshape(2, 3, 17, 5, 8), both.reshape(2, 3, 81, 5, 8)[:, :, local])
    for channel in range(3):
        own = scattering(images[:, channel : channel + 1], (5, 8))
        torch.testing.assert_close(own, both[:, 81 * channel : 81 * (channel + 1)])


@pytest.mark.parametrize("side", [8, 9, 28, 130])
def test_an_image_s_features_depend_on_no_other_image(side: int) -> None:
    images = noise(5, 1, side, side)
    together, alone = scattering(images, (2, 2)), scattering(images[3:4], (2, 2))
    torch.testing.assert_close(together[3:4], alone, rtol=1e-4, atol=1e-5)
    broken = images.clone()
    broken[0] = torch.nan
    torch.testing.assert_close(scattering(broken, (2, 2))[1:], together[1:], rtol=1e-4, atol=1e-5)


def test_images_that_differ_by_a_constant_differ_in_the_mean_alone() -> None:
    images = noise(2, 1, 24, 24, dtype=torch.float64)
    before, after = scattering(images, (6, 6)), scattering(images + 3, (6, 6))
    torch.testing.assert_close(after[:, 0], before[:, 0] + 3)
    torch.testing.assert_close(after[:, 1:], before[:, 1:], rtol=0, atol=1e-9)


def test_the_orientation_that_answers_most_is_that_of_the_wave() -> None:
    y, x = np.mgrid[:32, :32]
    for orientation in range(ORIENTATIONS):
        angle = math.pi * orientation / ORIENTATIONS
        wave = np.cos(0.75 * math.pi * (math.cos(angle) * x + math.sin(angle) * y))
        found = scattering(torch.from_numpy(wave).float()[None, None], (1, 1))[0, :, 0, 0]
        assert int(found[1:9].argmax()) == orientation


@pytest.mark.parametrize(
    ("channels", "classes", "side", "parameters"),
    [(1, 2, 28, 3970), (1, 2, 32, 5185), (1, 2, 224, 5185), (3, 2, 28, 11_908), (1, 5, 8, 5 * (81 * 4 + 1))],
)
def test_a_classifier_has_exactly_its_number_of_parameters(
    channels: int, classes: int, side: int, parameters: int
) -> None:
    model = Scatter(channels=channels, classes=classes, image_size=(side, side))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert max(model.cells) <= MOST_CELLS
    assert model(noise(2, channels, side, side)).shape == (2, classes)


@pytest.mark.parametrize(("channels", "classes", "parameters"), [(1, 1, 35), (3, 1, 103), (1, 4, 140)])
def test_a_classifier_of_pixels_has_exactly_its_number_of_parameters(
    channels: int, classes: int, parameters: int
) -> None:
    model = PixelScatter(channels=channels, classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    for shape in ((16, 16), (21, 34)):
        assert model(noise(2, channels, *shape)).shape == (2, classes, *shape)


def test_the_weights_start_at_0_where_every_class_is_as_likely() -> None:
    for classes in (2, 3):
        logits = Scatter(channels=1, classes=classes, image_size=(16, 16))(noise(4, 1, 16, 16))
        assert torch.equal(logits, torch.zeros(4, classes))
    assert not PixelScatter(channels=1, classes=2)(noise(1, 1, 16, 16)).any()


def test_with_two_classes_the_first_logit_stays_0() -> None:
    model = Scatter(channels=1, classes=2, image_size=(16, 16))
    torch.nn.init.constant_(model.head.weight, 0.01)
    torch.nn.init.constant_(model.head.bias, 0.5)
    logits = model(noise(3, 1, 16, 16))
    assert not logits[:, 0].any() and logits[:, 1].all()


def test_images_of_different_contrast_have_features_of_like_length() -> None:
    """Three by three they have mean 0 and variance 1 over all places, less where an image shows next to nothing."""
    model, seen = Scatter(channels=1, classes=2, image_size=(28, 28)), list[Tensor]()
    model.head.register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0]))
    scale = torch.tensor([1.0, 30.0])[:, None, None, None]
    model(torch.cat([noise(2, 1, 28, 28) * scale, torch.zeros(1, 1, 28, 28)]))
    lengths = seen[0].square().mean(dim=1).sqrt()
    assert 0.8 < lengths[0] < lengths[1] < 1 + 1e-4
    assert lengths[2] < 1e-3
    assert torch.isfinite(seen[0]).all()


def test_bright_and_dark_objects_look_alike_to_a_classifier_of_pixels() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 12:20, 12:20] = 1
    model, seen = PixelScatter(channels=1, classes=1), list[Tensor]()
    model.head.register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0]))
    model(image)
    model(-image)
    for absolute in seen:
        assert absolute[0, 17, 8, 8] > 4 * absolute[0, 17, 1, 1]


def test_features_need_no_gradient_and_leave_no_state() -> None:
    model = Scatter(channels=1, classes=2, image_size=(16, 16))
    images = noise(2, 1, 16, 16).requires_grad_()
    gradients = torch.autograd.grad(model(images).sum(), [model.head.weight, images], allow_unused=True)
    assert gradients[0].any() and gradients[1] is None
    assert not list(model.buffers()) and set(model.state_dict()) == {"head.weight", "head.bias"}


def test_autocast_does_not_reach_the_features() -> None:
    images = noise(2, 1, 16, 16)
    plain = scattering(images, (4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scattering(images, (4, 4)), plain)
