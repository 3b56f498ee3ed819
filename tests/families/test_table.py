from pathlib import Path

from tests.families.table import table

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_table_of_the_documentation_is_what_the_checks_give():
    found = table()
    assert found in PAGE.read_text(), f"put this into {PAGE}:\n{found}"
