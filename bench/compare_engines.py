#!/usr/bin/env python3
"""Compares qianwen with CPU engines that read no common file format, in one alternating run.

    bench/compare_engines.py [options] QIANWEN CHECKPOINT [FILE ...]

QIANWEN is our program, CHECKPOINT a Hugging Face directory of a dense Qwen1.5 model in BF16 (one
model.safetensors; no tokenizer needed, token ids are fed), FILE our quantised files of the same
shape. Each engine gets the checkpoint converted to its own weights, in a virtual environment of its
own that is filled from the package registry with pinned versions; an engine that cannot be
installed or converted is skipped with a sentence that says why. Environments and models stay in
the directory --work (default: a temporary one, removed at the end), so that a second run starts at
once.

A round is one process of each engine and of each of our files; odd rounds run in reverse, so that a
machine that slows down harms all. The Markdown table on stdout holds medians over the rounds of:
prefill of 512 tokens, decoding of 64 (the time of 65 tokens less that of one), and 16 sequences
that decode 64 tokens together (the total).

Packages that need no deep-learning framework do all the conversion: OpenVINO GenAI builds its graph
from a GGUF file written here (nncf compresses it), CTranslate2 takes its specification filled from
numpy, and ONNX Runtime gets the graph of operators that its own model builder emits.
"""
import argparse
import hashlib
import json
import pathlib
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

PREFILL, DECODE, STREAMS, DEPTH = 512, 64, 16, 16
TESTS = (f"prefill {PREFILL}", f"decode {DECODE}", f"{STREAMS} streams")


class Checkpoint:
    """Config and BF16 tensors of a Hugging Face directory, widened to float32 one at a time."""

    def __init__(self, directory):
        import numpy as np
        self.config = json.loads((directory / "config.json").read_text())
        path = directory / "model.safetensors"
        with open(path, "rb") as file:
            length, = struct.unpack("<Q", file.read(8))
            self.tensors = json.loads(file.read(length))
        self.tensors.pop("__metadata__", None)
        self.bytes = np.memmap(path, np.uint8, "r", 8 + length)
        # Checkpoints of random weights may repeat a matrix; an engine that stores equal ones once
        # would read too few bytes, so copies get their rows rotated.
        seen = {}
        self.rotations = {name: seen.setdefault(digest, []).append(name) or len(seen[digest]) - 1
                          for name, digest in ((n, self.digest(n)) for n in self.tensors)}

    def digest(self, name):
        begin, end = self.tensors[name]["data_offsets"]
        return hashlib.blake2b(self.bytes[begin:end], digest_size=16).digest()

    def __getitem__(self, name):
        import numpy as np
        tensor = self.tensors[name]
        if tensor["dtype"] != "BF16":
            sys.exit(f"{name}: expected BF16, got {tensor['dtype']}")
        begin, end = tensor["data_offsets"]
        wide = self.bytes[begin:end].view(np.uint16).astype(np.uint32) << 16
        return np.roll(wide.view(np.float32).reshape(tensor["shape"]), self.rotations[name], 0)

    def head(self):
        """The output projection, which may be the embedding."""
        name = "lm_head.weight"
        return self[name if name in self.tensors else "model.embed_tokens.weight"]


# ---- OpenVINO GenAI ------------------------------------------------------------------------------

GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    layer = re.match(r"model\.layers\.(\d+)\.(.*)", stem)
    if layer:
        return f"blk.{layer[1]}.{GGUF_NAMES[layer[2]]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def write_gguf(checkpoint, path):
    """Writes the checkpoint as GGUF: matrices in F16, vectors in F32, a dummy tokenizer."""
    import numpy as np
    config = checkpoint.config
    string = lambda text: struct.pack("<Q", len(text.encode())) + text.encode()
    scalar = lambda kind, code, value: struct.pack("<I" + code, kind, value)
    array = lambda kind, items: struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
    tokens = [f"<{i}>" for i in range(config["vocab_size"])]
    metadata = {
        "general.architecture": struct.pack("<I", 8) + string("qwen2"),
        "general.file_type": scalar(4, "I", 1),
        "qwen2.block_count": scalar(4, "I", config["num_hidden_layers"]),
        "qwen2.context_length": scalar(4, "I", config["max_position_embeddings"]),
        "qwen2.embedding_length": scalar(4, "I", config["hidden_size"]),
        "qwen2.feed_forward_length": scalar(4, "I", config["intermediate_size"]),
        "qwen2.attention.head_count": scalar(4, "I", config["num_attention_heads"]),
        "qwen2.attention.head_count_kv": scalar(4, "I", config["num_key_value_heads"]),
        "qwen2.attention.layer_norm_rms_epsilon": scalar(6, "f", config["rms_norm_eps"]),
        "qwen2.rope.freq_base": scalar(6, "f", config["rope_theta"]),
        "tokenizer.ggml.model": struct.pack("<I", 8) + string("gpt2"),
        "tokenizer.ggml.pre": struct.pack("<I", 8) + string("qwen2"),
        "tokenizer.ggml.tokens": array(8, [string(token) for token in tokens]),
        "tokenizer.ggml.token_type": array(5, [struct.pack("<i", 3 if i == 0 else 1)
                                               for i in range(len(tokens))]),
        "tokenizer.ggml.merges": array(8, [string("<1> <2>")]),
        "tokenizer.ggml.bos_token_id": scalar(4, "I", 0),
        "tokenizer.ggml.eos_token_id": scalar(4, "I", 0),
        "tokenizer.ggml.padding_token_id": scalar(4, "I", 0),
        "tokenizer.chat_template": struct.pack("<I", 8) + string("{{ messages[0].content }}"),
    }
    padded = lambda size: -(-size // 32) * 32
    infos, offset = [], 0
    for name, tensor in checkpoint.tensors.items():
        shape = tensor["shape"][::-1]
        half = len(shape) == 2
        infos.append(string(gguf_name(name)) + struct.pack("<I", len(shape)) +
                     struct.pack(f"<{len(shape)}Q", *shape) +
                     struct.pack("<IQ", int(half), offset))
        offset += padded(int(np.prod(shape)) * (2 if half else 4))
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(metadata)))
        file.write(b"".join(string(key) + value for key, value in metadata.items()))
        file.write(b"".join(infos))
        file.write(bytes(-file.tell() % 32))
        for name in checkpoint.tensors:
            values = checkpoint[name]
            file.write(values.astype(np.float16 if values.ndim == 2 else np.float32).tobytes())
            file.write(bytes(-file.tell() % 32))


class OpenVino:
    title = "OpenVINO GenAI"
    packages = ("openvino-genai==2026.4.1.0", "openvino==2026.4.1",
                "openvino-tokenizers==2026.4.1.0", "nncf==3.4.0", "numpy==2.4.6")
    variants = ("int8", "int4")

    @staticmethod
    def convert(checkpoint, work):
        import nncf
        import openvino
        import openvino_genai
        base = work / "f16"
        base.mkdir(exist_ok=True)
        write_gguf(checkpoint, base / "model.gguf")
        # The pipeline writes openvino_model.xml and the tokenizer beside the GGUF file.
        openvino_genai.LLMPipeline(str(base / "model.gguf"), "CPU", enable_save_ov_model=True)
        modes = {"int8": dict(mode=nncf.CompressWeightsMode.INT8_SYM),
                 "int4": dict(mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, ratio=1.0)}
        for variant, options in modes.items():
            model = openvino.Core().read_model(base / "openvino_model.xml")
            model = nncf.compress_weights(model, **options)
            (work / variant).mkdir(exist_ok=True)
            openvino.save_model(model, work / variant / "openvino_model.xml")
            for file in base.iterdir():
                if "tokenizer" in file.name or file.suffix == ".json":
                    shutil.copy(file, work / variant)
        shutil.rmtree(base)

    @staticmethod
    def load(model, threads):
        import numpy as np
        import openvino
        import openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_batched_tokens = 4096
        pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(model), scheduler, "CPU",
            {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})

        def generate(prompts, count):
            config = openvino_genai.GenerationConfig(
                max_new_tokens=count, min_new_tokens=count, ignore_eos=True, do_sample=False,
                apply_chat_template=False)
            inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
            results = pipeline.generate(inputs, [config] * len(inputs))
            return [result.m_generation_ids[0] for result in results]

        return generate


# ---- CTranslate2 ---------------------------------------------------------------------------------

class CTranslate2:
    title = "CTranslate2"
    packages = ("ctranslate2==4.8.5", "numpy==2.4.6")
    variants = ("int8",)

    @staticmethod
    def convert(checkpoint, work):
        import numpy as np
        from ctranslate2.specs import common_spec, transformer_spec
        config = checkpoint.config
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            config["num_hidden_layers"], heads, activation=common_spec.Activation.SWISH,
            pre_norm=True, ffn_glu=True, rms_norm=True, rotary_dim=0, rotary_interleave=False,
            rotary_base=config["rope_theta"], num_heads_kv=None if kv_heads == heads else kv_heads)

        def linear(target, *names):
            target.weight = np.concatenate([checkpoint[f"{name}.weight"] for name in names])
            if f"{names[0]}.bias" in checkpoint.tensors:
                target.bias = np.concatenate([checkpoint[f"{name}.bias"] for name in names])

        decoder = spec.decoder
        decoder.scale_embeddings = False
        decoder.embeddings.weight = checkpoint["model.embed_tokens.weight"]
        decoder.layer_norm.gamma = checkpoint["model.norm.weight"]
        decoder.projection.weight = checkpoint.head()
        for i, layer in enumerate(decoder.layer):
            p = f"model.layers.{i}."
            layer.self_attention.layer_norm.gamma = checkpoint[p + "input_layernorm.weight"]
            layer.ffn.layer_norm.gamma = checkpoint[p + "post_attention_layernorm.weight"]
            linear(layer.self_attention.linear[0], *(p + f"self_attn.{x}_proj" for x in "qkv"))
            linear(layer.self_attention.linear[1], p + "self_attn.o_proj")
            linear(layer.ffn.linear_0, p + "mlp.gate_proj")
            linear(layer.ffn.linear_0_noact, p + "mlp.up_proj")
            linear(layer.ffn.linear_1, p + "mlp.down_proj")
        spec.register_vocabulary([f"<{i}>" for i in range(config["vocab_size"])])
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "<0>"
        spec.config.layer_norm_epsilon = config["rms_norm_eps"]
        spec.validate()
        spec.optimize(quantization="int8")
        (work / "int8").mkdir(exist_ok=True)
        spec.save(str(work / "int8"))

    @staticmethod
    def load(model, threads):
        import ctranslate2
        generator = ctranslate2.Generator(str(model), device="cpu", compute_type="int8",
                                          inter_threads=1, intra_threads=threads)

        def generate(prompts, count):
            results = generator.generate_batch(
                [[f"<{token}>" for token in prompt] for prompt in prompts], max_length=count,
                min_length=count, sampling_topk=1, include_prompt_in_result=False)
            return [result.sequences_ids[0] for result in results]

        return generate


# ---- ONNX Runtime GenAI --------------------------------------------------------------------------

class OnnxRuntime:
    title = "ONNX Runtime GenAI"
    packages = ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "numpy==2.4.6")
    variants = ("int8", "int4")

    @staticmethod
    def convert(checkpoint, work):
        from onnx_graph import OnnxGraph
        for variant in OnnxRuntime.variants:
            OnnxGraph(checkpoint, int(variant[3:])).build(work / variant)
            config = checkpoint.config
            heads = config["num_attention_heads"]
            description = {
                "model": {
                    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "type": "qwen2",
                    "context_length": 4096, "vocab_size": config["vocab_size"],
                    "decoder": {
                        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                        "filename": "model.onnx", "head_size": config["hidden_size"] // heads,
                        "hidden_size": config["hidden_size"], "num_attention_heads": heads,
                        "num_hidden_layers": config["num_hidden_layers"],
                        "num_key_value_heads": config["num_key_value_heads"],
                        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                                   "past_key_names": "past_key_values.%d.key",
                                   "past_value_names": "past_key_values.%d.value"},
                        "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                                    "present_value_names": "present.%d.value"},
                    },
                },
                "search": {"do_sample": False, "max_length": 4096,
                           "past_present_share_buffer": True},
            }
            (work / variant / "genai_config.json").write_text(json.dumps(description))

    @staticmethod
    def load(model, threads):
        import numpy as np
        import onnxruntime_genai
        path = model / "genai_config.json"
        description = json.loads(path.read_text())
        description["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(description))
        loaded = onnxruntime_genai.Model(str(model))

        def generate(prompts, count):
            length = len(prompts[0]) + count
            params = onnxruntime_genai.GeneratorParams(loaded)
            params.set_search_options(batch_size=len(prompts), max_length=length,
                                      min_length=length, do_sample=False)
            generator = onnxruntime_genai.Generator(loaded, params)
            generator.append_tokens(np.array(prompts, np.int32))
            for _ in range(count):
                generator.generate_next_token()
            return [generator.get_sequence(i)[-count:] for i in range(len(prompts))]

        return generate


# ---- Measuring -----------------------------------------------------------------------------------

ENGINES = {"openvino": OpenVino, "ctranslate2": CTranslate2, "onnxruntime": OnnxRuntime}


def measure(generate):
    """Tokens per second of the three tests; each shape runs once before it is timed."""
    import numpy as np
    random = np.random.default_rng(1)

    def seconds(sequences, length, count):
        prompts = random.integers(1000, 100000, (sequences, length)).tolist()
        begin = time.perf_counter()
        tokens = generate(prompts, count)
        elapsed = time.perf_counter() - begin
        if [len(sequence) for sequence in tokens] != [count] * sequences:
            sys.exit(f"expected {sequences} x {count} tokens, got {[len(t) for t in tokens]}")
        return elapsed

    seconds(1, PREFILL, 1)
    rates = [PREFILL / statistics.median(seconds(1, PREFILL, 1) for _ in range(3))]
    for sequences in (1, STREAMS):
        seconds(sequences, DEPTH, 4)
        first = statistics.median(seconds(sequences, DEPTH, 1) for _ in range(3))
        rates.append(sequences * DECODE / (seconds(sequences, DEPTH, DECODE + 1) - first))
    return rates


def measure_ours(program, file, threads, under):
    """The same three tests by `qianwen bench`."""
    rates = []
    for flags in (["-p", str(PREFILL), "-n", str(DECODE), "-d", "0"],
                  ["-p", "0", "-n", str(DECODE), "-b", str(STREAMS)]):
        done = subprocess.run([*under, program, "bench", file, "--threads", str(threads), "-r", "1",
                               "--json", *flags], check=True, stdout=subprocess.PIPE, text=True)
        for line in done.stdout.splitlines():
            rates.append(json.loads(line)["tokens_per_second"]["median"])
    return rates


def identity(checkpoint, engine):
    """What a conversion was made of: the checkpoint's bytes and the packages."""
    digest = hashlib.blake2b("\n".join(engine.packages).encode(), digest_size=16)
    for name in ("config.json", "model.safetensors"):
        with open(checkpoint / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def prepare(name, checkpoint, work):
    """Installs and converts unless that is done; returns whether the engine can run."""
    engine, home = ENGINES[name], work / name
    done = home / "converted"
    made_of = identity(checkpoint, engine)
    if done.exists():
        if done.read_text() == made_of:
            return True
        print(f"{engine.title}: {home} is of another checkpoint or version, made again",
              file=sys.stderr)
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    python = home / "venv/bin/python"
    steps = [
        ("make its environment", [sys.executable, "-m", "venv", home / "venv"]),
        ("install it", [python, "-m", "pip", "install", "-q", *engine.packages]),
        ("convert the model", [python, __file__, "--step", f"convert {name}", home, checkpoint]),
    ]
    for what, command in steps:
        print(f"{engine.title}: {what}", file=sys.stderr)
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"Skipped {engine.title}: could not {what}: {reason}", file=sys.stderr)
            return False
    done.write_text(made_of)
    return True


def inner_step(step, work, checkpoint_or_model, threads):
    """Runs inside an engine's environment: "convert ENGINE" or "measure ENGINE"."""
    verb, name = step.split()
    path = pathlib.Path(checkpoint_or_model)
    if verb == "convert":
        ENGINES[name].convert(Checkpoint(path), pathlib.Path(work))
    else:
        print(json.dumps(measure(ENGINES[name].load(path, threads))))


def table(samples, rounds, threads):
    cpu = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    print(f"{threads} threads, {cpu[1] if cpu else 'CPU unknown'}, {time.strftime('%F')}, medians "
          f"of {rounds} alternating rounds, tokens a second; in brackets: ours / theirs, of our "
          "best.\n")
    print("| engine, weights | " + " | ".join(TESTS) + " |\n|---|" + "---|" * len(TESTS))
    medians = {who: [statistics.median(column) for column in zip(*rows)]
               for who, rows in samples.items() if rows}
    ours = [rates for (title, _), rates in medians.items() if title == "qianwen"]
    best = [max(column) for column in zip(*ours)]
    for (title, weights), rates in medians.items():
        cells = [f"{rate:,.0f}" if title == "qianwen" else f"{rate:,.0f} ({top / rate:.2f})"
                 for rate, top in zip(rates, best)]
        print(f"| {title}, {weights} | " + " | ".join(cells) + " |")
    print("\n" + "; ".join(" ".join(engine.packages) for engine in ENGINES.values()))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", metavar="QIANWEN")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("files", metavar="FILE", nargs="*")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s")
    parser.add_argument("--work", help="directory of environments and converted models, kept")
    parser.add_argument("--prepare-only", action="store_true",
                        help="install and convert, no timing")
    parser.add_argument("--under", default="", help="command put before each timed process")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return inner_step(args.step, args.program, args.checkpoint, args.threads)
    engines = [name for name in args.engines.split(",") if name]
    if unknown := [name for name in engines if name not in ENGINES]:
        parser.error(f"--engines: expected some of {', '.join(ENGINES)}, got {', '.join(unknown)}")
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads: expected at least 1")
    checkpoint = pathlib.Path(args.checkpoint)
    for path in (pathlib.Path(args.program), checkpoint / "config.json",
                 checkpoint / "model.safetensors", *map(pathlib.Path, args.files)):
        if not path.exists():
            parser.error(f"{path}: expected it to exist")

    temporary = None if args.work else tempfile.TemporaryDirectory()
    work = pathlib.Path(args.work or temporary.name)
    names = [name for name in engines if prepare(name, checkpoint, work)]
    if args.prepare_only:
        return None
    under = args.under.split()
    jobs = {}
    for file in args.files:
        jobs["qianwen", pathlib.Path(file).name] = lambda file=file: measure_ours(
            args.program, file, args.threads, under)
    for name in names:
        for variant in ENGINES[name].variants:
            command = [*under, str(work / name / "venv/bin/python"), __file__, "--threads",
                       str(args.threads), "--step", f"measure {name}", "-",
                       str(work / name / variant)]
            jobs[ENGINES[name].title, variant] = lambda command=command: json.loads(subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    samples = {who: [] for who in jobs}
    for turn in range(args.rounds):
        for who in list(jobs)[::1 if turn % 2 == 0 else -1]:
            try:
                samples[who].append(jobs[who]())
            except (subprocess.CalledProcessError, json.JSONDecodeError, IndexError) as error:
                print(f"{' '.join(who)}: no figures in this round: {error}", file=sys.stderr)
                continue
            print(f"round {turn + 1} {' '.join(who)}: {samples[who][-1]}", file=sys.stderr)
    table(samples, args.rounds, args.threads)
    return None


if __name__ == "__main__":
    sys.exit(main())
