"""Check a schedule's cron line and time zone, with the parser that computes the line's runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_FIELDS = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31",
    "month": "1 to 12 or JAN to DEC",
    "day-of-week": "0 to 7 or SUN to SAT",
}
"""The five fields of a cron line as cronsim calls them, with the values that they take."""

_EVERY_DAY, _EVERY_WEEKDAY = frozenset(range(1, 32)), frozenset(range(7))
_START = datetime(2000, 1, 1, tzinfo=UTC)
_THIS_MACHINES = ("localtime", "posixrules", "posix/", "right/", "Factory")
"""Zones that a machine's own database may have and that the one of another machine has not."""


@dataclass(frozen=True)
class CronTimes:
    """The values of a cron line; if both day fields are given, a day matches either of them, as in every cron."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]


def parse_cron(cron: str) -> CronTimes:
    """Parse the five fields of a cron line.

    Raises:
        ValueError: If a field is wrong, what the line means differs from cron to cron, or it never comes.
    """
    from cronsim import CronSim, CronSimError

    words = cron.split()
    if len(words) != len(_FIELDS):
        raise ValueError(
            f"{cron!r} has {len(words)} fields, expected 5: minute, hour, day of month, month, day of week"
        )
    never = f"{cron!r} never comes: no such day exists. Correct day of month and month"
    try:
        parsed = CronSim(cron, _START)
        next(parsed)
    except CronSimError as error:
        name = str(error).removeprefix("Bad ")
        word = words[list(_FIELDS).index(name)]
        raise ValueError(never if _is_a_day(word) and name == "day-of-month" else _wrong(word, name)) from error
    except StopIteration as error:
        raise ValueError(never) from error
    _, _, day, _, weekday = words
    if not all(isinstance(value, int) and value >= 0 for value in parsed.days):
        raise ValueError(_wrong(day, "day-of-month"))
    if not all(isinstance(value, int) for value in parsed.weekdays):
        raise ValueError(_wrong(weekday, "day-of-week"))
    weekdays = frozenset(value % 7 for value in parsed.weekdays if isinstance(value, int))
    days = frozenset(parsed.days)
    if days != _EVERY_DAY and weekdays != _EVERY_WEEKDAY and (day.startswith("*") or weekday.startswith("*")):
        # With "*/2" in one day field and Monday in the other, some crons require both and others only one of them.
        raise ValueError(
            f"{cron!r}: what a step of '*' in one day field means next to the other one differs from cron to cron. "
            "Write the days as numbers, or leave one of the two '*'"
        )
    return CronTimes(frozenset(parsed.minutes), frozenset(parsed.hours), days, frozenset(parsed.months), weekdays)


def _is_a_day(word: str) -> bool:
    """Tell if a word is a day of some month."""
    from cronsim import CronSim, CronSimError

    try:
        CronSim(f"0 0 {word} * *", _START)
    except CronSimError:
        return False
    return True


def find_zone(name: str) -> ZoneInfo:
    """Return a time zone of the IANA database.

    Raises:
        ValueError: If there is no such zone; the nearest names are suggested.
    """
    if not name.startswith(_THIS_MACHINES):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise ValueError(f"{name!r} is no IANA zone.{_similar(name)} Expected a name such as Europe/Berlin")


def _similar(name: str) -> str:
    import difflib
    from zoneinfo import available_timezones

    zones = {zone.lower(): zone for zone in sorted(available_timezones()) if not zone.startswith(_THIS_MACHINES)}
    cities = {zone.rpartition("/")[2]: zone for zone in zones}
    wanted = name.lower().replace(" ", "_")
    near = difflib.get_close_matches(wanted, zones, n=1, cutoff=0.75)
    near = near or [cities[city] for city in difflib.get_close_matches(wanted, cities, n=1, cutoff=0.8)]
    return f" Did you mean {zones[near[0]]}?" if near else ""


def _wrong(word: str, name: str) -> str:
    values = _FIELDS[name]
    first = int(values.split()[0])
    return (
        f"{word!r} cannot be the {name.replace('-', ' ')} of a schedule: expected '*', numbers {values}, ranges such "
        f"as {first}-{first + 2}, lists with ',' and steps such as */2"
    )
