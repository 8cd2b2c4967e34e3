"""Reading the Market-1501 layout, and what `read_data` does for every layout."""

from __future__ import annotations

import os

import numpy as np
import pytest
from data_layouts import make_market, make_msmt17, make_own, write_broken, write_image
from PIL import Image

from oskt.data import CorruptImageError, check_images, load_image, make_pedestrians, read_data


@pytest.mark.parametrize(
    "name", ["Market-1501-v15.09.15", "market1501", "Market1501", "own", "a/Market-1501-v15.09.15"]
)
def test_root_and_folders_above_it_are_accepted(tmp_path, name):
    root = make_market(tmp_path / "data" / name)
    assert read_data(root).root == root
    assert read_data(tmp_path / "data").root == root
    assert read_data(str(root)).name == "Market-1501 layout"


def test_labels_distractors_junk_and_cameras(tmp_path):
    train = ("0007_c3s1_b", "0007_c12s1_a", "0002_c1s1_a.png", "-1_c1s1_a", "0000_c1s1_a")
    data = read_data(make_market(tmp_path / "m", train=train))
    assert [p.name for p in data.train.paths] == [
        "0000_c1s1_a.jpg",
        "0002_c1s1_a.png",
        "0007_c12s1_a.jpg",
        "0007_c3s1_b.jpg",
    ]
    assert data.train.ids.tolist() == [0, 1, 2, 2]
    assert data.train.cameras.tolist() == [1, 1, 12, 3]
    assert data.train_identities.tolist() == [0, 2, 7]
    assert data.gallery.ids.tolist() == [0, 1]
    none = {"distractors": 0, "junk": 0, "unread": 0}
    assert data.counts == {
        "train": {**none, "ids": 3, "images": 4, "cameras": 3, "junk": 1},
        "query": {**none, "ids": 1, "images": 1, "cameras": 1},
        "gallery": {**none, "ids": 1, "images": 2, "cameras": 2, "distractors": 1, "junk": 1},
    }
    first, *table = data.describe().splitlines()
    assert first == f"{tmp_path / 'm'}: Market-1501 layout"
    assert [line.split()[0] for line in table] == ["split", "train", "query", "gallery"]


def test_identity_zero_is_a_person_where_queries_show_it(tmp_path):
    root = make_market(
        tmp_path / "m", query=("0000_c1_a", "0001_c1_a"), gallery=("0000_c2_a", "0001_c2_a")
    )
    data = read_data(root)
    assert data.query.ids.tolist() == data.gallery.ids.tolist() == [1, 2]
    assert data.counts["gallery"]["distractors"] == 0
    assert data.gallery.num_ids == 2


def test_file_names_of_duke_and_drawn_sets_are_recognised(tmp_path):
    duke = make_market(
        tmp_path / "duke", ("0001_c2_f0046182",), ("0005_c2_f0046985",), ("0005_c8_f0080293",)
    )
    data = read_data(duke)
    assert data.name == "Market-1501 layout, file names of DukeMTMC-reID"
    assert data.gallery.cameras.tolist() == [8]
    drawn = make_pedestrians(
        tmp_path / "drawn", train_ids=1, test_ids=1, images_per_id=4, height=32, width=16,
        workers=1, progress=False,
    )  # fmt: skip
    assert read_data(drawn).name == "drawn pedestrians"
    (drawn / "spec.json").write_text("[]")
    assert read_data(drawn).name == "Market-1501 layout"


def test_other_files_are_passed_over_and_images_counted(tmp_path):
    root = make_market(tmp_path / "m")
    (root / "query" / "Thumbs.db").write_bytes(b"x")
    write_image(root / "query" / "readme.jpg")
    data = read_data(root)
    assert len(data.query) == 1
    assert data.counts["query"]["unread"] == 1
    image = data.query.paths[0]
    image.rename(image.with_suffix(".bmp"))
    write_image(root / "query" / "0001_c1s1_02.jpg")
    assert read_data(root).counts["query"]["unread"] == 2


def test_errors_say_what_was_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root must be a folder or a CSV file, got .*abs"):
        read_data(tmp_path / "absent")
    image = write_image(tmp_path / "image.jpg")
    with pytest.raises(ValueError, match=r"got the file .*image.jpg. Pass the folder"):
        read_data(image)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"nothing in it\. The Market-1501 layout is .*MSMT17 is .*CSV"
    ):
        read_data(tmp_path / "empty")
    (tmp_path / "half" / "bounding_box_train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="none named query and bounding_box_test"):
        read_data(tmp_path / "half")
    with pytest.raises(ValueError, match=r"query of .* must hold images of identities, got none"):
        read_data(make_market(tmp_path / "a", query=()))
    with pytest.raises(ValueError, match=r"got 1 with other names \(cat.jpg\)"):
        read_data(make_market(tmp_path / "b", train=("cat",)))
    with pytest.raises(ValueError, match=r"jpeg, .jpg, .png images .* got 1 .*\(0001_c1.bmp\)"):
        read_data(make_market(tmp_path / "bmp", query=("0001_c1.bmp",)))
    with pytest.raises(ValueError, match="got none and 1 of junk"):
        read_data(make_market(tmp_path / "c", query=("-1_c1s1_a",)))
    with pytest.raises(ValueError, match="1 and 1 identities with 0 in common"):
        read_data(make_market(tmp_path / "d", query=("0009_c1s1_a",)))
    with pytest.raises(ValueError, match=r"under another camera, got .* with 1 in common and none"):
        read_data(make_market(tmp_path / "e", query=("0001_c2s1_a",)))
    with pytest.raises(ValueError, match="corrupt must be None, 'refuse' or 'skip', got 'ignore'"):
        read_data(tmp_path / "a", corrupt="ignore")


def test_several_data_sets_under_one_folder_are_refused_by_name(tmp_path):
    make_market(tmp_path / "market1501")
    make_msmt17(tmp_path / "msmt17")
    make_own(tmp_path / "own")
    with pytest.raises(ValueError, match=r"one data set, got 3: .*market1501, .*msmt17, .*own"):
        read_data(tmp_path)


def test_folders_that_may_not_be_read_are_passed_over(tmp_path, monkeypatch):
    """Root may read all, so that it is told here what others are told."""
    root, closed = make_market(tmp_path / "market1501"), make_market(tmp_path / "closed")
    closed.chmod(0)
    monkeypatch.setattr(os, "access", lambda path, _: path.stat().st_mode & 0o500 == 0o500)
    assert read_data(tmp_path).root == root


def test_options_of_other_data_sets_are_refused(tmp_path):
    market, msmt17 = make_market(tmp_path / "m"), make_msmt17(tmp_path / "s")
    with pytest.raises(ValueError, match=r"variant must be left out unless .* CUHK03-NP, got 'det"):
        read_data(f"{market}?variant=detected")
    with pytest.raises(ValueError, match="val must be left out unless the data set is MSMT17, got"):
        read_data(market, val=False)
    with pytest.raises(ValueError, match="variant must be left out"):
        read_data(msmt17, variant="labeled")


def break_image(root):
    return write_broken(root / "bounding_box_train" / "0002_c1s1_02.jpg")


def test_corrupt_images_are_refused_or_skipped_by_name(tmp_path):
    root = make_market(tmp_path / "m")
    path = break_image(root)
    assert len(read_data(root).train) == 3
    commands = r"`oskt teacher`, `refine`, `finetune` and `evaluate` \(--corrupt skip\)\.$"
    with pytest.raises(CorruptImageError, match=rf"1 broken files: .*0002_c1s1_02.*{commands}"):
        read_data(root, corrupt="refuse", progress=False)
    assert path not in read_data(root, corrupt="skip", progress=False).train.paths
    assert list(check_images([path], progress=False)) == [path]
    with pytest.raises(CorruptImageError, match=rf"0002_c1s1_02.jpg .*{commands}"):
        load_image(path, (16, 8))
    with pytest.raises(CorruptImageError, match=r"gone.jpg"):
        load_image(tmp_path / "gone.jpg", (16, 8))


def test_a_split_of_broken_images_only_is_refused(tmp_path):
    root = make_market(tmp_path / "m", train=())
    break_image(root)
    with pytest.raises(ValueError, match=r"train of .* must hold images of identities, got none"):
        read_data(root, corrupt="skip", progress=False)


def test_skipped_identities_leave_no_gap_in_the_labels(tmp_path):
    root = make_market(tmp_path / "m", train=("0005_c1s1_01", "0009_c1s1_01"))
    break_image(root)
    data = read_data(root, corrupt="skip", progress=False)
    assert data.train.ids.tolist() == [0, 1]
    assert data.train_identities.tolist() == [5, 9]


def test_load_image_resizes_and_converts(tmp_path):
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    pixels = load_image(tmp_path / "grey.png", (16, 8))
    assert pixels.shape == (3, 16, 8)
    assert (pixels == 77).all()


def test_greys_of_16_bits_keep_their_shades(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name, deep in (("a.png", 257 * grey), ("a.tif", 257 * grey.astype(np.int32))):
        Image.fromarray(deep).save(tmp_path / name)
        assert (load_image(tmp_path / name, (16, 16)) == grey).all()
