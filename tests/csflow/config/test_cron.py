"""A schedule that cannot run is refused when its line is read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from csflow.config import ScheduleConfig
from csflow.config.cron import CronTimes, find_zone, parse_cron


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("bad cron", "has 2 fields, expected 5"),
        ("@daily", "has 1 fields, expected 5"),
        ("0 3 * *", "has 4 fields, expected 5"),
        ("0 0 3 * * *", "has 6 fields, expected 5"),
        ("", "has 0 fields, expected 5"),
        ("61 3 * * *", "'61' cannot be the minute"),
        ("0 24 * * *", "'24' cannot be the hour"),
        ("0 3 * * MOO", "'MOO' cannot be the day of week.*SUN to SAT"),
        ("0 3 * 13 *", "'13' cannot be the month"),
        ("0 3 0 * *", "'0' cannot be the day of month"),
        ("0 3 32 * *", "'32' cannot be the day of month"),
        ("0 3 L * *", "'L' cannot be the day of month"),
        ("0 3 LW * *", "'LW' cannot be the day of month"),
        ("0 3 * * 5L", "'5L' cannot be the day of week"),
        ("0 3 * * MON#2", "'MON#2' cannot be the day of week"),
        ("0 3 ? * *", "cannot be the day of month"),
        ("0 5-3 * * *", "'5-3' cannot be the hour"),
        ("*/0 3 * * *", "cannot be the minute"),
        ("0 3 */2 * 1", "differs from cron to cron"),
        ("0 3 30 2 *", "never comes"),
        ("0 3 30,31 2 *", "never comes"),
        ("0 3 31 4,6,9,11 *", "never comes"),
    ],
)
def test_a_cron_line_that_cannot_be_is_refused(cron: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_cron(cron)
    with pytest.raises(ValidationError, match=words):
        ScheduleConfig(cron=cron)


def test_the_values_of_a_cron_line() -> None:
    expected = CronTimes(*map(frozenset, ({0, 20, 40}, {5}, {1, 2, 3}, {1, 12}, {0})))
    assert parse_cron("*/20 5 1-3 jan,DEC 7") == expected
    assert parse_cron("0 3 29 2 *").days == {29}, "it comes every fourth year"


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        ("Mars/Olympus", "'Mars/Olympus' is no IANA zone"),
        ("", "no IANA zone"),
        ("Europe", "no IANA zone"),
        ("../etc/passwd", "no IANA zone"),
        ("/etc/localtime", "no IANA zone"),
        ("a\0b", "no IANA zone"),
        ("localtime", "no IANA zone"),
        ("right/UTC", "no IANA zone"),
        ("europe/berlin", "Did you mean Europe/Berlin?"),
        ("Berlin", "Did you mean Europe/Berlin?"),
        ("New York", "Did you mean America/New_York?"),
    ],
)
def test_a_zone_that_is_not_there_is_refused(zone: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_zone(zone)
    with pytest.raises(ValidationError, match="no IANA zone"):
        ScheduleConfig(cron="0 3 * * *", timezone=zone)


def test_zones_are_found() -> None:
    assert [find_zone(name).key for name in ("UTC", "Europe/Berlin", "EST5EDT")] == ["UTC", "Europe/Berlin", "EST5EDT"]
