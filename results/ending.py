"""How every command line ends: what a person typed wrongly, Ctrl-C and a closed pipe in one line or none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

BAD_INPUT = 2
"""Exit code of what a person typed wrongly, and of Ctrl-C."""
CLOSED_PIPE = 141
"""Exit code where the reader of the output went away: what a shell gives to a program that SIGPIPE ended."""
NO_RUN = "no run was in hand"


def say(line: str) -> None:
    """Write a line on the error stream."""
    sys.stderr.write(f"{line}\n")


@contextmanager
def one_line_errors(
    code: int = BAD_INPUT,
    write: Callable[[str], None] = say,
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[None]:
    """End with exit code `code` and one line, where one of `kinds` was raised or Ctrl-C was pressed.

    Args:
        kinds: what stands for a wrong request; anything else is a fault of ours and keeps its trace.
    """
    try:
        yield
    except BrokenPipeError:
        quietly()
    except kinds as error:
        write(f"error: {' '.join(str(error).split())}")
        raise SystemExit(code) from None
    except KeyboardInterrupt as stop:
        write(f"interrupted: {str(stop) or NO_RUN}")
        raise SystemExit(BAD_INPUT) from None


def quietly() -> None:
    """End without a word: whoever read the output is gone, as in `| head`.

    Raises:
        SystemExit: always.
    """
    # What is still in the buffer goes nowhere, so that nothing complains of it at the end of the process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(CLOSED_PIPE)


def interrupted_early(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Stand for `sys.excepthook` in a command: Ctrl-C while modules are imported is one line too."""
    if issubclass(kind, KeyboardInterrupt):
        say(f"interrupted: {NO_RUN}")
    else:
        sys.__excepthook__(kind, error, trace)


def run(command: Callable[..., object], name: str) -> None:
    """Run a command line of typer's as `python -m name`, and end the process as this module says.

    Shells complete it through the variable `_NAME_COMPLETE`, see `completion`.
    """
    if variable(name) in os.environ:
        from typer import completion as shells

        shells.completion_init()  # type: ignore[attr-defined]
    try:
        try:
            command(prog_name=f"python -m {name}", complete_var=variable(name))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        quietly()


def variable(name: str) -> str:
    """Return the environment variable by which a shell asks a command line what may follow."""
    return f"_{name.upper()}_COMPLETE"


SCRIPTS = {
    "bash": """\
{name}() {{ python -m {name} "$@"; }}
_{name}_completion() {{
  local IFS=$'\\n'
  local typed="${{COMP_WORDS[*]}}"
  COMPREPLY=( $( env COMP_WORDS="$typed" COMP_CWORD=$COMP_CWORD {variable}=complete_bash python -m {name} ) )
}}
complete -o default -F _{name}_completion {name}
""",
    "zsh": """\
{name}() {{ python -m {name} "$@"; }}
_{name}_completion() {{
  eval $( env _TYPER_COMPLETE_ARGS="${{words[1,$CURRENT]}}" {variable}=complete_zsh python -m {name} )
}}
compdef _{name}_completion {name}
""",
    "fish": """\
function {name}; python -m {name} $argv; end
complete --command {name} --no-files --arguments "(env {variable}=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
_TYPER_COMPLETE_ARGS=(commandline -cp) python -m {name})"
""",
}


def completion(name: str, shell: str) -> str:
    """Return the script that defines `name` as a short form of `python -m name` in a shell, and completes it.

    Raises:
        ValueError: a shell that there is no script for.
    """
    if shell not in SCRIPTS:
        raise ValueError(f"shell {shell!r}: known are {', '.join(SCRIPTS)}")
    return SCRIPTS[shell].format(name=name, variable=variable(name))


def version_line(packages: tuple[str, ...]) -> str:
    """Return "gnlorp 0.1.0, Python 3.11.2, torch 2.13.0": what a report of a fault should name."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join([found[0], f"Python {platform.python_version()}", *found[1:]])
