#!/usr/bin/env python3
"""Keeps the tables of docs/serving/ what /compat says, which is what is in force.

A table stands between two comments of a page; the first names a dialect of /compat:

    <!-- compat: ollama -->
    ...
    <!-- end of compat -->

    tools/compat_table.py PROGRAM docs/serving/*.md            puts the tables in place
    tools/compat_table.py --check PROGRAM docs/serving/*.md    says which pages differ; exit code 1 if any

PROGRAM is the qianwen program; it is started on a free port with the bundled model.
"""
import json
import pathlib
import re
import subprocess
import sys
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- compat: ([a-z_]+) -->\n)(.*?)(<!-- end of compat -->)", re.S)


def fetch_compat(program: str) -> dict:
    """What a server of that program says of itself."""
    command = [program, "serve", str(ROOT / "models/qianwen-mini-chat"), "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = json.loads(server.stdout.readline())["url"]
        with urllib.request.urlopen(url + "/compat", timeout=30) as answer:
            return json.load(answer)
    finally:
        server.terminate()
        server.wait(timeout=60)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(endpoints: list) -> str:
    """Addresses with equal fields share a table."""
    groups = {}
    for endpoint in endpoints:
        key = json.dumps(endpoint["fields"]) if endpoint["fields"] else ""
        groups.setdefault(key, []).append(endpoint)
    out = []
    plain = groups.pop("", [])
    for group in groups.values():
        out.append("**" + ", ".join(f"{e['method']} {e['path']}" for e in group) + "**: " + group[0]["summary"] + "\n")
        by_status = {}
        for field in group[0]["fields"]:
            by_status.setdefault((field["status"], field.get("note", "")), []).append(f"`{field['name']}`")
        out.append("| field | what is done with it | |\n|---|---|---|")
        for (status, note), names in by_status.items():
            out.append(f"| {', '.join(names)} | {status} | {cell(note)} |")
        out.append("")
    if plain:
        out.append("Without fields:\n")
        out += [f"- `{e['method']} {e['path']}`: {e['summary']}" for e in plain]
        out.append("")
    return "\n".join(out)


def main() -> int:
    args = sys.argv[1:]
    check = bool(args) and args[0] == "--check"
    program, *pages = args[1:] if check else args
    dialects = fetch_compat(program)["dialects"]
    failed = False
    for name in pages:
        path = pathlib.Path(name)
        text = path.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda m: m.group(1) + table(dialects[m.group(2)]) + m.group(4), text)
        if new == text:
            continue
        if check:
            print(f"{name}: expected the tables that tools/compat_table.py makes, got others", file=sys.stderr)
            failed = True
        else:
            path.write_text(new, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
