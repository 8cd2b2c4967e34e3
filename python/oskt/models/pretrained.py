"""Reading foreign checkpoints: whatever wrapped the weights, into a module, with a full account."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor, nn

from oskt.models import head_of
from oskt.models.vit import VisionTransformer
from oskt.models.vit_checkpoint import fitted

CONTAINERS = ("teacher", "model", "state_dict", "student", "ema")
PREFIXES = ("module.", "backbone.", "base.", "encoder_q.", "image_encoder.")
CLASSIFIERS = {"fc", "head", "heads", "head_dist", "classifier", "dist", "pre_logits", "projector"}
FAST_REID_NECK = "heads.bottleneck.0."

# torchreid stores its rank-1 as a NumPy scalar; these constructors only build numbers. Both names
# of the module are needed: files written by NumPy 1 and by NumPy 2 are read by either.
_NUMPY_SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
_NUMPY_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint and of every tensor of the module.

    Attributes:
        path: the file.
        matched: module names that were loaded.
        ignored: file names that the module has no place for, heads among them.
        mismatched: (module name, shape in the file, shape in the module).
        missing: module names that the file does not hold; BNNeck and classifier are not counted
            here, since a pretrained backbone comes without them.
        tensor_coverage, element_coverage: loaded share of the backbone, 0..1; heads and
            num_batches_tracked (absent from old files) are left out.
    """

    path: Path
    matched: tuple[str, ...]
    ignored: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[str, ...]
    tensor_coverage: float
    element_coverage: float

    def __str__(self) -> str:
        return (
            f"{self.path.name}: {self.tensor_coverage:.1%} of the tensors and "
            f"{self.element_coverage:.1%} of the elements loaded ({len(self.matched)} matched, "
            f"{len(self.mismatched)} of another shape, {len(self.missing)} missing, "
            f"{len(self.ignored)} of the file ignored)"
        )

    def table(self, names: int = 6) -> Table:
        """Counts with the first `names` names of each kind, for the terminal."""
        table = Table(title=str(self), title_justify="left", header_style="bold")
        table.add_column("")
        table.add_column("tensors", justify="right")
        table.add_column("names", overflow="fold")
        shapes = [f"{name} {_text(got)} for {_text(want)}" for name, got, want in self.mismatched]
        for kind, listed in (
            ("matched", self.matched),
            ("other shape", shapes),
            ("missing", self.missing),
            ("ignored", self.ignored),
        ):
            table.add_row(kind, str(len(listed)), _shorten(listed, names))
        return table


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _shorten(names: Iterable[str], count: int) -> str:
    listed = list(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more


def read_state_dict(path: str | Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read a file of weights and unwrap its containers; names stay as the file has them.

    Args:
        path: .safetensors, or anything that torch.save wrote.
        allow_pickle: unpickle arbitrary Python objects, which can run code: only for files that
            you trust. Otherwise torch's weights-only reader is used.

    Returns:
        {name: tensor}, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another kind, needing pickle, or holding no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"load_pretrained: path must be an existing file, got '{path}'. Check the spelling."
        )
    content = _read(path, allow_pickle)
    while isinstance(content, Mapping):
        boxes = (content.get(container) for container in CONTAINERS)
        inner = next((box for box in boxes if isinstance(box, (Mapping, nn.Module))), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, nn.Module):
        content = content.state_dict()
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): v for name, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        found = f"keys {_shorten(map(str, content), 6)}" if isinstance(content, Mapping) else ""
        raise ValueError(
            f"load_pretrained: '{path}' must hold named tensors, directly or under one of "
            f"{', '.join(CONTAINERS)}, got {found or type(content).__name__}. "
            "Save the network's state_dict() on its own."
        )
    return tensors


def _read(path: Path, allow_pickle: bool) -> Any:
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        raise ValueError(f"load_pretrained: '{path}' must not be empty. Download it again.")
    if start.startswith((b"<", b"version https://git-lfs")):
        kind = "a web page" if start.startswith(b"<") else "a Git LFS pointer"
        raise ValueError(
            f"load_pretrained: '{path}' must be a checkpoint, got {kind}. "
            "The download saved a stand-in for the file: fetch the file itself."
        )
    damaged = (
        f"load_pretrained: '{path}' must be a whole checkpoint (.safetensors or written by "
        f"torch.save), got {path.stat().st_size:,} bytes that cannot be read"
    )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if not start.startswith((b"PK", b"\x80")) or "Unsupported" not in reason:
            raise ValueError(f"{damaged}. Download it again.") from error
        blocked = reason.partition("GLOBAL ")[2].split(" ")[0] or "Python objects"
        raise ValueError(
            f"load_pretrained: '{path}' must hold tensors and plain values only, got {blocked}. "
            "Reading it can run code that the file brings along: if you trust its source, load it "
            "in Python with allow_pickle=True, and save its state_dict() as .safetensors."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{damaged}. Download it again.") from error


def canonical_name(name: str) -> str:
    """The name without the prefixes that trainers add; fast-reid's BNNeck becomes `bottleneck`.

    Example:
        >>> canonical_name("module.base.layer1.0.conv1.weight")
        'layer1.0.conv1.weight'
    """
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    if name.startswith(FAST_REID_NECK):
        return "bottleneck." + name.removeprefix(FAST_REID_NECK)
    return name


def _classifiers_of(module: nn.Module) -> set[str]:
    """Names that hold classifiers. A network with a stated head has its own there, and what is
    beside it counts as backbone: `fc` of the omni-scale network."""
    beside = {*module._modules} - {*(head_of(module) or module._modules)}
    return CLASSIFIERS - beside


def load_pretrained(
    module: nn.Module,
    path: str | Path,
    *,
    min_coverage: float = 0.9,
    allow_pickle: bool = False,
    classifier: bool = False,
    pixels: str = "imagenet",
) -> LoadReport:
    """Load a foreign checkpoint into a module by name and shape; nothing is guessed silently.

    Containers (teacher, model, state_dict, student, ema) are opened, trainer prefixes (module.,
    backbone., base., encoder_q., image_encoder.) are stripped on both sides, classifiers are
    dropped. So torchvision, LUPerson-NL, MoCo, Bag-of-Tricks, OSKT, fast-reid and torchreid
    residual networks load as they are, torchreid's omni-scale networks, and the vision
    transformers of PASS, timm, TransReID and OSKT, brought into the form of the module by
    `oskt.models.vit_checkpoint.fitted`.

    Args:
        module: its names follow torchvision's (conv1, layer1.0.conv1, ...) behind any prefix.
        path: .safetensors, .pth, .pth.tar, .pt.
        min_coverage: least share of the backbone's tensors and of its elements that must be
            loaded, 0..1.
        allow_pickle: see `read_state_dict`.
        classifier: also load the classifier where its name and shape match, for a teacher of the
            same identities.
        pixels: how the file's network normalised images: "imagenet" (PASS, DeiT, all residual
            networks here), or "half", mean and std 0.5 (timm's ViTs, TransReID, OSKT_ViT), which
            a vision transformer's patch embedding takes up exactly.

    Returns:
        The `LoadReport`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unreadable file, coverage below min_coverage, NaN or Inf in the weights, or
            pixels that the module cannot take up; the module is then unchanged.

    Notes:
        fast-reid normalises inside its model and pools with ceil_mode; its weights load, but
        features differ slightly from fast-reid's own.
    """
    path = Path(path)
    transformer = isinstance(module, VisionTransformer)
    if pixels not in (("imagenet", "half") if transformer else ("imagenet",)):
        raise ValueError(
            f"load_pretrained: pixels must be 'imagenet', or 'half' for a vision transformer, got "
            f"{pixels!r} for a {type(module).__name__}. Convolutions that pad with zeros cannot "
            "take up another normalisation."
        )
    tensors = read_state_dict(path, allow_pickle=allow_pickle)
    if isinstance(module, VisionTransformer):
        plain: dict[str, Tensor] = {}
        for name in sorted(tensors, key=len):
            plain.setdefault(canonical_name(name), tensors[name])
        tensors = fitted(plain, module, pixels, path)
    accepted, report = _matched(tensors, module, path, classifier)
    _refuse_low_coverage(report, min_coverage)
    damaged = [n for n, v in accepted.items() if v.is_floating_point() and not v.isfinite().all()]
    if damaged:
        raise ValueError(
            f"load_pretrained: weights in '{path}' must be finite, got NaN or Inf in "
            f"{_shorten(damaged, 3)}. The training that wrote it diverged: use an earlier file."
        )
    module.load_state_dict(accepted, strict=False)
    return report


def _matched(
    tensors: Mapping[str, Tensor], module: nn.Module, path: Path, classifier: bool
) -> tuple[dict[str, Tensor], LoadReport]:
    """What a module takes of a file's tensors, by its own names, and the account of the rest."""
    classifiers = _classifiers_of(module)

    def classifies(name: str) -> bool:
        return name.partition(".")[0] in classifiers

    def in_backbone(name: str) -> bool:
        head = classifies(name) or name.startswith("bottleneck")
        return not head and not name.endswith("num_batches_tracked")

    places = {canonical_name(name): name for name in module.state_dict()}
    own = module.state_dict()
    accepted: dict[str, Tensor] = {}
    ignored: set[str] = set()
    mismatched = []
    # Shortest first: where stripping makes two names equal, the plainer one is meant.
    for name in sorted(tensors, key=len):
        canonical = canonical_name(name)
        place = places.get(canonical)
        dropped = classifies(canonical) and not classifier
        if place is None or place in accepted or dropped:
            ignored.add(name)
        elif tensors[name].shape != own[place].shape:
            if classifies(canonical):
                ignored.add(name)
            else:
                shapes = tuple(tensors[name].shape), tuple(own[place].shape)
                mismatched.append((place, *shapes))
        else:
            accepted[place] = tensors[name]
    backbone = {place for canonical, place in places.items() if in_backbone(canonical)}
    loaded = backbone & accepted.keys()
    strange = {place for place, _, _ in mismatched}
    report = LoadReport(
        path=path,
        matched=tuple(name for name in own if name in accepted),
        ignored=tuple(name for name in tensors if name in ignored),
        mismatched=tuple(mismatched),
        missing=tuple(n for n in own if n in backbone and n not in loaded and n not in strange),
        tensor_coverage=len(loaded) / max(len(backbone), 1),
        element_coverage=sum(own[n].numel() for n in loaded)
        / max(sum(own[n].numel() for n in backbone), 1),
    )
    return accepted, report


def _refuse_low_coverage(report: LoadReport, min_coverage: float) -> None:
    if min(report.tensor_coverage, report.element_coverage) >= min_coverage:
        return
    shapes = [f"{n} is {_text(got)}, needs {_text(want)}" for n, got, want in report.mismatched]
    reasons = [
        f"{label}: {_shorten(names, 5)}"
        for label, names in (
            ("other shapes", shapes),
            ("missing from the file", report.missing),
            ("not in the module", report.ignored),
        )
        if names
    ]
    raise ValueError(
        f"load_pretrained: coverage must be at least {min_coverage:.0%}, got {report}.\n  "
        + "\n  ".join(reasons)
        + "\nBuild the module with the architecture and width of the file, or lower min_coverage."
    )
