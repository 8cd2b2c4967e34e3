"""Command-line flags from dataclass fields: one field, one flag, one help text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_origin, get_type_hints

import typer

from oskt.train import RECIPES, Recipe
from oskt.train.recipe import FOR_FAMILY, flag
from oskt.widths import presets

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training runs, whatever it trains."""

    PANEL: ClassVar = "Run"
    evaluate_every: int = flag(20, "epochs between evaluations")
    resume: bool = flag(False, "go on from a run that was stopped")
    corrupt: Literal["refuse", "skip"] = flag("refuse", "what to do with images that do not decode")
    device: str | None = flag(None, "cpu or cuda; default: the GPU if there is one")
    workers: int = flag(2, "threads that decode and augment")


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """A student's size: one share, a preset, single groups, or limits, several together."""

    PANEL: ClassVar = "Size: one share, a preset, single groups, or limits, several together"
    width: float | None = flag(
        None, "share of the channels: the teacher's, or of a truncated file its widest student's"
    )
    preset: str | None = flag(None, "size of the paper: " + ", ".join(presets.NAMES))
    group: list[str] | None = flag(  # noqa: RUF009
        None, "NAME=CHANNELS of one channel group; repeatable"
    )
    params: float | None = flag(None, "at most so many parameters")
    macs: float | None = flag(None, "at most so many MACs per image")
    memory_mb: float | None = flag(None, "at most so many megabytes of float32 weights")
    latency_ms: float | None = flag(
        None, "at most so many milliseconds for one image, measured here on --device"
    )
    runtime: Literal["torch", "onnxruntime"] = flag(
        "torch", "what runs students whose latency is measured; onnxruntime takes the CPU"
    )
    shape: Literal["uniform", "sensitivity", "measured"] = flag(
        "uniform",
        "of a student within limits: one share for all groups, or narrower where the chain says "
        "that least is lost, or where images do (--shape-data); the last two need recalibration",
    )
    shape_data: str | None = flag(
        None, "data set whose training images, without labels, --shape measured looks at"
    )


def training_flags(
    preset: str, family: Callable[[Mapping[str, Any]], str], **instead: dict[str, str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's `recipe` and `run` parameters by flags that fill them.

    `--recipe NAME` starts from a preset, one flag per field changes it; `run` gets RunOptions.

    Args:
        preset: the RECIPES entry of a CNN that `--recipe` starts from when it is not given.
        family: that of the network, found from the command's flags; FOR_FAMILY has its entries.
        instead: field -> its value -> the entry that `--recipe` starts from then.
    """
    kind = type(RECIPES[preset])

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapped(recipe: str | None, **options: Any) -> None:
            chosen = {spec.name: options.pop(spec.name) for spec in fields(kind)}
            run = RunOptions(**{spec.name: options.pop(spec.name) for spec in fields(RunOptions)})
            if recipe is None:
                found = [names.get(chosen[name]) for name, names in instead.items()]
                recipe = next((name for name in found if name), preset)
                recipe = FOR_FAMILY.get(family(options), {}).get(recipe, recipe)
            command(recipe=_recipe(recipe, kind, chosen), run=run, **options)

        parameters = [*_own(command, "recipe", "run"), *_flags_of(RunOptions)]
        names = ", ".join(_presets(kind))
        option = typer.Option(
            help=f"preset that the flags below change: {names}",
            show_default=_usual(preset, instead),
        )
        parameters.append(_parameter("recipe", str | None, option, None))
        for spec in fields(kind):
            option = typer.Option(
                help=str(spec.metadata["help"]),
                rich_help_panel=f"Recipe (default: the preset's value; here {preset}'s)",
                show_default=_text(getattr(RECIPES[preset], spec.name)),
            )
            parameters.append(_parameter(spec.name, _recipe_type(spec.type), option, None))
        return _command(wrapped, command, parameters)

    return decorate


def flags(**kinds: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace parameters of a command, each a dataclass, by the flags of their fields.

    Args:
        kinds: parameter -> dataclass whose fields carry a help text.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapped(**options: Any) -> None:
            filled = {
                name: kind(**{spec.name: options.pop(spec.name) for spec in fields(kind)})
                for name, kind in kinds.items()
            }
            command(**filled, **options)

        parameters = _own(command, *kinds)
        for kind in kinds.values():
            parameters += _flags_of(kind)
        return _command(wrapped, command, parameters)

    return decorate


def _usual(preset: str, instead: Mapping[str, Mapping[str, str]]) -> str:
    """The presets of a stage that stand where none is chosen, and when."""
    more = {name: f" with --{flag} {v}" for flag, i in instead.items() for v, name in i.items()}
    texts = [
        f"{name}{when}, of transformers {FOR_FAMILY['vit'][name]}"
        for name, when in {preset: "", **more}.items()
    ]
    return "; ".join(texts)


def _own(command: Callable[..., None], *without: str) -> list[inspect.Parameter]:
    """A command's parameters but for some."""
    hints = get_type_hints(command, include_extras=True)
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in without
    ]


def _flags_of(kind: type) -> list[inspect.Parameter]:
    """One flag for every field of a dataclass, in the panel that it names."""
    types, panel = get_type_hints(kind), getattr(kind, "PANEL", None)
    return [
        _parameter(
            spec.name,
            types[spec.name],
            typer.Option(help=str(spec.metadata["help"]), rich_help_panel=panel),
            spec.default,
        )
        for spec in fields(kind)
    ]


def _command(
    wrapped: Callable[..., None], command: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """`wrapped` under the name and help of `command`, with these parameters."""
    wrapped.__name__ = command.__name__
    wrapped.__doc__ = command.__doc__
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _parameter(name: str, kind: Any, flag: Any, default: Any) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, flag])


def _recipe_type(field_type: Any) -> Any:
    if get_origin(field_type) is Literal or field_type in (int, float, bool):
        return field_type | None
    return str | None  # a tuple of epochs: "40,70"


def _recipe(name: str, kind: type[Recipe], chosen: dict[str, Any]) -> Recipe:
    if name not in _presets(kind):
        raise ValueError(
            f"--recipe must be a {kind.__name__} preset, got {name!r}. "
            f"Choose one of {', '.join(_presets(kind))}."
        )
    changes = {field: value for field, value in chosen.items() if value is not None}
    if isinstance(changes.get("steps"), str):
        changes["steps"] = tuple(numbers("--steps", changes["steps"], int, "40,70"))
    return replace(RECIPES[name], **changes)


def _presets(kind: type[Recipe]) -> list[str]:
    """Those of this stage alone: a RefineRecipe would train a teacher under fields that say
    nothing there."""
    return [name for name, recipe in RECIPES.items() if type(recipe) is kind]


def _text(value: Any) -> str:
    """A value as one gives it to a flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def numbers(option: str, text: str, kind: type[Number], example: str) -> list[Number]:
    """The numbers of a flag, with commas between; none of an empty text."""
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(
            f"{option} must be {what} with commas between, got {text!r}. Example: {example}."
        ) from None
