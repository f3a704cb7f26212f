"""``make chaos SECONDS=… SEED=…``: the proof that nothing is lost and nothing is done twice.

Real processors answer real questions and archive real messages on services of this machine, with a stand-in only for
Gemini. They are killed, also inside open transactions, and frozen; the broker, the registry, PostgreSQL and Chroma are
killed and started again; processors come and go. At the end everything is accounted for: the last line is the account
as JSON. The exit code is 1 if the run is wrong or not done in time, 2 if the judge cannot judge it.
"""

from __future__ import annotations

import argparse
import json
import sys

from rtfm.errors import ConfigError
from tests.chaos import table
from tests.chaos.endings import Interrupted
from tests.chaos.evidence import EXIT_CODES
from tests.chaos.options import add_options
from tests.chaos.run import Plan, run


def main() -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0)
    add_options(parser)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201 - for people
    plan = Plan(
        seed=options.seed,
        seconds=options.seconds,
        workers=options.workers,
        messages_per_s=options.rate,
        questions_per_s=options.rate / 2,
        load=options.load,
        keep=options.keep,
    )
    try:
        line = run(plan)
    except ConfigError as exc:
        print(f"Error: {exc}" + (f"\nHint: {exc.hint}" if exc.hint else ""), file=sys.stderr)  # noqa: T201
        return 2
    except Interrupted as exc:
        print(exc, file=sys.stderr)  # noqa: T201 - for people
        return 128 + exc.number
    if options.record:
        table.add(line)
    print(json.dumps(line), flush=True)  # noqa: T201 - the result
    return EXIT_CODES[str(line["verdict"])]


if __name__ == "__main__":
    sys.exit(main())
