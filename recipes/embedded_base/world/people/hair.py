"""Drawing hair: what is behind the body, and what falls into the face."""

from canvas import Canvas, Point

from people.attributes import Person
from people.plan import HeadPlan


def draw_hair_behind(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    """Draw the hair that is behind the body."""
    draw = {
        "long hair": _draw_long_hair,
        "twin tails": _draw_twin_tails,
        "ponytail": _draw_ponytail,
        "braids": _draw_braids,
        "bob cut": _draw_bob,
        "hair bun": _draw_buns,
        "double bun": _draw_buns,
    }.get(person.hair_style)
    if draw is not None:
        draw(canvas, person, plan)


def draw_fringe(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    """Draw the hair over the forehead."""
    crown = _spikes(plan) if person.hair_style == "spiky hair" else _crown(plan)
    canvas.polygon([*crown, *_fringe_edge(person.fringe, plan)], plan.hair)


def draw_hair_around_face(canvas: Canvas, plan: HeadPlan) -> None:
    """Draw the hair around the face."""
    canvas.ellipse((0, plan.cy - plan.ry * 0.16), (plan.rx * 1.12, plan.ry * 0.98), plan.hair)


def _crown(plan: HeadPlan) -> list[Point]:
    """Return the upper edge of smooth hair, from left to right."""
    rx, ry, cy = plan.rx, plan.ry, plan.cy
    top = cy - ry * 1.12
    return [
        (-rx * 1.1, cy - ry * 0.05),
        (-rx * 1.02, cy - ry * 0.62),
        (-rx * 0.55, top + ry * 0.1),
        (0, top),
        (rx * 0.55, top + ry * 0.1),
        (rx * 1.02, cy - ry * 0.62),
        (rx * 1.1, cy - ry * 0.05),
    ]


def _fringe_edge(fringe: str, plan: HeadPlan) -> list[Point]:
    """Return the lower edge of the fringe, from right to left."""
    rx, ry = plan.rx, plan.ry
    line = plan.cy - ry * 0.2
    return {
        "straight": [(rx * 0.9, line), (-rx * 0.9, line)],
        "parted": [
            (rx * 0.92, line + ry * 0.1),
            (rx * 0.3, line - ry * 0.3),
            (0, line - ry * 0.55),
            (-rx * 0.3, line - ry * 0.3),
            (-rx * 0.92, line + ry * 0.1),
        ],
        "side": [
            (rx * 0.92, line + ry * 0.08),
            (rx * 0.45, line - ry * 0.02),
            (-rx * 0.5, line - ry * 0.5),
            (-rx * 0.92, line),
        ],
        "pointed": [
            (rx * 0.9, line),
            (rx * 0.45, line - ry * 0.12),
            (rx * 0.2, line + ry * 0.12),
            (0, line - ry * 0.14),
            (-rx * 0.2, line + ry * 0.12),
            (-rx * 0.45, line - ry * 0.12),
            (-rx * 0.9, line),
        ],
        "none": [
            (rx * 0.9, line - ry * 0.1),
            (rx * 0.5, line - ry * 0.42),
            (-rx * 0.5, line - ry * 0.42),
            (-rx * 0.9, line - ry * 0.1),
        ],
    }[fringe]


def _spikes(plan: HeadPlan) -> list[Point]:
    """Return the upper edge of spiky hair, from left to right."""
    rx, ry, cy = plan.rx, plan.ry, plan.cy
    points: list[Point] = [(-rx * 1.08, cy)]
    for step in range(6):
        x = -1.05 + 2.1 * step / 6
        height = 1.0 - 0.55 * abs(x + 0.17) ** 2
        points.append((rx * (x - 0.06), cy - ry * (0.55 + 0.45 * height)))
        points.append((rx * (x + 0.13), cy - ry * (0.85 + 0.62 * height)))
    points.append((rx * 1.08, cy))
    return points


def _draw_long_hair(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    bottom = plan.cy + plan.ry * (1.2 + 1.3 * (plan.length - 0.8))
    rx = plan.rx
    canvas.smooth(
        [
            (-rx * 1.08, plan.cy - plan.ry * 0.5),
            (0, plan.cy - plan.ry * 1.1),
            (rx * 1.08, plan.cy - plan.ry * 0.5),
            (rx * 1.3, bottom - 0.05),
            (rx * 0.9, bottom + 0.02),
            (-rx * 0.9, bottom + 0.02),
            (-rx * 1.3, bottom - 0.05),
        ],
        plan.hair,
    )


def _draw_bob(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    rx, bottom = plan.rx, plan.cy + plan.ry * 0.85
    canvas.smooth(
        [
            (-rx * 1.1, plan.cy - plan.ry * 0.5),
            (0, plan.cy - plan.ry * 1.1),
            (rx * 1.1, plan.cy - plan.ry * 0.5),
            (rx * 1.25, bottom - 0.02),
            (rx * 0.85, bottom + 0.02),
            (-rx * 0.85, bottom + 0.02),
            (-rx * 1.25, bottom - 0.02),
        ],
        plan.hair,
    )


def _draw_twin_tails(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    for side in (-1, 1):
        length = plan.ry * plan.length
        x, y = side * plan.rx * (1.18 + 0.2 * plan.lock_width), plan.cy + length * 0.55
        canvas.ellipse(
            (x, y),
            (plan.rx * 0.34 * plan.lock_width, length * 0.95),
            plan.hair,
            angle=-side * 10,
        )
        canvas.ellipse(
            (side * plan.rx * 1.08, plan.cy - plan.ry * 0.2),
            (plan.rx * 0.15, plan.rx * 0.15),
            plan.extra,
        )


def _draw_ponytail(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    side = 1 if person.seed % 2 else -1
    length = plan.ry * plan.length
    canvas.ellipse(
        (side * plan.rx * 1.25, plan.cy + length * 0.3),
        (plan.rx * 0.36 * plan.lock_width, length),
        plan.hair,
        angle=-side * 14,
    )
    canvas.ellipse(
        (side * plan.rx * 0.95, plan.cy - plan.ry * 0.6),
        (plan.rx * 0.16, plan.rx * 0.16),
        plan.extra,
    )


def _draw_braids(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    size = plan.rx * 0.22 * plan.lock_width
    for side in (-1, 1):
        for step in range(4):
            canvas.ellipse(
                (
                    side * plan.rx * (1.05 + 0.04 * step),
                    plan.cy + plan.ry * 0.45 + step * size * 1.5,
                ),
                (size, size * 0.95),
                plan.hair,
            )
        end = plan.cy + plan.ry * 0.45 + 4 * size * 1.5 - size * 0.5
        canvas.ellipse((side * plan.rx * 1.2, end), (size * 0.6, size * 0.5), plan.extra)


def _draw_buns(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    size = plan.rx * 0.38 * plan.lock_width
    centers = [0.0] if person.hair_style == "hair bun" else [-plan.rx * 0.78, plan.rx * 0.78]
    for x in centers:
        lift = 1.2 if x == 0.0 else 1.0
        canvas.ellipse((x, plan.cy - plan.ry * lift), (size, size), plan.hair)
