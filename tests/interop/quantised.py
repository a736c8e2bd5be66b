"""What `quantize --to gptq-...` and `--to awq` writes, as AutoGPTQ and AutoAWQ unpack it (see quantised.sh)."""
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types

import torch
import transformers  # noqa: F401  AutoGPTQ imports it, and it looks for AutoGPTQ: first, before there is a shell of it
from safetensors.torch import load_file

PROGRAM, ROOT = sys.argv[1:3]
BUNDLED = os.path.join(ROOT, "models/qianwen-mini-chat")


def module_of(name):
    """A module of a package whose own __init__ wants data sets and GPUs."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        package = ".".join(parts[:i])
        if package not in sys.modules:
            shell = types.ModuleType(package)
            above = sys.modules[package.rpartition(".")[0]].__path__[0] if i > 1 else None
            shell.__path__ = ([os.path.join(above, parts[i - 1])] if above else
                              list(importlib.util.find_spec(package).submodule_search_locations))
            sys.modules[package] = shell
    return importlib.import_module(name)


QuantLinear = module_of("auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear
dequantize_gemm = module_of("awq.utils.packing_utils").dequantize_gemm


def run(*arguments):
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stdout


def tensors_of(path):
    tensors = {}
    for file in sorted(os.listdir(path)):
        if file.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(path, file)))
    return tensors


def by_autogptq(tensors, name, config):
    """[out, in]: what the layer makes of the identity. Scales in f32, so that no product is rounded."""
    qweight, scales = tensors[name + ".qweight"], tensors[name + ".scales"]
    n_in, n_out = qweight.shape[0] * 32 // config["bits"], qweight.shape[1]
    layer = QuantLinear(config["bits"], config["group_size"], n_in, n_out, bias=False)
    layer.qweight, layer.qzeros = qweight, tensors[name + ".qzeros"]
    layer.g_idx, layer.scales = tensors[name + ".g_idx"], scales.float()
    return layer(torch.eye(n_in)).T


def by_autoawq(tensors, name, config):
    return dequantize_gemm(tensors[name + ".qweight"], tensors[name + ".qzeros"], tensors[name + ".scales"].float(),
                           config["bits"], config["group_size"]).T


def check(work, to, unpack, *flags):
    path = os.path.join(work, "-".join([to, *flags]).replace("--", ""))
    run("quantize", BUNDLED, "--to", to, "--output", path, *flags)
    with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
        config = json.load(file)["quantization_config"]
    tensors = tensors_of(path)
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    run("convert", path, "--to", "safetensors", "--type", "f32", "--output", path + ".f32")
    ours = tensors_of(path + ".f32")
    # -0 is 0: their layers give sums.
    wrong = [name for name in names if not torch.equal(ours[name + ".weight"], unpack(tensors, name, config))]
    print(f"{'WRONG' if wrong or not names else 'ok'}  {' '.join([to, *flags])}: {len(names)} matrices have the values "
          f"that the library reads{'; others: ' + ', '.join(wrong) if wrong else ''}", flush=True)
    return bool(names) and not wrong


def main():
    with tempfile.TemporaryDirectory() as work:
        results = [check(work, f"gptq-int{bits}", by_autogptq) for bits in (2, 3, 4, 8)]
        results += [check(work, "gptq-int4", by_autogptq, *flags) for flags in (
            ["--desc-act"], ["--desc-act", "--static-groups"], ["--no-sym"], ["--group-size", "32"])]
        results += [check(work, "awq", by_autoawq), check(work, "awq", by_autoawq, "--group-size", "64")]
    sys.exit(0 if all(results) else 1)


main()
