"""What `quantize --to gptq-...` and `--to awq` writes, as AutoGPTQ and AutoAWQ unpack it, and what Transformers predicts with
these matrices in its own network, beside what the program predicts from the directory (see quantised.sh)."""
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import types

import torch
import transformers  # noqa: F401  AutoGPTQ imports it, and it looks for AutoGPTQ: first, before there is a shell of it
from safetensors.torch import load_file

PROGRAM, ROOT = sys.argv[1:3]
BUNDLED = os.path.join(ROOT, "models/qianwen-mini-chat")
IDS = [(7 * i * i + 13 * i) % 5000 for i in range(200)]


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


def bits_of(name, config):
    """Of a matrix: "dynamic" is GPTQModel's list of patterns with other options."""
    for pattern, options in config.get("dynamic", {}).items():
        if re.match(pattern.removeprefix("+:"), name):
            return {**config, **options}
    return config


def loss_by_transformers(path, tensors, unpacked):
    """Mean negative log-likelihood of IDS: the network is made of config.json, all tensors must find their place."""
    with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
        settings = json.load(file)
    settings.pop("quantization_config")
    config = transformers.AutoConfig.for_model(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    packed = (".qweight", ".qzeros", ".scales", ".g_idx")
    state = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(packed)}
    state.update({name + ".weight": weight for name, weight in unpacked.items()})
    for name in list(state):  # GPTQ files have a bias for every matrix: of zeros where the network has none
        if name.endswith(".bias") and name not in model.state_dict() and not state[name].any():
            del state[name]
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if settings.get("tie_word_embeddings") else set()
    if set(missing) - tied or unexpected:
        sys.exit(f"{path}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        return model(ids, labels=ids).loss.item()


def check(work, to, unpack, *flags):
    path = os.path.join(work, "-".join([to, *flags]).replace("--", "").replace("/", ""))
    run("quantize", BUNDLED, "--to", to, "--output", path, *flags)
    with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
        config = json.load(file)["quantization_config"]
    tensors = tensors_of(path)
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    run("convert", path, "--to", "safetensors", "--type", "f32", "--output", path + ".f32")
    ours = tensors_of(path + ".f32")
    unpacked = {name: unpack(tensors, name, bits_of(name, config)) for name in names}
    # -0 is 0: their layers give sums.
    wrong = [name for name in names if not torch.equal(ours[name + ".weight"], unpacked[name])]
    print(f"{'WRONG' if wrong or not names else 'ok'}  {' '.join([to, *flags])}: {len(names)} matrices have the values "
          f"that the library reads{'; others: ' + ', '.join(wrong) if wrong else ''}", flush=True)
    ids = os.path.join(work, "ids.json")
    with open(ids, "w", encoding="utf-8") as file:
        json.dump({"ids": IDS}, file)
    theirs = loss_by_transformers(path, tensors, unpacked)
    own = json.loads(run("perplexity", path, "--file", ids, "--activations", "f32", "--json"))["nll"]
    differs = abs(own - theirs) > 1e-4 * theirs
    print(f"{'WRONG' if differs else 'ok'}  {' '.join([to, *flags])}: log-likelihoods {theirs:.6f} by Transformers, {own:.6f} by "
          "the program", flush=True)
    return bool(names) and not wrong and not differs


def main():
    with tempfile.TemporaryDirectory() as work:
        results = [check(work, f"gptq-int{bits}", by_autogptq) for bits in (2, 3, 4, 8)]
        results += [check(work, "gptq-int4", by_autogptq, *flags) for flags in (
            ["--desc-act"], ["--desc-act", "--static-groups"], ["--no-sym"], ["--group-size", "32"])]
        # Bits chosen matrix by matrix.
        results.append(check(work, "gptq", by_autogptq, "--budget", "4", "--sensitivity-tokens", "256"))
        results += [check(work, "awq", by_autoawq), check(work, "awq", by_autoawq, "--group-size", "64")]
    sys.exit(0 if all(results) else 1)


main()
