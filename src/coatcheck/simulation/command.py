"""``coatcheck simulate``: runs histories, replays one with its trace, or searches a small farm exhaustively."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections import Counter
from typing import Any, get_args

from coatcheck.simulation.bare import history as bare_history
from coatcheck.simulation.bare import search
from coatcheck.simulation.campaign import Total, run_all
from coatcheck.simulation.history import Outcome
from coatcheck.simulation.scenario import Profile, draw
from coatcheck.simulation.site import history as site_history
from coatcheck.simulation.site.shrink import shrink

MAX_SHOWN = 5
"""Failures that are printed with their replay command; a campaign stops there."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = _Parser(
        prog="coatcheck simulate", description="Run the protocol in a world of faults.", allow_abbrev=False
    )
    options.add_argument("--seeds", type=_positive, default=1000, metavar="N", help="how many histories (1000)")
    options.add_argument("--first-seed", type=int, default=1, metavar="N", help="the first of them (1)")
    options.add_argument("--seed", type=int, metavar="N", help="run the history of this seed alone")
    options.add_argument("--trace", action="store_true", help="with --seed: print everything that happens")
    options.add_argument(
        "--profile", choices=get_args(Profile), default="mixed", help="which kind of histories (mixed)"
    )
    options.add_argument(
        "--shipped", action="store_true", help="histories of the shipped shells, on virtual time and a simulated wire"
    )
    options.add_argument(
        "--only", metavar="PARTS", help="with --shipped and --seed: leave out all faults and requests but these"
    )
    options.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes (1)")
    options.add_argument("--exhaustive", action="store_true", help="search a small farm: every order, every fault")
    options.add_argument("--script", metavar="WORDS", help=f"with --exhaustive: {', '.join(search.SCRIPTS)}")
    options.add_argument(
        "--steps", type=_positive, default=200_000, metavar="N", help="with --exhaustive: states at most"
    )
    options.add_argument("--disorder", type=int, default=2, metavar="N", help="... messages that overtake (2)")
    options.add_argument("--parallel", type=_positive, default=2, metavar="N", help="... requests at once (2)")
    options.add_argument("--faults", type=int, default=1, metavar="N", help="with --exhaustive: faults at most (1)")
    options.add_argument("--cuts", action="store_true", help="... faults are cuts and lost data, at no patience")
    options.add_argument("--links", action="store_true", help="... connections keep their order; leases go on")
    options.add_argument("--session-servers", type=_positive, default=2, metavar="N", help="... session servers (2)")
    return options


class _Parser(argparse.ArgumentParser):
    """One that says which option was probably meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but for the line about an unknown option."""
        found, left = self.parse_known_args(args, namespace)
        if left:
            known = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(left[0].partition("=")[0], known, 1)
            self.error(f"no such option: {left[0]}" + (f". Did you mean {near[0]!r}?" if near else ""))
        return found


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main(argv: list[str]) -> int:
    """0 if no invariant broke, 1 if one did, 2 on bad usage."""
    try:
        options = parser().parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    if options.exhaustive:
        return _exhaustive(options)
    if options.only is not None and not (options.shipped and options.seed is not None):
        say("coatcheck simulate: --only needs --shipped and --seed")
        return 2
    if options.seed is not None:
        return _one(options)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    total = run_all(seeds, options.profile, options.jobs, MAX_SHOWN, options.shipped)
    _print_total(total, options.profile)
    return 1 if total.failed else 0


def say(line: str) -> None:
    """Print a line; a reader who went away is no error."""
    try:
        sys.stdout.write(line + "\n")
    except BrokenPipeError:
        raise SystemExit(1) from None


def _replay_command(seed: int, profile: Profile, more: str) -> str:
    """The one command that shows a history again, with everything that happened."""
    extra = "" if profile == "mixed" else f" --profile {profile}"
    return f"coatcheck simulate --seed {seed} --trace{extra}{more}"


def _one(options: argparse.Namespace) -> int:
    scenario = draw(options.seed, options.profile)
    if options.shipped:
        only = None if options.only is None else frozenset(options.only.split(","))
        outcome = site_history.run(scenario, options.trace, only)
    else:
        outcome = bare_history.run(scenario, options.trace)
    for line in outcome.lines:
        say(line)
    if options.trace:
        say(f"trace {outcome.digest}")
    _print_outcome(outcome, options.profile, whole=options.only is None)
    if not outcome.violations:
        say(f"seed {options.seed}: {outcome.steps} steps, no invariant broken")
    return 1 if outcome.violations else 0


def _print_outcome(outcome: Outcome, profile: Profile, whole: bool = True) -> None:
    """What broke and how to see it again; of a ``whole`` history with parts, the fewest with which it still does."""
    for violation in outcome.violations:
        say(f"VIOLATION seed {outcome.seed}: {violation}")
    if not outcome.violations or not whole:
        return
    more = ""
    if outcome.parts:
        least = shrink(draw(outcome.seed, profile), outcome)
        say(f"  of {len(outcome.parts)} faults and requests, {len(least.parts)} are enough ({least.runs} histories):")
        say(f"  VIOLATION {least.violation}")
        more = f" --shipped --only {','.join(least.parts) or 'none'}"
    say(f"  replay: {_replay_command(outcome.seed, profile, more)}")


def _print_total(total: Total, profile: Profile) -> None:
    rate = total.histories / max(total.seconds, 1e-9)
    say(f"{total.histories} histories, {total.steps} steps, {total.seconds:.1f} s, {rate:.0f} histories/s")
    excuses = Counter({name: count for name, count in total.counts.items() if ": " in name})
    others = Counter({name: count for name, count in total.counts.items() if name not in excuses})
    for title, counts in (("seen", others), ("excused, by promise", excuses)):
        say(f"{title}:")
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            say(f"  {count:9d}  {name}")
    for outcome in total.failed:
        _print_outcome(outcome, profile)
    say(f"{len(total.failed)} histories broke an invariant" if total.failed else "no invariant broken")


def _exhaustive(options: argparse.Namespace) -> int:
    words = [options.script] if options.script is not None else list(search.SCRIPTS)
    failed = False
    for word in words:
        if word not in search.SCRIPTS:
            say(f"coatcheck simulate: no script {word!r}; there are {', '.join(search.SCRIPTS)}")
            return 2
        scenario = search.small_scenario(
            rotate_after_ms=0 if word.startswith("rotate") else 60_000,
            session_servers=options.session_servers,
            patience_s=0.0 if options.cuts else 30.0,
            ordered=options.links,
        )
        found = search.explore(
            word, options.steps, options.faults, options.disorder, options.parallel, scenario, options.cuts
        )
        say(found.summary())
        for line in found.lines:
            say(line)
        failed = failed or bool(found.violations)
    return 1 if failed else 0
