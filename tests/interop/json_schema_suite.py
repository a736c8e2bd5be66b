#!/usr/bin/env python3
"""JSON schemas of constrained decoding against the public JSON-Schema-Test-Suite.

    tests/interop/json_schema_suite.py --check build/release/tools/grammar_check SUITE/tests/draft2020-12

The suite comes with the source package of the Python library jsonschema (pip download --no-deps
--no-binary :all: jsonschema; folder json/tests), which validates what is drawn at random, too.

For every schema that is not refused: each valid instance must be accepted in one spelling at least
(any order of keys, since the grammar has the schema's), no invalid one in any, and texts drawn from
the grammar must be instances. Refused schemas are counted, with the keyword that was the reason.
"""
import argparse
import collections
import itertools
import json
import pathlib
import re
import subprocess
import sys

import jsonschema

MAX_SPELLINGS = 200


def spellings(value):
    """JSON texts of a value: keys in every order, as far as MAX_SPELLINGS goes."""
    if isinstance(value, dict):
        parts = {key: list(itertools.islice(spellings(item), 6)) for key, item in value.items()}
        for order in itertools.permutations(value):
            for items in itertools.product(*(parts[key] for key in order)):
                members = (json.dumps(k, ensure_ascii=False) + ":" + i for k, i in zip(order, items))
                yield "{" + ",".join(members) + "}"
    elif isinstance(value, list):
        for items in itertools.product(*(list(itertools.islice(spellings(i), 6)) for i in value)):
            yield "[" + ",".join(items) + "]"
    else:
        yield json.dumps(value, ensure_ascii=False)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and abs(value) < 1e17 and value == int(value):
            yield str(int(value))
            yield f"{int(value)}.0"


class Checker:
    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", required=True, help="the program grammar_check")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("suite", type=pathlib.Path, help="folder of a draft's tests")
    args = parser.parse_args()
    checker = Checker(args.check)
    count = collections.Counter()
    refused = collections.Counter()
    failures = []
    files = sorted(args.suite.glob("*.json")) + sorted(args.suite.glob("optional/format/*.json"))
    for file in files:
        if file.name == "vocabulary.json":  # metaschemas of one's own, which change what keywords mean
            continue
        is_format = file.parent.name == "format"
        for case in json.loads(file.read_text()):
            schema = case["schema"]
            tests = case["tests"]
            question = {"schema": schema, "samples": args.samples, "texts": []}
            begins = []
            for test in tests:
                begins.append(len(question["texts"]))
                question["texts"] += list(itertools.islice(spellings(test["data"]), MAX_SPELLINGS))
            begins.append(len(question["texts"]))
            answer = checker.ask(question)
            where = f"{file.name}: {case['description']}"
            if "error" in answer:
                never = "no text can fit" in answer["error"]
                if answer["kind"] == "internal" or (never and any(t["valid"] for t in tests)):
                    failures.append(f"{where}: {answer['error']}")
                elif never:
                    count["schemas that nothing fits"] += 1
                else:
                    count["schemas refused"] += 1
                    refused[re.sub(r"^\[[^]]*\] ", "", answer["error"]).split(":")[0][:40]] += 1
                continue
            count["schemas"] += 1
            for test, begin, end in zip(tests, begins, begins[1:]):
                accepted = any(answer["accepts"][begin:end])
                # The suite's formats are annotations outside of optional/format, and ours assert.
                is_annotation = file.name == "format.json"
                if accepted == test["valid"]:
                    count["instances that agree"] += 1
                elif is_annotation and test["valid"]:
                    count["instances that a format refuses, as documented"] += 1
                elif is_format and test["valid"]:
                    count["valid instances that a narrower format leaves out"] += 1
                    print(f"narrower: {where}: {test['description']}: {json.dumps(test['data'])}")
                else:
                    failures.append(f"{where}: {test['description']}: accepted {accepted}, "
                                    f"valid {test['valid']}: {json.dumps(test['data'])[:200]}")
            checking = jsonschema.Draft202012Validator.FORMAT_CHECKER if is_format else None
            validator = jsonschema.Draft202012Validator(schema, format_checker=checking)
            for text in answer["samples"]:
                count["texts drawn"] += 1
                try:
                    error = next(validator.iter_errors(json.loads(text)), None)
                except Exception as exception:  # pylint: disable=broad-except
                    error = exception
                if error is not None:
                    failures.append(f"{where}: drawn {text!r}: {str(error)[:200]}")
    for name, n in sorted(count.items()):
        print(f"{n:6} {name}")
    print("refused for:", ", ".join(f"{name} ({n})" for name, n in refused.most_common()))
    for failure in failures:
        print("FAILED", failure)
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
