"""All programs of the package behind one command: `l2l-jax COMMAND …`, or `python -m l2l_jax COMMAND …`."""

import contextlib
import runpy
import sys

from l2l_jax.cli.failures import end_broken_pipe

COMMANDS = {
    "run": ("l2l_jax.main", "pretrain or load a model, unlearn, evaluate, report"),
    "config": ("l2l_jax.cli.config", "the complete config of a run, with the documentation of its fields"),
    "compare": ("l2l_jax.compare", "compare all methods"),
    "audit": ("l2l_jax.audit", "attack an unlearned model to test if the knowledge is gone or only hidden"),
    "evaluate": ("l2l_jax.evaluate", "evaluate saved models, or compare folders of images"),
    "filter": ("l2l_jax.cli.filter", "fit or apply a filter in front of a model that cannot be changed"),
    "prepare": ("l2l_jax.data.prepare", "prepare a data set of TensorFlow Datasets"),
    "weights": ("l2l_jax.weights", "import, export and inspect checkpoints"),
    "plan": ("l2l_jax.plan", "estimate what a config needs on accelerators you do not have"),
    "portability": ("l2l_jax.portability", "check that another device computes the same results"),
}
"""Module that `python -m` runs and a one-line description, by command name."""


def main() -> None:
    """Run the program that the first argument names, with the remaining arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        with contextlib.suppress(BrokenPipeError):  # raised with `| head`
            print(usage(), flush=True)
            return
        sys.exit(end_broken_pipe())
    if name == "benchmark":
        sys.exit("Error: the command 'benchmark' is now python -m benchmarks, in a checkout of the project.")
    if name not in COMMANDS:
        sys.exit(f"Error: {name!r} is not a command of l2l-jax; choose one of {', '.join(COMMANDS)}.")
    module, _ = COMMANDS[name]
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def usage() -> str:
    """Return the text that `--help` prints."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {about}  (python -m {module})" for name, (module, about) in COMMANDS.items())
    return "usage: l2l-jax COMMAND …\n\n" + "\n".join(lines) + "\n\nSee l2l-jax COMMAND --help for details."


if __name__ == "__main__":
    main()
