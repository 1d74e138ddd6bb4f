#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# ./dev lint [--all]: format of the lines changed since main, length of functions, clang-tidy of the
# changed files. --all looks at every file for the last two.
# usage: lint.sh TOP [--all]
set -euo pipefail
cd "$1"
base=$(git merge-base HEAD main 2>/dev/null || git rev-parse HEAD)
[ "$base" != "$(git rev-parse HEAD)" ] || [ -n "$(git status --porcelain)" ] ||
    base=$(git rev-parse 'HEAD~1' 2>/dev/null || git rev-parse HEAD)
bad=0

if [ "${2-}" = --all ]; then
    mapfile -t sources < <(git ls-files '*.cc')
else
    mapfile -t sources < <(git diff --name-only --diff-filter=d "$base" -- '*.cc')
fi

echo "== format of lines changed since ${base:0:7}"
# clang-format-diff, of clang-format's package, reads a diff without context.
git diff -U0 --no-color "$base" -- '*.cc' '*.h' | clang-format-diff -p1 -style=file >/tmp/lint-format.$$
[ ! -s /tmp/lint-format.$$ ] || { cat /tmp/lint-format.$$ && bad=1; }
rm -f /tmp/lint-format.$$

echo "== length of functions"
python3 tests/host/function_length.py "${sources[@]}" || bad=1

echo "== clang-tidy"
checks='-*,bugprone-*,-bugprone-easily-swappable-parameters,-bugprone-narrowing-conversions'
checks+=',-bugprone-reserved-identifier,-bugprone-assignment-in-if-condition,performance-*'
# Left out as well: what costs nothing here, and what is an idiom of the tests.
checks+=',-performance-enum-size,-performance-no-int-to-ptr,-performance-inefficient-*'
checks+=',-performance-unnecessary-value-param,-bugprone-implicit-widening-of-multiplication-result'
checks+=',-bugprone-unused-raii'
checks+=',misc-unused-*,-misc-unused-parameters,modernize-use-override'
for file in "${sources[@]}"; do
    grep -qF "$file\"" build/compile_commands.json || continue  # not built here
    clang-tidy -p build --quiet --checks="$checks" --warnings-as-errors='*' \
        --extra-arg=-Wno-unknown-warning-option "$file" 2>/dev/null || bad=1
done
[ $bad = 0 ] && echo "lint: clean"
exit $bad
