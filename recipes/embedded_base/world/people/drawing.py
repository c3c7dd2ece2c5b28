"""Drawing a whole person on a transparent square."""

from canvas import Canvas, Color
from PIL import Image

from people.attributes import Person
from people.body import draw_body
from people.face import draw_face
from people.framing import Frame
from people.hair import draw_fringe, draw_hair_around_face, draw_hair_behind
from people.headwear import draw_eyewear, draw_headwear, draw_neckwear
from people.plan import plan_body, plan_head

OUTLINES: dict[str, Color] = {"outlined": (40, 32, 36), "line art": (30, 30, 34)}


def draw_person(person: Person, side: int, frame: Frame) -> Image.Image:
    """Return an RGBA image of a person, ``side`` x ``side`` pixels."""
    canvas = Canvas(
        side,
        frame.scale,
        (frame.x, frame.y),
        outline=OUTLINES.get(person.rendering),
        outline_width=0.014,
        shaded=person.rendering == "shaded",
        line_art=person.rendering == "line art",
    )
    head = plan_head(person)
    has_hair = person.hair_style != "bald"
    draw_hair_behind(canvas, person, head)
    draw_body(canvas, person, plan_body(person))
    draw_neckwear(canvas, person)
    if has_hair:
        draw_hair_around_face(canvas, head)
    draw_face(canvas, person, head)
    if has_hair:
        draw_fringe(canvas, person, head)
    draw_eyewear(canvas, person, head)
    draw_headwear(canvas, person, head)
    return canvas.finish()
