"""``make chaos SECONDS=… SEED=…``: test that nothing is lost and nothing is done twice.

Processors answer questions and archive messages. Their dependencies are real and run on this machine. Only Gemini is a
fake. Meanwhile the run

- kills processors, also inside open transactions, and freezes them
- adds and removes processors
- kills and restarts Kafka, the registry, PostgreSQL and Chroma, and freezes Kafka
- disturbs the network between the processors and these dependencies.

At the end, the run prints its account. The account is one line of JSON with the parameters of the run, the numbers of
records that were sent, what became of these records, and the verdict.

The exit code is 0 if the run is right, 1 if it is wrong, failed, did not settle or did not finish in time, and 2 if it
cannot be judged or cannot start. After a signal, the exit code is 128 plus the number of the signal.
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
    """Run the command and return its exit code."""
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
