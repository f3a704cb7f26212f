"""``make soak HOURS=2``: a long run with fewer faults, which measures the resources of its processes.

No action kills or removes the first worker, so that the growth of its resources over the whole run is visible. Faults
of the network affect all workers, including the first one. The report is the page ``.rtfm/soak/<run>/report.html``.
The last line of output is the account, with the additional fields ``growth`` and ``report``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from attrs import asdict

from rtfm.errors import ConfigError
from tests.chaos import table
from tests.chaos.endings import Interrupted
from tests.chaos.evidence import EXIT_CODES
from tests.chaos.options import add_options
from tests.chaos.report import page
from tests.chaos.run import Plan, Scene, run
from tests.chaos.samples import PERIOD_S, Sampler, growth
from tests.chaos.ticker import Ticker
from tests.conftest import CHECKOUT

FOLDER = CHECKOUT / ".rtfm" / "soak"
PAUSE_S = (20.0, 40.0)
SPARED = "w1"


def main() -> int:
    """Run the command and return the exit code. It has the same meaning as the exit code of `make chaos`."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--hours", type=float, default=2.0, help="length of the run in hours")
    parser.add_argument("--seconds", type=float, help="length of the run in seconds; replaces --hours")
    add_options(parser)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201 - for people
    plan = Plan(
        seed=options.seed,
        seconds=options.hours * 3600 if options.seconds is None else options.seconds,
        workers=options.workers,
        messages_per_s=options.rate,
        questions_per_s=options.rate / 2,
        load=options.load,
        keep=options.keep,
        kept_in=FOLDER,
        pause_s=PAUSE_S,
        spared=(SPARED,),
    )
    sampler: Sampler | None = None

    def beside(scene: Scene) -> Ticker:
        nonlocal sampler
        sampler = Sampler(scene)
        return Ticker(PERIOD_S, sampler.sample)

    try:
        line = run(plan, beside)
    except ConfigError as exc:
        print(f"Error: {exc}" + (f"\nHint: {exc.hint}" if exc.hint else ""), file=sys.stderr)  # noqa: T201
        return 2
    except Interrupted as exc:
        line = {"run": plan.run, "seed": plan.seed, "verdict": str(exc)}
        print(f"{exc}; report: {_report(plan, line, sampler)}", file=sys.stderr)  # noqa: T201 - for people
        return 128 + exc.number
    line["growth"] = {name: asdict(grown) for name, grown in growth(sampler.samples if sampler else []).items()}
    line["report"] = str(_report(plan, line, sampler))
    if options.record:
        table.add(line)
    print(json.dumps(line), flush=True)  # noqa: T201 - the result
    return EXIT_CODES[str(line["verdict"])]


def _report(plan: Plan, line: dict[str, object], sampler: Sampler | None) -> Path:
    path = FOLDER / plan.name / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = sampler.samples if sampler else []
    shown = {name: value for name, value in line.items() if name != "growth"}
    title = f"Soak run of {plan.seconds / 3600:g} h, seed {plan.seed}"
    path.write_text(page(title, shown, samples, growth(samples)), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
