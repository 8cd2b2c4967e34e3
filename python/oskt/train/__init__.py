"""Training: recipes, one loop, and the three stages teacher, refine and finetune."""

from oskt.train.finetune import finetune_student
from oskt.train.loop import fit, goes_on
from oskt.train.process import World
from oskt.train.recipe import RECIPES, Recipe, RefineRecipe, learning_rate
from oskt.train.refine import refine_chain
from oskt.train.saliency import saliency
from oskt.train.teacher import train_teacher

__all__ = [
    "RECIPES",
    "Recipe",
    "RefineRecipe",
    "World",
    "finetune_student",
    "fit",
    "goes_on",
    "learning_rate",
    "refine_chain",
    "saliency",
    "train_teacher",
]
