"""Command-line flags from the fields of a recipe: one dataclass field, one flag, one help text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import typer

from oskt.train import RECIPES, Recipe


def recipe_flags(preset: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `--recipe` and one flag per field; it receives them as `recipe`.

    Args:
        preset: the RECIPES entry that `--recipe` starts from when it is not given.
    """
    base = RECIPES[preset]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        kind = type(base)
        names = ", ".join(name for name, recipe in RECIPES.items() if isinstance(recipe, kind))

        def wrapped(recipe: str, **options: Any) -> None:
            chosen = {spec.name: options.pop(spec.name) for spec in fields(kind)}
            command(recipe=_recipe(recipe, kind, chosen), **options)

        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "recipe"
        ]
        help_text = f"preset that the flags below change: {names}"
        choice = Annotated[str, typer.Option(help=help_text)]
        extra = [_parameter("recipe", choice, preset)]
        for spec in fields(kind):
            flag = typer.Option(
                help=str(spec.metadata["help"]),
                rich_help_panel="Recipe (default: the preset's value)",
                show_default=False,
            )
            extra.append(_parameter(spec.name, Annotated[_flag_type(spec.type), flag], None))
        parameters = own + extra
        wrapped.__name__ = command.__name__
        wrapped.__doc__ = command.__doc__
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _flag_type(field_type: Any) -> Any:
    if get_origin(field_type) is Literal or field_type in (int, float, bool):
        return field_type | None
    return str | None  # a tuple of epochs: "40,70"


def _recipe(name: str, kind: type[Recipe], chosen: dict[str, Any]) -> Recipe:
    if name not in RECIPES or not isinstance(RECIPES[name], kind):
        raise ValueError(
            f"--recipe must be a {kind.__name__} preset, got {name!r}. "
            f"Choose one of {[n for n, r in RECIPES.items() if isinstance(r, kind)]}."
        )
    changes = {field: value for field, value in chosen.items() if value is not None}
    if isinstance(changes.get("steps"), str):
        changes["steps"] = tuple(int(s) for s in changes["steps"].split(",") if s.strip())
    return replace(RECIPES[name], **changes)
