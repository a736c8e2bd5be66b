#!/usr/bin/env python3
"""Runs the commands quoted in the documentation and puts what they print in place.

A transcript is a fenced block whose first line is a command:

    ```console
    $ ./run tokenize -p "Hello"
    ...
    ```

Everything after a line that begins with "$ " up to the next such line or the end of the block is replaced by what the
command prints on stdout (and on stderr for a command that fails). Lines ending in a backslash go on. Commands run in the
repository's root; QIANWEN_SHARED names the folder of further checkpoints (default ../shared).

For a page that asks localhost:8000, `./run serve` runs beside the commands.

    tools/update_transcripts.py README.md docs/*.md
"""
import contextlib
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FENCE = re.compile(r"(```console\n)(.*?)(```)", re.S)
LIMIT = 40  # lines of output kept


# A program to run in place of ./run (one that is built already).
PROGRAM = os.environ.get("QIANWEN_RUN", "./run")


@contextlib.contextmanager
def server(text: str):
    """The server that a page's commands ask, if they do."""
    if "localhost:8000" not in text:
        yield
        return
    process = subprocess.Popen([PROGRAM, "serve", "--json"], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    process.stdout.readline()  # it serves
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def run(command: str) -> str:
    env = dict(os.environ, QIANWEN_SHARED=os.environ.get("QIANWEN_SHARED", "../shared"))
    command = command.replace("./run", PROGRAM)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, timeout=600)
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        text += done.stderr.decode("utf-8", "replace")
    text = text.replace(str(ROOT) + "/", "")  # paths as a reader has them
    lines = text.rstrip("\n").split("\n")
    if len(lines) > LIMIT:
        lines = lines[:LIMIT] + ["..."]
    return "\n".join(line[:220] + ("..." if len(line) > 220 else "") for line in lines) + "\n"


def update(body: str) -> str:
    out, lines, i = [], body.split("\n"), 0
    while i < len(lines):
        if lines[i].startswith("$ "):
            command = lines[i][2:]
            out.append(lines[i])
            while command.endswith("\\"):
                i += 1
                out.append(lines[i])
                command = command[:-1] + lines[i]
            print("  $", command, file=sys.stderr)
            out.append(run(command).rstrip("\n"))
            i += 1
            while i < len(lines) and not lines[i].startswith("$ "):
                i += 1
            continue
        out.append(lines[i])
        i += 1
    return "\n".join(out).rstrip("\n") + "\n"


def main() -> None:
    for name in sys.argv[1:]:
        path = pathlib.Path(name)
        text = path.read_text(encoding="utf-8")
        print(name, file=sys.stderr)
        with server(text):
            new = FENCE.sub(lambda m: m.group(1) + update(m.group(2)) + m.group(3), text)
        if new != text:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
