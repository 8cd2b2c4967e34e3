"""Reading the Market-1501 layout: every spelling, every refusal."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from oskt.data import CorruptImageError, check_data, check_images, load_image, read_market
from oskt.data.check import KNOWN


def write(path, size=(8, 16), colour=(10, 200, 90)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make(root, train=("0002_c1s1_01", "0007_c2s1_01"), query=("0001_c1s1_01",), gallery=None):
    gallery = ("0001_c2s1_01", "0000_c1s1_01", "-1_c1s1_01") if gallery is None else gallery
    for folder, names in zip(
        ("bounding_box_train", "query", "bounding_box_test"), (train, query, gallery)
    ):
        (root / folder).mkdir(parents=True)
        for name in names:
            write(root / folder / (name if "." in name else name + ".jpg"))
    return root


@pytest.mark.parametrize(
    "name", ["Market-1501-v15.09.15", "market1501", "Market1501", "own", "a/Market-1501-v15.09.15"]
)
def test_root_and_folders_above_it_are_accepted(tmp_path, name):
    root = make(tmp_path / "data" / name)
    assert read_market(root).root == root
    assert read_market(tmp_path / "data").root == root


def test_the_market_folder_is_chosen_among_others(tmp_path):
    make(tmp_path / "duke")
    root = make(tmp_path / "market1501")
    assert read_market(tmp_path).root == root


def test_labels_distractors_junk_and_cameras(tmp_path):
    train = ("0007_c3s1_b", "0007_c12s1_a", "0002_c1s1_a.png", "-1_c1s1_a", "0000_c1s1_a")
    data = read_market(make(tmp_path / "m", train=train))
    assert [p.name for p in data.train.paths] == [
        "0002_c1s1_a.png",
        "0007_c12s1_a.jpg",
        "0007_c3s1_b.jpg",
    ]
    assert data.train.ids.tolist() == [0, 1, 1]
    assert data.train.cameras.tolist() == [1, 12, 3]
    assert data.train_identities.tolist() == [2, 7]
    assert data.gallery.ids.tolist() == [0, 1]
    assert data.counts == {
        "train": {"ids": 2, "images": 3, "cameras": 3, "distractors": 0, "junk": 1},
        "query": {"ids": 1, "images": 1, "cameras": 1, "distractors": 0, "junk": 0},
        "gallery": {"ids": 1, "images": 2, "cameras": 2, "distractors": 1, "junk": 1},
    }
    assert "gallery" in data.describe()


def test_other_files_are_passed_over(tmp_path):
    root = make(tmp_path / "m")
    (root / "query" / "Thumbs.db").write_bytes(b"x")
    write(root / "query" / "readme.jpg")
    assert len(read_market(root).query) == 1


def test_errors_say_what_was_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root must be a folder, got .*absent"):
        read_market(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nothing in it.*Market-1501 layout is"):
        read_market(tmp_path / "empty")
    (tmp_path / "half" / "bounding_box_train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="none named query and bounding_box_test"):
        read_market(tmp_path / "half")
    with pytest.raises(ValueError, match="query must hold images of identities, got 0 images"):
        read_market(make(tmp_path / "a", query=()))
    with pytest.raises(ValueError, match=r"with other names \(cat.jpg\)"):
        read_market(make(tmp_path / "b", train=("cat",)))
    with pytest.raises(ValueError, match="1 junk or distractors"):
        read_market(make(tmp_path / "c", query=("-1_c1s1_a",)))
    with pytest.raises(ValueError, match="a query identity must be in the gallery"):
        read_market(make(tmp_path / "d", query=("0009_c1s1_a",)))
    make(tmp_path / "two" / "detected")
    make(tmp_path / "two" / "labeled")
    with pytest.raises(ValueError, match=r"one data set, got 2: .*detected.*labeled"):
        read_market(tmp_path / "two")
    with pytest.raises(ValueError, match="corrupt must be None, 'refuse' or 'skip', got 'ignore'"):
        read_market(tmp_path / "a", corrupt="ignore")


def break_image(root):
    # A file cut short still has a good header, so only decoding finds it.
    path = root / "bounding_box_train" / "0002_c1s1_02.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_corrupt_images_are_refused_or_skipped_by_name(tmp_path):
    root = make(tmp_path / "m")
    path = break_image(root)
    assert len(read_market(root).train) == 3
    with pytest.raises(CorruptImageError, match=r"1 broken files: .*0002_c1s1_02.jpg"):
        read_market(root, corrupt="refuse", progress=False)
    assert path not in read_market(root, corrupt="skip", progress=False).train.paths
    assert list(check_images([path], progress=False)) == [path]
    with pytest.raises(CorruptImageError, match=r"0002_c1s1_02.jpg"):
        load_image(path, (16, 8))
    with pytest.raises(CorruptImageError, match=r"gone.jpg"):
        load_image(tmp_path / "gone.jpg", (16, 8))


def test_a_split_of_broken_images_only_is_refused(tmp_path):
    root = make(tmp_path / "m", train=())
    break_image(root)
    with pytest.raises(ValueError, match="must hold images, got only broken ones"):
        read_market(root, corrupt="skip", progress=False)


def test_skipped_identities_leave_no_gap_in_the_labels(tmp_path):
    root = make(tmp_path / "m", train=("0005_c1s1_01", "0009_c1s1_01"))
    break_image(root)
    data = read_market(root, corrupt="skip", progress=False)
    assert data.train.ids.tolist() == [0, 1]
    assert data.train_identities.tolist() == [5, 9]


def test_load_image_resizes_and_converts(tmp_path):
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    pixels = load_image(tmp_path / "grey.png", (16, 8))
    assert pixels.shape == (3, 16, 8)
    assert (pixels == 77).all()


def test_check_reports(tmp_path, monkeypatch):
    root = make(tmp_path / "m")
    report = check_data(root, progress=False)
    assert report.ok
    assert "own" in report.describe()
    assert "all decode" in report.describe()
    monkeypatch.setitem(KNOWN, "Tiny", (2, 2, 1, 2))
    assert check_data(root, images=False).known_as == "Tiny"
    assert "not opened" in check_data(root, images=False).describe()
    monkeypatch.setitem(KNOWN, "Tiny", (2, 99, 1, 2))
    assert not check_data(root, images=False).ok
    assert "Tiny has 99 training images, here are 2" in check_data(root).describe()
    break_image(root)
    assert "1 broken" in check_data(root, progress=False).describe()
