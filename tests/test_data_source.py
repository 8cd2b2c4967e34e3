"""The notation PATH?key=value, few-shot draws, and `check_data`."""

from __future__ import annotations

import numpy as np
import pytest
from data_layouts import make_cuhk03, make_market, make_msmt17, write_broken, write_image

from oskt.data import DataSource, Split, check_data, few_shot, read_data
from oskt.data.check import KNOWN

# -- the notation --


def test_notation_reads_every_key(tmp_path):
    for separator in ",&":
        source = DataSource.parse(separator.join(("m?val=in", "few_shot=0.25", "seed=7")))
        assert (str(source.path), source.val, source.few_shot, source.seed) == ("m", True, 0.25, 7)
        assert source.variant is None
    assert DataSource.parse("a/b").path.parts == ("a", "b")
    assert DataSource.parse("m?val=out", few_shot=0.5).val is False
    (tmp_path / "odd?name=1").mkdir()
    assert DataSource.parse(tmp_path / "odd?name=1").path == tmp_path / "odd?name=1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m?", r"key=value with the keys variant, val, few_shot, seed, got '' in 'm\?'"),
        ("m?size=3", "got 'size=3'"),
        ("m?variant", "got 'variant'"),
        ("m?variant=both", "variant must be labeled or detected, got 'both'"),
        ("m?val=true", "val must be in or out, got 'true'"),
        ("m?few_shot=ten", "few_shot must be a number, got 'ten'"),
        ("m?few_shot=0.1,seed=1.5", "seed must be a whole number, got '1.5'"),
        ("m?seed=3", "seed must come with few_shot, got seed 3 alone"),
        ("m?val=in,val=out", r"val must be given once, got 'out' in .* and True"),
    ],
)
def test_notation_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        DataSource.parse(text)


def test_an_option_is_given_once(tmp_path):
    with pytest.raises(ValueError, match=r"few_shot must be given once, got '0.1' in .* and 0.3"):
        read_data(f"{tmp_path}?few_shot=0.1", few_shot=0.3)
    with pytest.raises(ValueError, match="val must be True or False, got 'yes'"):
        read_data(tmp_path, val="yes")


# -- few-shot --


def split_of(identities, images=2):
    rows = [(f"{i:04}_{n}.jpg", i) for i in identities for n in range(images)]
    ids = np.array([i for _, i in rows], dtype=np.int64)
    return Split("train", tuple(name for name, _ in rows), ids, np.ones_like(ids))


def identities_of(split):
    return {int(str(path)[:4]) for path in split.paths}


def test_few_shot_keeps_whole_identities_with_labels_in_order():
    split = split_of(range(5, 205))
    kept = few_shot(split, 0.1, seed=3)
    assert len(identities_of(kept)) == kept.num_ids == 20
    assert len(kept) == 40  # both images of each
    assert list(kept.paths) == sorted(kept.paths)
    assert kept.ids.tolist() == np.repeat(np.arange(20), 2).tolist()


def test_few_shot_is_nested_and_a_function_of_the_seed():
    split = split_of(range(100))
    for seed in range(5):
        tenth, third, half, all_of_it = (few_shot(split, r, seed) for r in (0.1, 0.3, 0.5, 1))
        assert identities_of(tenth) < identities_of(third) < identities_of(half)
        assert identities_of(all_of_it) == identities_of(split)
        assert few_shot(split, 0.3, seed).paths == third.paths
    draws = {frozenset(identities_of(few_shot(split, 0.1, seed))) for seed in range(5)}
    assert len(draws) == 5
    # The choice follows the sorted identities, not the order of the images.
    shuffled = split.select(np.random.default_rng(0).permutation(len(split)))
    assert identities_of(few_shot(shuffled, 0.3, 1)) == identities_of(few_shot(split, 0.3, 1))


def test_few_shot_draws_stay_the_same_for_good():
    """Published tables hang on it: a change of these numbers is a change of the data set."""
    assert sorted(identities_of(few_shot(split_of(range(50)), 0.1, seed=1))) == [9, 16, 31, 36, 39]


def test_few_shot_counts_are_those_of_the_published_code():
    """It keeps int(n * ratio): of 751, 1041 and 767 training identities."""
    for n, counts in ((751, (75, 225, 375)), (1041, (104, 312, 520)), (767, (76, 230, 383))):
        split = split_of(range(n), images=1)
        assert tuple(len(few_shot(split, r)) for r in (0.1, 0.3, 0.5)) == counts
    assert len(few_shot(split_of(range(100), 1), 0.29)) == 29  # 0.29 * 100 < 29 in floating point


def test_every_identity_is_as_likely_as_the_others():
    """400 draws of 10 among 20: each is kept 200 times, sd 10; five of those is 50."""
    times = np.zeros(20)
    for seed in range(400):
        times[sorted(identities_of(few_shot(split_of(range(20), 1), 0.5, seed)))] += 1
    assert abs(times - 200).max() < 50


def test_few_shot_refuses():
    split = split_of(range(5))
    for ratio in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match=rf"ratio must be in \(0, 1\], got {ratio}"):
            few_shot(split, ratio)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        few_shot(split, 0.5, seed=-1)
    with pytest.raises(ValueError, match="keep at least one of the 5 training identities, got"):
        few_shot(split, 0.1)


def test_few_shot_through_read_data(tmp_path):
    train = [f"{i:04}_c1_{n}" for i in range(3, 33) for n in range(2)]
    root = make_market(tmp_path / "m", train=train)
    whole, kept = read_data(root), read_data(f"{root}?few_shot=0.1,seed=3")
    assert kept.train.paths == few_shot(whole.train, 0.1, 3).paths
    assert kept.train.ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert [int(p.name[:4]) for p in kept.train.paths[::2]] == kept.train_identities.tolist()
    assert kept.query.paths == whole.query.paths
    assert kept.few_shot == (0.1, 3)
    assert "few-shot 0.1 of the training identities, seed 3" in kept.describe()
    assert read_data(root, few_shot=0.1, seed=3).train.paths == kept.train.paths
    assert read_data(root, few_shot=0.1).few_shot == (0.1, 0)
    assert whole.few_shot is None
    assert "few-shot" not in whole.describe()


def test_broken_images_do_not_change_who_is_chosen(tmp_path):
    root = make_market(tmp_path / "m", train=[f"{i:04}_c1_0" for i in range(1, 11)])
    chosen = read_data(root, few_shot=0.5).train_identities
    write_broken(root / "bounding_box_train" / f"{chosen[0]:04}_c1_0.jpg")
    data = read_data(root, few_shot=0.5, corrupt="skip", progress=False)
    assert data.train_identities.tolist() == chosen[1:].tolist()
    assert data.train.ids.tolist() == [0, 1, 2, 3]


# -- check_data --


def test_check_reports_images(tmp_path):
    root = make_market(tmp_path / "m")
    report = check_data(root, progress=False)
    assert report.ok
    assert "counts: those of no published data set" in report.describe()
    assert "images: all decode" in report.describe()
    assert "images: not opened" in check_data(root, images=False).describe()
    path = write_broken(root / "bounding_box_train" / "0002_c1s1_02.jpg")
    write_image(root / "query" / "portrait.jpg")
    report = check_data(root, progress=False)
    assert not report.ok
    assert list(report.broken) == [path]
    assert "images: 1 broken" in report.describe()
    assert str(path) in report.describe()
    assert "warning: 1 images of query have other names and were passed over" in report.describe()


def test_check_compares_counts(tmp_path, monkeypatch):
    root = make_market(tmp_path / "m")
    monkeypatch.setitem(KNOWN, "Tiny", (2, 2, 1, 2))
    report = check_data(root, images=False)
    assert report.known_as == ("Tiny",)
    assert report.warnings == ()
    assert "counts: those of Tiny" in report.describe()
    monkeypatch.setitem(KNOWN, "Tiny", (2, 99, 1, 3))
    report = check_data(root, images=False)
    assert report.ok  # a warning is no failure
    assert "warning: Tiny has 99 training images, here are 2" in report.describe()
    assert "warning: Tiny has 3 gallery images, here are 2" in report.describe()
    monkeypatch.setitem(KNOWN, "Near", (2, 2, 1, 3))
    assert check_data(root, images=False).warnings == ("Near has 3 gallery images, here are 2",)
    assert check_data(f"{root}?few_shot=0.5", images=False).warnings == ()
    assert "not compared" in check_data(f"{root}?few_shot=0.5", images=False).describe()


@pytest.mark.parametrize(
    ("make", "options", "name"),
    [
        (make_market, "", "Market-1501"),
        (make_msmt17, "?val=out", "MSMT17 V1, val out of training"),
        (make_msmt17, "?val=in", "MSMT17 V1, val in training"),
        (make_cuhk03, "?variant=labeled", "CUHK03-NP labeled"),
        (make_cuhk03, "?variant=detected", "CUHK03-NP detected"),
    ],
)
def test_check_knows_sets_by_their_layout_and_name(tmp_path, make, options, name):
    root = make(tmp_path / "Market-1501-v15.09.15")
    report = check_data(f"{root}{options}", images=False)
    ids, images, queries, gallery = KNOWN[name]
    train, query = report.data.train, report.data.query
    assert report.warnings == (
        f"{name} has {ids:,} training identities, here are {train.num_ids:,}",
        f"{name} has {images:,} training images, here are {len(train):,}",
        f"{name} has {queries:,} query images, here are {len(query):,}",
        f"{name} has {gallery:,} gallery images, here are {len(report.data.gallery):,}",
    )


def test_check_knows_duke_and_lets_drawn_sets_be(tmp_path, monkeypatch):
    duke = make_market(
        tmp_path / "d", ("0001_c2_f0046182",), ("0005_c2_f0046985",), ("0005_c8_f0080293",)
    )
    assert "DukeMTMC-reID has 702 training" in check_data(duke, images=False).warnings[0]
    drawn = make_market(tmp_path / "drawn")
    (drawn / "spec.json").write_text('{"kind": "drawn pedestrians"}')
    monkeypatch.setitem(KNOWN, "Tiny", (2, 99, 1, 2))
    assert check_data(drawn, images=False).warnings == ()


def test_counts_that_versions_share_name_both(tmp_path, monkeypatch):
    counts = (2, 2, 1, 2)
    for name in ("MSMT17 V1, val out of training", "MSMT17 V2, val out of training"):
        monkeypatch.setitem(KNOWN, name, counts)
    known = check_data(make_market(tmp_path / "m"), images=False).known_as
    assert known == ("MSMT17 V1, val out of training", "MSMT17 V2, val out of training")
    root = make_msmt17(tmp_path / "s", ("mask_train_v2", "mask_test_v2"))
    monkeypatch.setitem(KNOWN, "MSMT17 V2, val out of training", (3, 4, 2, 3))
    report = check_data(root, images=False)
    assert report.known_as == ("MSMT17 V2, val out of training",)
    assert report.warnings == ()


def test_known_counts():
    """As in the papers of the data sets; the gallery without junk."""
    assert KNOWN["Market-1501"] == (751, 12_936, 3_368, 15_913)
    assert KNOWN["MSMT17 V2, val in training"][1] - KNOWN["MSMT17 V2, val out of training"][1] == (
        2_373
    )
