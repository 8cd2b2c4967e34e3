"""Recipes: what one training stage does, as plain values; every field is a command-line flag.

A recipe holds numbers only. The names of published ones are the keys of RECIPES; a variation is
`dataclasses.replace(RECIPES["paper-teacher"], lr=1e-3)`.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin


def flag(default: Any, help: str) -> Any:
    """A field of a dataclass that is a command-line flag, too; `help` says what it is, and its
    unit and range."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained; the defaults are the strong baseline that the field shares.

    Every field carries its help text, unit included, in `field.metadata["help"]`.

    Raises:
        ValueError: a value out of range, or two fields that contradict each other (both named).

    Source:
        Bag of Tricks (Luo et al. 2019) and the published OSKT_CNN code.

    Example:
        >>> Recipe(epochs=5, schedule="cosine", steps=(), warmup_epochs=0).epochs
        5
    """

    epochs: int = flag(120, "passes over the training set, >= 1")
    seed: int = flag(0, "seed of everything random, >= 0")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto", "type of the matrix products; auto: bf16 or fp16 on CUDA, fp32 elsewhere"
    )

    identities: int = flag(16, "identities in a batch, of one process, >= 1")
    instances: int = flag(4, "images of each identity in a batch, >= 1")
    height: int = flag(256, "height of an image, pixels")
    width: int = flag(128, "width of an image, pixels")
    pad: int = flag(10, "border added before the random crop, pixels; 0 = no crop")
    flip: float = flag(0.5, "probability of a left-right flip, 0 to 1")
    erasing: float = flag(0.5, "probability of random erasing, 0 to 1")

    label_smoothing: float = flag(0.1, "share of the label given to all classes, 0 to below 1")
    triplet: Literal["hard", "soft", "none"] = flag(
        "hard", "triplet loss: with a margin (hard), log(1 + exp) (soft) or left out (none)"
    )
    margin: float = flag(0.3, "margin of the hard triplet loss, distance, >= 0")
    hard_factor: float = flag(
        0.0, "positives count (1 + f) times as far, negatives (1 - f), 0 to below 1"
    )
    center_weight: float = flag(0.0, "weight of the center loss, >= 0; 0 = left out")
    center_lr: float = flag(0.5, "rate of the SGD that moves the centers, > 0")

    optimizer: Literal["adam", "sgd"] = flag("adam", "optimiser of the network")
    lr: float = flag(3.5e-4, "learning rate after the warm-up, > 0")
    momentum: float = flag(0.9, "momentum of SGD, 0 to below 1; Adam has its own")
    beta2: float = flag(
        0.999, "Adam's memory of squared gradients: 1/(1 - beta2) steps, 0 to below 1"
    )
    weight_decay: float = flag(5e-4, "L2 weight added to every gradient, >= 0")
    bias_lr_factor: float = flag(1.0, "rate of biases as a multiple of lr, > 0")
    clip_norm: float = flag(0.0, "largest norm of the gradient; 0 = no limit")

    schedule: Literal["steps", "cosine"] = flag("steps", "how the rate falls")
    steps: tuple[int, ...] = flag((40, 70), "epochs at whose start the rate falls by gamma")
    gamma: float = flag(0.1, "factor of one fall of the steps schedule, 0 to 1")
    warmup_epochs: int = flag(10, "epochs of linear rise to lr, >= 0")
    warmup_factor: float = flag(0.01, "rate at the start of the rise as a share of lr, 0 to 1")
    min_factor: float = flag(0.0, "last rate of the cosine schedule as a share of lr, 0 to 1")
    smooth: bool = flag(False, "change the rate at every step instead of every epoch")
    averaging: float = flag(
        0.0, "share of all steps over whose weights the mean is kept, 0 to below 1; 0 = the last"
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if get_origin(spec.type) is Literal:
                choices = get_args(spec.type)
                self._require(value in choices, spec.name, f"one of {choices}", "Choose one.")
        object.__setattr__(self, "steps", tuple(self.steps))  # JSON gives lists

        for name in ("epochs", "identities", "instances", "height", "width"):
            self._require(getattr(self, name) >= 1, name, ">= 1", "Give a positive number.")
        for name in ("lr", "center_lr", "bias_lr_factor"):
            self._require(
                0 < getattr(self, name) < math.inf, name, "> 0 and finite", "Give a rate."
            )
        for name in (
            *("seed", "pad", "margin", "center_weight", "weight_decay", "clip_norm"),
            "warmup_epochs",
        ):
            self._require(
                0 <= getattr(self, name) < math.inf,
                name,
                ">= 0 and finite",
                "Use 0 to leave it out.",
            )
        for name in ("flip", "erasing", "gamma", "warmup_factor", "min_factor"):
            self._require(0 <= getattr(self, name) <= 1, name, "in [0, 1]", "Give a share.")
        for name in ("label_smoothing", "hard_factor", "momentum", "beta2", "averaging"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)", "Give a share below 1.")

        ascending = all(a < b for a, b in zip((0, *self.steps), self.steps))
        self._require(ascending, "steps", "ascending epochs from 1", "Sort them.")
        self._agree(
            not (self.schedule == "cosine" and self.steps),
            ("schedule", "steps"),
            "Empty steps, or take schedule 'steps'.",
        )
        self._agree(
            not (self.schedule == "steps" and self.min_factor),
            ("schedule", "min_factor"),
            "Set min_factor 0, or take schedule 'cosine'.",
        )
        self._agree(
            not self.steps or self.steps[-1] <= self.epochs,
            ("steps", "epochs"),
            "A fall after the end never happens: lower the steps or raise epochs.",
        )
        self._agree(
            self.warmup_epochs < self.epochs or self.warmup_epochs == 0,
            ("warmup_epochs", "epochs"),
            "The rate would never reach lr: shorten the warm-up or raise epochs.",
        )
        self._agree(
            self.triplet != "soft" or self.margin == 0,
            ("triplet", "margin"),
            "The soft form has no margin: set margin 0, or take triplet 'hard'.",
        )
        if self.triplet != "none":
            for name in ("identities", "instances"):
                self._agree(
                    getattr(self, name) >= 2,
                    ("triplet", name),
                    f"A triplet needs a positive and a negative: raise {name}, or take 'none'.",
                )

    def _require(self, holds: bool, name: str, condition: str, remedy: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"recipe: {name} must be {condition}, got {value!r}. {remedy}")

    def _agree(self, holds: bool, names: tuple[str, str], remedy: str) -> None:
        if not holds:
            first, second = names
            raise ValueError(
                f"recipe: {first} and {second} must agree, got {first}={getattr(self, first)!r} "
                f"and {second}={getattr(self, second)!r}. {remedy}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values: what checkpoints and logs store."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class RefineRecipe(Recipe):
    """How teacher and chain are trained together: a Recipe and the terms that tie the two.

    Source:
        OSKT, arXiv 2511.06016: L = L_ReID(teacher) + L_ReID(S-Student) + alpha * L_refine.
        Differences: `distill`, `similarity` and `anchor` are ours; 0 leaves them out. A nested
        chain has one set of weights and so no refining loss; it is trained at several widths a step
        (universally slimmable networks, Yu & Huang 2019), distilled from the full width or, with
        an anchor, from the teacher as it was.

    Example:
        >>> RefineRecipe(alpha=0.05).refining_scale(progress=0.5)
        0.05
        >>> RefineRecipe(alpha=1.0, alpha_ramp="linear").refining_scale(progress=0.5)
        0.5
        >>> RefineRecipe(chain="nested", alpha=0, distill=4, random_widths=2).random_widths
        2
    """

    chain: Literal["oskt", "nested"] = flag("oskt", "kind of chain: published or nested")
    alpha: float = flag(
        1.0, "weight of the refining loss (sum over rows, mean over a ladder's chains), >= 0"
    )
    alpha_ramp: Literal["constant", "linear"] = flag(
        "constant", "alpha from the first step, or rising linearly from 0 to it at the end"
    )
    vectors: Literal["shared", "own"] = flag(
        "shared", "norms and biases of a published chain: the teacher's, or its own (the ViT code)"
    )
    distill: float = flag(
        0.0, "weight of KL(teacher || student) on the logits, >= 0; temperature^2 is usual"
    )
    temperature: float = flag(2.0, "temperature of KL, > 0")
    similarity: float = flag(
        0.0, "weight of the squared difference of feature cosines, student to teacher, >= 0"
    )
    teacher_loss: float = flag(
        1.0, "weight of the full width's own ReID loss, >= 0; 0 = left out, an ablation"
    )
    anchor: float = flag(
        0.0,
        "weight of KL(teacher as it was before || full width) on the logits, >= 0; above 0, the "
        "teacher as it was tells students, too; costs a forward pass; 0 on other identities",
    )
    order: Literal["saliency", "magnitude"] = flag(
        "saliency", "of a nested chain's channels, unless refine --method says another"
    )
    random_widths: int = flag(
        0, "random students of every nested chain in every step beside those in turn, >= 0"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "distill", "similarity", "teacher_loss", "anchor"):
            self._require(
                0 <= getattr(self, name) < math.inf,
                name,
                ">= 0 and finite",
                "Use 0 to leave it out.",
            )
        self._require(
            0 < self.temperature < math.inf, "temperature", "> 0 and finite", "2 is usual."
        )
        self._agree(
            not (self.alpha == 0 and self.alpha_ramp == "linear"),
            ("alpha", "alpha_ramp"),
            "Nothing rises to 0: give alpha a value, or take alpha_ramp 'constant'.",
        )
        self._require(self.random_widths >= 0, "random_widths", ">= 0", "0 is usual.")
        nested = self.chain == "nested"
        self._agree(
            not (nested and self.alpha),
            ("chain", "alpha"),
            "A nested chain has one set of weights, nothing to refine: set alpha 0.",
        )
        self._agree(
            not (nested and self.center_weight),
            ("chain", "center_weight"),
            "Features of several widths have no common centers: set center_weight 0.",
        )
        self._agree(
            not (nested and self.vectors == "own"),
            ("chain", "vectors"),
            "A nested chain is the teacher itself: leave vectors 'shared'.",
        )
        self._agree(
            nested or not self.random_widths,
            ("chain", "random_widths"),
            "A published chain is trained at its own width alone: set random_widths 0.",
        )

    @property
    def nesting(self) -> str | None:
        """The method of `WeightChain.from_teacher`; None for a published chain's default."""
        return self.order if self.chain == "nested" else None

    def refining_scale(self, progress: float) -> float:
        """Alpha when the share `progress`, 0 to 1, of all steps is done."""
        return self.alpha * progress if self.alpha_ramp == "linear" else self.alpha


def learning_rate(recipe: Recipe, epochs_done: float) -> float:
    """The rate of the step before which `epochs_done` epochs are done.

    steps: lr * gamma^(falls) with epoch number e = epochs_done + 1, rising over the warm-up by
    f + (1 - f) e / warmup_epochs; a fall takes effect in the epoch of its number.
    cosine: from lr to min_factor * lr over all epochs by t = epochs_done, the first warmup_epochs
    replaced by the linear rise.

    Args:
        recipe: the schedule.
        epochs_done: 0 <= epochs_done < epochs; its fraction counts only if recipe.smooth.

    Source:
        OSKT_CNN's WarmupMultiStepLR, stepped before its epoch (t = e), and timm's cosine schedule
        without warm-up prefix, stepped after it (t = e - 1), as the published ViT code.

    Example:
        >>> [f"{learning_rate(RECIPES['paper-teacher'], e - 1):.4g}" for e in (1, 2, 10, 39, 40)]
        ['3.815e-05', '7.28e-05', '0.00035', '0.00035', '3.5e-05']
    """
    done = epochs_done if recipe.smooth else math.floor(epochs_done)
    time = done + 1 if recipe.schedule == "steps" else done
    if time < recipe.warmup_epochs:
        rise = time / recipe.warmup_epochs
        return recipe.lr * (recipe.warmup_factor * (1 - rise) + rise)
    if recipe.schedule == "steps":
        return recipe.lr * recipe.gamma ** sum(time >= step for step in recipe.steps)
    floor = recipe.lr * recipe.min_factor
    return floor + (recipe.lr - floor) * (1 + math.cos(math.pi * time / recipe.epochs)) / 2


_PAPER: dict[str, Any] = {"hard_factor": 0.2, "center_weight": 5e-4}
_PAPER_VIT: dict[str, Any] = {
    "epochs": 120,
    "label_smoothing": 0.0,
    "triplet": "soft",
    "margin": 0.0,
    "optimizer": "sgd",
    "lr": 4e-4,
    "weight_decay": 1e-4,
    "bias_lr_factor": 2.0,
    "schedule": "cosine",
    "steps": (),
    "warmup_epochs": 20,
    "min_factor": 0.002,
}
# docs/lab/nested.md has the trials. Erased images cost narrow students up to 10 points and give the
# full width one, which the anchor gives it, too (sections 15 and 18). At a high temperature KL
# compares logits, small ones too, which narrow students gain by (section 29).
_NESTED: dict[str, Any] = {
    "chain": "nested",
    "alpha": 0.0,
    "distill": 36.0,
    "temperature": 6.0,
    "similarity": 10.0,
    "teacher_loss": 1.5,
    "anchor": 72.0,
    "erasing": 0.0,
}
# A transformer gains nothing by an anchor (section 15), an order of saliency (section 13) or a high
# temperature (section 29).
_NESTED_VIT: dict[str, Any] = {
    **_NESTED, "teacher_loss": 3.0, "anchor": 0.0, "order": "magnitude", "distill": 4.0,
    "temperature": 2.0,
}  # fmt: skip
# Small drawn pedestrians and few steps: a high rate is what matters (DESIGN, section 3), and an
# Adam whose memory is shorter than the run: beta2 0.999 remembers 1000 steps, a teacher takes 666
# (docs/lab/nested.md, section 13: 93 mAP, not 86).
_DEMO: dict[str, Any] = {
    "height": 64,
    "width": 32,
    "pad": 4,
    "lr": 1e-2,
    "beta2": 0.95,
    "schedule": "cosine",
    "steps": (),
    "warmup_epochs": 1,
    "warmup_factor": 0.1,
    "smooth": True,
}

# A transformer of the same pictures: Adam without L2, at a lower rate (2.5e-3: 76 mAP, 1e-3: 82),
# with its usual memory (0.95: 80).
_DEMO_VIT: dict[str, Any] = {
    **_DEMO,
    "lr": 1e-3,
    "beta2": 0.999,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "warmup_epochs": 2,
}

RECIPES: dict[str, Recipe] = {
    # Luo et al. 2019, softmax + triplet + center.
    "bot": Recipe(center_weight=5e-4),
    # OSKT_CNN. Published without mixed precision: precision="fp32" is that.
    "paper-teacher": Recipe(epochs=200, steps=(40, 70, 130), **_PAPER),
    "paper-refine": RefineRecipe(epochs=100, steps=(50, 70), **_PAPER),
    # The published schedule with ours in place of the refining loss.
    "nested": RefineRecipe(epochs=100, steps=(50, 70), hard_factor=0.2, **_NESTED),
    "paper-student": Recipe(epochs=100, steps=(40, 70, 90), **_PAPER),
    # OSKT_ViT. Differences: images are normalised as ImageNet's (as PASS was pretrained; published:
    # mean and std 0.5), resized bilinearly (published: bicubically in training) and erased with
    # one colour (published: noise). Its stochastic depth, 0.1, is an option of the network.
    "paper-vit-teacher": Recipe(**_PAPER_VIT),
    "paper-vit-refine": RefineRecipe(alpha_ramp="linear", vectors="own", **_PAPER_VIT),
    "paper-vit-student": Recipe(**_PAPER_VIT),
    "nested-vit": RefineRecipe(**_PAPER_VIT, **_NESTED_VIT),
    # `oskt demo`.
    # Twice as long as a refinement, as published: a teacher that its own training has left
    # unfinished hides what refinement costs it (docs/lab/nested.md, section 18).
    "demo-teacher": Recipe(epochs=36, **_DEMO),
    # Narrow networks underfit: erased images cost them more than they give the wide ones.
    "demo-refine": RefineRecipe(epochs=18, alpha=0.05, distill=4.0, erasing=0.0, **_DEMO),
    # The widest of its chains is nearly done when it begins: 7e-3; a rate that does not fall to 0
    # is worth more with the mean of the last weights (docs/lab/nested.md, section 25).
    "demo-nested": RefineRecipe(
        epochs=18,
        **{**_DEMO, **_NESTED, "lr": 7e-3, "beta2": 0.9, "min_factor": 0.2, "averaging": 0.075},
    ),
    "demo-student": Recipe(epochs=6, erasing=0.0, **_DEMO),
    "demo-vit-teacher": Recipe(epochs=20, **_DEMO_VIT),
    "demo-vit-refine": RefineRecipe(
        epochs=12, alpha=0.05, distill=4.0, erasing=0.0, vectors="own", **_DEMO_VIT
    ),
    "demo-vit-nested": RefineRecipe(epochs=12, **_NESTED_VIT, **_DEMO_VIT),
    "demo-vit-student": Recipe(epochs=4, erasing=0.0, **_DEMO_VIT),
}
# Family of the network -> what stands there in place of a CNN's recipe.
FOR_FAMILY: dict[str, dict[str, str]] = {
    "vit": {
        "paper-teacher": "paper-vit-teacher",
        "paper-refine": "paper-vit-refine",
        "nested": "nested-vit",
        "paper-student": "paper-vit-student",
    }
}
