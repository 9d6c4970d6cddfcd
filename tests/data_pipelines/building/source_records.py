"""What a source gives, read whole."""

from __future__ import annotations

from segclip.data_pipelines.building.source import Raw, Rejected, Source


def read(source: Source) -> list[list[Raw | Rejected]]:
    units = []
    for unit in source.units:
        count, records = unit.read()
        units.append(list(records))
        assert len(units[-1]) == count
        assert unit.records in (None, count)
    return units


def flat(source: Source) -> list[Raw]:
    found = [record for unit in read(source) for record in unit]
    assert all(isinstance(record, Raw) for record in found)
    return [record for record in found if isinstance(record, Raw)]


def rejected(source: Source) -> list[tuple[str, str]]:
    return [
        (record.origin.rpartition("/")[2], record.cause)
        for unit in read(source)
        for record in unit
        if isinstance(record, Rejected)
    ]
