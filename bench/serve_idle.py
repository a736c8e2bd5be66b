#!/usr/bin/env python3
"""What idle clients cost a server: resident memory and processor time with 1,000 keep-alive connections open. Markdown.

  bench/serve_idle.py [-c CONNECTIONS] [-s SECONDS] [MODEL]

Each connection has had one answer and waits for its next request. QIANWEN names our program (default: the release build).
"""
import argparse
import http.client
import json
import os
import resource
import subprocess
import sys
import time


def resident_mb(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def processor_s(pid):
    with open(f"/proc/{pid}/stat") as line:
        fields = line.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_connections(host, n):
    connections = []
    for _ in range(n):
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200 or connection.sock is None:
            sys.exit(f"serve_idle.py: expected 200 and a connection that stays, got {answer.status}")
        connections.append(connection)
    return connections


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-c", type=int, default=1000, help="connections (1000)")
    parser.add_argument("-s", type=float, default=10, help="seconds to look on (10)")
    parser.add_argument("model", nargs="?", help="default: the bundled one")
    options = parser.parse_args()
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = os.environ.get("QIANWEN", os.path.join(root, "build/release/qianwen"))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, options.c + 100), hard))
    command = [program, "serve"] + ([options.model] if options.model else []) + ["--port", "0", "--json", "--no-access-log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            host = json.loads(server.stdout.readline())["url"].split("//")[1]
            open_connections(host, 1)  # what the first one costs is the server's own
            time.sleep(1)
            before = resident_mb(server.pid)
            connections = open_connections(host, options.c)
            time.sleep(1)
            opened = resident_mb(server.pid)
            used = processor_s(server.pid)
            time.sleep(options.s)
            used = processor_s(server.pid) - used
            connections[-1].request("GET", "/health")
            alive = connections[-1].getresponse().status == 200
        finally:
            server.terminate()
    print("| what | value |\n|---|--:|")
    print(f"| idle keep-alive connections | {options.c} |")
    print(f"| resident memory without them | {before:.1f} MiB |")
    print(f"| more with them | {opened - before:.1f} MiB |")
    print(f"| processor time in {options.s:g} s | {used:.2f} s |")
    print(f"| the last one is still answered | {'yes' if alive else 'no'} |")


if __name__ == "__main__":
    main()
