from __future__ import annotations

import pytest

from tests.faults.report import BLOCKS, ROOT, filled


@pytest.mark.parametrize("document", sorted({where for where, _, _ in BLOCKS.values()}))
def test_the_figures_of_a_document_are_those_of_the_last_results(document):
    assert (ROOT / document).read_text() == filled(document), "run: python -m tests.faults.report"
