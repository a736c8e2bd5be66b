"""What `quantize --to nf4` writes, as Transformers and bitsandbytes read it, and what they write as we do (see nf4.sh)."""
import json
import os
import subprocess
import sys
import tempfile

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

PROGRAM, ROOT = sys.argv[1:3]
BUNDLED = os.path.join(ROOT, "models/qianwen-mini-chat")
PROMPT = "The capital of Japan is"


def run(*arguments):
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stdout


def hashes(path):
    """SHA-256 of the values of every quantised matrix, in f32, as the program decodes them."""
    tensors = json.loads(run("inspect", path, "--hash", "--json"))["tensors"]
    return {t["name"]: t["sha256"] for t in tensors if "module" in t}


def sha256(values):
    import hashlib
    return hashlib.sha256(values.float().contiguous().numpy().tobytes()).hexdigest()


def dequantised(weight, state):
    """As a vector: on a CPU, rows that are no multiple of the block go wrong in bitsandbytes 0.50.2."""
    flat = QuantState(absmax=state.absmax, shape=torch.Size([state.shape.numel()]), code=state.code,
                      blocksize=state.blocksize, quant_type=state.quant_type, dtype=state.dtype,
                      offset=state.offset, state2=state.state2)
    return dequantize_4bit(weight, flat).reshape(state.shape)


def matrices(model):
    return {name + ".weight": module.weight for name, module in model.named_modules()
            if isinstance(module, bnb.nn.Linear4bit)}


def say(what, ok):
    print(f"{'ok' if ok else 'WRONG'}  {what}")
    return ok


def read_by_them(work, name, *flags):
    """Every matrix of our directory, bit for bit, and an answer."""
    path = f"{work}/{name}"
    run("quantize", BUNDLED, "--to", "nf4", "--output", path, *flags)
    model = AutoModelForCausalLM.from_pretrained(path)
    ours = hashes(path)
    theirs = {n: sha256(dequantised(w.data, w.quant_state)) for n, w in matrices(model).items()}
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3, 4]])).logits
    return say(f"{name}: {len(ours)} matrices have the values that bitsandbytes reads",
               len(ours) > 0 and ours == theirs) & say(f"{name}: a forward pass of theirs is finite",
                                                        bool(torch.isfinite(logits).all()))


def same_bits(work, double):
    """--nf4-mode reference beside bitsandbytes' own codes, scales and nested codes."""
    path = f"{work}/reference{double}"
    flags = ["--double-quant"] if double else []
    run("quantize", BUNDLED, "--to", "nf4", "--nf4-mode", "reference", "--output", path, *flags)
    ours, source = load_file(f"{path}/model.safetensors"), load_file(f"{BUNDLED}/model.safetensors")
    different, n_codes, n_missed = [], 0, 0
    for name in [n for n in ours if n.endswith(".absmax") and "nested" not in n]:
        weight = name[:-len(".absmax")]
        codes, state = quantize_4bit(source[weight], blocksize=64, quant_type="nf4", compress_statistics=double)
        packed = state.as_dict(packed=True) | {"": codes}
        for key, theirs in packed.items():
            own = ours[f"{weight}.{key}" if key else weight]
            if own.shape != theirs.shape or own.dtype != theirs.dtype:
                different.append(f"{weight} {key}")
            elif key == "absmax" and double:
                # bitsandbytes' CPU code looks nested codes up in steps of its own, and now and then misses the nearest.
                n_codes, n_missed = n_codes + own.numel(), n_missed + int((own != theirs).sum())
                scales = quantize_4bit(source[weight], blocksize=64, quant_type="nf4")[1].absmax
                centred = (scales - state.offset) / state.state2.absmax.repeat_interleave(256)[:own.numel()]
                away = [(centred - state.state2.code[codes.int()]).abs() for codes in (own, theirs)]
                if (away[0] > away[1] + 1e-7).any():
                    different.append(f"{weight} {key}")
            elif not torch.equal(own, theirs):
                different.append(f"{weight} {key}")
    nested = f"; nested codes: {n_missed} of {n_codes} are nearer" if double else ""
    return say(f"reference, double {double}: tensors as bitsandbytes makes them; others: {different or 'none'}{nested}",
               not different and n_missed <= n_codes / 100)


def read_by_us(work, name, config, dtype):
    """A directory that Transformers saved."""
    path = f"{work}/theirs-{name}"
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, quantization_config=config, torch_dtype=dtype)
    model.save_pretrained(path)
    for file in os.listdir(BUNDLED):
        if "tokenizer" in file or file in ("vocab.json", "merges.txt"):
            with open(f"{BUNDLED}/{file}", "rb") as src, open(f"{path}/{file}", "wb") as to:
                to.write(src.read())
    ours = hashes(path)
    theirs = {n: sha256(dequantised(w.data, w.quant_state)) for n, w in matrices(model).items()}
    answer = run("generate", path, "-p", PROMPT, "--temperature", "0", "--max-new-tokens", "8")
    return say(f"{name} of Transformers: {len(ours)} matrices have the same values",
               len(ours) > 0 and ours == theirs) & say(f"{name} of Transformers: {answer.strip()!r}", len(answer) > 0)


def main():
    ok = True
    with tempfile.TemporaryDirectory() as work:
        ok &= read_by_them(work, "plain")
        ok &= read_by_them(work, "double", "--double-quant")
        ok &= read_by_them(work, "b256", "--block-size", "256")
        for double in (False, True):
            ok &= same_bits(work, double)
        for name, kind, double, storage, dtype in [
                ("nf4", "nf4", False, torch.uint8, torch.bfloat16), ("nf4-double", "nf4", True, torch.uint8, torch.float16),
                ("fp4", "fp4", False, torch.uint8, torch.float32), ("nf4-bf16-storage", "nf4", True, torch.bfloat16, torch.bfloat16)]:
            ok &= read_by_us(work, name, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind,
                                                            bnb_4bit_use_double_quant=double,
                                                            bnb_4bit_quant_storage=storage), dtype)
    sys.exit(0 if ok else 1)


main()
