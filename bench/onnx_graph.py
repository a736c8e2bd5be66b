"""The graph of a dense Qwen1.5 model in ONNX, for compare_engines.py."""


class OnnxGraph:
    """The decoder as ONNX Runtime's own model builder lays it out for the CPU: fused Q/K/V,
    GroupQueryAttention with the rotation inside, quantised products with int8 activations."""

    def __init__(self, checkpoint, bits, block=32):
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.bits, self.block = bits, block
        self.nodes, self.weights = [], []

    def node(self, op, inputs, outputs, domain="com.microsoft", **attributes):
        from onnx import helper
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def constant(self, name, values):
        from onnx import numpy_helper
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def product(self, name, weight, source):
        """source x weight^T; weights of `bits` in symmetric blocks along the columns."""
        import numpy as np
        rows, columns = weight.shape
        blocks = weight.reshape(rows, columns // self.block, self.block)
        top = 1 << (self.bits - 1)
        extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)
        scale = extreme / -top
        safe = np.where(scale == 0, 1, scale)
        codes = np.clip(np.rint(blocks / safe) + top, 0, 2 * top - 1).astype(np.uint8)
        if self.bits == 4:
            codes = codes[..., 0::2] | codes[..., 1::2] << 4
        return self.node(
            "MatMulNBits",
            [source, self.constant(name + ".codes", codes),
             self.constant(name + ".scales", scale.astype(np.float32).reshape(-1))],
            [name], K=columns, N=rows, bits=self.bits, block_size=self.block, accuracy_level=4)

    def rotation(self):
        import numpy as np
        size = self.config["hidden_size"] // self.config["num_attention_heads"]
        inverse = self.config["rope_theta"] ** (-np.arange(0, size, 2) / size)
        angles = np.outer(np.arange(4096), inverse)
        self.constant("cos", np.cos(angles).astype(np.float32))
        self.constant("sin", np.sin(angles).astype(np.float32))

    def layer(self, i, hidden, residual):
        import numpy as np
        ckpt, p, o = self.checkpoint, f"model.layers.{i}.", f"l{i}."
        eps = self.config["rms_norm_eps"]
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]

        def norm(name, source, skip):
            gamma = self.constant(o + name + ".gamma", ckpt[p + name + ".weight"])
            if skip is None:
                return self.node("SimplifiedLayerNormalization", [source, gamma], [o + name],
                                 domain="", epsilon=eps, axis=-1, stash_type=1), source
            self.node("SkipSimplifiedLayerNormalization", [source, skip, gamma],
                      [o + name, "", "", o + name + ".sum"], epsilon=eps)
            return o + name, o + name + ".sum"

        x, residual = norm("input_layernorm", hidden, residual)
        joined = lambda kind: np.concatenate(
            [ckpt[p + f"self_attn.{n}_proj.{kind}"] for n in "qkv"])
        qkv = self.product(o + "qkv", joined("weight"), x)
        qkv = self.node("Add", [qkv, self.constant(o + "qkv.bias", joined("bias"))],
                        [o + "qkv.sum"], domain="")
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        present = [f"present.{i}.key", f"present.{i}.value"]
        x = self.node("GroupQueryAttention",
                      [qkv, "", "", *past, "last", "total", "cos", "sin"],
                      [o + "attention", *present], num_heads=heads, kv_num_heads=kv_heads,
                      do_rotary=1, rotary_interleaved=0)
        x = self.product(o + "o", ckpt[p + "self_attn.o_proj.weight"], x)
        x, residual = norm("post_attention_layernorm", x, residual)
        gate = self.product(o + "gate", ckpt[p + "mlp.gate_proj.weight"], x)
        up = self.product(o + "up", ckpt[p + "mlp.up_proj.weight"], x)
        sigmoid = self.node("Sigmoid", [gate], [o + "sigmoid"], domain="")
        act = self.node("Mul", [gate, sigmoid], [o + "silu"], domain="")
        act = self.node("Mul", [act, up], [o + "gated"], domain="")
        return self.product(o + "down", ckpt[p + "mlp.down_proj.weight"], act), residual

    def build(self, directory):
        import numpy as np
        import onnx
        from onnx import TensorProto as T, helper
        config, ckpt, plain = self.config, self.checkpoint, dict(domain="")
        self.rotation()
        one, zero = self.constant("one", np.int64([1])), self.constant("zero", np.int64([0]))
        mask_sum = self.node("ReduceSum", ["attention_mask", one], ["mask_sum"], keepdims=0,
                             **plain)
        last = self.node("Sub", [mask_sum, one], ["last64"], **plain)
        self.node("Cast", [last], ["last"], to=T.INT32, **plain)
        shape = self.node("Shape", ["attention_mask"], ["mask_shape"], **plain)
        axis = self.constant("axis", np.int64(1))
        total = self.node("Gather", [shape, axis], ["total64"], **plain)
        self.node("Cast", [total], ["total"], to=T.INT32, **plain)
        embeddings = self.constant("embeddings", ckpt["model.embed_tokens.weight"])
        hidden = self.node("Gather", [embeddings, "input_ids"], ["embedded"], **plain)
        residual = None
        for i in range(config["num_hidden_layers"]):
            hidden, residual = self.layer(i, hidden, residual)
        gamma = self.constant("norm.gamma", ckpt["model.norm.weight"])
        # Only the last position needs logits.
        ends = [self.constant("minus_one", np.int64([-1])), self.constant("end", np.int64([2**62])),
                one]
        cut = [self.node("Slice", [x, *ends], [f"{x}.last"], **plain) for x in (hidden, residual)]
        x = self.node("SkipSimplifiedLayerNormalization", [*cut, gamma], ["normed"],
                      epsilon=config["rms_norm_eps"])
        self.product("logits", ckpt.head(), x)

        size = config["hidden_size"] // config["num_attention_heads"]
        kv = lambda name, length: helper.make_tensor_value_info(
            name, T.FLOAT, ["batch", config["num_key_value_heads"], length, size])
        sides = [(i, side) for i in range(config["num_hidden_layers"]) for side in ("key", "value")]
        inputs = [helper.make_tensor_value_info("input_ids", T.INT64, ["batch", "length"]),
                  helper.make_tensor_value_info("attention_mask", T.INT64, ["batch", "all"])]
        inputs += [kv(f"past_key_values.{i}.{side}", "past") for i, side in sides]
        logits = ["batch", 1, config["vocab_size"]]
        outputs = [helper.make_tensor_value_info("logits", T.FLOAT, logits)]
        outputs += [kv(f"present.{i}.{side}", "all") for i, side in sides]
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        directory.mkdir(exist_ok=True)
        onnx.save_model(model, directory / "model.onnx", save_as_external_data=True,
                        location="model.onnx.data")
