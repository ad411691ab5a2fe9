"""Text for people: escaping, widths, sizes and times.

What the daemon hands over may come from an image's labels or a file name, so nothing of it reaches a terminal before
`escape` saw it.
"""

import time
import unicodedata


def escape(text: str) -> str:
    """`text` in one line; control, format and other invisible characters stand as `\\xNN` or `\\uNNNN`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def one_line(text: str) -> str:
    """Several lines as one, the way a message on stderr wants them; a line ending in a colon introduces the rest."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return escape("; ".join(lines).replace(":; ", ": "))


def width_of(text: str) -> int:
    """Columns that escaped text takes on a terminal: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """At most `width` columns of escaped text, the last one an ellipsis if something was cut off."""
    if width_of(text) <= width:
        return text
    used, kept = 1, ""
    for character in text:
        used += _columns(character)
        if used > width:
            break
        kept += character
    return kept + "…"


def size(count: int | None) -> str:
    """Bytes with three digits and a decimal unit."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}" if unit != "B" else f"{count} B"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def when(seconds: int | None) -> str:
    """A time in the local zone, or `-` for none."""
    if not seconds:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):  # an image's label may claim any year
        return str(seconds)


def when_usec(microseconds: int | None) -> str:
    """The same from microseconds."""
    return when(microseconds // 1_000_000 if microseconds else None)
