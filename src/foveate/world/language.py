"""What can be said of a scene: captions, descriptions, and questions with short answers.

Answers are lower-case and all texts truthful; the answer to a question never depends on a choice within a margin
that `world` leaves open. Questions that need one particular object are asked only where the words single it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .scenes import COLORS, PLACES, SHAPES, SIDE, SIZES, TEXTURES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
KINDS = ("color", "shape", "count", "existence", "position", "relation")
CAPTION_PROMPTS = (
    "Provide a one-sentence caption for the provided image.",
    "Write a short caption.",
    "What is in the picture?",
)
DESCRIPTION_PROMPTS = (
    "Describe the image in detail.",
    "List every shape in the image.",
    "What do you see?",
)
_APART = 20.0  # pixels by which two centres must differ for "left of" or "above" to be asked


@dataclass(frozen=True)
class Mention:
    """A place in a text that is about one object: the text `until` there, and `where` the object's centre is.

    `where` is in pixels, (x, y); None if there is no such object.
    """

    until: str
    where: tuple[float, float] | None


@dataclass(frozen=True)
class Turn:
    """A question and its answer. `kind` is one of `KINDS`, "caption", "description" or "easy-vqa".

    `mentions` are where words of the question that name an object end; `next`, where the answer is about to name one.
    """

    kind: str
    question: str
    answer: str
    mentions: tuple[Mention, ...] = ()
    next: tuple[Mention, ...] = ()


def name(thing: Thing) -> str:
    """The object in words, as in "small striped red star"; a plain surface is not mentioned."""
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    return f"{thing.size} {texture}{thing.color} {thing.shape}"


def describe(scene: Scene) -> str:
    """All objects in reading order with all their attributes, at most 64 words and commas."""
    return ", ".join(f"{name(t)} {t.place}" for t in scene.things) + "."


def description(scene: Scene, prompt: str, ahead: bool = False) -> Turn:
    """The turn that asks for `describe`; if `ahead`, with where the next object is, before each of them."""
    parts = [f"{name(t)} {t.place}" for t in scene.things]
    told = [", ".join(parts[:k]) + "," if k else "" for k in range(len(parts))]
    following = (
        tuple(Mention(text, (t.x, t.y)) for text, t in zip(told, scene.things, strict=True))
        if ahead
        else ()
    )
    return Turn("description", prompt, describe(scene), next=following)


def parse_description(text: str) -> list[tuple[str, ...]]:
    """The objects named in a description, as (size, texture, colour, shape, place); the inverse of `describe`.

    A part that is not a well-formed object is returned as a tuple that equals no object, so that it counts
    against precision.
    """
    found: list[tuple[str, ...]] = []
    for part in text.strip().rstrip(".").split(","):
        words = part.split()
        texture = "plain"
        if len(words) > 1 and words[1] in TEXTURES:
            texture = words.pop(1)
        whole = len(words) >= 4 and words[0] in SIZES and words[1] in COLORS and words[2] in SHAPES
        place = " ".join(words[3:])
        found.append(
            (words[0], texture, words[1], words[2], place)
            if whole and place in PLACES
            else ("?", part)
        )
    return found


def attributes(scene: Scene) -> list[tuple[str, ...]]:
    """The objects of `scene` in the form of `parse_description`."""
    return [(t.size, t.texture, t.color, t.shape, t.place) for t in scene.things]


def captions(scene: Scene) -> list[str]:
    """Five one-sentence references of about 16 words, as COCO and NoCaps have them."""
    ranked = sorted(scene.things, key=lambda t: -t.diameter)
    main = ranked[0]
    total = len(ranked)
    number = NUMBERS[total]
    back = f"a {scene.background} background"
    if total == 1:
        return [
            f"a {name(main)} on {back}.",
            f"a {name(main)} at the {main.place} of the image.",
            f"there is one shape, a {name(main)}, on {back}.",
            f"a single {main.color} {main.shape} at the {main.place}.",
            f"the image shows a {name(main)} on {back}.",
        ]
    second = ranked[1]
    rest = "" if total == 2 else f" and {NUMBERS[total - 2]} more"
    return [
        f"a {name(main)} and a {name(second)}{rest} on {back}.",
        f"{number} shapes on {back}, the biggest is a {name(main)}.",
        f"there are {number} shapes, among them a {name(main)} at the {main.place}.",
        f"a {name(main)} at the {main.place} and a {name(second)} at the {second.place}{rest}.",
        f"the image shows {number} shapes with a {name(main)} on {back}.",
    ]


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Turn | None:
    """A question of `kind` about `scene`, or None where the scene allows none.

    Raises:
        KeyError: `kind` is not one of `KINDS`.
    """
    return _ASKERS[kind](scene, rng)


def _unique(scene: Scene, rng: np.random.Generator, hidden: str) -> tuple[Thing, str] | None:
    """An object and words that single it out without naming its attribute `hidden`."""
    for index in rng.permutation(len(scene.things)):
        thing = scene.things[int(index)]
        for form in rng.permutation(4):
            words, same = _forms(thing, hidden)[int(form)]
            if sum(same(other) for other in scene.things) == 1:
                return thing, words
    return None


def _forms(thing: Thing, hidden: str) -> list[tuple[str, Callable[[Thing], bool]]]:
    """Four ways to refer to `thing`, each with the test that another object fits the same words."""
    color = "" if hidden == "color" else f"{thing.color} "
    shape = "shape" if hidden == "shape" else thing.shape

    def alike(size: bool, place: bool, tint: bool, form: bool) -> Callable[[Thing], bool]:
        return lambda o: (
            (not size or o.size == thing.size)
            and (not place or o.place == thing.place)
            and (not tint or hidden == "color" or o.color == thing.color)
            and (not form or hidden == "shape" or o.shape == thing.shape)
        )

    where = f"{color}{shape}" if hidden == "place" else f"shape at the {thing.place}"
    return [
        (f"{color}{shape}", alike(False, False, True, True)),
        (f"{thing.size} {color}{shape}", alike(True, False, True, True)),
        (where, alike(False, hidden != "place", hidden == "place", hidden == "place")),
        (f"{thing.size} {shape}", alike(True, False, False, True)),
    ]


def _about(kind: str, question: str, thing: Thing, answer: str) -> Turn:
    """A question whose last words name `thing`."""
    return Turn(kind, f"{question}?", answer, (Mention(question, (thing.x, thing.y)),))


def _color(scene: Scene, rng: np.random.Generator) -> Turn | None:
    found = _unique(scene, rng, "color")
    return found and _about("color", f"What color is the {found[1]}", found[0], found[0].color)


def _shape(scene: Scene, rng: np.random.Generator) -> Turn | None:
    found = _unique(scene, rng, "shape")
    return found and _about("shape", f"What shape is the {found[1]}", found[0], found[0].shape)


def _position(scene: Scene, rng: np.random.Generator) -> Turn | None:
    found = _unique(scene, rng, "place")
    return found and _about("position", f"Where is the {found[1]}", found[0], found[0].place)


def _count(scene: Scene, rng: np.random.Generator) -> Turn:
    one = scene.things[int(rng.integers(len(scene.things)))]
    what, test = {
        0: ("shapes", lambda o: True),
        1: (f"{one.color} shapes", lambda o: o.color == one.color),
        2: (f"{one.shape} shapes", lambda o: o.shape == one.shape),
        3: (f"{one.size} shapes", lambda o: o.size == one.size),
    }[int(rng.integers(4))]
    return Turn("count", f"How many {what} are there?", NUMBERS[sum(map(test, scene.things))])


def _existence(scene: Scene, rng: np.random.Generator) -> Turn:
    """Balanced yes and no; half of the noes name a colour and a shape that are there, but not together."""
    one = scene.things[int(rng.integers(len(scene.things)))]
    pairs = {(t.color, t.shape) for t in scene.things}
    if rng.random() < 0.5:
        color = one.color
        shape = one.shape
    else:
        crossed = [(a.color, b.shape) for a in scene.things for b in scene.things]
        absent = [pair for pair in crossed if pair not in pairs]
        if absent and rng.random() < 0.5:
            color, shape = absent[int(rng.integers(len(absent)))]
        else:
            color = str(rng.choice(list(COLORS)))
            shape = str(rng.choice(SHAPES))
    question = f"Is there a {color} {shape}"
    fits = [(t.x, t.y) for t in scene.things if (t.color, t.shape) == (color, shape)]
    mentions = (Mention(question, fits[0] if fits else None),) if len(fits) < 2 else ()
    return Turn("existence", f"{question}?", "yes" if fits else "no", mentions)


def _relation(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Balanced yes and no on two objects that their colour and shape single out."""
    pairs = [(t.color, t.shape) for t in scene.things]
    single = [t for t in scene.things if pairs.count((t.color, t.shape)) == 1]
    if len(single) < 2:
        return None
    first, second = (single[int(i)] for i in rng.permutation(len(single))[:2])
    sideways = bool(rng.random() < 0.5)
    gap = first.x - second.x if sideways else first.y - second.y
    if abs(gap) < _APART:
        sideways = not sideways
        gap = first.x - second.x if sideways else first.y - second.y
    if abs(gap) < _APART or abs(gap) > SIDE:
        return None
    word = str(rng.choice(["left of", "right of"] if sideways else ["above", "below"]))
    answer = "yes" if (gap < 0) == (word in ("left of", "above")) else "no"
    asked = f"Is the {first.color} {first.shape}"
    question = f"{asked} {word} the {second.color} {second.shape}"
    mentions = (Mention(asked, (first.x, first.y)), Mention(question, (second.x, second.y)))
    return Turn("relation", f"{question}?", answer, mentions)


_ASKERS: dict[str, Callable[[Scene, np.random.Generator], Turn | None]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "existence": _existence,
    "position": _position,
    "relation": _relation,
}
