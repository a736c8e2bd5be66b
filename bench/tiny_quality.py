#!/usr/bin/env python3
"""Tiny checkpoints quantised by AutoGPTQ, AutoAWQ and llama-quantize beside ours, with the same calibration: prints a Markdown
table of how far each file's predictions are from the checkpoint's.

    bench/tiny_quality.py [--peer-python PYTHON] [--llama-cpp PEER_BINARY_DIR] [--sequences 24] [--judged 8]
                          [--checkpoints dense,GQA,GGUF]

The checkpoints are those that the goldens were made of, in QIANWEN_SHARED/golden (see CONTRIBUTING.md): two small dense ones
(gptq/base_dense, gptq/base_gqa_tied) and one in GGUF (gguf/files/mini-f16.gguf). Calibration (sequences of 128 tokens) and what
is judged by (others of 512) are sampled from the checkpoint itself. Differences are of the weights alone: both sides are
computed in f32.
PYTHON: of the environment that tests/interop/quantised.sh makes (default: build/interop/quantised); AutoGPTQ 0.7.1 and
AutoAWQ 0.2.9 run in it on the CPU, with Transformers 4.51.3, which is put into build/interop/tiny. Importances of GGUF types are
ours, in both. Without a peer its rows are left out. QIANWEN names the program (default: the release build).
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = pathlib.Path(os.environ.get("QIANWEN_SHARED", str(ROOT.parent / "shared"))) / "golden"
PROGRAM = os.environ.get("QIANWEN", str(ROOT / "build/release/qianwen"))
PINNED = ["transformers==4.51.3", "tokenizers==0.21.4"]
# Bits and group size of AutoGPTQ, group size of AutoAWQ.
GPTQ = [(8, 128), (4, 128), (4, 32), (3, 128), (2, 64)]
AWQ = [128, 64]
GGUF = "q8_0 q6_k q5_k_m q5_0 q4_k_m q4_0 iq4_xs q3_k_m q2_k iq3_s iq3_xxs iq2_s iq2_xxs iq1_s".split()


def run(*command, env=None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def sample(model, count, length, first_seed, folder) -> list:
    """Sequences that the model itself writes, each from another first token."""
    requests = folder / "requests.jsonl"
    with open(requests, "w", encoding="utf-8") as out:
        for i in range(count):
            out.write(json.dumps({"ids": [3 + (first_seed + 7 * i) % 80], "seed": first_seed + i, "do_sample": True, "temperature": 1,
                                  "top_k": 0, "top_p": 1, "repetition_penalty": 1, "max_new_tokens": length - 1,
                                  "ignore_eos": True}) + "\n")
    lines = run(PROGRAM, "generate", model, "--file", requests, "--json", "--activations", "f32").splitlines()
    with open(requests, encoding="utf-8") as asked:
        return [json.loads(request)["ids"] + json.loads(line)["ids"] for request, line in zip(asked, lines, strict=True)]


class Judge:
    """Of one checkpoint: what to calibrate with, and what files are judged by."""

    def __init__(self, model, options, folder):
        self.model, self.calibration, self.judged = model, folder / "calibration.jsonl", folder / "judged.json"
        with open(self.calibration, "w", encoding="utf-8") as out:
            for ids in sample(model, options.sequences, 128, 1, folder):
                out.write(json.dumps({"ids": ids}) + "\n")
        with open(self.judged, "w", encoding="utf-8") as out:
            json.dump({"ids": sum(sample(model, options.judged, 512, 1000, folder), [])}, out)

    def kl(self, path) -> tuple:
        said = json.loads(run(PROGRAM, "compare", self.model, path, "--file", self.judged, "--window", 512, "--activations", "f32",
                              "--json"))
        return said["kl"]["mean"], said["kl"]["stderr"]

    def ours(self, to, output, *more):
        run(PROGRAM, "quantize", self.model, "--to", to, "--output", output, *more)
        return self.kl(output)


def row(name, form, peer, theirs, ours, feedback=None) -> None:
    def cell(kl):
        return "" if kl is None else f"{kl[0]:.6f} ± {kl[1]:.6f}"
    best = ours if feedback is None or ours[0] < feedback[0] else feedback
    ratio = f"{best[0] / theirs[0]:.2f}" if theirs else ""
    print(f"| {name} | {form} | {peer} | {cell(theirs)} | {cell(ours)} | {cell(feedback)} | {ratio} |", flush=True)


def calibrated(name, judge, options, folder) -> None:
    modules = ROOT / "build/interop/tiny"
    python = pathlib.Path(options.peer_python)
    if python.exists() and not modules.exists():
        run(python, "-m", "pip", "install", "-q", "--no-deps", "--target", modules, *PINNED)

    def peer(kind, bits, group):
        if not python.exists():
            return None
        output = folder / f"{kind}-{bits}-{group}-peer"
        run(python, "-W", "ignore", ROOT / "bench/tiny_quality_peers.py", kind, judge.model, output, judge.calibration, bits, group,
            env={**os.environ, "PYTHONPATH": str(modules)})
        return judge.kl(output)

    calibration = ["--calibration", judge.calibration, "--calibration-length", 128, "--calibration-tokens", 0]
    for bits, group in GPTQ:
        ours = judge.ours(f"gptq-int{bits}", folder / f"gptq-{bits}-{group}", "--group-size", group, *calibration)
        row(name, f"GPTQ, {bits} bits, groups of {group}", "AutoGPTQ", peer("gptq", bits, group), ours)
    for group in AWQ:
        ours = judge.ours("awq", folder / f"awq-{group}", "--group-size", group, *calibration)
        row(name, f"AWQ, groups of {group}", "AutoAWQ", peer("awq", 4, group), ours)


def block_types(name, judge, options, folder) -> None:
    importances = folder / "importances.gguf"
    calibration = ["--calibration", judge.calibration, "--calibration-length", 128, "--calibration-tokens", 0]
    run(PROGRAM, "imatrix", judge.model, *calibration, "--output", importances)
    for kind in GGUF:
        theirs = None
        if options.llama_cpp:
            output = folder / f"{kind}-peer.gguf"
            run(pathlib.Path(options.llama_cpp) / "llama-quantize", "--imatrix", importances, judge.model, output, kind.upper(), 1,
                env={**os.environ, "LD_LIBRARY_PATH": options.llama_cpp})
            theirs = judge.kl(output)
        plain = judge.ours(kind, folder / f"{kind}.gguf", "--imatrix", importances)
        fed = judge.ours(kind, folder / f"{kind}-feedback.gguf", "--imatrix", importances, "--feedback", *calibration)
        row(name, kind.upper(), "llama-quantize", theirs, plain, fed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=str(ROOT / "build/interop/quantised/bin/python"))
    parser.add_argument("--llama-cpp", help="the folder of llama-quantize and its libraries")
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--judged", type=int, default=8)
    parser.add_argument("--checkpoints", default="dense,GQA,GGUF")
    options = parser.parse_args()
    print("| checkpoint | format | peer | its KL | ours | with `--feedback` | ratio |\n|---|---|---|---|---|---|---|")
    checkpoints = {"dense": ("gptq/base_dense", calibrated), "GQA": ("gptq/base_gqa_tied", calibrated),
                   "GGUF": ("gguf/files/mini-f16.gguf", block_types)}
    for name in options.checkpoints.split(","):
        model, measure = GOLDEN / checkpoints[name][0], checkpoints[name][1]
        with tempfile.TemporaryDirectory(prefix="qianwen-tiny-") as temporary:
            folder = pathlib.Path(temporary)
            measure(name, Judge(model, options, folder), options, folder)


if __name__ == "__main__":
    main()
