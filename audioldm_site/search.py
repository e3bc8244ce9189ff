"""What people type into a search field."""

MAX_WORDS = 32
"""SQLite refuses an expression that is 1,000 deep, and every word makes it a few deeper."""


def words(query: str) -> list[str]:
    """The first words; without NUL, which PostgreSQL cannot compare with."""
    return query.replace("\0", " ").split()[:MAX_WORDS]
