"""What can go wrong, as stable codes.

A fault carries its code and one sentence that names the thing, the value and the limit. The general words about each code
(title, explanation, remedy) live in `audioldm_site.faults` alone, so that page, API and terminal agree.
"""

from __future__ import annotations


class Fault(Exception):
    """An expected failure with a stable code.

    Args:
        code: dotted and stable, e.g. `dataset.not_a_zip`.
        message: one sentence for the user: what, where, which limit.
        operator: True when only whoever runs the machine can mend it (disk, memory, missing worker).
    """

    def __init__(self, code: str, message: str, *, operator: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.operator = operator

    def as_data(self) -> dict[str, object]:
        """The `data` of a `failed` event."""
        return {"code": self.code, "detail": self.message}
