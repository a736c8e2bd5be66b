"""Checkpoints and adapters that we write, as Transformers and peft read them (see reference_libraries.sh)."""
import os
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PROGRAM, ROOT = sys.argv[1:3]
BUNDLED = os.path.join(ROOT, "models/qianwen-mini-chat")
GOLDENS = os.path.join(os.environ.get("QIANWEN_SHARED", os.path.join(ROOT, "../shared")), "golden")
TEXTS = ["Hello, world 2024!", "千问 <|im_start|>user\n你好<|im_end|>", "😀 café", "  two  spaces\n\n"]
CHAT = [{"role": "user", "content": "What is the capital of Japan?"}]


def run(*arguments):
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)


def difference(a, b):
    """The largest, over all weights by name."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def check(what, value, limit):
    print(f"{'ok' if value <= limit else 'WRONG'}  {what}: {value:.3g} (at most {limit:.3g})")
    return value <= limit


def directory_of_gguf(work):
    """To GGUF and back: weights, tokenizer, template, end tokens."""
    run("convert", BUNDLED, "--to", "gguf", "--output", f"{work}/m.gguf")
    run("convert", f"{work}/m.gguf", "--to", "safetensors", "--output", f"{work}/hf")
    ours, theirs = load(f"{work}/hf"), load(BUNDLED)
    tokenizer, reference = (AutoTokenizer.from_pretrained(path) for path in (f"{work}/hf", BUNDLED))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"], text
    for add in (False, True):
        assert (tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=add) ==
                reference.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=add))
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id
    return check("convert: weights of a directory made of a GGUF file", difference(ours, theirs), 0)


def adapters(work):
    """merge and extract beside peft's own merge."""
    base, adapter = f"{GOLDENS}/gguf/hf/nano", f"{GOLDENS}/gguf/peft-lora"
    if not os.path.isdir(base):
        print("skipped  merge, extract: no goldens (QIANWEN_SHARED)")
        return True
    run("merge", base, "--adapter", adapter, "--type", "f32", "--output", f"{work}/merged")
    merged = load(f"{work}/merged")
    theirs = PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    ok = check("merge: weights beside peft's merge_and_unload", difference(merged, theirs), 2e-7)
    run("extract", f"{work}/merged", "--base", base, "--rank", "8", "--output", f"{work}/adapter")
    again = PeftModel.from_pretrained(load(base), f"{work}/adapter").merge_and_unload()
    return check("extract: what peft merges of it", difference(again, merged), 2e-7) and ok


def main():
    with tempfile.TemporaryDirectory() as work:
        results = [directory_of_gguf(work), adapters(work)]
    sys.exit(0 if all(results) else 1)


main()
