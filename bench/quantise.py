#!/usr/bin/env python3
"""How fast models are quantised, on checkpoints of exact shapes with random weights; prints Markdown tables.

    bench/quantise.py layers [--size 7B] [--layers 2] [--formats gptq-int4,awq] [--samples 128] [--length 512]
    bench/quantise.py types [--size 1.8B] [--layers 4] [--types q4_0,q4_k_m,...] [--rounds 5] [--peer PEER_BINARY_DIR]

"layers": seconds of a layer for formats that are calibrated, what the whole model would take, and the most memory held. The
embedding and the output matrix, which are only copied, are not counted. "types": GGUF types without calibration, from a file
in f16; with --peer its llama-quantize writes the same between our rounds, and medians are compared. "q4_0:pure" is q4_0 with
--pure, that is for the output matrix too, which has a searched type in the recipe. "disk": as many bytes written and synced by
nobody who computes.
QIANWEN names the program (default: the release build). Files are made in a temporary folder (TMPDIR).
"""
import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("QIANWEN", str(ROOT / "build/release/qianwen"))
MAKE_MODEL = os.environ.get("QIANWEN_MAKE_MODEL", str(ROOT / "build/release/tools/make_model"))


def run(*command, env=None) -> subprocess.CompletedProcess:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done


def make_model(options, form, path) -> None:
    run(MAKE_MODEL, "--size", options.size, "--layers", options.layers, "--format", form, "--output", path)


def measure_layers(options, folder) -> None:
    model, calibration = folder / "model", folder / "calibration.jsonl"
    make_model(options, "bf16", model)
    with open(model / "config.json", encoding="utf-8") as file:
        vocab = json.load(file)["vocab_size"]
    draw = random.Random(1)
    with open(calibration, "w", encoding="utf-8") as out:
        for _ in range(options.samples):
            out.write(json.dumps({"ids": [draw.randrange(vocab) for _ in range(options.length)]}) + "\n")
    whole = {"0.5B": 24, "1.8B": 24, "4B": 40, "7B": 32, "14B": 40, "32B": 64, "72B": 80, "110B": 80}[options.size]
    print(f"{options.samples} samples of {options.length} tokens, shape of {options.size}\n")
    print(f"| format | a layer, s | {whole} layers, min | most memory, GiB |\n|---|--:|--:|--:|")
    for form in options.formats.split(","):
        output = folder / "out"
        done = json.loads(run(sys.executable, __file__, "measured", PROGRAM, "quantize", model, "--to", form, "--output", output,
                              "--calibration", calibration, "--calibration-length", options.length, "--calibration-tokens", 0,
                              "--json").stdout.splitlines()[-1])
        seconds = [layer["seconds"] for layer in done["result"]["layers"]]
        print(f"| {form} | {', '.join(f'{s:.0f}' for s in seconds)} | {statistics.mean(seconds) * whole / 60:.0f} | "
              f"{done['peak_bytes'] / 2**30:.1f} |", flush=True)
        shutil.rmtree(output)


def measured(command) -> None:
    """Runs a command that prints JSON; prints that with the most memory that it held (children's maximum is of a process)."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.strip())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"result": json.loads(done.stdout.splitlines()[-1]), "peak_bytes": peak}))


def seconds_of(*command, env=None) -> float:
    begin = time.monotonic()
    run(*command, env=env)
    return time.monotonic() - begin


def seconds_of_disk(path, n_bytes) -> float:
    """Of writing so many bytes anew, and syncing them."""
    chunk = os.urandom(1 << 24)
    begin = time.monotonic()
    with open(path, "wb") as file:
        for at in range(0, n_bytes, len(chunk)):
            file.write(chunk[: n_bytes - at])
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - begin


def measure_types(options, folder) -> None:
    model = folder / "model.gguf"
    make_model(options, "gguf-f16", model)
    gigabytes = model.stat().st_size / 1e9
    peer = pathlib.Path(options.peer) / "llama-quantize" if options.peer else None
    threads = os.cpu_count()
    print(f"{options.size} shape, {options.layers} layers, {gigabytes:.2f} GB in f16, medians of {options.rounds}\n")
    print("| type | ours, s | disk, s | llama-quantize, s | ratio |\n|---|--:|--:|--:|--:|")
    for kind in options.types.split(","):
        name, *pure = kind.split(":")
        flags = ["--pure"] if pure == ["pure"] else []
        ours, theirs, disk = [], [], []
        output = folder / "out.gguf"
        for _ in range(options.rounds):
            ours.append(seconds_of(PROGRAM, "quantize", model, "--to", name, *flags, "--output", output, "--force"))
            disk.append(seconds_of_disk(output, output.stat().st_size))
            output.unlink()
            if not peer:
                continue
            env = {**os.environ, "LD_LIBRARY_PATH": options.peer}
            theirs.append(seconds_of(peer, *flags, model, output, name.upper(), threads, env=env))
            output.unlink()
        own = statistics.median(ours)
        other = f"{statistics.median(theirs):.2f} | {statistics.median(theirs) / own:.1f}" if theirs else "| "
        print(f"| {' '.join([name, *flags])} | {own:.2f} | {statistics.median(disk):.2f} | {other} |", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["measured"]:
        measured(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    layers = parts.add_parser("layers")
    layers.add_argument("--size", default="7B")
    layers.add_argument("--layers", type=int, default=2)
    layers.add_argument("--formats", default="gptq-int4,awq")
    layers.add_argument("--samples", type=int, default=128)
    layers.add_argument("--length", type=int, default=512)
    types = parts.add_parser("types")
    types.add_argument("--size", default="1.8B")
    types.add_argument("--layers", type=int, default=4)
    types.add_argument("--types", default="q4_0,q4_0:pure,q8_0,q2_k,q3_k_m,q4_k_m,q5_k_m,q6_k")
    types.add_argument("--rounds", type=int, default=5)
    types.add_argument("--peer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qianwen-quantise-") as name:
        {"layers": measure_layers, "types": measure_types}[options.part](options, pathlib.Path(name))


if __name__ == "__main__":
    main()
