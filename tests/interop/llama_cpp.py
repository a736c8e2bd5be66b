#!/usr/bin/env python3
"""What llama.cpp's own programs make of our files, and we of theirs.

    tests/interop/llama_cpp.py PROGRAM PEER_BINARY_DIR [--items 40]

PEER_BINARY_DIR holds llama-completion, llama-imatrix and llama-quantize. Of the bundled model: greedy answers from GGUF files of
every type by both programs, and the weights as llama-quantize turns them into f32; an importance matrix by both on the same text,
and each read by the other; k-quants with either. Status 1 if anything differs that should not. Run by hand: continuous integration has no llama.cpp.
"""
import argparse
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models/qianwen-mini-chat"
# Beside coarser codes both round activations, each in its own way, and an answer of a small model may turn on that: there
# the weights must be equal, and how many answers are is told.
EXACT = ["f32", "f16", "bf16"]
# "+": with --feedback.
QUANTISED = "q4_k_m+ q4_0+ q3_k_m+ iq4_xs+ q8_0 q6_k q5_k_m q5_1 q5_0 q4_k_m q4_1 q4_0 iq4_nl iq4_xs q3_k_m".split()


class Peer:
    def __init__(self, folder: str):
        self.folder = pathlib.Path(folder)
        self.env = {**os.environ, "LD_LIBRARY_PATH": folder}

    def run(self, name, *args) -> str:
        done = subprocess.run([str(self.folder / name), *map(str, args)], env=self.env, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            sys.exit(f"{name} {' '.join(map(str, args))}: {done.stderr[-2000:]}")
        return done.stdout


def run(program, *args) -> str:
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def answers_agree(program, peer, path, prompts) -> tuple:
    equal, first = 0, ""
    for prompt in prompts:
        ours = run(program, "generate", path, "-p", prompt, "--temperature", 0, "--max-new-tokens", 24).strip()
        for _ in range(4):  # on a busy machine it ends before all of its output is out
            theirs = peer.run("llama-completion", "-m", path, "-p", prompt, "-n", 24, "--temp", 0, "-no-cnv", "-t", 1,
                              "--no-display-prompt").replace("[end of text]", "").strip()
            if ours == theirs:
                break
        if ours == theirs:
            equal += 1
        elif not first:
            first = f"{prompt!r}: ours {ours!r}, theirs {theirs!r}"
    return equal, first


def hashes_of(program, path) -> dict:
    tensors = json.loads(run(program, "inspect", path, "--hash", "--json"))["tensors"]
    return {tensor["name"]: tensor["sha256"] for tensor in tensors}


def weights_agree(program, peer, path, folder) -> bool:
    """Whether the peer decodes what we wrote to the bits that we decode it to."""
    decoded = folder / "decoded.gguf"
    peer.run("llama-quantize", "--allow-requantize", path, decoded, "F32", 2)
    return hashes_of(program, path) == hashes_of(program, decoded)


def importance_of(program, path, folder) -> dict:
    """Mean squares by tensor, through our reader: rewritten in the older form, whose numbers are f32 one after another."""
    flat = folder / "flat.dat"
    run(program, "imatrix", "--from", path, "--output", flat, "--force")
    data, at, out = flat.read_bytes(), 4, {}
    for _ in range(struct.unpack_from("<i", data, 0)[0]):
        (length,) = struct.unpack_from("<i", data, at)
        name = data[at + 4: at + 4 + length].decode()
        at += 4 + length
        n_calls, n_values = struct.unpack_from("<ii", data, at)
        values = struct.unpack_from(f"<{n_values}f", data, at + 8)
        at += 8 + 4 * n_values
        out[name] = [value / max(n_calls, 1) for value in values]
    return out


def check_importance(program, peer, folder) -> bool:
    source, text = folder / "f32.gguf", folder / "text.txt"
    with open(ROOT / "tests/golden/mini/test_items.jsonl", encoding="utf-8") as items, open(text, "w", encoding="utf-8") as out:
        for line in items:
            item = json.loads(line)
            out.write(item["prompt"] + item["expected"] + "<|im_end|>\n")
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    peer.run("llama-imatrix", "-m", source, "-f", text, "-o", theirs, "-c", 512, "-t", 2, "--parse-special")
    run(program, "imatrix", source, "--calibration", text, "--calibration-length", 512, "--calibration-tokens", 0,
        "--output", ours, "--force")
    a, b = importance_of(program, ours, folder), importance_of(program, theirs, folder)
    missing = sorted(set(b) - set(a))
    worst, where = 0.0, ""
    for name in set(a) & set(b):
        size = sum(b[name])
        difference = sum(abs(x - y) for x, y in zip(a[name], b[name])) / size if size else 0
        if difference > worst:
            worst, where = difference, name
    print(f"importances: {len(set(a) & set(b))} of llama-imatrix's {len(b)} entries, sums of differences up to {100 * worst:.2f} % "
          f"of the sums ({where})")
    good = not missing and worst < 0.02
    for matrix in (ours, theirs):
        for kind in ("q4_k_m", "q3_k_m", "q6_k"):
            own, other = folder / "own.gguf", folder / "other.gguf"
            run(program, "quantize", source, "--to", kind, "--imatrix", matrix, "--output", own, "--force")
            peer.run("llama-quantize", "--imatrix", matrix, source, other, kind.upper(), 2)
            same = hashes_of(program, own) == hashes_of(program, other)
            print(f"{kind} with {matrix.name}: {'the same weights' if same else 'OTHER WEIGHTS'}")
            good &= same
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("peer")
    parser.add_argument("--items", type=int, default=40)
    options = parser.parse_args()
    peer = Peer(options.peer)
    with open(ROOT / "tests/golden/mini/test_items.jsonl", encoding="utf-8") as items:
        prompts = [json.loads(line)["prompt"] for line in items]
    prompts = prompts[:: max(1, len(prompts) // options.items)][: options.items]
    good = True
    with tempfile.TemporaryDirectory(prefix="qianwen-llama-") as name:
        folder = pathlib.Path(name)
        for kind in EXACT + QUANTISED:
            path = folder / f"{kind}.gguf"
            how = ["--feedback"] if kind.endswith("+") else []
            run(options.program, "quantize", MODEL, "--to", kind.rstrip("+"), *how, "--output", path)
            equal, first = answers_agree(options.program, peer, path, prompts)
            same = weights_agree(options.program, peer, path, folder)
            print(f"{kind}: {'the same weights' if same else 'OTHER WEIGHTS'}, {equal} of {len(prompts)} greedy answers the same"
                  + (f"; {first}" if first and kind in EXACT else ""), flush=True)
            good &= same and (equal == len(prompts) or kind not in EXACT)
        good &= check_importance(options.program, peer, folder)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
