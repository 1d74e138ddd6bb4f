#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lengths of the functions in C++ files: fails above LIMIT lines, names those above WARN.

Reads our own layout only: a body opens with `{` at the end of a line at depth of namespaces and classes
and closes with a line that is a brace at the same indentation.
"""
import re
import statistics
import sys

WARN, LIMIT = 60, 80
NOT_A_FUNCTION = re.compile(r"^\s*(namespace|class|struct|union|enum|extern|if|for|while|switch|else|do|"
                            r"case|try|catch|return|typedef|using)\b|=\s*\{$|^\s*[\}{]")
# The line above a signature, which with its initializers may itself have several.
BEFORE_A_FUNCTION = re.compile(r"^\s*$|[;{}]\s*$|^\s*(//|#|template\b|(public|private|protected):)")


def functions(lines):
    """(first line, name, length) of each body that is not inside another."""
    i = 0
    while i < len(lines):
        line = lines[i].rstrip()
        if line.endswith("{") and not NOT_A_FUNCTION.match(line) and (")" in line or "const {" in line):
            start = i
            while start > 0 and not BEFORE_A_FUNCTION.search(lines[start - 1]):
                start -= 1
            match = re.search(r"([\w:~<>]+)\s*\(", lines[start])
            close = " " * (len(lines[start]) - len(lines[start].lstrip())) + "}"
            end = next((j for j in range(i, len(lines)) if lines[j].rstrip() in (close, close + ";")), i)
            yield start + 1, match[1] if match else "?", end - i + 1
            i = max(end, i + 1)
        else:
            i += 1


def main():
    lengths, too_long = [], 0
    for path in sys.argv[1:]:
        for line, name, length in functions(open(path, encoding="utf-8").read().splitlines()):
            lengths.append(length)
            if length > WARN:
                print(f"{path}:{line}: {name} has {length} lines" + (" (too long)" if length > LIMIT else ""))
                too_long += length > LIMIT
    if lengths:
        print(f"{len(lengths)} functions, median {statistics.median(lengths):.0f} lines, longest {max(lengths)}")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
