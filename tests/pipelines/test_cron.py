"""Cron lines in a zone against an oracle: every local time that cronsim enumerates, turned into UTC one by one."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from csflow.config import ScheduleConfig
from csflow.errors import ConfigError
from pipelines.cron import Clock, clock_of, next_runs

SUMMER, WINTER = datetime(2026, 5, 4, 12, 0, tzinfo=UTC), datetime(2026, 11, 9, 12, 0, tzinfo=UTC)
DAYS = 40
"""Without a change of any zone's offset after both dates."""

LINES = [
    "30 3 * * *",
    "0 0 * * *",
    "*/15 * * * *",
    "5 */6 * * *",
    "30 0 * * 1-5",
    "30 23 * * MON,THU",
    "0 4 * * 0",
    "0 4 * * 7",
    "10 1 15 * *",
    "10 22 2-27 * *",
    "0 12 * 1,5,6,12 *",
    "0 12 13 * 5",
    "59 23 * * 6",
    "0 2 1-28/9 6-12 *",
    "20,40 5,17 * * *",
]
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Tokyo",
    "Asia/Kolkata",
    "Australia/Adelaide",
    "Asia/Kathmandu",
    "America/St_Johns",
    "Pacific/Kiritimati",
    "Pacific/Marquesas",
]


def oracle(cron: str, zone: str, start: datetime) -> list[datetime]:
    """What a person in the zone expects, in UTC."""
    end = start + timedelta(days=DAYS)
    local = CronSim(cron, start.astimezone(ZoneInfo(zone)))
    return list(itertools.takewhile(lambda moment: moment <= end, (moment.astimezone(UTC) for moment in local)))


def served(cron: str, start: datetime) -> list[datetime]:
    """What a server in UTC does with six fields, seconds first."""
    end = start + timedelta(days=DAYS)
    return list(itertools.takewhile(lambda moment: moment <= end, CronSim(cron, start)))


@pytest.mark.parametrize("start", [SUMMER, WINTER])
@pytest.mark.parametrize("zone", ZONES)
def test_the_server_runs_when_the_person_expects(zone: str, start: datetime) -> None:
    converted = 0
    for line in LINES:
        try:
            clock = clock_of(ScheduleConfig(cron=line, timezone=zone), start)
        except ConfigError:
            continue
        assert len(clock.cron.split()) == 6
        assert clock.cron.startswith("0 ")
        assert served(clock.cron, start) == oracle(line, zone, start), f"{line} in {zone} became {clock.cron}"
        converted += 1
    assert converted >= len(LINES) - 5, "most of them can be written in UTC"


@pytest.mark.parametrize(
    ("cron", "zone", "expected"),
    [
        ("30 3 * * *", "Europe/Berlin", "0 30 1 * * *"),
        ("30 0 * * 1-5", "Europe/Berlin", "0 30 22 * * 0-4"),
        ("30 23 * * 6", "America/New_York", "0 30 3 * * 0"),
        ("0 3 * * *", "Asia/Kolkata", "0 30 21 * * *"),
        ("*/20 * * * *", "Asia/Kathmandu", "0 15,35,55 * * * *"),
        ("15 0 15 * *", "Europe/Berlin", "0 15 22 14 * *"),
        ("0 4 * * 7", "UTC", "0 0 4 * * 0"),
    ],
)
def test_six_fields_seconds_first(cron: str, zone: str, expected: str) -> None:
    assert clock_of(ScheduleConfig(cron=cron, timezone=zone), SUMMER).cron == expected


@pytest.mark.parametrize(
    ("cron", "zone", "words"),
    [
        ("0 0 1 * *", "Europe/Berlin", "day before.*another month"),
        ("0 23 28 * *", "America/New_York", "day after.*another month"),
        ("0 1 * 6 *", "Europe/Berlin", "another month"),
        ("0 1,5 * * 1", "Europe/Berlin", "some of its hours fall on another day"),
        ("0,45 3 * * *", "Asia/Kolkata", "offset of 330 minutes"),
    ],
)
def test_what_cannot_be_written_in_utc_is_refused(cron: str, zone: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        clock_of(ScheduleConfig(cron=cron, timezone=zone), SUMMER)


def test_the_next_change_of_the_clock_is_named_with_what_it_needs() -> None:
    clock = clock_of(ScheduleConfig(cron="30 3 * * 1-5", timezone="Europe/Berlin"), SUMMER)
    assert clock.shift is not None
    assert clock.shift.when.astimezone(UTC) == datetime(2026, 10, 25, 1, 0, tzinfo=UTC)
    assert clock.shift.when.isoformat() == "2026-10-25T02:00:00+01:00"
    assert clock.shift.cron == "0 30 2 * * 1-5"
    again = clock_of(ScheduleConfig(cron="30 3 * * 1-5", timezone="Europe/Berlin"), clock.shift.when)
    assert again.cron == clock.shift.cron
    assert again.shift is not None
    assert (again.shift.when.isoformat(), again.shift.cron) == ("2027-03-28T03:00:00+02:00", clock.cron)


def test_until_the_change_and_from_it_on_the_local_time_is_kept() -> None:
    zone = ZoneInfo("America/New_York")
    schedule = ScheduleConfig(cron="15 2 * * *", timezone=zone.key)
    clock = clock_of(schedule, SUMMER)
    assert clock.shift is not None
    assert clock.shift.cron is not None
    before = [m for m in next_runs(clock.cron, SUMMER, 400) if m < clock.shift.when]
    after = next_runs(clock.shift.cron, clock.shift.when, 60)
    assert {(m.astimezone(zone).hour, m.astimezone(zone).minute) for m in before[1:-1] + after} == {(2, 15)}


def shift_of(cron: str, zone: str) -> Clock:
    return clock_of(ScheduleConfig(cron=cron, timezone=zone), SUMMER)


def test_no_change_matters_where_there_is_none_or_it_makes_no_difference() -> None:
    assert shift_of("0 3 * * *", "UTC").shift is None
    assert shift_of("0 3 * * *", "Asia/Tokyo").shift is None
    assert shift_of("*/10 * * * *", "Europe/Berlin").shift is None, "every hour is every hour"


def test_what_the_change_makes_of_days() -> None:
    clock = shift_of("30 1,7 * * 1", "Atlantic/Azores")  # UTC in summer, an hour behind in winter
    assert clock.cron == "0 30 1,7 * * 1"
    assert clock.shift is not None
    assert clock.shift.cron == "0 30 2,8 * * 1"
    clock = shift_of("30 0,23 * * 1", "Atlantic/Azores")
    assert clock.cron == "0 30 0,23 * * 1"
    assert clock.shift is not None
    assert clock.shift.cron is None, "half past 23 is on Tuesday then"


def test_the_offset_is_that_of_the_next_run() -> None:
    saturday = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)
    weekly = clock_of(ScheduleConfig(cron="0 6 * * 0", timezone="Europe/Berlin"), saturday)
    assert weekly.cron == "0 0 5 * * 0", "on that Sunday it is winter already"
    assert weekly.next_runs(saturday) == [datetime(2026, 10, 25, 5, 0, tzinfo=UTC)]


def test_what_a_person_wrote_on_the_server_is_read_or_left() -> None:
    assert next_runs("0 0 9 ? * 1-5", SUMMER) == [datetime(2026, 5, 5, 9, 0, tzinfo=UTC)]
    assert next_runs("@every 1h", SUMMER) == []
