"""kvmesh import and kvmesh export, which start this: checkpoints of other programs to checkpoint folders, and back (docs/import.md)."""

import argparse
import sys

from folder import Refused, check
from hf_files import export_hf
from nanochat_files import import_nanochat
from orbax_files import export_orbax, import_orbax


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refused(f"{message} (kvmesh {self.prog.split()[-1]} --help lists the options)")


def whole(text):
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise argparse.ArgumentTypeError(f"{text} is no number")
    return int(text)


def import_options(parser):
    parser.add_argument("--from", dest="kind", required=True, choices=["orbax", "nanochat"], help="what SOURCE is")
    parser.add_argument("source", metavar="SOURCE", help="orbax: a folder of weights, of a step, or of several steps; nanochat: the folder with model_<step>.pt")
    parser.add_argument("--output", metavar="DIR", required=True, help="the checkpoint folder that is made")
    parser.add_argument("--step", metavar="N", type=whole, help="of several; default: the last")
    parser.add_argument("--dtype", choices=["keep", "float32", "bfloat16"], default="keep", help="of the weights written; default: keep, bit for bit")
    parser.add_argument("--seqlen", metavar="N", type=whole, help="orbax: the context length, which the checkpoint does not say")
    parser.add_argument("--config", metavar="FILE", help="orbax: keys of config.json that the checkpoint does not say (seqlen, window_pattern, …)")
    parser.add_argument("--tokenizer", metavar="FILE", help="orbax: ranks in tiktoken's format, copied; nanochat: tokenizer.pkl, where it is not in its usual place")
    parser.add_argument("--pickle", action="store_true", help="nanochat: read its pickles, and nothing in them but tensors and plain containers")


def export_options(parser):
    parser.add_argument("--to", dest="kind", required=True, choices=["orbax", "hf"], help="orbax: what the original program loads; hf: a Hugging Face folder, where transformers has this model")
    parser.add_argument("source", metavar="DIR", help="a checkpoint folder")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="what is made")


ONLY = {"orbax": ["seqlen", "config"], "nanochat": ["pickle"]}  # import's options that the other kind does not have
COMMANDS = {"import": (import_options, {"orbax": import_orbax, "nanochat": import_nanochat}), "export": (export_options, {"orbax": export_orbax, "hf": export_hf})}


def main(words):
    options, kinds = COMMANDS[words[0]]
    parser = Parser(prog=f"kvmesh {words[0]}", allow_abbrev=False)
    options(parser)
    parser.add_argument("--python", metavar="PATH", help="the Python that runs this; default: python3")
    try:
        args = parser.parse_args(words[1:])
        for kind, names in ONLY.items():
            for name in names:
                check(args.kind == kind or not getattr(args, name, None), f"--{name} is for --from {kind}")
        print(kinds[args.kind](args))
        return 0
    except Refused as e:
        print(f"kvmesh: {e}", file=sys.stderr)
        return e.code
    except MemoryError:
        print("kvmesh: out of memory", file=sys.stderr)
        return 1


sys.exit(main(sys.argv[1:]))
