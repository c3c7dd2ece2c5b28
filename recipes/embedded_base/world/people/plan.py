"""A person's measures, colors and joints, in units of its height: top 0, feet 1."""

import random
from dataclasses import dataclass

from canvas import Color, Point
from palette import EYES, HAIR, NAMED, SKIN, vary

from people.attributes import SHOES, Person


@dataclass(frozen=True)
class BodyPlan:
    """Colors and measures of a body; the center is x = 0."""

    skin: Color
    color: Color
    """The outfit's."""
    second: Color
    shoes: Color
    shoe_color: str
    """The name of the shoes' color."""
    held_color: Color
    neck: float
    hip: float
    half_shoulder: float
    half_hip: float
    arm_width: float
    leg_width: float
    arm_length: float
    flare: float
    """Width of a skirt's hem over that of the hip."""


@dataclass(frozen=True)
class Arm:
    """The joints of an arm."""

    shoulder: Point
    elbow: Point
    hand: Point


def plan_body(person: Person) -> BodyPlan:
    """Return the colors and measures that follow from a person's attributes and seed."""
    rng = random.Random(person.seed)
    skin = vary(SKIN[person.skin], rng, 8)
    color = vary(outfit_color(person), rng)
    second = vary(NAMED[person.second_color], rng)
    shoe_color = rng.choice(list(SHOES))
    held_color = vary(NAMED[person.held_color], rng)
    head = person.head_height
    hip = head + (1.0 - head) * rng.uniform(0.46, 0.56)
    half_shoulder = 0.115 * person.shoulder * (0.7 + 0.8 * head)
    return BodyPlan(
        skin=skin,
        color=color,
        second=second,
        shoes=SHOES[shoe_color],
        shoe_color=shoe_color,
        held_color=held_color,
        neck=head * 0.97,
        hip=hip,
        half_shoulder=half_shoulder,
        half_hip=half_shoulder * rng.uniform(0.85, 1.1),
        arm_width=0.075 * (0.65 + head),
        leg_width=0.085 * (0.65 + head),
        arm_length=(1.0 - head) * 0.46,
        flare=rng.uniform(1.5, 2.3),
    )


def outfit_color(person: Person) -> Color:
    """Return an outfit's color before variation."""
    if person.outfit == "armor":
        return (160, 168, 180)
    if person.outfit == "lab coat":
        return (246, 247, 250)
    return NAMED[person.outfit_color]


def bend_arm(person: Person, plan: BodyPlan, side: int) -> Arm:
    """Return the joints of the left (-1) or right (1) arm in a person's pose."""
    length, pose = plan.arm_length, person.pose
    shoulder = (side * plan.half_shoulder * 0.92, plan.neck + 0.06)
    x, y = shoulder
    if pose == "arms up" or (pose == "waving" and side == 1):
        reach = (0.22, -0.42) if pose == "waving" else (0.2, -0.36)
        elbow = (x + side * length * 0.42, y + length * 0.02)
        hand = (elbow[0] + side * length * reach[0], elbow[1] + length * reach[1] * 1.2)
    elif pose == "hands on hips":
        elbow = (x + side * length * 0.42, y + length * 0.42)
        hand = (side * plan.half_hip * 0.9, plan.hip - 0.05)
    elif pose == "arms behind back":
        elbow = (x + side * length * 0.25, y + length * 0.5)
        hand = (side * plan.half_hip * 0.4, plan.hip - 0.06)
    elif pose == "pointing" and side == 1:
        elbow = (x + length * 0.45, y + length * 0.02)
        hand = (elbow[0] + length * 0.5, elbow[1] - length * 0.06)
    else:
        swing = 0.25 if pose == "walking" else 0.1
        elbow = (x + side * length * swing, y + length * 0.45)
        hand = (elbow[0] + side * length * 0.04, elbow[1] + length * 0.42)
    return Arm(shoulder, elbow, hand)


@dataclass(frozen=True)
class HeadPlan:
    """Colors and measures of a head; its center is x = 0."""

    skin: Color
    hair: Color
    eyes: Color
    hat: Color
    extra: Color
    """Of hair ties and bands."""
    rx: float
    ry: float
    cy: float
    """Height of the center, below the top."""
    length: float
    """Of hair, relative to the usual."""
    lock_width: float
    eye_y: float
    eye_gap: float
    """Half the distance of the eyes."""
    gaze: float
    """Where the eyes look: -1 left, 1 right."""


def plan_head(person: Person) -> HeadPlan:
    """Return the colors and measures that follow from a person's attributes and seed."""
    skin = vary(SKIN[person.skin], random.Random(person.seed), 8)
    rng = random.Random(person.seed + 1)
    hair = vary(HAIR[person.hair_color], rng)
    eyes = vary(EYES[person.eye_color], rng, 10)
    hat = vary(NAMED[person.headwear_color], rng)
    extra = vary(NAMED[person.second_color], rng)
    rx, ry = person.head_height * 0.5 * person.head_width, person.head_height * 0.5
    return HeadPlan(
        skin=skin,
        hair=hair,
        eyes=eyes,
        hat=hat,
        extra=extra,
        rx=rx,
        ry=ry,
        cy=ry,
        length=rng.uniform(0.8, 1.35),
        lock_width=rng.uniform(0.8, 1.25),
        eye_y=ry + ry * rng.uniform(0.05, 0.22),
        eye_gap=rx * rng.uniform(0.36, 0.47),
        gaze=rng.uniform(-0.2, 0.2),
    )
