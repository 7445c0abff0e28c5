"""The command line, put together: every layer brings its commands, this module names them and answers for their faults."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

try:
    import typer

    import tuneport
    from tuneport.core import terminal
    from tuneport.core.errors import DataError, SpecError, TuneportError
except KeyboardInterrupt:  # Ctrl-C while Python still starts
    sys.exit(130)

_INTERRUPTED = 130  # as a shell reports SIGINT

_COMMANDS = {
    "init": "core.commands",
    "check": "core.commands",
    "prepare": "providers.commands",
    "plan": "providers.plan_commands",
    "submit": "providers.job_commands",
    "jobs": "providers.job_commands",
    "status": "providers.job_commands",
    "watch": "providers.watch_commands",
    "events": "providers.job_commands",
    "logs": "providers.job_commands",
    "cancel": "providers.job_commands",
    "pause": "providers.job_commands",
    "resume": "providers.job_commands",
    "reconcile": "providers.job_commands",
    "checkpoints": "providers.job_commands",
    "export": "providers.job_commands",
    "delete": "providers.job_commands",
    "sweep": "providers.sweep_commands",
    "deploy": "providers.deployment_commands",
    "deployments": "providers.deployment_commands",
    "undeploy": "providers.deployment_commands",
    "serve": "providers.deployment_commands",
    "chat": "providers.deployment_commands",
    "baseline": "advisor.measure_commands",
    "evaluate": "advisor.measure_commands",
    "advise": "advisor.commands",
    "compare": "advisor.commands",
    "providers": "providers.commands",
    "models": "core.commands",
    "prices": "core.commands",
    "doctor": "providers.commands",
    "schema": "advisor.commands",
}
"""Where each command's function is, in the order of ``tuneport --help``."""


def application(command: str | None = None) -> typer.Typer:
    """The command line: with every command, or with ``command`` alone where it names one.

    Loading all of them takes longer than most commands run.
    """
    app = typer.Typer(
        name="tuneport",
        help="One portable fine-tuning job for OpenAI, Bedrock, Together, Fireworks and your own GPU, and an advisor that says "
        "whether and where to fine-tune.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich's help costs 0.1 s at every start
    )
    app.callback(invoke_without_command=True)(_options)
    for name in [command] if command in _COMMANDS else _COMMANDS:
        app.command()(getattr(import_module(f"tuneport.{_COMMANDS[name]}"), name))
    return app


def main() -> None:
    """Run the command line and exit with the code that ``tuneport.core.errors`` documents."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        try:
            application(next((a for a in arguments if not a.startswith("-")), None))(args=arguments)
        finally:
            sys.stdout.flush()  # a full disk behind stdout is found here, not at exit
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != _INTERRUPTED:
            raise
        _fail("interrupted; nothing is lost: jobs already begun stand in `tuneport jobs`", _INTERRUPTED, debug)
    except SpecError as error:
        faults = "".join(f"\n  - {fault}" for fault in error.faults)
        count = terminal.several(len(error.faults), "fault")
        _fail(f"{error.source} has {count}; correct and run again:{faults}", error.exit_code, debug)
    except TuneportError as error:
        _fail(str(error), error.exit_code, debug)
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        _drop_output()
        sys.exit(0)
    except OSError as error:
        _drop_output()
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}; free space or choose a writable place, then run again", 1, debug)
    except RecursionError:
        _fail("the input is nested too deep; flatten it and run again", DataError.exit_code, debug)
    except Exception as error:  # noqa: BLE001 (the last resort: a fault of ours, said in one sentence)
        _fail(f"unforeseen fault: {type(error).__name__}: {error}; run again with --debug and report what it prints", 1, debug)


def _drop_output() -> None:
    """What stdout still holds cannot be written; Python would try again at exit and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int, debug: bool) -> None:
    from tuneport.core.secrets import redact

    if debug:
        import traceback

        sys.stderr.write(redact(traceback.format_exc()))
    sys.stderr.write(f"tuneport: {redact(message)}\n")
    sys.exit(code)


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 - main() reads it
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"tuneport {tuneport.__version__}")
        raise typer.Exit


if __name__ == "__main__":
    main()
