"""Decide how many threads OpenMP starts and how they wait, for every way of starting csflow.

torch's CPU kernels run on OpenMP, which reads its variables once, when it is loaded. What it does without them suits a
machine of one's own: as many threads as cores, which spin while they wait for each other. Next to other work, or under
a quota, the threads that spin take the time of the one that is waited for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

from csflow.system.cores import cores, cores_in_reach

NUMBER, WAITING = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
_LIMIT, _LEVELS, _DYNAMIC = "OMP_THREAD_LIMIT", "OMP_MAX_ACTIVE_LEVELS", "OMP_DYNAMIC"


def prepare_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OpenMP's variables for this process and those it starts; to be called before torch is imported.

    - As many threads as :func:`csflow.system.cores.cores`, unless ``OMP_NUM_THREADS`` says otherwise. The number is
      not adapted to what else the machine does: it decides in which order numbers are added up, so that a run that was
      interrupted would not end with the same bits.
    - Waiting threads sleep, unless ``OMP_WAIT_POLICY`` says otherwise.
    - Never fewer threads than torch counts on: oneDNN leaves out the part of those that are missing, and the gradients
      of convolutions are then wrong without a word. ``OMP_THREAD_LIMIT`` and ``OMP_MAX_ACTIVE_LEVELS=0`` are therefore
      respected by asking for no more threads than they allow, and ``OMP_DYNAMIC`` is switched off.

    Reference:
        docs/decisions/023-threads.md; OpenMP API 5.2, chapter 21 (environment variables); pytorch/pytorch#91547
        (gradients that are never finished under ``OMP_THREAD_LIMIT``).
    """
    asked = _number(environment, NUMBER)
    threads = min(filter(None, (asked or cores(), *_limits(environment))))
    if threads != (asked or cores_in_reach()):
        environment[NUMBER] = str(threads)
        if "torch" in sys.modules:  # too late for the variable
            sys.modules["torch"].set_num_threads(threads)
    if _varies(environment):
        environment[_DYNAMIC] = "false"
    if not environment.get(WAITING):
        environment[WAITING] = "passive"


def share_of_threads(processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of threads of each of several training processes: what was chosen, or an equal share of all.

    A number that is that of all cores is not taken for a choice, because of :func:`prepare_threads`.

    Args:
        processes: How many there are.
        environment: Where the choice is.
    """
    asked = _number(environment, NUMBER)
    return asked if asked is not None and asked != cores() else max(1, cores() // processes)


def why_fewer(threads: int, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the variable with which OpenMP may start fewer than this number of threads; ``None`` if there is none."""
    if threads > 1 and _varies(environment):
        return f"{_DYNAMIC}=true"
    for name, limit in zip((_LIMIT, _LEVELS), _limits(environment), strict=True):
        if limit is not None and limit < threads:
            return f"{name}={environment[name]}"
    return None


def _varies(environment: Mapping[str, str]) -> bool:
    return environment.get(_DYNAMIC, "").strip().lower() == "true"


def _limits(environment: Mapping[str, str]) -> list[int | None]:
    return [_number(environment, _LIMIT), 1 if environment.get(_LEVELS, "").strip() == "0" else None]


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """Read a number of threads; of a list, one for each level of nesting, the first. What OpenMP ignores is None."""
    first = environment.get(name, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
