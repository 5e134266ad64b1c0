"""RandAugment, erased rectangles, mixed images, alternating mirrors: what training does beyond crops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.data import DataConfig, MemorySet, Shard, color_histogram
from sidestep.data.augment import alternating, crop_and_flip, draw_epoch
from sidestep.data.augment_config import AugmentConfig
from sidestep.data.image_set import epoch_order
from sidestep.data.mixing import draw_augmentation, erase, mix
from sidestep.errors import RecipeError
from sidestep.types import Batch

CPU = torch.device("cpu")
ALL = AugmentConfig(rand_augment=2, erase=0.5, mixup=0.8, cutmix=1.0, mix_rate=0.9)


def make_set(count: int = 24, augment: AugmentConfig = ALL, **changes: Any) -> MemorySet:
    """Return `count` random 8x8 images; the label of an image is its index."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    config = DataConfig(augment=augment, crop_padding=2, **changes)
    return MemorySet(images, torch.arange(count), config, statistics=color_histogram)


def batch_of(images: Tensor) -> Batch:
    return Batch(images=images, labels=torch.arange(len(images)))


@pytest.mark.parametrize("changes", [{}, {"flip": "alternating"}, {"crop_fill": "mirror"}])
def test_shards_and_resumed_epochs_see_what_one_process_sees(changes: dict[str, Any]) -> None:
    images = make_set(**changes)
    whole = list(images.train_batches(epoch=1, batch_size=8, seed=3))[1:]
    parts = [
        list(images.train_batches(epoch=1, batch_size=8, seed=3, start_step=1, shard=Shard(rank, 2)))
        for rank in range(2)
    ]
    assert len(whole) == len(parts[0]) == 2
    for step, batch in enumerate(whole):
        halves = [part[step] for part in parts]
        for name in ("images", "labels", "statistics", "partners", "share"):
            together = torch.cat([getattr(half, name) for half in halves])
            assert torch.equal(together, getattr(batch, name)), name


def test_epochs_and_seeds_draw_anew_and_torchs_generator_stays() -> None:
    images, state = make_set(), torch.get_rng_state()
    seen = [
        next(iter(images.train_batches(epoch=epoch, batch_size=24, seed=seed))).images
        for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_changes_nothing() -> None:
    (batch,) = make_set().eval_batches(batch_size=24)
    (plain,) = make_set(augment=AugmentConfig()).eval_batches(batch_size=24)
    assert torch.equal(batch.images, plain.images)
    assert batch.partners is None and batch.share is None


def test_rand_augment_changes_every_image_in_its_own_way() -> None:
    augment = draw_augmentation(
        AugmentConfig(rand_augment=2, magnitude=20), positions=32, steps=1, seed=0, epoch=0
    )
    image = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    changed = augment.on_pixels(image.expand(32, -1, -1, -1), slice(0, 32))
    assert changed.dtype == torch.uint8 and changed.is_contiguous(memory_format=torch.channels_last)
    assert len({tuple(each.flatten().tolist()) for each in changed}) > 16


def test_an_erased_rectangle_is_where_the_draws_say() -> None:
    images, config = torch.ones(3, 3, 8, 8), AugmentConfig(erase=0.5, erase_area=(0.25, 0.25))
    # A quarter of 64 pixels with equal sides is four by four; the last image is spared.
    draws = torch.tensor([[0.4, 0.3, 0.5, 0.0, 0.999], [0.4, 0.3, 0.5, 0.5, 0.0], [0.6, 0.3, 0.5, 0.0, 0.0]])
    expected = torch.ones(3, 3, 8, 8)
    expected[0, :, :4, 4:] = 0
    expected[1, :, 2:6, :4] = 0
    assert torch.equal(erase(images, draws, config), expected)


def test_a_rectangle_is_never_larger_than_the_image() -> None:
    draws = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    erased = erase(torch.ones(200, 1, 4, 16), draws, AugmentConfig(erase=1.0, erase_area=(0.5, 0.9)))
    covered = (erased == 0).float().mean((1, 2, 3))
    assert covered.min() > 0.1 and covered.max() <= 1.0


def test_mixup_is_a_weighted_mean_of_neighbours() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    mixed = mix(batch_of(images), torch.tensor([0.75, 0.0, 0.1, 0.9]))
    assert mixed.images[:, 0, 0, 0].tolist() == [0.25, 0.75, 2.25, 2.75]
    assert mixed.partners is not None and mixed.partners.tolist() == [1, 0, 3, 2]
    targets = mixed.targets(4)
    assert targets[0].tolist() == [0.75, 0.25, 0.0, 0.0]
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    own, other = (F.cross_entropy(logits, labels) for labels in (mixed.labels, mixed.partners))
    torch.testing.assert_close(F.cross_entropy(logits, targets), 0.75 * own + 0.25 * other)


def test_cutmix_puts_a_rectangle_of_the_neighbour_in_and_counts_what_is_seen_of_it() -> None:
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    # Three quarters for itself: sides of four of eight pixels, around pixel 4 and around the corner.
    mixed = mix(batch_of(images), torch.tensor([0.75, 1.0, 0.5, 0.5]))
    expected = torch.zeros(8, 8)
    expected[2:6, 2:6] = 1
    assert torch.equal(mixed.images[0, 0], expected) and torch.equal(mixed.images[1, 0], 1 - expected)
    assert mixed.share is not None and mixed.share.tolist() == [0.75, 0.75]
    corner = mix(batch_of(images), torch.tensor([0.75, 1.0, 0.0, 0.0]))
    assert corner.share is not None and corner.share.tolist() == [1 - 4 / 64] * 2
    assert corner.images[0, 0].sum() == 4


def test_shares_follow_the_beta_distribution_and_half_are_cut_where_both_are_on() -> None:
    config = AugmentConfig(mixup=0.2, cutmix=1.0, mix_rate=0.5)
    mixed = draw_augmentation(config, positions=0, steps=4000, seed=0, epoch=0).mixed
    share, by_cut = mixed[:, 0], mixed[:, 1]
    assert 0.46 < (share < 1).float().mean() < 0.54 and 0.46 < by_cut.mean() < 0.54
    cut = share[(by_cut > 0) & (share < 1)]
    assert abs(float(cut.std()) - (1 / 12) ** 0.5) < 0.02
    alone = draw_augmentation(AugmentConfig(mixup=0.2), positions=0, steps=100, seed=0, epoch=0).mixed
    assert not alone[:, 1].any()


def test_alternating_mirrors_show_every_image_both_ways_in_two_epochs() -> None:
    flips = []
    for epoch in (4, 5, 6):
        order = torch.from_numpy(epoch_order(50, seed=1, epoch=epoch))
        flip = torch.zeros(50, dtype=torch.bool)
        flip[order] = alternating(order, 50, seed=1, epoch=epoch)
        flips.append(flip)
    assert torch.equal(flips[0], ~flips[1]) and torch.equal(flips[0], flips[2])
    assert 10 < int(flips[0].sum()) < 40
    views = alternating(torch.tensor([0, 0, 1, 1]), 2, seed=1, epoch=0, views=2)
    assert views[0] != views[1] and views[2] != views[3]


def test_an_image_mirrored_at_its_edges_is_torchs_reflection() -> None:
    images = torch.randint(0, 256, (6, 3, 5, 7), dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    draws = draw_epoch(6, seed=0, epoch=0, padding=3, flip=False, device=CPU)
    padded = F.pad(images.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    for row, crop in enumerate(crop_and_flip(images, draws, 3, "mirror")):
        top, left = int(draws.top[row]), int(draws.left[row])
        assert torch.equal(crop, padded[row, :, top : top + 5, left : left + 7])
    with pytest.raises(RecipeError, match="crop_padding must be below the side"):
        crop_and_flip(images, draws, 5, "mirror")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rand_augment": -1}, "rand_augment must be at least 0"),
        ({"rand_augment": 1, "magnitude": 31}, "magnitude must be in 0 to 30"),
        ({"magnitude": 5}, "magnitude has no effect with rand_augment 0"),
        ({"erase": 1.5}, "erase must be in"),
        ({"erase": 0.5, "erase_area": (0.3, 0.2)}, "erase_area must be two rising shares"),
        ({"erase_area": (0.1, 0.2)}, "erase_area has no effect with erase 0"),
        ({"mixup": -0.1}, "mixup must be at least 0"),
        ({"mixup": 0.1, "mix_rate": 0.0}, "mix_rate must be in"),
        ({"mix_rate": 0.5}, "mix_rate has no effect with mixup and cutmix 0"),
    ],
)
def test_settings_that_are_wrong_or_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        AugmentConfig(**values)


def test_mixing_needs_neighbours_that_are_strangers_and_an_even_batch() -> None:
    with pytest.raises(RecipeError, match="views must be 1 where images are mixed"):
        DataConfig(views=2, augment=AugmentConfig(mixup=0.2))
    with pytest.raises(RecipeError, match="batch_size must be a multiple of two for every process"):
        mix(batch_of(torch.zeros(3, 3, 4, 4)), torch.tensor([0.5, 0.0, 0.0, 0.0]))


def test_a_streamed_set_refuses_what_it_cannot_do() -> None:
    for values in ({"flip": "alternating"}, {"crop_fill": "mirror"}):
        with pytest.raises(RecipeError, match="streamed set"):
            DataConfig(storage="stream", **values)
