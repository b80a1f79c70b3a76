"""The papers' tables, one YAML file each; `table` reads and checks them."""

from search_spaces.tables.table import (
    Claim,
    Column,
    Figure,
    Reference,
    Row,
    Table,
    TableError,
    load_table,
    parse_table,
    table_names,
)

__all__ = [
    "Claim",
    "Column",
    "Figure",
    "Reference",
    "Row",
    "Table",
    "TableError",
    "load_table",
    "parse_table",
    "table_names",
]
