"""Drawing a face: its shape, eyes, brows, mouth."""

from canvas import Canvas, Color, Point, arc_points, mix, shade

from people.attributes import Person
from people.plan import HeadPlan

INK: Color = (66, 34, 36)
MOUTH: Color = (165, 45, 48)


def _face_points(person: Person, plan: HeadPlan) -> list[Point]:
    rx, ry, jaw = plan.rx, plan.ry, person.jaw
    chin = 0.5 - 0.2 * jaw
    return [
        (0, plan.cy - ry * 0.95),
        (rx * 0.75, plan.cy - ry * 0.68),
        (rx, plan.cy + ry * 0.05),
        (rx * (0.8 - 0.1 * jaw), plan.cy + ry * 0.66),
        (rx * chin * 0.7, plan.cy + ry * 0.96),
        (0, plan.cy + ry),
        (-rx * chin * 0.7, plan.cy + ry * 0.96),
        (-rx * (0.8 - 0.1 * jaw), plan.cy + ry * 0.66),
        (-rx, plan.cy + ry * 0.05),
        (-rx * 0.75, plan.cy - ry * 0.68),
    ]


def draw_face(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    """Draw ears, face and expression."""
    for side in (-1, 1):
        canvas.ellipse(
            (side * plan.rx * 0.97, plan.cy + plan.ry * 0.16),
            (plan.rx * 0.13, plan.ry * 0.17),
            plan.skin,
        )
    canvas.smooth(_face_points(person, plan), plan.skin)
    if person.blush and not canvas.line_art:
        _draw_blush(canvas, plan)
    for side in (-1, 1):
        _draw_eye(canvas, person, plan, side)
        _draw_brow(canvas, person, plan, side)
    _draw_mouth(canvas, person, plan)


def _draw_blush(canvas: Canvas, plan: HeadPlan) -> None:
    for side in (-1, 1):
        canvas.ellipse(
            (side * plan.rx * 0.6, plan.cy + plan.ry * 0.48),
            (plan.rx * 0.15, plan.ry * 0.08),
            mix(plan.skin, (240, 100, 110), 0.55),
            outlined=False,
        )


def _draw_eye(canvas: Canvas, person: Person, plan: HeadPlan, side: int) -> None:
    x, y = side * plan.eye_gap, plan.eye_y
    size, stroke = plan.rx * 0.17 * person.eye_size, plan.rx * 0.055
    if person.expression == "laughing" or (person.expression == "winking" and side == 1):
        lid = arc_points((x, y + size * 0.5), (size, size * 0.8), 200, 340, 12)
        canvas.line(lid, INK, stroke)
    elif person.expression == "closed eyes":
        lid = arc_points((x, y - size * 0.2), (size, size * 0.7), 20, 160, 12)
        canvas.line(lid, INK, stroke)
    elif person.eye_shape == "dot":
        tall = 1.2 * (1.15 if person.expression == "surprised" else 1.0)
        color = mix(plan.eyes, INK, 0.3)
        canvas.ellipse((x, y), (size * 0.62, size * 0.62 * tall), color, outlined=False)
    else:
        _draw_open_eye(canvas, person, plan, (x, y), size)
        if person.expression == "angry":
            tall = _eye_height(person)
            inner = (x - side * size * 1.2, y - size * 0.45)
            canvas.line([inner, (x + side * size * 1.2, y - size * tall)], INK, stroke)


def _eye_height(person: Person) -> float:
    """Return an open eye's height over its width."""
    tall = 1.05 if person.eye_shape == "round" else 1.4
    return tall * 1.15 if person.expression == "surprised" else tall


def _draw_open_eye(
    canvas: Canvas, person: Person, plan: HeadPlan, center: Point, size: float
) -> None:
    """Draw white, iris, pupil and catch light of a round or oval eye."""
    x, y = center
    tall = _eye_height(person)
    iris = 1.0
    if person.eye_shape == "round":
        iris = 0.78
        white = (size * 1.12, size * tall * 1.12)
        canvas.ellipse(center, white, (252, 252, 252), outlined=False)
        canvas.line(arc_points(center, white, 195, 345, 14), INK, plan.rx * 0.055 * 0.8)
    x += plan.gaze * size * 0.8
    canvas.ellipse((x, y), (size * iris, size * tall * iris), plan.eyes, outlined=False)
    pupil, light = (size * 0.42, size * tall * 0.5), (size * 0.26, size * 0.28)
    canvas.ellipse((x, y + size * 0.06), pupil, shade(plan.eyes, 0.35), outlined=False)
    above = (x - size * 0.3, y - size * 0.38 * tall)
    canvas.ellipse(above, light, (255, 255, 255), outlined=False)


def _draw_brow(canvas: Canvas, person: Person, plan: HeadPlan, side: int) -> None:
    x, y = side * plan.eye_gap, plan.eye_y - plan.rx * 0.34
    half = plan.rx * 0.17
    tilt = {"sad": -0.5, "angry": 0.6, "surprised": -0.1}.get(person.expression)
    if tilt is None and person.seed % 2:
        return
    tilt = tilt or 0.0
    lift = plan.rx * 0.08 if person.expression == "surprised" else 0.0
    inner, outer = (
        (x - side * half, y - lift + half * tilt),
        (x + side * half, y - lift - half * tilt),
    )
    canvas.line([inner, outer], mix(plan.hair, INK, 0.5), plan.rx * 0.05)


def _draw_mouth(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    rx = plan.rx
    x, y = 0.0, plan.cy + plan.ry * 0.62
    stroke = rx * 0.055
    expression = person.expression
    if expression in ("smiling", "winking"):
        canvas.line(
            arc_points((x, y - rx * 0.1), (rx * 0.22, rx * 0.15), 20, 160, 14), MOUTH, stroke
        )
    elif expression == "laughing":
        canvas.polygon(
            arc_points((x, y - rx * 0.06), (rx * 0.24, rx * 0.24), 0, 180, 20),
            MOUTH,
            outlined=False,
        )
        canvas.line(
            [(-rx * 0.18, y - rx * 0.04), (rx * 0.18, y - rx * 0.04)],
            (255, 255, 255),
            rx * 0.05,
            inked=False,
        )
    elif expression == "sad":
        canvas.line(
            arc_points((x, y + rx * 0.1), (rx * 0.18, rx * 0.14), 205, 335, 14), MOUTH, stroke
        )
    elif expression == "surprised":
        canvas.ellipse((x, y + rx * 0.02), (rx * 0.1, rx * 0.14), MOUTH, outlined=False)
    elif expression == "angry":
        canvas.line(
            [(-rx * 0.15, y + rx * 0.04), (0, y - rx * 0.02), (rx * 0.15, y + rx * 0.04)],
            MOUTH,
            stroke,
        )
    elif expression == "closed eyes":
        canvas.ellipse((x, y), (rx * 0.06, rx * 0.05), MOUTH, outlined=False)
    else:
        canvas.line([(-rx * 0.13, y), (rx * 0.13, y)], MOUTH, stroke)
