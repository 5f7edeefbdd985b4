"""Rows of figures: what each is called and how it is shown stand beside its type, so a row is a dataclass and no more.

@dataclass(frozen=True)
class Row:
    rate: Annotated[int, Column("records/s", ",d")]
"""

from __future__ import annotations

import dataclasses
import statistics
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from rich.table import Table

MIB = 2**20
MISSING = "-"

Say = Callable[[str], None]
"""Tells how far it is."""


@dataclass(frozen=True)
class Column:
    """How a field is shown."""

    head: str
    form: str = ""
    unit: float = 1
    """The shown figure is the field's value divided by this."""

    def cell(self, value: Any) -> str:  # noqa: ANN401 - a field may be of any type
        """Show a value."""
        if value is None:
            return MISSING
        return format(value if self.unit == 1 else value / self.unit, self.form)


Micros = Annotated[float, Column("µs/record", ".1f")]
Rss = Annotated[int, Column("RSS, MiB", ".1f", MIB)]


@dataclass(frozen=True)
class Sheet:
    """A table of a part: rows of one dataclass."""

    key: str
    title: str
    rows: tuple[Any, ...]

    def columns(self) -> dict[str, Column]:
        """Return how each field of the rows is shown."""
        hints = typing.get_type_hints(type(self.rows[0]), include_extras=True)
        return {name: hint.__metadata__[0] for name, hint in hints.items()}

    def cells(self) -> list[list[str]]:
        """Return the rows as text."""
        columns = self.columns()
        return [[column.cell(getattr(row, name)) for name, column in columns.items()] for row in self.rows]

    def table(self) -> Table:
        """Return it for a terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for name, column in self.columns().items():
            is_text = isinstance(getattr(self.rows[0], name), str)
            table.add_column(column.head, justify="left" if is_text else "right")
        for row in self.cells():
            table.add_row(*row)
        return table

    def plain(self) -> list[dict[str, Any]]:
        """Return it for JSON."""
        return [dataclasses.asdict(row) for row in self.rows]


def median(values: Iterable[float]) -> float:
    """Return the median; 0 of nothing, so that a window without records needs no case of its own."""
    found = list(values)
    return statistics.median(found) if found else 0.0


def per(cpu_s: float, records: int) -> float:
    """Return microseconds a record; 0 when there was none."""
    return cpu_s * 1e6 / records if records else 0.0
