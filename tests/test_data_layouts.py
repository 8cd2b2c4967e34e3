"""MSMT17, CUHK03-NP and lists of one's own: every spelling, every refusal."""

from __future__ import annotations

import pytest
from data_layouts import (
    OWN_ROWS,
    make_cuhk03,
    make_market,
    make_msmt17,
    make_own,
    write_broken,
    write_image,
)

from oskt.data import CorruptImageError, read_data

V2 = ("mask_train_v2", "mask_test_v2")


# -- MSMT17 --


@pytest.mark.parametrize(("folders", "version"), [(("train", "test"), "V1"), (V2, "V2")])
def test_msmt17_versions(tmp_path, folders, version):
    root = make_msmt17(tmp_path / "sets" / "MSMT17", folders)
    data = read_data(tmp_path / "sets")
    assert data.root == root
    assert data.name == f"MSMT17 {version}, val out of training"
    assert data.name in data.describe()
    assert data.train.ids.tolist() == [0, 0, 1, 2]
    assert data.train.cameras.tolist() == [1, 14, 2, 3]
    assert data.train.paths[1] == root / folders[0] / "0000/0000_001_14_0303morning_0015_0.jpg"
    # Test identities start at 0, which elsewhere marks distractors: they move up by one.
    assert data.query.ids.tolist() == [1, 2]
    assert data.query.cameras.tolist() == [1, 4]
    assert data.gallery.ids.tolist() == [1, 2, 3]
    assert data.gallery.cameras.tolist() == [12, 5, 6]
    assert data.counts["gallery"]["distractors"] == 0
    assert all(list(s.paths) == sorted(s.paths) for s in (data.train, data.query, data.gallery))


def test_msmt17_validation_images_join_training_on_request(tmp_path):
    root = make_msmt17(tmp_path / "m")
    data = read_data(root, val=True)
    assert data.name == "MSMT17 V1, val in training"
    assert data.train.ids.tolist() == [0, 0, 1, 2, 2]
    assert data.train.cameras.tolist() == [1, 14, 2, 3, 15]
    assert read_data(f"{root}?val=in").train.paths == data.train.paths
    assert read_data(f"{root}?val=out").train.paths == read_data(root, val=False).train.paths
    assert len(read_data(root).train) == 4
    (root / "list_val.txt").unlink()
    assert len(read_data(root).train) == 4
    with pytest.raises(FileNotFoundError, match=r"list_val.txt must exist, got no such file"):
        read_data(root, val=True)


def test_msmt17_errors_name_file_and_line(tmp_path):
    root = make_msmt17(tmp_path / "m")
    text = (root / "list_query.txt").read_text()
    for line in ("0000/0000_000_01_0303morning_0015_0.jpg", "0000/photo.jpg 3"):
        (root / "list_query.txt").write_text(f"{text}\n{line}\n")
        with pytest.raises(ValueError, match=r"list_query.txt line 4 must be an image and its id"):
            read_data(root)
    (root / "list_query.txt").write_text(text + "0007/0007_000_01_0303noon_0015_0.jpg 7\n")
    with pytest.raises(FileNotFoundError, match=r"list_query.txt must .* got 1 .*0007_000_01_0303"):
        read_data(root)
    (root / "list_query.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"list_query.txt must exist.*MSMT17 is <root>/"):
        read_data(root)


def test_msmt17_lists_may_begin_with_a_byte_order_mark(tmp_path):
    root = make_msmt17(tmp_path / "m")
    text = (root / "list_query.txt").read_text()
    (root / "list_query.txt").write_text(text, encoding="utf-8-sig")
    assert len(read_data(root).query) == 2


def test_msmt17_needs_the_folders_of_one_version(tmp_path):
    root = make_msmt17(make_msmt17(tmp_path / "both"), V2)
    with pytest.raises(ValueError, match="one version of MSMT17, got the folders of V1 and of V2"):
        read_data(root)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list_train.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="got neither train/ and test/ nor mask_train_v2/"):
        read_data(tmp_path / "lists")


# -- CUHK03-NP --


@pytest.mark.parametrize("prefix", ["", "cuhk03_"])
def test_cuhk03_variant_is_chosen_and_named(tmp_path, prefix):
    root = make_cuhk03(tmp_path / "sets/CUHK03-NP", (prefix + "labeled", prefix + "detected"))
    for variant, images in (("labeled", 2), ("detected", 3)):
        data = read_data(tmp_path / "sets", variant=variant)
        assert data.root == root / (prefix + variant)
        assert data.name == f"CUHK03-NP {variant}"
        assert data.name in data.describe()
        assert len(data.train) == images
        assert read_data(f"{root}?variant={variant}").train.paths == data.train.paths
        inside = read_data(data.root)
        assert (inside.name, inside.train.paths) == (data.name, data.train.paths)
    with pytest.raises(ValueError, match=r"both labeled and detected. Pass .*\?variant=detected"):
        read_data(root)
    with pytest.raises(FileNotFoundError, match=r"got detected, but .* CUHK03-NP labeled only"):
        read_data(root / (prefix + "labeled"), variant="detected")


def test_cuhk03_with_one_variant_leaves_no_choice(tmp_path):
    root = make_cuhk03(tmp_path / "c", ("labeled",))
    assert read_data(root).name == "CUHK03-NP labeled"
    with pytest.raises(FileNotFoundError, match="Choose that, or add the folder detected"):
        read_data(root, variant="detected")
    with pytest.raises(ValueError, match="variant must be labeled or detected, got 'labelled'"):
        read_data(root, variant="labelled")


def test_errors_name_the_variant(tmp_path):
    root = make_cuhk03(tmp_path / "c")
    for path in (root / "detected" / "query").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"query of .* \(CUHK03-NP detected\) must hold images"):
        read_data(root, variant="detected")
    write_broken(root / "labeled" / "query" / "0003_c1_2.jpg")
    with pytest.raises(CorruptImageError, match="images of CUHK03-NP labeled must decode"):
        read_data(root, variant="labeled", corrupt="refuse", progress=False)


# -- a list of one's own --


def test_own_list_by_folder_and_by_file(tmp_path):
    root = make_own(tmp_path / "own")
    for source in (root, root / "set.csv", tmp_path):
        data = read_data(source)
        assert data.name == "own list"
        assert [p.relative_to(root).as_posix() for p in data.train.paths] == [
            "people/a.jpg",
            "people/b.jpg",
        ]
        assert data.train.ids.tolist() == [0, 1]
        assert data.train_identities.tolist() == [4, 9]
        assert data.gallery.ids.tolist() == [0, 11]
        assert data.counts["gallery"]["distractors"] == data.counts["gallery"]["junk"] == 1


def test_own_list_spellings(tmp_path):
    """Columns in any order and beside others, spaces, a byte-order mark, absolute paths."""
    far = write_image(tmp_path / "far" / "x.jpg")
    rows = [
        f"q , {far}, note, 1, 5",
        'query,people/q.jpg,"a, b",1,11',
        "gallery,people/g.jpg,,2,11",
    ]
    rows[0] = rows[0].replace("q ,", "train ,")
    make_own(tmp_path / "own", OWN_ROWS)
    text = "\n".join(["split, path,note,camera,id", *rows, ""])
    (tmp_path / "own" / "set.csv").write_text(text, encoding="utf-8-sig")
    data = read_data(tmp_path / "own")
    assert data.train.paths == (far,)
    assert data.train_identities.tolist() == [5]
    assert data.query.cameras.tolist() == [1]


def test_csv_files_of_a_folder_are_one_set(tmp_path):
    root = tmp_path / "own"
    for split in ("train", "query", "gallery"):
        rows = [row for row in OWN_ROWS if row.endswith(split)]
        make_own(root, rows, name=f"{split}.csv")
    assert [len(s) for s in (read_data(root).train, read_data(root).query)] == [2, 1]
    (root / "query.csv").write_text('"path","id","camera","split"\npeople/q.jpg,11,1,query\n')
    (root / "notes.csv").write_text("date,weather\n")
    assert [len(s) for s in (read_data(root).train, read_data(root).query)] == [2, 1]
    make_own(root, OWN_ROWS[:1], name="copy.csv")
    with pytest.raises(ValueError, match=r"train.csv line 2 must name a new.*copy.csv line 2 has"):
        read_data(root)


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ("people/x.jpg,alice,1,train", ValueError, "id must be a whole number, got 'alice'"),
        ("people/x.jpg,1,,train", ValueError, "camera must be a whole number, got ''"),
        ("people/x.jpg,1,1", ValueError, "split must be one of train, query, gallery, got ''"),
        ("people/x.jpg,1,1,test", ValueError, "split must be one of .*, got 'test'"),
        (",1,1,train", ValueError, "path must be an image file, got ''"),
        ("people/x.png,1,1,train", FileNotFoundError, r"got .*x.png and 0 more without a file"),
        ("people/b.jpg,3,1,train", ValueError, r"new image of train, got .*b.jpg, which .*line 2"),
        ('"people/x.jpg,1,1,train', ValueError, "must be comma-separated values"),
    ],
)
def test_own_list_errors_name_file_and_line(tmp_path, row, error, message):
    root = make_own(tmp_path / "own", (*OWN_ROWS, row))
    with pytest.raises(error, match=rf"read_data: .*set.csv line 8:? .*{message}"):
        read_data(root)


def test_numbers_beyond_64_bits_name_the_image(tmp_path):
    make_own(tmp_path / "own", (*OWN_ROWS, f"people/x.jpg,1,{-(10**20)},train"))
    make_market(tmp_path / "market", train=(f"{10**20}_c1_0",))
    for root, message in (
        (tmp_path / "own", r"x.jpg must be below 2\^63, got 1 and -1000"),
        (tmp_path / "market", r"0000_c1_0.jpg must be below 2\^63, got 1000.*0 and 1\. Number"),
    ):
        with pytest.raises(ValueError, match=f"read_data: identity and camera of .*{message}"):
            read_data(root)


def test_own_list_needs_a_header(tmp_path):
    make_own(tmp_path / "own", header="file,id,camera,split")
    message = r"set.csv line 1 must have the columns path, id, camera, split, got 'file,id,camera"
    with pytest.raises(ValueError, match=message):
        read_data(tmp_path / "own" / "set.csv")
    with pytest.raises(FileNotFoundError, match=r"with people, set.csv\..*header path,id,camera,s"):
        read_data(tmp_path / "own")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv line 1 must have the columns .*, got ''"):
        read_data(tmp_path / "empty.csv")


def test_own_list_must_be_text(tmp_path):
    root = make_own(tmp_path / "own")
    (root / "set.csv").write_bytes((root / "set.csv").read_bytes() + b"people/\xff.jpg,1,1,train\n")
    with pytest.raises(ValueError, match=r"set.csv line 8 must be UTF-8 text, got .*0xff"):
        read_data(root)
