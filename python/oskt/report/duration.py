"""How long something took, in words."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration_text(0.0021), duration_text(12.34), duration_text(75), duration_text(7500)
        ('2.1 ms', '12.3 s', '1 min 15 s', '2 h 5 min')
    """
    if 0 < seconds < 0.05:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
