"""The weight chain: a teacher's knowledge in one flat buffer, and students of any width from it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import oskt_ext
from oskt import models, reading, students, widths
from oskt.chain import expansion, verification
from oskt.coupling import Coupling
from oskt.coupling.clustering import cluster_channels, nest_channels
from oskt.coupling.grouping import trace_coupling
from oskt.coupling.tracing import on_meta
from oskt.files import chain_file, progressive
from oskt.files.checkpoint import read_tensors, write_tensors
from oskt.files.contents import Contents, apart
from oskt.files.part_file import Source, is_part_file
from oskt.files.tensor_file import CHAIN
from oskt.reading import Item
from oskt.widths.budget import Timer
from oskt.widths.latency import Meter
from oskt.widths.merge_tree import MergeTree, Partitions
from oskt.widths.shapes import Curves
from oskt.widths.sizes import Sizes

KINDS = ("oskt", "nested")
WEIGHTS, VECTORS, STATISTICS = ("weight",), ("vector",), ("statistic",)
Saliency = Callable[[nn.Module], Mapping[str, Tensor]]


class WeightChain(Sizes):
    """A teacher's knowledge, from which students of every width are read.

    Kind "oskt", the published chain: the M cluster rows of every weight over all N teacher
    columns, and all N entries of the teacher's vectors. Kind "nested", ours: the teacher's own
    weights, and a nesting of every group's channels (MergeTree): a student has the most important
    ones or, where clusters merge, the merge at a cut, rows averaged and columns summed.

    Make one with `from_teacher`, `load` or `oskt.interop.load_published_chain`; read students from
    it with `student` (a module) or `expand` (its tensors).

    Attributes:
        coupling: the channel groups of the teacher.
        partitions: free group -> Clustering (labels N -> M) or, in a nested chain, MergeTree.
        weights: flat, the chain rows of every weight, in state-dict order.
        vectors: flat, all N teacher entries of every norm parameter and bias.
        statistics: flat, running statistics: the S-Student's (M entries each) or, in a nested
            chain, those of full width.
        plain: tensors that no group touches, as they are.
        absent: weights that only training needs (a classifier) and that the file left out.
        template: the teacher's structure without its parameters; None if it is not known.
        meta: kind, spec of the model, parent hash and how the chain was made.

    Source: OSKT, arXiv 2511.06016, section 3. Differences: running statistics travel, and the
    classifier is a weight of the chain like any other.
    """

    def __init__(
        self,
        coupling: Coupling,
        partitions: Partitions,
        weights: Tensor,
        vectors: Tensor,
        statistics: Tensor,
        plain: Mapping[str, Tensor],
        *,
        absent: Sequence[str] = (),
        template: nn.Module | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(coupling, partitions, absent=absent, meta=meta)
        self.weights, self.vectors, self.statistics = weights, vectors, statistics
        self.plain = dict(plain)
        self.template = template
        if template is not None:
            self.meta["head"] = list(models.head_of(template))

    # -- making ---------------------------------------------------------------------------------

    @staticmethod
    def from_teacher(
        module: nn.Module,
        example_inputs: Tensor | Sequence[Tensor],
        kind: str = "oskt",
        width: float | None = None,
        *,
        widths: Mapping[str, int] | None = None,
        rows: str = "folded",
        method: str | None = None,
        seed: int = 0,
        saliency: Saliency | None = None,
        check: bool = True,
        parent: str = "",
    ) -> WeightChain:
        """Make a chain of a teacher: cluster its channels, or nest them.

        Args:
            module: the teacher; any module that traces (see trace_coupling). Left untouched.
            example_inputs: the forward's arguments, e.g. torch.zeros(2, 3, 256, 128).
            kind: "oskt", the published chain, or "nested".
            width: share of the teacher's channels in every free group, in (0, 1]; default 1/8. Of
                a chain of kind "oskt" the chain's own width, of a nested one the narrowest that
                `oskt.train.refine_chain` trains.
            widths: group -> channels, in place of or on top of `width`.
            rows: what is clustered (see oskt.coupling.clustering); an order does not read it.
            method, seed: how: "kmeans" (default), "ward" or "random" (see cluster_channels); of a
                nested chain "saliency" (default where it is given), "magnitude" (default else),
                "ward" or "random" (see nest_channels).
            saliency: asked for the order of that name: module -> parameter -> what each number is
                worth to the loss, `lambda net: oskt.train.saliency(net, batches, recipe)`.
            check: check every group numerically (about two forwards in float64); groups that fail
                are frozen, with the reason in chain.coupling.groups.
            parent: hash of the teacher's file, kept in the header.

        Returns:
            The chain, its tensors on the teacher's device and in its dtype.

        Raises:
            ValueError: width or widths out of range, NaN in the teacher, unknown kind.

        Example:
            >>> import torch
            >>> from oskt.models.resnet import ResNet
            >>> teacher = ResNet(18, in_planes=8)
            >>> chain = WeightChain.from_teacher(teacher, torch.zeros(2, 3, 64, 32), width=1 / 4)
            >>> chain.student(width=1 / 2).eval()(torch.zeros(2, 3, 64, 32)).shape
            torch.Size([2, 32])
        """
        if kind not in KINDS:
            raise ValueError(
                f"WeightChain.from_teacher: kind must be one of {KINDS}, got {kind!r}. "
                "'oskt' is the published chain, 'nested' serves every width."
            )
        width = 1 / 8 if width is None else width
        if not 0 < width <= 1:
            raise ValueError(
                f"WeightChain.from_teacher: width must be in (0, 1], got {width}. "
                "Give the chain's share of the teacher's channels, e.g. 1/8."
            )
        inputs = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
        coupling = trace_coupling(module, inputs)
        if check:
            coupling = verification.checked(module, inputs, coupling, WeightChain.of_partitions)
        narrowest = _narrowest(coupling, width, widths or {})
        tensors = module.state_dict()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"WeightChain.from_teacher: teacher must be finite, got NaN or Inf in {name}. "
                    "Use a checkpoint from before the training diverged."
                )
        meta = {"kind": kind, "spec": getattr(module, "spec", None), "parent": parent}
        if kind == "nested":
            return WeightChain.of_order(
                module, coupling, narrowest, meta, method=method, rows=rows, seed=seed,
                saliency=saliency,
            )  # fmt: skip
        return WeightChain.of_clusters(
            module, coupling, narrowest, meta, method=method or "kmeans", rows=rows, seed=seed
        )

    @staticmethod
    def of_clusters(
        module: nn.Module,
        coupling: Coupling,
        clusters: Mapping[str, int],
        meta: Mapping[str, Any],
        *,
        method: str,
        rows: str,
        seed: int,
    ) -> WeightChain:
        """The published chain of a module of known channel groups; arguments of from_teacher.

        Args:
            clusters: group -> the chain's width; there its student is the module with the channels
                of every cluster merged.
            meta: as of `of_partitions`; how the channels are clustered is added.
        """
        partitions, loss = cluster_channels(
            coupling, module.state_dict(), clusters, rows=rows, method=method, seed=seed
        )
        made = {"rows": rows, "method": method, "seed": seed, "loss": loss}
        return WeightChain.of_partitions(module, coupling, partitions, {**meta, "clustering": made})

    @staticmethod
    def of_order(
        module: nn.Module,
        coupling: Coupling,
        narrowest: Mapping[str, int],
        meta: Mapping[str, Any],
        *,
        method: str | None,
        rows: str,
        seed: int,
        saliency: Saliency | None,
    ) -> WeightChain:
        """The nested chain of a module whose channel groups are known; arguments of from_teacher.

        Args:
            narrowest: group -> the narrowest width that is trained.
            meta: as of `of_partitions`; how the channels are ordered is added.
        """
        method = method or ("magnitude" if saliency is None else "saliency")
        trees, adds = nest_channels(
            coupling, module.state_dict(), narrowest, method=method, rows=rows, seed=seed,
            saliency=saliency(module) if saliency and method == "saliency" else None,
        )  # fmt: skip
        made = {"rows": rows, "method": method, "seed": seed, "adds": adds}
        return WeightChain.of_partitions(module, coupling, trees, {**meta, "clustering": made})

    @staticmethod
    def of_partitions(
        module: nn.Module,
        coupling: Coupling,
        partitions: Partitions,
        meta: Mapping[str, Any],
    ) -> WeightChain:
        """The chain of given clusterings (a row is the mean of its members' raw rows) or trees.

        Args:
            module: the teacher, left untouched; its numbers are read.
            coupling: its channel groups.
            partitions: free group -> Clustering or MergeTree. Statistics measured at other widths
                are forgotten: the module has those of full width alone.
            meta: kind, spec and what else is known, JSON values.
        """
        tensors = module.state_dict()
        like = next((t for t in tensors.values() if t.is_floating_point()), torch.empty(0))
        partitions = {
            name: replace(partition, measured=()) if isinstance(partition, MergeTree) else partition
            for name, partition in partitions.items()
        }

        def section(roles: Sequence[str]) -> Tensor:
            layouts = coupling.layouts_of(roles)
            flat = expansion.flat((tensors[layout.name].detach() for layout in layouts), like)
            plan = expansion.plan(reading.chain(coupling, partitions, layouts))
            return oskt_ext.expand(flat, plan.to(flat.device))

        plain = {
            layout.name: tensors[layout.name].detach().clone()
            for layout in coupling.layouts_of(("plain",))
        }
        template = on_meta(module, buffers=False)
        weights, vectors, statistics = map(section, (WEIGHTS, VECTORS, STATISTICS))
        return WeightChain(
            coupling, partitions, weights, vectors, statistics, plain, template=template, meta=meta
        )

    def transferred(self, module: nn.Module) -> WeightChain:
        """The chain of another teacher, under this one's clusters, trees or order of channels.

        So a nested chain goes on on other data: its full width, trained further or given another
        classifier, keeps the order in which its channels were trained to serve narrow students;
        `from_teacher` would order them anew.

        Args:
            module: of the architecture that the chain was made from, its classifier of any number
                of identities; left untouched.

        Returns:
            The chain on the module's device, without the norm statistics of other widths.

        Raises:
            ValueError: a module of other tensors or of other widths.

        Example:
            >>> from oskt import students
            >>> from oskt.models.resnet import ResNet
            >>> teacher, images = ResNet(18, in_planes=8, num_classes=10), torch.zeros(2, 3, 64, 32)
            >>> chain = WeightChain.from_teacher(teacher, images, "nested", check=False)
            >>> whole = chain.student(width=1.0)
            >>> students.replace_classifier(whole, 7)
            >>> chain.transferred(whole).student(width=1 / 2).classifier.weight.shape
            torch.Size([7, 32])
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        sizes = {}
        for layout in self.coupling.layouts.values():
            shape = shapes.get(layout.name, layout.shape)
            if shape != layout.shape and len(layout.rows) == 1:
                [(group, area)] = layout.rows
                if group not in self.partitions:
                    sizes[group] = shape[layout.dim] // area
        coupling = self.coupling.resized(sizes)
        _check_tensors("WeightChain.transferred: module", shapes, coupling, "the chain")
        meta = {**self.meta, "spec": getattr(module, "spec", None)}
        if "whole" in meta:  # a truncated chain knows the widths before
            meta["whole"] = {**meta["whole"], **sizes}
        return WeightChain.of_partitions(module, coupling, self.partitions, meta)

    # -- students -------------------------------------------------------------------------------

    def expand(
        self, widths: Mapping[str, int] | None = None, *, norm: str = "interpolate"
    ) -> dict[str, Tensor]:
        """The tensors of a student, by state-dict name, in one operator call.

        Args:
            widths: group -> n, M <= n <= N; groups not named stay at chain width.
            norm: "interpolate" (published): a copy's gamma, beta and biases are the mean over its
                own block, so that width goes from the chain to the teacher; "exact": over its whole
                cluster, so that every width computes the S-Student's function; norms over channels
                then come with the weights of their mean, `PATH.share` (see oskt.norms). A nested
                chain has one way: as its rows are read.

        Returns:
            name -> tensor; views of one flat buffer (and copies of tensors that no group touches).

        Raises:
            ValueError: unknown group or norm, or a width out of range.
        """
        sizes = self.resolve(widths=widths or {})
        items = reading.student(self.coupling, self.partitions, sizes, norm, self.layouts)
        shares = reading.student_shares(self.coupling, self.clusterings, sizes, norm)
        return self._named(self._read(items), sizes, shares)

    def _read(self, items: Sequence[Item]) -> Tensor:
        flat = torch.cat([self.weights, self.vectors, self.statistics])
        return oskt_ext.expand(flat, expansion.plan(items).to(flat.device))

    def _named(
        self, student: Tensor, sizes: Mapping[str, int], shares: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, Tensor]:
        tensors = expansion.split(student, self.shapes(sizes))
        tensors |= {name: tensor.clone() for name, tensor in self.plain.items()}
        return tensors | {name: torch.from_numpy(s).to(student) for name, s in shares.items()}

    def student(
        self,
        *,
        width: float | None = None,
        widths: Mapping[str, int] | None = None,
        preset: str | None = None,
        params: float | None = None,
        macs: float | None = None,
        memory_mb: float | None = None,
        latency_ms: float | None = None,
        device: str | Timer = "cpu",
        shape: str | Curves = "uniform",
        norm: str = "interpolate",
    ) -> nn.Module:
        """A student module, ready to run: give one of width, widths, preset and a budget.

        Args:
            width: share of the teacher's channels in every group, in (0, 1].
            widths: group -> channels; groups not named stay at chain width.
            preset: a size of the paper, e.g. "res50-s1".
            params, macs, memory_mb, latency_ms: a budget, any of them together: at most so many
                parameters and MACs per image, of the backbone at the traced input size, megabytes
                in float32, and measured milliseconds for one image.
            device: where latency is measured, or an oskt.widths.latency.Meter, which remembers.
            shape: of a student by budget: "uniform", "sensitivity" or curves (see Sizes.resolve).
            norm: "interpolate", "exact" (see expand) or, of a published chain, "cosine": exact, and
                the channels of the embedding scaled by 1/sqrt(copies), so that cosines too are the
                S-Student's: students of every width then search one another's galleries.

        Returns:
            A module of the teacher's class in evaluation mode, with `widths` as an attribute and,
            if latency was limited, `latency`: what was measured (oskt.widths.latency.Latency).

        Raises:
            ValueError: a chain without a template, unknown norm, "cosine" of a nested chain, or see
                Sizes.resolve.
        """
        if self.template is None:
            raise ValueError(
                "WeightChain.student: template must be known to build a module, got a chain "
                f"without one (spec {self.meta.get('spec')}). Pass template= to WeightChain.load."
            )
        if norm == "cosine" and self.kind == "nested":
            raise ValueError(
                "WeightChain.student: norm 'cosine' must be of a published chain, got kind "
                "'nested'. Its students compute functions of their own: leave norm out."
            )
        timer = None if latency_ms is None else self._timer(device)
        sizes = self.resolve(
            width, widths, preset, params, macs, memory_mb, latency_ms,
            device=timer or device, shape=shape,
        )  # fmt: skip
        tensors = self.expand(sizes, norm="exact" if norm == "cosine" else norm)
        module = self._module(tensors, sizes)
        if norm == "cosine":
            shares = reading.copy_shares(self.clusterings, sizes)
            feature = reading.shares_on(self.coupling, self.coupling.outputs[-1][-1], shares)
            students.scale_features(module, torch.from_numpy(feature).sqrt())
        students.set_widths(module, sizes)
        if isinstance(timer, Meter):
            module.__dict__["latency"] = timer.latency(sizes)
        return module

    def _timer(self, device: str | Timer) -> Timer:
        return Meter(self, device) if isinstance(device, str) else device

    def _module(self, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> nn.Module:
        assert self.template is not None
        module = students.narrow(self.template, self.coupling, sizes)
        return students.fill(module, tensors, self.absent).eval()

    def tied(self, widths: Mapping[str, int]) -> nn.Module:
        """The full-width network that computes what the student of these widths of a nested chain
        computes (see verify): its channels equal within the clusters at the cut or, where clusters
        do not merge, zero but for the student's."""
        sizes = self.resolve(widths=widths)
        items = reading.tied(self.coupling, self.trees, sizes, self.layouts)
        shares = reading.norm_shares(self.coupling, reading.tied_shares(self.trees, sizes))
        return self._module(self._named(self._read(items), self.groups, shares), self.groups)

    def truncated(self, width: float | Mapping[str, int]) -> WeightChain:
        """The nested chain whose full width is this student: it holds every narrower one.

        Args:
            width: share of the channels in every group, in (0, 1], or group -> channels.

        Raises:
            ValueError: a chain of kind "oskt", whose rows serve all widths, or width out of range.
        """
        if self.kind != "nested":
            raise ValueError(
                f"WeightChain.truncated: chain must be nested, got kind {self.kind!r}. "
                "A published chain cannot be cut: its columns stay at teacher width."
            )
        given = {"widths": width} if isinstance(width, Mapping) else {"width": width}
        sizes, template = self.resolve(**given), self.template
        if template is not None:
            template = students.narrow(template, self.coupling, sizes)
        student = self._read(reading.truncation(self.coupling, self.trees, sizes, self.layouts))
        lengths = [
            sum(math.prod(self.coupling.shape(t.name, sizes)) for t in self.layouts if t.role == r)
            for r in ("weight", "vector")
        ]
        weights, vectors, statistics = student.tensor_split(list(itertools.accumulate(lengths)))
        return WeightChain(
            self.coupling.resized(sizes),
            {name: tree.truncated(sizes[name]) for name, tree in self.trees.items()},
            weights,
            vectors,
            statistics,
            self.plain,
            absent=self.absent,
            template=template,
            meta={"whole": self.groups, **self.meta},
        )

    def verify(self, *, quiet: bool = False) -> float:
        """Measure the chain's identity on random inputs of the traced shapes, in float64.

        Kind "oskt": `exact` students of every width compute the S-Student's function. Nested: a
        student computes the function of `tied`. Prints the relative deviation per width unless
        `quiet`, and returns the largest.
        """
        worst = 0.0
        for label, deviation in verification.deviations(self):
            worst = max(worst, deviation)
            if not quiet:
                print(f"  {label:<28} {deviation:.2e}")
        return worst

    # -- files ----------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> WeightChain:
        """The chain on another device or in another dtype (as Tensor.to); whole numbers stay so."""
        moved = copy.copy(self)
        for name in ("weights", "vectors", "statistics"):
            setattr(moved, name, getattr(self, name).to(*args, **kwargs))
        device = moved.weights.device

        def move(tensor: Tensor) -> Tensor:
            if tensor.is_meta:  # of the template, which is structure
                return tensor
            floating = tensor.is_floating_point()
            return tensor.to(*args, **kwargs) if floating else tensor.to(device)

        moved.plain = {name: move(tensor) for name, tensor in self.plain.items()}
        if self.template is not None:  # buffers that no state dict has, such as fixed filters
            moved.template = copy.deepcopy(self.template)._apply(move)
        return moved

    def save(
        self, path: str | Path, *, dtype: torch.dtype | None = None, classifier: bool = False
    ) -> None:
        """Write the chain as safetensors with a JSON header; whole or not at all.

        Args:
            path: target file.
            dtype: storage of weights and vectors, e.g. torch.float16; default as they are.
            classifier: keep weights that only training needs. They are as wide as the teacher
                (751 identities x 2048: 6 MB) and useless for other data.
        """
        stored = self.stored(dtype, classifier)
        write_tensors(path, CHAIN, stored.tensors(), stored.header())

    def stored(self, dtype: torch.dtype | None, classifier: bool) -> Contents:
        """What a file of `save` with these options keeps."""
        chain = self if classifier else self.lean()
        return replace(
            chain.contents(), weights=chain.weights.to(dtype), vectors=chain.vectors.to(dtype)
        )

    def contents(self) -> Contents:
        """What a file keeps of the chain."""
        return Contents(
            self.coupling, self.partitions, self.weights, self.vectors, self.statistics,
            self.plain, self.absent, self.meta,
        )  # fmt: skip

    def lean(self) -> WeightChain:
        """The chain without the weights that only training needs."""
        layouts = self.coupling.layouts_of(WEIGHTS, self.absent)
        rows = expansion.split(self.weights, {t.name: self.source_shape(t) for t in layouts})
        lean = copy.copy(self)
        lean.absent = tuple(sorted({*self.absent, *self.coupling.training_only}))
        kept = (part for name, part in rows.items() if name not in lean.absent)
        lean.weights = expansion.flat(kept, self.weights)
        return lean

    @staticmethod
    def load(source: Source, *, template: nn.Module | None = None) -> WeightChain:
        """Read a chain of `save`, or a progressive one as far as it is here.

        Args:
            source: a file of `save` or oskt.files.progressive.write, or bytes from the beginning of
                a progressive one.
            template: the teacher's module; needed only for those that oskt.models does not build.

        Raises:
            FileNotFoundError: no such file.
            ValueError: truncated, edited or foreign file, or a ladder of several chains; template
                of another architecture.
        """
        contents = chain_file.single(source, read_contents(source))
        return WeightChain.of_contents(contents, source, template)

    @staticmethod
    def of_contents(contents: Contents, source: Source, template: nn.Module | None) -> WeightChain:
        """A chain of a file; errors name the file."""
        coupling, meta = contents.coupling, contents.meta
        if template is None and meta.get("spec") is not None:
            with torch.device("meta"):
                template = models.build(meta["spec"])
        if template is not None:
            whole = coupling.resized(meta.get("whole", {}))
            shapes = {name: tuple(tensor.shape) for name, tensor in template.state_dict().items()}
            file = "these bytes" if isinstance(source, bytes) else source
            _check_tensors("WeightChain.load: template", shapes, whole, f"the chain in {file}")
            template = students.narrow(template, coupling, {})
        storage = contents.statistics.dtype
        return WeightChain(
            coupling,
            contents.partitions,
            contents.weights.to(storage),
            contents.vectors.to(storage),
            contents.statistics,
            contents.plain,
            absent=contents.absent,
            template=template,
            meta=meta,
        )


def read_contents(source: Source) -> list[Contents]:
    """Every chain of a chain file, or those of a progressive one, with tensors on the CPU."""
    if isinstance(source, bytes) or is_part_file(source):
        return [contents.mapped(torch.from_numpy) for contents in progressive.read(source)]
    return apart(*read_tensors(source, CHAIN))


def _check_tensors(
    who: str, shapes: Mapping[str, tuple[int, ...]], coupling: Coupling, chain: str
) -> None:
    """A module must have the tensors that a chain was made from, in their shapes."""
    wanted = {name: layout.shape for name, layout in coupling.layouts.items()}
    wrong = [n for n in wanted if shapes.get(n) != wanted[n]] + [
        n for n in shapes if n not in wanted
    ]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{who} must have the tensors of {chain}, got "
            f"{name} {shapes.get(name)} for {wanted.get(name)} ({len(wrong)} differ). "
            "Give a module of the architecture that the chain was made from."
        )


def _narrowest(coupling: Coupling, width: float, given: Mapping[str, int]) -> dict[str, int]:
    named = widths.resolve(coupling, given, {})
    return {
        name: named.get(name, widths.round_width(group, width))
        for name, group in coupling.free.items()
    }
