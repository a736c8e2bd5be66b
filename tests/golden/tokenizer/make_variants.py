"""Makes variants.json and sentencepiece.json with Hugging Face tokenizers 0.20.3.

variants.json: tiny/tokenizer.json changed by a JSON merge patch (RFC 7396), with ids for texts.
sentencepiece.json: a whole tokenizer with byte fallback, trained on the texts below, with ids and
decoded texts. Run in this folder: python make_variants.py
"""
import json
import random

from tokenizers import Tokenizer, models, trainers

TEXTS = ["", " ", "Hello world", " Hello  world ", "12345 678 9", "it's IT'S we'LL ſ'ſ they've I'd", "a\n\n b\r\n\r\n  c",
         "tabs\tand\t\tspaces   end  ", "x = [1, 2, 3]; // ok!!\n\n", "你好，世界 2024年", "e\u0301 E\u0323\u0307 \u1e0b\u0323", "\u3000wide\u2003space\u00a0",
         "<|im_start|>user\nhi<|im_end|>\n", "...'s 's'S '", "①②③ ½ ४५६", "🙂🙂 ok", "tail   ", "(bracket)[x]{y}", "a'b c'd e're 're",
         "foo foobar foo_ foo, (foo)", "  left  LEFT  right RIGHT  ", "cafe\u0301 caf\u00e9 CAFE\u0301", "<|im_end|>foo<|im_start|>LEFT RIGHT"]


def random_texts(seed, n, alphabet):
    rng = random.Random(seed)
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 24))) for _ in range(n)]


ALPHABET = list("abestlmdrvS'  \n\r\t.,!12") + ["foo", "LEFT", "RIGHT", "é", "e\u0301", "你好", "\u3000", "ſ", "<|im_end|>", "٣", "🙂", "\u0323"]


def added(i, content, **options):
    token = dict(id=i, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    token.update(options)
    return token


def variants():
    base = json.load(open("tiny/tokenizer.json"))
    qwen = base["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    cl100k = dict(type="Split", pattern=dict(Regex=qwen.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), behavior="Isolated", invert=False)
    specials = base["added_tokens"]
    patches = {
        "as published": {},
        "digits in groups of three": {"pre_tokenizer": dict(type="Sequence", pretokenizers=[cl100k, byte_level])},
        "gpt2 pattern": {"pre_tokenizer": dict(byte_level, use_regex=True)},
        "no pattern": {"pre_tokenizer": byte_level},
        "no normaliser": {"normalizer": None},
        "ignore merges": {"model": {"ignore_merges": True}},
        "added token options": {"added_tokens": specials + [
            added(1003, "foo", single_word=True), added(1004, "LEFT", lstrip=True),
            added(1005, "RIGHT", rstrip=True), added(1006, "cafe\u0301", normalized=True),
            added(1007, "e\u0301", special=True, normalized=True), added(1008, "foobar")]},
    }
    out = []
    for name, patch in patches.items():
        tokenizer = Tokenizer.from_str(json.dumps(merge_patch(json.loads(json.dumps(base)), patch)))
        rows = []
        for text in TEXTS + random_texts(name, 60, ALPHABET):
            row = dict(text=text, ids=tokenizer.encode(text, add_special_tokens=False).ids)
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = False
            if plain != row["ids"]:
                row["ids_plain"] = plain
            rows.append(row)
        out.append(dict(name=name, patch=patch, rows=rows))
    return out


def merge_patch(target, patch):
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            target[key] = merge_patch(target.get(key) if isinstance(target.get(key), dict) else {}, value)
        else:
            target[key] = value
    return target


def sentencepiece():
    words = "the tokens of a small model are made from text like this one and that 你好 世界 def main ( ) : return x + 1".split()
    rng = random.Random(7)
    corpus = ["▁" + "▁".join(rng.choices(words, k=rng.randint(2, 6))) for _ in range(400)]
    trained = Tokenizer(models.BPE())
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=[]))
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokens += [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    vocab = {t: i for i, t in enumerate(tokens)}
    steps = [dict(type="Prepend", prepend="▁"), dict(type="Replace", pattern=dict(String=" "), content="▁")]
    decoders = [dict(type="Replace", pattern=dict(String="▁"), content=" "), dict(type="ByteFallback"), dict(type="Fuse"),
                dict(type="Strip", content=" ", start=1, stop=0)]
    bos = dict(SpecialToken=dict(id="<s>", type_id=0))
    document = dict(
        version="1.0", truncation=None, padding=None,
        added_tokens=[added(i, tokens[i], special=True) for i in range(3)],
        normalizer=dict(type="Sequence", normalizers=steps), pre_tokenizer=None,
        post_processor=dict(type="TemplateProcessing", single=[bos, dict(Sequence=dict(id="A", type_id=0))], pair=[
            bos, dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=0))],
            special_tokens={"<s>": dict(id="<s>", ids=[1], tokens=["<s>"])}),
        decoder=dict(type="Sequence", decoders=decoders),
        model=dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=True, byte_fallback=True, vocab=vocab, merges=model["merges"]))
    tokenizer = Tokenizer.from_str(json.dumps(document))
    rows = []
    for text in TEXTS + ["the tokens of text", "</s>the<s> model", "def main():\n    return x + 1\n"] + random_texts("sp", 60, ALPHABET + words):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append(dict(text=text, ids=ids, ids_with_special=tokenizer.encode(text).ids, decoded=tokenizer.decode(ids, skip_special_tokens=False),
                         decoded_skip_special=tokenizer.decode(ids)))
    return dict(tokenizer=document, rows=rows)


json.dump(variants(), open("variants.json", "w"), ensure_ascii=False, indent=None, separators=(",", ":"))
json.dump(sentencepiece(), open("sentencepiece.json", "w"), ensure_ascii=False, indent=None, separators=(",", ":"))
