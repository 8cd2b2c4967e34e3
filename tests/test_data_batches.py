"""Sampler, augmentation and loader: pure functions of their seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from oskt.data import Augment, CorruptImageError, ImageStore, PKSampler, ReIDLoader, Split, memory
from oskt.data.loader import fit_in_memory


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for i in range(23):
        paths.append(root / f"{i:02d}.png")
        Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).save(paths[-1])
    ids = np.arange(23) % 6
    return Split("train", tuple(paths), ids, np.arange(23) % 3 + 1)


LABELS = np.random.default_rng(1).integers(0, 11, 200)


@pytest.mark.parametrize(("p", "k", "steps"), [(4, 4, None), (11, 2, 7), (3, 30, 5), (1, 1, 3)])
def test_every_identity_of_a_batch_comes_k_times(p, k, steps):
    sampler = PKSampler(p, k, steps)
    plan = sampler.plan(LABELS, seed=3, epoch=2)
    assert plan.shape == (steps or 200 // (p * k), p * k)
    for batch in LABELS[plan].reshape(len(plan), p, k):
        assert (batch == batch[:, :1]).all()
        assert len(np.unique(batch[:, 0])) == p


def test_identities_take_turns_and_images_do_not_repeat_early():
    plan = PKSampler(4, 4, 33).plan(LABELS, seed=0, epoch=0)
    visits = np.bincount(LABELS[plan].reshape(-1, 4)[:, 0])
    assert visits.max() - visits.min() <= 1  # 33 * 4 / 11 is a whole number of rounds
    for group in plan.reshape(-1, 4):
        assert len(np.unique(group)) == 4
    scarce = PKSampler(2, 4, 1).plan(np.array([0, 0, 1, 1, 1]), seed=0, epoch=0)
    assert set(scarce.ravel()) == {0, 1, 2, 3, 4}


def test_plan_depends_on_seed_and_epoch_only():
    sampler = PKSampler(4, 4)
    plan = sampler.plan(LABELS, seed=0, epoch=0)
    np.random.default_rng(9).random(5)
    assert (plan == sampler.plan(LABELS, seed=0, epoch=0)).all()
    assert (plan != sampler.plan(LABELS, seed=0, epoch=1)).any()
    assert (plan != sampler.plan(LABELS, seed=1, epoch=0)).any()


def test_sampler_errors():
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        PKSampler(4, 0)
    with pytest.raises(ValueError, match="at most the 2 identities of the split, got 4"):
        PKSampler(4, 1).plan(np.array([0, 1]), seed=0, epoch=0)


def test_constant_image_is_exact():
    images = torch.full((5, 3, 16, 8), 100, dtype=torch.uint8)
    augment = Augment(pad=0, erase=0.0, mean=(0.0, 0.5, 0.25), std=(1.0, 0.5, 0.25))
    out = augment(images, generator())
    expected = torch.tensor([100 / 255, 100 / 127.5 - 1, 100 / 63.75 - 1])
    # One product and one difference of float32 numbers below 2: two roundings of at most 2^-24 * 2.
    assert (out - expected[None, :, None, None]).abs().max() <= 2**-22


def test_flip_and_shift_move_pixels_exactly():
    raw = Augment(flip=1.0, pad=0, erase=0.0, mean=(0,) * 3, std=(1 / 255,) * 3)
    images = torch.randint(0, 256, (6, 3, 16, 8), dtype=torch.uint8)
    torch.testing.assert_close(
        raw(images, generator()), images.flip(-1).float(), rtol=2**-22, atol=0
    )

    raw = Augment(flip=0.0, pad=3, erase=0.0, mean=(0,) * 3, std=(1 / 255,) * 3)
    draw = raw.draw(6, 16, 8, generator())
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    for i, (down, right) in enumerate(draw.shift.tolist()):
        crop = padded[i, :, 3 - down : 19 - down, 3 - right : 11 - right]
        torch.testing.assert_close(raw.apply(images, draw)[i], crop.float(), rtol=2**-22, atol=0)
    assert set(raw.draw(999, 16, 8, generator()).shift.unique().tolist()) == set(range(-3, 4))


def test_a_shift_larger_than_the_image_leaves_black():
    raw = Augment(flip=0.0, pad=40, erase=0.0, mean=(0,) * 3)
    assert (
        raw(torch.full((64, 3, 8, 8), 9, dtype=torch.uint8), generator()).amin((1, 2, 3)).min() == 0
    )


def test_erasing_statistics_and_fill():
    images = torch.zeros(4000, 3, 32, 16, dtype=torch.uint8)
    augment = Augment(flip=0, pad=0, mean=(0.5,) * 3, std=(0.5,) * 3, fill=(7.0, 8.0, 9.0))
    out = augment(images, generator())
    erased = out[:, 0] == 7
    assert ((out[:, 0] == -1) | erased).all()
    assert (out[:, 2][erased] == 9).all()
    hit = erased.flatten(1).any(1)
    assert abs(hit.float().mean().item() - 0.5) < 4 * 0.5 / 4000**0.5  # four standard deviations
    share = erased[hit].float().mean((1, 2))
    # Uniform in [.02, .4] but for boxes cut at the image's width, which only lose area.
    assert 0.15 < share.mean() < 0.22
    assert share.max() < 0.43


def test_noise_fill_is_normal_and_repeatable():
    images = torch.zeros(64, 3, 32, 16, dtype=torch.uint8)
    augment = Augment(flip=0, pad=0, erase=1.0, fill="noise", mean=(0.0,) * 3)
    out = augment(images, generator(1))
    noise = out[out != 0]
    assert abs(noise.mean()) < 4 / len(noise) ** 0.5
    assert abs(noise.var() - 1) < 4 * (2 / len(noise)) ** 0.5
    assert torch.equal(out, augment(images, generator(1)))


def test_jitter_is_bounded_and_off_by_default():
    images = torch.randint(0, 256, (8, 3, 16, 8), dtype=torch.uint8)
    plain = Augment(flip=0, pad=0, erase=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    strong = Augment(
        flip=0,
        pad=0,
        erase=0,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        brightness=0.5,
        contrast=0.5,
        saturation=0.5,
    )
    out = strong(images, generator())
    assert 0 <= out.min() <= out.max() <= 1
    assert not torch.equal(out, plain(images, generator()))


def test_augmentation_is_a_function_of_the_generator_and_may_be_shared():
    images = torch.randint(0, 256, (12, 3, 32, 16), dtype=torch.uint8)
    before = images.clone()
    augment = Augment(pad=3, brightness=0.2, fill="noise")
    whole = augment(images, generator(5))
    assert torch.equal(whole, augment(images, generator(5)))
    assert not torch.equal(whole, augment(images, generator(6)))
    assert torch.equal(images, before)
    draw = augment.draw(12, 32, 16, generator(5))
    parts = [augment.apply(images[i : i + 4], draw[i : i + 4]) for i in (0, 4, 8)]
    assert torch.equal(whole, torch.cat(parts))


def test_augment_errors():
    with pytest.raises(ValueError, match=r"flip must be in \[0, 1\], got 2"):
        Augment(flip=2)
    with pytest.raises(ValueError, match="pad must be at least 0, got -1"):
        Augment(pad=-1)
    with pytest.raises(ValueError, match="erase_area must ascend"):
        Augment(erase_area=(0.4, 0.2))
    with pytest.raises(ValueError, match="erase_ratio must be in"):
        Augment(erase_ratio=0)
    with pytest.raises(TypeError, match=r"images must be uint8, got torch.float32"):
        Augment()(torch.zeros(1, 3, 8, 8), generator())
    draw = Augment().draw(2, 8, 8, generator())
    with pytest.raises(ValueError, match=r"images must be of shape \(2, 3, H, W\)"):
        Augment().apply(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), draw)


def loader(split, **options):
    defaults = {"sampler": PKSampler(4, 2, 5), "augment": Augment(pad=2), "seed": 1}
    return ReIDLoader(split, (16, 8), **{**defaults, **options})


def equal(a, b):
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in vars(a))


@pytest.mark.parametrize("options", [{"workers": 3}, {"cache": False}, {"cache": True}])
def test_batches_depend_on_seed_epoch_and_position_only(split, options):
    once = list(loader(split).batches(2))
    again = list(loader(split, **options).batches(2))
    assert len(once) == len(loader(split)) == 5
    assert all(equal(a, b) for a, b in zip(once, again))
    resumed = list(loader(split, **options).batches(2, start=3))
    assert len(resumed) == 2
    assert all(equal(a, b) for a, b in zip(once[3:], resumed))
    assert not equal(once[0], next(loader(split).batches(3)))
    assert not equal(once[0], next(loader(split, seed=2).batches(2)))


def test_ranks_share_one_plan(split):
    whole = next(loader(split).batches(0))
    parts = [next(loader(split, rank=r, world_size=2).batches(0)) for r in range(2)]
    for name in vars(whole):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(getattr(whole, name), joined)
    assert not set(parts[0].ids.tolist()) & set(parts[1].ids.tolist())


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_reads_all_images_in_order(split, world_size):
    ranks = [
        loader(split, sampler=None, batch_size=5, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    index = [i for batches in zip(*(r.batches() for r in ranks)) for b in batches for i in b.index]
    assert [int(i) for i in index] == list(range(23))
    batch = next(loader(split, sampler=None, augment=None).batches())
    assert batch.index.tolist() == list(range(23))
    assert batch.images.dtype == torch.float32
    assert batch.cameras.tolist() == split.cameras.tolist()


def test_store_keeps_pixels(split):
    with Image.open(split.paths[4]) as image:
        expected = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    for cache in (True, False, "auto"):
        store = ImageStore(split, (16, 8), cache=cache)
        assert torch.equal(store[np.array([4])][0], expected)


def test_free_memory_counts_page_cache_and_keeps_to_limits(tmp_path, monkeypatch):
    """In units of four images, because those that are kept take less than a quarter."""
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    unit = 4 * 3 * 32 * 32

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def fitting():
        return sum(fit_in_memory(n, (32, 32)) for n in range(1, 100))

    def limit(group, limit, used, cached):
        write(f"{group}/memory.max", f"{limit}\n")
        write(f"{group}/memory.current", f"{used * unit}\n")
        write(f"{group}/memory.stat", f"anon 5\ninactive_file {cached * unit}\n")

    write("meminfo", f"MemFree:     12 kB\nMemAvailable:  {50 * unit // 1024} kB\n")
    write("self/cgroup", "1:name=systemd:/other\n0::/job/step\n")
    assert fitting() == 49
    limit("job/step", "max", 1, 0)
    assert fitting() == 49
    limit("job", 60 * unit, 50, 20)
    assert fitting() == 29
    limit("job/step", 20 * unit, 15, 5)
    assert fitting() == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_training_by_name(split, tmp_path, workers):
    broken = tmp_path / "0001_c1_broken.jpg"
    broken.write_bytes(b"no image")
    bad = Split("train", (*split.paths[:5], broken), split.ids[:6], split.cameras[:6])
    with pytest.raises(CorruptImageError, match=r"0001_c1_broken.jpg"):
        list(loader(bad, sampler=None, cache=False, workers=workers).batches())
    with pytest.raises(CorruptImageError, match=r"0001_c1_broken.jpg"):
        loader(bad, cache=True)


def test_loader_errors(split):
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size\), got 2 of 2"):
        loader(split, rank=2, world_size=2)
    with pytest.raises(ValueError, match="num_ids must be a multiple of world_size 3, got 4"):
        loader(split, world_size=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        loader(split, batch_size=0)
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        loader(split, workers=-1)
    with pytest.raises(ValueError, match="size must be positive"):
        ImageStore(split, (0, 8))
