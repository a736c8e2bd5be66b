#!/usr/bin/env python3
"""What each format costs: quantises a model to every type that can be written and prints a Markdown table of size,
bits per weight, divergence from the model, agreement, perplexity and decoding speed.

    bench/quality.py [--model MODEL] [--calibration FILE] [--text FILE] [--formats a,b,...] [--budgets a,b,...]

Without --text the bundled model's test items are taken: two of three to calibrate with, the third to judge by. Each
recipe of --budgets (or gptq-intN) has a row more, "budget" with the same bytes, and those of FEEDBACK one with --feedback. Every GGUF type is written with the importances of the
calibration. QIANWEN names the program (default: the release build). Files are made in a temporary folder, one at a time.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
GGUF = ("q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s iq4_nl iq4_xs q4_1 q4_0 q3_k_l q3_k_m q3_k_s q2_k q2_k_s "
        "iq3_m iq3_s iq3_xs iq3_xxs iq2_m iq2_s iq2_xs iq2_xxs iq1_m iq1_s tq2_0 tq1_0 q2_0 q1_0").split()
# With --feedback, a row beside the plain one.
FEEDBACK = "q8_0 q6_k q5_k_m q5_0 q4_k_m q4_k_s iq4_xs q4_0 q3_k_m q2_k".split()
CALIBRATED = ["gptq-int8", "gptq-int4", "gptq-int3", "gptq-int2", "awq"]
DIRECTORIES = CALIBRATED + ["nf4", "nf4-double"]


def program() -> str:
    return os.environ.get("QIANWEN", str(ROOT / "build/release/qianwen"))


def run(*args) -> subprocess.CompletedProcess:
    return subprocess.run([program(), *map(str, args)], capture_output=True, text=True)


def result(*args) -> dict:
    done = run(*args, "--json")
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def size_of(path: pathlib.Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.iterdir() if f.suffix == ".safetensors")


def split_items(folder: pathlib.Path) -> tuple:
    """The bundled model's items: what to calibrate with, what to judge by."""
    calibration, text = folder / "calibration.jsonl", folder / "text.txt"
    with open(ROOT / "tests/golden/mini/test_items.jsonl", encoding="utf-8") as items, \
            open(calibration, "w", encoding="utf-8") as out, open(text, "w", encoding="utf-8") as judged:
        for number, line in enumerate(items):
            item = json.loads(line)
            whole = item["prompt"] + item["expected"] + "<|im_end|>\n"
            if number % 3 == 0:
                judged.write(whole)
            else:
                out.write(json.dumps({"text": whole}) + "\n")
    return calibration, text


class Table:
    def __init__(self, model, text, tokens):
        self.model, self.text, self.tokens = model, text, tokens
        print("| format | bits per weight | MB | KL, mean | KL, 99 % | same likeliest | perplexity | tokens/s |")
        print("|---|---|---|---|---|---|---|---|")

    def row(self, name, path, bits):
        compared = result("compare", self.model, path, "--file", self.text)
        speed = result("bench", path, "-p", 0, "-n", self.tokens, "-r", 5)["tokens_per_second"]["median"]
        print(f"| {name} | {bits:.2f} | {size_of(path) / 1e6:.1f} | {compared['kl']['mean']:.4f} ± "
              f"{compared['kl']['stderr']:.4f} | {compared['kl_p99']:.3f} | {100 * compared['same_top1']['mean']:.1f} % | "
              f"{math.exp(compared['b']['nll']):.3f} | {speed:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "models/qianwen-mini-chat", type=pathlib.Path)
    parser.add_argument("--calibration", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--formats", default=",".join(GGUF + DIRECTORIES))
    parser.add_argument("--budgets", default="q4_k_m,iq4_xs,q3_k_m,q2_k,gptq-int4,gptq-int3")
    parser.add_argument("--tokens", default=64, type=int, help="decoded to measure the speed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        calibration, text = options.calibration, options.text
        if text is None:
            calibration, text = split_items(folder)
        seen = ["--calibration", calibration] if calibration else []
        importances = folder / "importances.gguf"
        result("imatrix", options.model, "--output", importances, *seen)
        table = Table(options.model, text, options.tokens)
        table.row("the model itself", options.model, 16)
        for to in filter(None, options.formats.split(",")):
            path = folder / (to if to in DIRECTORIES else to + ".gguf")
            how = seen if to in CALIBRATED else [] if to in DIRECTORIES else ["--imatrix", importances]
            kind = ["nf4", "--double-quant"] if to == "nf4-double" else [to]
            done = run("quantize", options.model, "--to", *kind, "--output", path, *how, "--json")
            if done.returncode == 5:  # a type that this model cannot have
                print(f"{to}: left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            if done.returncode != 0:
                sys.exit(f"{to}: {done.stderr.strip()}")
            table.row(to, path, json.loads(done.stdout)["bits_per_weight"])
            if to in FEEDBACK:
                fed = folder / f"{to}-feedback.gguf"
                said = result("quantize", options.model, "--to", to, "--feedback", "--imatrix", importances, "--output", fed,
                              *seen)
                table.row(f"{to} --feedback", fed, said["bits_per_weight"])
            if to in options.budgets.split(","):
                is_gptq = to.startswith("gptq")
                ours = folder / (f"budget-{to}" if is_gptq else "budget.gguf")
                kind = ["--to", "gptq"] if is_gptq else ["--force", "--imatrix", importances]
                said = result("quantize", options.model, "--max-bytes", size_of(path), "--output", ours, *kind, *seen)
                table.row(f"budget of {to}", ours, said["bits_per_weight"])


if __name__ == "__main__":
    main()
