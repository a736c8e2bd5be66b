"""tiny_quality_peers.py gptq|awq BASE OUTPUT CALIBRATION.jsonl BITS GROUP_SIZE: quantises with AutoGPTQ or AutoAWQ itself, on the
CPU (see tiny_quality.py, which calls it). CALIBRATION: a line each of {"ids"}."""
import importlib.machinery
import json
import sys
import types

import torch
import transformers  # noqa: F401  before there is a shell of what it looks for


def shell_of(name, **members) -> None:
    """A package that is imported and not used: data sets, adapters."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__version__ = "0"
    vars(module).update(members)
    sys.modules[name] = module


def by_autogptq(base, output, rows, bits, group) -> None:
    shell_of("auto_gptq.utils.peft_utils", get_gptq_peft_model=None)
    # It refuses to run without a GPU, and has no need of one.
    torch.cuda.is_available = lambda: True
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *unused, **also_unused: None
    import auto_gptq.modeling._base as modeling
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
    modeling.CUDA_0 = torch.device("cpu")
    model = AutoGPTQForCausalLM.from_pretrained(base, BaseQuantizeConfig(bits=bits, group_size=group, desc_act=False),
                                                torch_dtype=torch.float16)
    model.quantize([{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in rows],
                   batch_size=1, use_triton=False)
    model.save_quantized(output, use_safetensors=True)


def by_autoawq(base, output, rows, bits, group) -> None:
    plain = torch.nn.Module.state_dict

    def copies(self, *args, **kwargs):
        """Its search keeps the weights with .cpu(), which on a CPU is no copy, and then scales them."""
        found = plain(self, *args, **kwargs)
        return found if args or kwargs else {name: tensor.clone() for name, tensor in found.items()}
    from awq import AutoAWQForCausalLM
    model = AutoAWQForCausalLM.from_pretrained(base, torch_dtype=torch.float32, device_map="cpu", safetensors=True)
    torch.nn.Module.state_dict = copies
    model.quantize(None, quant_config={"zero_point": True, "q_group_size": group, "w_bit": bits, "version": "GEMM"}, calib_data=rows,
                   max_calib_samples=len(rows), max_calib_seq_len=len(rows[0]))
    torch.nn.Module.state_dict = plain
    model.save_quantized(output)


def main() -> None:
    kind, base, output, calibration, bits, group = sys.argv[1:]
    shell_of("datasets", load_dataset=None, DatasetDict=None, IterableDatasetDict=None, Dataset=None)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with open(calibration, encoding="utf-8") as lines:
        rows = [json.loads(line)["ids"] for line in lines]
    {"gptq": by_autogptq, "awq": by_autoawq}[kind](base, output, rows, int(bits), int(group))


if __name__ == "__main__":
    main()
