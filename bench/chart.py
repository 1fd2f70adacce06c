"""Draws the result of the benchmark as SVG: against goals, and an overview."""

import math
import statistics
from html import escape

WIDTH = 860
LABEL = 400  # where the bars begin
BAR = 300  # how long they may get
LINE = 20
GROWTH_HEIGHT = 220
COLOURS = ("#0b6e99", "#c4572b", "#4f7d38", "#7a4b94", "#8a7300", "#9c2f5b")

STYLE = (
    "text{font:12px sans-serif;fill:#222}.s{fill:#666}.h{font-weight:bold}"
    "rect.bg{fill:#fff}"
)


def number_text(number):
    """A number with three digits that matter."""
    if number == 0 or number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def text(x, y, words, css="", anchor="start"):
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" class="{css}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def bar(row, y, longest):
    """One row: how far it is beyond its goal, on a logarithmic scale."""
    against_goal = (
        row["goal"] / row["median"] if row["lower"] else row["median"] / row["goal"]
    )
    length = BAR / 2 * max(-1, min(1, math.log(against_goal) / longest))
    middle = LABEL + BAR / 2
    reached = against_goal >= 0.995
    goal = f"{'≤' if row['lower'] else '≥'} {row['goal']:g}"
    return [
        text(20, y + 13, row["number"], "s"),
        text(52, y + 13, f"{row['name']} / {row['against']}"),
        f'<rect x="{min(middle, middle + length):.1f}" y="{y + 3}"'
        f' width="{max(abs(length), 1):.1f}" height="{LINE - 6}"'
        f' fill="{COLOURS[0] if reached else COLOURS[1]}"/>',
        text(LABEL + BAR + 70, y + 13, number_text(row["median"]) + " ×", "h", "end"),
        text(LABEL + BAR + 80, y + 13, goal, "s"),
    ]


def growth(series, top):
    """The cost of each operation by the number of entries."""
    left, right, bottom = 70, 560, top + GROWTH_HEIGHT
    medians = {
        name: {int(n): 1000 * statistics.median(times) for n, times in samples.items()}
        for name, samples in series.items()
    }
    entries = sorted(next(iter(medians.values())))
    costs = [cost for samples in medians.values() for cost in samples.values()]
    low = math.floor(math.log10(min(costs)))
    high = math.ceil(math.log10(max(costs)))

    def x(n):
        return left + (right - left) * math.log(n / entries[0]) / math.log(
            entries[-1] / entries[0]
        )

    def y(cost):
        return bottom - (bottom - top) * (math.log10(cost) - low) / (high - low)

    parts = [text(20, top - 16, "Cost of one call or row, in µs, by entries", "h")]
    for power in range(low, high + 1):
        at = y(10**power)
        parts.append(
            f'<line x1="{left}" y1="{at:.0f}" x2="{right}" y2="{at:.0f}" stroke="#ddd"/>'
        )
        parts.append(text(left - 8, at + 4, f"{10**power:g}", "s", "end"))
    for n in entries:
        parts.append(text(x(n), bottom + 18, f"{n:,}", "s", "middle"))
    labels = sorted(medians, key=lambda name: -medians[name][entries[-1]])
    label_y = top
    for colour, name in zip(COLOURS, labels, strict=True):
        points = " ".join(
            f"{x(n):.1f},{y(c):.1f}" for n, c in sorted(medians[name].items())
        )
        last = medians[name][entries[-1]]
        label_y = max(label_y + 15, y(last) + 4)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(
            f'<text x="{right + 10}" y="{label_y:.0f}" style="fill:{colour}">'
            f"{escape(name)}: {number_text(last)}</text>"
        )
    return parts


def draw(result):
    """Returns the SVG of a result as bench.py writes it."""
    rows = result["rows"]
    longest = max(abs(math.log(row["median"] / row["goal"])) for row in rows)
    longest = min(longest, math.log(8)) or 1
    top = 62
    parts = [
        text(20, 24, "extension_storage against what one would use instead", "h"),
        text(
            20,
            44,
            "Ratios in one run; bars show how far beyond its goal a ratio is"
            f" (the line). {result['machine']['processor']}, {result['made']}",
            "s",
        ),
    ]
    for number, row in enumerate(rows):
        parts += bar(row, top + LINE * number, longest)
    bottom = top + LINE * len(rows)
    middle = LABEL + BAR / 2
    parts.append(
        f'<line x1="{middle:.0f}" y1="{top}" x2="{middle:.0f}" y2="{bottom}" stroke="#222"/>'
    )
    height = bottom + 20
    if result["growth"]:
        parts += growth(result["growth"], bottom + 50)
        height = bottom + 50 + GROWTH_HEIGHT + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}">\n<style>{STYLE}</style>\n'
        f'<rect class="bg" width="{WIDTH}" height="{height}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


OVERVIEW_STYLE = (
    "text{font:12px sans-serif;fill:#222}.s{fill:#666}.h{font-weight:bold}"
    ".bg{fill:#fff}.ours{fill:#0b6e99}.peer{fill:#b8bec4}"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}.s{fill:#999}"
    ".bg{fill:#0d1117}.ours{fill:#4fb3e0}.peer{fill:#59626b}}"
)

# What is compared: a title, the unit, and the peers, each with the number of its
# row and how the row's name starts.
RAW, PGP, ORM = "raw SQL, not encrypted", "pgp_sym_… of pgcrypto", "SQLAlchemy ORM"
OVERVIEW = [
    (
        "Get an encrypted value of 256 bytes, prepared, by pgbench",
        "calls per second",
        [
            ("3", "get, encrypted, 1 client", RAW),
            ("5b", "get, encrypted, 1 client", PGP),
        ],
    ),
    (
        "Set an encrypted value of 256 bytes, prepared, by pgbench",
        "calls per second",
        [
            ("4", "set, encrypted, existing keys", RAW),
            ("5b", "set, encrypted, existing keys", PGP),
        ],
    ),
    (
        "Get an encrypted value, from Python",
        "calls per second",
        [("6b", "get, encrypted", ORM)],
    ),
    (
        "Set an encrypted value, from Python",
        "calls per second",
        [("6b", "set, encrypted", ORM)],
    ),
    ("List 25 of 3,000 entries, from Python", "calls per second", [("7", "list", ORM)]),
    (
        "Rotate keys",
        "rows per second",
        [("9", "rotation", ORM)],
    ),
    (
        "Encrypt 16 MB",
        "values per second",
        [("12", "encrypt", "openssl speed, AES and HMAC")],
    ),
]


def rate(row, side):
    """The median of a side, per second."""
    median = statistics.median(row[side])
    return 1000 / median if row["unit"] == "ms" else median


def draw_overview(result):
    """Returns the SVG of how many calls or rows per second each way reaches."""
    left, longest, step = 250, 480, 19
    parts, y = [], 50
    for title, unit, peers in OVERVIEW:
        rows = [
            next(
                row
                for row in result["rows"]
                if row["number"] == number and row["name"].startswith(start)
            )
            for number, start, _ in peers
        ]
        bars = [("extension_storage", rate(rows[0], "ours"), "ours")] + [
            (label, rate(row, "peer"), "peer")
            for row, (_, _, label) in zip(rows, peers, strict=True)
        ]
        highest = max(value for _, value, _ in bars)
        parts.append(text(20, y, f"{title}, {unit}", "h"))
        for label, value, css in bars:
            length = max(longest * value / highest, 1)
            parts += [
                text(left - 10, y + step, label, "s" if css == "peer" else "", "end"),
                f'<rect x="{left}" y="{y + step - 11}" width="{length:.1f}" height="14"'
                f' class="{css}"/>',
                text(left + length + 8, y + step, number_text(value)),
            ]
            y += step
        y += 34
    made = (
        f"Medians, {result['machine']['processor']}, {result['machine']['cores']} cores"
    )
    made += f", PostgreSQL {result['machine']['settings']['server_version'].split()[0]}"
    made += f", {result['made']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}"'
        f' viewBox="0 0 {WIDTH} {y}">\n<style>{OVERVIEW_STYLE}</style>\n'
        f'<rect class="bg" width="{WIDTH}" height="{y}"/>\n'
        + "\n".join([text(20, 22, made, "s"), *parts])
        + "\n</svg>\n"
    )
