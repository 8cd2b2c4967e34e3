"""Model files: round trips, ties, and every way a file can be wrong."""

import errno
import hashlib
import json
import os
import resource
import stat
import subprocess

import pytest
import safetensors.torch
import torch
from torch import nn

import oskt.files.checkpoint
from oskt import edge
from oskt.chain import WeightChain
from oskt.files.checkpoint import (
    file_hash,
    load_state,
    read_tensors,
    save_model,
    write_atomic,
    write_tensors,
)
from oskt.files.tensor_file import CHAIN
from oskt.models.resnet import ResNet
from oskt.students import load_model


class Everything(nn.Module):
    """Tied weights, a strided parameter, views of one buffer, a scalar, small and empty types."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4, bias=False)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight
        self.strided = nn.Parameter(torch.randn(4, 6).t())
        flat = torch.arange(6.0)
        self.register_buffer("first", flat[:2])
        self.register_buffer("rest", flat[2:])
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("brain", torch.randn(3).to(torch.bfloat16))
        self.register_buffer("empty", torch.empty(0, 5))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    return save_model(path, nn.Linear(2, 3), {"spec": {"family": "linear"}, "metrics": {"mAP": 1}})


def test_round_trip_keeps_every_bit(tmp_path):
    module = Everything()
    path = save_model(tmp_path / "model.safetensors", module, {"recipe": {"steps": [1, 2]}})
    state, meta = load_state(path)
    expected = module.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert state["head.weight"] is state["embed.weight"]
    fresh = Everything()
    fresh.load_state_dict(state)
    assert meta["recipe"] == {"steps": [1, 2]}
    assert meta["format"] == "oskt-model/1"
    assert set(meta["versions"]) == {"oskt", "source_hash", "torch", "python"}
    assert "commit" in meta


def test_ties_are_stored_once(tmp_path):
    path = save_model(tmp_path / "model.safetensors", Everything(), {})
    assert ("head.weight" in safetensors.torch.load_file(path)) != (
        "embed.weight" in safetensors.torch.load_file(path)
    )


def test_the_same_module_gives_the_same_bytes(tmp_path):
    module = Everything()
    hashes = {file_hash(save_model(tmp_path / f"{i}", module, {"a": 1})) for i in range(3)}
    assert len(hashes) == 1


def test_file_hash_is_sha256(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "x").write_bytes(data)
    assert file_hash(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_missing_files(tmp_path):
    message = r"path must be an oskt-model/1 file, got .*absent.* Give a file of `oskt teacher`, "
    with pytest.raises(FileNotFoundError, match=message):
        load_state(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_files(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"^load: .* must be a whole safetensors file, got"):
        load_state(saved)


def test_edited_tensors(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ValueError, match=r"must match its checksum \w{12}, got other content"):
        load_state(saved)


def test_edited_header(saved):
    data = saved.read_bytes()
    assert data.count(b"linear") == 1
    saved.write_bytes(data.replace(b"linear", b"resnet"))
    with pytest.raises(ValueError, match=r"must match its checksum"):
        load_state(saved)


def test_foreign_files(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"must have format 'oskt-model/1', got None\. Give"):
        load_state(path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"must be a whole safetensors file, got"):
        load_state(path)


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("oskt-model/2", "Another version of oskt wrote it: read it with that one."),
        ("oskt-chain/1", "Give a file of `oskt teacher`, `oskt expand` or `oskt finetune`."),
    ],
)
def test_files_of_another_format_or_version(tmp_path, kind, remedy):
    path = write_tensors(tmp_path / "x", kind, {"weight": torch.zeros(2)}, {})
    with pytest.raises(ValueError) as refused:
        load_state(path)
    assert str(refused.value) == (
        f"load: '{path}' must have format 'oskt-model/1', got '{kind}'. {remedy}"
    )


def edited_chain(header):
    header["coupling"]["groups"][0]["colour"] = "red"


def without_blocks(header):
    header.pop("blocks")


@pytest.mark.parametrize("edit", [edited_chain, without_blocks])
def test_chains_with_fields_of_another_version(tmp_path, edit):
    """Signed, so that the checksum holds."""
    path = tmp_path / "chain"
    WeightChain.from_teacher(ResNet(18, 4), torch.zeros(2, 3, 32, 16), check=False).save(path)
    tensors, header = read_tensors(path, CHAIN)
    header.pop("format")
    edit(header)
    write_tensors(path, CHAIN, tensors, header)
    for read in (WeightChain.load, edge.load):
        with pytest.raises(ValueError, match=r"^load: header of the chain must have .* version"):
            read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, r"^build: spec must have options of ResNet, got .*'colour'\. Another"),
        ({"in_planes": 8}, r"^load_model: .* must hold the tensors of its network, got size mism"),
    ],
)
def test_models_of_another_version(tmp_path, change, message):
    model = ResNet(18, 4)
    path = save_model(tmp_path / "model", model, {"spec": {**model.spec, **change}})
    with pytest.raises(ValueError, match=message):
        load_model(path)


def test_meta_must_be_json(tmp_path):
    with pytest.raises(TypeError, match=r"^save: meta must be JSON values, got .*Tensor"):
        save_model(tmp_path / "x", nn.Linear(1, 1), {"metrics": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^write: .* must be writable .* another folder") as failed:
        write_atomic(tmp_path / "file" / "x", b"data")
    assert failed.value.errno in (errno.EEXIST, errno.ENOTDIR)
    with pytest.raises(FileNotFoundError, match="which is a folder"):
        load_state(tmp_path)


def test_only_files_are_replaced(tmp_path):
    """As root, a rename would put a file in the place of /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "no file"), ("folder", "a folder")):
        message = rf"^write: path must be a file or not exist, got '.*{name}', which is {kind}\."
        with pytest.raises(OSError, match=message):
            write_atomic(tmp_path / name, b"data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_keeps_the_old_file(tmp_path):
    # A limit on file sizes stops a write half-way, as a full disk does.
    path = tmp_path / "x"
    write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"0\.2 MB free, got .*previous file is unchanged"):
            write_atomic(path, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    """Some file systems answer so; the new file is in its place by then."""
    sync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomic(tmp_path / "x", b"data")
    assert (tmp_path / "x").read_bytes() == b"data"


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to("folder/x")
    for data in (b"new", b"newer"):
        write_atomic(tmp_path / "link", data)
        assert (tmp_path / "link").readlink().as_posix() == "folder/x"
        assert (tmp_path / "folder" / "x").read_bytes() == data
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["x"]


def test_only_a_checkout_of_oskt_has_a_commit(tmp_path, monkeypatch):
    """A package installed below somebody's project has none, whatever that is."""

    def commit_of(package):
        file = tmp_path / package / "oskt" / "files" / "checkpoint.py"
        monkeypatch.setattr(oskt.files.checkpoint, "__file__", str(file))
        return oskt.files.checkpoint.provenance()["commit"]

    answer = subprocess.CompletedProcess((), 0, "0123abc\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert commit_of("python") == ""
    (tmp_path / ".git").mkdir()
    assert commit_of("python") == commit_of(".venv/lib/python3.12/site-packages") == ""
    (tmp_path / "csrc").mkdir()
    assert commit_of("python") == "0123abc"
    assert commit_of(".venv/lib/python3.12/site-packages") == ""


def test_the_header_is_plain_json(saved):
    data = saved.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["oskt"])["content"]
    assert json.loads(content)["spec"] == {"family": "linear"}


def test_examples():
    import doctest

    assert doctest.testmod(oskt.files.checkpoint).failed == 0
