"""Students, S-Student and refining loss of the published transformer chain (official_vit_a)."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from oskt.chain import expansion
from oskt.interop import load_published, load_published_chain
from oskt.models.vit_stem import fold_dw
from oskt.pixels import IMAGENET_MEAN, IMAGENET_STD
from oskt.train.joint import JointModel

FOLDER = "official_vit_a"


def sizes_of(chain, dim):
    """The published student of this dim: the stem stays as wide as the teacher's."""
    widths = {name: dim * (4 if "fc1" in name else 1) for name in chain.groups}
    return {**widths, "patch_embed.proj": chain.groups["patch_embed.proj"]}


def relative(a, b):
    return float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-300)


@pytest.mark.parametrize("dim", [12, 18, 30, 48])
def test_students_equal_the_published_ones(golden, dim):
    _, chain = load_published(golden / FOLDER, as_published=True)
    expected = np.load(golden / FOLDER / f"student_{dim}.npz")
    sizes = sizes_of(chain, dim)
    student = chain.expand(sizes)
    for name in expected.files:
        if not name.startswith("output"):
            # float32 sums and means of at most 10 entries: a few roundings of 6e-8
            assert relative(student[name].numpy(), expected[name]) < 1e-6, name
    images = torch.from_numpy(np.load(golden / FOLDER / "chain_forward.npz")["x"])
    module = chain.student(widths=sizes)
    with torch.no_grad():
        tokens, folded = module.tokens(images).numpy(), fold_dw(module).tokens(images).numpy()
    for i in range(4):
        # float32 through two blocks, sums of up to 768 terms: about 1e-6 of the largest
        assert relative(tokens[:, i], expected[f"output_token_{i}"]) < 1e-6
        assert relative(folded[:, i], expected[f"output_token_{i}"]) < 2e-6


def test_the_s_student_and_the_refining_loss_equal_the_published_ones(golden):
    teacher, chain = load_published(golden / FOLDER, as_published=True)
    expected = np.load(golden / FOLDER / "chain_forward.npz")
    (student,) = JointModel(teacher, chain, vectors="own").s_students()
    with torch.no_grad():
        tokens = student.tokens(torch.from_numpy(expected["x"])).numpy()
    for i in range(4):
        assert relative(tokens[:, i], expected[f"chain_token_{i}"]) < 1e-6

    joint = JointModel(teacher.double(), chain.to(torch.float64), vectors="own").double()
    loss = joint.refining_loss()
    assert relative(loss.detach().numpy(), expected["refining_loss"]) < 1e-6
    loss.backward()
    (branch,) = joint.branches
    teacher_grad = {name: p.grad for name, p in joint.teacher.named_parameters()}
    rows = branch.split_weights(branch.weights.grad)
    shapes = {name: teacher.get_parameter(name).shape for name in branch.vector_names}
    rows |= expansion.split(branch.vectors.grad, shapes)
    checked = 0
    for key in expected.files:
        if not key.startswith("refining_grad/"):
            continue
        name = key.removeprefix("refining_grad/")
        ours = re.sub(r"_(weight|bias)_gene$", r".\1", name).replace("_gene.", ".")
        mine = teacher_grad[name] if name == ours else rows[ours]
        assert relative(mine.numpy(), expected[key]) < 1e-6, name  # stored in float32: 6e-8
        checked += 1
    assert checked == len(expected.files) - 6  # x, four tokens, the loss


def test_a_chain_takes_images_as_every_network_here(golden):
    pixels = torch.rand(2, 3, *load_published(golden / FOLDER)[0].spec["image"])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        theirs, ours = (
            [network.tokens(images).numpy() for network in (teacher.eval(), chain.student(width=1))]
            for (teacher, chain), images in (
                (load_published(golden / FOLDER, as_published=True), 2 * pixels - 1),
                (load_published(golden / FOLDER), (pixels - mean) / std),
            )
        )
    for a, b in zip(theirs, ours):
        # float32 through two blocks, as above, and a rounding more of every patch
        assert relative(a, b) < 3e-6


def test_a_matcher_of_another_network_is_refused(golden, tmp_path):
    shutil.copytree(golden / FOLDER, tmp_path / "x")
    path = tmp_path / "x" / "gene_matcher.json"
    path.chmod(0o644)
    matcher = json.loads(path.read_text())
    matcher["o2g"]["blocks.1.attn.q"][0] = 11  # a cluster of the last head
    path.write_text(json.dumps(matcher))
    with pytest.raises(
        ValueError, match=r"load_published_chain: gene_matcher\.json in .* must lab"
    ):
        load_published_chain(tmp_path / "x")
