"""Convert a cron line in a time zone to what Kubeflow Pipelines understands: six fields, seconds first, in UTC.

The offset from UTC is that of the line's next run. If daylight saving changes it later, the UTC time has to change
too: :attr:`Clock.shift` says when, and to what, so that the line can be scheduled again then.

Kubeflow Pipelines parses cron with version 1 of github.com/robfig/cron (``cron_schedule.go`` of its controller for
scheduled workflows): the first field holds the seconds, and five fields would be read as six with the last one missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from csflow.config import ScheduleConfig
from csflow.config.cron import CronTimes, find_zone, parse_cron
from csflow.errors import ConfigError

_DAY = 24 * 60
_SHORTEST_MONTH = 28
_HORIZON_DAYS = 400
_EVERY_DAY, _EVERY_MONTH, _EVERY_WEEKDAY = frozenset(range(1, 32)), frozenset(range(1, 13)), frozenset(range(7))


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
        ConfigError: If it cannot be written in UTC.
    """
    zone, times = find_zone(schedule.timezone), parse_cron(schedule.cron)
    first = _next_local(times, now.astimezone(zone))
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


def _next_local(times: CronTimes, now: datetime) -> datetime:
    """Return the next local time that a line names."""
    from cronsim import CronSim

    moment: datetime = next(CronSim(" ".join(_fields(times)), now))
    return moment


def _offset(moment: datetime) -> int:
    """Return by how many minutes local time is ahead of UTC."""
    ahead = moment.utcoffset()
    assert ahead is not None
    return round(ahead.total_seconds() / 60)


def _in_utc(times: CronTimes, offset: int, schedule: ScheduleConfig) -> str:
    shifted = [divmod(hour * 60 + minute - offset, _DAY) for hour in times.hours for minute in times.minutes]
    hours, minutes = {clock // 60 for _, clock in shifted}, {clock % 60 for _, clock in shifted}
    if len(hours) * len(minutes) != len(shifted):
        raise ConfigError(
            f"{_called(schedule)} cannot be written in UTC: the offset of {offset} minutes moves some of its minutes "
            "into another hour. Give one minute, or every hour."
        )
    moved = CronTimes(frozenset(minutes), frozenset(hours), times.days, times.months, times.weekdays)
    days = {day for day, _ in shifted}
    daily = (times.days, times.months, times.weekdays) == (_EVERY_DAY, _EVERY_MONTH, _EVERY_WEEKDAY)
    if not daily and days != {0}:
        moved = _on_other_days(moved, days, schedule)
    return " ".join(("0", *_fields(moved)))


def _on_other_days(times: CronTimes, shifts: set[int], schedule: ScheduleConfig) -> CronTimes:
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
    return CronTimes(times.minutes, times.hours, days, times.months, weekdays)


def _called(schedule: ScheduleConfig) -> str:
    return f"schedule.cron {schedule.cron!r} in {schedule.timezone}"


def _next_shift(times: CronTimes, zone: ZoneInfo, first: datetime, cron: str, schedule: ScheduleConfig) -> Shift | None:
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


def _fields(times: CronTimes) -> tuple[str, str, str, str, str]:
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
