"""Import published checkpoints and export unlearned models.

python -m l2l_jax.weights inspect mae_visualize_vit_base.pth
python -m l2l_jax.weights import mae_visualize_vit_base.pth
python -m l2l_jax.weights export runs/mae/unlearned --output unlearned.pth
python -m l2l_jax.weights export pretrained/mae --adapter adapter.safetensors --output unlearned.pth
python -m l2l_jax.weights fetch inception
"""

import argparse
import ast
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from l2l_jax.cli.common import Parser, run_command
from l2l_jax.errors import UserError


def _parser() -> Parser:
    parser = Parser(prog="python -m l2l_jax.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    file: Any = dict(type=pathlib.Path, metavar="FILE")
    folder: Any = dict(type=pathlib.Path, metavar="FOLDER")
    reading: Any = Parser(add_help=False)
    kinds = ".pth, .ckpt, .safetensors, a Hugging Face or diffusers folder, or hf://ORGANIZATION/NAME"
    reading.add_argument("file", metavar="FILE", help=kinds)
    reading.add_argument("--ema", action="store_true", help="take the EMA copy of the weights")
    reading.add_argument("--vqgan", **file, help="MAGE: its VQGAN, if FILE holds none")
    field: Any = dict(action="append", default=[], metavar="FIELD=VALUE", type=_field, dest="fields")
    hidden = "a model field that cannot be inferred from the weights, such as num_heads=4"
    reading.add_argument("--set", **field, help=hidden)
    importing = commands.add_parser("import", parents=[reading], help="turn a file into a saved model")
    importing.add_argument("--output", **folder, help="default: pretrained/<name of FILE>")
    export = commands.add_parser("export", help="turn a saved model into a file")
    export.add_argument("folder", **folder, help="a saved model")
    suffixes = ".pth or .safetensors; without suffix, a Hugging Face folder (MAE) or pipeline"
    export.add_argument("--output", **file, required=True, help=suffixes)
    export.add_argument("--adapter", **file, help="an adapter of the model, to be merged into it")
    alone = "write the adapter alone, as diffusers' pytorch_lora_weights.safetensors"
    export.add_argument("--lora", action="store_true", help=alone)
    copied = "the pipeline that the model was imported from, if it has moved"
    export.add_argument("--pipeline", **folder, help=copied)
    export.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    fetch = commands.add_parser("fetch", help="download a published file; without a name, list them")
    fetch.add_argument("name", nargs="?", metavar="NAME", help="such as inception or mae-vit-b")
    place = "default: $L2L_JAX_WEIGHTS, or ~/.cache/l2l_jax/weights"
    fetch.add_argument("--folder", **folder, help=place)
    commands.add_parser("inspect", parents=[reading], help="describe a file or folder")
    return parser


def _field(text: str) -> tuple[str, Any]:
    """Parse `"num_heads=4"` to `("num_heads", 4)`; values that are not Python literals are text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, {"true": True, "false": False}.get(value.lower(), value)


def run(argv: Sequence[str]) -> None:
    """Run the command line; `argv` excludes the program name."""
    args = _parser().parse_args(argv)
    if args.command == "fetch":
        _fetch(args.name, args.folder)
        return
    # Late imports, to report mistyped commands immediately.
    import jax

    from l2l_jax.weights import transfer
    from l2l_jax.weights.loading import locate

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy and would not help
    if args.command == "export":
        options = dict(adapter=args.adapter, lora=args.lora, pipeline=args.pipeline)
        metadata = transfer.export_model(args.folder, args.output, args.dtype, **options)
        merged = f", with the adapter {args.adapter}" if args.adapter else ""
        model = f"{metadata['family']}, {metadata.get('origin')}{merged}"
        print(f"{args.output}: {'adapter of ' + metadata['family'] if args.lora else model}")
        return
    path, options = locate(args.file), dict(ema=args.ema, vqgan=args.vqgan, fields=dict(args.fields))
    if args.command == "inspect":
        for heading, text in transfer.inspect(path, **options).items():
            print(f"{heading + ':':12} {text}")
        return
    output = args.output or pathlib.Path("pretrained") / pathlib.Path(args.file).stem
    metadata = transfer.import_checkpoint(path, output, **options)
    size = metadata["variant"] or "(no published size)"
    print(f"{output}: {metadata['family']} {size}, SHA-256 {metadata['source']['sha256']}")
    if "left_out" in metadata["source"]:
        print(f"Omitted, because they are needed only for training: {metadata['source']['left_out']}")
    if metadata["assumed"]:
        assumed = ", ".join(f"{name}={value}" for name, value in metadata["assumed"].items())
        print(f"Assumed, because the file does not specify them: {assumed}.")
        print("Change a field with --set FIELD=VALUE.")
    print(f"{metadata['licence']}\nUnlearn it with --config.model.pretrained={output}")


def _fetch(name: str | None, folder: pathlib.Path | None) -> None:
    from l2l_jax.weights import published

    if name in published.PUBLISHED:
        print(published.fetch(published.PUBLISHED[name], folder or published.weights_folder()))
        return
    if name is not None:
        names = ", ".join(published.PUBLISHED)
        raise UserError(f"There is no published file {name!r} in the list: {names}.")
    for file in published.PUBLISHED.values():
        print(f"{file.name:20} {file.holds}; {file.size_in_words()}; {file.licence}\n{'':20} {file.page}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0, or 1 after an error message on stderr."""
    return run_command(run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
