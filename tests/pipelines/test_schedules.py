"""The plan: a pure function, tried against a model of a server that is cut off at every step."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from csflow.config import ScheduleConfig
from pipelines.cron import clock_of
from pipelines.schedules import MARK, Change, Found, Wanted, plan_changes

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def wanted(line: str = "tiles", cron: str = "0 3 * * *", **rest: object) -> Wanted:
    base = Wanted(line, clock_of(ScheduleConfig(cron=cron), NOW), "csflow-retrain-1", {"line": "{}"})
    return replace(base, **rest)  # type: ignore[arg-type]


def found(of: Wanted, id_: str = "id-1", *, enabled: bool = True) -> Found:
    made = Found.parse(id_, of.name, of.note, enabled, of.clock.cron)
    assert made is not None
    return made


def only(wants: list[Wanted], founds: list[Found], *lines: str, everything: bool = True) -> Change:
    (change,) = plan_changes(wants, founds, lines=frozenset(lines or ("tiles",)), everything=everything)
    return change


def verbs(change: Change) -> list[tuple[str, str | None]]:
    return [(step.verb, step.target) for step in change.steps]


def test_what_is_not_there_is_created_enabled() -> None:
    change = only([wanted()], [])
    assert change.kind == "create"
    assert [(step.verb, step.enabled) for step in change.steps] == [("create", True)]


def test_what_is_there_is_kept() -> None:
    change = only([wanted()], [found(wanted())])
    assert (change.kind, change.steps) == ("keep", ())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (wanted(cron="0 4 * * *"), r"was 0 4 \* \* \* UTC"),
        (wanted(version="csflow-retrain-2"), "configuration, image or code"),
        (wanted(parameters={"line": '{"seed": 1}'}), "configuration"),
        (wanted(account="trainer"), "configuration"),
        (wanted(clock=replace(wanted().clock, cron="0 0 2 * * *")), r"zone's clock changed; was 0 0 2 \* \* \*"),
    ],
)
def test_anything_that_cannot_be_edited_is_replaced(other: Wanted, reason: str) -> None:
    import re

    change = only([wanted()], [found(other, "old")])
    assert change.kind == "replace"
    assert re.search(reason, change.reason)
    assert verbs(change) == [("create", None), ("disable", "old"), ("enable", None), ("delete", "old")]
    assert not change.steps[0].enabled


def test_a_schedule_is_disabled_and_enabled_in_place() -> None:
    off = wanted(enabled=False)
    assert off.name == wanted().name
    assert verbs(only([off], [found(wanted())])) == [("disable", "id-1")]
    assert only([off], [found(wanted(), enabled=False)]).steps == ()
    assert only([off], []).steps == (), "nothing is created to do nothing"
    change = only([wanted()], [found(wanted(), enabled=False)])
    assert (change.kind, verbs(change)) == ("enable", [("enable", "id-1")])


def test_lines_without_schedule_and_lines_that_are_gone_are_deleted() -> None:
    both = [found(wanted("tiles"), "a"), found(wanted("bolts"), "b")]
    changes = plan_changes([], both, lines=frozenset({"tiles"}), everything=True)
    assert [(change.line, change.kind) for change in changes] == [("bolts", "delete"), ("tiles", "delete")]
    assert "no such line" in changes[0].reason
    assert "no schedule" in changes[1].reason


def test_planning_one_line_leaves_the_others_alone() -> None:
    both = [found(wanted("tiles"), "a"), found(wanted("bolts"), "b")]
    changes = plan_changes([wanted("tiles", "0 5 * * *")], both, lines=frozenset({"tiles"}), everything=False)
    assert [change.line for change in changes] == ["tiles"]


def test_only_what_csflow_made_is_found() -> None:
    want = wanted("a-b-0123456789ab")
    assert found(want).line == "a-b-0123456789ab"
    assert Found.parse("id", want.name, "by hand", True, "") is None
    assert Found.parse("id", "csflow-tiles", want.note, True, "") is None
    assert Found.parse("id", "other-tiles-0123456789ab", want.note, True, "") is None
    assert want.note.startswith(MARK)
    assert found(want).local == "0 3 * * * UTC"


def run(change: Change, state: list[Found], count: int) -> list[list[Found]]:
    """A model of the server: the states after each of the first ``count`` steps."""
    states, state, made = [], list(state), ""
    for step in change.steps[:count]:
        target = step.target or made
        if step.verb == "create":
            assert change.wanted is not None
            made = "new"
            state.append(found(change.wanted, made, enabled=step.enabled))
        elif step.verb == "delete":
            state = [each for each in state if each.id != target]
        else:
            state = [replace(each, enabled=step.verb == "enable") if each.id == target else each for each in state]
        states.append(list(state))
    return states


VARIANTS = [wanted(), wanted(cron="0 4 * * *"), wanted(version="csflow-retrain-2")]
STATES = [
    [found(variant, f"{place}", enabled=enabled) for place, (variant, enabled) in enumerate(chosen)]
    for size in range(4)
    for chosen in itertools.combinations_with_replacement(list(itertools.product(VARIANTS, [True, False])), size)
]


@pytest.mark.parametrize("enabled", [True, False])
def test_cut_off_anywhere_no_two_run_and_planning_again_ends_well(enabled: bool) -> None:
    want = wanted(enabled=enabled)
    for start in STATES:
        change = only([want], start)
        active = sum(each.enabled for each in start)
        for cut in range(len(change.steps) + 1):
            states = run(change, start, cut)
            assert all(sum(each.enabled for each in state) <= max(1, active) for state in states), (start, cut)
            left = states[-1] if states else start
            again = only([want], left)
            end = (run(again, left, len(again.steps)) or [left])[-1]
            if enabled:
                assert [(each.digest, each.enabled) for each in end] == [(want.digest, True)], (start, cut)
                if start:
                    assert left, "something is always on record"
            else:
                assert not any(each.enabled for each in end)
            assert not only([want], end).steps, "a plan that was carried out leaves nothing to do"
