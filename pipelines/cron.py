"""Convert a cron line in a time zone to what Kubeflow Pipelines understands: six fields, seconds first, in UTC.

The offset from UTC is that of the line's next run. If daylight saving changes it later, the UTC time has to change
too: :attr:`Clock.shift` says when, and to what, so that the line can be scheduled again then.

Kubeflow Pipelines parses cron with version 1 of github.com/robfig/cron (``cron_schedule.go`` of its controller for
scheduled workflows): the first field holds the seconds, and five fields would be read as six with the last one missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from csflow.config import ScheduleConfig
from csflow.errors import ConfigError

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_TERM = re.compile(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?")
_DAY = 24 * 60
_SHORTEST_MONTH = 28
_HORIZON_DAYS = 400


@dataclass(frozen=True)
class _Field:
    """One of the five fields of a cron line; ``names`` stand for its numbers from ``first`` on."""

    label: str
    first: int
    last: int
    names: tuple[str, ...] = ()

    def parse(self, text: str) -> frozenset[int]:
        """Return all values that a field stands for."""
        return frozenset(value for term in text.split(",") for value in self._values(term, text))

    def _values(self, term: str, text: str) -> range:
        match = _TERM.fullmatch(term)
        if match is None or (match[1] == "*" and match[2]):
            raise ConfigError(self._wrong(text))
        step = int(match[3] or 1)
        if match[1] == "*":
            low, high = self.first, self.last
        else:
            low = self._number(match[1], text)
            high = self._number(match[2], text) if match[2] else self.last if match[3] else low
        if low > high or step == 0:
            raise ConfigError(self._wrong(text))
        return range(low, high + 1, step)

    def _number(self, word: str, text: str) -> int:
        if word.upper() in self.names:
            return self.names.index(word.upper()) + self.first
        if not word.isdecimal() or not self.first <= int(word) <= self.last:
            raise ConfigError(self._wrong(text))
        return int(word)

    def _wrong(self, text: str) -> str:
        names = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return (
            f"{text!r} cannot be the {self.label} of a schedule: expected '*', numbers {self.first} to {self.last}"
            f"{names}, ranges such as {self.first}-{self.first + 2}, lists with ',' and steps such as */2."
        )


_MINUTE, _HOUR, _DAY_OF_MONTH = _Field("minute", 0, 59), _Field("hour", 0, 23), _Field("day of month", 1, 31)
_MONTH, _DAY_OF_WEEK = _Field("month", 1, 12, _MONTHS), _Field("day of week", 0, 7, _WEEKDAYS)
_EVERY_DAY, _EVERY_MONTH, _EVERY_WEEKDAY = frozenset(range(1, 32)), frozenset(range(1, 13)), frozenset(range(7))


@dataclass(frozen=True)
class _Times:
    """The values of a cron line; if both day fields are given, a day matches either of them, as in every cron."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @property
    def daily(self) -> bool:
        """Return True if the line runs every day at the same times."""
        return (self.days, self.months, self.weekdays) == (_EVERY_DAY, _EVERY_MONTH, _EVERY_WEEKDAY)


@dataclass(frozen=True)
class Shift:
    """A change of the zone's offset after which the line would run at another local time.

    Attributes:
        when: The moment of the change, in the line's zone.
        cron: The six fields that hold from then on; ``None`` if they cannot be written in UTC.
    """

    when: datetime
    cron: str | None


@dataclass(frozen=True)
class Clock:
    """The times at which a line runs.

    Attributes:
        local: The cron line of the YAML.
        zone: The time zone in which it is read.
        cron: Six fields in UTC.
        shift: The next change of the zone's offset that matters; ``None`` if there is none within a year.
    """

    local: str
    zone: str
    cron: str
    shift: Shift | None

    def next_runs(self, now: datetime, count: int = 1) -> list[datetime]:
        """Return the next moments at which the server starts a run, in UTC."""
        return next_runs(self.cron, now, count)


def clock_of(schedule: ScheduleConfig, now: datetime) -> Clock:
    """Convert a line's schedule to UTC, with the offset that its zone has at the next run.

    Args:
        schedule: The line's schedule.
        now: The present moment, with a time zone.

    Raises:
        ConfigError: If the cron line or the zone is wrong, it never runs, or it cannot be written in UTC.
    """
    zone, times = _zone(schedule.timezone), _parse(schedule.cron)
    first = _next_local(times, schedule.cron, now.astimezone(zone))
    cron = _in_utc(times, _offset(first), schedule)
    return Clock(schedule.cron, schedule.timezone, cron, _next_shift(times, zone, first, cron, schedule))


def next_runs(cron: str, now: datetime, count: int = 1) -> list[datetime]:
    """Return the next moments that six fields in UTC name; fewer if there are no more, none if a field is invalid."""
    from cronsim import CronSim, CronSimError

    try:
        moments: Iterator[datetime] = CronSim(cron.replace("?", "*"), now.astimezone(UTC))
        return [moment for moment, _ in zip(moments, range(count), strict=False)]
    except CronSimError:
        return []


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"schedule.timezone {name!r} is no IANA zone. Expected a name such as Europe/Berlin."
        ) from error


def _parse(cron: str) -> _Times:
    words = cron.split()
    if len(words) != 5:
        raise ConfigError(
            f"schedule.cron {cron!r} has {len(words)} fields, expected 5: minute, hour, day of month, month, "
            "day of week."
        )
    minute, hour, day, month, weekday = words
    weekdays = frozenset(value % 7 for value in _DAY_OF_WEEK.parse(weekday))
    times = _Times(_MINUTE.parse(minute), _HOUR.parse(hour), _DAY_OF_MONTH.parse(day), _MONTH.parse(month), weekdays)
    both = times.days != _EVERY_DAY and times.weekdays != _EVERY_WEEKDAY
    if both and (day.startswith("*") or weekday.startswith("*")):
        # With "*/2" in one day field and Monday in the other, some crons require both and others only one of them.
        raise ConfigError(
            f"schedule.cron {cron!r}: what a step of '*' in one day field means beside the other one differs from cron "
            "to cron. Write the days as numbers, or leave one of the two '*'."
        )
    return times


def _next_local(times: _Times, cron: str, now: datetime) -> datetime:
    """Return the next local time that a line names."""
    from cronsim import CronSim, CronSimError

    with suppress(CronSimError, StopIteration):
        moment: datetime = next(CronSim(" ".join(_fields(times)), now))
        return moment
    raise ConfigError(f"schedule.cron {cron!r} never comes: no such day exists. Correct day of month and month.")


def _offset(moment: datetime) -> int:
    """Return by how many minutes local time is ahead of UTC."""
    ahead = moment.utcoffset()
    assert ahead is not None
    return round(ahead.total_seconds() / 60)


def _in_utc(times: _Times, offset: int, schedule: ScheduleConfig) -> str:
    shifted = [divmod(hour * 60 + minute - offset, _DAY) for hour in times.hours for minute in times.minutes]
    hours, minutes = {clock // 60 for _, clock in shifted}, {clock % 60 for _, clock in shifted}
    if len(hours) * len(minutes) != len(shifted):
        raise ConfigError(
            f"{_called(schedule)} cannot be written in UTC: the offset of {offset} minutes moves some of its minutes "
            "into another hour. Give one minute, or every hour."
        )
    moved = _Times(frozenset(minutes), frozenset(hours), times.days, times.months, times.weekdays)
    days = {day for day, _ in shifted}
    if not times.daily and days != {0}:
        moved = _on_other_days(moved, days, schedule)
    return " ".join(("0", *_fields(moved)))


def _on_other_days(times: _Times, shifts: set[int], schedule: ScheduleConfig) -> _Times:
    """Shift the days of times that fall on another day in UTC."""
    if len(shifts) > 1:
        raise ConfigError(
            f"{_called(schedule)} cannot be written in UTC: some of its hours fall on another day there. "
            "Give hours on one side of midnight UTC, or let it run every day."
        )
    (shift,) = shifts
    weekdays = frozenset((day + shift) % 7 for day in times.weekdays)
    days = times.days
    if days != _EVERY_DAY:
        days = frozenset(day + shift for day in days)
        within = all(1 <= day <= _SHORTEST_MONTH for day in times.days | days)
    else:
        within = times.months == _EVERY_MONTH
    if not within:
        raise ConfigError(
            f"{_called(schedule)} cannot be written in UTC: there it falls on the day "
            f"{'before' if shift < 0 else 'after'}, which may lie in another month. "
            "Choose an hour on the other side of midnight UTC, or other days."
        )
    return _Times(times.minutes, times.hours, days, times.months, weekdays)


def _called(schedule: ScheduleConfig) -> str:
    return f"schedule.cron {schedule.cron!r} in {schedule.timezone}"


def _next_shift(times: _Times, zone: ZoneInfo, first: datetime, cron: str, schedule: ScheduleConfig) -> Shift | None:
    """Return the first change of the zone's offset after the next run that changes the fields in UTC."""
    for change in _changes(zone, first):
        try:
            then = _in_utc(times, _offset(change), schedule)
        except ConfigError:
            return Shift(change, None)
        if then != cron:
            return Shift(change, then)
    return None


def _changes(zone: ZoneInfo, start: datetime) -> Iterator[datetime]:
    """Yield every moment within the horizon at which the zone's offset changes, to the second."""
    before = start.astimezone(UTC)
    for _ in range(_HORIZON_DAYS):
        after = before + timedelta(days=1)
        if _ahead(before, zone) != _ahead(after, zone):
            low, high = before, after
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                low, high = (middle, high) if _ahead(middle, zone) == _ahead(low, zone) else (low, middle)
            yield (high.replace(microsecond=0)).astimezone(zone)
        before = after


def _ahead(moment: datetime, zone: ZoneInfo) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()


def _fields(times: _Times) -> tuple[str, str, str, str, str]:
    return (
        _text(times.minutes, range(60)),
        _text(times.hours, range(24)),
        _text(times.days, range(1, 32)),
        _text(times.months, range(1, 13)),
        _text(times.weekdays, range(7)),
    )


def _text(values: Iterable[int], every: range) -> str:
    """Write values as ranges and single numbers, never as steps, which change how some crons read the other day field.

    >>> _text({0, 1, 2, 5}, range(60)), _text(range(7), range(7))
    ('0-2,5', '*')
    """
    ordered = sorted(values)
    if ordered == list(every):
        return "*"
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
