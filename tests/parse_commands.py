"""Errors of a program for command lines ("" if valid); `python -m tests.parse_commands MODULE < JSON`."""

import argparse
import contextlib
import importlib
import inspect
import io
import json
import sys

from absl import flags

from l2l_jax.cli import common as command_line


class Parsed(BaseException):
    """Exception that stops a program after it has accepted its command line."""


def stopping(parse):
    def wrapped(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    return wrapped


def complaint(main, module, arguments):
    for values in (flags.FLAGS, command_line.PROCESSES):
        values.unparse_flags()
    sys.argv = [module, *arguments]
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written), contextlib.redirect_stdout(written):
            # Some programs take the command line as an argument, others read sys.argv.
            takes_argv = inspect.signature(main).parameters["argv"].default is inspect.Parameter.empty
            code = main(sys.argv) if takes_argv else main()
    except (Parsed, command_line.HelpRequested):
        return ""
    except SystemExit as error:
        code = error.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if code in (0, None) else written.getvalue() or str(code)


def program(module):
    """Return the `main` that `python -m MODULE` runs."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(f"{module}.__main__").main
    return importlib.import_module(module).main


if __name__ == "__main__":
    argparse.ArgumentParser.parse_args = stopping(argparse.ArgumentParser.parse_args)
    command_line._raw_config_of_run = lambda: {}  # for runs that do not exist
    command_line._parse_flags = stopping(command_line._parse_flags)
    module = sys.argv[1]
    main = program(module)
    print(json.dumps([complaint(main, module, arguments) for arguments in json.load(sys.stdin)]))
