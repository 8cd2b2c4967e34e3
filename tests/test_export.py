"""Deployment files compute the network, hold nothing else, and say what they are."""

from __future__ import annotations

import hashlib
import json
import sys

import nets
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from PIL import Image
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from oskt import export
from oskt.chain import WeightChain
from oskt.cli import app, main
from oskt.data import make_pedestrians
from oskt.export import export_model, formats, sidecar
from oskt.export.network import deployed
from oskt.files.checkpoint import file_hash, provenance, save_model
from oskt.models import OSNet, ResNet, VisionTransformer
from oskt.pixels import IMAGENET_MEAN, IMAGENET_STD
from oskt.widths import sensitivity

SIZE = (32, 16)
MEAN, STD = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
PIXELS = torch.randint(
    0, 256, (5, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
NORMALISED = (PIXELS / 255 - MEAN) / STD


def small(**options):
    torch.manual_seed(0)
    return nets.varied(ResNet(18, 4, num_classes=7, layers=(1, 1, 1, 1), **options))


def assert_near(ours, theirs):
    """Float32 in another association: at most 12 layers of sums whose roundings reach 64 units of
    2^-24 of the largest entry."""
    bound = 12 * 64 * 2**-24 * float(theirs.abs().max())
    assert float((torch.as_tensor(ours) - theirs).abs().max()) <= bound


def embedded(network, images):
    with torch.no_grad():
        return network(images)


def deploy(network, images, inputs="normalised", l2=False):
    return deployed(network, images, inputs=inputs, mean=IMAGENET_MEAN, std=IMAGENET_STD, l2=l2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def pictures(folder):
    """Forty image files without labels."""
    generator = np.random.default_rng(0)
    (folder / "pictures" / "deep").mkdir(parents=True)
    paths = [folder / "pictures" / "deep" / f"{i:02}.png" for i in range(40)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def plain(folder):
    """(network, what export_model returned) of an ONNX file as trackers take it."""
    network = small()
    return network, export_model(network, folder / "plain.onnx", size=SIZE, about={"parent": "ab"})


@pytest.fixture(scope="module")
def baked(folder, pictures):
    """The same in int8, from pixels, with length 1."""
    network = small()
    done = export_model(
        network, folder / "baked.onnx", size=SIZE, inputs="uint8", l2=True, int8=True,
        images=pictures, evaluate=lambda file: {"sum": float(file(NORMALISED).sum())},
    )  # fmt: skip
    return network, done


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


# -- the network that is deployed ---------------------------------------------------------------


class Tangled(nn.Module):
    """What must not be folded: a norm of an output that is read twice, a norm of two outputs of one
    layer, a norm of tokens; and what must be: a linear layer without bias, a convolution before a
    norm without parameters."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)
        self.twice, self.second = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.shared, self.third = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.tokens, self.fourth = nn.Linear(6, 5), nn.BatchNorm1d(420)
        self.fc, self.fifth = nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)
        self.register_buffer("mean", torch.rand(4))

    def forward(self, x):
        x = self.first(self.stem(x))
        y = self.twice(x)
        x = self.second(y).relu() + y
        x = self.third(self.shared(x)) + self.third(self.shared(x * 2))
        x = self.fourth(self.tokens(x.flatten(2).transpose(1, 2)))
        x = self.fifth(self.fc(x.mean(1)))
        return F.batch_norm(x, self.mean, self.mean + 1)


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (small, ["bottleneck"]),
        (lambda: small(ibn=True, pooling="gem"), ["layer1.0.bn1.BN", "bottleneck"]),
        (lambda: nets.varied(OSNet(1 / 16, feature_dim=24)), ["bottleneck"]),
        (lambda: nets.varied(Tangled()), ["second", "third", "fourth"]),
    ],
)
def test_norms_fold_where_they_can(make, left):
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    copy = deploy(network, NORMALISED)
    assert_near(embedded(copy, NORMALISED), embedded(network, NORMALISED))
    kinds = {name: type(m).__name__ for name, m in copy.named_modules()}
    assert not [name for name, kind in kinds.items() if kind.startswith("BatchNorm")]
    scales = [name for name, kind in kinds.items() if kind == "_ScaleShift"]
    assert [name for name in left if f"network.{name}" not in scales] == []
    assert len(scales) == len(left) or "layer1.0.bn1.BN" in left  # every IBN keeps its own
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())


def test_what_the_embedding_does_not_read_is_gone():
    network = VisionTransformer(24, 1, 2, patch=8, image=SIZE, num_classes=4)
    names = set(deploy(network, NORMALISED).state_dict())
    assert not [n for n in names if "classifier" in n or "bottleneck" in n]
    assert "network.norm.weight" in names
    assert "network.classifier.weight" not in deploy(small(), NORMALISED).state_dict()


# -- the file -----------------------------------------------------------------------------------


def test_onnx_is_the_network_for_any_batch(plain):
    network, done = plain
    session = session_of(done.path)
    for count in (1, 2, 5):
        ours = session.run(["output0"], {"images": NORMALISED[:count].numpy()})[0]
        assert_near(ours, embedded(network, NORMALISED[:count]))
    assert done.parity["noise"].cosine > 1 - 1e-6
    assert done.parity["noise"].images == 7


def test_onnx_is_what_trackers_read(plain):
    model = onnx.load(plain[1].path)
    (images,), (output,) = model.graph.input, model.graph.output
    assert (images.name, output.name) == ("images", "output0")
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in (images, output)]  # fmt: skip
    assert shapes == [["batch", 3, *SIZE], ["batch", 32]]
    assert images.type.tensor_type.elem_type == TensorProto.FLOAT
    assert model.opset_import[0].version >= 17
    assert model.ir_version <= 10
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert len(model.graph.node) < 40


def test_onnx_bytes_repeat_and_hold_no_local_paths(plain):
    network, done = plain
    again = export_model(
        network, done.path.with_name("again.onnx"), size=SIZE, about={"parent": "ab"}
    )
    data = done.path.read_bytes()
    assert again.path.read_bytes() == data
    assert b".py" not in data


def test_sidecar_and_metadata_say_the_same(plain):
    network, done = plain
    said = json.loads(done.sidecar.read_text())
    assert done.sidecar.name == "plain.onnx.metadata.json"
    assert said == json.loads(json.dumps(done.about))
    inside = {p.key: p.value for p in onnx.load(done.path).metadata_props}
    outside = {k: v for k, v in said.items() if k not in ("sha256", "parity", "scores")}
    assert inside == {k: v if isinstance(v, str) else json.dumps(v) for k, v in outside.items()}
    assert said["sha256"] == hashlib.sha256(done.path.read_bytes()).hexdigest()
    chain = WeightChain.from_teacher(network, NORMALISED, "nested", check=False)
    assert (said["parameters"], said["macs"]) == chain.costs(chain.groups)
    assert said.items() >= {
        "model_name": "resnet18_x0_0625", "img_size": list(SIZE), "preprocess": "resize",
        "input": "normalised", "normalisation_baked": False, "l2_baked": False, "feature_dim": 32,
        "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "precision": "float32",
        "format": "onnx", "metric": "cosine", "parent": "ab", "widths": {},
        "versions": provenance()["versions"],
    }.items()  # fmt: skip


@pytest.mark.parametrize("form", ["torchscript", "torch-export"])
def test_torch_formats(form, folder):
    network, path = small(), folder / f"file{formats.SUFFIXES[form]}"
    export_model(network, path, size=SIZE, form=form, inputs="uint8")
    extra = {"oskt.json": ""}
    if form == "torchscript":
        loaded = torch.jit.load(path, _extra_files=extra)
    else:
        loaded = torch.export.load(path, extra_files=extra).module()
    for count in (1, 5):
        assert_near(embedded(loaded, PIXELS[:count]), embedded(network, NORMALISED[:count]))
    assert json.loads(extra["oskt.json"])["input"] == "uint8"
    assert_near(export.load(path, trusted=True)(NORMALISED), embedded(network, NORMALISED))


def test_another_size_than_the_file_takes_is_refused(folder):
    export_model(small(), folder / "size.torchscript", size=SIZE, form="torchscript")
    taller = torch.zeros(1, 3, SIZE[0] + 1, SIZE[1])
    with pytest.raises(ValueError, match=r"images must be of the file's size .*Leave --height and"):
        export.load(folder / "size.torchscript")(taller)


def test_a_file_that_can_run_code_is_opened_on_request_only(tmp_path):
    (tmp_path / "theirs.pt2").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"a \.pt2 file must be trusted, got .*--trusted"):
        export.load(tmp_path / "theirs.pt2")


def test_rgb_in_unit_range():
    copy = deploy(small(), NORMALISED, "rgb")
    assert_near(embedded(copy, PIXELS / 255), embedded(small(), NORMALISED))


def test_transformers():
    network = VisionTransformer(24, 2, 2, patch=8, image=SIZE, num_classes=4, stem_dim=36).eval()
    copy = deploy(network, NORMALISED)
    assert copy.state_dict()["network.patch_embed.proj.weight"].shape == (24, 3, 8, 8)
    for form in ("onnx", "torchscript"):
        run, _ = formats.unpack(formats.pack(copy, NORMALISED[:2], form, {}), form)
        for count in (1, 5):
            ours = run(NORMALISED[:count].numpy())
            assert_near(ours, embedded(network, NORMALISED[:count]))


def test_networks_of_ones_own(folder):
    """Any module that embeds, its size traced as everywhere; a layer called head is no head."""
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten())  # fmt: skip
    network.add_module("head", nn.Linear(6, 5))
    done = export_model(network, folder, size=SIZE, form="torchscript")
    assert done.path.name == "sequential.torchscript"
    assert done.about["parameters"] == 3 * 6 * 9 + 6 + 12 + 35
    assert network.training


# -- int8 ---------------------------------------------------------------------------------------


def test_int8_file(baked):
    network, done = baked
    model = onnx.load(done.path)
    kinds = [node.op_type for node in model.graph.node]
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(kinds)
    weights = [t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[1] > 1]
    assert {t.data_type for t in weights} == {TensorProto.INT8, TensorProto.FLOAT}
    assert sum(t.data_type == TensorProto.FLOAT for t in weights) == 2  # scale and shift of pixels
    ours = torch.from_numpy(session_of(done.path).run(None, {"images": PIXELS.numpy()})[0])
    theirs = F.normalize(embedded(network, NORMALISED))
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(5))
    assert float(F.cosine_similarity(ours, theirs).min()) > 0.9
    assert not torch.equal(ours, theirs)


def test_int8_sidecar(baked):
    network, done = baked
    assert set(done.parity) == {"noise", "images", "int8"}
    assert done.parity["images"].images == 40
    assert done.about["precision"] == "int8"
    assert json.loads(done.sidecar.read_text())["scores"] == done.scores
    assert {p.key: p.value for p in onnx.load(done.path).metadata_props}["precision"] == "int8"
    whole = float(F.normalize(embedded(network, NORMALISED)).sum())
    assert done.scores["float32"]["sum"] == pytest.approx(whole, rel=1e-4)
    assert done.scores["int8"]["sum"] == float(export.load(done.path)(NORMALISED).sum())


# -- what is refused ----------------------------------------------------------------------------


def test_a_file_that_differs_is_not_left(tmp_path, monkeypatch, pictures):
    network, path = small(), tmp_path / "a.torchscript"
    path.write_bytes(b"old")
    pack = formats.pack

    def wrong(copy, *arguments):
        copy.network.layer4[0].conv2.weight.mul_(1.01)
        return pack(copy, *arguments)

    monkeypatch.setattr(formats, "pack", wrong)
    with pytest.raises(ValueError, match=r"must equal the network .* got least cosine .*\(noise\)"):
        export_model(network, path, size=SIZE, form="torchscript")
    assert [p.name for p in tmp_path.iterdir()] == ["a.torchscript"]
    assert path.read_bytes() == b"old"


def test_an_int8_file_that_differs_is_not_left(tmp_path, monkeypatch, pictures, plain):
    network, done = plain
    model = onnx.load(done.path)
    for tensor in (t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT):
        noise = torch.randn(list(tensor.dims)).numpy()
        tensor.CopyFrom(onnx.numpy_helper.from_array(noise, tensor.name))
    monkeypatch.setattr(formats, "pack", lambda *_: done.path.read_bytes())
    monkeypatch.setattr(export, "quantise", lambda *_: model.SerializeToString())
    with pytest.raises(ValueError, match=r"int8 must keep a mean cosine of 0\.9 to float32, got"):
        export_model(network, tmp_path / "a.onnx", size=SIZE, int8=True, images=pictures)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "a.onnx",
            {"form": "tflite"},
            "format must be one of onnx, torchscript, torch-ex",
        ),
        ("a.pt", {}, r"path must end in \.onnx for onnx, got '.*a\.pt'"),
        ("a.onnx", {"inputs": "bgr"}, "input must be one of normalised, rgb, uint8, got 'bgr'"),
        ("a.onnx", {"size": (0, 8)}, r"size must be \(height, width\) >= 1, got \(0, 8\)"),
        ("a.pt2", {"int8": True, "form": "torch-export"}, "format must be onnx for int8, got"),
        ("a.onnx", {"int8": True}, "images must be given for int8, got none"),
    ],
)
def test_wrong_arguments(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(small(), tmp_path / name, **{"size": SIZE, **options})
    assert list(tmp_path.iterdir()) == []


def test_wrong_networks_and_places(tmp_path):
    path = tmp_path / "a.torchscript"
    broken = small()
    broken.conv1.weight.data.fill_(float("nan"))
    for network, message in [
        (broken, "model must give finite embeddings, got NaN or Inf"),
        (nn.Conv2d(3, 4, 1), r"model must give embeddings of shape \(2, F\)"),
        (VisionTransformer(24, 1, 2, image=(64, 32)), r"images must be 64 x 32"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_model(network, path, size=SIZE, form="torchscript")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="must be writable"):
        export_model(small(), tmp_path / "file" / "a.torchscript", size=SIZE, form="torchscript")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    message = r"must be installed for ONNX files, got no onnxscript\. Run: pip install 'oskt\[exp"
    with pytest.raises(ImportError, match=message):
        export_model(small(), tmp_path / "a.onnx", size=SIZE)
    with pytest.raises(ImportError, match=message):
        export.load(tmp_path / "a.onnx")
    export_model(small(), tmp_path / "a.torchscript", size=SIZE, form="torchscript")


def test_foreign_files(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.onnx or \.torchscript or \.pt2, got"):
        export.load(tmp_path / "a.engine")
    with pytest.raises(FileNotFoundError, match=r"^export: path must be a file, got .*a\.onnx"):
        export.load(tmp_path / "a.onnx")
    for suffix in (".onnx", ".torchscript", ".pt2"):
        (tmp_path / f"damaged{suffix}").write_bytes(b"no network")
        with pytest.raises(
            ValueError, match=r"^export: the file must be a whole \S+ file, got '\S"
        ):
            export.load(tmp_path / f"damaged{suffix}", trusted=True)
    torch.jit.save(torch.jit.trace(nn.Flatten(), NORMALISED), tmp_path / "a.torchscript")
    with pytest.raises(ValueError, match="must say how it takes images, got no such metadata"):
        export.load(tmp_path / "a.torchscript")


def test_names():
    for network, name in [
        (ResNet(50, 64, layers=(1, 1, 1, 1)), "resnet50_x1_0"),
        (ResNet(101, 8, layers=(1, 1, 1, 1)), "resnet101_x0_125"),
        (OSNet(0.25), "osnet_x0_25"),
        (VisionTransformer(24, 1, 2), "vit_24"),
        (nn.Flatten(), "flatten"),
    ]:
        assert sidecar.name_of(network) == name


# -- the command --------------------------------------------------------------------------------


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def work(folder):
    """A data set, a chain and a model file of a network of 32 x 16 pixels."""
    make_pedestrians(
        folder / "data", train_ids=6, test_ids=4, images_per_id=4, cameras=2, height=32, width=16,
        workers=1,
    )  # fmt: skip
    network, recipe = small(), {"recipe": {"height": 32, "width": 16}}
    chain = WeightChain.from_teacher(network, NORMALISED, "nested", width=1 / 2, check=False)
    chain.meta.update(recipe)
    chain.save(folder / "chain.safetensors")
    meta = {"spec": network.spec, "metrics": {"mAP": 0.5}, **recipe}
    save_model(folder / "model.safetensors", network, meta)
    return folder


def test_command_from_a_chain_with_int8(work):
    """One call from chain to a quantised file, whose score is what `oskt evaluate` finds."""
    out = work / "student.onnx"
    output = run(
        "export", work / "chain.safetensors", "--width", 0.5, "--out", out, "--input", "uint8",
        "--int8", "--data", work / "data",
    )  # fmt: skip
    for line in (
        "parity on noise: least cosine",
        "parity on images: least cosine",
        "int8 against float32: least cosine",
        "float32: mAP",
        "int8: mAP",
        "images (N, 3, 32, 16) -> output0 (N, 16)",
    ):
        assert line in output
    said = json.loads(sidecar.path_of(out).read_text())
    assert said["widths"]["conv1"] == 2
    assert said["parent"] == file_hash(work / "chain.safetensors")
    run("evaluate", out, "--data", work / "data", "--json", work / "scores.json", "--device", "cpu")
    found = json.loads((work / "scores.json").read_text())["mAP"]
    assert found == pytest.approx(said["scores"]["int8"]["mAP"])


def test_command_takes_the_size_of_images_from_flags_else_from_the_trace(work, monkeypatch):
    """So do MACs, and what looks at images."""
    WeightChain.from_teacher(small(), NORMALISED, "nested", check=False).save(work / "traced")
    seen = {}

    def stop(network, out, *, size, **options):
        seen[size] = sidecar.describe(network, size)["macs"]
        raise ValueError("stopped")

    def look(_, images):
        raise ValueError(f"images are {tuple(images.shape)}")

    monkeypatch.setattr("oskt.cli.export.export_model", stop)
    monkeypatch.setattr(sensitivity, "measure", look)
    command = ["export", work / "traced", "--out", "never.onnx", "--macs", 1e5]
    for height in ([], ["--height", 64]):
        with pytest.raises(ValueError, match="stopped"):
            run(*command, *height)
    assert list(seen) == [(32, 16), (64, 16)]
    assert all(0.9e5 < macs <= 1e5 for macs in seen.values())
    shape = ["--shape", "measured", "--shape-data", work / "data", "--device", "cpu"]
    with pytest.raises(ValueError, match=r"images are \(\d+, 3, 64, 16\)"):
        run(*command, "--height", 64, *shape)


def test_command_from_a_model_file(work, pictures):
    (work / "out").mkdir()
    run(
        "export", work / "model.safetensors", "--out", work / "out", "--format", "torchscript",
        "--images", work / "pictures",
    )  # fmt: skip
    out = work / "out" / "resnet18_x0_0625.torchscript"
    said = json.loads(sidecar.path_of(out).read_text())
    assert said["metrics"] == {"mAP": 0.5}
    assert said["img_size"] == [32, 16]
    assert said["parity"]["images"]["images"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chain.safetensors"], "export: a chain must come with a size, got "),
        (["model.safetensors", "--width", "0.5"], "must have format 'oskt-chain/1', got"),
        (["none.safetensors"], "which does not exist"),
        (["model.safetensors", "--images", "empty"], "--images must be a folder with .jpeg, .jpg"),
    ],
)
def test_command_errors_are_one_line(arguments, message, work, monkeypatch, capsys):
    (work / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["oskt", "export", *arguments, "--out", "never.onnx"])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (work / "never.onnx").exists()
